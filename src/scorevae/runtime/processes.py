"""A stage in several processes: it starts itself under torchrun, one for each device.

``SCOREVAE_PROCESSES=auto|N``; auto is the number of CUDA devices, and 1 on a CPU. A choice of the
machine: it makes DVC train nothing again.
"""

import logging
import os
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from scorevae.errors import UserError, in_a_line

LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
CPU_ONLY = ("1", "true", "yes", "y", "on", "t")  # what accelerate takes for yes


def processes() -> int:
    """How many of them: ``SCOREVAE_PROCESSES``.

    Raises:
        UserError: the variable is no number above zero, or above that of the CUDA devices.
    """
    chosen = os.environ.get("SCOREVAE_PROCESSES", "auto")
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in CPU_ONLY
    devices = 0 if on_cpu else torch.cuda.device_count()
    if chosen == "auto":
        return max(1, devices)
    if not (chosen.isascii() and chosen.isdigit() and int(chosen) > 0):
        raise UserError(f"SCOREVAE_PROCESSES={chosen}: give auto, or a number from 1")
    if devices and int(chosen) > devices:
        raise UserError(
            f"SCOREVAE_PROCESSES={chosen}: there are {devices} CUDA devices; give at most "
            "that many, or auto"
        )
    return int(chosen)


def spread() -> None:
    """Run this command in :func:`processes`, and end this one with them; or return if it is one.

    What torchrun, or accelerate, has started returns at once. Signals reach every process, which
    stop together, saved; only the first one writes to the terminal.

    Raises:
        UserError: a process other than the first failed; the first has spoken for itself.
        SystemExit: they have ended.
    """
    if "LOCAL_RANK" in os.environ:
        _together_on_a_cpu(int(os.environ.get("WORLD_SIZE", "1")))
        return
    if (count := processes()) == 1:
        return
    _together_on_a_cpu(count)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (cores or 1) // count)))
    # By the loopback interface, since a machine's own name need not resolve.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
    with tempfile.TemporaryDirectory(prefix="scorevae-") as folder:
        sys.exit(_torchrun(count, Path(folder)))


def _together_on_a_cpu(count: int) -> None:
    """Have accelerate see the others where there is no GPU, where it takes each for one alone."""
    if count > 1 and not torch.cuda.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "1")


def _torchrun(count: int, folder: Path) -> int:
    """As ``torchrun --standalone`` does; the exit code."""
    # Here, for what it takes to import is of no use to one process.
    from torch.distributed.elastic.multiprocessing.api import (
        DefaultLogsSpecs,
        SignalException,
        Std,
    )
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # pages of it, when a process is stopped
    logs = DefaultLogsSpecs(str(folder), redirects={rank: Std.ALL for rank in range(1, count)})
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=str(uuid.uuid4()),
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0, logs_specs=logs,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)(*sys.argv)
    except SignalException:
        return 1
    except ChildFailedError as error:
        failures = {rank: failure.exitcode for rank, failure in error.failures.items()}
        others = [rank for rank in failures if rank]
        # Where torchrun was the quicker to notice, the first one was ended without a word.
        if failures.get(0, 0) <= 0 and others:
            raise UserError(_told(folder, min(others))) from None
        return failures[0] if failures[0] > 0 else 1
    return 0


def _told(folder: Path, rank: int) -> str:
    """The last line that a process said."""
    lines = [line for log in folder.rglob(f"{rank}/stderr.log") for line in _lines(log)]
    said = lines[-1] if lines else "it was killed, and left no word"
    return f"process {rank}: {in_a_line(said).removeprefix('Error: ')}"


def _lines(log: Path) -> list[str]:
    return [line for line in log.read_text(errors="replace").splitlines() if line.strip()]


class Together:
    """What the processes of a training decide together, so that none waits for one that is gone.

    They speak on the side, from CPU to CPU: no device is waited for.
    """

    def __init__(self, count: int) -> None:
        self._group: Any = dist.new_group(backend="gloo") if count > 1 else None

    def any(self, *mine: bool) -> list[bool]:
        """Which of these any process has found true."""
        if self._group is None:
            return list(mine)
        votes = torch.tensor(mine, dtype=torch.int32)
        dist.all_reduce(votes, dist.ReduceOp.MAX, group=self._group)
        return [bool(vote) for vote in votes.tolist()]

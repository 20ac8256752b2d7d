"""The one training loop. It knows modules, objectives and numbers; not SDEs, priors or MLflow."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from scorevae.config import TrainingConfig
from scorevae.errors import UserError
from scorevae.randomness import derive_seed, make_generator
from scorevae.runtime.arithmetic import arithmetic
from scorevae.runtime.compiled import compiling
from scorevae.runtime.interruption import Interrupted, stop_requests
from scorevae.runtime.processes import Together
from scorevae.runtime.progress import progress
from scorevae.training.step import Objective, Stepper, learning_rate

Batches = Callable[[int], Tensor]
Record = Callable[[int, dict[str, float]], None]
Validate = Callable[[nn.Module], dict[str, float]]

SAVE_SECONDS = "300"  # the default of the environment variable SCOREVAE_SAVE_SECONDS


class State(Protocol):
    """Where a run that may be interrupted keeps what it needs to go on."""

    def load(self) -> dict[str, Any] | None:
        """The last saved state, or None at the start."""

    def save(self, state: dict[str, Any]) -> None:
        """Replace the saved state atomically."""


def save_interval() -> float:
    """Seconds between two savings of the state: ``SCOREVAE_SAVE_SECONDS``, or 300.

    Raises:
        UserError: the variable is no number of seconds.
    """
    text = os.environ.get("SCOREVAE_SAVE_SECONDS", SAVE_SECONDS)
    with suppress(ValueError):
        if (seconds := float(text)) >= 0:  # which NaN is not
            return seconds
    raise UserError(f"SCOREVAE_SAVE_SECONDS={text}: give a number of seconds, 0 or more")


def falling(points: Sequence[tuple[int, float]]) -> float | None:
    """How fast a loss still falls: percent for each doubling of the steps.

    A least-squares line through (log₂ step, loss) of the last fifth of the steps, or of the last
    two points where that holds fewer, its slope over |last loss|. Positive while the loss falls.
    None for fewer than two points, and where the last loss is zero.
    """
    late = [point for point in points if point[0] >= 0.8 * points[-1][0]]
    steps, losses = np.array(late if len(late) > 1 else points[-2:]).reshape(-1, 2).T
    if len(steps) < 2 or losses[-1] == 0:
        return None
    slope = np.polyfit(np.log2(steps), losses, 1)[0]
    return float(-100 * slope / abs(losses[-1]))


def fit(
    module: nn.Module,
    objective: Objective,
    batches: Batches,
    settings: TrainingConfig,
    *,
    seed: int,
    name: str,
    record: Record,
    validate: Validate,
    state: State,
    accelerator: Accelerator,
) -> nn.Module:
    """Minimise the objective for ``settings.steps`` steps and return the averaged weights.

    Adam, warm-up, gradient clipping, EMA. Every number follows from (seed, name, step): a run
    that is killed and started again continues from the last saved state and ends, on a CPU, with
    the same bits as one that was not interrupted.

    SIGTERM, SIGINT and the end of the DVC that started it save the state first, and stop all
    processes of a training after the same step; a SIGKILL loses at
    most the ``SCOREVAE_SAVE_SECONDS`` (300) between two savings.

    ``module`` is modified. The objective gives named losses of shape (batch,), ``batches`` this
    process's share of a step's images, ``validate`` numbers for the averaged weights, asked for
    every ``validate_every`` steps and at the end; of their ``test_loss`` the last record says by
    ``falling`` whether it still does. ``record`` receives (step, numbers); on
    resuming, earlier ones once more, in order.

    Raises:
        UserError: ``accumulate`` does not divide a process's share of a batch; loss or gradient
            were not finite in MAX_SKIPPED steps in a row, which is noticed
            at the next record at the latest; bf16 on a GPU without it; or the state cannot be
            saved. The last good state is kept.
        Interrupted: stopped from outside; the state is saved.
    """
    interval = save_interval()
    _check_parts(settings, accelerator.num_processes)
    module.requires_grad_(True).train()
    compiled = compiling(accelerator.device)
    stepper = Stepper(module, objective, settings, accelerator, compiled=compiled)
    log = _Log(record)
    averaged, bad = stepper.averaged, stepper.bad
    kept: dict[str, Any] = {
        "module": module,
        "optimizer": stepper.optimizer,
        "averaged": averaged,
        "log": log,
    }
    together = Together(accelerator.num_processes)
    first, beginning = _restore(state, kept), "compiling" if stepper.compiled else ""
    shown = progress(name, first, settings.steps, beginning=beginning)
    rounding = arithmetic(settings.precision, accelerator.device)
    with rounding, stop_requests() as stopping, shown as bar:
        saved_at = time.monotonic()
        for step in range(first, settings.steps):
            rank = accelerator.process_index
            torch.manual_seed(derive_seed(seed, name, "network", step, rank))  # dropout
            generator = make_generator(accelerator.device, seed, name, "loss", step, rank)
            x_0 = batches(step).to(accelerator.device, non_blocking=True)
            log.add(stepper(step, x_0, generator, learning_rate(settings, step)))
            last, reason = step + 1 == settings.steps, stopping()
            logs = (step + 1) % settings.log_every == 0
            due = last or time.monotonic() - saved_at > interval
            stops, saves = together.any(reason is not None, reason is not None or due)
            if logs or saves:  # the only looks at the device
                bad.check(name, stepper.terms, settings)
            if logs:
                log.means(step + 1, stepper.terms)
            if last or (step + 1) % settings.validate_every == 0:
                averaged.module.eval()
                log.validated(step + 1, validate(averaged.module), last=last)
                averaged.module.train()
            bar(step + 1, log.latest)
            if saves:
                if accelerator.is_main_process:
                    parts = {part: saved.state_dict() for part, saved in kept.items()}
                    state.save({"step": step + 1, **parts})
                saved_at = time.monotonic()
            if stops:
                by = reason or "a signal to another of its processes"
                raise Interrupted(
                    f"{name}: stopped by {by}; the state after step {step + 1} of "
                    f"{settings.steps} is saved, and the same command goes on from there"
                )
    return averaged.module.eval().requires_grad_(False)


def _check_parts(settings: TrainingConfig, processes: int) -> None:
    """Each process computes its share of a batch in equal parts."""
    parts = settings.accumulate
    if parts > 1 and settings.batch % (parts * processes):
        raise UserError(
            f"training.accumulate: got {parts}, which does not divide the share of each of "
            f"{processes} processes in a batch of {settings.batch}; choose another, or 1"
        )


def _restore(state: State, kept: dict[str, Any]) -> int:
    """Load the last state, if there is one, into what it was taken of; return its step."""
    saved = state.load()
    if saved is None:
        return 0
    for name, part in kept.items():
        part.load_state_dict(saved[name])
    return int(saved["step"])


class _Log:
    """Means of a step's values between two records, summed on the device; what was recorded."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._sums: Tensor | None = None
        self._count = 0
        self._rows: list[tuple[int, dict[str, float]]] = []
        self._seconds_before = 0.0
        self._started = time.monotonic()
        self.latest: dict[str, float] = {}

    def add(self, values: Tensor) -> None:
        """One step more."""
        self._sums = values if self._sums is None else self._sums.to(values.device) + values
        self._count += 1

    def means(self, step: int, terms: Sequence[str]) -> None:
        """Record the means of the steps since the last record."""
        assert self._sums is not None, "nothing was added"
        sums = zip(terms, self._sums.tolist(), strict=True)
        self.latest = {term: total / self._count for term, total in sums}
        self._sums, self._count = None, 0
        self.write(step, self.latest)

    def validated(self, step: int, numbers: dict[str, float], *, last: bool) -> None:
        """Write what validation gave; at the end, how fast the test loss still falls."""
        if last and "test_loss" in numbers:
            before = [(s, row["test_loss"]) for s, row in self._rows if "test_loss" in row]
            slope = falling([*before, (step, numbers["test_loss"])])
            numbers = numbers if slope is None else {**numbers, "falling": slope}
        self.write(step, numbers)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        # milliseconds since 1970: by it MLflow knows a point again, also after resuming
        row = {**numbers, "seconds": self._seconds(), "timestamp": int(1000 * time.time())}
        self._rows.append((step, row))
        self._record(step, row)

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        return {
            "sums": self._sums,
            "count": self._count,
            "rows": self._rows,
            "seconds": self._seconds(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self._sums, self._count = saved["sums"], saved["count"]
        self._rows, self._seconds_before = saved["rows"], saved["seconds"]
        for step, numbers in self._rows:
            self._record(step, numbers)

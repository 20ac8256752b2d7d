"""Where the numbers come from: parameters, commit, machine, and the commands for the same."""

import os
import platform
import re
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

from scorevae.config import Config, flatten
from scorevae.evaluation.report.page import Provenance
from scorevae.runtime.runs import committed_config, git

YAML = {"None": "null", "True": "true", "False": "false"}
LOCAL = ("data.root", "lpips.trunk")  # of the preset: where files lie on one machine
INCEPTION = "evaluate.quality.inception"
PLACEHOLDER = "PATH"
CODE = ("src", "stages", "dvc.yaml", "requirements.lock")  # parameters are in the commands


def parameters(config: Config) -> dict[str, str]:
    """Every parameter that counts, by dotted name, as params.yaml writes it.

    Only the selected preset and protocol; a path of this machine is PLACEHOLDER.
    """
    tree = config.model_dump(exclude={"presets", "protocols"})
    tree["protocols"] = {config.reconstruct.protocol: config.sampling.model_dump()}
    tree["presets"] = {config.preset: config.selected.model_dump()}
    local = {INCEPTION, *(f"presets.{config.preset}.{key}" for key in LOCAL)}
    return {
        name: PLACEHOLDER if name in local and text != "null" else text
        for name, text in _plain(tree).items()
    }


def _plain(tree: dict[str, Any]) -> dict[str, str]:
    return {name: YAML.get(text, text) for name, text in flatten(tree).items()}


def provenance(config: Config, params: Path) -> Provenance:
    """Commit, machine and commands of a run with this parameter file, in its folder."""
    folder = params.absolute().parent
    commit = git(folder, "rev-parse", "HEAD")
    dirty = bool(git(folder, "status", "--porcelain", "--", *CODE))
    ours, committed = parameters(config), committed_parameters(params, config)
    notes = []
    if not commit:
        notes.append("The run was not in a Git repository: no commit is known.")
    elif not ours.keys() <= committed.keys():
        notes.append("The commit lacks some of the parameters below: add them to params.yaml.")
    if dirty:
        notes.append("The code had local changes: the commit alone may give other numbers.")
    if PLACEHOLDER in ours.values():
        notes.append(f"{PLACEHOLDER} stands for files of your own.")
    lines = commands(ours, commit, committed)
    return Provenance(
        commit or "unknown",
        dirty,
        hardware(),
        lines,
        notes,
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        name=os.environ.get("DVC_EXP_NAME", ""),
    )


def committed_parameters(params: Path, config: Config) -> dict[str, str]:
    """All parameters in the commit's version of the file; empty where there is none."""
    committed = committed_config(params, "HEAD", config)
    return {} if committed is None else _plain(committed.model_dump())


def commands(ours: Mapping[str, str], commit: str, committed: Mapping[str, str]) -> list[str]:
    """The lines to type for the same run: preset, β, seed and whatever differs from the commit."""
    settings = {
        name: value
        for name, value in ours.items()
        if name in ("preset", "beta", "seed")
        or (name, value) == ("quick", "true")
        or value == PLACEHOLDER
        or committed.get(name, value) != value
    }
    texts = [f"{name}={value.replace(', ', ',')}" for name, value in settings.items()]
    run = ["dvc exp run", *(f"-S {shlex.quote(text)}" for text in texts)]
    checkout = [f"git checkout {commit}"] if commit else []
    return [*checkout, "make .venv/installed", ". .venv/bin/activate", " ".join(run)]


def hardware() -> dict[str, str]:
    """The machine that runs this, without its name."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "Processor": _processor(),
        "Cores": str(cores),
        "Memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "GPU": ", ".join(gpus) or "none",
        "System": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "PyTorch": str(torch.__version__),
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or "unknown"

"""A stage in several processes: it starts them itself, and they stop and go on as one."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pipeline import command, set_params

from scorevae.errors import UserError
from scorevae.runtime import processes as module
from scorevae.runtime.processes import Together, processes, spread

VAE = "presets.digits.vae.training"
WEIGHTS = Path("models/digits/vae.safetensors")


@pytest.mark.parametrize(("chosen", "devices", "expected"), [
    ("auto", 0, 1), ("auto", 4, 4), ("1", 4, 1), ("4", 4, 4), ("3", 0, 3),
])  # fmt: skip
def test_how_many(
    monkeypatch: pytest.MonkeyPatch, chosen: str, devices: int, expected: int
) -> None:
    """Catches devices that stand idle, and a CPU that trains in several processes unasked."""
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setenv("SCOREVAE_PROCESSES", chosen)
    assert processes() == expected


@pytest.mark.parametrize(("chosen", "said"), [
    ("5", "SCOREVAE_PROCESSES=5: there are 4 CUDA devices; give at most"),
    ("0", "SCOREVAE_PROCESSES=0: give auto, or a number from 1"),
    ("two", "SCOREVAE_PROCESSES=two: give auto, or a number from 1"),
])  # fmt: skip
def test_too_many_or_no_number(monkeypatch: pytest.MonkeyPatch, chosen: str, said: str) -> None:
    """Catches processes that share a device, and a message without the variable."""
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("SCOREVAE_PROCESSES", chosen)
    with pytest.raises(UserError, match=said):
        processes()


def test_what_torchrun_started_starts_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches processes that each start others."""
    monkeypatch.setattr(module, "_torchrun", lambda count, folder: count)
    monkeypatch.setenv("SCOREVAE_PROCESSES", "3")
    with pytest.raises(SystemExit) as ended:
        spread()
    assert ended.value.code == 3
    monkeypatch.setenv("LOCAL_RANK", "0")
    spread()


@pytest.mark.parametrize(("world", "cuda", "expected"), [
    ("2", False, "1"), ("2", True, None), ("1", False, None),
])  # fmt: skip
def test_processes_on_a_cpu_know_of_each_other(
    monkeypatch: pytest.MonkeyPatch, world: str, cuda: bool, expected: str | None
) -> None:
    """Catches processes of which each is the first: accelerate, without a GPU, makes no group."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "")
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", world)
    module.spread()
    assert os.environ.get("ACCELERATE_USE_CPU") == expected


def test_one_process_decides_alone() -> None:
    """Catches a vote without a group."""
    assert Together(1).any(False, True) == [False, True]


@pytest.mark.parametrize(("log", "said"), [
    ("Traceback\nMemoryError: no memory\n\n", "process 1: MemoryError: no memory"),
    ("Error: training.batch: got 7\n", "process 1: training.batch: got 7"),
    ("", "process 1: it was killed, and left no word"),
])  # fmt: skip
def test_last_words_of_a_process(tmp_path: Path, log: str, said: str) -> None:
    """Catches a failure of a process that does not write to the terminal, without a reason."""
    for rank, text in (("0", "Error: of another"), ("1", log)):
        (tmp_path / "run" / "attempt_0" / rank).mkdir(parents=True)
        (tmp_path / "run" / "attempt_0" / rank / "stderr.log").write_text(text)
    assert module._told(tmp_path, 1) == said


def start(**environment: str) -> subprocess.Popen:
    """The stage of the VAE, by two processes on the CPU, as a machine without a GPU has them."""
    two = {"SCOREVAE_PROCESSES": "2"}
    if torch.cuda.is_available():
        two["ACCELERATE_USE_CPU"] = "1"
    return subprocess.Popen(
        command("train_vae_baseline"), text=True, env=os.environ | two | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def lines(process: subprocess.Popen) -> Iterator[str]:
    """What it prints, until it has finished without an error."""
    yield from process.stdout
    _, errors = process.communicate()
    assert process.returncode == 0, errors


@pytest.mark.faults
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_two_processes_stop_and_go_on_to_the_same_bits(workspace: Path) -> None:
    """Catches a signal that reaches one alone, a state unsaved, other bits, errors twice."""
    set_params(**{f"{VAE}.steps": 60, f"{VAE}.validate_every": 60})
    assert list(lines(start()))
    expected = WEIGHTS.read_bytes()
    WEIGHTS.unlink()
    cut = start(SCOREVAE_SAVE_SECONDS="0")
    for line in cut.stdout:
        if line.startswith("train_vae_baseline/vae: 12/60"):
            break
    cut.send_signal(signal.SIGTERM)
    _, errors = cut.communicate()
    assert cut.returncode == 1
    (error,) = errors.splitlines()
    assert "stopped by SIGTERM; the state after step " in error
    assert not WEIGHTS.exists()
    told = list(lines(start()))
    assert any("resuming at" in line for line in told)
    assert WEIGHTS.read_bytes() == expected

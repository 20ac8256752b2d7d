"""Stages in trouble: a second one, a kill, a full disk, numbers that are none, no memory."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from limits import disk_of, memory_of
from pipeline import command, contents, run, set_params

VAE = "presets.digits.vae.training"
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("workspace")]


@pytest.fixture(autouse=True)
def _save_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCOREVAE_SAVE_SECONDS", "0")


def start(stage: str) -> subprocess.Popen:
    """Start a stage as a process of its own."""
    pipe = subprocess.PIPE
    return subprocess.Popen(command(stage), text=True, stdout=pipe, stderr=pipe)


def first(pattern: str, process: subprocess.Popen) -> Path:
    """The first file of that pattern, as soon as it is there."""
    while not (found := sorted(Path().glob(pattern))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return found[0]


def error_of(stage: str) -> str:
    """The one line that a stage says when it fails in this process."""
    result = run(stage)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    return line


def test_second_trainer_is_refused_and_a_stale_lock_is_no_obstacle() -> None:
    """Catches two trainers on one state, and a lock that outlives a killed one."""
    set_params(**{f"{VAE}.steps": 100_000, f"{VAE}.validate_every": 100_000})
    trainer = start("train_vae_baseline")
    first("state/*/*/vae.pt", trainer)
    refusal = f"process {trainer.pid} is at exactly this; wait for it or stop it (kill "
    assert refusal in error_of("train_vae_baseline")
    assert trainer.poll() is None
    trainer.kill()
    trainer.communicate()
    trainer = start("train_vae_baseline")
    for line in trainer.stdout:
        if "train_vae_baseline/vae: resuming at" in line:
            break
    trainer.send_signal(signal.SIGTERM)
    _, stderr = trainer.communicate()
    assert trainer.returncode == 1
    assert "Error: train_vae_baseline/vae: stopped by SIGTERM; the state after step " in stderr
    assert "of 100000 is saved, and the same command goes on from there" in stderr
    assert "Traceback" not in stderr


# By the loopback interface, since a machine's own name need not resolve.
LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
CPUS = {"ACCELERATE_USE_CPU": "1", "GLOO_SOCKET_IFNAME": LOOPBACK}


@pytest.mark.faults
def test_two_processes_share_one_state(workspace: Path) -> None:
    """Catches processes of one training that refuse each other, or that each write the result."""
    weights = workspace / "models/digits/vae.safetensors"
    before = weights.read_bytes()
    set_params(**{f"{VAE}.steps": 6})
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, *command("train_vae_baseline")[1:]],
        text=True, env=os.environ | CPUS, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert weights.read_bytes() != before
    curve = (workspace / "results/digits/curves/vae.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in curve] == ["step", "2", "2", "4", "4", "6", "6"]
    assert not list(workspace.glob("state/train_vae_baseline/*/*.pt"))


RARER = [pytest.param(n, marks=pytest.mark.faults) for n in (signal.SIGTERM, signal.SIGINT)]


@pytest.mark.parametrize("number", [signal.SIGKILL, *RARER])
def test_reconstruct_goes_on_after_the_last_batch(workspace: Path, number: signal.Signals) -> None:
    """Catches batches drawn anew, and other images than those of an uninterrupted run."""
    small = {"presets.digits.test_images": 100, "protocols.default.steps": 20}
    set_params(**small, **{"reconstruct.batch": 20})
    shutil.rmtree("results/digits/reconstructions")
    attempt = start("reconstruct")
    kept = first("state/reconstruct/*/scorevae.0-20.npy", attempt)
    attempt.send_signal(number)
    _, stderr = attempt.communicate()
    assert attempt.returncode != 0
    if number != signal.SIGKILL:
        assert f"Error: reconstruct: stopped by {number.name}; " in stderr
    assert not Path("results/digits/reconstructions").exists()
    written = kept.stat().st_mtime_ns
    last = sorted(kept.parent.glob("*.npy"))[-1]
    attempt = start("reconstruct")
    while attempt.poll() is None:
        with suppress(FileNotFoundError):  # in the end the batches are forgotten
            assert kept.stat().st_mtime_ns == written
        time.sleep(0.005)
    assert attempt.communicate()[0].count("reconstruct: resuming at") == 1
    assert not last.exists()
    resumed = contents(workspace)
    shutil.rmtree("results/digits/reconstructions")
    assert run("reconstruct").exit_code == 0
    assert contents(workspace) == resumed


@pytest.mark.parametrize(("stage", "size", "file"), [
    ("train_vae_baseline", 20_000, "vae.pt"),
    ("reconstruct", 20_000, "0-250.npy"),
    ("reconstruct", 70_000, "results/digits/reconstructions"),
])  # fmt: skip
def test_full_disk(workspace: Path, stage: str, size: int, file: str) -> None:
    """Catches a traceback, a half file, and a result lost although the disk has space again."""
    before = contents(workspace)
    with disk_of(size):
        message = error_of(stage)
    assert f"{file}: cannot be written (" in message
    assert "free some space" in message
    assert contents(workspace) == before
    assert not [p for p in workspace.rglob("*.partial") if p.is_file()]
    assert run(stage).exit_code == 0
    after = contents(workspace)
    assert set(after) == set(before)
    assert [n for n in before if after[n] != before[n] and not n.endswith(".csv")] == []


def test_numbers_that_are_none_stop_the_training(workspace: Path) -> None:
    """Catches days of training on NaN, and a message that does not say what to try."""
    set_params(**{f"{VAE}.steps": 60, f"{VAE}.learning_rate": 1e30})
    before = (workspace / "models/digits/vae.safetensors").read_bytes()
    message = error_of("train_vae_baseline")
    assert "train_vae_baseline/vae: step " in message
    assert "loss or gradient were not finite in 20 steps in a row (loss " in message
    assert "learning rate 1e+30); lower learning_rate" in message or "e+29" in message
    assert (workspace / "models/digits/vae.safetensors").read_bytes() == before
    assert list(workspace.glob("state/*/*/vae.pt"))


def test_a_stage_without_memory_names_its_keys(workspace: Path) -> None:
    """Catches a traceback, and advice that does not say which of four batches to lower."""
    changes = {
        "data.image.size": 128,
        "vae.training.batch": 1024,  # ·256·128·128 float32: 16 GiB a layer
        "encoder.network.channels": [256],
    }
    set_params(**{f"presets.digits.{key}": value for key, value in changes.items()})
    for split in ("train", "test"):
        images = np.zeros((1024, 128, 128, 1), dtype=np.uint8)
        np.save(f"data/digits/{split}_images.npy", images)
    before = contents(workspace)
    # Ample for all that the stage does, and less than that batch asks in one piece.
    with memory_of(8 << 30):
        message = error_of("train_vae_baseline")
    assert message.startswith("Error: out of memory (")
    assert message.endswith(f"lower {VAE}.batch (1024), or set {VAE}.precision to bf16")
    assert contents(workspace) == before

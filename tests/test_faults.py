"""Stages as processes: a second one, a kill, a full disk, numbers that are none."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import tiny_params, write_params

ROOT = Path(__file__).resolve().parents[1]
GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
VAE = "presets.digits.vae.training"
pytestmark = pytest.mark.slow


def command(stage: str) -> list[str]:
    """The stage's command line as dvc.yaml states it, for this checkout's script."""
    script, *arguments = GRAPH[stage]["cmd"].replace("${preset}", "digits").split()[1:]
    return [sys.executable, str(ROOT / script), *arguments]


class Workplace:
    """A folder in which stages run as processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "SCOREVAE_STATE": str(folder / "state"),
            "SCOREVAE_SAVE_SECONDS": "0",
            "OMP_NUM_THREADS": "1",
        }

    def set(self, **overrides: Any) -> None:  # noqa: ANN401 (any value of the file)
        write_params(self.folder / "params.yaml", tiny_params(**overrides))

    def start(self, stage: str) -> subprocess.Popen:
        return subprocess.Popen(
            command(stage), cwd=self.folder, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, stage: str, file_size: int | None = None) -> subprocess.CompletedProcess:
        """Run to the end; no file may grow beyond ``file_size`` bytes, as on a full disk."""

        def limit() -> None:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, hard))

        return subprocess.run(
            command(stage), cwd=self.folder, env=self.environment, text=True,
            capture_output=True, preexec_fn=limit if file_size is not None else None,
        )  # fmt: skip

    def wait_for(self, pattern: str, process: subprocess.Popen) -> Path:
        """The first file of that pattern, as soon as it is there."""
        while not (found := sorted(self.folder.glob(pattern))):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        return found[0]

    def contents(self) -> dict[str, bytes]:
        """Every output file, whatever its folder."""
        files = (p for name in ("models", "results") for p in (self.folder / name).rglob("*"))
        return {str(p.relative_to(self.folder)): p.read_bytes() for p in files if p.is_file()}


@pytest.fixture(scope="module")
def reconstructed(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Workplace:
    """Data, weights of all networks, and reconstructions."""
    place = Workplace(tmp_path_factory.mktemp("reconstructed"))
    shutil.copy(empty_database, place.folder / "mlflow.db")
    place.set()
    trainings = ("train_prior", "train_vae_baseline", "train_encoder")
    for stage in ("download", *trainings, "reconstruct"):
        done = place.run(stage)
        assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def place(reconstructed: Workplace, tmp_path: Path) -> Workplace:
    """A copy of it for one test."""
    shutil.copytree(reconstructed.folder, tmp_path / "work")
    return Workplace(tmp_path / "work")


def error_of(done: subprocess.CompletedProcess) -> str:
    """The one line that a failed stage says."""
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    return line


def test_second_trainer_is_refused_and_a_stale_lock_is_no_obstacle(place: Workplace) -> None:
    """Catches two trainers on one state, and a lock that outlives a killed one."""
    place.set(**{f"{VAE}.steps": 100_000, f"{VAE}.validate_every": 100_000})
    first = place.start("train_vae_baseline")
    place.wait_for("state/*/*/vae.pt", first)
    second = place.run("train_vae_baseline")
    assert f"process {first.pid} is at exactly this; wait for it or stop it (kill " in error_of(
        second
    )
    assert first.poll() is None
    first.kill()
    first.communicate()
    third = place.start("train_vae_baseline")
    for line in third.stdout:
        if "train_vae_baseline/vae: resuming at" in line:
            break
    third.send_signal(signal.SIGTERM)
    _, stderr = third.communicate()
    assert third.returncode == 1
    assert "Error: train_vae_baseline/vae: stopped by SIGTERM; the state after step " in stderr
    assert "of 100000 is saved, and the same command goes on from there" in stderr
    assert "Traceback" not in stderr


# By the loopback interface, since a machine's own name need not resolve.
LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
CPUS = {"ACCELERATE_USE_CPU": "1", "GLOO_SOCKET_IFNAME": LOOPBACK}


def test_two_processes_share_one_state(place: Workplace) -> None:
    """Catches processes of one training that refuse each other, or that each write the result."""
    weights = place.folder / "models/digits/vae.safetensors"
    before = weights.read_bytes()
    place.set(**{f"{VAE}.steps": 6})
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, *command("train_vae_baseline")[1:]], cwd=place.folder, text=True,
        env=place.environment | CPUS, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert weights.read_bytes() != before
    curve = (place.folder / "results/curves/vae.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in curve] == ["step", "2", "2", "4", "4", "6", "6"]
    assert not list(place.folder.glob("state/train_vae_baseline/*/*.pt"))


OTHERS = [pytest.param(n, marks=pytest.mark.faults) for n in (signal.SIGTERM, signal.SIGINT)]


@pytest.mark.parametrize("number", [signal.SIGKILL, *OTHERS])
def test_reconstruct_goes_on_after_the_last_batch(
    place: Workplace, number: signal.Signals
) -> None:
    """Catches batches drawn anew, and other images than those of an uninterrupted run."""
    place.set(**{"reconstruct.batch": 20, "protocols.default.steps": 20})
    shutil.rmtree(place.folder / "results/reconstructions")
    attempt = place.start("reconstruct")
    kept = place.wait_for("state/reconstruct/*/0-20.npy", attempt)
    attempt.send_signal(number)
    _, stderr = attempt.communicate()
    assert attempt.returncode != 0
    if number != signal.SIGKILL:
        assert f"Error: reconstruct: stopped by {number.name}; " in stderr
    assert not (place.folder / "results/reconstructions").exists()
    written = kept.stat().st_mtime_ns
    last = sorted(kept.parent.glob("*.npy"))[-1]
    attempt = place.start("reconstruct")
    while attempt.poll() is None:
        with suppress(FileNotFoundError):  # in the end the batches are forgotten
            assert kept.stat().st_mtime_ns == written
        time.sleep(0.005)
    assert attempt.communicate()[0].count("reconstruct: resuming at") == 1
    assert not last.exists()
    resumed = place.contents()
    shutil.rmtree(place.folder / "results/reconstructions")
    assert place.run("reconstruct").returncode == 0
    assert place.contents() == resumed


@pytest.mark.parametrize(
    ("stage", "size", "file"),
    [
        ("train_vae_baseline", 20_000, "vae.pt"),
        ("reconstruct", 20_000, "0-250.npy"),
        ("reconstruct", 70_000, "results/reconstructions"),
    ],
)
def test_full_disk(place: Workplace, stage: str, size: int, file: str) -> None:
    """Catches a traceback, a half file, and a result lost although the disk has space again."""
    before = place.contents()
    message = error_of(place.run(stage, file_size=size))
    assert f"{file}: cannot be written (" in message
    assert "free some space" in message
    assert place.contents() == before
    assert not [p for p in place.folder.rglob("*.partial") if p.is_file()]
    assert place.run(stage).returncode == 0
    after = place.contents()
    assert {n: c for n, c in after.items() if not n.endswith(".csv")} == {
        n: c for n, c in before.items() if not n.endswith(".csv")
    }


def test_numbers_that_are_none_stop_the_training(place: Workplace) -> None:
    """Catches days of training on NaN, and a message that does not say what to try."""
    place.set(**{f"{VAE}.steps": 60, f"{VAE}.learning_rate": 1e30})
    before = (place.folder / "models/digits/vae.safetensors").read_bytes()
    message = error_of(place.run("train_vae_baseline"))
    assert "train_vae_baseline/vae: step " in message
    assert "loss or gradient were not finite in 20 steps in a row (loss " in message
    assert "learning rate 1e+30); lower learning_rate" in message or "e+29" in message
    assert (place.folder / "models/digits/vae.safetensors").read_bytes() == before
    assert list(place.folder.glob("state/*/*/vae.pt"))

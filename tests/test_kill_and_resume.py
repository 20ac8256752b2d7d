"""A training that is killed goes on where its last saved state was, and ends with the same bits.

Every case is real: DVC in a clone, a signal to a process, the same command again. Three of them,
one for each training, run always; ``make test-faults`` runs all.
"""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from test_pipeline import Clone, make_clone
from tiny import tiny_params, write_params

STEPS = 80
WEIGHTS = {"train_prior": "prior", "train_vae_baseline": "vae", "train_encoder": "encoder"}
LAST_PHASE = {"train_prior": "prior", "train_vae_baseline": "vae", "train_encoder": "objective"}
MODES = {
    "repro": ("dvc", "repro"),
    "exp run": ("dvc", "exp", "run"),
    "exp run --temp": ("dvc", "exp", "run", "--temp"),
}
SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
ALWAYS = [
    ("train_prior", "repro", "stage", signal.SIGKILL),
    ("train_vae_baseline", "exp run", "dvc", signal.SIGTERM),
    ("train_encoder", "exp run --temp", "stage", signal.SIGKILL),
]
REST = [
    case
    for stage in WEIGHTS
    for mode in MODES
    for target in ("stage", "dvc")
    for number in SIGNALS
    if (case := (stage, mode, target, number)) not in ALWAYS
]
CASES = [pytest.param(*case, marks=pytest.mark.slow) for case in ALWAYS] + [
    pytest.param(*case, marks=pytest.mark.faults) for case in REST
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Clone:
    """A clone in which all trainings have run without interruption."""
    trainings = ("prior", "vae", "encoder", "encoder.warm_start")
    steps = {f"presets.digits.{name}.training.steps": STEPS for name in trainings}
    steps |= {f"presets.digits.{name}.training.validate_every": STEPS for name in trainings}
    clone = make_clone(tmp_path_factory.mktemp("reference"), empty_database)
    write_params(clone.folder / "params.yaml", tiny_params(**steps))
    clone.run("dvc", "repro", "train_encoder")
    clone.commit()
    return clone


def cached_weights(clone: Clone, stage: str) -> Path:
    """Where DVC keeps the weights of the uninterrupted training, by their content."""
    content = (clone.folder / f"models/digits/{WEIGHTS[stage]}.safetensors").read_bytes()
    digest = hashlib.md5(content).hexdigest()
    return Path(f".dvc/cache/files/md5/{digest[:2]}/{digest[2:]}")


def without(reference: Clone, folder: Path, stage: str) -> Clone:
    """A copy of the reference in which the stage in question, and what follows, never ran."""
    shutil.copytree(reference.folder, folder, symlinks=True)
    clone = Clone(folder)
    clone.environment["SCOREVAE_SAVE_SECONDS"] = "0"
    lock = clone.folder / "dvc.lock"
    tree = yaml.safe_load(lock.read_text())
    for name in (stage, "train_encoder", "reconstruct", "evaluate"):
        tree["stages"].pop(name, None)
    lock.write_text(yaml.safe_dump(tree))
    shutil.rmtree(clone.folder / ".state")
    shutil.rmtree(clone.folder / ".dvc/cache/runs")
    (clone.folder / cached_weights(reference, stage)).unlink()
    (clone.folder / f"models/digits/{WEIGHTS[stage]}.safetensors").unlink()
    clone.commit()
    return clone


@pytest.fixture
def before(reference: Clone, tmp_path: Path, request: pytest.FixtureRequest) -> Clone:
    """The copy for one case."""
    params = request.node.callspec.params
    clone = without(reference, tmp_path / "work", params["stage"])
    if params["target"] == "dvc":
        clone.environment.pop("SHELL", None)  # so that /bin/sh may stand between dvc and the stage
    return clone


class Attempt:
    """A command of DVC under way, in a process group of its own as a terminal makes it."""

    def __init__(self, clone: Clone, command: tuple[str, ...]) -> None:
        self.process = subprocess.Popen(
            command, cwd=clone.folder, env=clone.environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def trainer(self, clone: Clone, stage: str) -> int:
        """The pid of the training, once it has saved a state of its last phase."""
        folder = clone.folder / ".state" / stage
        while not (saved := list(folder.glob(f"*/{LAST_PHASE[stage]}.pt"))):
            assert self.process.poll() is None, self.output()
            time.sleep(0.01)
        return int((saved[0].parent / "owner").read_text())

    def output(self) -> str:
        return self.process.communicate()[0]


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(("stage", "mode", "target", "number"), CASES)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_killed_training_resumes_to_the_same_bits(
    reference: Clone, before: Clone, stage: str, mode: str, target: str, number: signal.Signals
) -> None:
    """Catches lost steps, other bits, and a trainer that outlives DVC and blocks the next run."""
    command = (*MODES[mode], stage)
    attempt = Attempt(before, command)
    pid = attempt.trainer(before, stage)
    os.kill(pid, signal.SIGSTOP)  # or it might end before a slow DVC has
    if target == "stage":
        os.kill(pid, number)
    elif number == signal.SIGINT:  # Ctrl-C reaches the whole group
        os.killpg(attempt.process.pid, number)
    else:
        attempt.process.send_signal(number)
        attempt.process.wait()
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    first = attempt.output()
    while runs(pid):
        time.sleep(0.05)
    assert attempt.process.returncode != 0, first
    again = before.run(*command)
    resumed = re.search(rf"{stage}/{LAST_PHASE[stage]}: resuming at (\d+) of {STEPS}", again)
    assert resumed is not None, first + again
    assert 0 < int(resumed[1]) < STEPS
    # In the cache, since the result of a --temp run never comes into the workspace.
    assert (before.folder / cached_weights(reference, stage)).exists()


@pytest.mark.faults
def test_result_that_dvc_could_not_record_is_not_lost(reference: Clone, tmp_path: Path) -> None:
    """Catches a finished training that the next run removes, and a --force that trains nothing."""
    clone = without(reference, tmp_path / "work", "train_vae_baseline")
    (tmp_path / "no_folder").touch()
    clone.run("dvc", "config", "--local", "cache.dir", str(tmp_path / "no_folder"))
    command = ("dvc", "repro", "--single-item", "train_vae_baseline")
    failed = subprocess.run(
        command, cwd=clone.folder, env=clone.environment, capture_output=True, text=True
    )
    assert failed.returncode != 0
    assert f"train_vae_baseline/vae: {STEPS}/{STEPS}" in failed.stdout + failed.stderr
    clone.run("dvc", "config", "--local", "--unset", "cache.dir")
    again = clone.run(*command)
    assert "finished before, not recorded by DVC; used now" in again
    assert f"train_vae_baseline/vae: resuming at {STEPS} of {STEPS}" in again
    assert (clone.folder / cached_weights(reference, "train_vae_baseline")).exists()
    forced = clone.run(*command, "--force")
    assert f"train_vae_baseline/vae: {STEPS}/{STEPS}" in forced
    assert "resuming" not in forced


@pytest.mark.faults
def test_edited_code_trains_anew(reference: Clone, tmp_path: Path) -> None:
    """Catches weights that one code began and another finished, recorded as the latter's."""
    clone = without(reference, tmp_path / "work", "train_vae_baseline")
    command = ("dvc", "repro", "train_vae_baseline")
    attempt = Attempt(clone, command)
    os.kill(attempt.trainer(clone, "train_vae_baseline"), signal.SIGKILL)
    attempt.output()
    with (clone.folder / "src/scorevae/objectives.py").open("a") as code:
        code.write("# edited\n")
    again = clone.run(*command)
    assert "resuming" not in again
    assert f"train_vae_baseline/vae: {STEPS}/{STEPS}" in again

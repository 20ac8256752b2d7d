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
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path

import pytest
from conftest import Once, isolate
from pipeline import Clone, run, set_params

Cached = Callable[[str], Path]
STEPS = 80
WEIGHTS = {
    "train_prior": "prior",
    "train_vae_baseline": "vae",
    "train_encoder": "encoder",
    "train_variants": "variants/diffusion_decoder",
}
LAST_PHASE = WEIGHTS | {"train_encoder": "objective", "train_variants": "diffusion_decoder"}
TRAININGS = {stage: [part] for stage, part in WEIGHTS.items()}
TRAININGS["train_encoder"].append("encoder.warm_start")
TRAININGS["train_variants"] = ["corrector", "diffusion_decoder"]
MODES = ("repro", "exp run", "exp run --temp")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
ALWAYS = ("train_vae_baseline", "exp run", "dvc", signal.SIGTERM)
CASES = [
    pytest.param(*case, marks=pytest.mark.slow if case == ALWAYS else pytest.mark.faults)
    for case in product(WEIGHTS, MODES, ("stage", "dvc"), SIGNALS)
]


def longer(stage: str) -> dict[str, object]:
    """Enough steps of one training to be killed in; the others are those of the finished run."""
    keys = [f"{part}.training" for part in TRAININGS[stage]]
    counts = {
        f"presets.digits.{key}.{n}": STEPS for key in keys for n in ("steps", "validate_every")
    }
    return counts | ({"variants": TRAININGS[stage]} if stage == "train_variants" else {})


@pytest.fixture(scope="session")
def cached_weights(once: Once, finished: Path, empty_database: Path) -> Cached:
    """Where DVC keeps the weights of an uninterrupted training, by their content."""

    def place(stage: str) -> Path:
        def train(folder: Path) -> None:
            shutil.copytree(finished, folder, dirs_exist_ok=True)
            shutil.copy(empty_database, folder)
            with pytest.MonkeyPatch.context() as patch:
                isolate(patch, folder)
                patch.chdir(folder)
                set_params(**longer(stage))
                assert run(stage).exit_code == 0

        weights = once(f"uninterrupted_{stage}", train) / f"models/digits/{WEIGHTS[stage]}"
        digest = hashlib.md5(weights.with_suffix(".safetensors").read_bytes()).hexdigest()
        return Path(f".dvc/cache/files/md5/{digest[:2]}/{digest[2:]}")

    return place


def prepare(clone: Clone, stage: str) -> None:
    """Give a clone a longer training of that stage to do, whose state is saved at every step."""
    clone.environment["SCOREVAE_SAVE_SECONDS"] = "0"
    clone.set(**longer(stage))


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
    cached_weights: Cached, clone: Clone, stage: str, mode: str, target: str, number: int
) -> None:
    """Catches lost steps, other bits, and a trainer that outlives DVC and blocks the next run."""
    expected = cached_weights(stage)
    prepare(clone, stage)
    assert not (clone.folder / expected).exists()
    if target == "dvc":
        clone.environment.pop("SHELL", None)  # so that /bin/sh may stand between dvc and the stage
    command = ("dvc", *mode.split(), stage)
    attempt = Attempt(clone, command)
    pid = attempt.trainer(clone, stage)
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
    again = clone.run(*command)
    resumed = re.search(rf"{stage}/{LAST_PHASE[stage]}: resuming at (\d+) of {STEPS}", again)
    assert resumed is not None, first + again
    assert 0 < int(resumed[1]) < STEPS
    # In the cache, since the result of a --temp run never comes into the workspace.
    assert (clone.folder / expected).exists()


@pytest.mark.faults
def test_result_that_dvc_could_not_record_is_not_lost(
    cached_weights: Cached, clone: Clone, tmp_path: Path
) -> None:
    """Catches a finished training that the next run removes, and a --force that trains nothing."""
    prepare(clone, "train_vae_baseline")
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
    assert "train_vae_baseline/vae" not in again
    assert (clone.folder / cached_weights("train_vae_baseline")).exists()
    forced = clone.run(*command, "--force")
    assert f"train_vae_baseline/vae: {STEPS}/{STEPS}" in forced
    assert "resuming" not in forced


@pytest.mark.faults
def test_edited_code_trains_anew(clone: Clone) -> None:
    """Catches weights that one code began and another finished, recorded as the latter's."""
    prepare(clone, "train_vae_baseline")
    command = ("dvc", "repro", "train_vae_baseline")
    attempt = Attempt(clone, command)
    os.kill(attempt.trainer(clone, "train_vae_baseline"), signal.SIGKILL)
    attempt.output()
    with (clone.folder / "src/scorevae/objectives.py").open("a") as code:
        code.write("# edited\n")
    again = clone.run(*command)
    assert "resuming" not in again
    assert f"train_vae_baseline/vae: {STEPS}/{STEPS}" in again

"""MLflow fails in every way while a real stage trains: nothing else does, and sync makes it good.

Each fault is real and outside of the stage's process. What it may cost is the curves in MLflow.
"""

import csv
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from filelock import FileLock
from mlflow import MlflowClient
from pipeline import ROOT
from servers import PATIENCE, free_port, mlflow_server, refusing_all
from tiny import tiny_config, tiny_params, write_params

from scorevae.data.sources.prepare import prepare
from scorevae.runtime.runs import EXPERIMENT

WEIGHTS, CURVE = "models/digits/vae.safetensors", "results/digits/curves/vae.csv"
REMEDY = (
    "); results/ holds every number, and when that is mended "
    "`python -m scorevae.commands.sync` records them"
)
# From the writing of the weights to the end of the process: the bound, and what Python needs.
FLUSH_SECONDS = 8.0  # of the stages that are started here; users' wait 30
ENDING = FLUSH_SECONDS + 60.0
TRAINING = "presets.digits.vae.training"
LONG = {f"{TRAINING}.steps": 2000, f"{TRAINING}.log_every": 20, f"{TRAINING}.validate_every": 500}

Fault = Callable[[Path], AbstractContextManager[str]]
Points = list[tuple[str, int, float, int]]  # metric, step, value, milliseconds


class Ended(NamedTuple):
    """A stage that ran: what it printed and left."""

    output: str
    warnings: list[str]
    weights: bytes
    points: Points  # of its curve


def start(folder: Path, uri: str, *command: str) -> "subprocess.Popen[str]":
    """Python as a user without DVC runs it whose state and tracking lie in the folder."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_"))}
    environment = own | {
        "SCOREVAE_STATE": str(folder / "state"), "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_DISABLE_TELEMETRY": "true", "GIT_CEILING_DIRECTORIES": str(folder.parent),
        "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *command], cwd=folder, env=environment, **pipes)


LESS_PATIENT = f"""
import runpy, sys
from scorevae.runtime import tracking
tracking.FLUSH_SECONDS = float(sys.argv.pop(1))
runpy.run_path({str(ROOT / "stages/train_vae_baseline.py")!r}, run_name="__main__")
"""


def start_stage(folder: Path, uri: str, flush: float = FLUSH_SECONDS) -> "subprocess.Popen[str]":
    """The VAE's training as dvc.yaml calls it."""
    arguments = ["--data", str(folder.parent / "data"), "--output", WEIGHTS, "--curve", CURVE]
    return start(folder, uri, "-c", LESS_PATIENT, str(flush), *arguments)


def finish(folder: Path, stage: "subprocess.Popen[str]") -> Ended:
    """Wait for a stage, which must succeed within the bound."""
    try:
        output, errors = stage.communicate(timeout=PATIENCE)
    finally:
        stage.kill()
    assert stage.returncode == 0, errors
    assert time.time() - (folder / WEIGHTS).stat().st_mtime < ENDING
    points = points_of(folder / CURVE)
    return Ended(output, errors.splitlines(), (folder / WEIGHTS).read_bytes(), points)


def points_of(curve: Path) -> Points:
    """What a curve file says that MLflow should hold: metric, step, value and time."""
    with curve.open(newline="") as file:
        return [
            (f"{row['phase']}/{name}", int(row["step"]), float(value), int(row["timestamp"]))
            for row in csv.DictReader(file)
            for name, value in row.items()
            if name not in ("phase", "step", "timestamp") and value
        ]


def check_undisturbed(ended: Ended, undisturbed: Ended, kind: str, reason: str) -> None:
    """Nothing but the one warning tells a disturbed run from an undisturbed one."""
    assert ended.weights == undisturbed.weights
    # Seconds and times alone differ from run to run.
    numbers, expected = (
        [(k, step, "" if k.endswith("/seconds") else value) for k, step, value, _ in stage.points]
        for stage in (ended, undisturbed)
    )
    assert numbers == expected
    assert ended.output == undisturbed.output
    (warning,) = ended.warnings
    assert re.match(rf"warning: MLflow {kind} stopped \(.*({reason})", warning), warning
    assert warning.endswith(REMEDY)


def histories(uri: str) -> Points:
    """The points of the one run of the stage."""
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    (run,) = client.search_runs([experiment.experiment_id], "tags.stage = 'train_vae_baseline'")
    assert run.info.status == "FINISHED"
    own = [name for name in run.data.metrics if not name.startswith("system/")]  # of the machine
    points = [p for name in own for p in client.get_metric_history(run.info.run_id, name)]
    return sorted((p.key, p.step, p.value, p.timestamp) for p in points)


def sync(folder: Path, uri: str) -> str:
    """What the command prints, which must succeed and warn of nothing."""
    command = ("-W", "error::RuntimeWarning", "-m", "scorevae.commands.sync")
    done = start(folder, uri, *command)
    output, errors = done.communicate(timeout=PATIENCE)
    assert (done.returncode, errors) == (0, ""), output + errors
    return output


def check_completed(folder: Path, uri: str, ended: Ended, missing: int) -> None:
    """Sync adds to the stage's run what it lacks, once."""
    expected = f"train_vae_baseline: {missing} of {len(ended.points)} points to run "
    for said in (expected, "nothing to add"):
        assert said in sync(folder, uri)
        assert histories(uri) == sorted(ended.points)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """The folder of all runs here, with the data and a database that has MLflow's tables."""
    folder = tmp_path_factory.mktemp("faults")
    prepare(tiny_config().selected.data, folder / "data")
    shutil.copy(empty_database, folder / "empty.db")
    return folder


def new_folder(home: Path, name: str, **overrides: object) -> Path:
    """A working copy with its parameters and an empty database."""
    folder = home / name
    folder.mkdir()
    write_params(folder / "params.yaml", tiny_params(**overrides))
    (folder / "mlflow.db").write_bytes((home / "empty.db").read_bytes())
    return folder


def database(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


@pytest.fixture(scope="module")
def undisturbed(home: Path) -> Ended:
    """The stage with a database that works."""
    folder = new_folder(home, "undisturbed")
    # A database that works may be slow on a busy machine: no bound that such a one exceeds.
    ended = finish(folder, start_stage(folder, database(folder), ENDING / 2))
    assert ended.warnings == []
    return ended


@contextmanager
def refusing(_: Path) -> Iterator[str]:
    """Nothing listens."""
    yield f"http://127.0.0.1:{free_port()}"


@contextmanager
def broken(_: Path) -> Iterator[str]:
    """Every request ends in an internal error."""
    with refusing_all(500) as (uri, _):
        yield uri


@contextmanager
def hanging(_: Path) -> Iterator[str]:
    """Connections are accepted, by the kernel, and never answered."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def database_locked(folder: Path) -> Iterator[str]:
    """This process is in an exclusive transaction."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield database(folder)


@contextmanager
def lock_held(folder: Path) -> Iterator[str]:
    """This process is creating the tables, and does not come to an end."""
    with FileLock(folder / ".mlflow.lock"):
        yield database(folder)


@contextmanager
def lock_unwritable(folder: Path) -> Iterator[str]:
    """The lock cannot even be opened."""
    (folder / ".mlflow.lock").mkdir()
    yield database(folder)
    (folder / ".mlflow.lock").rmdir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (refusing, "Connection refused"),
        (broken, "500 error"),
        pytest.param(hanging, "no answer|timed out", marks=pytest.mark.faults),
        (database_locked, "database is locked|no answer within 8 s at the end from sqlite:"),
        pytest.param(
            lock_held,
            "no answer within 8 s at the end from the lock .*/.mlflow.lock",
            marks=pytest.mark.faults,
        ),
        pytest.param(lock_unwritable, "Is a directory", marks=pytest.mark.faults),
    ],
)
def test_stage_survives(home: Path, undisturbed: Ended, fault: Fault, reason: str) -> None:
    """Catches a fault of MLflow that stops, changes or delays a training, or is told at length."""
    folder = new_folder(home, fault.__name__)
    with fault(folder) as uri:
        ended = finish(folder, start_stage(folder, uri))
    check_undisturbed(ended, undisturbed, "tracking", reason)
    total = len(ended.points)
    output = sync(folder, database(folder))
    assert f"train_vae_baseline: {total} of {total} points in a new run" in output
    assert histories(database(folder)) == sorted(ended.points)


@contextmanager
def artifacts_below_a_file(folder: Path) -> Iterator[str]:
    """No folder can be made there."""
    (folder / "mlartifacts").write_text("in the way")
    yield database(folder)
    (folder / "mlartifacts").unlink()


@contextmanager
def artifacts_on_a_full_disk(folder: Path) -> Iterator[str]:
    """A file system of 64 KiB that holds 64 KiB."""
    mounted = folder / "mlartifacts"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mounted)]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no mount here: {getattr(error, 'stderr', error)}")
    try:
        filler = mounted / "filler"
        with suppress(OSError), filler.open("wb", 0) as file:
            while True:
                file.write(bytes(4096))
        yield database(folder)
        filler.unlink()
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (artifacts_below_a_file, "Not a directory"),
        pytest.param(artifacts_on_a_full_disk, "No space left", marks=pytest.mark.faults),
    ],
)
def test_numbers_arrive_without_artifacts(
    home: Path, undisturbed: Ended, fault: Fault, reason: str
) -> None:
    """Catches a full disk under the artifacts that costs the curve, and one told for each file."""
    folder = new_folder(home, fault.__name__)
    with fault(folder) as uri:
        ended = finish(folder, start_stage(folder, uri))
        check_undisturbed(ended, undisturbed, "artifacts", reason)
        assert histories(uri) == sorted(ended.points)
    check_completed(folder, uri, ended, 0)


def real_server(folder: Path, port: int) -> AbstractContextManager["subprocess.Popen[bytes]"]:
    """``mlflow server`` on a folder's database."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(port), "--backend-store-uri", database(folder)]
    command += ["--artifacts-destination", str(folder / "served")]
    return mlflow_server(command, port, folder)


def points_recorded(folder: Path) -> int:
    """How many points the database holds."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        return int(connection.execute("SELECT count(*) FROM metrics").fetchone()[0])


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_server_killed_in_mid_training(home: Path) -> None:
    """Catches a training that ends with its server, and a curve that stays half recorded.

    The server that comes back gets the rest into the same run, each point once.
    """
    reference = new_folder(home, "long_undisturbed", **LONG)
    undisturbed = finish(reference, start_stage(reference, database(reference), ENDING / 2))
    folder, port = new_folder(home, "killed", **LONG), free_port()
    uri = f"http://127.0.0.1:{port}"
    with real_server(folder, port) as server:
        stage = start_stage(folder, uri)
        while points_recorded(folder) < 10 and stage.poll() is None:
            time.sleep(0.05)
        os.killpg(server.pid, signal.SIGKILL)
        killed_at = time.time()
    ended = finish(folder, stage)
    assert killed_at < (folder / WEIGHTS).stat().st_mtime, "the training was over by then"
    check_undisturbed(ended, undisturbed, r"\w+", "")
    before, total = points_recorded(folder), len(ended.points)
    assert 10 <= before < total
    with real_server(folder, port):
        check_completed(folder, uri, ended, total - before)


@pytest.mark.faults
def test_synced_histories_are_those_of_the_live_run(home: Path, undisturbed: Ended) -> None:
    """Catches a synced run that a comparison page draws otherwise than the stage's own."""
    folder, other = home / "undisturbed", f"sqlite:///{home / 'other.db'}"
    live = histories(database(folder))
    assert live == sorted(undisturbed.points)
    assert "nothing to add" in sync(folder, database(folder))
    shutil.copy(home / "empty.db", home / "other.db")
    sync(folder, other)
    assert histories(other) == live

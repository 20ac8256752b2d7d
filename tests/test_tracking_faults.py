"""MLflow fails in every way while a real stage trains: nothing else does, and sync makes it good.

Each fault is real and outside of the stage's process. What it may cost is the curves in MLflow.
"""

import contextlib
import csv
import http.server
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from filelock import FileLock
from mlflow import MlflowClient
from tiny import tiny_config, tiny_params, write_params

from scorevae.data.sources.prepare import prepare
from scorevae.runtime.runs import EXPERIMENT
from scorevae.runtime.tracking import FLUSH_SECONDS

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS, CURVE = "models/digits/vae.safetensors", "results/curves/vae.csv"
WARNING = "warning: MLflow {} stopped ("
REMEDY = (
    "); the files in results/ hold every number, and "
    "`python -m scorevae.commands.sync` records them later"
)
# Seconds of work, of which a crowded machine makes minutes; only waiting for ever is to be caught.
PATIENCE = 900.0
# From the writing of the weights to the end of the process: the bound, and what Python needs.
ENDING = FLUSH_SECONDS + 60.0
TRAINING = "presets.digits.vae.training"
LONG = {f"{TRAINING}.steps": 2000, f"{TRAINING}.log_every": 20, f"{TRAINING}.validate_every": 500}

Fault = Callable[[Path], AbstractContextManager[str]]


class Ended(NamedTuple):
    """A stage that ran: what it printed and left."""

    output: str
    warnings: list[str]
    weights: bytes
    curve: list[dict[str, str]]


def environment(folder: Path, uri: str) -> dict[str, str]:
    """That of a user without DVC whose state and tracking lie in the folder."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_"))}
    return own | {
        "SCOREVAE_STATE": str(folder / "state"),
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GIT_CEILING_DIRECTORIES": str(folder.parent),
        "PYTHONPATH": str(ROOT / "src"),
        "OMP_NUM_THREADS": "1",
    }


def start_stage(folder: Path, uri: str) -> "subprocess.Popen[str]":
    """The VAE's training as dvc.yaml calls it."""
    arguments = ["--data", str(folder.parent / "data"), "--output", WEIGHTS, "--curve", CURVE]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "stages/train_vae_baseline.py"), *arguments],
        cwd=folder,
        env=environment(folder, uri),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder: Path, stage: "subprocess.Popen[str]") -> Ended:
    """Wait for a stage, which must succeed within the bound."""
    try:
        output, errors = stage.communicate(timeout=PATIENCE)
    finally:
        stage.kill()
    assert stage.returncode == 0, errors
    assert time.time() - (folder / WEIGHTS).stat().st_mtime < ENDING
    with (folder / CURVE).open(newline="") as file:
        curve = list(csv.DictReader(file))
    return Ended(output, errors.splitlines(), (folder / WEIGHTS).read_bytes(), curve)


def without_seconds(curve: list[dict[str, str]]) -> list[dict[str, str]]:
    """The numbers of a curve that are the same in every run."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in curve]


def check_undisturbed(ended: Ended, undisturbed: Ended) -> None:
    """Nothing but the one warning tells a disturbed run from an undisturbed one."""
    assert ended.weights == undisturbed.weights
    assert without_seconds(ended.curve) == without_seconds(undisturbed.curve)
    assert ended.output == undisturbed.output
    assert len(ended.warnings) == 1, ended.warnings
    assert ended.warnings[0].endswith(REMEDY)


def histories(uri: str) -> list[tuple[str, int, float]]:
    """Metric, step and value of each point of the one run of the stage."""
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    (run,) = client.search_runs([experiment.experiment_id], "tags.stage = 'train_vae_baseline'")
    assert run.info.status == "FINISHED"
    points = [p for k in run.data.metrics for p in client.get_metric_history(run.info.run_id, k)]
    return sorted((p.key, p.step, p.value) for p in points)


def points_of(curve: list[dict[str, str]]) -> list[tuple[str, int, float]]:
    """What a curve file says that MLflow should hold."""
    return sorted(
        (f"{row['phase']}/{name}", int(row["step"]), float(value))
        for row in curve
        for name, value in row.items()
        if name not in ("phase", "step") and value
    )


def sync(folder: Path, uri: str) -> str:
    """What the command prints, which must succeed and warn of nothing."""
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-m", "scorevae.commands.sync"],
        cwd=folder,
        env=environment(folder, uri),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


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
    ended = finish(folder, start_stage(folder, database(folder)))
    assert ended.warnings == []
    return ended


@contextmanager
def served(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a small server."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def refusing(_: Path) -> Iterator[str]:
    """Nothing listens."""
    yield f"http://127.0.0.1:{free_port()}"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def broken(_: Path) -> Iterator[str]:
    """Every request ends in an internal error."""

    class Broken(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_error(500)

        do_GET = do_POST = answer

        def log_message(self, *_: Any) -> None:
            pass

    with served(Broken) as uri:
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
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as connection:
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
        (hanging, "no answer|timed out"),
        (database_locked, "database is locked|no answer within 30 s at the end from sqlite:"),
        (lock_held, "no answer within 30 s at the end from the lock .*/.mlflow.lock"),
        (lock_unwritable, "Is a directory"),
    ],
)
def test_stage_survives(home: Path, undisturbed: Ended, fault: Fault, reason: str) -> None:
    """Catches a fault of MLflow that stops, changes or delays a training, or is told at length."""
    folder = new_folder(home, fault.__name__)
    with fault(folder) as uri:
        ended = finish(folder, start_stage(folder, uri))
    check_undisturbed(ended, undisturbed)
    assert ended.warnings[0].startswith(WARNING.format("tracking"))
    assert re.search(reason, ended.warnings[0]), ended.warnings[0]
    wanted = points_of(ended.curve)
    output = sync(folder, database(folder))
    assert f"train_vae_baseline: {len(wanted)} of {len(wanted)} points in a new run" in output
    assert histories(database(folder)) == wanted


@contextmanager
def artifacts_below_a_file(folder: Path) -> Iterator[None]:
    """No folder can be made there."""
    (folder / "mlartifacts").write_text("in the way")
    yield
    (folder / "mlartifacts").unlink()


@contextmanager
def artifacts_on_a_full_disk(folder: Path) -> Iterator[None]:
    """A file system of 64 KiB that holds 64 KiB."""
    mounted = folder / "mlartifacts"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mounted)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no mount here: {error}")
    if done.returncode != 0:
        pytest.skip(f"mount is not permitted here: {done.stderr.strip()}")
    try:
        filler = mounted / "filler"
        with contextlib.suppress(OSError), filler.open("wb", 0) as file:
            while True:
                file.write(bytes(4096))
        yield
        filler.unlink()
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "reason"),
    [(artifacts_below_a_file, "Not a directory"), (artifacts_on_a_full_disk, "No space left")],
)
def test_numbers_arrive_without_artifacts(
    home: Path, undisturbed: Ended, fault: Callable[[Path], Any], reason: str
) -> None:
    """Catches a full disk under the artifacts that costs the curve, and one told for each file."""
    folder = new_folder(home, fault.__name__)
    with fault(folder):
        ended = finish(folder, start_stage(folder, database(folder)))
        check_undisturbed(ended, undisturbed)
        assert ended.warnings[0].startswith(WARNING.format("artifacts"))
        assert reason in ended.warnings[0]
        assert histories(database(folder)) == points_of(ended.curve)
    output = sync(folder, database(folder))
    total = len(points_of(ended.curve))
    assert f"train_vae_baseline: 0 of {total} points to run " in output
    assert "nothing to add" in sync(folder, database(folder))
    assert histories(database(folder)) == points_of(ended.curve)


@contextmanager
def real_server(folder: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """``mlflow server`` on a database, once it answers; it and its workers are killed."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(port), "--backend-store-uri", database(folder)]
    command += ["--artifacts-destination", str(folder / "served")]
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline, "mlflow server does not start"
            time.sleep(0.2)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait(60)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def points_recorded(folder: Path) -> int:
    """How many points the database holds."""
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        return int(connection.execute("SELECT count(*) FROM metrics").fetchone()[0])


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_server_killed_in_mid_training(home: Path) -> None:
    """Catches a training that ends with its server, and a curve that stays half recorded.

    The server that comes back gets the rest into the same run, each point once.
    """
    reference = new_folder(home, "long_undisturbed", **LONG)
    undisturbed = finish(reference, start_stage(reference, database(reference)))
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
    check_undisturbed(ended, undisturbed)
    before, wanted = points_recorded(folder), points_of(ended.curve)
    assert 10 <= before < len(wanted)
    with real_server(folder, port):
        output = sync(folder, uri)
        assert f"{len(wanted) - before} of {len(wanted)} points to run " in output
        assert histories(uri) == wanted
        assert "nothing to add" in sync(folder, uri)
        assert histories(uri) == wanted


@pytest.mark.slow
def test_synced_histories_are_those_of_the_live_run(home: Path, undisturbed: Ended) -> None:
    """Catches a synced run that a comparison page draws otherwise than the stage's own."""
    folder = home / "undisturbed"
    live = histories(database(folder))
    assert live == points_of(undisturbed.curve)
    assert "nothing to add" in sync(folder, database(folder))
    other = home / "other.db"
    other.write_bytes((home / "empty.db").read_bytes())
    sync(folder, f"sqlite:///{other}")
    assert histories(f"sqlite:///{other}") == live

"""MLflow as a view: one parent run for each pipeline execution, one child run for each stage.

All MLflow calls happen in a background thread, in order. Training therefore never waits for a
server, and never fails because of one: after the first failure the thread warns once and
stops calling. The files that a stage writes (CSV, JSON) hold every number in any case.
"""

import hashlib
import json
import os
import platform
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from scorevae.config import Config
from scorevae.files import sha256

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "scorevae"
PARENT_TAG = "scorevae.execution"
FLUSH_SECONDS = 30.0  # how long a finished stage waits for the last records to arrive

# Read by MLflow at import. Its own defaults keep one call to a dead server for four minutes.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}

Task = Callable[["_Session"], None]


class Tracker:
    """Records of one stage. Every method returns at once and never raises."""

    def __init__(self, tasks: "queue.Queue[Task | None]") -> None:
        self._tasks = tasks

    def record(self, step: int, numbers: dict[str, float], prefix: str = "") -> None:
        """Curve points of this stage's run."""
        now = int(time.time() * 1000)
        points = [(f"{prefix}{name}", float(value), now, step) for name, value in numbers.items()]
        self._tasks.put(lambda session: session.points(points))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """A copy of a file or folder in this stage's run."""
        self._tasks.put(lambda session: session.artifact(session.child, path, folder))

    def weights(self, role: str, path: Path) -> None:
        """Tag this stage's run with the SHA-256 of weights that it read or wrote."""
        self._tasks.put(lambda s: s.tag(f"sha256.{role}.{path.stem}", sha256(path)))

    def headline(self, numbers: dict[str, float], figures: list[Path]) -> None:
        """Final metrics and figures of the whole execution, on the parent run, which ends."""
        self._tasks.put(lambda session: session.finish_parent(numbers, figures))


@contextmanager
def track(stage: str, config: Config) -> Iterator[Tracker]:
    """Track one stage: a child run that ends with the block, FAILED if the block raises."""
    tasks: queue.Queue[Task | None] = queue.Queue()
    worker = threading.Thread(target=_work, args=(tasks, stage, config), daemon=True)
    worker.start()
    status = "FAILED"
    try:
        yield Tracker(tasks)
        status = "FINISHED"
    finally:
        tasks.put(lambda session: session.end(status))
        tasks.put(None)
        worker.join(FLUSH_SECONDS)
        if worker.is_alive():
            _warn(f"no answer within {FLUSH_SECONDS:.0f} s at the end")


def _work(tasks: "queue.Queue[Task | None]", stage: str, config: Config) -> None:
    """The thread: open the session, then carry out tasks until None, or until one fails."""
    try:
        session = _Session(stage, config)
        while (task := tasks.get()) is not None:
            task(session)
    except Exception as error:  # noqa: BLE001 (tracking must not end a training, whatever fails)
        _warn(" ".join(str(error).split())[:200])


def _warn(reason: str) -> None:
    print(
        f"warning: MLflow tracking stopped ({reason}); the files in results/ hold every number",
        file=sys.stderr,
        flush=True,
    )


class _Session:
    """The calls to MLflow, in the background thread."""

    def __init__(self, stage: str, config: Config) -> None:
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        root = Path(os.environ.get("DVC_ROOT", ".")).resolve()
        uri = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
        # A server keeps artifacts where it was told to; a database alone needs to be told here,
        # and with an absolute path, else they land in a working copy that is deleted.
        artifacts = (root / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
        commit = _git_commit()
        # First use migrates the database and creates runs by name: two stages of concurrent
        # experiments must not do that at once.
        with FileLock(root / ".mlflow.lock"):
            self.client = MlflowClient(tracking_uri=uri)
            experiment = _experiment(self.client, artifacts)
            self.parent = _parent(self.client, experiment, config, commit)
        child = self.client.create_run(
            experiment,
            run_name=stage,
            tags={
                "mlflow.parentRunId": self.parent,
                "mlflow.source.git.commit": commit,
                "stage": stage,
                "python": platform.python_version(),
            },
        )
        self.child = child.info.run_id

    def points(self, points: list[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        self.client.log_batch(self.child, metrics=[Metric(*point) for point in points])

    def artifact(self, run: str, path: Path, folder: str | None) -> None:
        if path.is_dir():
            self.client.log_artifacts(run, str(path), folder)
        else:
            self.client.log_artifact(run, str(path), folder)

    def tag(self, name: str, value: str) -> None:
        self.client.set_tag(self.child, name, value)

    def finish_parent(self, numbers: dict[str, float], figures: list[Path]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, 0) for name, value in numbers.items()]
        self.client.log_batch(self.parent, metrics=metrics)
        for path in figures:
            self.artifact(self.parent, path, "figures")
        self.client.set_terminated(self.parent, "FINISHED")

    def end(self, status: str) -> None:
        self.client.set_terminated(self.child, status)
        if status == "FAILED":
            self.client.set_terminated(self.parent, "FAILED")


def _experiment(client: "MlflowClient", artifacts: str | None) -> str:
    existing = client.get_experiment_by_name(EXPERIMENT)
    if existing is not None:
        return str(existing.experiment_id)
    return str(client.create_experiment(EXPERIMENT, artifact_location=artifacts))


def _parent(client: "MlflowClient", experiment: str, config: Config, commit: str) -> str:
    """Find or create the run of this pipeline execution; set it RUNNING."""
    parameters = flatten(_resolved(config))
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()[:8]
    name = os.environ.get("DVC_EXP_NAME")
    key = name or f"{commit[:10]}-{digest}"
    found: list[Run] = list(
        client.search_runs([experiment], f"tags.`{PARENT_TAG}` = '{key}'", max_results=1)
    )
    if found:
        client.set_terminated(found[0].info.run_id, "RUNNING")
        return str(found[0].info.run_id)
    from mlflow.entities import Param

    run = client.create_run(
        experiment,
        run_name=name or key,
        tags={PARENT_TAG: key, "mlflow.source.git.commit": commit},
    )
    client.log_batch(run.info.run_id, params=[Param(k, v) for k, v in parameters.items()])
    return str(run.info.run_id)


def _resolved(config: Config) -> dict[str, Any]:
    """The whole configuration with the selected preset in place of all presets."""
    tree = config.model_dump(exclude={"presets"})
    return {**tree, "presets": {config.preset: config.selected.model_dump()}}


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested dictionaries to dotted names, values as text."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = str(value)
    return flat


def _git_commit() -> str:
    """The commit of the working copy, "unknown" outside Git."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()

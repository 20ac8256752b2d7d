"""MLflow's runs of one pipeline execution: found, created, completed."""

import getpass
import hashlib
import json
import logging
import os
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
from filelock import FileLock

from scorevae.config import Config, configuration, flatten, read_tree, resolved
from scorevae.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


EXPERIMENT = "scorevae"
PARENT_TAG = "scorevae.execution"
PARENT_ID = "mlflow.parentRunId"  # MLflow's tag of a child
CURVE_TAG = "scorevae.curve"  # of a stage's run: the time of its curve's first row
MOST = 50_000  # runs that MLflow finds at once
MOST_CHARACTERS = 6000  # of a parameter's value; MLflow cuts longer ones off without a word
MOST_CHANGES = 10  # parameters that a note names
MOST_IN_DIGEST = 32  # characters of a data set's digest; MLflow allows 36
MACHINE = "system/"  # what MLflow puts before the metrics of the machine
NOTE_TAG = "mlflow.note.content"
PROCESS_TAG = "scorevae.process"  # of a stage's run: who records it
HEADLINE = ("l2", "psnr", "sharpness", "rate_nats", "class_agreement", "linear_probe")
FIGURES = "figures"  # the parent's folder of what the headline shows, but for these at the root,
AT_ROOT = ("report.html", "comparison.png")  # where MLflow's comparison of runs finds them
LOCK_SECONDS = 120.0  # whoever creates the tables needs ten; longer is a process that is stuck


# Read by MLflow. Its own defaults keep one call to a dead server for four minutes.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true",  # every ten seconds
    "GIT_PYTHON_REFRESH": "quiet",
}


TALKATIVE = ("mlflow", "alembic", "urllib3")  # loggers that tell of every retry and migration


class Point(NamedTuple):
    """A value of a metric, as MLflow's ``Metric`` takes it; time in milliseconds since 1970."""

    metric: str
    value: float
    time: int
    step: int


def curve_points(phase: str, step: int, numbers: Mapping[str, float]) -> list[Point]:
    """One row of a training curve; its ``timestamp`` is the time of its points."""
    at = int(numbers["timestamp"])
    return [
        Point(f"{phase}/{name}", float(value), at, step)
        for name, value in numbers.items()
        if name != "timestamp"
    ]


class Data(NamedTuple):
    """A prepared data set, as MLflow's pages name it."""

    name: str
    digest: str
    source: str


def read_data(folder: Path) -> Data:
    """The data set in a folder that ``download`` wrote; its meta.json holds hashes of all arrays.

    Raises:
        OSError, ValueError: no such file, or not one of ``download``.
    """
    text = (folder / "meta.json").read_text(encoding="utf-8")
    digest = hashlib.sha256(text.encode()).hexdigest()[:MOST_IN_DIGEST]
    return Data(folder.name, digest, str(json.loads(text)["source"]))


def grouped(numbers: Mapping[str, float]) -> dict[str, float]:
    """Metrics ``system.name`` as ``system/name``, by which MLflow groups; the headline first."""
    ranks = {name: rank for rank, name in enumerate(HEADLINE)}
    split = sorted(numbers, key=lambda name: ranks.get(name.partition(".")[2], len(ranks)))
    return {name.replace(".", "/", 1): numbers[name] for name in split}


def note_of(numbers: Mapping[str, float], changes: str = "") -> str:
    """The run's description in Markdown: the headline as a table, from :func:`grouped` metrics.

    Below it stands what was changed (:meth:`Execution.changes`).
    """
    pairs = [name.partition("/")[::2] for name in numbers]
    systems = list(dict.fromkeys(system for system, name in pairs if name == HEADLINE[0]))
    lines = [f"| metric | {' | '.join(systems)} |", f"|---{'|---' * len(systems)}|"]
    for metric in HEADLINE:
        values = [numbers.get(f"{system}/{metric}") for system in systems]
        cells = ["–" if value is None else f"{value:#.4g}" for value in values]
        lines.append(f"| `{metric}` | {' | '.join(cells)} |")
    lines += ["", changes] if changes else []
    return "\n".join([*lines, "", "The whole run on one page: `report.html` among the artifacts."])


def folder_of(path: Path) -> str | None:
    """Where a file of the headline lies among the parent's artifacts."""
    return None if path.name in AT_ROOT else FIGURES


def this_process() -> str:
    """What tells this process from any other, also when its number is given out again."""
    return _named_process(psutil.Process())


def _named_process(process: psutil.Process) -> str:
    return f"{platform.node()}:{process.pid}:{process.create_time():.2f}"


def _is_gone(process: str) -> bool:
    """Whether a process of this machine has ended; of another machine nobody here can say."""
    node, pid, _ = process.rsplit(":", 2)
    if node != platform.node():
        return False
    try:
        return _named_process(psutil.Process(int(pid))) != process
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user without a name
        return "unknown"


class Execution:
    """The runs of one pipeline execution in MLflow: a parent, and a child for each stage.

    The execution is known by DVC's name of the experiment, else by commit and parameters. Stages
    that run on different days therefore share their parent. Results outlive the commit at which
    they were made: :meth:`similar_parents`.
    """

    def __init__(self, config: Config, name: str | None = None) -> None:
        self.root = repository()
        self.uri = tracking_uri()
        self._config = config
        parameters = flatten(resolved(config))
        self.parameters = {name: _fitting(value) for name, value in parameters.items()}
        self.commit = _git_commit()
        digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()
        self.name = name or os.environ.get("DVC_EXP_NAME")
        self.key = self.name or f"{self.commit[:10]}-{digest[:8]}"
        self.title = f"{config.preset} β={config.beta:g} seed {config.seed}"
        self.title += " quick" if config.quick else ""
        self.title += f" ({self.name})" if self.name else ""

    def lock(self) -> FileLock:
        """Hold it to find or create.

        First use migrates the database and creates runs by name: two stages of concurrent
        experiments must not do that at once.
        """
        return FileLock(self.root / ".mlflow.lock", timeout=LOCK_SECONDS)

    @cached_property
    def client(self) -> "MlflowClient":
        """The connection; a database without tables gets them."""
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri)

    def find_parent(self, *, any_parameters: bool = False) -> "Run | None":
        """The newest run of this execution, if there is one.

        A name that was used again for other parameters (``dvc exp run --force``) means another
        execution, unless ``any_parameters``.
        """
        pattern = re.sub(r"[^A-Za-z0-9-]", "_", self.key)  # a quote would end the condition
        found = self._search(f"tags.`{PARENT_TAG}` LIKE '{pattern}'")
        mine = (run for run in found if run.data.tags[PARENT_TAG] == self.key)
        same = (run for run in mine if any_parameters or not self.other_parameters(run))
        return next(same, None)

    def similar_parents(self) -> "list[Run]":
        """The runs of these parameters at whatever commit, under whatever name, the newest first.

        Some may have lost parameters to a dying server.
        """
        found = self._search(f"tags.`{PARENT_TAG}` LIKE '%'")
        return [run for run in found if not self.other_parameters(run)]

    def _search(self, where: str) -> "list[Run]":
        """The runs for which a condition holds, the newest first; creates no database."""
        if database_is_absent(self.uri):
            return []
        experiment = find_experiment(self.client)
        if experiment is None:
            return []
        return list(self.client.search_runs([experiment], where, max_results=MOST))

    def other_parameters(self, run: "Run") -> list[str]:
        """Names of the parameters whose values in a run are not those of this execution."""
        recorded: dict[str, str] = run.data.params
        return [name for name, value in recorded.items() if self.parameters.get(name) != value]

    def changes(self) -> str:
        """Which parameters are others than in the commit, else than in the one before it.

        The first is so in an experiment, the second after a commit of the change. Empty where
        nothing differs, and where Git or the commit's parameters cannot be read.
        """
        for revision in ("HEAD", "HEAD~"):
            before = committed_config(Path("params.yaml"), revision, self._config)
            then = {} if before is None else flatten(resolved(before))
            other = [
                f"`{name}` {then[name]:.40} → {value:.40}"
                for name, value in self.parameters.items()
                if name in then and then[name] != value
            ]
            if other:
                more = (
                    f" and {len(other) - MOST_CHANGES} more" if len(other) > MOST_CHANGES else ""
                )
                named = git(Path(), "rev-parse", "--short=10", revision)
                return f"Changed since commit {named}: {', '.join(other[:MOST_CHANGES])}{more}."
        return ""

    def create_parent(self) -> "Run":
        """A new run for this execution, without its parameters."""
        source = "dvc exp run" if self.name else "dvc repro"
        tags = {PARENT_TAG: self.key, **self._origin(source)}
        return self.client.create_run(self._experiment(), run_name=self.title, tags=tags)

    def _origin(self, source: str) -> dict[str, str]:
        """The tags of which MLflow's pages make the columns source, user and version."""
        return {
            "mlflow.source.name": source,
            "mlflow.source.type": "LOCAL",
            "mlflow.source.git.commit": self.commit,
            "mlflow.user": _user(),
        }

    def complete_parameters(self, parent: "Run") -> None:
        """Record the parameters that a parent lacks."""
        from mlflow.entities import Param

        recorded = parent.data.params
        lacking = [Param(k, v) for k, v in self.parameters.items() if k not in recorded]
        if lacking:
            self.client.log_batch(parent.info.run_id, params=lacking)

    def children(self, parent: str, stage: str) -> "list[Run]":
        """The runs of one stage, the newest first."""
        return self._search(f"tags.`{PARENT_ID}` = '{parent}' and tags.stage = '{stage}'")

    def children_of_curve(self, stage: str, start: int) -> "list[Run]":
        """The runs of one stage, in any execution, whose curves began at a time; newest first."""
        return self._search(f"tags.stage = '{stage}' and tags.`{CURVE_TAG}` = '{start}'")

    def create_child(
        self, parent: str, stage: str, tags: dict[str, str], start: int | None = None
    ) -> str:
        """A new run of a stage, which began now or at ``start`` (milliseconds since 1970)."""
        own = {PARENT_ID: parent, "stage": stage, **self._origin(f"stages/{stage}.py")}
        run = self.client.create_run(
            self._experiment(), start_time=start, run_name=stage, tags=own | tags
        )
        return str(run.info.run_id)

    def points(self, run: str, points: Iterable[Point]) -> None:
        """Append to the histories of a run's metrics."""
        from mlflow.entities import Metric

        self.client.log_batch(run, metrics=[Metric(*point) for point in points])

    def watch_machine(self, run: str) -> Callable[[], None]:
        """Record processors, memory and GPUs in a run, until what this returns is called.

        MLflow does it in a thread of its own, whose failures concern nobody.
        """
        from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING as WANTED
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        if not WANTED.get():
            return lambda: None
        monitor = SystemMetricsMonitor(run, tracking_uri=self.uri)
        monitor.start()
        return monitor.finish

    def history(self, run: "Run") -> list[Point]:
        """Every point of every metric of a run, but for those of the machine."""
        return [
            Point(metric.key, metric.value, metric.timestamp, metric.step)
            for name in run.data.metrics
            if not name.startswith(MACHINE)
            for metric in self.client.get_metric_history(run.info.run_id, name)
        ]

    def headline(self, parent: str, numbers: Mapping[str, float], note: str) -> None:
        """Final metrics, which a comparison page shows beside the parameters, and a note."""
        now = int(1000 * time.time())
        self.points(parent, [Point(name, float(value), now, 0) for name, value in numbers.items()])
        self.client.set_tag(parent, NOTE_TAG, note)

    def has_data(self, run: "Run", data: Data) -> bool:
        """Whether a run says so already."""
        return any(data.digest == known.dataset.digest for known in run.inputs.dataset_inputs)

    def data(self, run: str, data: Data) -> None:
        """Say on which data a run was made; saying it twice is saying it once."""
        from mlflow.entities import Dataset, DatasetInput

        entity = Dataset(data.name, data.digest, "local", json.dumps({"uri": data.source}))
        self.client.log_inputs(run, [DatasetInput(entity)])

    def end_lost(self) -> None:
        """Mark as KILLED the runs, and their parents, whose process on this machine is no more."""
        lost = [
            run
            for run in self._search(
                f"attributes.status = 'RUNNING' and tags.`{PROCESS_TAG}` LIKE '%'"
            )
            if _is_gone(run.data.tags[PROCESS_TAG])
        ]
        for run in {run.data.tags[PARENT_ID] for run in lost} | {run.info.run_id for run in lost}:
            self.client.set_terminated(run, "KILLED")

    def upload(self, run: str, path: Path, folder: str | None) -> None:
        """Copy a file or folder among the artifacts of a run."""
        if path.is_dir():
            self.client.log_artifacts(run, str(path), folder)
        else:
            self.client.log_artifact(run, str(path), folder)

    def holds(self, run: str, path: Path, folder: str | None) -> bool:
        """Whether a run has a file, whole, among its artifacts."""
        name = f"{folder}/{path.name}" if folder else path.name
        sizes = {file.path: file.file_size for file in self.client.list_artifacts(run, folder)}
        return name in sizes and sizes[name] in (None, path.stat().st_size)

    def _experiment(self) -> str:
        existing = find_experiment(self.client)
        if existing is not None:
            return existing
        # A server keeps artifacts where it was told to; a database alone needs to be told here,
        # and with an absolute path, else they land in a working copy that is deleted.
        own = (self.root / "mlartifacts").as_uri() if self.uri.startswith("sqlite:") else None
        return str(self.client.create_experiment(EXPERIMENT, artifact_location=own))


def repository() -> Path:
    """The repository's folder, also from a copy of it in which DVC runs an experiment."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()


def tracking_uri() -> str:
    """Where records go: as MLFLOW_TRACKING_URI says, else to a file in the repository."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{repository() / 'mlflow.db'}"


def database_is_absent(uri: str) -> bool:
    """Whether it is a file that is not there; to connect would create it."""
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    return uri.startswith("sqlite:///") and not Path(path).exists()


def find_experiment(client: "MlflowClient") -> str | None:
    """The experiment's id, if it is there.

    Raises:
        UserError: it was deleted, and still has its name: MLflow then refuses every run.
    """
    existing = client.get_experiment_by_name(EXPERIMENT)
    if existing is None:
        return None
    if existing.lifecycle_stage == "deleted":
        command = f"mlflow experiments restore --experiment-id {existing.experiment_id}"
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            command = f"MLFLOW_TRACKING_URI=sqlite:///mlflow.db {command}"
        raise UserError(
            f"MLflow's experiment {EXPERIMENT!r} was deleted; restore it, in the "
            f"repository's folder, by `{command}`"
        )
    return str(existing.experiment_id)


def load_mlflow() -> None:
    """Import MLflow, which takes seconds, impatient and silent."""
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401

    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def server_errors(uri: str) -> Iterator[None]:
    """Turn what MLflow and its stores raise into one line that names where they are.

    Raises:
        UserError: the server, its database, its artifacts or the lock cannot be used.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise UserError(
            f"MLflow at {one_line(uri)} does not take the records "
            f"({one_line(error)}); start or free it, or set MLFLOW_TRACKING_URI, and sync again: "
            "what is recorded already is not recorded twice"
        ) from None


def one_line(what: object) -> str:
    """A message without line breaks and without the password of a URI, for a warning.

    A long one loses its middle: what was tried comes first, the cause of it often last.
    """
    text = without_password(" ".join(str(what).split()))
    return text if len(text) <= 240 else f"{text[:120]} … {text[-120:]}"


def without_password(text: str) -> str:
    """A text in which no URI tells its user and password."""
    return re.sub(r"//[^/@\s]*@", "//***@", text)


def _fitting(value: str) -> str:
    """A parameter's value, or of a long one its beginning and its digest, as MLflow keeps it."""
    if len(value) <= MOST_CHARACTERS:
        return value
    end = f"… sha256 {hashlib.sha256(value.encode()).hexdigest()}"
    return value[: MOST_CHARACTERS - len(end)] + end


def _git_commit() -> str:
    """The commit of the working copy, "unknown" outside Git."""
    return git(Path(), "rev-parse", "HEAD") or "unknown"


def committed_config(params: Path, revision: str, like: Config) -> Config | None:
    """The parameter file of a commit; made small, and of the same preset, if ``like`` is quick.

    None where the commit has none, or one that this version does not read.
    """
    text = git(params.absolute().parent, "show", f"{revision}:./{params.name}")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / params.name
        copy.write_text(text, encoding="utf-8")
        try:
            tree: Any = read_tree(copy)
            if like.quick and like.preset in tree["presets"]:
                tree |= {"quick": True, "preset": like.preset}
            return configuration(tree, params.name)
        except (UserError, TypeError, KeyError):
            return None


def git(folder: Path, *arguments: str) -> str:
    """What git prints in a folder; empty where it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()

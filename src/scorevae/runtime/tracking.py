"""MLflow as a view: one parent run for each pipeline execution, one child run for each stage.

All MLflow calls of a stage happen in a background thread, in order. Training therefore never
waits for a server, and never fails because of one: after the first failure the thread warns once
and stops calling; a stage that has ended waits FLUSH_SECONDS for it at the most. The files that a
stage writes (CSV, JSON) hold every number in any case, and ``python -m scorevae.commands.sync``
records them afterwards, once the cause of the failure is gone.
"""

import os
import platform
import queue
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scorevae.config import Config
from scorevae.runtime.files import sha256
from scorevae.runtime.interruption import Ended, Interrupted, signals_raised
from scorevae.runtime.runs import (
    CURVE_TAG,
    PROCESS_TAG,
    Execution,
    Point,
    curve_points,
    folder_of,
    grouped,
    load_mlflow,
    note_of,
    one_line,
    read_data,
    repository,
    this_process,
)

FLUSH_SECONDS = 30.0  # how long a finished stage waits for the last records to arrive

Task = Callable[["_Session"], None]


class Tracker:
    """Records of one stage. Every method returns at once and never raises."""

    def __init__(self, worker: "_Worker") -> None:
        self._worker = worker

    def record(self, phase: str, step: int, numbers: dict[str, float]) -> None:
        """A row of this stage's curve."""
        self._worker.put(lambda session: session.record(curve_points(phase, step, numbers)))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """A copy of a file or folder in this stage's run."""
        self._worker.put(lambda session: session.artifact(session.child, path, folder))

    def weights(self, role: str, path: Path) -> None:
        """Tag this stage's run with the SHA-256 of weights that it read or wrote."""
        self._worker.put(lambda s: s.tag(f"sha256.{role}.{path.stem}", sha256(path)))

    def precision(self, phase: str, computed: str) -> None:
        """Tag this stage's run with what a training is computed in, the machine's choice too."""
        self._worker.put(lambda session: session.tag(f"precision.{phase}", computed))

    def data(self, folder: Path) -> None:
        """The data set in a folder of ``download``, as input of this stage and the execution."""
        self._worker.put(lambda session: session.data(folder))

    def headline(self, numbers: dict[str, float], figures: list[Path]) -> None:
        """Final metrics and figures of the whole execution, on the parent run, which ends."""
        self._worker.put(lambda session: session.finish_parent(numbers, figures))


@contextmanager
def track(stage: str, config: Config) -> Iterator[Tracker]:
    """Track one stage: a child run that ends with the block, FAILED if the block raises.

    KILLED if it was stopped from outside: by a signal, or since its ``dvc`` is no more. Of several
    processes the first one tracks for all.
    """
    worker = _Worker(stage, config)
    if os.environ.get("RANK", "0") == "0":  # as torchrun counts them
        worker.start()
    status = "FAILED"
    try:
        with signals_raised():
            yield Tracker(worker)
        status = "FINISHED"
    except (Interrupted, Ended, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        worker.put(lambda session: session.end(status))
        worker.put(None)
        if worker.is_alive():
            worker.join(FLUSH_SECONDS)
        if worker.is_alive():
            worker.give_up(
                f"no answer within {FLUSH_SECONDS:.0f} s at the end from {worker.waiting_for}"
            )


class _Worker(threading.Thread):
    """The thread: open the session, then carry out tasks until None, or until one fails."""

    def __init__(self, stage: str, config: Config) -> None:
        super().__init__(name="tracking", daemon=True)
        self.waiting_for = "MLflow's import"
        self._stage, self._config = stage, config
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._given_up = threading.Lock()

    def put(self, task: Task | None) -> None:
        """Have a task done in its turn; forget it if the thread has stopped."""
        if self.is_alive():
            self._tasks.put(task)

    def run(self) -> None:
        try:
            load_mlflow()
            session = self._open()
            try:
                while (task := self._tasks.get()) is not None:
                    task(session)
            finally:
                session.unwatch()
        except Exception as error:  # noqa: BLE001 (tracking must not end a training, whatever fails)
            self.give_up(one_line(error))

    def give_up(self, reason: str) -> None:
        """Say that nothing more is recorded, unless that was said before."""
        if self._given_up.acquire(blocking=False):
            _warn("tracking", reason)

    def _open(self) -> "_Session":
        execution = Execution(self._config)
        lock = execution.lock()
        self.waiting_for = f"the lock {lock.lock_file}"
        with lock:
            self.waiting_for = one_line(execution.uri)
            execution.end_lost()
            found = execution.find_parent() or execution.create_parent()
            execution.complete_parameters(found)
            parent = str(found.info.run_id)
            execution.client.set_terminated(parent, "RUNNING")
        tags = {"python": platform.python_version(), PROCESS_TAG: this_process()}
        return _Session(execution, parent, execution.create_child(parent, self._stage, tags))


def _warn(what: str, reason: str) -> None:
    """Say it, with the command that records what is in results/, as soon as the fault is mended.

    DVC runs `--temp` and the queue in a copy of the repository, whose results come with `apply`.
    """
    command = "python -m scorevae.commands.sync"
    if name := os.environ.get("DVC_EXP_NAME"):
        name = shlex.quote(name)
        command += f" --name {name}"
        if repository() != Path.cwd():
            command = f"dvc exp apply {name} && {command}"
    print(
        f"warning: MLflow {what} stopped ({reason}); results/ holds every number, and when that "
        f"is mended `{command}` records them",
        file=sys.stderr,
        flush=True,
    )


class _Session:
    """What the tasks of one stage do, in the background thread."""

    def __init__(self, execution: "Execution", parent: str, child: str) -> None:
        self.execution, self.parent, self.child = execution, parent, child
        self._begun = self._artifacts_fail = False
        self._unwatch = execution.watch_machine(child)

    def record(self, points: list[Point]) -> None:
        """The first row tells whose curve the run holds."""
        if not self._begun:
            self.tag(CURVE_TAG, str(points[0].time))
            self._begun = True
        self.execution.points(self.child, points)

    def artifact(self, run: str, path: Path, folder: str | None) -> None:
        """A full disk under the artifacts is no reason to lose the numbers that follow."""
        if self._artifacts_fail:
            return
        try:
            self.execution.upload(run, path, folder)
        except Exception as error:  # noqa: BLE001 (each kind of artifact store has its own)
            self.execution.client.get_run(run)  # raises if it is the server that has gone
            self._artifacts_fail = True
            _warn("artifacts", one_line(error))

    def tag(self, name: str, value: str) -> None:
        self.execution.client.set_tag(self.child, name, value)

    def data(self, folder: Path) -> None:
        found = read_data(folder)
        for run in (self.parent, self.child):
            self.execution.data(run, found)

    def finish_parent(self, numbers: dict[str, float], figures: list[Path]) -> None:
        named = grouped(numbers)
        self.execution.headline(self.parent, named, note_of(named, self.execution.changes()))
        for path in figures:
            self.artifact(self.parent, path, folder_of(path))
        self.execution.client.set_terminated(self.parent, "FINISHED")

    def unwatch(self) -> None:
        """The machine is recorded until the stage ends, or its server does."""
        unwatch, self._unwatch = self._unwatch, lambda: None
        unwatch()

    def end(self, status: str) -> None:
        self.unwatch()
        self.execution.client.set_terminated(self.child, status)
        if status != "FINISHED":
            self.execution.client.set_terminated(self.parent, status)

"""The state of a computation that may be interrupted, and the lock that guards it."""

import errno
import hashlib
import json
import os
import re
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from pydantic import BaseModel
from torch import Tensor

from scorevae.config import read_tree
from scorevae.errors import UserError, in_a_line
from scorevae.runtime.files import copy, lasting_folder, replacing, sha256
from scorevae.runtime.interruption import Interrupted, stop_requests

CODE = ("src/", "stages/")  # where the code among the deps in dvc.yaml lies
FORMAT = 2  # of a state; one of another format is not read
FINISHED = "finished"  # marks a folder whose computation is done; holds what DVC had recorded then
KEPT_SECONDS = 3 * 86_400.0  # how long that folder serves a DVC that has not recorded the output


def state_key(settings: Sequence[BaseModel | float | str], inputs: list[Path]) -> str:
    """A name for one training: the hash of its resolved settings and its inputs' content."""
    plain = [s.model_dump() if isinstance(s, BaseModel) else s for s in settings]
    text = json.dumps([FORMAT, plain, [sha256(path) for path in inputs]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_of(stage: str) -> list[Path]:
    """The code that a stage's result follows from, as dvc.yaml lists it: inputs of its key.

    Else a computation that was interrupted would be finished by other code than began it.
    """
    root = Path(__file__).resolve().parents[3]
    graph: Any = read_tree(root / "dvc.yaml")
    listed = [root / name for name in graph["stages"][stage]["deps"] if name.startswith(CODE)]
    # Of folders the sources; what Python compiles of them does not count.
    return [f for dep in listed for f in (sorted(dep.rglob("*.py")) if dep.is_dir() else [dep])]


def state_root() -> Path:
    """``SCOREVAE_STATE``, else ``.state``, see :func:`scorevae.runtime.files.lasting_folder`.

    It lies outside the outputs, which DVC deletes.
    """
    return lasting_folder("SCOREVAE_STATE", ".state")


class StateFile:
    """The resumable state of one :func:`scorevae.training.loop.fit`: the last two of them.

    Both carry the key of their training, so that a file that came from another one is noticed.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self.previous = path.with_suffix(".previous.pt")

    def load(self) -> dict[str, Any] | None:
        """The last good state; None if there is none. A bad one is named, and removed.

        Removed, because the next :meth:`save` would put it in place of the good one before it.
        """
        for path in (self.path, self.previous):
            if not path.exists():
                continue
            try:
                return self._read(path)
            except Exception as error:  # noqa: BLE001 (damaged bytes make torch raise anything)
                before = path == self.path and self.previous.exists()
                instead = "the one saved before it is used" if before else "starting from step 0"
                print(f"{path}: state ignored ({_short(error)}); {instead}", flush=True)
                path.unlink()
        return None

    def save(self, state: dict[str, Any]) -> None:
        """Write the state; the one before it is kept until the next one.

        Raises:
            UserError: the disk is full; both former states are intact.
        """
        with replacing(self.path) as temporary:
            try:
                torch.save({"key": self.key, "state": state}, temporary)
            except RuntimeError as error:  # torch reports a failed write without its reason
                reason = f"{os.strerror(errno.ENOSPC)}, says torch: {_short(error)}"
                raise OSError(errno.ENOSPC, reason) from None
            if self.path.exists():
                os.replace(self.path, self.previous)

    def _read(self, path: Path) -> dict[str, Any]:
        with zipfile.ZipFile(path) as archive:  # torch writes checksums and does not look at them
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged} is wrong")
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if saved["key"] != self.key:
            raise ValueError(f"of the training {saved['key']}, not of {self.key}")
        return dict(saved["state"])


def _short(error: Exception) -> str:
    """What an error says, on a part of a line."""
    return in_a_line(error, 120)


class BatchFolder(NamedTuple):
    """Batches of a finite computation, one file each, kept until all of them are there."""

    folder: Path
    name: str = ""  # of one of several computations whose batches lie side by side

    def of(self, name: str) -> "BatchFolder":
        """Those of one computation, in the same folder."""
        return self._replace(name=f"{name}.")

    def rows(self) -> int:
        """How many rows are kept."""
        names = (path.name.removeprefix(self.name) for path in self.folder.glob("*.npy"))
        ranges = (re.fullmatch(r"(\d+)-(\d+)\.npy", name) for name in names)
        return sum(int(found[2]) - int(found[1]) for found in ranges if found)

    def load(self, rows: slice) -> Tensor | None:
        """A batch that was saved before; None if it was not, or is damaged."""
        try:
            return torch.from_numpy(np.load(self._path(rows), allow_pickle=False))
        except (OSError, ValueError, EOFError):
            return None

    def save(self, rows: slice, values: Tensor) -> None:
        """Keep one batch."""
        with replacing(self._path(rows)) as temporary, temporary.open("wb") as file:
            np.save(file, values.numpy())

    def _path(self, rows: slice) -> Path:
        return self.folder / f"{self.name}{rows.start}-{rows.stop}.npy"


class StateFolder:
    """The states of one stage: one file for each of its trainings, or one for each batch."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self.outputs: list[Path] = []  # files that :meth:`finish` keeps copies of
        self._finished = folder / FINISHED

    def file(self, name: str) -> StateFile:
        """The state of the training ``name``."""
        return StateFile(self.folder / f"{name}.pt", self.key)

    def batches(self) -> BatchFolder:
        """The finished batches."""
        return BatchFolder(self.folder)

    def begin(self, record: str, *, waited: bool = False) -> None:
        """Look at what a former run of the same computation left.

        Where ``record``, what DVC has recorded of the stage, is not what it was when that run
        began, DVC has recorded a result since: compute anew. But not after having ``waited`` for
        that run to finish, to share what it computes.
        """
        if not self._finished.exists():
            return
        same = self._finished.read_text(encoding="utf-8") == record
        if waited or (same and time.time() - self._finished.stat().st_mtime < KEPT_SECONDS):
            print(f"{self.folder}: finished before, not recorded by DVC; used now", flush=True)
        else:
            self.discard()

    def copies(self, outputs: list[Path]) -> dict[Path, Path]:
        """What :meth:`finish` kept of these outputs, each copy with its place; {} if not all."""
        copies = {self.folder / path.name: path for path in outputs}
        return copies if all(path.exists() for path in (self._finished, *copies)) else {}

    def finish(self, record: str) -> None:
        """Keep the last states and the outputs, now that these are written; never raises.

        DVC has yet to copy the output into its cache. If it cannot (its disk is full, it is
        killed), it removes the output before the next run, which finds everything here.
        ``record`` is as it was for :meth:`begin`.
        """
        self._unlink("*.previous.pt")
        # Whole or not at all: without the mark they count as a run that was interrupted.
        with suppress(OSError, UserError):
            for path in self.outputs:
                copy(path, self.folder / path.name)
            with replacing(self._finished) as temporary:
                temporary.write_text(record, encoding="utf-8")

    def discard(self) -> None:
        """Forget everything; never raises."""
        self._unlink("*.pt", "*.npy", "*.safetensors", "*.csv", ".*.partial", FINISHED)

    def _unlink(self, *patterns: str) -> None:
        for path in (path for pattern in patterns for path in self.folder.glob(pattern)):
            with suppress(OSError):
                path.unlink()


def state_folder(stage: str, key: str) -> StateFolder:
    """Where the states of one computation lie, without holding them."""
    return StateFolder(state_root() / stage / key, key)


@contextmanager
def resumable(stage: str, key: str, *, repeats: bool = False) -> Iterator[StateFolder]:
    """Hold the state of one computation for this process alone.

    The operating system frees the lock of a process that has ended, however it ended. Once the
    block has succeeded, the states are kept only for DVC, which might not come to record the
    output; see :meth:`StateFolder.finish`. ``repeats`` says that a second run writes the same
    bytes, so that DVC's entry for ``stage`` stays the same; a training's curve holds seconds.

    Raises:
        UserError: another process holds it; the message names its pid. In a copy of the
            repository (``dvc exp run --temp``, ``dvc queue``) this waits for it instead: nobody
            is there to start the experiment again, and what the other one computes serves both.
        Interrupted: stopped from outside while waiting.
    """
    state, record = state_folder(stage, key), _record(stage, repeats)
    state.folder.mkdir(parents=True, exist_ok=True)
    owner = state.folder / "owner"
    lock, waited = FileLock(state.folder / "lock"), False
    try:
        lock.acquire(blocking=False)
    except Timeout:
        _wait(lock, owner)
        waited = True
    try:
        owner.write_text(str(os.getpid()))
        _sweep(state.folder.parent)
        state.begin(record, waited=waited)
        yield state
        if "DVC_STAGE" in os.environ:
            state.finish(record)
        else:
            state.discard()
    finally:
        lock.release()


def _wait(lock: FileLock, owner: Path) -> None:
    """Hold the lock once its owner frees it; only where DVC works in a copy of the repository."""
    pid = owner.read_text() if owner.exists() else "unknown"
    root = os.environ.get("DVC_ROOT")
    if not root or Path(root).resolve() == Path.cwd():
        busy = f"{owner.parent}: process {pid} is at exactly this"
        raise UserError(f"{busy}; wait for it or stop it (kill {pid})") from None
    print(f"{owner.parent}: waiting for process {pid}, which is at exactly this", flush=True)
    with stop_requests() as stopping:
        while not lock.is_locked:
            with suppress(Timeout):
                lock.acquire(timeout=1)
            if reason := stopping():
                lock.release()
                raise Interrupted(f"stopped by {reason} while waiting")


def _record(stage: str, repeats: bool) -> str:
    """What DVC recorded last: its entry for the stage in dvc.lock.

    Where runs repeat, also when: DVC writes the file after every stage. So does Git, and then a
    result that was not recorded is computed again.
    """
    if not (path := Path("dvc.lock")).exists():
        return "no dvc.lock"
    lock: Any = read_tree(path)
    written = path.stat().st_mtime_ns if repeats else 0
    return json.dumps([lock.get("stages", {}).get(stage), written], sort_keys=True)


def _sweep(folder: Path) -> None:
    """Forget what was finished long ago, by now recorded, and is not held by another process."""
    for finished in folder.glob(f"*/{FINISHED}"):
        with suppress(OSError, Timeout):
            if time.time() - finished.stat().st_mtime > KEPT_SECONDS:
                with FileLock(finished.with_name("lock"), blocking=False):
                    StateFolder(finished.parent, "").discard()

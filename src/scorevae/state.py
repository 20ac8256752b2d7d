"""The state of a computation that may be interrupted, and the lock that guards it."""

import errno
import hashlib
import json
import os
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

from scorevae.errors import UserError
from scorevae.files import replacing, sha256


def state_key(settings: Sequence[BaseModel | float | str], inputs: list[Path]) -> str:
    """A name for one training: the hash of its resolved settings and its inputs' content."""
    plain = [s.model_dump() if isinstance(s, BaseModel) else s for s in settings]
    text = json.dumps([plain, [sha256(path) for path in inputs]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def state_root() -> Path:
    """``SCOREVAE_STATE``, else ``.state`` in the DVC repository, else in the current folder.

    It lies outside the outputs, which DVC deletes, and outside the temporary copies in which
    ``dvc exp run --temp`` works: those see the main repository as DVC_ROOT.
    """
    default = Path(os.environ.get("DVC_ROOT", ".")) / ".state"
    return Path(os.environ.get("SCOREVAE_STATE", default)).resolve()


class StateFile:
    """The resumable state of one :func:`scorevae.training.fit`: the last one and the one before.

    Both carry the key of their training, so that a file that came from another one is noticed.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.previous = path.with_suffix(".previous.pt")
        self.key = key

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
                reason = " ".join(str(error).split())[:120]
                before = path == self.path and self.previous.exists()
                instead = "the one saved before it is used" if before else "starting from step 0"
                print(f"{path}: state ignored ({reason}); {instead}", flush=True)
                path.unlink()
        return None

    def save(self, state: dict[str, Any]) -> None:
        """Write the state; the one before it is kept until the next one.

        Raises:
            UserError: the disk is full; both former states are intact.
        """
        with replacing(self.path) as temporary:
            _write({"key": self.key, "state": state}, temporary)
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


def _write(value: object, path: Path) -> None:
    try:
        torch.save(value, path)
    except RuntimeError as error:  # torch's writer reports a failed write without its reason
        reason = " ".join(str(error).split())[:120]
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, says torch: {reason}") from None


class BatchFolder(NamedTuple):
    """Batches of a finite computation, one file each, kept until all of them are there."""

    folder: Path

    def rows(self) -> int:
        """How many rows are kept."""
        ranges = (path.stem.split("-") for path in self.folder.glob("*-*.npy"))
        return sum(int(stop) - int(start) for start, stop in ranges)

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
        return self.folder / f"{rows.start}-{rows.stop}.npy"


class StateFolder:
    """The states of one stage: one file for each of its trainings, or one for each batch."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = key

    def file(self, name: str) -> StateFile:
        """The state of the training ``name``."""
        return StateFile(self.folder / f"{name}.pt", self.key)

    def batches(self) -> BatchFolder:
        """The finished batches."""
        return BatchFolder(self.folder)

    def discard(self) -> None:
        """Forget everything; called once the stage's output is written, so it never raises."""
        for pattern in ("*.pt", "*.npy", ".*.partial"):
            for path in self.folder.glob(pattern):
                with suppress(OSError):
                    path.unlink()


@contextmanager
def resumable(stage: str, key: str) -> Iterator[StateFolder]:
    """Hold the state of one computation for this process alone.

    The operating system frees the lock of a process that has ended, however it ended.

    Raises:
        UserError: another process holds it; the message names its pid.
    """
    folder = state_root() / stage / key
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / "owner"
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        pid = owner.read_text() if owner.exists() else "unknown"
        raise UserError(
            f"{folder}: process {pid} is at exactly this; wait for it or stop it (kill {pid})"
        ) from None
    try:
        owner.write_text(str(os.getpid()))
        yield StateFolder(folder, key)
    finally:
        lock.release()

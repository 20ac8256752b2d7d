"""The state of a training that may be interrupted, and the lock that guards it."""

import hashlib
import json
import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from pydantic import BaseModel

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
    """The resumable state of one :func:`scorevae.training.fit`, replaced atomically."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> dict[str, Any] | None:
        """The last saved state; None if there is none, or with a warning if it is damaged."""
        if not self.path.exists():
            return None
        try:
            return torch.load(self.path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).split())[:120]
            print(
                f"{self.path}: damaged state ignored ({reason}); starting from step 0", flush=True
            )
            return None

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state."""
        with replacing(self.path) as temporary:
            torch.save(state, temporary)


class StateFolder:
    """The states of one stage: one file for each of its trainings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file(self, name: str) -> StateFile:
        """The state of the training ``name``."""
        return StateFile(self.folder / f"{name}.pt")

    def discard(self) -> None:
        """Forget everything; called once the stage's output is written, so it never raises."""
        for path in self.folder.glob("*.pt"):
            path.unlink(missing_ok=True)


@contextmanager
def resumable(stage: str, key: str) -> Iterator[StateFolder]:
    """Hold the state of one training for this process alone.

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
            f"{folder}: process {pid} is training exactly this; wait for it or stop it "
            f"(kill {pid})"
        ) from None
    try:
        owner.write_text(str(os.getpid()))
        yield StateFolder(folder)
    finally:
        lock.release()

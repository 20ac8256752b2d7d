"""Files that are either whole or absent, and their fingerprints."""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from scorevae.errors import UserError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def lasting_folder(variable: str, default: str) -> Path:
    """The folder that an environment variable names, else ``default``: for what outlives a run.

    Relative ones start at the DVC repository, or at the current folder without DVC. ``dvc exp run
    --temp`` works in a copy that it removes, and sees the repository itself as DVC_ROOT.
    """
    base = Path(os.environ.get("DVC_ROOT") or ".")
    return (base / Path(os.environ.get(variable) or default).expanduser()).resolve()


def is_disk_full(error: Exception) -> bool:
    """Whether a write failed for lack of space; NumPy then gives a text and no number."""
    unnumbered = re.search(r"\d requested and \d+ written", str(error))
    return isinstance(error, OSError) and (error.errno in DISK_FULL or unnumbered is not None)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; rename it over ``path`` once the block succeeds.

    Works for a file and for a folder. After a failure ``path`` is what it was before; so it is
    after a loss of power, since the content reaches the disk before the name does.

    Raises:
        UserError: the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    aside = path.with_name(f".{path.name}.{os.getpid()}.old.partial")
    try:
        yield temporary
        for file in temporary.rglob("*") if temporary.is_dir() else [temporary]:
            if file.is_file():
                with file.open("rb+") as opened:
                    os.fsync(opened.fileno())
        if temporary.is_dir() and path.is_dir():  # a folder cannot be renamed over a full one
            os.replace(path, aside)
        os.replace(temporary, path)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); free some space, or make "
            f"{path.parent} a link to a larger disk. Nothing partial was left, and what was "
            "there before is intact"
        ) from None
    finally:
        if aside.exists() and not path.exists():
            os.replace(aside, path)
        _remove(temporary)
        _remove(aside)


def copy(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all; raises as :func:`replacing`."""
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def _sweep(path: Path) -> None:
    """Remove what killed processes left behind of this path."""
    for leftover in path.parent.glob(f".{path.name}.*.partial"):
        pid = re.fullmatch(r"(\d+)(\.old)?", leftover.name[len(path.name) + 2 : -len(".partial")])
        if pid and not psutil.pid_exists(int(pid[1])):
            if pid[2] and not path.exists():  # killed between the two renames of a folder
                os.replace(leftover, path)
            _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def own_path(name: str, key: str) -> Path:
    """A path in params.yaml seen from the DVC repository, also where DVC works in a copy of it.

    Raises:
        UserError: there is nothing at that path, or it cannot be one; ``key`` is named.
    """
    try:
        path = Path(os.environ.get("DVC_ROOT", ".")) / Path(name).expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError) as error:  # too long a name; ~user without a home
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{key}: {name[:100]!r} is no path ({reason}); correct it") from None
    raise UserError(f"{key}: {name!r} does not exist (looked for {path.resolve()}); correct it")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, or of a folder's sorted file names and their hashes."""
    if path.is_dir():
        files = (file for file in sorted(path.rglob("*")) if file.is_file())
        lines = "\n".join(f"{file.relative_to(path)} {sha256(file)}" for file in files)
        return hashlib.sha256(lines.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

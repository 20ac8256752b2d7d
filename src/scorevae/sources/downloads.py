"""Official files: those that the user has, else those that are fetched; always checked."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from gdown.exceptions import DownloadError
from torchvision.datasets.utils import calculate_md5

from scorevae.errors import UserError
from scorevae.files import is_disk_full, lasting_folder
from scorevae.sources.trees import folders


def downloads_folder() -> Path:
    """``SCOREVAE_DOWNLOADS``, else ``.downloads``, see :func:`scorevae.files.lasting_folder`.

    Outside of the stage's output, which is replaced as a whole: a file that came through once is
    not fetched again.
    """
    return lasting_folder("SCOREVAE_DOWNLOADS", ".downloads")


def find(root: Path, name: str) -> Path | None:
    """The file or folder ``name`` at the root or anywhere below it; ``root`` may be it.

    Raises:
        UserError: a folder cannot be read.
    """
    if root.name == name:
        return root
    if not root.is_dir():
        return None
    places = (
        folder / name for folder, subfolders, names in folders(root) if name in subfolders + names
    )
    return min((place for place in places if place.exists()), default=None)


def check_md5(path: Path, md5: str) -> Path:
    """Return the path of a file whose MD5 is the official one.

    Raises:
        UserError: it is not.
    """
    found = calculate_md5(path)
    if found != md5:
        raise UserError(
            f"{path}: its MD5 is {found}, the official file's {md5}: incomplete or altered; fetch "
            "it again"
        )
    return path


def find_checked(root: Path, md5: dict[str, str]) -> dict[str, Path] | None:
    """Several official files under one root, checked; None if none of them is there.

    Raises:
        UserError: some are missing, or an MD5 is wrong.
    """
    found = {name: find(root, name) for name in md5}
    missing = [name for name, path in found.items() if path is None]
    if len(missing) == len(md5):
        return None
    if missing:
        raise UserError(f"{root}: {', '.join(missing)} missing; put it beside the other files")
    return {name: check_md5(path, md5[name]) for name, path in found.items() if path is not None}


def fetch(what: str, wanted: str, download: Callable[[], object]) -> None:
    """Run a library's download into the downloads folder, in one process at a time.

    The library checks what is there first: a process that waited finds it whole, and no process
    writes to a file that is whole, so that reading needs no lock.

    Raises:
        UserError: as of :func:`attempt`.
    """
    with _alone(what):
        attempt(what, wanted, download)


@contextmanager
def _alone(what: str) -> Iterator[None]:
    """Let no other process fetch the same: libraries write and unpack it under its final name."""
    folder = downloads_folder()
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):  # then nothing can be fetched, only read
        yield
        return
    lock = FileLock(folder / f".{what}.lock", mode=0o666)  # the folder may belong to many users
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"{what}: another process fetches it into {folder}; waiting for it", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def attempt(what: str, wanted: str, download: Callable[[], object]) -> None:
    """Run a library's download or unpacking and turn its failures into one message.

    Raises:
        UserError: the network or the file failed; says which files to put where by hand.
    """
    try:
        download()
    except (OSError, RuntimeError, ValueError, DownloadError) as error:  # URLError is an OSError
        if isinstance(error, OSError) and is_disk_full(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{what}: cannot be downloaded ({reason}); put {wanted} into a folder and name the "
            "folder in presets.<name>.data.root"
        ) from None

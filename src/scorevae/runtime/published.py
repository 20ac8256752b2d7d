"""Weights that others publish: kept where torch.hub keeps them, and checked before use."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout
from torch.hub import download_url_to_file, get_dir

from scorevae.errors import Unavailable, UserError, in_a_line
from scorevae.runtime.files import is_disk_full, lasting_folder, own_path, sha256


class WeightsFile(NamedTuple):
    """A published file: its address, its name, and its SHA-256 or how that begins."""

    url: str
    name: str
    sha256: str


def weights_file(url: str) -> WeightsFile:
    """The file at an address whose name ends with the checksum's beginning, as torch.hub's do."""
    name = url.rpartition("/")[2]
    return WeightsFile(url, name, Path(name).stem.rpartition("-")[2])


def locate(file: WeightsFile, own: str | None, key: str, what: str) -> Path:
    """The user's file, else the one in TORCH_HOME, else a fresh download there, checked.

    Raises:
        Unavailable: it cannot be downloaded, or what came has another SHA-256.
        UserError: there is nothing at the user's path, or a folder; ``key`` is named.
    """
    if own is not None:
        if not (path := own_path(own, key)).is_file():
            raise UserError(f"{key}: {own!r} is no file; name one, or null")
        return path
    path = Path(get_dir()) / "checkpoints" / file.name
    try:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            download_url_to_file(file.url, str(path), hash_prefix=file.sha256, progress=False)
    except (OSError, RuntimeError) as error:  # no network (URLError is an OSError), other bytes
        raise Unavailable(
            f"{what} {file.name} cannot be downloaded ({error}); name the file in {key}, or put "
            "it under $TORCH_HOME/hub/checkpoints"
        ) from None
    return path


def check_digest(path: Path, file: WeightsFile, what: str) -> str:
    """The SHA-256 of what is to be a published file, before anything in it is opened.

    Raises:
        UserError: it is another file, or none.
    """
    try:
        digest = sha256(path)
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        raise UserError(f"{path}: {reason}; name the file of {what}") from None
    if not digest.startswith(file.sha256):
        reason = f"its SHA-256 is {digest}, that of {what} begins with {file.sha256}"
        raise UserError(f"{path}: {reason}: incomplete or another file; fetch it again")
    return digest


def downloads_folder() -> Path:
    """``SCOREVAE_DOWNLOADS``, else ``.downloads`` (:func:`scorevae.runtime.files.lasting_folder`).

    Outside of the stage's output, which is replaced as a whole: a file that came through once is
    not fetched again.
    """
    return lasting_folder("SCOREVAE_DOWNLOADS", ".downloads")


def fetch(what: str, wanted: str, download: Callable[[], object], key: str) -> None:
    """Run a library's download into the downloads folder, in one process at a time.

    Libraries write and unpack under the final name, but check what is there first: a process that
    waited finds it whole, and none writes to a file that is whole, so that reading needs no lock.

    Raises:
        UserError: as of :func:`attempt`.
    """
    folder = downloads_folder()
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):  # then nothing can be fetched, only read
        attempt(what, wanted, download, key)
        return
    lock = FileLock(folder / f".{what}.lock", mode=0o666)  # the folder may belong to many users
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        print(f"{what}: another process fetches it into {folder}; waiting for it", flush=True)
        held = lock.acquire()
    with held:
        attempt(what, wanted, download, key)


def attempt(what: str, wanted: str, download: Callable[[], object], key: str) -> None:
    """Run a library's download or unpacking and turn its failures into one message.

    Raises:
        UserError: the network or the file failed; says which files (``wanted``) to put by hand
            into the root of the data set whose settings params.yaml has under ``key``.
    """
    from gdown.exceptions import DownloadError  # of torchvision's downloads from Google Drive

    try:
        download()
    except (OSError, RuntimeError, ValueError, DownloadError) as error:  # URLError is an OSError
        if is_disk_full(error):
            raise
        reason = f"cannot be downloaded ({in_a_line(error)})"
        advice = f"put {wanted} into a folder and name the folder in {key}.root"
        raise UserError(f"{what}: {reason}; {advice}") from None

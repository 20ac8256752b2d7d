"""Weights that others publish: kept where torch.hub keeps them, and checked before use."""

from pathlib import Path
from typing import NamedTuple

from torch.hub import download_url_to_file, get_dir

from scorevae.errors import UserError
from scorevae.files import own_path, sha256


class WeightsFile(NamedTuple):
    """A published file: its address, its name, and its SHA-256 or how that begins."""

    url: str
    name: str
    sha256: str


def weights_file(url: str) -> WeightsFile:
    """The file at an address whose name ends with the checksum's beginning, as torch.hub's do."""
    name = url.rpartition("/")[2]
    return WeightsFile(url, name, Path(name).stem.rpartition("-")[2])


def own_file(name: str, key: str) -> Path:
    """The user's file of weights, see :func:`scorevae.files.own_path`.

    Raises:
        UserError: there is nothing at that path, or a folder; ``key`` is named.
    """
    path = own_path(name, key)
    if not path.is_file():
        raise UserError(f"{key}: {name!r} is no file; name one, or null")
    return path


def kept_or_downloaded(file: WeightsFile) -> Path:
    """The file in TORCH_HOME, else a fresh download there, whose SHA-256 is checked.

    Raises:
        OSError: it is not there and cannot be downloaded (URLError is an OSError).
        RuntimeError: what came is another file.
    """
    path = Path(get_dir()) / "checkpoints" / file.name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        download_url_to_file(file.url, str(path), hash_prefix=file.sha256, progress=False)
    return path


def check_digest(path: Path, file: WeightsFile, what: str) -> str:
    """The SHA-256 of what is to be a published file, before anything in it is opened.

    Raises:
        UserError: it is another file, or none.
    """
    try:
        digest = sha256(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); name the file of {what}"
        ) from None
    if not digest.startswith(file.sha256):
        raise UserError(
            f"{path}: its SHA-256 is {digest}, that of {what} begins with {file.sha256}: "
            "incomplete or another file; fetch it again"
        )
    return digest

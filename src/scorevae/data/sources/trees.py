"""Image files in folders and archives, read one at a time and never unpacked to disk.

Nothing is written under a name that an archive chose, so that no archive can reach outside; a
name that tries is refused all the same.
"""

import bz2
import gzip
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, NoReturn, Protocol

from scorevae.data.sources.pixels import SUFFIXES, BadImage
from scorevae.errors import UserError

MAX_FILE_BYTES = 2**28  # of one image file; a larger member is a bomb or no image
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
ARCHIVES = (".zip", *TARS)
OPENERS: dict[str, Callable[..., Any]] = {
    ".tar": open,
    ".gz": gzip.open,
    ".tgz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}

# What the libraries raise on archives that are cut short or altered.
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
)


class Readable(Protocol):
    """An open file of bytes."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes."""
        ...


class ImageFile(NamedTuple):
    """One image file; ``read`` is valid until the next one is asked for."""

    name: str  # path under the root, with forward slashes; an archive counts as a folder
    read: Callable[[], bytes]


def image_files(root: Path) -> Iterator[ImageFile]:
    """Every image under a folder or in an archive.

    Archives inside a folder are read only where the folder itself holds no image, so that an
    archive beside its unpacked content does not count twice.

    Raises:
        UserError: a folder cannot be read; an archive is damaged, incomplete, encrypted, names a
            path outside of itself, or holds a file beyond MAX_FILE_BYTES.
    """
    if not root.is_dir():
        yield from _archive(root)
        return
    files = list(_files(root))
    pictures = [path for path in files if path.suffix.lower() in SUFFIXES]
    for path in pictures:
        yield ImageFile(path.relative_to(root).as_posix(), _reader(path))
    if not pictures:
        for path in files:
            if path.name.lower().endswith(ARCHIVES):
                prefix = path.relative_to(root).as_posix()
                prefix = prefix[: -len(next(e for e in ARCHIVES if prefix.lower().endswith(e)))]
                for name, read in _archive(path):
                    yield ImageFile(f"{prefix}/{name}", read)


def folders(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Like ``os.walk``, links followed, each folder once, in sorted order.

    Raises:
        UserError: a folder cannot be read.
    """
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, onerror=_unreadable, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()
        yield Path(folder), subfolders, sorted(names)


def _unreadable(error: OSError) -> NoReturn:
    raise UserError(
        f"{error.filename}: cannot be read ({error.strerror}); make it readable or move it away"
    )


def _files(root: Path) -> Iterator[Path]:
    """All files but hidden ones."""
    for folder, subfolders, names in folders(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        yield from (folder / name for name in names if not name.startswith("."))


def _reader(path: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise BadImage(f"larger than {MAX_FILE_BYTES} bytes")
            return path.read_bytes()
        except OSError as error:
            raise BadImage(error.strerror or str(error)) from None

    return read


def _archive(path: Path) -> Iterator[ImageFile]:
    try:
        if path.name.lower().endswith(TARS):  # first: a tar may end with a zip
            yield from _tar_members(path)
        elif zipfile.is_zipfile(path):
            yield from _zip_members(path)
        else:
            raise UserError(
                f"{path}: neither a folder nor a whole archive ({', '.join(ARCHIVES)}); name one "
                "in data.root, or fetch the archive again"
            )
    except DAMAGE as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception | str) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{path}: damaged or incomplete archive ({reason}); fetch it again")


def _zip_members(path: Path) -> Iterator[ImageFile]:
    with zipfile.ZipFile(path) as archive:
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            if _wanted(path, info.filename, info.file_size) and not info.is_dir():
                if info.flag_bits & 1:
                    raise UserError(f"{path}: {info.filename!r} is encrypted; unpack it yourself")
                yield ImageFile(info.filename, partial(_read_zipped, archive, info))


def _read_zipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A damaged member of a zip is a bad image: the others can still be read."""
    try:
        with archive.open(info) as file:
            return _bounded(file)
    except (*DAMAGE, NotImplementedError) as error:
        raise BadImage(str(error)) from None


def _tar_members(path: Path) -> Iterator[ImageFile]:
    """Members in their order; hard links, images too, are read from where their target lies."""
    opener = OPENERS[path.suffix.lower()]
    places: dict[str, tuple[int, int]] = {}  # offset and size of every file
    with opener(path, "rb") as file:
        stream = _Watched(file)
        with tarfile.open(fileobj=stream, mode="r:") as archive:  # type: ignore[call-overload]
            while (member := archive.next()) is not None:
                name = member.name.removeprefix("./")
                wanted = _wanted(path, member.name, member.size)
                if member.islnk():
                    _follow(member, places)
                if member.isreg():
                    places[name] = (member.offset_data, member.size)
                    if wanted:
                        yield ImageFile(name, partial(_read_tarred, path, archive, member))
                elif member.islnk() and wanted:
                    reason = f"{name!r} is a link to {member.linkname!r}, which is not before it"
                    raise _damaged(path, reason)
                # tarfile remembers every header; this loop never looks back.
                archive.members.clear()
        # tarfile takes whatever is no header for the end. The real one is a block of zeros.
        if stream.last != bytes(tarfile.BLOCKSIZE):
            raise _damaged(path, "it does not end as a tar does")
        while file.read(2**20):  # a compressed stream states its checksum behind its end
            pass


def _follow(link: tarfile.TarInfo, places: dict[str, tuple[int, int]]) -> None:
    """Make a hard link the file that it names; a tar holds that one before it."""
    place = places.get(link.linkname.removeprefix("./"))
    if place is not None:
        link.type = tarfile.REGTYPE
        link.offset_data, link.size = place


def _read_tarred(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Damage in a tar's stream is damage of all that follows."""
    file = archive.extractfile(member)
    assert file is not None
    try:
        return _bounded(file)
    except DAMAGE as error:
        raise _damaged(path, error) from None


class _Watched:
    """A file for tarfile that remembers what was read last."""

    def __init__(self, file: Any) -> None:  # noqa: ANN401 (each decompressor has its own type)
        self.seek, self.tell = file.seek, file.tell
        self._file = file
        self.last = b""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes."""
        self.last = self._file.read(size)
        return self.last


def _wanted(path: Path, name: str, size: int) -> bool:
    """Whether a member is an image file; raises UserError for one that no archive should have."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or re.match("[A-Za-z]:", name):
        raise UserError(
            f"{path}: the member {name!r} points outside of the archive; use another archive, or "
            "unpack this one where you trust it and name that folder in data.root"
        )
    hidden = any(part.startswith((".", "__MACOSX")) for part in parts.parts)
    if hidden or parts.suffix.lower() not in SUFFIXES:
        return False
    if size > MAX_FILE_BYTES:
        raise UserError(
            f"{path}: the member {name!r} unpacks to {size} bytes, more than the "
            f"{MAX_FILE_BYTES} of any image; remove it from the archive"
        )
    return True


def _bounded(file: Readable) -> bytes:
    """Read a member whose header may understate its size."""
    data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise BadImage(f"unpacks to more than {MAX_FILE_BYTES} bytes")
    return data

"""Image files in folders and in archives, which are unpacked one after the other for a moment."""

import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from lzma import LZMAError
from pathlib import Path, PurePath, PurePosixPath
from tempfile import TemporaryDirectory
from typing import NamedTuple, NoReturn, Self
from zipfile import BadZipFile, ZipFile, is_zipfile

from scorevae.data.sources.pixels import SUFFIXES, BadImage
from scorevae.errors import UserError, in_a_line
from scorevae.runtime.files import is_disk_full

MAX_FILE_BYTES = 2**28  # of one image file; a larger member is a bomb or no image
TARS = {".tar": "", ".tar.gz": "gz", ".tgz": "gz", ".tar.bz2": "bz2", ".tar.xz": "xz"}
ARCHIVES = (".zip", *TARS)
HIDDEN = (
    ".",
    "__MACOSX",
)  # folders; the latter is the Finder's, of resource forks with .png endings

NO_ENDING = "(no ending)"

# What the libraries raise on archives that are cut short or altered; KeyError: a link to nothing.
DAMAGE = tarfile.TarError, BadZipFile, zlib.error, LZMAError, EOFError, KeyError, OSError


class ImageFile(NamedTuple):
    """One image file, which is there until the next one is asked for."""

    name: str  # path under the root, with forward slashes; an archive counts as a folder
    path: Path

    def read(self) -> bytes:
        """Its content; raise BadImage if it is too large or cannot be read."""
        try:
            if self.path.stat().st_size > MAX_FILE_BYTES:
                raise BadImage(f"larger than {MAX_FILE_BYTES} bytes")
            return self.path.read_bytes()
        except OSError as error:
            raise BadImage(error.strerror or str(error)) from None


def image_files(root: Path, scratch: Path, ignored: Counter[str]) -> Iterator[ImageFile]:
    """Every image under a folder or in an archive, whose images are unpacked into ``scratch``.

    Archives inside a folder are read only where the folder itself holds no image, so that an
    archive beside its unpacked content does not count twice. Whatever else is not hidden is
    counted in ``ignored``, by its ending.

    Raises:
        UserError: a folder cannot be read; an archive is damaged, incomplete, encrypted, names a
            path outside of itself, or holds a file beyond MAX_FILE_BYTES.
        OSError: the disk under ``scratch`` is full.
    """
    if not root.is_dir():
        yield from _archived(root, scratch, "", ignored)
        return
    files = {path.relative_to(root).as_posix(): path for path in _files(root)}
    pictures = {name: path for name, path in files.items() if path.suffix.lower() in SUFFIXES}
    yield from (ImageFile(name, path) for name, path in pictures.items())
    for name, path in files.items():
        ending = _ending(path)
        if ending and not pictures:
            yield from _archived(path, scratch, f"{name[: -len(ending)]}/", ignored)
        elif name not in pictures:
            ignored[ending or path.suffix.lower() or NO_ENDING] += 1


def folders(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Like ``os.walk``, links followed, each folder once, in sorted order.

    Raises:
        UserError: a folder cannot be read.
    """
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, onerror=_unreadable, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            subfolders.clear()
        else:
            seen.add(real)
            subfolders.sort()
            yield Path(folder), subfolders, sorted(names)


def _unreadable(error: OSError) -> NoReturn:
    reason = f"cannot be read ({error.strerror})"
    raise UserError(f"{error.filename}: {reason}; make it readable or move it away")


def _files(root: Path) -> Iterator[Path]:
    """All files but hidden ones."""
    for folder, subfolders, names in folders(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(HIDDEN)]
        yield from (folder / name for name in names if not name.startswith("."))


def _ending(path: PurePath) -> str:
    """By which of ARCHIVES a file counts as one."""
    return next((ending for ending in ARCHIVES if path.name.lower().endswith(ending)), "")


def _archived(
    path: Path, scratch: Path, prefix: str, ignored: Counter[str]
) -> Iterator[ImageFile]:
    with TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        try:
            if _ending(path) in TARS:  # first: a tar may end with a zip
                _untar(path, folder, ignored)
            elif is_zipfile(path):
                _unzip(path, folder, ignored)
            else:
                raise UserError(
                    f"{path}: neither a folder nor a whole archive ({', '.join(ARCHIVES)}); name "
                    "one in data.root, or fetch the archive again"
                )
        except DAMAGE as error:
            if is_disk_full(error):
                raise
            reason = f"damaged or incomplete archive ({in_a_line(error)})"
            raise UserError(f"{path}: {reason}; fetch it again") from None
        for file in _files(folder):
            # where a tool for Windows packed it, \ stands between folders
            inside = file.relative_to(folder).as_posix().replace("\\", "/")
            yield ImageFile(prefix + inside, file)


def _unzip(path: Path, folder: Path, ignored: Counter[str]) -> None:
    with ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir() or not _wanted(path, info.filename, info.file_size, ignored):
                continue
            if info.flag_bits & 1:
                raise UserError(f"{path}: {info.filename!r} is encrypted; unpack it yourself")
            try:
                archive.extract(info, folder)
            except (*DAMAGE, NotImplementedError) as error:
                if is_disk_full(error):
                    raise
                (folder / info.filename).write_bytes(b"")  # a bad image; the others are good


class _Header(tarfile.TarInfo):
    """tarfile takes whatever is no header for the end; the real one is a block of zeros."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError:
            if buf == bytes(tarfile.BLOCKSIZE):
                raise
            raise tarfile.ReadError("it does not end as a tar does") from None


def _untar(path: Path, folder: Path, ignored: Counter[str]) -> None:
    """Regular files and hard links, which have a target in the tar; symbolic links are none."""
    if not hasattr(tarfile, "data_filter"):  # which keeps members inside of the folder
        raise UserError(f"{path}: Python 3.11.4 or newer unpacks it; else unpack it yourself")
    mode = f"r:{TARS[_ending(path)]}"
    with tarfile.open(path, mode, tarinfo=_Header, errorlevel=2) as archive:  # type: ignore[call-overload]
        for member in archive:
            others = Counter[str]() if member.isdir() else ignored
            if not _wanted(path, member.name, member.size, others):
                continue
            if member.isreg() or member.islnk():
                archive.extract(member, folder, set_attrs=False, filter="data")
            else:
                others["(symbolic link)"] += 1
        while archive.fileobj.read(2**20):  # a compressed stream states its checksum at its end
            pass


def _wanted(path: Path, name: str, size: int, ignored: Counter[str]) -> bool:
    """Whether a member is an image file; raises UserError for one that no archive should have."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or re.match("[A-Za-z]:", name):
        raise UserError(
            f"{path}: the member {name!r} points outside of the archive; use another archive, or "
            "unpack this one where you trust it and name that folder in data.root"
        )
    if any(part.startswith(HIDDEN) for part in parts.parts):
        return False
    if parts.suffix.lower() not in SUFFIXES:
        ignored[_ending(parts) or parts.suffix.lower() or NO_ENDING] += 1
        return False
    if size > MAX_FILE_BYTES:
        reason = f"unpacks to {size} bytes, more than the {MAX_FILE_BYTES} of any image"
        raise UserError(f"{path}: the member {name!r} {reason}; remove it from the archive")
    return True

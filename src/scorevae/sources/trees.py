"""Image files in folders and archives, read one at a time and never unpacked to disk.

Nothing is written under a name that an archive chose, so that no archive can reach outside; a
name that tries is refused all the same.
"""

import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from scorevae.errors import UserError
from scorevae.sources.pixels import SUFFIXES, BadImage

MAX_FILE_BYTES = 2**28  # of one image file; a larger member is a bomb or no image
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class ImageFile(NamedTuple):
    """One image file; ``read`` is valid until the next one is asked for."""

    name: str  # path under the root, with forward slashes; an archive counts as a folder
    read: Callable[[], bytes]


def image_files(root: Path) -> Iterator[ImageFile]:
    """Every image under a folder or in an archive.

    Archives inside a folder are read only where the folder itself holds no image, so that an
    archive beside its unpacked content does not count twice.

    Raises:
        UserError: an archive is damaged, incomplete, encrypted, names a path outside of itself,
            or holds a file beyond MAX_FILE_BYTES.
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
                for name, read in _archive(path):
                    yield ImageFile(f"{prefix}/{name}", read)


def _files(root: Path) -> Iterator[Path]:
    """All files, links followed, each folder once, in sorted order."""
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(n for n in subfolders if not n.startswith("."))
        yield from (Path(folder) / n for n in sorted(names) if not n.startswith("."))


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
        if zipfile.is_zipfile(path):
            yield from _zip_members(path)
        elif path.name.lower().endswith(ARCHIVES[1:]):
            yield from _tar_members(path)
        else:
            raise UserError(
                f"{path}: neither a folder nor a whole archive ({', '.join(ARCHIVES)}); name one "
                "in data.root, or fetch the archive again"
            )
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise UserError(
            f"{path}: damaged or incomplete archive ({error}); fetch it again"
        ) from None


def _zip_members(path: Path) -> Iterator[ImageFile]:
    with zipfile.ZipFile(path) as archive:
        for info in sorted(archive.infolist(), key=lambda info: info.filename):
            if _wanted(path, info.filename, info.file_size) and not info.is_dir():
                if info.flag_bits & 1:
                    raise UserError(f"{path}: {info.filename!r} is encrypted; unpack it yourself")
                yield ImageFile(info.filename, _zip_reader(archive, info))


def _zip_reader(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            with archive.open(info) as file:
                return _bounded(file)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise BadImage(str(error)) from None

    return read


def _tar_members(path: Path) -> Iterator[ImageFile]:
    with tarfile.open(path, "r:*") as archive:
        for member in archive:
            if _wanted(path, member.name, member.size) and member.isreg():
                file = archive.extractfile(member)
                assert file is not None
                yield ImageFile(member.name.removeprefix("./"), partial(_bounded, file))
            # tarfile remembers every header; this loop never looks back.
            archive.members.clear()  # type: ignore[attr-defined]


def _wanted(path: Path, name: str, size: int) -> bool:
    """Whether a member is an image file; raises UserError for one that no archive should have."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or parts.parts[:1] and ":" in parts.parts[0]:
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


def _bounded(file: IO[bytes]) -> bytes:
    """Read a member whose header may understate its size."""
    data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise BadImage(f"unpacks to more than {MAX_FILE_BYTES} bytes")
    return data

"""Official files: those that the user has, else those that are fetched; always checked."""

import hashlib
from pathlib import Path

from scorevae.data.sources.trees import folders
from scorevae.errors import UserError


def find(root: Path, name: str) -> Path | None:
    """The file or folder ``name`` at the root or anywhere below it; ``root`` may be it.

    Raises:
        UserError: a folder cannot be read.
    """
    if root.name == name:
        return root
    if not root.is_dir():
        return None
    places = (folder / name for folder, dirs, files in folders(root) if name in dirs + files)
    return min((place for place in places if place.exists()), default=None)


def check_md5(path: Path, md5: str) -> Path:
    """Return the path of a file whose MD5 is the official one; else raise UserError."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != md5:
        reason = f"its MD5 is {found}, the official file's {md5}"
        raise UserError(f"{path}: {reason}: incomplete or altered; fetch it again")
    return path


def find_checked(root: Path, md5: dict[str, str]) -> dict[str, Path] | None:
    """Several official files under one root, checked; None if none of them is there.

    Raises:
        UserError: some are missing, or an MD5 is wrong.
    """
    found = {name: path for name in md5 if (path := find(root, name))}
    if found and len(found) < len(md5):
        missing = ", ".join(name for name in md5 if name not in found)
        raise UserError(f"{root}: {missing} missing; put it beside the other files")
    return {name: check_md5(path, md5[name]) for name, path in found.items()} or None

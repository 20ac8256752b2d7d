"""Official files: those that the user has, else those that are fetched; always checked."""

from pathlib import Path

from torchvision.datasets.utils import calculate_md5

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

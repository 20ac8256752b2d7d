"""CelebA at any size: aligned faces, centre crop 140, the official split, 40 attributes."""

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torchvision import datasets
from torchvision.datasets.utils import check_integrity, download_file_from_google_drive

from scorevae.config import DataConfig
from scorevae.data.arrays import SplitName
from scorevae.data.sources.official import find, find_checked
from scorevae.data.sources.pixels import BadImage, decode
from scorevae.data.sources.writer import CHUNK, DatasetWriter, Origin
from scorevae.errors import UserError
from scorevae.runtime.progress import progress
from scorevae.runtime.published import downloads_folder, fetch

CROP = 140  # of the aligned 178×218 pixels; the standard 64×64 set is this, then resized

ZIP, PARTITION, ATTRIBUTES = (
    "img_align_celeba.zip",
    "list_eval_partition.txt",
    "list_attr_celeba.txt",
)
FOLDER = "img_align_celeba"
PARTS: dict[SplitName, int] = {"train": 0, "test": 2}  # 1 is the validation set, left out

MD5 = {name: md5 for _, md5, name in datasets.CelebA.file_list}
DRIVE = {name: file_id for file_id, _, name in datasets.CelebA.file_list}


class Lists(NamedTuple):
    """The two text files: file names of each split, their attributes as 0 and 1, the titles."""

    names: dict[SplitName, list[str]]
    attributes: dict[SplitName, np.ndarray]
    titles: list[str]


def read_celeba(
    settings: DataConfig, root: Path | None, writer: DatasetWriter, *, md5: dict[str, str] = MD5
) -> Origin:
    """CelebA (Liu et al. 2015): 162,770 training and 19,962 test faces, one at a time.

    ``root`` may hold ``img_align_celeba.zip`` or its unpacked folder, with
    ``list_eval_partition.txt`` and ``list_attr_celeba.txt`` anywhere below. Labels are the 40
    attributes.

    Raises:
        UserError: a file is missing, altered, cannot be fetched, or an image is damaged.
    """
    if settings.image.size > CROP:
        raise UserError(
            f"{writer.key}.image.size: got {settings.image.size}; CelebA's crop has {CROP} pixels "
            "a side, choose at most that"
        )
    base = _fetched(md5, writer.key) if root is None else root
    lists = read_lists(base, md5)
    with _images(base, md5) as read:
        for split, names in lists.names.items():
            writer.images(split, _decoded(names, read, settings, split))
            writer.labels(split, lists.attributes[split])
    return Origin(
        source="CelebA (Z. Liu et al. 2015), aligned, centre crop 140",
        licence="non-commercial research only; do not pass images on",
        details={"attributes": lists.titles},
    )


def _fetched(md5: dict[str, str], key: str) -> Path:
    base = downloads_folder() / "celeba"
    by_hand = f"{ZIP}, {PARTITION} and {ATTRIBUTES} (Google Drive limits downloads)"
    for name in (ATTRIBUTES, PARTITION, ZIP):
        if not check_integrity(str(base / name), md5[name]):
            source = (DRIVE[name], str(base), name, md5[name])
            download = partial(download_file_from_google_drive, *source)
            fetch(f"CelebA's {name}", by_hand, download, key)
    return base


def read_lists(base: Path, md5: dict[str, str]) -> Lists:
    """Parse the partition and the attributes."""
    files = find_checked(base, {name: md5[name] for name in (PARTITION, ATTRIBUTES)})
    if files is None:
        raise UserError(f"{base}: {PARTITION} and {ATTRIBUTES} missing; put them there")
    parts = dict(line.split() for line in files[PARTITION].read_text().splitlines() if line)
    names = {
        split: sorted(name for name, part in parts.items() if int(part) == number)
        for split, number in PARTS.items()
    }
    with files[ATTRIBUTES].open() as file:
        next(file)  # the number of images
        titles = next(file).split()
        rows = {
            name: np.array(values, dtype=np.int8) == 1
            for name, *values in (line.split() for line in file if line.strip())
        }
    missing = [name for split in names.values() for name in split if name not in rows]
    if missing:
        raise UserError(f"{files[ATTRIBUTES]}: no attributes of {missing[0]}; fetch it again")
    attributes = {split: np.stack([rows[n] for n in list_]) for split, list_ in names.items()}
    return Lists(names, attributes, titles)


@contextmanager
def _images(base: Path, md5: dict[str, str]) -> Iterator[Callable[[str], bytes]]:
    """A function from file name to content, over the unpacked folder or the archive."""
    folder = find(base, FOLDER)
    if folder is not None:
        while (folder / FOLDER).is_dir():  # Kaggle has one inside of the other
            folder = folder / FOLDER
        yield lambda name: (folder / name).read_bytes()
        return
    files = find_checked(base, {ZIP: md5[ZIP]})
    if files is None:
        raise UserError(f"{base}: neither {ZIP} nor {FOLDER}/ in it; put one there")
    with zipfile.ZipFile(files[ZIP]) as archive:
        yield lambda name: archive.read(f"{FOLDER}/{name}")


def _decoded(
    names: list[str], read: Callable[[str], bytes], settings: DataConfig, split: str
) -> Iterator[np.ndarray]:
    """Chunks of decoded images. Every listed image must be there: the split is official."""
    with progress(f"CelebA {split}", 0, len(names)) as report:
        for first in range(0, len(names), CHUNK):
            chunk = names[first : first + CHUNK]
            yield np.stack([_one(name, read, settings) for name in chunk])
            report(first + len(chunk))


def _one(name: str, read: Callable[[str], bytes], settings: DataConfig) -> np.ndarray:
    try:
        return decode(read(name), settings.image, crop=CROP)
    except (BadImage, OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"CelebA's {name}: {error}; the set is incomplete: fetch {ZIP} again"
        ) from None

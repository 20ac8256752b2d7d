"""CelebA at any size: aligned faces, centre crop 140, the official split, 40 attributes."""

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from scorevae.config import DataConfig
from scorevae.data.arrays import SplitName
from scorevae.data.sources.official import find, find_checked
from scorevae.data.sources.pixels import BadImage, decode
from scorevae.data.sources.writer import CHUNK, DatasetWriter, Origin
from scorevae.errors import UserError
from scorevae.runtime.progress import progress
from scorevae.runtime.published import downloads_folder, fetch

CROP = 140  # of the aligned 178×218 pixels; the standard 64×64 set is this, then resized

ZIP, FOLDER = "img_align_celeba.zip", "img_align_celeba"
PARTITION, ATTRIBUTES = "list_eval_partition.txt", "list_attr_celeba.txt"
PARTS: dict[SplitName, int] = {"train": 0, "test": 2}  # 1 is the validation set, left out
Sums = dict[str, str]  # the MD5 of each file


def read_celeba(
    settings: DataConfig, root: Path | None, writer: DatasetWriter, *, md5: Sums | None = None
) -> Origin:
    """CelebA (Liu et al. 2015): 162,770 training and 19,962 test faces, one at a time.

    ``root`` may hold ``img_align_celeba.zip`` or its unpacked folder, with
    ``list_eval_partition.txt`` and ``list_attr_celeba.txt`` anywhere below. Labels are the 40
    attributes. ``md5`` is what torchvision states, but in tests.

    Raises:
        UserError: a file is missing, altered, cannot be fetched, or an image is damaged.
    """
    if settings.image.size > CROP:
        raise UserError(
            f"{writer.key}.image.size: got {settings.image.size}; CelebA's crop has {CROP} pixels "
            "a side, choose at most that"
        )
    from torchvision.datasets import CelebA  # takes seconds, which other sources do without

    md5 = md5 or {name: digest for _, digest, name in CelebA.file_list}
    root = root or _fetched(md5, writer.key)
    splits, attributes, titles = _lists(root, md5)
    with _images(root, md5) as read:
        for split, names in splits.items():
            writer.images(split, _decoded(names, read, settings, split))
            writer.labels(split, np.stack([attributes[name] for name in names]))
    return Origin(
        source="CelebA (Z. Liu et al. 2015), aligned, centre crop 140",
        licence="non-commercial research only; do not pass images on",
        details={"attributes": titles},
    )


def _fetched(md5: Sums, key: str) -> Path:
    from torchvision.datasets import CelebA
    from torchvision.datasets.utils import download_file_from_google_drive

    drive = {name: file_id for file_id, _, name in CelebA.file_list}
    base = downloads_folder() / "celeba"
    by_hand = f"{ZIP}, {PARTITION} and {ATTRIBUTES} (Google Drive limits downloads)"
    for name in (ATTRIBUTES, PARTITION, ZIP):
        source = (drive[name], str(base), name, md5[name])
        fetch(f"CelebA's {name}", by_hand, partial(download_file_from_google_drive, *source), key)
    return base


def _lists(
    base: Path, md5: Sums
) -> tuple[dict[SplitName, list[str]], dict[str, np.ndarray], list[str]]:
    """The names of each split's files, the attributes of each name, the attributes' titles."""
    files = find_checked(base, {name: md5[name] for name in (PARTITION, ATTRIBUTES)})
    if files is None:
        raise UserError(f"{base}: {PARTITION} and {ATTRIBUTES} missing; put them there")
    parts = dict(line.split() for line in files[PARTITION].read_text().splitlines() if line)
    splits = {
        split: sorted(name for name, part in parts.items() if int(part) == number)
        for split, number in PARTS.items()
    }
    with files[ATTRIBUTES].open() as file:
        next(file)  # the number of images
        titles = next(file).split()
        rows = (line.split() for line in file if line.strip())
        attributes = {name: np.array(values, dtype=np.int8) == 1 for name, *values in rows}
    for name in (name for names in splits.values() for name in names):
        if name not in attributes:
            raise UserError(f"{files[ATTRIBUTES]}: no attributes of {name}; fetch it again")
    return splits, attributes, titles


@contextmanager
def _images(base: Path, md5: Sums) -> Iterator[Callable[[str], bytes]]:
    """A function from file name to content, over the unpacked folder or the archive."""
    if folder := find(base, FOLDER):
        while (folder / FOLDER).is_dir():  # Kaggle has one inside of the other
            folder = folder / FOLDER
        yield lambda name: (folder / name).read_bytes()
    elif files := find_checked(base, {ZIP: md5[ZIP]}):
        with zipfile.ZipFile(files[ZIP]) as archive:
            yield lambda name: archive.read(f"{FOLDER}/{name}")
    else:
        raise UserError(f"{base}: neither {ZIP} nor {FOLDER}/ in it; put one there")


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
        advice = f"the set is incomplete: fetch {ZIP} again"
        raise UserError(f"CelebA's {name}: {error}; {advice}") from None

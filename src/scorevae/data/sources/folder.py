"""A user's own images: any tree of them, or an archive of one."""

import sys
from pathlib import Path, PurePosixPath

import numpy as np

from scorevae.config import DataConfig
from scorevae.data.arrays import SplitName
from scorevae.data.sources.pixels import SUFFIXES, BadImage, decode
from scorevae.data.sources.trees import image_files
from scorevae.data.sources.writer import CHUNK, DatasetWriter, Origin
from scorevae.errors import UserError
from scorevae.randomness import derive_seed
from scorevae.runtime.progress import progress

MAX_BAD_SHARE = 0.01
SHOWN = 10  # warnings about single files, then a count

# Names of the held-out part, in order of preference, where a tree is split already.
HELD_OUT = ("test", "val", "valid", "validation")


Splits = dict[SplitName, np.ndarray]


def read_folder(settings: DataConfig, root: Path | None, writer: DatasetWriter) -> Origin:
    """Every image under ``root``, squared to the preset's size, in a random order.

    Leading folders that all files share are ignored. Where the tree then begins with ``train``
    and ``test`` (or ``val``), those are the splits; else a share ``test_fraction``, drawn from
    ``split_seed`` over the sorted names, is held out. The first folder after that is the class,
    if every file has one and there are at least two. The order within a split is random, so that
    any beginning of it is a fair sample.

    Raises:
        UserError: no root, no images, or more than MAX_BAD_SHARE of them unusable.
    """
    if root is None:
        raise UserError(
            f"{writer.key}.root: null, but the source folder needs it; set it to a folder or an "
            "archive of images"
        )
    names, pixels, skipped = _read(root, settings, writer)
    splits, labels, classes = _arrange(names, settings, writer.key)
    for split, rows in splits.items():
        chunks = (pixels[rows[first : first + CHUNK]] for first in range(0, len(rows), CHUNK))
        writer.images(split, chunks)
        if labels:
            writer.labels(split, labels[split])
    return Origin(
        source=f"image files under {root.name}",
        licence="the user's",
        details={"classes": classes, "skipped": skipped},
    )


def _read(
    root: Path, settings: DataConfig, writer: DatasetWriter
) -> tuple[list[str], np.ndarray, int]:
    """Decode every file once, in the order of the tree; names, their pixels, number skipped."""
    names: list[str] = []
    bad: list[str] = []
    scratch = writer.folder / "scratch"
    with scratch.open("wb") as rows, progress("images", 0, None) as report:
        for file in image_files(root, writer.folder):
            try:
                rows.write(decode(file.read(), settings.image).data)
                names.append(file.name)
            except BadImage as reason:
                bad.append(f"{root / file.name}: {reason}")
                if len(bad) <= SHOWN:
                    print(f"warning: {bad[-1]}; skipped", file=sys.stderr, flush=True)
            report(len(names))
    _check(root, len(names), bad, writer.key)
    pixels = np.memmap(scratch, np.uint8, "r", shape=(len(names), *writer.row_shape))
    scratch.unlink()  # stays readable through the mapping, and is gone with it
    return names, pixels, len(bad)


def _check(root: Path, good: int, bad: list[str], key: str) -> None:
    if not (count := good + len(bad)):
        reason = f"no image in it (files ending in {', '.join(sorted(SUFFIXES))})"
        raise UserError(f"{root}: {reason}; name another folder in {key}.root")
    if len(bad) > MAX_BAD_SHARE * count:
        raise UserError(
            f"{root}: {len(bad)} of {count} images cannot be used, more than {MAX_BAD_SHARE:.0%} "
            f"(the first: {bad[0]}); repair or remove them, or ask for a smaller {key}.image.size"
        )
    if bad:
        print(f"warning: {root}: {len(bad)} images skipped", file=sys.stderr, flush=True)


def _arrange(names: list[str], settings: DataConfig, key: str) -> tuple[Splits, Splits, list[str]]:
    """Rows of each split, their labels, and the classes; all from the names of the files alone."""
    order = np.argsort(np.array(names))
    paths = [PurePosixPath(names[row]).parts for row in order]
    while all(len(path) > 1 for path in paths) and len({path[0] for path in paths}) == 1:
        paths = [path[1:] for path in paths]
    heads = {path[0].lower() for path in paths if len(path) > 1}
    held_out = next((name for name in HELD_OUT if name in heads), None)
    if "train" in heads and held_out and all(len(path) > 1 for path in paths):
        where: dict[SplitName, str] = {"train": "train", "test": held_out}
        splits = {
            split: np.flatnonzero([path[0].lower() == name for path in paths])
            for split, name in where.items()
        }
        paths = [path[1:] for path in paths]
    else:
        splits = _draw(len(paths), settings, key)
    rng = np.random.default_rng(derive_seed(settings.split_seed, "order"))
    splits = {split: rng.permutation(indices) for split, indices in splits.items()}
    rows = {split: order[indices] for split, indices in splits.items()}
    classes = sorted({path[0] for path in paths})
    if len(classes) < 2 or any(len(path) < 2 for path in paths):
        return rows, {}, []
    numbers = np.searchsorted(np.array(classes), [path[0] for path in paths])
    return rows, {split: numbers[indices] for split, indices in splits.items()}, classes


def _draw(count: int, settings: DataConfig, key: str) -> Splits:
    held_out = round(settings.test_fraction * count)
    if not 0 < held_out < count:
        raise UserError(
            f"{key}.test_fraction: {settings.test_fraction} of {count} images leaves a split "
            "empty; give more images or another fraction"
        )
    rng = np.random.default_rng(derive_seed(settings.split_seed, "split"))
    shuffled = rng.permutation(count)
    return {"train": shuffled[held_out:], "test": shuffled[:held_out]}

"""A user's own images: any tree of them, or an archive of one."""

import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from scorevae.config import DataConfig
from scorevae.data.arrays import SplitName
from scorevae.data.sources.pixels import SUFFIXES, BadImage, decode
from scorevae.data.sources.trees import image_files
from scorevae.data.sources.writer import CHUNK, DatasetWriter, Origin, array_writer
from scorevae.errors import UserError
from scorevae.randomness import derive_seed
from scorevae.runtime.progress import progress

MAX_BAD_SHARE = 0.01
SHOWN = 10  # warnings about single files, then a count

# Names of the held-out part, in order of preference, where a tree is split already.
HELD_OUT = ("test", "val", "valid", "validation")


class Tree(NamedTuple):
    """What was read: names in the order of the rows of ``pixels``, and how many were skipped."""

    names: list[str]
    pixels: np.ndarray
    skipped: int


class Plan(NamedTuple):
    """Which rows go where, and their labels; None where the tree has no classes."""

    rows: dict[SplitName, np.ndarray]
    labels: dict[SplitName, np.ndarray] | None
    classes: list[str]


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
    tree = _read(root, settings, writer)
    plan = arrange(tree.names, settings, writer.key)
    for split, rows in plan.rows.items():
        pieces = (tree.pixels[chunk] for chunk in _chunks(rows))
        writer.images(split, pieces)
        if plan.labels is not None:
            writer.labels(split, plan.labels[split])
    return Origin(
        source=f"image files under {root.name}",
        licence="the user's",
        details={"classes": plan.classes, "skipped": tree.skipped},
    )


def _read(root: Path, settings: DataConfig, writer: DatasetWriter) -> Tree:
    """Decode every file once, in the order of the tree, into a scratch array on disk."""
    names: list[str] = []
    bad: list[str] = []
    scratch = writer.folder / "scratch.npy"
    with (
        array_writer(scratch, np.uint8, writer.row_shape) as rows,
        progress("images", 0, None) as report,
    ):
        for file in image_files(root, writer.folder):
            try:
                rows.append(decode(file.read(), settings.image)[None])
                names.append(file.name)
            except BadImage as reason:
                bad.append(f"{root / file.name}: {reason}")
                if len(bad) <= SHOWN:
                    print(f"warning: {bad[-1]}; skipped", file=sys.stderr, flush=True)
            report(len(names))
    _check(root, len(names), bad, writer.key)
    pixels = np.load(scratch, mmap_mode="r")
    scratch.unlink()  # stays readable through the mapping, and is gone with it
    return Tree(names, pixels, len(bad))


def _check(root: Path, good: int, bad: list[str], key: str) -> None:
    if not good and not bad:
        endings = ", ".join(sorted(SUFFIXES))
        raise UserError(
            f"{root}: no image in it (files ending in {endings}); name another folder in "
            f"{key}.root"
        )
    if len(bad) > MAX_BAD_SHARE * (good + len(bad)):
        raise UserError(
            f"{root}: {len(bad)} of {good + len(bad)} images cannot be used, more than "
            f"{MAX_BAD_SHARE:.0%} (the first: {bad[0]}); repair or remove them, or ask for a "
            f"smaller {key}.image.size"
        )
    if bad:
        print(f"warning: {root}: {len(bad)} images skipped", file=sys.stderr, flush=True)


def arrange(names: list[str], settings: DataConfig, key: str) -> Plan:
    """Splits and classes from the names of the files; depends on nothing else."""
    order = np.argsort(np.array(names))
    paths = [PurePosixPath(names[row]).parts for row in order]
    depth = _shared(paths)
    paths = [path[depth:] for path in paths]
    heads = {path[0].lower() for path in paths if len(path) > 1}
    held_out = next((name for name in HELD_OUT if name in heads), None)
    if "train" in heads and held_out and all(len(path) > 1 for path in paths):
        where: dict[SplitName, str] = {"train": "train", "test": held_out}
        members = {
            split: np.flatnonzero([path[0].lower() == name for path in paths])
            for split, name in where.items()
        }
        paths = [path[1:] for path in paths]
    else:
        members = _draw(len(paths), settings, key)
    rng = np.random.default_rng(derive_seed(settings.split_seed, "order"))
    members = {split: rng.permutation(indices) for split, indices in members.items()}
    classes = sorted({path[0] for path in paths})
    rows = {split: order[indices] for split, indices in members.items()}
    if len(classes) < 2 or any(len(path) < 2 for path in paths):
        return Plan(rows, None, [])
    numbers = np.searchsorted(np.array(classes), [path[0] for path in paths])
    return Plan(rows, {split: numbers[i] for split, i in members.items()}, classes)


def _shared(paths: list[tuple[str, ...]]) -> int:
    """How many leading folders all paths have in common."""
    depth = 0
    while all(len(path) > depth + 1 for path in paths) and len({p[depth] for p in paths}) == 1:
        depth += 1
    return depth


def _draw(count: int, settings: DataConfig, key: str) -> dict[SplitName, np.ndarray]:
    held_out = round(settings.test_fraction * count)
    if not 0 < held_out < count:
        raise UserError(
            f"{key}.test_fraction: {settings.test_fraction} of {count} images leaves a split "
            "empty; give more images or another fraction"
        )
    rng = np.random.default_rng(derive_seed(settings.split_seed, "split"))
    shuffled = rng.permutation(count)
    return {"train": shuffled[held_out:], "test": shuffled[:held_out]}


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(rows), CHUNK):
        yield rows[first : first + CHUNK]

"""A user's own images: any tree of them, or an archive of one."""

import sys
from collections import Counter
from hashlib import blake2b
from pathlib import Path

import numpy as np

from scorevae.config import DataConfig
from scorevae.data.arrays import SplitName
from scorevae.data.sources.pixels import SUFFIXES, BadImage, decode
from scorevae.data.sources.splits import Place, arrange, class_numbers, without_repeats
from scorevae.data.sources.trees import image_files
from scorevae.data.sources.understood import Found, Understood, listed
from scorevae.data.sources.writer import CHUNK, SPLITS, DatasetWriter, Origin
from scorevae.errors import UserError
from scorevae.randomness import derive_seed
from scorevae.runtime.progress import progress

MAX_BAD_SHARE = 0.01
SHOWN = 10  # warnings about single files, then a count

Splits = dict[SplitName, np.ndarray]


def read_folder(settings: DataConfig, root: Path | None, writer: DatasetWriter) -> Origin:
    """Every image under ``root``, squared to the preset's size, in a random order.

    Folders for training and testing are the splits (:func:`scorevae.data.sources.splits.arrange`);
    else a share ``test_fraction``, drawn from ``split_seed`` over the sorted names, is held out.
    The first folder below is the class, if every file has one and there are at least two. No two
    images of the same pixels stand in both splits. The order within a split is random, so that
    any beginning of it is a fair sample. What was understood is printed, and kept in the details.

    Raises:
        UserError: no root, no images, or more than MAX_BAD_SHARE of them unusable; names that can
            be read in two ways; a split without images.
    """
    if root is None:
        raise UserError(
            f"{writer.key}.root: null, but the source folder needs it; set it to a folder or an "
            "archive of images"
        )
    found, pixels = _read(root, settings, writer)
    order = np.argsort(np.array(found.names))
    understood = understand(found.ordered(order), settings, writer.key)
    classes, numbers = class_numbers(understood.kept)
    for split, places in understood.splits.items():
        rows = order[places]
        chunks = (pixels[rows[i : i + CHUNK]] for i in range(0, len(rows), CHUNK))
        writer.images(split, chunks)
        if classes:
            writer.labels(split, np.array([numbers[place] for place in places]))
    for line in understood.lines():
        print(line, file=sys.stderr, flush=True)
    return Origin(
        source=f"image files under {root.name}", licence="the user's", details=understood.details()
    )


def understand(found: Found, settings: DataConfig, key: str) -> Understood:
    """Which of the images, in the order of their names, go where.

    Raises:
        UserError: names that can be read in two ways; a split without images.
    """
    arrangement = arrange(found.names, settings.split, key)
    kept, repeated = without_repeats(arrangement.places, found.digests)
    splits = _rows(kept, len(repeated), settings, key)
    return Understood(found, arrangement, kept, repeated, splits, class_numbers(kept)[0])


def _read(root: Path, settings: DataConfig, writer: DatasetWriter) -> tuple[Found, np.ndarray]:
    """Decode every file once, in the order of the tree; what was found, and the pixels."""
    found = Found(root, names=[], digests=[], bad=[], ignored=Counter())
    wanted = _some(root, settings.images, writer.folder)
    scratch = writer.folder / "scratch"
    with scratch.open("wb") as rows, progress("images", 0, None) as report:
        for file in image_files(root, writer.folder, found.ignored):
            if wanted is not None and file.name not in wanted:
                continue
            try:
                content = decode(file.read(), settings.image).tobytes()
            except BadImage as reason:
                found.bad.append(f"{root / file.name}: {reason}")
                if len(found.bad) <= SHOWN:
                    print(f"warning: {found.bad[-1]}; skipped", file=sys.stderr, flush=True)
            else:
                rows.write(content)
                found.names.append(file.name)
                found.digests.append(blake2b(content, digest_size=16).digest())
            report(len(found.names))
    _check(found, writer.key)
    shape = (len(found.names), *writer.row_shape)
    pixels = np.memmap(scratch, np.uint8, "r", shape=shape)
    scratch.unlink()  # stays readable through the mapping, and is gone with it
    return found, pixels


def _some(root: Path, most: int | None, scratch: Path) -> set[str] | None:
    """The names of so many files, evenly over all in their order: of every folder a share."""
    if most is None:
        return None
    names = sorted(file.name for file in image_files(root, scratch, Counter()))
    return {names[i] for i in np.linspace(0, len(names) - 1, min(most, len(names)), dtype=int)}


def _check(found: Found, key: str) -> None:
    root, bad = found.root, found.bad
    if not (count := len(found.names) + len(bad)):
        reason = f"no image in it (files ending in {', '.join(sorted(SUFFIXES))})"
        if found.ignored:
            reason += f", but {listed(found.ignored)}"
        raise UserError(f"{root}: {reason}; name another folder in {key}.root, or convert them")
    if len(bad) > MAX_BAD_SHARE * count:
        raise UserError(
            f"{root}: {len(bad)} of {count} images cannot be used, more than {MAX_BAD_SHARE:.0%} "
            f"(the first: {bad[0]}); repair or remove them, or ask for a smaller {key}.image.size"
        )
    if bad:
        print(f"warning: {root}: {len(bad)} images skipped", file=sys.stderr, flush=True)


def _rows(kept: dict[int, Place], repeated: int, settings: DataConfig, key: str) -> Splits:
    """The places of each split, in a random order."""
    places = np.array(sorted(kept))
    given = [kept[place].split for place in places]
    if None in given:
        splits = {s: places[rows] for s, rows in _draw(len(kept), repeated, settings, key).items()}
    else:
        splits = {name: places[[split == name for split in given]] for name in SPLITS}
    rng = np.random.default_rng(derive_seed(settings.split_seed, "order"))
    return {split: rng.permutation(rows) for split, rows in splits.items()}


def _draw(count: int, repeated: int, settings: DataConfig, key: str) -> Splits:
    held_out = round(settings.test_fraction * count)
    if not 0 < held_out < count:
        others = f" ({repeated} more have the same pixels as one of these)" if repeated else ""
        raise UserError(
            f"{key}.test_fraction: {settings.test_fraction} of {count} images{others} leaves a "
            "split empty; give more images or another fraction"
        )
    rng = np.random.default_rng(derive_seed(settings.split_seed, "split"))
    shuffled = rng.permutation(count)
    return {"train": shuffled[held_out:], "test": shuffled[:held_out]}

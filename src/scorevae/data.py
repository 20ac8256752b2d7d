"""Sources → stored arrays → tensors in [−1, 1].

A prepared data set is a folder with ``{train,test}_images.npy`` (uint8, N×H×W×C),
``{train,test}_labels.npy`` (int64, absent where the source has no labels) and ``meta.json``.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from scorevae.config import DataConfig, ImageConfig
from scorevae.errors import UserError
from scorevae.files import replacing, sha256
from scorevae.randomness import derive_seed

StoredImages = UInt8[np.ndarray, "_ height width channel"]
Labels = Int64[np.ndarray, " count"]
Images = Float[Tensor, "batch channel height width"]
SplitName = Literal["train", "test"]


class Split(NamedTuple):
    """One part of a data set; ``labels`` is None where the source has none."""

    images: StoredImages
    labels: Labels | None


class Source(NamedTuple):
    """A whole data set as its source gives it, with its origin and terms."""

    train: Split
    test: Split
    origin: str
    licence: str


def read_digits(settings: DataConfig) -> Source:
    """Scikit-learn's ``load_digits``: 1,797 handwritten digits, 8×8, grey values 0 to 16.

    Values are scaled to 0–255 and rounded (16 ↦ 255). The split is stratified by label and
    follows from ``split_seed`` alone.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    train, test = train_test_split(
        np.arange(len(labels)),
        test_size=settings.test_fraction,
        random_state=settings.split_seed,
        stratify=labels,
    )
    return Source(
        Split(images[train], labels[train]),
        Split(images[test], labels[test]),
        origin="scikit-learn load_digits (UCI Optical Recognition of Handwritten Digits)",
        licence="CC BY 4.0 (E. Alpaydin, C. Kaynak, 1998, doi:10.24432/C50P49)",
    )


SOURCES: dict[str, Callable[[DataConfig], Source]] = {"digits": read_digits}


def prepare(settings: DataConfig, folder: Path) -> None:
    """Read a source and write it as a prepared data set, whole or not at all.

    Raises:
        UserError: the source's images do not have the shape that ``data.image`` states.
    """
    source = SOURCES[settings.source](settings)
    with replacing(folder) as temporary:
        temporary.mkdir()
        for name, split in (("train", source.train), ("test", source.test)):
            check_shape(split.images, settings.image, f"data source {settings.source!r}")
            np.save(temporary / f"{name}_images.npy", split.images)
            if split.labels is not None:
                np.save(temporary / f"{name}_labels.npy", split.labels)
        meta = {
            "source": source.origin,
            "licence": source.licence,
            "shape": list(source.train.images.shape[1:]),
            "images": {"train": len(source.train.images), "test": len(source.test.images)},
            "sha256": {path.name: sha256(path) for path in sorted(temporary.glob("*.npy"))},
        }
        (temporary / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")


def load_split(folder: Path, split: SplitName, image: ImageConfig) -> Split:
    """Memory-map one part of a prepared data set.

    Raises:
        UserError: the folder is not a prepared data set, or its images have another shape.
    """
    path = folder / f"{split}_images.npy"
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as an array ({error}); run the stage download again"
        ) from None
    check_shape(images, image, str(path))
    labels_path = folder / f"{split}_labels.npy"
    labels = np.load(labels_path, allow_pickle=False) if labels_path.exists() else None
    return Split(images, labels)


def check_shape(images: np.ndarray, image: ImageConfig, origin: str) -> None:
    """Raise UserError unless images are uint8 of shape (N, size, size, channels)."""
    expected = (image.size, image.size, image.channels)
    if images.dtype != np.uint8 or images.shape[1:] != expected:
        raise UserError(
            f"{origin}: images are {images.dtype} of shape {images.shape[1:]}, but data.image "
            f"asks for uint8 of shape {expected}; correct data.image in the preset or the data"
        )


def to_tensor(images: StoredImages) -> Images:
    """Stored grey values 0–255 to floats in [−1, 1], channels first."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_unit_range(images: Images) -> Images:
    """[−1, 1] to [0, 1]; values outside stay outside."""
    return (images + 1) / 2


def batches(
    images: StoredImages, size: int, seed: int, *, share: tuple[int, int] = (0, 1)
) -> Callable[[int], Images]:
    """The images of each training step: endless, shuffled anew each epoch from (seed, epoch).

    ``share`` = (rank, processes) selects this process's rows of every batch. Nothing is
    remembered from step to step.

    Raises:
        UserError: a batch is larger than the data set, or smaller than the number of processes.
    """
    rank, processes = share
    if not processes <= size <= len(images):
        raise UserError(
            f"training.batch: got {size}; choose a number from {processes} (processes) to "
            f"{len(images)} (training images)"
        )
    per_epoch = len(images) // size

    def rows(step: int) -> Images:
        epoch, index = divmod(step, per_epoch)
        order = np.random.default_rng(derive_seed(seed, "epoch", epoch)).permutation(len(images))
        chosen = order[index * size : (index + 1) * size][rank::processes]
        return to_tensor(images[chosen])

    return rows

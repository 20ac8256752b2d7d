"""Stored arrays → tensors in [−1, 1], and the batches of each training step.

A prepared data set is a folder with ``{train,test}_images.npy`` (uint8, N×H×W×C),
``{train,test}_labels.npy`` (int64: a class (N,) or attributes of 0 and 1 (N, names); absent where
the source has no labels) and ``meta.json``. :mod:`scorevae.data.sources` writes it.
"""

import json
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scorevae.config import ImageConfig
from scorevae.errors import UserError
from scorevae.shapes import Images, Labels, StoredBatch, StoredImages

SplitName = Literal["train", "test"]


class Split(NamedTuple):
    """One part of a data set; ``labels`` is None where the source has none."""

    images: StoredImages
    labels: Labels | None


def load_split(
    folder: Path, split: SplitName, image: ImageConfig, limit: int | None = None
) -> Split:
    """Memory-map one part of a prepared data set, or its first ``limit`` images.

    Raises:
        UserError: the folder is not a prepared data set, or its images have another shape.
    """
    path = folder / f"{split}_images.npy"
    images = read_array(path, "download", mmap_mode="r")
    check_shape(images, image, str(path))
    labels_path = folder / f"{split}_labels.npy"
    labels = np.load(labels_path, allow_pickle=False) if labels_path.exists() else None
    return Split(images[:limit], labels if labels is None else labels[:limit])


def read_array(path: Path, stage: str, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """An array, or its memory map, that a stage wrote; raise UserError if it is none."""
    try:
        return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as an array ({error}); run the stage {stage} again"
        ) from None


def class_names(folder: Path) -> dict[int, str]:
    """What the labels of a prepared data set are called, for legends; empty where unknown."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # written by hand, or not at all
        return {}
    return dict(enumerate(meta.get("classes", [])))


def check_shape(images: np.ndarray, image: ImageConfig, origin: str) -> None:
    """Raise UserError unless images are uint8 of shape (N, size, size, channels)."""
    expected = (image.size, image.size, image.channels)
    if images.dtype != np.uint8 or images.shape[1:] != expected:
        raise UserError(
            f"{origin}: images are {images.dtype} of shape {images.shape[1:]}, but data.image "
            f"asks for uint8 of shape {expected}; correct data.image in the preset or the data"
        )


def to_tensor(images: StoredImages | StoredBatch) -> Images:
    """Stored grey values 0–255 to floats in [−1, 1], channels first."""
    tensor = images if isinstance(images, Tensor) else torch.from_numpy(np.array(images))
    return tensor.permute(0, 3, 1, 2).float() / 127.5 - 1


def to_unit_range(images: Images) -> Images:
    """[−1, 1] to [0, 1]; values outside stay outside."""
    return (images + 1) / 2

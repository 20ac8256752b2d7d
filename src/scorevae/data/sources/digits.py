"""The embedded data: scikit-learn's handwritten digits."""

import math
from pathlib import Path

import numpy as np

from scorevae.config import DataConfig
from scorevae.data.sources.writer import SPLITS, DatasetWriter, Origin
from scorevae.errors import UserError

CLASSES = 10


def read_digits(settings: DataConfig, root: Path | None, writer: DatasetWriter) -> Origin:
    """``load_digits``: 1,797 handwritten digits, 8×8, grey values 0 to 16.

    Values are scaled to 0–255 and rounded (16 ↦ 255). The split is stratified by label and
    follows from ``split_seed`` alone.

    Raises:
        UserError: there is a root, or a split would be too small to hold every digit.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if root is not None:
        raise UserError(
            f"{writer.key}.root: got {str(root)!r}, but digits come inside scikit-learn; set it "
            f"to null, or {writer.key}.source to folder"
        )
    values, labels = load_digits(return_X_y=True)
    images = np.round(values.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    share, seed, count = settings.test_fraction, settings.split_seed, len(labels)
    if not CLASSES <= math.ceil(share * count) <= count - CLASSES:  # scikit-learn rounds up
        low, high = math.ceil(1000 * CLASSES / count), 1000 * (count - CLASSES) // count
        raise UserError(
            f"{writer.key}.test_fraction: got {share}; both splits need all {CLASSES} digits of "
            f"the {count} images: set it from {low / 1000} to {high / 1000}"
        )
    parts = train_test_split(np.arange(count), test_size=share, random_state=seed, stratify=labels)
    for split, rows in zip(SPLITS, parts, strict=True):
        writer.images(split, [images[rows]])
        writer.labels(split, labels[rows])
    return Origin(
        source="scikit-learn load_digits (UCI Optical Recognition of Handwritten Digits)",
        licence="CC BY 4.0 (E. Alpaydin, C. Kaynak, 1998, doi:10.24432/C50P49)",
        details={"classes": list("0123456789")},
    )

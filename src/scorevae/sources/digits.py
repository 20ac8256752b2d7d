"""The embedded data: scikit-learn's handwritten digits."""

from pathlib import Path

import numpy as np

from scorevae.config import DataConfig
from scorevae.errors import UserError
from scorevae.sources.arrays import SPLITS, DatasetWriter
from scorevae.sources.origin import Origin


def read_digits(settings: DataConfig, root: Path | None, writer: DatasetWriter) -> Origin:
    """``load_digits``: 1,797 handwritten digits, 8×8, grey values 0 to 16.

    Values are scaled to 0–255 and rounded (16 ↦ 255). The split is stratified by label and
    follows from ``split_seed`` alone.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if root is not None:
        raise UserError(
            f"data.root: got {str(root)!r}, but digits come inside scikit-learn; set it to null, "
            "or data.source to folder"
        )
    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    parts = train_test_split(
        np.arange(len(labels)),
        test_size=settings.test_fraction,
        random_state=settings.split_seed,
        stratify=labels,
    )
    for split, rows in zip(SPLITS, parts, strict=True):
        writer.images(split, iter([images[rows]]))
        writer.labels(split, labels[rows])
    return Origin(
        source="scikit-learn load_digits (UCI Optical Recognition of Handwritten Digits)",
        licence="CC BY 4.0 (E. Alpaydin, C. Kaynak, 1998, doi:10.24432/C50P49)",
        details={"classes": [str(digit) for digit in range(10)]},
    )

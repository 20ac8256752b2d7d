"""Writing a prepared data set image by image, in memory that does not grow with it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy

from scorevae.config import ImageConfig
from scorevae.data.arrays import SplitName, check_shape

CHUNK = 1024  # rows in memory at a time

SPLITS: tuple[SplitName, SplitName] = ("train", "test")


class DatasetWriter:
    """The two splits of a data set, in the folder of :func:`scorevae.data.arrays.load_split`."""

    def __init__(
        self, folder: Path, image: ImageConfig, key: str, most: int | None = None
    ) -> None:
        """Begin a data set of at most so many images a split; None: all that there are.

        ``key`` is where params.yaml has its settings, for messages.
        """
        self.folder, self.image, self.key, self.most = folder, image, key, most
        self.counts: dict[SplitName, int] = {}

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of a stored image."""
        return self.image.size, self.image.size, self.image.channels

    def images(self, split: SplitName, chunks: Iterable[np.ndarray]) -> None:
        """Write the images of one split, uint8 of shape (n, height, width, channels) each.

        Their number is known at the end: until then the header states none, so that a file whose
        writer failed does not look whole. NumPy pads headers so that any number fits in.
        """
        count = 0

        def header() -> None:
            kind = npy.dtype_to_descr(np.dtype(np.uint8))
            shape = (count, *self.row_shape)
            content = {"descr": kind, "fortran_order": False, "shape": shape}
            npy.write_array_header_1_0(file, content)

        with (self.folder / f"{split}_images.npy").open("wb") as file:
            header()
            for whole in chunks:
                check_shape(whole, self.image, self.key)
                chunk = whole if self.most is None else whole[: self.most - count]
                file.write(np.ascontiguousarray(chunk).data)
                count += len(chunk)
                if count == self.most:
                    break
            file.seek(0)
            header()
        self.counts[split] = count

    def labels(self, split: SplitName, labels: np.ndarray) -> None:
        """Write the labels of one split: a class (n,), or attributes of 0 and 1 (n, names)."""
        np.save(self.folder / f"{split}_labels.npy", labels[: self.most].astype(np.int64))


class Origin(NamedTuple):
    """Source and terms in words, and whatever else a reader of the data wants to know."""

    source: str
    licence: str
    details: dict[str, Any]

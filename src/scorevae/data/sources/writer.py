"""Writing a prepared data set image by image, in memory that does not grow with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy

from scorevae.config import ImageConfig
from scorevae.data.arrays import SplitName, check_shape

CHUNK = 1024  # rows in memory at a time

SPLITS: tuple[SplitName, SplitName] = ("train", "test")


class ArrayWriter:
    """An ``.npy`` file that grows row by row; whole once closed."""

    def __init__(self, file: BinaryIO, dtype: np.dtype[Any], row_shape: tuple[int, ...]) -> None:
        self._file, self._dtype, self._row_shape = file, dtype, row_shape
        self.count = 0
        self._header()
        self._start = file.tell()

    def append(self, rows: np.ndarray) -> None:
        """Write rows of the file's type and row shape."""
        assert rows.dtype == self._dtype, (rows.dtype, self._dtype)
        assert rows.shape[1:] == self._row_shape, (rows.shape, self._row_shape)
        self._file.write(np.ascontiguousarray(rows).data)
        self.count += len(rows)

    def finish(self) -> None:
        """State the final number of rows in the header, which numpy pads so that it fits."""
        self._file.seek(0)
        self._header()
        assert self._file.tell() == self._start, "the header outgrew its padding"

    def _header(self) -> None:
        description = npy.dtype_to_descr(self._dtype)
        shape = (self.count, *self._row_shape)
        header = {"descr": description, "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(self._file, header)


@contextmanager
def array_writer(
    path: Path, dtype: type[np.generic], row_shape: tuple[int, ...]
) -> Iterator[ArrayWriter]:
    """Open an array file for appending; after a failure the file stays unfinished."""
    with path.open("wb") as file:
        writer = ArrayWriter(file, np.dtype(dtype), row_shape)
        yield writer
        writer.finish()


class DatasetWriter:
    """The two splits of a data set, in the folder of :func:`scorevae.data.arrays.load_split`."""

    def __init__(self, folder: Path, image: ImageConfig, key: str) -> None:
        """Begin a data set; ``key`` is where params.yaml has its settings, for messages."""
        self.folder, self.image, self.key = folder, image, key
        self.counts: dict[SplitName, int] = {}

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of a stored image."""
        return self.image.size, self.image.size, self.image.channels

    def images(self, split: SplitName, chunks: Iterator[np.ndarray]) -> None:
        """Write the images of one split, uint8 of shape (n, height, width, channels) each."""
        path = self.folder / f"{split}_images.npy"
        with array_writer(path, np.uint8, self.row_shape) as writer:
            for chunk in chunks:
                check_shape(chunk, self.image, self.key)
                writer.append(chunk)
        self.counts[split] = writer.count

    def labels(self, split: SplitName, labels: np.ndarray) -> None:
        """Write the labels of one split: a class (n,), or attributes of 0 and 1 (n, names)."""
        path = self.folder / f"{split}_labels.npy"
        with array_writer(path, np.int64, labels.shape[1:]) as writer:
            for first in range(0, len(labels), CHUNK):
                writer.append(labels[first : first + CHUNK].astype(np.int64))


class Origin(NamedTuple):
    """Source and terms in words, and whatever else a reader of the data wants to know."""

    source: str
    licence: str
    details: dict[str, Any]

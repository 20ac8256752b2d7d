"""The batches of each training step: a function of (seed, step), whatever way they travel."""

import os
import signal
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from scorevae.data.arrays import to_tensor
from scorevae.errors import UserError
from scorevae.randomness import derive_seed
from scorevae.shapes import Images, StoredBatch, StoredImages

Batches = Callable[[int], Images]


@dataclass(frozen=True)
class Draw:
    """Which images each step sees, and which of them are mirrored: a function of (seed, step)."""

    count: int
    size: int  # of a batch, over all processes
    seed: int
    own: slice  # of a batch: the rows of this process

    def rows(self, step: int) -> np.ndarray:
        """Rows of the array, without replacement within an epoch."""
        epoch, index = divmod(step, self.count // self.size)
        order = _permutation(derive_seed(self.seed, "epoch", epoch), self.count)
        return order[index * self.size : (index + 1) * self.size][self.own]

    def mirrored(self, step: int) -> np.ndarray:
        """Which of these rows are mirrored where mirroring is on: each with probability ½."""
        rng = np.random.default_rng(derive_seed(self.seed, "flip", step))
        return (rng.random(self.size) < 0.5)[self.own]


@lru_cache(maxsize=2)
def _permutation(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(count)


def batches(
    images: StoredImages,  # usually a memory map
    size: int,
    seed: int,
    *,
    flip: bool,
    device: torch.device | str = "cpu",
    share: tuple[int, int] = (0, 1),
    workers: int | None = None,
) -> Batches:
    """The images of each training step: endless, shuffled anew each epoch from (seed, epoch).

    Nothing is remembered from step to step, and the way the images travel changes no number.
    Arrays that fit into half of a GPU's free memory are copied there once, as uint8. Larger ones
    are read ahead by ``workers`` (None: :func:`default_workers`). On a CPU the memory map is read
    directly, which costs next to nothing beside a step. ``size`` counts the images of a step over
    all processes, of which ``share`` = (rank, processes) gets its own; ``flip`` mirrors each left
    to right with probability one half.

    Raises:
        UserError: a batch is larger than the data set, or smaller than the number of processes.
    """
    rank, processes = share
    if not processes <= size <= len(images):
        raise UserError(
            f"training.batch: got {size}; choose a number from {processes} (processes) to "
            f"{len(images)} (training images)"
        )
    draw = Draw(len(images), size, seed, slice(rank, None, processes))
    device = torch.device(device)
    workers = default_workers(device) if workers is None else workers
    if device.type == "cuda" and images.nbytes < torch.cuda.mem_get_info(device)[0] // 2:
        read = _resident(images, draw, device)
    elif workers > 0:
        read = _ReadAhead(images, draw, workers)
    else:
        read = _Stored(images, draw).__getitem__

    def batch(step: int) -> Images:
        x = to_tensor(_sent(read(step), device))
        if not flip:
            return x
        mirrored = _sent(torch.from_numpy(draw.mirrored(step)), device)
        return torch.where(mirrored[:, None, None, None], x.flip(3), x)

    return batch


def default_workers(device: torch.device) -> int:
    """``SCOREVAE_WORKERS``, else four for a GPU (never more than cores), none for a CPU.

    Hardware facts are no parameters: they must not make DVC train again.
    """
    chosen = os.environ.get("SCOREVAE_WORKERS")
    if chosen is None:
        return min(4, os.cpu_count() or 1) if device.type == "cuda" else 0
    if not (chosen.isascii() and chosen.isdigit()):
        raise UserError(f"SCOREVAE_WORKERS: got {chosen!r}; give a whole number from 0")
    return int(chosen)


def _resident(images: StoredImages, draw: Draw, device: torch.device) -> Callable[[int], Tensor]:
    """Batches out of one copy of the whole array on the device."""
    array = torch.from_numpy(np.array(images)).to(device)
    return lambda step: array[_sent(torch.from_numpy(draw.rows(step)), device)]


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device, for whose copy nobody waits: from pinned memory to a GPU."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # which returns what is pinned as it is
    return tensor.to(device, non_blocking=True)


class _Stored(Dataset[StoredBatch]):
    """Batches by step out of the stored array; a worker maps the file anew."""

    def __init__(self, images: StoredImages, draw: Draw) -> None:
        self._images, self._draw = images, draw

    def __getitem__(self, step: int) -> StoredBatch:
        return torch.from_numpy(np.asarray(self._images[self._draw.rows(step)]))

    def __getstate__(self) -> dict[str, Any]:
        """Send a memory map (of a file's beginning) to another process by its file's name."""
        images: StoredImages | Path = self._images
        if isinstance(images, np.memmap) and images.filename is not None:
            images = Path(images.filename)
        return {"_images": images, "_draw": self._draw}

    def __setstate__(self, state: dict[str, Any]) -> None:
        images = state["_images"]
        if isinstance(images, Path):
            images = np.load(images, mmap_mode="r", allow_pickle=False)
        self._images, self._draw = images, state["_draw"]


class _ReadAhead:
    """Batches from worker processes, in the order of the steps."""

    def __init__(self, images: StoredImages, draw: Draw, workers: int) -> None:
        self._stored, self._workers = _Stored(images, draw), workers
        self._next: int | None = None
        self._running: list[Iterator[StoredBatch]] = []
        # Ends the workers before multiprocessing would wait for them, who ignore its SIGTERM.
        weakref.finalize(self, self._running.clear)

    def __call__(self, step: int) -> StoredBatch:
        if step != self._next:  # the first call, or a jump: training goes on from a saved state
            self._running[:] = [self._from(step)]
        self._next = step + 1
        return next(self._running[0])

    def _from(self, step: int) -> Iterator[StoredBatch]:
        loader = DataLoader(
            self._stored,
            batch_size=None,
            sampler=range(step, 2**62),
            num_workers=self._workers,
            prefetch_factor=4,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_ignore_signals,
            generator=torch.Generator(),  # else it would draw from the one that seeds dropout
        )
        return iter(loader)


def _ignore_signals(worker: int) -> None:
    """Leave SIGINT, SIGTERM and SIGHUP to the parent, which saves its state and ends its workers.

    Ctrl-C and job schedulers signal every process of a run; a worker that died of it would take
    the parent with it, unsaved.
    """
    del worker
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

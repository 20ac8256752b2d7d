"""How the networks of a system are evaluated: precision, compiled or not, as many as fit."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from scorevae.config import Precision
from scorevae.runtime.arithmetic import arithmetic, chosen_precision

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def computing(precision: Precision | None, device: torch.device) -> Iterator[None]:
    """Networks are called in that precision, or the device's next; None is as torch is set.

    Under bf16, autocast's, the encoder's head, the sums of scores and the solver stay in float32:
    they are no products of matrices, or said so themselves.
    """
    if precision is None:
        yield
        return
    precision = chosen_precision(precision, device)
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    with arithmetic(precision, device), bf16:
        yield


def in_precision(
    function: Callable[P, R], precision: Precision | None, device: torch.device
) -> Callable[P, R]:
    """The function, whose networks are called so."""

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with computing(precision, device):
            return function(*args, **kwargs)

    return function if precision is None else call


class Fitting:
    """Evaluates as many images at once as the GPU holds.

    Where memory runs out in the middle the number is halved, once and for all, and said. Which
    images are drawn together, and their noise, is not touched: results are the same to rounding.
    """

    def __init__(self, key: str) -> None:
        self.key = key  # of the number of images that does not fit
        self._most: int | None = None

    def __call__(self, evaluate: Callable[[slice], Tensor], count: int) -> Tensor:
        """``evaluate`` of all rows, some at a time.

        Raises:
            torch.OutOfMemoryError: not even one image fits.
        """
        while True:
            size = min(count, self._most or count)
            try:
                parts = [evaluate(slice(i, i + size)) for i in range(0, count, max(1, size))]
            except torch.OutOfMemoryError:
                if size <= 1:
                    raise
                self._most = size // 2
            else:
                return parts[0] if len(parts) == 1 else torch.cat(parts)
            # Outside of the handler, whose traceback holds the tensors that did not fit.
            torch.cuda.empty_cache()
            print(f"{self.key}: {size} images do not fit; {self._most} at a time now", flush=True)

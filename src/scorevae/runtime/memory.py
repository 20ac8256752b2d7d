"""Out of memory, said in terms of the parameters that use it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from scorevae.errors import UserError, in_a_line


@contextmanager
def explaining_memory(remedy: str | Callable[[], str]) -> Iterator[None]:
    """Turn a failed allocation, on a GPU or on the CPU, into a message that ends with the remedy.

    A remedy that depends on how far the block came is called once memory has run out.

    Raises:
        UserError: memory ran out in the block.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not ran_out(error):
            raise
        reason = in_a_line(error) or "no memory left"
        advice = remedy if isinstance(remedy, str) else remedy()
        raise UserError(f"out of memory ({reason}); {advice}") from None


def ran_out(error: Exception) -> bool:
    """Whether an error is a failed allocation, on a GPU or on the CPU."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or "can't allocate memory" in str(error)  # says torch's CPU allocator

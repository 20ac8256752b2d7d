"""memory: running out is said in terms of the parameters."""

import pytest
import torch

from scorevae.errors import UserError
from scorevae.runtime.memory import explaining_memory

CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB"
CPU = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(CUDA), RuntimeError(CPU), MemoryError()])
def test_every_kind_names_the_remedy(error: Exception) -> None:
    """Catches an allocator whose exception is not recognised."""
    with pytest.raises(UserError, match=r"out of memory \(.+\); lower the batch"):  # noqa: SIM117
        with explaining_memory("lower the batch"):
            raise error


def test_other_errors_pass() -> None:
    """Catches a fault of another kind that is called a lack of memory."""
    with pytest.raises(RuntimeError, match="shape"), explaining_memory("lower the batch"):
        raise RuntimeError("shape mismatch")

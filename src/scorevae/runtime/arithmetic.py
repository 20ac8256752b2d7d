"""How a GPU rounds what convolutions read, which torch keeps as one setting for everything."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from scorevae.config import Precision
from scorevae.errors import UserError


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """Let convolutions on CUDA round to TF32's ten bits within the block, or not.

    PyTorch does unless it is told, and the code published with the paper did. Products of matrices
    are never so rounded: z − μ is divided by standard deviations below 2^−10. On a CPU tf32 is
    float32. (bfloat16 is autocast's, where the networks are called.)

    Raises:
        UserError: bf16 on a GPU that does not have it.
    """
    if device.type == "cuda" and precision == "bf16" and not has_bfloat16():
        raise UserError(
            "precision: got bf16, which this GPU does not have; choose tf32 or float32"
        )
    settings = torch.backends.cudnn
    before, settings.allow_tf32 = settings.allow_tf32, precision == "tf32"
    try:
        yield
    finally:
        settings.allow_tf32 = before


def has_bfloat16() -> bool:
    """Whether the GPU computes in bfloat16, and does not only imitate it."""
    return torch.cuda.is_bf16_supported(including_emulation=False)

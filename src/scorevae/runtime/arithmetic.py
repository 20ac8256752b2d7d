"""In which precision networks are computed: what is asked for, or what the device has of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

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


def chosen_precision(precision: Precision, device: torch.device) -> Precision:
    """What is asked for; on a CPU that would imitate bf16, float32, said once.

    An AMD EPYC with AVX2 took 8 to 25 times as long for a step of training in bf16 as in float32.
    """
    if precision != "bf16" or device.type != "cpu" or cpu_has_bfloat16():
        return precision
    _say_imitated()
    return "float32"


def cpu_has_bfloat16() -> bool:
    """Whether the CPU has instructions for it: AVX-512 BF16 or AMX, on ARM those of ARMv8.6."""
    known = torch.cpu.get_capabilities()
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@cache
def _say_imitated() -> None:
    print("precision: bf16 is computed in float32: this CPU has no bfloat16", flush=True)

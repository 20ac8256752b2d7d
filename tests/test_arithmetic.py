"""Precision: what a GPU rounds, said once for everything, and restored."""

import pytest
import torch

from scorevae.errors import UserError
from scorevae.runtime import arithmetic as module
from scorevae.runtime.arithmetic import arithmetic


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_convolutions_round_as_told(
    monkeypatch: pytest.MonkeyPatch, precision: str, before: bool
) -> None:
    """Catches float32 that PyTorch rounds to TF32, a choice that stays, and products rounded."""
    monkeypatch.setattr(module, "has_bfloat16", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
    products = torch.get_float32_matmul_precision()
    with arithmetic(precision, torch.device("cuda")):
        assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")
        assert torch.get_float32_matmul_precision() == products == "highest"
    assert torch.backends.cudnn.allow_tf32 == before


def test_gpu_without_bfloat16_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a training that imitates bfloat16, slower than float32."""
    monkeypatch.setattr(module, "has_bfloat16", lambda: False)
    with (
        pytest.raises(UserError, match="precision: got bf16, which this GPU does not have"),
        arithmetic("bf16", torch.device("cuda")),
    ):
        raise AssertionError
    with arithmetic("tf32", torch.device("cuda")), arithmetic("bf16", torch.device("cpu")):
        pass

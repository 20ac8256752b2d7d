"""Precision: what a GPU rounds, said once for everything, and restored."""

import pytest
import torch

from scorevae.errors import UserError
from scorevae.runtime import arithmetic as module
from scorevae.runtime.arithmetic import arithmetic, chosen_precision


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


@pytest.mark.parametrize("has", [True, False])
def test_a_cpu_without_bfloat16_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, has: bool
) -> None:
    """Catches a CPU that imitates bfloat16, a GPU's or tf32's choice changed, and many lines."""
    monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: has)
    module._say_imitated.cache_clear()
    cpu = torch.device("cpu")
    found = [chosen_precision("bf16", cpu) for _ in range(2)]
    assert found == ["bf16" if has else "float32"] * 2
    assert capsys.readouterr().out.count("float32") == (0 if has else 1)
    assert chosen_precision("bf16", torch.device("cuda")) == "bf16"
    assert chosen_precision("tf32", cpu) == "tf32"


@pytest.mark.parametrize(
    ("known", "has"),
    [({"avx2": True, "avx512_bf16": False}, False), ({"amx_bf16": True}, True), ({}, False)],
)
def test_what_the_cpu_has_is_asked_of_it(
    monkeypatch: pytest.MonkeyPatch, known: dict, has: bool
) -> None:
    """Catches a name that torch does not have, and AVX2 taken for it."""
    assert module.cpu_has_bfloat16() in (True, False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    assert module.cpu_has_bfloat16() == has

"""Evaluating networks: precision, and as many images at once as fit."""

import pytest
import torch
from tiny import tiny_config, write_encoder, write_prior
from torch import Tensor

from scorevae.autoencoders.fast import Fitting
from scorevae.autoencoders.score_vae import ScoreVAE
from scorevae.autoencoders.table import SYSTEMS


def holding(most: int, seen: list[int]) -> object:
    """Doubles rows, of which so many fit."""

    def evaluate(rows: slice) -> Tensor:
        x = torch.arange(7.0)[rows]
        seen.append(len(x))
        if len(x) > most:
            raise torch.OutOfMemoryError("full")
        return 2 * x

    return evaluate


def test_batch_is_halved_until_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches rows lost or in another order, a size forgotten at the next call, and silence."""
    seen: list[int] = []
    fitting = Fitting("batch")
    for _ in range(2):
        assert torch.equal(fitting(holding(2, seen), 7), 2 * torch.arange(7.0))
    assert seen == [7, 3, 1, 1, 1, 1, 1, 1, 1] + 7 * [1]
    first, second = capsys.readouterr().out.splitlines()
    assert first == "batch: 7 images do not fit; 3 at a time now"
    assert second == "batch: 3 images do not fit; 1 at a time now"


def test_one_image_that_does_not_fit_is_an_error() -> None:
    """Catches an endless loop."""
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        Fitting("batch")(holding(0, []), 7)


@pytest.fixture
def model(tmp_path) -> ScoreVAE:
    """Of random weights."""
    write_prior(tmp_path / "prior.safetensors", tiny_config())
    write_encoder(tmp_path / "encoder.safetensors", tiny_config())
    return ScoreVAE.load(tmp_path, device="cpu", sampling=tiny_config().sampling)


def test_float32_is_what_it_was(model: ScoreVAE) -> None:
    """Catches a precision that changes a CPU's bits, and a batch in parts that changes images."""
    z = torch.randn(5, model.latent, generator=torch.Generator().manual_seed(0))
    expected = model.decode(z)
    assert torch.equal(model.with_precision("float32").decode(z), expected)
    assert torch.equal(model.with_precision("tf32").decode(z), expected)
    model._fitting._most = 2
    # float32 products of matrices of another size: some roundings, of an image about 1
    torch.testing.assert_close(model.decode(z), expected, rtol=1e-4, atol=1e-4)


def test_bf16_rounds_networks_and_nothing_else(
    model: ScoreVAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a precision without effect, z in bfloat16, or a score that is rounded after all."""
    monkeypatch.setattr("scorevae.runtime.arithmetic.cpu_has_bfloat16", lambda: True)
    rounded = model.with_precision("bf16")
    x, t = torch.rand(4, 1, 8, 8), torch.tensor(0.5, dtype=torch.float64)
    exact, near = model.encode(x), rounded.encode(x)
    assert near.mean.dtype == near.log_variance.dtype == torch.float32
    assert not torch.equal(near.mean, exact.mean)
    expected, score = (m.score(exact.mean, guidance=1.0)(x, t) for m in (model, rounded))
    assert score.dtype == torch.float32
    prior = rounded.score(exact.mean, guidance=0.0)(x, t)
    assert not torch.equal(prior, prior.bfloat16().float())  # divided by σ after the network
    # 2^-9 at each of some ten layers
    assert 1e-4 < ((score - expected).norm() / expected.norm()).item() < 0.1
    assert rounded.sample_prior(2).dtype == torch.float32


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_run_decodes_as_it_says(tmp_path, precision: str) -> None:
    """Catches reconstruct.precision that no system reads."""
    config = tiny_config(**{"reconstruct.precision": precision})
    write_prior(tmp_path / "prior.safetensors", config)
    write_encoder(tmp_path / "encoder.safetensors", config)
    assert SYSTEMS["scorevae"].load(tmp_path, config).precision == precision

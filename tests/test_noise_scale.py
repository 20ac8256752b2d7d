"""τ: x_1 and the noise of every step scaled. For linear scores all of it is closed."""

import pytest
import torch
from oracles import five_errors, normal, seeded, standardised, vector
from torch import Tensor

from scorevae.config import SamplingConfig
from scorevae.sampling import SAMPLERS, generate
from scorevae.sde import SDE

AFFINE = [name for name in SAMPLERS if name != "predictor_corrector"]
LATENT = vector(1.2, -1.0)


def drawn(sde: SDE, sampler: str, scale: float, count: int, steps: int) -> Tensor:
    """Draws of p(x_0|z) for one z, from the same noise whatever τ is."""
    score = standardised(sde).posterior.score(LATENT.expand(count, 2))
    settings = SamplingConfig(
        sampler=sampler,
        grid="log_snr",
        steps=steps,
        corrector_snr=0.1,
        noise_scale=scale,
        clip=False,
    )
    noise = seeded(1)

    def draw(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=noise, dtype=x.dtype)

    return generate(score, sde, sde.terminal_std * normal((count, 2), 0), settings, noise=draw)


@pytest.mark.parametrize("sampler", AFFINE)
def test_deviations_from_the_mean_are_multiplied(sde: SDE, sampler: str) -> None:
    """x_1 or one step's noise left out of the scaling, or scaled twice.

    Every step is affine, so each draw is x(τ) = x(0) + τ (x(1) − x(0)) to rounding, whatever the
    discretisation: the mean over draws stays and their covariance is multiplied by τ².
    """
    none, half, full = (drawn(sde, sampler, scale, 5, 8) for scale in (0.0, 0.5, 1.0))
    assert torch.allclose(half, none + 0.5 * (full - none), rtol=0, atol=1e-9)
    assert torch.equal(none, none[:1].expand_as(none))  # one deterministic image
    assert (full - none).abs().min() > 1e-3


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_covariance_is_multiplied_by_the_square(sde: SDE, sampler: str) -> None:
    """Mean and variance against those of the same sampler at τ = 1, by Monte Carlo.

    This holds for the corrector, too: Langevin dynamics whose noise is scaled by τ has the
    covariance τ² Σ. Its step is sized by noise that is not scaled, so that the discretisation is
    the same; the size itself is a mean over the batch and differs by its own noise.
    """
    scale = 0.6
    full, less = (drawn(sde, sampler, tau, 8_000, 40) for tau in (1.0, scale))
    assert torch.all((full.mean(0) - less.mean(0)).abs() <= five_errors(full))
    squares = [(x - x.mean(0)) ** 2 for x in (full, less)]
    allowed = five_errors(scale**2 * squares[0]) + five_errors(squares[1])
    assert torch.all((scale**2 * squares[0].mean(0) - squares[1].mean(0)).abs() <= allowed)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_is_the_model(sde: SDE, sampler: str) -> None:
    """A default that changes draws: τ = 1 multiplies by one, to the last bit."""
    twice = [drawn(sde, sampler, 1.0, 3, 5) for _ in range(2)]
    assert torch.equal(*twice)


@pytest.mark.parametrize("sampler", AFFINE)
def test_zero_approaches_the_posterior_mean(sde: SDE, sampler: str) -> None:
    """τ = 0 ends at E[x_0|z] up to the start, whose mean is 0 and not α_1 E[x_0|z], and the steps.

    Both errors fall at least by half as the steps double, to a start error of α_1 |mean|.
    """
    mean, variance = standardised(sde).data_given_latent(LATENT[None])
    alpha, sigma = sde.marginal(torch.tensor(1.0, dtype=torch.float64))
    start = alpha * mean.abs() * torch.sqrt(variance / (alpha**2 * variance + sigma**2))
    errors = [(drawn(sde, sampler, 0.0, 1, steps) - mean).abs() for steps in (50, 100)]
    assert torch.all(errors[1] <= 0.6 * errors[0] + 1.1 * start + 1e-12)

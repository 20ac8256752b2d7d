"""Forward processes: drift, diffusion, marginal and log-SNR must belong to one another."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import five_errors, normal, scalar, vector

from scorevae.config import SDEConfig
from scorevae.sde import (
    SDE,
    VESDE,
    VPSDE,
    LinearRate,
    SubVPSDE,
    build_sde,
    log_snr_range,
    over,
    perturb,
)

TIMES = vector(1e-3, 0.01, 0.1, 0.3, 0.5, 0.8, 1.0)
# Rounding of a handful of operations; formulas differ from one another by far more.
EXACT = {"rtol": 1e-11, "atol": 1e-13}


def derivative(function, t: torch.Tensor) -> torch.Tensor:
    t = t.clone().requires_grad_()
    (slope,) = torch.autograd.grad(function(t).sum(), t, allow_unused=True)
    return torch.zeros_like(t) if slope is None else slope


def test_drift_is_the_derivative_of_log_alpha(sde: SDE) -> None:
    """A drift that belongs to another α, such as −β in place of −½ β."""
    slope = derivative(lambda t: sde.marginal(t).alpha.log() + 0 * t, TIMES)
    torch.testing.assert_close(sde.drift_rate(TIMES), slope, **EXACT)


def test_variance_obeys_its_differential_equation(sde: SDE) -> None:
    """dσ²/dt = 2 a σ² + g² fails when g, a or σ is of another process.

    It holds for all three. They differ in where it starts: VP and sub-VP from σ_0 = 0, VE, in
    Song's convention p(x_t|x_0) = N(x_0, σ_t²), from σ_0 = σ_min.
    """
    slope = derivative(lambda t: sde.marginal(t).sigma ** 2, TIMES)
    sigma = sde.marginal(TIMES).sigma
    expected = 2 * sde.drift_rate(TIMES) * sigma**2 + sde.diffusion(TIMES) ** 2
    torch.testing.assert_close(slope, expected, **EXACT)


def test_log_snr_is_that_of_the_marginal(sde: SDE) -> None:
    """A log-SNR without the square, or of the other process.

    And g²/σ² = −dλ/dt, which makes uniform λ the importance sampling of that weighting.
    """
    alpha, sigma = sde.marginal(TIMES)
    torch.testing.assert_close(sde.log_snr(TIMES), torch.log(alpha**2 / sigma**2), **EXACT)
    weight = (sde.diffusion(TIMES) / sigma) ** 2
    torch.testing.assert_close(weight, -derivative(sde.log_snr, TIMES), **EXACT)


def test_log_snr_falls_and_its_inverse_returns_the_time(sde: SDE) -> None:
    """A wrong root of the quadratic, or softplus taken for its inverse.

    And the ends exchanged, or t = 0, where λ is infinite, in place of t_min.
    """
    t = torch.linspace(sde.t_min, 1, 501, dtype=torch.float64)
    log_snr = sde.log_snr(t)
    assert torch.all(log_snr.diff() < 0)
    # |dt/dλ| = σ²/g² < 1 on [t_min, 1] and |λ| < 20: rounding of λ moves t by less than 1e-14.
    torch.testing.assert_close(sde.time_of_log_snr(log_snr), t, rtol=0, atol=1e-13)
    assert log_snr_range(sde) == (log_snr[0].item(), log_snr[-1].item())


def test_constant_rate_has_an_inverse() -> None:
    """β_max = β_min makes the quadratic linear: the textbook root divides by zero."""
    beta = LinearRate(2.0, 2.0)
    torch.testing.assert_close(beta.time_of_integral(beta.integral(TIMES)), TIMES, **EXACT)


def test_sigma_and_log_snr_are_precise_in_float32(sde: SDE) -> None:
    """1 − exp is 2.4 % wrong at t = 1e-5, where training samples, and its logarithm by 0.05."""
    t = torch.tensor(1e-5)
    single, double = sde.marginal(t).sigma, sde.marginal(t.double()).sigma
    # Some five roundings of 6e-8 each.
    torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=0)
    single, double = sde.log_snr(t).double(), sde.log_snr(t.double())
    # λ is about 28 at most, in float32 known to 1e-6 absolutely; a few roundings.
    torch.testing.assert_close(single, double, rtol=1e-6, atol=0)


def test_clean_at_zero_and_noise_at_one(sde: SDE) -> None:
    """A process run the wrong way round, or whose end is not its terminal distribution."""
    start, end = sde.marginal(scalar(0.0)), sde.marginal(scalar(1.0))
    assert start.alpha == 1
    sigma_0 = sde.sigma_min if isinstance(sde, VESDE) else 0.0
    assert start.sigma == pytest.approx(sigma_0, abs=1e-300)
    # exp(−B(1)) = exp(−10.05) = 4.3e-5 is what VP and sub-VP still lack in variance at most.
    assert end.sigma.item() == pytest.approx(sde.terminal_std, rel=4.4e-5)
    if not isinstance(sde, VESDE):
        assert end.alpha.item() == pytest.approx(math.exp(-0.5 * 10.05), rel=1e-12)


def test_perturbed_images_have_the_marginals_moments(sde: SDE) -> None:
    """α and σ exchanged, σ² in place of σ, or noise shared over the batch."""
    n = 100_000
    x_0 = vector(1.5, -0.5).expand(n, 2)
    for t in (scalar(0.05), scalar(0.4), scalar(1.0)):
        x_t = perturb(sde, x_0, t, normal((n, 2), 0))
        alpha, sigma = sde.marginal(t)
        squared = (x_t - alpha * x_0) ** 2
        assert torch.all((x_t.mean(0) - alpha * x_0[0]).abs() <= five_errors(x_t))
        assert torch.all((squared.mean(0) - sigma**2).abs() <= five_errors(squared))


def test_scalar_and_batched_times_agree(sde: SDE) -> None:
    """Times broadcast along the wrong axis: images are 5 x 5 so that it would go unnoticed."""
    x_0, noise = normal((5, 5, 5), 0), normal((5, 5, 5), 1)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    batched = perturb(sde, x_0, t, noise)
    single = [perturb(sde, x_0[i : i + 1], t[i], noise[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(batched, torch.cat(single), **EXACT)
    for method in (sde.drift_rate, sde.diffusion, sde.log_snr, sde.time_of_log_snr):
        assert method(t).shape == (5,)
        torch.testing.assert_close(method(t), torch.stack([method(s) for s in t]), **EXACT)
    for part, single in zip(sde.marginal(t), sde.marginal(t[0]), strict=True):
        assert part.shape == (5,)
        assert single.shape == ()


def test_over_gives_times_the_axes_of_the_image() -> None:
    """A wrong number of axes for flat data, or for images."""
    assert over(torch.zeros(()), torch.zeros(3, 1, 2, 2)).shape == ()
    assert over(torch.zeros(3), torch.zeros(3, 7)).shape == (3, 1)
    assert over(torch.zeros(3), torch.zeros(3, 1, 2, 2)).shape == (3, 1, 1, 1)


def transition(sde: SDE, s: float, t: float) -> tuple[float, float]:
    """Factor and variance of p(x_t|x_s), from drift and diffusion alone by quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(60)

    def integral(function, low: float, high: float) -> float:
        points = vector(*(0.5 * (high - low) * nodes + 0.5 * (high + low)))
        return 0.5 * (high - low) * (vector(*weights) * function(points)).sum().item()

    def decayed(points: torch.Tensor) -> torch.Tensor:
        rest = vector(*[integral(sde.drift_rate, u.item(), t) for u in points])
        return torch.exp(2 * rest) * sde.diffusion(points) ** 2

    return math.exp(integral(sde.drift_rate, s, t)), integral(decayed, s, t)


def test_transitions_compose_to_the_marginals(sde: SDE) -> None:
    """a → b → c must be a → c, and p(x_c) what drift and diffusion make of p(x_a)."""
    a, b, c = 0.1, 0.4, 0.7
    factor_ab, variance_ab = transition(sde, a, b)
    factor_bc, variance_bc = transition(sde, b, c)
    factor, variance = transition(sde, a, c)
    assert factor_ab * factor_bc == pytest.approx(factor, rel=1e-11)
    assert factor_bc**2 * variance_ab + variance_bc == pytest.approx(variance, rel=1e-11)
    (alpha_a, sigma_a), (alpha_c, sigma_c) = sde.marginal(scalar(a)), sde.marginal(scalar(c))
    assert (factor * alpha_a).item() == pytest.approx(alpha_c.item(), rel=1e-11)
    variance_c = factor**2 * sigma_a**2 + variance
    assert variance_c.item() == pytest.approx(sigma_c.item() ** 2, rel=1e-11)


def test_settings_build_the_process_they_name() -> None:
    """Constants of one process handed to another, or in the wrong order."""
    constants = {"beta_min": 0.2, "beta_max": 9.0, "sigma_min": 0.02, "sigma_max": 7.0}
    beta, ve = LinearRate(0.2, 9.0), VESDE(0.02, 7.0, 1e-4, 0.9)
    expected = {"vp": VPSDE(beta, 1e-4, 0.9), "subvp": SubVPSDE(beta, 1e-4, 0.9), "ve": ve}
    for kind, process in expected.items():
        assert build_sde(SDEConfig(kind=kind, t_min=1e-4, t_max=0.9, **constants)) == process
    assert replace(ve, t_max=1.0).terminal_std == 7.0

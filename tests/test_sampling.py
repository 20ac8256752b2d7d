"""Grids and solvers. For Gaussian data every step is affine, so moments need no Monte Carlo."""

import itertools
from collections.abc import Callable, Iterator
from typing import get_args

import numpy as np
import pytest
import torch
from oracles import LinearGaussian, five_errors, normal, scalar, seeded, standardised, vector
from torch import Tensor

from scorevae.config import SamplingConfig
from scorevae.randomness import make_generator
from scorevae.sampling import (
    GRIDS,
    SAMPLERS,
    DPMSolverPP2M,
    Step,
    clipped,
    ddim,
    draw_in_batches,
    euler_maruyama,
    generate,
    heun,
    integrate,
    karras_grid,
    langevin,
    log_snr_grid,
    make_step,
    network_evaluations,
    steps_within,
    uniform_grid,
)
from scorevae.score import ScoreFn, denoised_to_score, score_to_denoised
from scorevae.sde import SDE, VESDE, VPSDE, LinearRate, perturb

ODE_SAMPLERS = ("ddim", "heun", "dpm_solver_pp")
SDE_SAMPLERS = ("euler_maruyama", "sde_dpm_solver_pp")  # affine, as those of the ODE
SIZES = (64, 128, 256)
SNR = 0.1


def settings_of(sampler: str, steps: int) -> SamplingConfig:
    return SamplingConfig(
        sampler=sampler, grid="log_snr", steps=steps, corrector_snr=SNR, noise_scale=1, clip=False
    )


def no_noise(x: Tensor) -> Tensor:
    """For solvers of the ODE, which must not ask."""
    raise AssertionError("an ODE solver drew noise")


def seeded_noise(seed: int) -> Callable[[Tensor], Tensor]:
    return noise_of(seeded(seed))


def noise_of(generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


def watched(score: ScoreFn, seen: list[float]) -> ScoreFn:
    """A score that tells the times it is asked at."""

    def asked(x_t: Tensor, t: Tensor) -> Tensor:
        seen.append(t.item())
        return score(x_t, t)

    return asked


def affine(
    run: Callable[[Tensor, Callable], Tensor], dim: int, draws: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Intercept, slope and summed squares of the noise coefficients of x -> run(x, noise).

    Row 0 starts at zero, row 1 at one, and row k + 2 at zero with the k-th noise set to one.
    """
    x = torch.zeros(2 + draws, dim, dtype=torch.float64)
    x[1] = 1
    call = itertools.count(2)

    def unit(x: Tensor) -> Tensor:
        noise = torch.zeros_like(x)
        noise[next(call)] = 1
        return noise

    out = run(x, unit if draws else torch.zeros_like)
    return out[0], out[1] - out[0], (out[2:] - out[0]).square().sum(0)


# --- tables ----------------------------------------------------------------------------------


def test_every_sampler_is_tested_and_can_be_configured() -> None:
    """A sampler or grid in one table and not in the other, or in none of the lists above."""
    for table, field in ((SAMPLERS, "sampler"), (GRIDS, "grid")):
        assert tuple(table) == get_args(SamplingConfig.model_fields[field].annotation)
    assert {*ODE_SAMPLERS, *SDE_SAMPLERS, "predictor_corrector"} == {*SAMPLERS}


# --- grids -----------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [uniform_grid, log_snr_grid, karras_grid])
@pytest.mark.parametrize("steps", [1, 2, 37])
def test_grids_fall_from_one_to_t_min(sde: SDE, grid, steps: int) -> None:
    """Ends missed by rounding, a grid the wrong way round, or one point too few."""
    times = grid(sde, steps)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert times[0] == 1
    assert times[-1] == sde.t_min
    assert torch.all(times.diff() < 0)


def test_grids_are_equally_spaced_in_their_variable(sde: SDE) -> None:
    """Spacing in another variable: ln σ for λ without α, or ρ in place of 1/ρ."""
    ratio = torch.exp(-0.5 * sde.log_snr(karras_grid(sde, 20)))  # σ/α
    for levels in (uniform_grid(sde, 20), sde.log_snr(log_snr_grid(sde, 20)), ratio ** (1 / 7)):
        gaps = levels.diff()
        # λ spans some 20 and its inverse is exact to 1e-14 in t, at most 1e-10 in λ.
        torch.testing.assert_close(gaps, gaps.mean().expand(20), rtol=1e-9, atol=0)


# --- solvers ---------------------------------------------------------------------------------


def scalar_data(sde: SDE) -> LinearGaussian:
    """x_0 ~ N(0.7, 1)."""
    return LinearGaussian(sde, *(vector(value) for value in (0.7, 1.0, 1.0, 1.0)))


def score_of_point(sde: SDE, x_0: Tensor) -> ScoreFn:
    """The score of a single image."""

    def score(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = sde.marginal(t)
        return (alpha * x_0 - x_t) / sigma**2

    return score


def end_moments(oracle: LinearGaussian) -> Iterator[tuple[Tensor, Tensor]]:
    """Mean and variance of p_1, then those of p_ε."""
    for t in (1.0, oracle.sde.t_min):
        alpha, sigma = oracle.sde.marginal(scalar(t))
        yield alpha * oracle.m, alpha**2 * oracle.S + sigma**2


def affine_solver(
    score: ScoreFn, sde: SDE, times: Tensor, step: Step, *, dim: int = 1, draws: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """The affine map that a solver is on a grid; one that draws nothing must not ask for noise."""

    def run(x: Tensor, noise: Callable) -> Tensor:
        noise = noise if draws else no_noise
        return integrate(score, sde, x, times, step=step, noise=noise)

    return affine(run, dim, draws)


def slope_of(errors: list[float]) -> float:
    """Order of convergence: minus the slope of ln error over ln steps."""
    return -np.polyfit(np.log(SIZES), np.log(errors), 1)[0]


@pytest.mark.parametrize(
    ("solver", "grid", "order"),
    [
        (lambda: ddim, uniform_grid, 1),
        (lambda: heun, uniform_grid, 2),
        (lambda: ddim, log_snr_grid, 1),
        (lambda: heun, log_snr_grid, 2),
        # Its coefficients are of second order in λ; on a uniform grid the last steps are too
        # wide in λ for the asymptotic slope.
        (lambda: DPMSolverPP2M(stochastic=False), log_snr_grid, 2),
    ],
    ids=["ddim", "heun", "ddim-log_snr", "heun-log_snr", "dpm_solver_pp"],
)
def test_ode_solvers_have_their_order(sde: SDE, solver, grid, order: int) -> None:
    """A wrong coefficient leaves an error that does not vanish, or vanishes one order late.

    Orders differ by one; the slope over 64 … 256 steps deviates by the next order, below 0.03.
    """
    oracle = scalar_data(sde)
    (mean_1, variance_1), (mean_0, variance_0) = end_moments(oracle)
    exact_slope = torch.sqrt(variance_0 / variance_1)
    exact_intercept = mean_0 - exact_slope * mean_1
    errors = []
    for steps in SIZES:
        intercept, slope, _ = affine_solver(oracle.prior_score, sde, grid(sde, steps), solver())
        of_intercept = (intercept - exact_intercept).abs() / mean_0
        errors.append((of_intercept.item(), ((slope - exact_slope).abs() / exact_slope).item()))
    for error in zip(*errors, strict=True):
        assert slope_of(error) == pytest.approx(order, abs=0.1)


def test_euler_maruyama_has_order_one_in_mean_and_variance(sde: SDE) -> None:
    """A lost ½, g for g², √dt for dt, or the probability-flow drift in the SDE.

    VE has no drift, so the mean is exact. Its variance comes out at order 2 over these sizes:
    the first-order error is −½ h v_ε² [g²/v²] between the ends, with v = 1 + σ², which for
    g² ∝ σ² is 1e-3 h, far below the second order here.
    """
    oracle = scalar_data(sde)
    (mean_1, variance_1), (mean_0, variance_0) = end_moments(oracle)
    mean_errors, variance_errors = [], []
    for steps in SIZES:
        solver = oracle.prior_score, sde, uniform_grid(sde, steps), euler_maruyama
        intercept, slope, noise = affine_solver(*solver, draws=steps)
        mean_errors.append((intercept + slope * mean_1 - mean_0).abs().item())
        variance_errors.append((slope**2 * variance_1 + noise - variance_0).abs().item())
    exact = isinstance(sde, VESDE)
    assert slope_of(variance_errors) == pytest.approx(2 if exact else 1, abs=0.1)
    if exact:
        assert max(mean_errors) < 1e-13
    else:
        assert slope_of(mean_errors) == pytest.approx(1, abs=0.1)


def test_sde_dpm_solver_has_order_two_in_the_variance(sde: SDE) -> None:
    """The step before left out or weighted wrongly: order one. Any other coefficient: order zero.

    The mean is exact, from any x_1: x̂_0 = E[x_0|x_t] is a martingale of the reverse SDE, and a
    constant x̂_0 makes no error. E[x_ε|x_1] has the slope Cov(x_ε, x_1)/v_1 = (α_1/α_ε) v_ε/v_1.
    In the variance each step misses how its own noise moves x̂_0 within it, h²/2 in leading
    order; the extrapolation of the next step adds just that.
    """
    oracle = scalar_data(sde)
    (mean_1, variance_1), (mean_0, variance_0) = end_moments(oracle)
    alpha_1, alpha_0 = (sde.marginal(scalar(t)).alpha for t in (1.0, sde.t_min))
    exact_slope = alpha_1 / alpha_0 * variance_0 / variance_1
    exact_intercept = mean_0 - exact_slope * mean_1
    errors = []
    for steps in SIZES:
        solver = oracle.prior_score, sde, log_snr_grid(sde, steps), DPMSolverPP2M(stochastic=True)
        intercept, slope, noise = affine_solver(*solver, draws=steps)
        # float64: some roundings in each of 256 steps; VP divides by α_1 = 0.007 in the first.
        torch.testing.assert_close(intercept, exact_intercept, rtol=0, atol=1e-12)
        torch.testing.assert_close(slope, exact_slope, rtol=0, atol=1e-12)
        errors.append((slope**2 * variance_1 + noise - variance_0).abs().item())
    assert slope_of(errors) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("grid", [uniform_grid, log_snr_grid, karras_grid])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_sde_dpm_solver_is_exact_for_a_single_image(sde: SDE, grid, steps: int) -> None:
    """Noise whose variance does not make up for the contraction of x: any step size must do.

    For one data point x̂_0 is constant, and x_s follows N(α_s x_0, σ_s²) wherever x_t did.
    """
    x_0, times, solver = vector(0.7, -2.0), grid(sde, steps), DPMSolverPP2M(stochastic=True)
    score = score_of_point(sde, x_0)
    intercept, slope, noise = affine_solver(score, sde, times, solver, dim=2, draws=steps)
    (alpha_1, sigma_1), (alpha, sigma) = (sde.marginal(t) for t in (times[0], times[-1]))
    # VP: x̂_0 = (x + σ² s)/α divides by α_1 = 0.007, which costs two digits.
    tolerance = {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(intercept + slope * alpha_1 * x_0, alpha * x_0, **tolerance)
    variance = slope**2 * sigma_1**2 + noise
    torch.testing.assert_close(variance, (sigma**2).expand(2), rtol=1e-11, atol=0)


def test_first_sde_step_is_the_ancestral_one(sde: SDE) -> None:
    """A history invented at the start, or noise of another variance than q(x_s|x_t, x̂_0).

    Ho et al. 2020, eq. 6 and 7, for any process: with a = α_t/α_s and v = σ_t² − a² σ_s², the
    mean is (a σ_s² x + α_s v x̂_0)/σ_t², the variance v σ_s²/σ_t².
    """
    oracle, x, fresh = standardised(sde), normal((4, 2), 0), normal((4, 2), 1)
    for t, s in ((1.0, 0.99), (0.8, 0.5), (0.3, sde.t_min)):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (sde.marginal(scalar(u)) for u in (t, s))
        ratio = alpha_t / alpha_s
        between = sigma_t**2 - ratio**2 * sigma_s**2
        denoised = score_to_denoised(sde, oracle.prior_score(x, scalar(t)), x, scalar(t))
        mean = (ratio * sigma_s**2 * x + alpha_s * between * denoised) / sigma_t**2
        expected = mean + between.sqrt() * sigma_s / sigma_t * fresh
        step = DPMSolverPP2M(stochastic=True)
        found = step(oracle.prior_score, sde, x, scalar(t), scalar(s), lambda x: fresh)
        # `between` is a difference: for t near s some digits less.
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_small_sde_steps_are_those_of_the_reverse_sde(sde: SDE) -> None:
    """A process with the right marginals and other noise: that of the ODE has the same ones.

    Against Euler–Maruyama the drift differs by O(h²), the noise by O(h^{3/2}).
    """
    oracle, x, t = standardised(sde), normal((4, 2), 0), scalar(0.5)
    drift, noise = [], []
    for width in (2**-9, 2**-11, 2**-13):
        quiet, loud = (
            [
                step(oracle.prior_score, sde, x, t, t - width, draw)
                for step in (DPMSolverPP2M(stochastic=True), euler_maruyama)
            ]
            for draw in (torch.zeros_like, torch.ones_like)
        )
        drift.append((quiet[0] - quiet[1]).abs().max().item())
        ours, theirs = (b - a for a, b in zip(quiet, loud, strict=True))
        noise.append((ours - theirs).abs().max().item())
    for errors, order in ((drift, 2), (noise, 1.5)):
        for coarse, fine in itertools.pairwise(errors):
            assert np.log(coarse / fine) / np.log(4) == pytest.approx(order, abs=0.1)


def test_sde_step_to_a_clean_image_is_its_estimate() -> None:
    """Noise left where there is none to be: at σ_s = 0 the step returns α_s x̂_0."""
    sde = VPSDE(LinearRate(0.1, 20.0), t_min=1e-12)
    oracle, x, t, s = standardised(sde), normal((4, 2), 0), scalar(0.5), scalar(1e-12)
    denoised = score_to_denoised(sde, oracle.prior_score(x, t), x, t)
    sigma = sde.marginal(s).sigma  # 3e-7
    for sign in (-1, 1):
        found = DPMSolverPP2M(stochastic=True)(
            oracle.prior_score, sde, x, t, s, lambda x, sign=sign: torch.full_like(x, sign)
        )
        # α_s is 1 − σ²/2; what is left of x is of order σ² too
        torch.testing.assert_close(found, denoised + sign * sigma, rtol=0, atol=1e-11)


@pytest.mark.parametrize("sampler", ODE_SAMPLERS)
def test_ode_solvers_are_exact_for_a_single_image(sde: SDE, sampler: str) -> None:
    """For one data point ε̂ and x̂_0 are constant along the flow: any step size must do."""
    x_0, noise = normal((4, 3), 0), normal((4, 3), 1)
    x_1, expected = (perturb(sde, x_0, scalar(t), noise) for t in (1.0, sde.t_min))
    step, times = make_step(settings_of(sampler, 4)), uniform_grid(sde, 3)
    x = integrate(score_of_point(sde, x_0), sde, x_1, times, step=step, noise=no_noise)
    # σ_t/α_t runs over at most four decades: rounding grows by about as much.
    torch.testing.assert_close(x, expected, rtol=1e-10, atol=1e-10)


def test_first_multistep_step_is_ddim(sde: SDE) -> None:
    """A history invented at the start."""
    oracle, x = standardised(sde), normal((4, 2), 0)
    ends = oracle.prior_score, sde, x, scalar(0.8), scalar(0.5), no_noise
    solver = DPMSolverPP2M(stochastic=False)
    torch.testing.assert_close(solver(*ends), ddim(*ends), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("stochastic", [False, True])
def test_multistep_extrapolates_to_the_middle_of_the_step(sde: SDE, stochastic: bool) -> None:
    """The ratio of step widths inverted: on grids equal in λ, and in the order, it hides.

    With x̂_0 = ℓ, linear in ℓ = ln(α/σ), the estimate D must be ℓ half-way through the step.
    """

    def level(t: Tensor) -> Tensor:
        return 0.5 * sde.log_snr(t)

    def score(x_t: Tensor, t: Tensor) -> Tensor:
        return denoised_to_score(sde, level(t).expand(x_t.shape), x_t, t)

    step, x = DPMSolverPP2M(stochastic=stochastic), normal((3, 2), 0)
    noise = torch.zeros_like if stochastic else no_noise
    t, s, r = scalar(0.8), scalar(0.7), scalar(0.3)
    x_s = step(score, sde, x, t, s, noise)
    x_r = step(score, sde, x_s, s, r, noise)
    width, middle = level(r) - level(s), 0.5 * (level(r) + level(s))
    (alpha, sigma), sigma_s = sde.marginal(r), sde.marginal(s).sigma
    kept, width = (torch.exp(-width), 2 * width) if stochastic else (1, width)
    expected = kept * sigma / sigma_s * x_s + alpha * (1 - torch.exp(-width)) * middle
    torch.testing.assert_close(x_r, expected, rtol=1e-10, atol=1e-10)


def test_encoding_and_decoding_return_the_image(sde: SDE) -> None:
    """A solver that is right in one direction only: the round trip would not close.

    The encoding converges to the closed flow with order 2, the round trip at least as fast.
    """
    oracle = scalar_data(sde)
    (mean_1, variance_1), (mean_0, variance_0) = end_moments(oracle)
    x = vector(-1.0, 0.3, 2.0)[:, None]
    exact = mean_1 + torch.sqrt(variance_1 / variance_0) * (x - mean_0)
    encoding, round_trip = [], []
    for steps in SIZES:
        times = log_snr_grid(sde, steps)
        code = integrate(oracle.prior_score, sde, x, times.flip(0), step=heun, noise=no_noise)
        back = integrate(oracle.prior_score, sde, code, times, step=heun, noise=no_noise)
        encoding.append((code - exact).abs().max().item())
        round_trip.append((back - x).abs().max().item())
    assert slope_of(encoding) == pytest.approx(2, abs=0.1)
    assert slope_of(round_trip) > 1.9


def test_langevin_step_preserves_a_gaussian() -> None:
    """√2 or the square of the size lost, or noise and score exchanged in the ratio.

    With s = −x/v and ‖noise‖/‖s‖ = √v the size is η = 2 snr² v, and the variance becomes
    (1 − η/v)² v + 2η = v (1 + 4 snr⁴): at snr = 0.3 it must grow by 3 %, not by 18 %.
    """
    v, snr, n = 4.0, 0.3, 100_000
    x = 2 * normal((n, 2), 0)
    moved = langevin(lambda x, t: -x / v, x, scalar(0.5), seeded_noise(1), snr=snr)
    squared = moved**2
    assert torch.all(moved.mean(0).abs() <= five_errors(moved))
    # The ratio is itself a mean over n norms: its error is second to that of the variance.
    assert torch.all((squared.mean(0) - v * (1 + 4 * snr**4)).abs() <= five_errors(squared))
    correlation = (moved * x).mean(0) / v  # 1 − η/v
    assert torch.all((correlation - (1 - 2 * snr**2)).abs() <= five_errors(moved * x / v))


# --- generation ------------------------------------------------------------------------------


def posterior(oracle: LinearGaussian, count: int) -> ScoreFn:
    """Our own posterior score for one latent."""
    return oracle.posterior.score(LATENT.expand(count, 2))


LATENT = vector(1.2, -1.0)


def discrete_moments(oracle: LinearGaussian, sampler: str, steps: int) -> tuple[Tensor, Tensor]:
    """Mean and variance that ``generate`` gives with these steps, from its affine map."""
    draws = steps - 1 if sampler in SDE_SAMPLERS else 0
    score, settings = posterior(oracle, 2 + draws), settings_of(sampler, steps)
    intercept, slope, noise = affine(
        lambda x, noise: generate(score, oracle.sde, x, settings, noise=noise), 2, draws
    )
    return intercept, slope**2 * oracle.sde.terminal_std**2 + noise


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_generated_images_follow_the_posterior(sde: SDE, sampler: str) -> None:
    """Samples of the prior, of p(x_0|z) with another variance, or noise used twice.

    Allowed are five standard errors and the discretisation's own error, which is known exactly
    and is at most a quarter of what tells p(x_0|z) from p(x_0). The corrector, not affine, may
    add the stationary excess of Langevin steps, η/(2v) = snr² v_max/v_min of the variance.
    """
    oracle, steps, n = standardised(sde), 60, 8_000
    mean, variance = oracle.data_given_latent(LATENT[None])
    affine_sampler = "euler_maruyama" if sampler == "predictor_corrector" else sampler
    discrete_mean, discrete_variance = discrete_moments(oracle, affine_sampler, steps)
    off_mean, off_variance = (discrete_mean - mean).abs(), (discrete_variance - variance).abs()
    if sampler == "predictor_corrector":
        off_variance = off_variance + SNR**2 * variance.max() / variance.min() * variance
    assert torch.all(off_mean < 0.25 * (mean - oracle.m).abs())
    assert torch.all(off_variance < 0.25 * (oracle.S - variance))

    x_1 = sde.terminal_std * normal((n, 2), 0)
    settings = settings_of(sampler, steps)
    x_0 = generate(posterior(oracle, n), sde, x_1, settings, noise=seeded_noise(1))
    squared = (x_0 - x_0.mean(0)) ** 2
    assert torch.all((x_0.mean(0) - mean).abs() <= five_errors(x_0) + off_mean)
    assert torch.all((squared.mean(0) - variance).abs() <= five_errors(squared) + off_variance)


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s != "predictor_corrector"])
def test_generation_converges_to_the_posterior(sde: SDE, sampler: str) -> None:
    """A bias that more steps do not remove.

    What remains is the start from N(0, terminal_std²) in place of p_1(x_1|z), and the variance
    V σ²/(α² V + σ²) that the last, noiseless step leaves out; both are known.
    """
    oracle = standardised(sde)
    mean, variance = oracle.data_given_latent(LATENT[None])
    (alpha, sigma), (alpha_1, sigma_1) = (sde.marginal(scalar(t)) for t in (sde.t_min, 1.0))
    variance_1 = alpha_1**2 * variance + sigma_1**2
    slope = variance / torch.sqrt(variance_1)  # of the flow; the SDE forgets more
    left_out = variance * sigma**2 / (alpha**2 * variance + sigma**2)
    start_mean = slope / variance.sqrt() * alpha_1 * mean.abs()
    start_variance = variance * (1 - sde.terminal_std**2 / variance_1).abs()
    coarse, fine = (discrete_moments(oracle, sampler, steps) for steps in (50, 100))
    # First order at least: the error at 2N is no larger than the distance from N to 2N, up to
    # its own second-order part, for which the factor of 1.5.
    allowed_mean = 1.5 * (coarse[0] - fine[0]).abs() + 1.1 * start_mean
    allowed_variance = 1.5 * (coarse[1] - fine[1]).abs() + 1.1 * (left_out + start_variance)
    assert torch.all((fine[0] - mean).abs() <= allowed_mean + 1e-12)
    assert torch.all((fine[1] - variance).abs() <= allowed_variance + 1e-12)


@pytest.mark.parametrize("name", ["dpm_solver_pp", "sde_dpm_solver_pp"])
def test_both_multistep_solvers_can_be_chosen(name: str) -> None:
    """Names exchanged: the one that draws noise is the one that says so."""
    oracle, x = standardised(VESDE(0.01, 50.0, t_min=1e-3)), normal((4, 2), 0)
    ends = oracle.prior_score, oracle.sde, x, scalar(0.8), scalar(0.5), torch.ones_like
    expected = DPMSolverPP2M(stochastic=name.startswith("sde"))(*ends)
    assert torch.equal(make_step(settings_of(name, 4))(*ends), expected)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_network_evaluations_are_counted_right(sde: SDE, sampler: str, steps: int) -> None:
    """A budget reported that is not the one spent, or an evaluation off the grid."""
    settings, seen = settings_of(sampler, steps), []
    score = watched(standardised(sde).prior_score, seen)
    generate(score, sde, normal((3, 2), 0), settings, noise=torch.randn_like)
    assert len(seen) == network_evaluations(settings)
    grid = [1.0] if steps == 1 else log_snr_grid(sde, steps - 1).tolist()
    assert set(seen) == set(grid)
    assert seen[-1] == grid[-1]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steps_use_a_budget_up(sampler: str) -> None:
    """A budget exceeded, or an evaluation left that would have paid for one more step."""
    for budget in range(1, 12):
        steps = steps_within(sampler, budget)
        spent, more = (network_evaluations(settings_of(sampler, n)) for n in (steps, steps + 1))
        assert spent <= budget < more


def test_one_step_is_the_posterior_mean_of_pure_noise(sde: SDE) -> None:
    """A last step that adds noise, or divides by the wrong α."""
    oracle, x_1, t = standardised(sde), sde.terminal_std * normal((5, 2), 0), scalar(1.0)
    x_0 = generate(oracle.prior_score, sde, x_1, settings_of("ddim", 1), noise=no_noise)
    expected = score_to_denoised(sde, oracle.prior_score(x_1, t), x_1, t)
    torch.testing.assert_close(x_0, expected, rtol=1e-12, atol=1e-12)
    alpha, sigma = sde.marginal(t)
    gain = alpha * oracle.S / (alpha**2 * oracle.S + sigma**2)
    # Tweedie divides by α_1, 0.007 for VP: rounding grows by its inverse.
    torch.testing.assert_close(x_0, gain * x_1, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_generation_builds_no_graph_and_keeps_its_input(sde: SDE, sampler: str) -> None:
    """A graph over all steps, x_1 overwritten, or float64 times promoting float32 images."""
    weight = torch.nn.Parameter(torch.tensor(1.0))
    x_1 = normal((3, 2), 0).float().requires_grad_()
    before = x_1.detach().clone()
    x_0 = generate(lambda x_t, t: -weight * x_t, sde, x_1, settings_of(sampler, 3))
    assert not x_0.requires_grad
    assert x_0.dtype == torch.float32
    assert torch.equal(x_1, before)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_trajectories_do_not_influence_one_another(sde: SDE, sampler: str) -> None:
    """A multistep solver that remembers the trajectory before."""
    oracle, x_1 = standardised(sde), sde.terminal_std * normal((3, 2), 0)
    ends, settings = (oracle.prior_score, sde, x_1), settings_of(sampler, 5)
    assert torch.equal(*(generate(*ends, settings, noise=seeded_noise(1)) for _ in range(2)))


@pytest.mark.parametrize(("clip", "expected"), [(True, 1.0), (False, 1.7)])
def test_images_are_clipped_when_asked(sde: SDE, clip: bool, expected: float) -> None:
    """A ``clip`` that nobody reads, or a clamp of the score or of x_t in place of x̂_0."""
    score, x_t, t = score_of_point(sde, scalar(1.7)), normal((3, 2), 0), scalar(0.3)
    denoised = score_to_denoised(sde, clipped(score, sde)(x_t, t), x_t, t)
    torch.testing.assert_close(denoised, torch.ones_like(x_t), rtol=0, atol=1e-12)
    settings = settings_of("ddim", 3).model_copy(update={"clip": clip})
    x_0 = generate(score, sde, x_t, settings)
    # VP divides by α_1 = 0.007
    torch.testing.assert_close(x_0, torch.full_like(x_0, expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", GRIDS)
def test_settings_choose_the_grid(sde: SDE, name: str) -> None:
    """A grid that is configured and ignored."""
    settings, seen = settings_of("ddim", 6).model_copy(update={"grid": name}), []
    generate(watched(lambda x_t, t: -x_t, seen), sde, normal((1, 2), 0), settings)
    grids = {"uniform": uniform_grid, "log_snr": log_snr_grid, "karras": karras_grid}
    assert seen == grids[name](sde, 5).tolist()


# --- batches ---------------------------------------------------------------------------------


class Kept:
    """Batches by their rows."""

    def __init__(self) -> None:
        self.batches: dict[tuple[int, int], Tensor] = {}

    def load(self, rows: slice) -> Tensor | None:
        return self.batches.get((rows.start, rows.stop))

    def save(self, rows: slice, values: Tensor) -> None:
        self.batches[rows.start, rows.stop] = values


Z, STOCHASTIC = normal((7, 2), 3), settings_of("sde_dpm_solver_pp", 4)


def in_batches(sde: SDE, **changes) -> Tensor:
    """Seven draws from p(x|z), a stochastic sampler, at most three at a time."""
    posterior, x_1 = standardised(sde).posterior, normal((7, 2), 4)
    settings = {"device": torch.device("cpu"), "batch": 3, "seed": 5} | changes
    return draw_in_batches(lambda rows: posterior.score(Z[rows]), sde, x_1, STOCHASTIC, **settings)


def test_batches_are_generated_from_their_first_row(sde: SDE) -> None:
    """Catches noise, starts or latents of other rows, and x_1 without its deviation."""
    starts, parts = sde.terminal_std * normal((7, 2), 4), []
    for rows in (slice(0, 3), slice(3, 6), slice(6, 7)):
        noise = noise_of(make_generator("cpu", 5, "sampler", rows.start))
        score = standardised(sde).posterior.score(Z[rows])
        parts.append(generate(score, sde, starts[rows], STOCHASTIC, noise=noise))
    assert torch.equal(in_batches(sde), torch.cat(parts))


@pytest.mark.parametrize(("batch", "ends"), [(1, [2, 4, 6]), (5, [4, 6]), (6, [6])])
def test_groups_share_their_noise_and_stay_together(batch: int, ends: list[int]) -> None:
    """Catches a group torn apart by a batch, or noise shared with the next one.

    Two rows of one x_1 and one z differ by nothing but the sampler's noise.
    """
    sde, x_1, done = VPSDE(LinearRate(0.1, 20.0), t_min=1e-3), normal((1, 2), 4).expand(6, 2), []
    score = standardised(sde).posterior.score
    settings = {"device": torch.device("cpu"), "batch": batch, "seed": 5, "shared": 2}

    def same(rows: slice) -> ScoreFn:
        return score(Z[:1].expand(rows.stop - rows.start, 2))

    x_0 = draw_in_batches(same, sde, x_1, STOCHASTIC, report=done.append, **settings)
    assert done == ends
    first, second = x_0.unflatten(0, (3, 2)).unbind(1)
    assert torch.equal(first, second)
    assert len(first.unique(dim=0)) == 3


def test_kept_batches_are_not_drawn_again(sde: SDE) -> None:
    """Catches work that is repeated, or kept under other rows than it is looked for."""
    kept, done = Kept(), []
    x_0 = in_batches(sde, kept=kept, report=done.append)
    assert done == [3, 6, 7]
    assert list(kept.batches) == [(0, 3), (3, 6), (6, 7)]
    assert torch.equal(torch.cat(list(kept.batches.values())), x_0)
    del kept.batches[3, 6]
    kept.batches[0, 3] = torch.zeros(3, 2).double()  # would not be drawn
    again = in_batches(sde, kept=kept, report=done.append)
    assert torch.equal(again, torch.cat([torch.zeros(3, 2), x_0[3:]]))
    assert done[3:] == [3, 6, 7]

"""A process that ends before t = 1, because its prior knows no more noise."""

from dataclasses import replace

import pytest
import torch
from conftest import CONSTANTS
from oracles import five_errors, normal, scalar, seeded, standardised

from scorevae.config import SamplingConfig, SDEConfig
from scorevae.evaluation.bound import likelihood_bound, prior_matching
from scorevae.objectives import draw_times
from scorevae.sampling import GRIDS, generate
from scorevae.sde import SDE, build_sde

T_MAX = 0.8
CASES = ["vp", "ve"]
MODEL = {"grid": "log_snr", "corrector_snr": 0.16, "noise_scale": 1.0, "clip": False}


@pytest.fixture(params=CASES)
def short(request: pytest.FixtureRequest) -> SDE:
    """A process up to T_MAX."""
    return build_sde(SDEConfig(kind=request.param, **CONSTANTS | {"t_max": T_MAX}))


def test_it_is_the_same_process_up_to_there(short: SDE) -> None:
    """Catches t_max that rescales the process, and a VE that starts from σ_max all the same."""
    whole = replace(short, t_max=1.0)
    assert whole.marginal(scalar(0.5)) == short.marginal(scalar(0.5))
    sigma = short.marginal(scalar(T_MAX)).sigma.item()
    expected = 1.0 if short.terminal_std == 1 else sigma
    assert short.terminal_std == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("time", ["uniform", "log_snr"])
def test_times_are_drawn_up_to_it(short: SDE, time: str) -> None:
    """Catches times beyond it, and a density over the whole interval: E[1/p] = t_max − t_min.

    The stratified mean errs by at most the variation of 1/p over the number of draws.
    """
    times = draw_times(short, torch.zeros(100_000, 2).double(), seeded(0), time)
    assert times.t.min() >= short.t_min
    assert 0.999 * T_MAX < times.t.max() <= T_MAX
    variation = times.inverse_density.diff().abs().sum() / 100_000
    error = (times.inverse_density.mean() - (T_MAX - short.t_min)).abs()
    assert error <= 1.01 * variation + 1e-12


@pytest.mark.parametrize("grid", GRIDS)
def test_grids_start_from_it(short: SDE, grid: str) -> None:
    """Catches a first step that asks the network beyond its range."""
    times = GRIDS[grid](short, 7)
    assert times[[0, -1]].tolist() == [T_MAX, short.t_min]
    assert torch.all(times.diff() < 0)


def test_sampling_starts_from_it(short: SDE) -> None:
    """Catches a first evaluation at t = 1: one step is Tweedie's mean at t_max, exactly."""
    oracle, x = standardised(short), normal((5, 2), 0)
    settings = SamplingConfig(sampler="ddim", steps=1, **MODEL)
    alpha, sigma = short.marginal(scalar(T_MAX))
    total = alpha**2 * oracle.S + sigma**2
    expected = oracle.m + alpha * oracle.S / total * (x - alpha * oracle.m)
    score = oracle.prior_score
    torch.testing.assert_close(generate(score, short, x, settings), expected)


def test_draws_follow_the_data(short: SDE) -> None:
    """Catches a start of the wrong width: of 4,000 draws the variance is the data's.

    Beyond five standard errors it may miss what N(0, terminal_std²) does to it in place of p_1,
    at most α² S/σ² of it at t_max, and 2 % of the discretisation at 60 steps.
    """
    oracle = standardised(short)
    x_1 = short.terminal_std * normal((4000, 2), 0)
    settings = SamplingConfig(sampler="heun", steps=60, **MODEL)
    squared = generate(oracle.prior_score, short, x_1, settings) ** 2
    alpha, sigma = short.marginal(scalar(T_MAX))
    start = (alpha / sigma) ** 2 * oracle.S
    allowed = five_errors(squared) + (start + 0.02) * oracle.S
    assert torch.all((squared.mean(0) - oracle.S).abs() <= allowed)


def test_prior_matching_is_taken_there(short: SDE) -> None:
    """Catches the divergence at t = 1."""
    x_0 = normal((4, 3), 0)
    alpha, sigma = short.marginal(scalar(T_MAX))
    pi = torch.distributions.Normal(scalar(0.0), short.terminal_std)
    exact = torch.distributions.kl_divergence(torch.distributions.Normal(alpha * x_0, sigma), pi)
    torch.testing.assert_close(prior_matching(short, x_0), exact.sum(1), rtol=1e-9, atol=1e-12)


def test_both_estimators_of_the_bound_end_there(short: SDE) -> None:
    """Catches an integral over all noise beside a matching at t_max: two estimators disagree."""
    oracle = standardised(short)
    x_0 = (oracle.sample_data(200, seeded(0)).clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1
    bound = likelihood_bound(
        x_0, sde=short, posterior=oracle.prior_score, repeats=4, draws=16, batch=100, seed=0
    ).prior
    error = bound.total.monte_carlo_error + bound.theorem_3.monte_carlo_error
    assert bound.total.mean == pytest.approx(bound.theorem_3.mean, abs=5 * error)

"""The likelihood bound is exact on worlds where ln p(x) is known, and its errors are honest."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import (
    GaussianMixture,
    LinearGaussian,
    five_errors,
    mainly,
    normal,
    scalar,
    seeded,
    standardised,
    vector,
)
from torch import Tensor

from scorevae.errors import UserError
from scorevae.evaluation.bound import (
    GREY_STEP,
    SMALLEST_NOISE,
    Bound,
    Bounds,
    Estimate,
    extended,
    grey_values,
    likelihood_bound,
    prior_matching,
    stratified_levels,
    theorem_3,
)
from scorevae.gaussian import DiagonalGaussian
from scorevae.score import Posterior, noise_to_score, score_to_noise
from scorevae.sde import SDE, VESDE, VPSDE, SubVPSDE, log_snr_range

BUDGET = {"repeats": 16, "draws": 4, "batch": 2000, "seed": 0}
COUNT = 800
END = 0.02  # σ_ε/α_ε of the oracles: the trained range of every process goes further


def cross_entropy(second_moment: Tensor, variance: Tensor | float) -> Tensor:
    """−E ln N(x; μ, variance), where E(x − μ)² is the second moment; summed over dimensions."""
    return 0.5 * (second_moment / variance + torch.log(2 * math.pi * variance)).sum(1)


class World:
    """What is known of x_0: Gaussian with variance V and E(x_0 − mean)² for a given x_0.

    Without z, mean and variance are the data's; with z ~ p(z|x_0), those of p(x_0|z).
    """

    def __init__(self, oracle: LinearGaussian, *, latent: bool) -> None:
        self.oracle, self.latent = oracle, latent
        self.total = oracle.A**2 * oracle.S + oracle.Γ
        self.V = oracle.S * oracle.Γ / self.total if latent else oracle.S

    def squared(self, x_0: Tensor) -> Tensor:
        """E(x_0 − mean)²."""
        oracle, total = self.oracle, self.total
        if not self.latent:
            return (x_0 - oracle.m) ** 2
        share = oracle.Γ / total
        return ((x_0 - oracle.m) * share) ** 2 + (oracle.S * oracle.A / total) ** 2 * oracle.Γ

    def decode(self, x_0: Tensor, noise: float) -> Tensor:
        """E ln p(x_0|x_ε) or E ln p(x_0|x_ε, z): the exact posterior's."""
        left = 1 / (1 / self.V + 1 / noise**2)
        squared = left**2 * (self.squared(x_0) / self.V**2 + 1 / noise**2)
        return -cross_entropy(squared, left.expand_as(squared))

    def gap(self, x_0: Tensor) -> Tensor:
        """What a bound with exact scores misses: E ln p(x_1) − E ln π(x_1), p given z if known."""
        alpha, sigma = self.oracle.sde.marginal(scalar(1.0))
        variance = (alpha**2 * self.V + sigma**2).expand_as(x_0)
        own = cross_entropy(alpha**2 * self.squared(x_0) + sigma**2, variance)
        std = scalar(self.oracle.sde.terminal_std)
        return cross_entropy(alpha**2 * x_0**2 + sigma**2, std**2) - own

    def surprise(self, x_0: Tensor) -> Tensor:
        """−ln p(x_0)."""
        return cross_entropy((x_0 - self.oracle.m) ** 2, self.oracle.S.expand_as(x_0))


def oracle_bounds(oracle: LinearGaussian, x_0: Tensor, *, latent: bool, **changes) -> Bounds:
    """Bounds on the oracle's density, with exact networks if no others are given."""
    settings = {
        "sde": oracle.sde,
        "posterior": oracle.posterior if latent else oracle.prior_score,
        "smallest_noise": END,
        "decoder": World(oracle, latent=latent).decode,
    }
    return likelihood_bound(x_0, **(settings | BUDGET | changes))


def oracle_bound(oracle: LinearGaussian, x_0: Tensor, *, latent: bool, **changes) -> Bound:
    """The one of them that the world is about."""
    bounds = oracle_bounds(oracle, x_0, latent=latent, **changes)
    bound = bounds.posterior if latent else bounds.prior
    assert bound is not None
    return bound


# --- exactness -------------------------------------------------------------------------------


@pytest.mark.parametrize("latent", [False, True])
def test_the_bound_is_exact_for_every_image_of_the_linear_gaussian(sde: SDE, latent: bool) -> None:
    """Catches any wrong factor, sign or missing term, and z not drawn from q(z|x_0, 0).

    With exact scores and posterior the bound misses ln p(x_0) only by the terminal mismatch,
    image by image: two images, one far from the mean, are asked 400 times each.
    """
    oracle = standardised(sde)
    world = World(oracle, latent=latent)
    rare = torch.stack([vector(0.3, -0.2), vector(2.5, 1.5)])
    x_0 = rare.repeat_interleave(400, dim=0)
    costs = oracle_bound(oracle, x_0, latent=latent).per_image
    gap = world.gap(rare)
    for group, exact in zip(costs.split(400), world.surprise(rare) + gap, strict=True):
        assert (group.mean() - exact).abs() <= five_errors(group)
        assert five_errors(group) < 0.5  # nats; the terms are 5 to 10
    assert gap.abs().max() < 0.02


class Wrong:
    """The oracle's networks, one of them wrong."""

    def __init__(self, oracle: LinearGaussian, name: str) -> None:
        self.oracle, self.name = oracle, name

    def prior(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The oracle's score, or 0.8 of it."""
        return (0.8 if self.name == "prior" else 1.0) * self.oracle.prior_score(x_t, t)

    def encode(self, x_t: Tensor, t: Tensor) -> DiagonalGaussian:
        """The oracle's posterior, wrong at t = 0 or elsewhere."""
        mean, log_variance = self.oracle.encode(x_t, t)
        clean = (t.reshape(-1, 1) == 0).double()
        match self.name:
            case "narrow at 0":
                log_variance = log_variance - clean
            case "shifted at 0":
                mean = mean + 0.7 * clean
            case "shifted":
                mean = mean + 1.0 * (1 - clean)
            case "wide":
                log_variance = log_variance + 0.7 * (1 - clean)
        return DiagonalGaussian(mean, log_variance)


@pytest.mark.parametrize("name", ["prior", "narrow at 0", "shifted at 0", "shifted", "wide"])
def test_the_bound_never_exceeds_the_likelihood(sde: SDE, name: str) -> None:
    """Catches a "bound" that errors of the networks improve, such as a rate of the wrong sign.

    The mean over the data exceeds the entropy for every model other than the exact one.
    """
    oracle = standardised(sde)
    x_0, wrong = oracle.sample_data(COUNT, seeded(2)), Wrong(oracle, name)
    posterior = Posterior(wrong.prior, wrong.encode)
    bound = oracle_bound(oracle, x_0, latent=True, posterior=posterior)
    excess = bound.per_image - World(oracle, latent=True).surprise(x_0)
    assert excess.mean() > five_errors(excess)


@pytest.mark.parametrize("latent", [False, True])
def test_theorem_3_agrees(sde: SDE, latent: bool) -> None:
    """Catches a lost factor ½, a lost drift, or entropy at the wrong end in either form."""
    oracle = standardised(sde)
    bound = oracle_bound(oracle, oracle.sample_data(COUNT, seeded(2)), latent=latent)
    errors = (bound.total.monte_carlo_error, bound.theorem_3.monte_carlo_error)
    assert abs(bound.total.mean - bound.theorem_3.mean) <= 5 * math.hypot(*errors)
    assert bound.total.mean != bound.theorem_3.mean  # two estimators, not one


def test_theorem_3_is_the_prior_matching_where_the_score_error_is_nil(sde: SDE) -> None:
    """Catches the same without Monte Carlo: with ‖ε − ε̂‖² = 0 and ‖ε‖² = d both are exact.

    Its last two integrals are then (d/2) ln(σ_1²/σ_ε²). The evenly spaced λ err by at most the
    total variation of the drift's integrand, a monotone σ² or less, over their number.
    """
    images, draws, d = 500, 20, 3
    x_0 = vector(0.5, -1.0, 0.2).expand(images, d)
    levels = stratified_levels(sde, END, images, repeats=1, draws=draws, seed=0)
    length = levels.largest - levels.smallest
    excess = torch.full((images, 1), -0.5 * d * length, dtype=torch.float64)
    cost = theorem_3(sde, x_0, levels, excess).mean()
    allowed = 2 * d * length / (images * draws)
    assert (cost - prior_matching(sde, x_0)[0]).abs() <= allowed
    assert allowed < 0.02


def test_prior_matching_is_the_divergence_of_two_gaussians(sde: SDE) -> None:
    """Catches a formula for VP alone: σ_1 and the terminal deviation differ between processes."""
    x_0 = normal((4, 1, 2, 3), 0)
    alpha, sigma = sde.marginal(scalar(1.0))
    p = torch.distributions.Normal(alpha * x_0, sigma)
    pi = torch.distributions.Normal(scalar(0.0), sde.terminal_std)
    exact = torch.distributions.kl_divergence(p, pi).flatten(1).sum(1)
    # The library's ratio of variances, about 1, is rounded before its logarithm is subtracted.
    torch.testing.assert_close(prior_matching(sde, x_0), exact, rtol=1e-9, atol=1e-12)


def fine(sde: SDE) -> SDE:
    """The process continued to noise below the step between grey values."""
    match sde:
        case VESDE():
            return replace(sde, sigma_min=1e-3)
        case VPSDE() | SubVPSDE():
            return replace(sde, t_min=1e-5)


def test_the_code_length_of_grey_values_is_their_entropy(sde: SDE) -> None:
    """Catches wrong grey values, a reconstruction off by a bin, and wrong bits per dimension.

    Pixels with four grey values, two of them neighbours: the exact score is a mixture's. The
    bound exceeds the entropy by E[ln p(x_0|x_ε) − ln of the uniform categorical], computed by
    quadrature, and by at most the prior matching.
    """
    sde = fine(sde)
    grey, share = torch.tensor([0, 100, 101, 255]), vector(0.4, 0.3, 0.2, 0.1)
    values = grey.double() * GREY_STEP - 1
    mixture = GaussianMixture(sde, share, values[:, None], torch.zeros(4).double())

    def score(x_t: Tensor, t: Tensor) -> Tensor:
        pixels = x_t.reshape(-1, 1)
        return mixture.score(pixels, t.repeat_interleave(2)).reshape(x_t.shape)

    index = torch.multinomial(share, 2 * COUNT, replacement=True, generator=seeded(0))
    x_0 = values[index].reshape(COUNT, 1, 1, 2)
    bound = likelihood_bound(x_0, sde=sde, posterior=score, **BUDGET).prior
    assert bound.dimensions == 2
    n = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    density = torch.exp(-0.5 * n**2) / math.sqrt(2 * math.pi)
    gap = torch.zeros(4).double()
    everything = torch.arange(256).double() * GREY_STEP - 1
    for k, v in enumerate(values):
        x = v + SMALLEST_NOISE * n
        posterior = share.log() - 0.5 * ((x[:, None] - values) / SMALLEST_NOISE) ** 2
        decoder = -0.5 * ((x[:, None] - everything) / SMALLEST_NOISE) ** 2
        ratio = posterior.log_softmax(1)[:, k] - decoder.log_softmax(1)[:, grey[k]]
        gap[k] = torch.trapezoid(density * ratio, n)
    exact = (gap - share.log())[index].reshape(COUNT, 2).sum(1)
    excess = bound.per_image - exact
    matching = prior_matching(sde, x_0).mean()
    assert excess.mean().abs() <= five_errors(excess) + matching
    assert matching < 1e-3
    assert five_errors(excess) < 0.3
    bits = bound.bits_per_dimension()
    assert bits["total"].mean == pytest.approx(bound.per_image.mean().item() / 2 / math.log(2))
    assert sum(bits[name].mean for name in bound.terms) == pytest.approx(bits["total"].mean)


# --- the estimator ---------------------------------------------------------------------------


def test_levels_are_stratified_within_and_over_images(sde: SDE) -> None:
    """Catches a wrong range, uneven draws, repeats that share their offset, or a fixed order."""
    images, draws, repeats = 7, 3, 4
    levels = stratified_levels(sde, 0.02, images, repeats=repeats, draws=draws, seed=0)
    ends = sde.log_snr(vector(1.0)).item(), -2 * math.log(0.02)
    assert (levels.smallest, levels.largest) == pytest.approx(ends)
    quantile = (ends[1] - levels.log_snr) / (ends[1] - ends[0])
    parts = quantile.unflatten(1, (repeats, draws)).transpose(0, 1)
    torch.testing.assert_close(parts.diff(dim=2), torch.full_like(parts.diff(dim=2), 1 / draws))
    ordered = parts.flatten(1).sort(dim=1).values * images * draws - torch.arange(images * draws)
    torch.testing.assert_close(ordered, ordered[:, :1].expand_as(ordered))
    assert torch.all((ordered >= 0) & (ordered < 1))
    assert len(set(ordered[:, 0].tolist())) == repeats
    assert len({tuple(part[:, 0].argsort().tolist()) for part in parts}) > 1


def test_the_offset_of_the_levels_is_uniform() -> None:
    """Catches strata that never move or cover a part: Kolmogorov–Smirnov at 3e-6 (n = 2000)."""
    sde, n = VESDE(0.01, 50.0, 1e-3), 2000
    levels = stratified_levels(sde, 0.01, 1, repeats=n, draws=1, seed=0)
    quantile = (levels.largest - levels.log_snr[0]) / (levels.largest - levels.smallest)
    gap = (quantile.sort().values - (torch.arange(n) + 0.5) / n).abs().max()
    assert gap < 2.6 / math.sqrt(n) + 0.5 / n


@mainly("vp")
def test_the_monte_carlo_error_is_the_spread_between_seeds(sde: SDE) -> None:
    """Catches a standard error that forgets repeats, draws, or that strata are dependent.

    20 seeds: their standard deviation has a relative error of 1/√38, the reported one (20 · 7
    degrees of freedom) 1/√280; five of both together are 0.86. A forgotten √8 is a factor of 2.8.
    """
    oracle = standardised(sde)
    x_0 = oracle.sample_data(8, seeded(0))
    budgets = ({"seed": seed, "repeats": 8} for seed in range(20))
    totals = [oracle_bound(oracle, x_0, latent=True, **budget).total for budget in budgets]
    spread = np.std([total.mean for total in totals], ddof=1)
    reported = math.sqrt(np.mean([total.monte_carlo_error**2 for total in totals]))
    assert abs(math.log(spread / reported)) < math.log(1.86)


def test_the_image_error_is_the_spread_between_images(sde: SDE) -> None:
    """Catches the error over images computed from the repeats, or without √images."""
    oracle = standardised(sde)
    bound = oracle_bound(oracle, oracle.sample_data(50, seeded(0)), latent=True)
    expected = bound.per_image.std().item() / math.sqrt(50)
    assert bound.total.image_error == pytest.approx(expected)
    assert bound.terms["rate"].monte_carlo_error == pytest.approx(0, abs=1e-12)


def test_the_batch_changes_nothing(sde: SDE) -> None:
    """Catches noise or λ that go to other images when the chunks change."""
    oracle = standardised(sde)
    x_0 = oracle.sample_data(7, seeded(0))
    whole = oracle_bounds(oracle, x_0, latent=True)
    parts = oracle_bounds(oracle, x_0, latent=True, batch=3)
    torch.testing.assert_close(whole.prior.per_image, parts.prior.per_image)
    torch.testing.assert_close(whole.posterior.per_image, parts.posterior.per_image)


def test_the_prior_sees_the_same_noise_with_and_without_an_encoder(sde: SDE) -> None:
    """Catches latents that disturb the noise: the difference of the bounds would be noise."""
    oracle = standardised(sde)
    x_0 = oracle.sample_data(5, seeded(0))
    alone = oracle_bounds(oracle, x_0, latent=False)
    both = oracle_bounds(oracle, x_0, latent=True, decoder=World(oracle, latent=False).decode)
    assert alone.posterior is None
    torch.testing.assert_close(alone.prior.per_image, both.prior.per_image)
    assert alone.prior.terms["rate"] == Estimate(0, 0, 0)


def test_an_ignored_latent_leaves_the_prior_and_its_rate(sde: SDE) -> None:
    """Catches terms of the latent that are not those of the encoder given.

    q(z|x_t, t) = N(1, 1) for every x_t: ∇ln q = 0, and the rate is ½ for each of two latents.
    """
    oracle = standardised(sde)

    def ignorant(x_t: Tensor, t: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(torch.ones_like(x_t), torch.zeros_like(x_t))

    posterior = Posterior(oracle.prior_score, ignorant)
    bounds = oracle_bounds(oracle, normal((6, 2), 0), latent=True, posterior=posterior)
    torch.testing.assert_close(bounds.posterior.per_image, bounds.prior.per_image + 1)


def test_the_parity_option_reaches_the_bound(sde: SDE) -> None:
    """Catches an option that is accepted and ignored."""
    oracle, costs = standardised(sde), []

    def wavy(x_t: Tensor, t: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(x_t, torch.sin(x_t))

    for option in (True, False):
        posterior = Posterior(oracle.prior_score, wavy, log_determinant=option)
        bound = oracle_bound(oracle, normal((6, 2), 0), latent=True, posterior=posterior)
        costs.append(bound.per_image)
    assert not torch.allclose(*costs)


def test_the_integrand_adds_up_to_the_diffusion_term(sde: SDE) -> None:
    """Catches bins in the wrong order or unit, and draws lost at the ends.

    40 images, four draws, 20 bins: every bin has eight draws of each repeat, so that the means of
    the bins average to the mean exactly. E‖ε − ε̂‖² of the exact score grows with λ.
    """
    oracle = standardised(sde)
    bounds = oracle_bounds(oracle, oracle.sample_data(40, seeded(0)), latent=True, bins=20)
    for bound in (bounds.prior, bounds.posterior):
        log_snr, mean, error, trained = bound.integrand
        width = log_snr[1] - log_snr[0]
        bits = bound.bits_per_dimension()["diffusion"].mean
        assert (mean.sum() * width).item() == pytest.approx(bits)
        assert log_snr[0] - width / 2 == pytest.approx(sde.log_snr(scalar(1.0)).item())
        assert log_snr[-1] + width / 2 == pytest.approx(-2 * math.log(END))
        assert trained == log_snr_range(sde)[0]
        assert mean[-1] > 10 * mean[0]
        # ½ ‖ε‖² in two dimensions has variance 1, in bits per dimension 1/(2 ln 2)².
        assert error[-1] == pytest.approx(1 / math.sqrt(128) / (2 * math.log(2)), rel=0.6)


def test_a_bin_without_draws_is_not_a_number(sde: SDE) -> None:
    """Catches a zero drawn where nothing is known."""
    oracle = standardised(sde)
    x_0, few = oracle.sample_data(1, seeded(0)), {"repeats": 2, "draws": 1, "bins": 10}
    bound = oracle_bound(oracle, x_0, latent=False, **few)
    assert bound.integrand.mean.isnan().sum() >= 8


# --- below t_min -----------------------------------------------------------------------------


def test_the_extended_score_keeps_the_noise_prediction_of_t_min(sde: SDE) -> None:
    """Catches a network asked at times that it was not trained for, and a jump at t_min."""
    asked = []

    def score(x_t: Tensor, t: Tensor) -> Tensor:
        asked.append(t)
        return noise_to_score(sde, torch.sin(3 * x_t) + t.reshape(-1, 1), t)

    x_0 = normal((5, 3), 0)
    t = vector(-0.1 if isinstance(sde, VESDE) else 0.0, 0.1, 0.5, 1.0, 300.0) * sde.t_min
    t = torch.where(t == 0, scalar(1e-9), t)
    alpha, seen = sde.marginal(t).alpha[:, None], sde.marginal(scalar(sde.t_min)).alpha
    noise = score_to_noise(sde, extended(score, sde)(alpha * x_0, t), t)
    assert torch.equal(asked[0], t.clamp(min=sde.t_min))
    late = asked[0][4]
    expected = torch.sin(3 * seen * x_0) + sde.t_min
    torch.testing.assert_close(noise[:4], expected[:4])
    exact = score(alpha[4:] * x_0[4:], late[None])
    assert torch.equal(extended(score, sde)(alpha[4:] * x_0[4:], t[4:]), exact)


def test_the_cost_below_t_min_is_that_part_of_the_diffusion_term(sde: SDE) -> None:
    """Catches the complement, or a bound whose integral stops at t_min in silence.

    A score of zero: E‖ε − ε̂‖² = d at every λ, so each part is ½ d times its length in λ.
    """
    largest, smallest = log_snr_range(sde)
    end = 0.3 * math.exp(-0.5 * largest)  # 0.3 of σ/α at t_min
    nothing = {
        "posterior": lambda x_t, t: torch.zeros_like(x_t),
        "decoder": lambda x, noise: torch.zeros(len(x)).double(),
    }
    settings = BUDGET | nothing | {"sde": sde, "smallest_noise": end}
    bound = likelihood_bound(normal((500, 2), 0), **settings).prior
    whole = (bound.terms["diffusion"], -2 * math.log(end) - smallest)
    for estimate, length in ((bound.below_t_min, -2 * math.log(0.3)), whole):
        assert abs(estimate.mean - length) <= 5 * estimate.monte_carlo_error
    assert bound.below_t_min.mean < bound.terms["diffusion"].mean


# --- reconstruction --------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [SMALLEST_NOISE, GREY_STEP, 0.25 * GREY_STEP])
def test_grey_values_against_draws(noise: float) -> None:
    """Catches α/σ upside down, edges treated like inner values, and images averaged."""
    grey = torch.tensor([0, 1, 128, 254, 255]).double()
    x_0 = grey * GREY_STEP - 1
    everything = torch.arange(256).double() * GREY_STEP - 1
    x_eps = x_0 + noise * normal((20_000, 5), 0)
    logits = -0.5 * ((x_eps[..., None] - everything) / noise) ** 2
    drawn = logits.log_softmax(2)[:, torch.arange(5), grey.long()]
    exact = grey_values(x_0.reshape(5, 1, 1, 1), noise)
    assert torch.all((drawn.mean(0) - exact).abs() <= five_errors(drawn) + 1e-12)
    torch.testing.assert_close(grey_values(x_0[None].float(), noise), exact.sum(0, keepdim=True))


def test_grey_values_in_their_limits() -> None:
    """Catches a table of another number of values: certain without noise, else 1 in 256."""
    x_0 = torch.linspace(-1, 1, 256).reshape(1, 1, 16, 16)
    assert grey_values(x_0, 0.02 * GREY_STEP).item() == pytest.approx(0, abs=1e-12)
    # Values within ±1 differ in their logits by 2/1000 · |n| at most.
    assert grey_values(x_0, 1000.0).item() == pytest.approx(-256 * math.log(256), rel=1e-3)


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x_0", "message"),
    [
        (torch.zeros(0, 1, 2, 2), "got no images"),
        (torch.full((1, 1, 2, 2), 0.1234), "256 grey values"),
        (torch.full((1, 1, 2, 2), 1 + GREY_STEP), "256 grey values"),
        (torch.full((1, 1, 2, 2), math.nan), "256 grey values"),
    ],
)
def test_bad_input_is_named(sde: SDE, x_0: Tensor, message: str) -> None:
    """Catches a division by zero or a NaN where a sentence helps."""
    with pytest.raises(UserError, match=message):
        likelihood_bound(x_0, sde=sde, posterior=lambda x_t, t: x_t, **BUDGET)

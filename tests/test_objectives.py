"""Objectives: their value and their minimum on the linear-Gaussian oracle are known exactly."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from oracles import (
    LinearGaussian,
    Network,
    five_errors,
    normal,
    scalar,
    seeded,
    skewed,
    standardised,
    vector,
)
from tiny import tiny_config
from torch import Tensor

from scorevae.config import ObjectiveConfig
from scorevae.gaussian import DiagonalGaussian
from scorevae.objectives import (
    EncoderObjective,
    Objective,
    PriorObjective,
    VAEObjective,
    WarmStartObjective,
    draw_times,
    noise_space_weight,
    weight_over_density,
)
from scorevae.score import score_to_noise
from scorevae.sde import SDE, VPSDE, LinearRate, log_snr_range

COUNT = 100_000
DISTRIBUTIONS = ("uniform", "log_snr")


def integral(function: Callable[[Tensor], Tensor], low: float, high: float) -> Tensor:
    """Trapezoidal rule on 1e5 points: an error of 1e-8 where the tests allow 1e-3."""
    points = torch.linspace(low, high, 100_001, dtype=torch.float64)
    return torch.trapezoid(function(points), points)


def mean_over_times(sde: SDE, function: Callable[[Tensor], Tensor], time: str) -> Tensor:
    """The expectation of a function of t under the distribution that ``time`` names."""
    if time == "uniform":
        return integral(function, sde.t_min, 1) / (1 - sde.t_min)
    largest, smallest = log_snr_range(sde)
    level = integral(lambda v: function(sde.time_of_log_snr(v)), smallest, largest)
    return level / (largest - smallest)


def quantile_of(sde: SDE, t: Tensor, time: str) -> Tensor:
    """Where times lie in the distribution that ``time`` names, from 0 to 1."""
    if time == "uniform":
        return (t - sde.t_min) / (1 - sde.t_min)
    largest, smallest = log_snr_range(sde)
    return (largest - sde.log_snr(t)) / (largest - smallest)


def signal_share(sde: SDE, t: Tensor, variance: Tensor) -> Tensor:
    """Σ_i α² V_i/(α² V_i + σ²): E‖ε − ε̂‖² of the exact prediction for data of variance V."""
    signal = torch.exp(sde.log_snr(t))[:, None] * variance
    return (signal / (1 + signal)).sum(dim=1)


def assert_mean(samples: Tensor, expected: Tensor | float) -> None:
    """The mean is as expected, within five standard errors."""
    assert (samples.mean() - expected).abs() <= five_errors(samples)


def losses_of(objective: Objective, module, x_0: Tensor) -> dict[str, Tensor]:
    """The losses of a module or a function; the same randomness always."""
    return objective.loss(module, x_0, objective.draw(x_0, seeded(1)))


def assert_lower(better: Tensor, worse: Tensor) -> None:
    """Paired samples: the difference of the means exceeds five standard errors."""
    assert (worse - better).mean() > five_errors(worse - better)


# --- times -----------------------------------------------------------------------------------


@pytest.mark.parametrize("time", DISTRIBUTIONS)
def test_times_are_stratified_quantiles_of_their_density(sde: SDE, time: str) -> None:
    """A wrong density or range, or times that are not spread evenly over the batch."""
    t = draw_times(sde, torch.zeros(64, 2).double(), seeded(0), time).t
    assert t.shape == (64,)
    assert torch.all((t >= sde.t_min) & (t <= 1))
    strata = 64 * quantile_of(sde, t, time) - torch.arange(64)
    # Rounding of λ and of its inverse, 64 times.
    torch.testing.assert_close(strata, strata[:1].expand(64), rtol=0, atol=1e-10)
    assert 0 <= strata[0] < 1


@pytest.mark.parametrize("time", DISTRIBUTIONS)
def test_the_offset_of_the_strata_is_uniform(sde: SDE, time: str) -> None:
    """Strata that never move, such as their middles: the estimate would be biased."""
    generator, n, like = seeded(0), 2000, torch.zeros(1, 2).double()
    t = torch.cat([draw_times(sde, like, generator, time).t for _ in range(n)])
    quantile = quantile_of(sde, t, time).sort().values
    gap = (quantile - (torch.arange(n) + 0.5) / n).abs().max()
    # Kolmogorov–Smirnov: P(√n D > 2.6) = 2 exp(−2 · 2.6²) = 3e-6, the level of five deviations.
    assert gap < 2.6 / math.sqrt(n) + 0.5 / n


@pytest.mark.parametrize("time", DISTRIBUTIONS)
def test_inverse_density_integrates_to_the_length_of_the_interval(sde: SDE, time: str) -> None:
    """A density that is not normalised, or its reciprocal: E[1/p] = ∫ dt = 1 − t_min."""
    n = 4096
    times = draw_times(sde, torch.zeros(n, 2).double(), seeded(0), time)
    # A shifted rectangle rule errs by at most (total variation of the integrand)/n; the sampled
    # points miss part of the variation, hence a fine grid.
    fine = draw_times(sde, torch.zeros(100_000, 2).double(), seeded(1), time)
    variation = fine.inverse_density.diff().abs().sum()
    error = (times.inverse_density.mean() - (1 - sde.t_min)).abs()
    assert error <= 1.01 * variation / n + 1e-12


def test_weights_in_noise_space(sde: SDE) -> None:
    """w/σ² with the wrong power of g or σ: "simple" means w = σ², a factor of one."""
    times = draw_times(sde, torch.zeros(8, 2).double(), seeded(0), "uniform")
    weight = (sde.diffusion(times.t) / sde.marginal(times.t).sigma) ** 2
    torch.testing.assert_close(noise_space_weight(sde, times.t), weight)
    length = 1 - sde.t_min
    simple, likelihood = (weight_over_density(sde, times, w) for w in ("simple", "likelihood"))
    torch.testing.assert_close(simple, torch.full((8,), length).double())
    torch.testing.assert_close(likelihood, length * weight)


# --- prior -----------------------------------------------------------------------------------


def prior_losses(
    oracle: LinearGaussian, time: str, factor: float = 1.0, shift: float = 0.0
) -> Tensor:
    """Losses of the exact noise prediction, scaled and shifted; always the same randomness."""

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        score = oracle.prior_score(x_t, t)
        return factor * score_to_noise(oracle.sde, score, t) + shift

    x_0 = oracle.sample_data(COUNT, seeded(0))
    losses = losses_of(PriorObjective(sde=oracle.sde, time=time), Network(network), x_0)
    assert set(losses) == {"loss"}
    assert losses["loss"].shape == (COUNT,)
    return losses["loss"]


@pytest.mark.parametrize("time", DISTRIBUTIONS)
def test_the_prior_loss_is_exact_and_least_at_the_true_score(sde: SDE, time: str) -> None:
    """A lost ½, a mean over pixels, a weight too many, or times of another distribution.

    And a target that is not the noise in x_t: its minimiser would not be the score.
    """
    oracle = skewed(sde)
    best = prior_losses(oracle, time)
    expected = mean_over_times(sde, lambda t: signal_share(sde, t, oracle.S), time)
    assert_mean(best, 0.5 * expected)
    for factor, shift in ((0.95, 0.0), (1.05, 0.0), (1.0, 0.05)):
        assert_lower(best, prior_losses(oracle, time, factor, shift))


# --- VAE -------------------------------------------------------------------------------------


class SmallVAE(torch.nn.Module):
    """Linear encoder and decoder of images of four pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Network(
            lambda x, t: DiagonalGaussian(x.flatten(1)[:, :2], 0.3 * x.flatten(1)[:, 2:])
        )
        self.decoder = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Unflatten(1, (1, 2, 2)))
        self.double()


@pytest.mark.parametrize("error", ["squared", "squared_unit", "paper"])
def test_vae_loss_by_hand(error: str) -> None:
    """Means where sums belong, β on the wrong term, z not sampled, ½ or the root misplaced."""
    vae, x_0 = SmallVAE(), normal((5, 1, 2, 2), 0)
    losses = losses_of(VAEObjective(latent=2, beta=0.3, error=error), vae, x_0)
    noise = torch.randn(5, 2, generator=seeded(1), dtype=torch.float64)
    mean, log_variance = x_0.flatten(1)[:, :2], 0.3 * x_0.flatten(1)[:, 2:]
    z = mean + torch.exp(0.5 * log_variance) * noise
    squared = (x_0 - vae.decoder(z)).pow(2).sum((1, 2, 3))
    in_unit_range = squared / 4
    distortion = {
        "squared": 0.5 * squared,
        "squared_unit": 0.5 * in_unit_range,
        "paper": in_unit_range.sqrt(),
    }[error]
    rate = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)
    expected = {"loss": distortion + 0.3 * rate, "distortion": distortion, "rate": rate}
    torch.testing.assert_close(losses, expected)


# --- encoder ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Skewed:
    """An encoder that is right at t = 0 and wrong elsewhere, by a factor and a shift."""

    oracle: LinearGaussian
    shift: float = 0.0
    log_factor: float = 0.0

    def __call__(self, x_t: Tensor, t: Tensor) -> DiagonalGaussian:
        """The oracle's Gaussian; at t > 0 with another mean and variance."""
        (mean, log_variance), wrong = self.oracle.encode(x_t, t), (t.reshape(-1, 1) > 0).double()
        return DiagonalGaussian(mean + self.shift * wrong, log_variance + self.log_factor * wrong)


SKEWS = [(0.1, 0.0), (0.0, 0.2), (0.0, -0.2)]  # shift and log_factor that must cost something


def encoder_objective_of(
    oracle: LinearGaussian, prior=None, *, beta: float = 1.0, **changes: str
) -> Objective:
    """The encoder's objective beside a prior, the exact one if none."""
    settings = {"weighting": "likelihood", "time": "log_snr", "log_determinant": "full"}
    settings, given = ObjectiveConfig(**settings | changes), {"sde": oracle.sde, "beta": beta}
    prior = prior or oracle.prior_score
    return EncoderObjective(settings, prior=prior, latent=len(oracle.m), **given)


def encoder_losses(oracle: LinearGaussian, encoder=None, **changes) -> dict[str, Tensor]:
    """Losses of an encoder (the exact one if none) on COUNT images; the same randomness always."""
    x_0 = oracle.sample_data(COUNT, seeded(0))
    return losses_of(encoder_objective_of(oracle, **changes), encoder or oracle.encode, x_0)


@pytest.mark.parametrize("weighting", ["likelihood", "simple"])
@pytest.mark.parametrize("time", DISTRIBUTIONS)
def test_encoder_loss_has_its_exact_value_at_the_true_posterior(
    sde: SDE, weighting: str, time: str
) -> None:
    """Any wrong factor, sign, σ or weight; z taken from q(z|x_t); a mean in place of a sum.

    With Bayes' rule exact the score is that of p_t(x_t|z), so with V the variance of p(x_0|z)
    E‖ε − ε̂‖² = Σ α²V/(α²V + σ²), whose integral over λ is ln(1 + V e^λ).
    """
    oracle = skewed(sde)
    _, V = oracle.data_given_latent(torch.zeros(1, 3).double())
    losses = encoder_losses(oracle, weighting=weighting, time=time)
    largest, smallest = (torch.tensor(end).exp() for end in log_snr_range(sde))
    exact = (torch.log1p(V * largest) - torch.log1p(V * smallest)).sum()
    if weighting == "simple":
        exact = integral(lambda t: signal_share(sde, t, V), sde.t_min, 1)
    assert_mean(losses["diffusion"], 0.5 * exact)


@pytest.mark.parametrize("weighting", ["likelihood", "simple"])
def test_times_of_either_distribution_estimate_one_integral(sde: SDE, weighting: str) -> None:
    """A density left out or applied twice; the encoder is wrong so that t matters."""
    oracle = skewed(sde)
    encoder = Skewed(oracle, shift=0.3, log_factor=0.5)
    uniform, level = (
        encoder_losses(oracle, encoder, weighting=weighting, time=time)["diffusion"]
        for time in DISTRIBUTIONS
    )
    allowed = torch.sqrt(five_errors(uniform) ** 2 + five_errors(level) ** 2)
    assert (uniform.mean() - level.mean()).abs() <= allowed


@pytest.mark.parametrize(("shift", "log_factor"), SKEWS)
def test_the_true_posterior_minimises_the_diffusion_term(
    sde: SDE, shift: float, log_factor: float
) -> None:
    """An objective that is minimised elsewhere: a sign, or the prior's term left out."""
    oracle = skewed(sde)
    best = encoder_losses(oracle)["diffusion"]
    assert_lower(best, encoder_losses(oracle, Skewed(oracle, shift, log_factor))["diffusion"])


def bound(oracle: LinearGaussian, losses: dict[str, Tensor]) -> Tensor:
    """METHOD section 6 for β = 1: reconstruction − terminal KL − diffusion − rate.

    The reconstruction is p(x_0|x_ε, z), here Gaussian, in place of its categorical.
    """
    sde = oracle.sde
    _, V = oracle.data_given_latent(torch.zeros(1, 2).double())
    alpha, sigma = sde.marginal(scalar(sde.t_min))
    left = V * sigma**2 / (alpha**2 * V + sigma**2)
    reconstruction = -0.5 * torch.log(2 * math.pi * math.e * left).sum()
    alpha, sigma = sde.marginal(scalar(1.0))
    ratio = (sigma / sde.terminal_std) ** 2
    distance = alpha**2 * (oracle.S + oracle.m**2) / sde.terminal_std**2
    terminal = 0.5 * (distance + ratio - 1 - torch.log(ratio)).sum()
    return reconstruction - terminal - losses["loss"]


def test_likelihood_weighting_with_beta_one_is_the_bound(sde: SDE) -> None:
    """A wrong β, rate or weight shows as a "bound" above ln p(x), or one that is not tight.

    For the exact posterior the bound misses E ln p(x_0) only by KL(p(x_1|z) ‖ π).
    """
    oracle = standardised(sde)
    log_density = -0.5 * torch.log(2 * math.pi * math.e * oracle.S).sum()
    alpha, sigma = sde.marginal(scalar(1.0))
    z = oracle.encode(oracle.sample_data(COUNT, seeded(2)), scalar(0.0)).sample(seeded(3))
    mean, V = oracle.data_given_latent(z)
    variance = (alpha**2 * V + sigma**2) / sde.terminal_std**2
    distance = (alpha * mean / sde.terminal_std) ** 2
    gap = 0.5 * (distance + variance - 1 - torch.log(variance)).sum(1)  # 1e-4 of a nat at most
    exact = bound(oracle, encoder_losses(oracle))
    assert gap.mean() < 1e-3
    assert_mean(exact, log_density - gap.mean())
    worse = bound(oracle, encoder_losses(oracle, Skewed(oracle, 1.0, 0.5)))
    assert worse.mean() < log_density - five_errors(worse)


class Shifted(torch.nn.Module):
    """The oracle's encoder with a mean at t = 0 and one at t > 0 that can be moved."""

    def __init__(self, oracle: LinearGaussian) -> None:
        super().__init__()
        self.oracle = oracle
        self.clean = torch.nn.Parameter(vector(0.2, -0.1, 0.4))
        self.noisy = torch.nn.Parameter(vector(0.0, 0.3, -0.2))

    def forward(self, x_t: Tensor, t: Tensor) -> DiagonalGaussian:
        """The oracle's Gaussian plus the shift that belongs to t."""
        exact = self.oracle.encode(x_t, t)
        shift = torch.where(t.reshape(-1, 1) > 0, self.noisy, self.clean)
        return DiagonalGaussian(exact.mean + shift, exact.log_variance)


def small_loss(encoder: Shifted, prior=None) -> Tensor:
    objective = encoder_objective_of(encoder.oracle, prior, beta=0.0)
    losses = losses_of(objective, encoder, encoder.oracle.sample_data(6, seeded(0)))
    return losses["loss"].sum()


@pytest.mark.parametrize("name", ["clean", "noisy"])
def test_gradients_of_the_encoder_loss_are_its_derivatives(sde: SDE, name: str) -> None:
    """z detached, or the inner gradient detached: with β = 0 the first leaves "clean" at zero.

    Shifts enter the loss as a quadratic, whose central difference is exact up to rounding.
    """
    encoder = Shifted(skewed(sde))
    small_loss(encoder).backward()
    weight = getattr(encoder, name)
    for i in range(3):
        values = []
        for step in (0.5, -0.5):
            with torch.no_grad():
                weight[i] += step
                values.append(small_loss(encoder))
                weight[i] -= step
        difference = (values[0] - values[1]).detach()
        torch.testing.assert_close(weight.grad[i], difference, rtol=1e-8, atol=1e-8)
    assert weight.grad.abs().min() > 1e-3


def test_the_prior_is_a_constant(sde: SDE) -> None:
    """The frozen prior trained along with the encoder, or its graph kept in memory."""
    oracle, weight, modes = skewed(sde), torch.nn.Parameter(scalar(1.0)), []

    def prior(x_t: Tensor, t: Tensor) -> Tensor:
        modes.append(torch.is_grad_enabled())
        return weight * oracle.prior_score(x_t, t)

    small_loss(Shifted(oracle), prior).backward()
    assert weight.grad is None
    assert modes == [False]


def test_the_parity_option_reaches_the_loss(sde: SDE) -> None:
    """An option that is accepted and ignored."""
    oracle = skewed(sde)

    def wavy(x_t: Tensor, t: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(x_t, torch.sin(x_t))

    full, dropped = (
        losses_of(encoder_objective_of(oracle, log_determinant=option), wavy, normal((6, 3), 0))
        for option in ("full", "dropped")
    )
    assert not torch.allclose(full["diffusion"], dropped["diffusion"])


# --- warm start ------------------------------------------------------------------------------


def warm_start_of(sde: SDE, teacher, **changes: float) -> Objective:
    """The warm start's objective beside a teacher."""
    settings = tiny_config().selected.encoder.warm_start.model_copy(update=changes)
    return WarmStartObjective(settings, sde=sde, teacher=Network(teacher))


def warm_losses(
    oracle: LinearGaussian, encoder, clean_share: float, variance_scale: float, count: int = COUNT
) -> Tensor:
    """Losses of an encoder whose teacher is the oracle; the same randomness always."""
    shares = {"clean_share": clean_share, "variance_scale": variance_scale}
    objective = warm_start_of(oracle.sde, oracle.encode, **shares)
    return losses_of(objective, encoder, oracle.sample_data(count, seeded(0)))["loss"]


def pupil(oracle: LinearGaussian, variance_scale: float) -> LinearGaussian:
    """The oracle whose p(z|x_0) is the teacher's with its variance scaled: the exact answer."""
    return replace(oracle, Γ=variance_scale * oracle.Γ)


def test_warm_start_is_zero_where_encoder_and_teacher_agree(sde: SDE) -> None:
    """Clean rows perturbed after all (VE's σ_0 is not zero), or given a time other than 0."""
    # The largest number torch.rand draws is 1 − 2⁻²⁴: every row is clean.
    oracle = skewed(sde)
    losses = warm_losses(oracle, oracle.encode, 1 - 2**-25, 1.0, count=50)
    assert torch.equal(losses, torch.zeros(50).double())


@pytest.mark.parametrize("clean_share", [0.0, 0.25])
@pytest.mark.parametrize("variance_scale", [1.0, 0.1])
def test_warm_start_has_its_exact_value_at_the_true_posterior(
    sde: SDE, clean_share: float, variance_scale: float
) -> None:
    """KL of the wrong order, t of the wrong distribution, a wrong share or variance.

    At the minimum the loss is the entropy of p(z|x_t) less that of p(z|x_0).
    """
    oracle = skewed(sde)
    exact = pupil(oracle, variance_scale)

    def gained(t: Tensor) -> Tensor:
        log_variance = exact.encode(torch.zeros(len(t), 3).double(), t).log_variance
        return 0.5 * (log_variance - exact.Γ.log()).sum(1)

    expected = (1 - clean_share) * mean_over_times(sde, gained, "log_snr")
    assert_mean(warm_losses(oracle, exact.encode, clean_share, variance_scale), expected)


@pytest.mark.parametrize(("shift", "log_factor"), SKEWS)
@pytest.mark.parametrize("variance_scale", [1.0, 0.1])
def test_the_true_posterior_minimises_the_warm_start(
    sde: SDE, shift: float, log_factor: float, variance_scale: float
) -> None:
    """A regression whose minimiser is not p(z|x_t), such as the reversed KL."""
    oracle = skewed(sde)
    exact = pupil(oracle, variance_scale)
    best, worse = (
        warm_losses(oracle, encoder, 0.25, variance_scale)
        for encoder in (exact.encode, Skewed(exact, shift, log_factor))
    )
    assert_lower(best, worse)


def test_the_teacher_is_a_constant(sde: SDE) -> None:
    """The VAE trained along with its pupil."""
    oracle = skewed(sde)
    encoder, teacher = Shifted(oracle), Shifted(oracle)
    objective = warm_start_of(sde, teacher, clean_share=0.5, variance_scale=1.0)
    losses = losses_of(objective, encoder, oracle.sample_data(8, seeded(0)))
    losses["loss"].sum().backward()
    assert encoder.noisy.grad.abs().min() > 0
    assert all(weight.grad is None for weight in teacher.parameters())


# --- draws and losses ------------------------------------------------------------------------


class OracleVAE(torch.nn.Module):
    """The oracle's encoder, and a decoder that returns z."""

    def __init__(self, oracle: LinearGaussian) -> None:
        super().__init__()
        self.encoder, self.decoder = Network(oracle.encode), torch.nn.Identity()


def every_objective(oracle: LinearGaussian) -> dict[str, tuple[Objective, torch.nn.Module]]:
    """Each objective and a module that it is of."""
    prior = Network(lambda x, t: score_to_noise(oracle.sde, oracle.prior_score(x, t), t))
    encoder, teacher = Network(Skewed(oracle, 0.3, 0.5)), oracle.encode
    return {
        "prior": (PriorObjective(sde=oracle.sde, time="log_snr"), prior),
        "vae": (VAEObjective(latent=3, beta=0.3, error="squared"), OracleVAE(oracle)),
        "encoder": (encoder_objective_of(oracle, beta=0.3), encoder),
        "warm start": (warm_start_of(oracle.sde, teacher, clean_share=0.4), encoder),
    }


OBJECTIVES = ("prior", "vae", "encoder", "warm start")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_is_its_draw_and_a_pure_function_of_it(sde: SDE, name: str) -> None:
    """Catches a loss that draws after all: compiled, its noise would not be the seed's.

    And a call that evaluates the loss on other noise than it has drawn.
    """
    oracle = skewed(sde)
    objective, module = every_objective(oracle)[name]
    x_0, generator, calling = oracle.sample_data(5, seeded(0)), seeded(1), seeded(1)
    draw = objective.draw(x_0, generator)
    drawn, untouched = generator.get_state(), torch.get_rng_state()
    first, second = (objective.loss(module, x_0, draw) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(objective(module, x_0, calling), first, rtol=0, atol=0)
    assert torch.equal(generator.get_state(), drawn)
    assert torch.equal(calling.get_state(), drawn)
    assert torch.equal(torch.get_rng_state(), untouched)
    other = objective.loss(module, x_0, objective.draw(x_0, generator))
    assert not torch.equal(other["loss"], first["loss"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_draws_have_their_order(name: str, dtype: torch.dtype) -> None:
    """Catches numbers drawn in another order, dtype or shape: every seed would change its result.

    The order: the offset of the times, ε, the clean rows, the noise of z.
    """
    oracle = skewed(VPSDE(LinearRate(0.1, 20.0), t_min=1e-3))
    objective, _ = every_objective(oracle)[name]
    x_0, generator, expected = torch.zeros(5, 3, dtype=dtype), seeded(1), seeded(1)
    draw = objective.draw(x_0, generator)
    parts = {"vae": ["z_noise"], "prior": ["t", "noise"], "encoder": ["times", "noise", "z_noise"]}
    names = parts.get(name, ["t", "noise", "clean"])
    drawn = dict(zip(names, (draw,) if name == "vae" else draw, strict=True))
    if name != "vae":
        offset = torch.rand((), generator=expected, dtype=dtype)
        largest, smallest = log_snr_range(oracle.sde)
        level = largest - (torch.arange(5, dtype=dtype) + offset) / 5 * (largest - smallest)
        t = oracle.sde.time_of_log_snr(level).clamp(1e-3, 1)
        assert torch.equal(drawn["times"].t if name == "encoder" else drawn["t"], t)
        assert torch.equal(drawn["noise"], torch.randn(5, 3, generator=expected, dtype=dtype))
    if name == "warm start":
        # in single precision always
        assert torch.equal(drawn["clean"], torch.rand(5, generator=expected) < 0.4)
    if name in ("vae", "encoder"):
        assert torch.equal(drawn["z_noise"], torch.randn(5, 3, generator=expected, dtype=dtype))
    assert torch.equal(generator.get_state(), expected.get_state())  # and nothing else


@pytest.mark.parametrize("weighting", ["likelihood", "simple"])
@pytest.mark.parametrize("time", DISTRIBUTIONS)
def test_encoder_loss_by_hand(sde: SDE, weighting: str, time: str) -> None:
    """Catches a draw that reaches the loss in the wrong place, image by image.

    Or β on the wrong term, or a rate averaged over latents. With the oracle's networks prior and
    correction together are the score of p_t(x_t|z).
    """
    oracle = skewed(sde)
    x_0 = oracle.sample_data(5, seeded(0))
    objective = encoder_objective_of(oracle, beta=0.3, weighting=weighting, time=time)
    times, noise, z_noise = draw = objective.draw(x_0, seeded(1))
    losses = objective.loss(oracle.encode, x_0, draw)
    alpha, sigma = (part[:, None] for part in sde.marginal(times.t))
    q_0 = oracle.encode(x_0, scalar(0.0))
    z = q_0.mean + torch.exp(0.5 * q_0.log_variance) * z_noise
    score = oracle.conditional_score(alpha * x_0 + sigma * noise, times.t, z)
    squared = (noise + sigma * score).pow(2).sum(1)
    weight = (sde.diffusion(times.t) / sigma[:, 0]) ** 2 if weighting == "likelihood" else 1.0
    diffusion = 0.5 * weight * times.inverse_density * squared
    rate = q_0.kl_per_latent().sum(1)
    expected = {"loss": diffusion + 0.3 * rate, "diffusion": diffusion, "rate": rate}
    # Bayes' rule cancels: VP's scores at t_min are of order 1/σ = 100 beside a sum of order one.
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-9)

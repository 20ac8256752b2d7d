"""Bounds on ln p(x_0), which arXiv 2304.12141 derives (§3.5, A.1) and does not evaluate.

For 8-bit images in [−1, 1], d numbers each, in nats and as costs (a code length; lower is better):

−ln p(x_0) ≤ E_{z ~ q(z|x_0, 0)}{ −E ln p(x_0|x_ε)              reconstruction
             + KL(q(x_1|x_0) ‖ π)                               prior matching
             + ½ ∫_ε^1 g² E‖∇ln p(x_t|x_0) − s(x_t, z, t)‖² dt } diffusion
             + KL(q(z|x_0, 0) ‖ N(0, I))                        rate

with s = s_p + ∇ln q(z|x_t, t) (Kingma et al. 2021, arXiv 2107.00630, eq. 11 and 13, given z). The
prior alone has no rate and s = s_p. β is one here, whatever β trained the encoder. Since
g²/σ² = −dλ/dt, the diffusion term is ½ ∫ E‖ε − ε̂‖² dλ over the log signal-to-noise ratio λ, and
uniform λ are its importance sampling.

The smallest noise. Reconstruction needs σ_ε/α_ε below the step between grey values, where no
network was trained: at t_min = 1e-3 of the paper's process it is 1.3 steps. The integral
therefore goes on to a noise of its own, :data:`SMALLEST_NOISE` (ε = 1e-4 for the paper's
process), with the score that :func:`extended` defines below t_min. Any score gives a valid
bound, so this costs tightness, not truth; ``Bound.below_t_min`` is what is paid there.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from scorevae.errors import UserError
from scorevae.randomness import make_generator
from scorevae.sampling import Share
from scorevae.score import ConditionalScore, ScoreFn
from scorevae.sde import SDE, log_snr_range, over, perturb
from scorevae.shapes import Data, Times

GREY_STEP = 2 / 255  # between neighbouring grey values of images in [−1, 1]

# σ_ε/α_ε. On digits the bounds of ScoreVAE and of the prior, in bits per dimension, are 7.43 and
# 4.53 at 1.3 steps (t_min), 6.69 and 4.34 at 0.4, 6.75 and 4.52 at 0.25, 7.23 and 5.06 at 0.15:
# less noise costs more below t_min than it saves in reconstruction.
SMALLEST_NOISE = 0.4 * GREY_STEP

Nats = Float64[Tensor, " image"]
Draws = Float64[Tensor, "image draw"]
Repeats = Float64[Tensor, "image repeat"]

# Expected ln p(x_0|x_ε) of each image, in nats, for σ_ε/α_ε.
Decoder = Callable[[Data, float], Nats]


class Estimate(NamedTuple):
    """A mean over images and its standard errors; None where one value has no spread."""

    mean: float
    monte_carlo_error: float | None  # of the estimator: the same images, other noise
    image_error: float | None  # of other images from the same source, noise included

    def scaled(self, factor: float) -> "Estimate":
        """The same in another unit."""
        errors = (None if error is None else factor * error for error in self[1:])
        return Estimate(factor * self.mean, *errors)


class Integrand(NamedTuple):
    """Means of ½‖ε − ε̂‖² in equal bins of λ = ln(α²/σ²), in bits per dimension and unit of λ.

    Their sum times the width of a bin is the diffusion term. NaN where no draw fell into a bin.
    """

    log_snr: Float64[Tensor, " bin"]  # middles of the bins, increasing
    mean: Float64[Tensor, " bin"]
    error: Float64[Tensor, " bin"]  # standard error, draws taken as independent
    trained: float  # λ(t_min): above it the score is that of :func:`extended`


class Bound(NamedTuple):
    """A bound on −ln p(x_0): means over images, in nats; ``terms`` are costs that add up."""

    dimensions: int
    total: Estimate
    terms: dict[str, Estimate]  # reconstruction, prior_matching, diffusion, rate
    below_t_min: Estimate  # the part of the diffusion term from ε to t_min
    theorem_3: Estimate  # ``total`` by the estimator of :func:`theorem_3`
    per_image: Nats
    integrand: Integrand

    def bits_per_dimension(self) -> dict[str, Estimate]:
        """All estimates divided by d ln 2."""
        others = {"below_t_min": self.below_t_min, "theorem_3": self.theorem_3}
        parts = {"total": self.total, **self.terms, **others}
        factor = 1 / (self.dimensions * math.log(2))
        return {name: estimate.scaled(factor) for name, estimate in parts.items()}


class Bounds(NamedTuple):
    """The bound of the prior alone and, from the same t and noise, that with the latent."""

    prior: Bound
    posterior: Bound | None


class Levels(NamedTuple):
    """The λ of every draw, uniform on [smallest, largest], in independent repeats."""

    log_snr: Draws
    largest: float
    smallest: float
    repeats: int

    def integral(self, values: Draws) -> Repeats:
        """∫ values dλ: an estimate for each image and repeat."""
        length = self.largest - self.smallest
        return length * values.unflatten(1, (self.repeats, -1)).mean(dim=2)


@torch.no_grad()
def likelihood_bound(
    x_0: Data,
    *,
    sde: SDE,
    posterior: ConditionalScore | ScoreFn,
    repeats: int,
    draws: int,
    batch: int,
    seed: int,
    smallest_noise: float = SMALLEST_NOISE,
    decoder: Decoder | None = None,
    bins: int = 40,
    share: Share = map,
) -> Bounds:
    """Bounds on −ln p(x_0), see the module; results are on the CPU.

    x_0 holds 8-bit grey values in [−1, 1] on the networks' device; ``posterior`` is s_p and
    what z adds to it, or s_p alone, for the bound of a prior.

    There are ``repeats`` (at least 2) estimates, each from ``draws`` of (t, noise, z) for every
    image. They are independent of each other: their spread is the Monte-Carlo error, however t is
    stratified within one. Noise depends on the seed and an image's row, not on ``batch``.
    ``share`` goes through the draws of each batch.

    At σ_ε/α_ε = ``smallest_noise`` the integral ends and ``decoder`` begins: E ln p(x_0|x_ε), by
    default :func:`grey_values`; with a density in its place the bound is one on a density.

    Raises:
        UserError: no images, or values that are no grey values.
    """
    if len(x_0) == 0:
        raise UserError("likelihood: got no images; give at least one")
    exact = {
        "reconstruction": -(decoder or grey_values)(x_0, smallest_noise),
        "prior_matching": prior_matching(sde, x_0),
    }
    levels = stratified_levels(
        sde, smallest_noise, len(x_0), repeats=repeats, draws=draws, seed=seed
    )
    parts = []
    for first in range(0, len(x_0), batch):
        rows = slice(first, first + batch)
        parts.append(_sample(sde, posterior, x_0[rows], levels.log_snr[rows], seed, first, share))
    noise, alone, *latent = (torch.cat(column) for column in zip(*parts, strict=True))
    no_rate = torch.zeros(len(x_0), dtype=torch.float64)
    prior = _bound(sde, x_0, levels, exact | {"rate": no_rate}, noise, alone, bins)
    if not latent:
        return Bounds(prior, None)
    with_latent, rate = latent
    return Bounds(
        prior, _bound(sde, x_0, levels, exact | {"rate": rate}, noise, with_latent, bins)
    )


def extended(score: ScoreFn, sde: SDE) -> ScoreFn:
    """A score that is also defined below t_min, where its network was not trained.

    There the network is asked at t_min, about x_t brought to the scale of t_min, and its noise
    prediction is kept: ε̂(x_t, t) = ε̂(x_t α_{t_min}/α_t, t_min). No network sees a time that it was
    not trained for. On digits the alternatives are worse: asking at t (with the latent, seven
    times the error at t = 2e-4), or keeping s, or x̂_0, in place of ε̂.
    """

    def extended_score(x_t: Data, t: Times) -> Data:
        seen = t.clamp(min=sde.t_min)
        (alpha, sigma), (alpha_seen, sigma_seen) = sde.marginal(t), sde.marginal(seen)
        x_seen = over(alpha_seen / alpha, x_t) * x_t
        return over(sigma_seen / sigma, x_t) * score(x_seen, seen)

    return extended_score


def stratified_levels(
    sde: SDE, smallest_noise: float, images: int, *, repeats: int, draws: int, seed: int
) -> Levels:
    """λ from ``smallest_noise`` = σ_ε/α_ε to t_max, for every image and draw.

    Draw k of image i within a repeat has the quantile (k + (π(i) + u)/images)/draws with one
    uniform u and one random permutation π: the draws of an image are evenly spaced, and so are
    those of all images together.
    """
    largest, smallest = -2 * math.log(smallest_noise), log_snr_range(sde)[1]
    stratum = torch.arange(draws, dtype=torch.float64)
    quantiles = []
    for repeat in range(repeats):
        generator = make_generator("cpu", seed, "likelihood", "times", repeat)
        order = torch.randperm(images, generator=generator).double()
        offset = torch.rand((), generator=generator, dtype=torch.float64)
        quantiles.append((stratum + ((order + offset) / images)[:, None]) / draws)
    log_snr = largest - torch.cat(quantiles, dim=1) * (largest - smallest)
    return Levels(log_snr, largest, smallest, repeats)


def _sample(
    sde: SDE,
    posterior: ConditionalScore | ScoreFn,
    x_0: Data,
    log_snr: Draws,
    seed: int,
    first: int,
    share: Share,
) -> tuple[Tensor, ...]:
    """‖ε‖² and ‖ε − ε̂_p‖² of some images, draw by draw; given q(z|x_t, t), ‖ε − ε̂‖² and rates."""
    latent = posterior if isinstance(posterior, ConditionalScore) else None
    prior = posterior.prior if isinstance(posterior, ConditionalScore) else posterior
    rows, count = range(first, first + len(x_0)), log_snr.shape[1]
    noise = _noise(x_0, rows, (count, *x_0.shape[1:]), seed, "noise")
    times = sde.time_of_log_snr(log_snr.flatten()).reshape(log_snr.shape).to(x_0)
    if latent is not None:
        q_0 = latent.encoder(x_0, torch.zeros_like(times[:, 0]))
        z_noise = _noise(x_0, rows, (count, q_0.mean.shape[1]), seed, "z")
        z = q_0.mean[:, None] + torch.exp(0.5 * q_0.log_variance)[:, None] * z_noise

    def errors(draw: int) -> list[Nats]:
        t = times[:, draw]
        x_t = perturb(sde, x_0, t, noise[:, draw])
        sigma = over(sde.marginal(t).sigma, x_t)
        residual = noise[:, draw] + sigma * extended(prior, sde)(x_t, t)
        found = [_squared_norm(residual)]
        if latent is not None:
            correction = latent.correction(z[:, draw])
            residual = residual + sigma * extended(correction, sde)(x_t, t)
            found.append(_squared_norm(residual))
        return found

    norms = _squared_norm(noise.flatten(0, 1)).unflatten(0, (len(x_0), count))
    columns = zip(*share(errors, range(count)), strict=True)
    found = norms, *(torch.stack(column, dim=1) for column in columns)
    if latent is None:
        return found
    return *found, q_0.kl_to_standard_normal().double().cpu()


def _noise(
    like: Data, rows: range, shape: tuple[int, ...], seed: int, name: str
) -> Float[Tensor, "image draw *_"]:
    """Standard normal noise for each row, from a generator of its own."""
    generators = (make_generator("cpu", seed, "likelihood", name, row) for row in rows)
    noise = [torch.randn(shape, generator=own, dtype=like.dtype) for own in generators]
    return torch.stack(noise).to(like)


def _squared_norm(x: Data) -> Nats:
    return x.flatten(1).square().sum(dim=1).double().cpu()


def _bound(
    sde: SDE,
    x_0: Data,
    levels: Levels,
    exact: dict[str, Nats],
    noise: Draws,
    errors: Draws,
    bins: int,
) -> Bound:
    """Put the terms together; those in ``exact`` carry no Monte-Carlo error."""
    dimensions = x_0[0].numel()
    diffusion = 0.5 * levels.integral(errors)
    terms = {name: nats[:, None].expand_as(diffusion) for name, nats in exact.items()}
    terms |= {"diffusion": diffusion}
    total = torch.stack(list(terms.values())).sum(dim=0)
    below = errors * (levels.log_snr > log_snr_range(sde)[0])
    by_song = theorem_3(sde, x_0, levels, diffusion - 0.5 * levels.integral(noise))
    return Bound(
        dimensions=dimensions,
        total=estimate(total),
        terms={name: estimate(values) for name, values in terms.items()},
        below_t_min=estimate(0.5 * levels.integral(below)),
        theorem_3=estimate(terms["reconstruction"] + terms["rate"] + by_song),
        per_image=total.mean(dim=1),
        integrand=_binned(sde, levels, errors / (2 * dimensions * math.log(2)), bins),
    )


def prior_matching(sde: SDE, x_0: Data) -> Nats:
    """KL(q(x_1|x_0) ‖ π) at t_max, with π = N(0, τ² I), τ = ``sde.terminal_std``.

    ½ [α_1² ‖x_0‖²/τ² + d (σ_1²/τ² − 1 − ln(σ_1²/τ²))]
    """
    alpha, sigma = sde.marginal(torch.tensor(sde.t_max, dtype=torch.float64))
    ratio = (sigma / sde.terminal_std) ** 2
    signal = (alpha / sde.terminal_std) ** 2 * _squared_norm(x_0.double())
    return 0.5 * (signal + x_0[0].numel() * (ratio - 1 - torch.log(ratio)))


def theorem_3(sde: SDE, x_0: Data, levels: Levels, excess: Repeats) -> Repeats:
    """Prior matching and diffusion in the form of Song et al. 2021, arXiv 2101.09258, theorem 3.

    −ln p_ε(x_ε) ≤ −E ln π(x_1) + ½ ∫ g² E[‖∇ln p(x_t|x_0) − s‖² − ‖∇ln p(x_t|x_0)‖²] dt − ∫ ∇·f dt

    less the entropy (d/2) ln(2πe σ_ε²) of x_ε, which the decoder's ln p(x_0|x_ε) makes up for.
    Appendix A.1 of arXiv 2304.12141 loses both factors ½ and writes π(x_t) for π(x_1). The last
    two integrals together are (d/2) ln(σ_1²/σ_ε²); here they are estimated at the times drawn,
    so that their noise, and any error in f or g, is this estimator's own. ``excess`` is the first
    integral, ½ ∫ g² E[…] dt.
    """
    d = x_0[0].numel()
    t_max, largest = torch.tensor([sde.t_max, levels.largest], dtype=torch.float64)
    end, start = sde.marginal(t_max), sde.marginal(sde.time_of_log_snr(largest))
    variance = sde.terminal_std**2
    second_moment = end.alpha**2 * _squared_norm(x_0.double()) + d * end.sigma**2
    log_pi = -0.5 * (second_moment / variance + d * math.log(2 * math.pi * variance))
    entropy = 0.5 * d * (math.log(2 * math.pi * math.e) + 2 * torch.log(start.sigma))
    t = sde.time_of_log_snr(levels.log_snr.flatten())
    time_per_level = (sde.marginal(t).sigma / sde.diffusion(t)) ** 2  # −dt/dλ
    divergence = d * sde.drift_rate(t) * time_per_level
    divergences = levels.integral(divergence.reshape(levels.log_snr.shape))
    return -(log_pi + entropy)[:, None] + excess - divergences


def estimate(values: Repeats) -> Estimate:
    """Mean of nats, a row for each image; errors from the spread of repeats, and of images."""
    errors = (_standard_error(values.mean(dim)) for dim in (0, 1))
    return Estimate(values.mean().item(), *errors)


def _standard_error(values: Float64[Tensor, " _"]) -> float | None:
    return values.std().item() / math.sqrt(len(values)) if len(values) > 1 else None


def _binned(sde: SDE, levels: Levels, values: Draws, bins: int) -> Integrand:
    """Mean and standard error of the values in equal bins of λ."""
    edges = torch.linspace(levels.smallest, levels.largest, bins + 1, dtype=torch.float64)
    index = torch.bucketize(levels.log_snr.flatten(), edges[1:-1])
    count = torch.bincount(index, minlength=bins).double()

    def mean(x: Float64[Tensor, " _"]) -> Float64[Tensor, " bin"]:
        return torch.zeros(bins, dtype=torch.float64).index_add(0, index, x) / count

    average = mean(values.flatten())
    error = torch.sqrt(mean((values.flatten() - average[index]) ** 2) / (count - 1))
    return Integrand(0.5 * (edges[1:] + edges[:-1]), average, error, log_snr_range(sde)[0])


def grey_values(x_0: Data, noise: float) -> Nats:
    """E ln p(x_0|x_ε) of a categorical over the 256 grey values v, for ``noise`` = σ_ε/α_ε.

    Logits −½ (x_ε/α_ε − v)² α_ε²/σ_ε² (Kingma et al. 2021, §3.3). Given x_0 the pixels are
    independent and their expectation depends on the grey value alone: a table, nothing drawn.

    Raises:
        UserError: a pixel is not one of the 256 grey values.
    """
    position = (x_0.double().cpu() + 1) / GREY_STEP
    index = position.round().long()
    near = ((position - index).abs() <= 1e-3) & (index >= 0) & (index <= 255)
    if not near.all():  # NaN too
        raise UserError(
            "likelihood: pixels lie off the 256 grey values of 8 bits, of which bits per "
            "dimension speak; give the images as they are stored"
        )
    return _grey_value_table(noise)[index].flatten(1).sum(dim=1)


@lru_cache
def _grey_value_table(noise: float) -> Float64[Tensor, "256"]:
    """E ln p(v|v + noise · n), n ~ N(0, 1), for every grey value v, by the trapezoidal rule.

    The integrand's singularities are π · noise/GREY_STEP away from the real axis: with steps of
    0.4 noise/GREY_STEP the error is about e^{−2π²/0.4} = 4e-22, that of the cut at 9 is 1e-17.
    """
    step = min(0.1, 0.4 * noise / GREY_STEP)
    values = torch.arange(256, dtype=torch.float64) * GREY_STEP
    distance = (values[:, None] - values) / noise
    table = torch.zeros(256, dtype=torch.float64)
    for n in torch.arange(-9, 9 + step, step, dtype=torch.float64):
        weight = step * torch.exp(-0.5 * n**2) / math.sqrt(2 * math.pi)
        table += weight * (-0.5 * n**2 - torch.logsumexp(-0.5 * (distance + n) ** 2, dim=1))
    return table

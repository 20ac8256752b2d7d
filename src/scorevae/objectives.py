"""What each network minimises. An objective maps (module, images, generator) to named losses.

Every loss has shape (batch,): squared errors are summed over pixels, KL over latents, and the
caller takes the mean over the batch. Times are drawn in [t_min, 1], stratified over the batch,
and weighted by one over their density, so every combination of weighting and time distribution
is an unbiased estimate of ½ ∫ w(t) ‖∇ln p(x_t|x_0) − s‖² dt (arXiv 2304.12141, eq. 7 and §3.5).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from scorevae.config import ObjectiveConfig, WarmStartConfig
from scorevae.gaussian import DiagonalGaussian
from scorevae.score import Encoder, ScoreFn, latent_score
from scorevae.sde import (
    SDE,
    log_snr_range,
    over,
    perturb,
)
from scorevae.shapes import Data, PerSample

Losses = dict[str, PerSample]
Objective = Callable[[nn.Module, Tensor, torch.Generator], Losses]
Weighting = Literal["likelihood", "simple"]
TimeDistribution = Literal["uniform", "log_snr"]


class VAE(Protocol):
    """An encoder without time and a decoder."""

    encoder: nn.Module
    decoder: nn.Module


class TimeSample(NamedTuple):
    """Times and one over their density."""

    t: PerSample
    inverse_density: PerSample


def draw_times(
    sde: SDE, like: Data, generator: torch.Generator, distribution: TimeDistribution
) -> TimeSample:
    """One time in [t_min, 1] for each row of ``like``, stratified.

    uniform: p(t) = 1/(1 − t_min). log_snr: λ uniform on [λ(1), λ(t_min)], so that
    p(t) = (−dλ/dt)/Z = (g²/σ²)/Z with Z = λ(t_min) − λ(1), by the closed inverse of λ.

    Row i gets the quantile (u + i)/batch, u uniform: each t has exactly the stated density and
    the batch covers it evenly (Kingma et al. 2021, arXiv 2107.00630, appendix I.1). Rows of a
    batch are in random order, so strata and images are independent.
    """
    count = len(like)
    offset = torch.rand((), generator=generator, device=like.device, dtype=like.dtype)
    quantile = (torch.arange(count, device=like.device, dtype=like.dtype) + offset) / count
    if distribution == "uniform":
        t = sde.t_min + quantile * (1 - sde.t_min)
        return TimeSample(t, torch.full_like(t, 1 - sde.t_min))
    largest, smallest = log_snr_range(sde)
    t = sde.time_of_log_snr(largest - quantile * (largest - smallest)).clamp(sde.t_min, 1)
    return TimeSample(t, (largest - smallest) / noise_space_weight(sde, t))


def noise_space_weight(sde: SDE, t: PerSample) -> PerSample:
    """g²/σ² = −dλ/dt: what the likelihood weighting w = g² becomes on ‖ε − ε̂‖²."""
    return (sde.diffusion(t) / sde.marginal(t).sigma) ** 2


def weight_over_density(sde: SDE, times: TimeSample, weighting: Weighting) -> PerSample:
    """w(t)/(σ² p(t)), the factor of ‖ε − ε̂‖²; w = g² (likelihood) or w = σ² (simple)."""
    if weighting == "simple":
        return times.inverse_density
    return noise_space_weight(sde, times.t) * times.inverse_density


def _squared_norm(x: Data) -> PerSample:
    return x.flatten(1).square().sum(dim=1)


def _noise(x_0: Data, generator: torch.Generator) -> Data:
    return torch.randn(x_0.shape, generator=generator, device=x_0.device, dtype=x_0.dtype)


def prior_loss(
    network: nn.Module,
    x_0: Data,
    generator: torch.Generator,
    *,
    sde: SDE,
    time: TimeDistribution,
) -> Losses:
    """Denoising score matching, eq. 7, with λ = σ²: ½ ‖ε − ε_p(x_t, t)‖².

    With ``time="uniform"`` this is the paper's simple weighting. ``time="log_snr"`` draws t by
    importance for the likelihood weighting and leaves the factor Z away: same minimiser.
    """
    t = draw_times(sde, x_0, generator, time).t
    noise = _noise(x_0, generator)
    predicted = network(perturb(sde, x_0, t, noise), t)
    return {"loss": 0.5 * _squared_norm(noise - predicted)}


def vae_loss(
    vae: VAE,
    x_0: Data,
    generator: torch.Generator,
    *,
    beta: float,
    error: Literal["squared", "norm"],
) -> Losses:
    """β-VAE, eq. 2: ½ ‖x − x̂‖² + β KL(q(z|x) ‖ N(0, I)).

    ``error="norm"`` puts ‖x − x̂‖ in place of ½ ‖x − x̂‖², as the published code does.
    """
    posterior: DiagonalGaussian = vae.encoder(x_0, torch.zeros(len(x_0), device=x_0.device))
    squared = _squared_norm(x_0 - vae.decoder(posterior.sample(generator)))
    distortion = 0.5 * squared if error == "squared" else squared.sqrt()
    rate = posterior.kl_to_standard_normal()
    return {"loss": distortion + beta * rate, "distortion": distortion, "rate": rate}


def encoder_loss(
    encoder: Encoder,
    x_0: Data,
    generator: torch.Generator,
    *,
    sde: SDE,
    prior: ScoreFn,
    beta: float,
    weighting: Weighting,
    time: TimeDistribution,
    log_determinant: bool,
) -> Losses:
    """The objective of arXiv 2304.12141, §3.5, with z ~ q(z|x_0, 0) reparameterised.

    ½ ∫ w(t) E‖∇ln p(x_t|x_0) − s_p(x_t, t) − ∇ln q(z|x_t, t)‖² dt + β KL(q(z|x_0, 0) ‖ N(0, I))

    In noise space the norm is ‖ε − ε̂‖²/σ² with ε̂ = −σ (s_p + ∇ln q). The gradient reaches the
    encoder through ∇ln q, through z and through the KL; the prior is a constant.
    """
    times = draw_times(sde, x_0, generator, time)
    noise = _noise(x_0, generator)
    x_t = perturb(sde, x_0, times.t, noise)
    with torch.no_grad():
        prior_term = prior(x_t, times.t)
    posterior = encoder(x_0, torch.zeros_like(times.t))
    z = posterior.sample(generator)
    correction = latent_score(encoder, x_t, times.t, z, log_determinant=log_determinant)
    sigma = over(sde.marginal(times.t).sigma, x_0)
    error = _squared_norm(noise + sigma * (prior_term + correction))
    diffusion = 0.5 * weight_over_density(sde, times, weighting) * error
    rate = posterior.kl_to_standard_normal()
    return {"loss": diffusion + beta * rate, "diffusion": diffusion, "rate": rate}


def warm_start_loss(
    encoder: Encoder,
    x_0: Data,
    generator: torch.Generator,
    *,
    sde: SDE,
    teacher: Encoder,
    clean_share: float,
    variance_scale: float,
) -> Losses:
    """Regress q_t on a fixed q_0: KL(q_0(z|x_0) ‖ q_t(z|x_t, t)), λ(t) uniform, some t = 0.

    Eq. 11, p(z|x_t) = E[q_0(z|x_0) | x_t], makes E KL(p(z|x_t) ‖ q_t) equal to this up to a
    constant; the minimiser is the best Gaussian approximation. No inner gradient, no prior.
    q_0 is the ``teacher``, the VAE's encoder, with its variances times ``variance_scale``: the
    objective's optimum under likelihood weighting is far more certain of z than the VAE is. A
    share ``clean_share`` of the rows is left unperturbed.
    """
    t = draw_times(sde, x_0, generator, "log_snr").t
    noise = _noise(x_0, generator)
    clean = torch.rand(t.shape, generator=generator, device=t.device) < clean_share
    t = torch.where(clean, torch.zeros_like(t), t)
    x_t = torch.where(over(clean, x_0), x_0, perturb(sde, x_0, t, noise))
    with torch.no_grad():
        mean, log_variance = teacher(x_0, torch.zeros_like(t))
    target = DiagonalGaussian(mean, log_variance + math.log(variance_scale))
    return {"loss": target.kl_to(encoder(x_t, t))}


def bind_encoder_loss(
    settings: ObjectiveConfig, *, sde: SDE, prior: ScoreFn, beta: float
) -> Objective:
    """:func:`encoder_loss` as ``params.yaml`` asks for it."""
    return partial(
        encoder_loss,
        sde=sde,
        prior=prior,
        beta=beta,
        weighting=settings.weighting,
        time=settings.time,
        log_determinant=settings.log_determinant == "full",
    )


def bind_warm_start_loss(settings: WarmStartConfig, *, sde: SDE, teacher: nn.Module) -> Objective:
    """:func:`warm_start_loss` as ``params.yaml`` asks for it."""
    return partial(
        warm_start_loss,
        sde=sde,
        teacher=teacher,
        clean_share=settings.clean_share,
        variance_scale=settings.variance_scale,
    )

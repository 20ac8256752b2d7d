"""What each network minimises. An objective maps (module, images, generator) to named losses.

It does so in steps: a draw, which is all of its randomness; what frozen networks say of it; and
the losses, a pure function of (module, images, draw, what they said) but for a network's own
dropout. Every loss has shape (batch,): squared errors are summed over pixels, KL over latents, and
the caller takes the mean over the batch. Times are drawn in [t_min, t_max], stratified over the
batch, and weighted by one over their density, so every combination of weighting and time
distribution is an unbiased estimate of ½ ∫ w(t) ‖∇ln p(x_t|x_0) − s‖² dt (arXiv 2304.12141, eq. 7
and §3.5).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from scorevae.config import ObjectiveConfig, TimeDistribution, VAEError, WarmStartConfig
from scorevae.gaussian import DiagonalGaussian, normal_like
from scorevae.score import ConditionalScore, Encoder, ScoreFn, latent_score
from scorevae.sde import SDE, log_snr_range, over, perturb
from scorevae.shapes import Data, Latents, PerSample

Losses = dict[str, PerSample]
Weighting = Literal["likelihood", "simple"]


class Objective(ABC):
    """A draw and the loss of what was drawn; called, one after the other.

    Apart, they let a loop draw outside of what it compiles, and compile what is trained apart from
    what is frozen.
    """

    @abstractmethod
    def draw(self, x_0: Data, generator: torch.Generator) -> Any:  # noqa: ANN401 (the loss's own)
        """Everything random, for images like these; tensors with a row for each."""

    def frozen(self, x_0: Data, draw: Any) -> Any:  # noqa: ANN401
        """What networks say that are not trained here; no gradient passes through it."""
        del x_0, draw

    @abstractmethod
    def trained(self, module: Any, x_0: Data, draw: Any, frozen: Any) -> Losses:  # noqa: ANN401
        """The losses of a module, given what was drawn and what :meth:`frozen` gave."""

    def loss(self, module: Any, x_0: Data, draw: Any) -> Losses:  # noqa: ANN401
        """The losses of a module, given what was drawn; nothing is drawn here."""
        return self.trained(module, x_0, draw, self.frozen(x_0, draw))

    def __call__(self, module: nn.Module, x_0: Data, generator: torch.Generator) -> Losses:
        """The losses of a module."""
        return self.loss(module, x_0, self.draw(x_0, generator))


class TimeSample(NamedTuple):
    """Times and one over their density."""

    t: PerSample
    inverse_density: PerSample


def draw_times(
    sde: SDE, like: Data, generator: torch.Generator, distribution: TimeDistribution
) -> TimeSample:
    """One time in [t_min, t_max] for each row of ``like``, stratified.

    uniform: p(t) = 1/(t_max − t_min). log_snr: λ uniform on [λ(t_max), λ(t_min)], so that
    p(t) = (−dλ/dt)/Z = (g²/σ²)/Z with Z = λ(t_min) − λ(t_max), by the closed inverse of λ.

    Row i gets the quantile (u + i)/batch, u uniform: each t has exactly the stated density and
    the batch covers it evenly (Kingma et al. 2021, arXiv 2107.00630, appendix I.1). Rows of a
    batch are in random order, so strata and images are independent.
    """
    count = len(like)
    offset = torch.rand((), generator=generator, device=like.device, dtype=like.dtype)
    quantile = (torch.arange(count, device=like.device, dtype=like.dtype) + offset) / count
    if distribution == "uniform":
        length = sde.t_max - sde.t_min
        t = sde.t_min + quantile * length
        return TimeSample(t, torch.full_like(t, length))
    largest, smallest = log_snr_range(sde)
    t = sde.time_of_log_snr(largest - quantile * (largest - smallest)).clamp(sde.t_min, sde.t_max)
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


PriorDraw = tuple[PerSample, Data]  # t and ε
LatentDraw = tuple[TimeSample, Data, Latents]  # times, ε and the noise of z
WarmStartDraw = tuple[PerSample, Data, Bool[Tensor, " batch"]]  # t, ε, rows put back to t = 0


@dataclass(frozen=True)
class PriorObjective(Objective):
    """Denoising score matching, eq. 7, with λ = σ²: ½ ‖ε − ε_p(x_t, t)‖².

    With ``time="uniform"`` this is the paper's simple weighting. ``time="log_snr"`` draws t by
    importance for the likelihood weighting and leaves the factor Z away: same minimiser.
    """

    sde: SDE
    time: TimeDistribution

    def draw(self, x_0: Data, generator: torch.Generator) -> PriorDraw:
        """Times, then ε."""
        return draw_times(self.sde, x_0, generator, self.time).t, normal_like(x_0, generator)

    def trained(self, module: nn.Module, x_0: Data, draw: PriorDraw, frozen: None) -> Losses:
        """``loss`` of ε_p."""
        t, noise = draw
        predicted = module(perturb(self.sde, x_0, t, noise), t)
        return {"loss": 0.5 * _squared_norm(noise - predicted)}


class VAE(Protocol):
    """An encoder without time and a decoder, of z or of (x_t, z, t)."""

    encoder: nn.Module
    decoder: nn.Module


# Of ‖x − x̂‖² of images in [−1, 1]. Images in [0, 1] are half as far apart.
VAE_ERRORS: dict[VAEError, Callable[[PerSample], PerSample]] = {
    "squared": lambda squared: 0.5 * squared,
    "squared_unit": lambda squared: 0.125 * squared,
    "paper": lambda squared: 0.5 * squared.sqrt(),
}


@dataclass(frozen=True)
class VAEObjective(Objective):
    """β-VAE, eq. 2: a distortion + β KL(q(z|x) ‖ N(0, I)).

    The distortion by ``error``: squared, ½ ‖x − x̂‖² of images in [−1, 1]; squared_unit, the same
    of images in [0, 1], a quarter of it; paper, ‖x − x̂‖ of images in [0, 1], not squared, as in
    the code behind the paper's tables.

    β sets the squared error D that z leaves in each of its directions of Gaussian data (reverse
    water-filling): D = β, and D = β E‖x − x̂‖ for the norm, each in the units of its images.
    """

    latent: int
    beta: float
    error: VAEError

    def draw(self, x_0: Data, generator: torch.Generator) -> Latents:
        """The noise of z."""
        return normal_like(x_0, generator, self.latent)

    def trained(self, module: VAE, x_0: Data, draw: Latents, frozen: None) -> Losses:
        """``loss`` of encoder and decoder; ``distortion`` and ``rate``, the KL."""
        posterior: DiagonalGaussian = module.encoder(x_0, torch.zeros(len(x_0), device=x_0.device))
        squared = _squared_norm(x_0 - module.decoder(posterior.at(draw)))
        distortion = VAE_ERRORS[self.error](squared)
        rate = posterior.kl_to_standard_normal()
        return {"loss": distortion + self.beta * rate, "distortion": distortion, "rate": rate}


@dataclass(frozen=True)
class LatentObjective(Objective):
    """What the objectives share that integrate the error of a score given z over the times.

    ½ ∫ w(t) E‖∇ln p(x_t|x_0) − s(x_t, z, t)‖² dt; in noise space the norm is ‖ε − ε̂‖²/σ² with
    ε̂ = −σ s. The settings choose the weighting and the distribution of t.
    """

    settings: ObjectiveConfig
    sde: SDE
    latent: int

    def draw(self, x_0: Data, generator: torch.Generator) -> LatentDraw:
        """Times, then ε, then the noise of z."""
        times = draw_times(self.sde, x_0, generator, self.settings.time)
        return times, normal_like(x_0, generator), normal_like(x_0, generator, self.latent)

    def integral(self, times: TimeSample, residual: Data) -> PerSample:
        """½ ∫ w/σ² ‖ε − ε̂‖² dt of the residuals ε − ε̂ at the times drawn."""
        weight = weight_over_density(self.sde, times, self.settings.weighting)
        return 0.5 * weight * _squared_norm(residual)


@dataclass(frozen=True)
class EncoderObjective(LatentObjective):
    """The objective of arXiv 2304.12141, §3.5, with z ~ q(z|x_0, 0) reparameterised.

    ½ ∫ w(t) E‖∇ln p(x_t|x_0) − s_p(x_t, t) − ∇ln q(z|x_t, t)‖² dt + β KL(q(z|x_0, 0) ‖ N(0, I))

    The gradient reaches the encoder through ∇ln q, through z and through the KL; the prior is a
    constant.
    """

    prior: ScoreFn
    beta: float

    def frozen(self, x_0: Data, draw: LatentDraw) -> Data:
        """The prior's score of x_t."""
        times, noise, _ = draw
        with torch.no_grad():
            return self.prior(perturb(self.sde, x_0, times.t, noise), times.t)

    def trained(self, module: Encoder, x_0: Data, draw: LatentDraw, frozen: Data) -> Losses:
        """``loss`` of the encoder; ``diffusion``, the integral, and ``rate``, the KL."""
        times, noise, z_noise = draw
        x_t = perturb(self.sde, x_0, times.t, noise)
        posterior = module(x_0, torch.zeros_like(times.t))
        z = posterior.at(z_noise)
        full = self.settings.log_determinant == "full"
        correction = latent_score(module, x_t, times.t, z, log_determinant=full)
        sigma = over(self.sde.marginal(times.t).sigma, x_0)
        diffusion = self.integral(times, noise + sigma * (frozen + correction))
        rate = posterior.kl_to_standard_normal()
        return {"loss": diffusion + self.beta * rate, "diffusion": diffusion, "rate": rate}


@dataclass(frozen=True)
class CorrectorObjective(LatentObjective):
    """The same integral for the corrector of ScoreVAE+, prior and encoder frozen.

    ½ ∫ w(t) E‖∇ln p(x_t|x_0) − s_p(x_t, t) − ∇ln q(z|x_t, t) − c(x_t, z, t)‖² dt

    with c = −net/σ and z ~ q(z|x_0, 0); in noise space ε̂ = −σ (s_p + ∇ln q) + net. For the net
    this is plain regression on what the pair leaves of ε, with the minimiser
    E[ε|x_t, z] + σ (s_p + ∇ln q). The rate is the encoder's, hence fixed, and no part of it.
    """

    posterior: ConditionalScore

    def frozen(self, x_0: Data, draw: LatentDraw) -> tuple[Latents, Data]:
        """z, and the score of prior and encoder given z."""
        times, noise, z_noise = draw
        x_t = perturb(self.sde, x_0, times.t, noise)
        with torch.no_grad():
            z = self.posterior.encoder(x_0, torch.zeros_like(times.t)).at(z_noise)
            return z, self.posterior.score(z)(x_t, times.t)

    def trained(
        self, module: nn.Module, x_0: Data, draw: LatentDraw, frozen: tuple[Latents, Data]
    ) -> Losses:
        """``loss`` of the net, the integral."""
        times, noise, _ = draw
        z, score = frozen
        x_t = perturb(self.sde, x_0, times.t, noise)
        sigma = over(self.sde.marginal(times.t).sigma, x_0)
        return {"loss": self.integral(times, noise + sigma * score - module(x_t, z, times.t))}


@dataclass(frozen=True)
class DiffusionDecoderObjective(LatentObjective):
    """Encoder and conditional U-Net together, arXiv 2304.12141, §3.2, eq. 10.

    ½ ∫ w(t) E‖∇ln p(x_t|x_0) − s_θ(x_t, z, t)‖² dt + β KL(q(z|x_0) ‖ N(0, I))

    with s_θ = −ε_θ/σ and z ~ q(z|x_0) reparameterised. The gradient reaches the encoder through z
    and through the KL.
    """

    beta: float

    def trained(self, module: VAE, x_0: Data, draw: LatentDraw, frozen: None) -> Losses:
        """``loss`` of both; ``diffusion``, the integral, and ``rate``, the KL."""
        times, noise, z_noise = draw
        x_t = perturb(self.sde, x_0, times.t, noise)
        posterior: DiagonalGaussian = module.encoder(x_0, torch.zeros_like(times.t))
        predicted = module.decoder(x_t, posterior.at(z_noise), times.t)
        diffusion = self.integral(times, noise - predicted)
        rate = posterior.kl_to_standard_normal()
        return {"loss": diffusion + self.beta * rate, "diffusion": diffusion, "rate": rate}


@dataclass(frozen=True)
class WarmStartObjective(Objective):
    """Regress q_t on a fixed q_0: KL(q_0(z|x_0) ‖ q_t(z|x_t, t)), λ(t) uniform, some t = 0.

    Eq. 11, p(z|x_t) = E[q_0(z|x_0) | x_t], makes E KL(p(z|x_t) ‖ q_t) equal to this up to a
    constant; the minimiser is the best Gaussian approximation. No inner gradient, no prior.
    q_0 is the ``teacher``, the VAE's encoder, with its variances times ``variance_scale``: the
    objective's optimum under likelihood weighting is far more certain of z than the VAE is. A
    share ``clean_share`` of the rows is left unperturbed.
    """

    settings: WarmStartConfig
    sde: SDE
    teacher: Encoder

    def draw(self, x_0: Data, generator: torch.Generator) -> WarmStartDraw:
        """Times, then ε, then the clean rows."""
        t = draw_times(self.sde, x_0, generator, "log_snr").t
        noise = normal_like(x_0, generator)
        uniform = torch.rand(t.shape, generator=generator, device=t.device)
        return t, noise, uniform < self.settings.clean_share

    def frozen(self, x_0: Data, draw: WarmStartDraw) -> DiagonalGaussian:
        """q_0, the target."""
        with torch.no_grad():
            mean, log_variance = self.teacher(x_0, torch.zeros_like(draw[0]))
        return DiagonalGaussian(mean, log_variance + math.log(self.settings.variance_scale))

    def trained(
        self, module: Encoder, x_0: Data, draw: WarmStartDraw, frozen: DiagonalGaussian
    ) -> Losses:
        """``loss`` of the encoder."""
        drawn, noise, clean = draw
        t = torch.where(clean, torch.zeros_like(drawn), drawn)
        x_t = torch.where(over(clean, x_0), x_0, perturb(self.sde, x_0, t, noise))
        return {"loss": frozen.kl_to(module(x_t, t))}

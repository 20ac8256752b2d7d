"""Scores, their equivalents, and Bayes' rule for scores (arXiv 2304.12141, §3.3).

A score function takes (x_t, t) and returns s ≈ ∇_{x_t} ln p_t(x_t) in the shape of x_t. With
p(x_t|x_0) = N(α x_0, σ² I) it is equivalent to a noise prediction ε̂ = −σ s and to a denoised
image x̂_0 = (x_t + σ² s)/α (Tweedie's formula).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from scorevae.gaussian import DiagonalGaussian
from scorevae.sde import SDE, over
from scorevae.shapes import Data, Latents, Times

ScoreFn = Callable[[Tensor, Tensor], Tensor]
LatentScore = Callable[[Tensor], ScoreFn]  # z -> a score, or a part of one


class Encoder(Protocol):
    """q(z|x_t, t): a time-dependent diagonal Gaussian, eq. 12."""

    def __call__(self, x_t: Data, t: Times) -> DiagonalGaussian:
        """The Gaussian of each x_t of the batch."""
        ...


def score_to_noise(sde: SDE, score: Data, t: Times) -> Data:
    """ε̂ = −σ_t s."""
    return -over(sde.marginal(t).sigma, score) * score


def noise_to_score(sde: SDE, noise: Data, t: Times) -> Data:
    """s = −ε̂/σ_t."""
    return -noise / over(sde.marginal(t).sigma, noise)


def score_to_denoised(sde: SDE, score: Data, x_t: Data, t: Times) -> Data:
    """x̂_0 = E[x_0|x_t] = (x_t + σ_t² s)/α_t (Tweedie)."""
    alpha, sigma = sde.marginal(t)
    return (x_t + over(sigma, x_t) ** 2 * score) / over(alpha, x_t)


def denoised_to_score(sde: SDE, denoised: Data, x_t: Data, t: Times) -> Data:
    """s = (α_t x̂_0 − x_t)/σ_t²."""
    alpha, sigma = sde.marginal(t)
    return (over(alpha, x_t) * denoised - x_t) / over(sigma, x_t) ** 2


def prior_score(network: nn.Module, sde: SDE) -> ScoreFn:
    """s_p(x_t, t) = −ε_p(x_t, t)/σ_t of a frozen noise-predicting network.

    The prior sees x_t only, so its evaluation never belongs to a gradient: it runs without
    building a graph. The network is expected in evaluation mode; what it gives under autocast is
    turned back before it is divided.
    """

    def score(x_t: Data, t: Times) -> Data:
        with torch.no_grad():
            return noise_to_score(sde, network(x_t, t.to(x_t)).to(x_t), t)

    return score


def conditional_score(network: nn.Module, sde: SDE) -> LatentScore:
    """−net(x_t, z, t)/σ_t of a frozen network that sees z.

    A score s(x_t, z, t) where the network predicts the noise, a correction of one where it
    corrects the prediction. It runs without building a graph.
    """

    def given(z: Latents) -> ScoreFn:
        def score(x_t: Data, t: Times) -> Data:
            with torch.no_grad():
                return noise_to_score(sde, network(x_t, z, t.to(x_t)).to(x_t), t)

        return score

    return given


def latent_score(
    encoder: Encoder, x_t: Data, t: Times, z: Latents, *, log_determinant: bool = True
) -> Data:
    """∇_{x_t} ln q(z|x_t, t), normaliser included: Σ(x_t, t) depends on x_t too.

    Uses ``torch.func.grad``, which differentiates inside and leaves the caller's gradient mode
    and tensors alone: under ``torch.no_grad`` the result is a plain tensor, otherwise a second
    derivative (with respect to the encoder's weights, or z) can be taken through it.

    ``log_determinant=False`` differentiates the quadratic term alone, as the code published
    with the paper does; the mean of the result over z ~ q(z|x_t, t) is then not zero.
    """

    def log_likelihood(x: Tensor) -> Tensor:
        return encoder(x, t).log_prob(z, log_determinant=log_determinant).sum()

    return torch.func.grad(log_likelihood)(x_t)


def of_coarser_code(encoder: Encoder, noise: float) -> Encoder:
    """q(z'|x_t) of z' = z + s ε, ε ~ N(0, I), for z ~ q(z|x_t): N(μ, Σ + s² I).

    ε knows nothing of x_t, so this is exact wherever q(z|x_t) is: one encoder has a code for
    every rate below its own.
    """

    def noised(x_t: Data, t: Times) -> DiagonalGaussian:
        mean, log_variance = encoder(x_t, t)
        own = torch.full_like(log_variance, 2 * math.log(noise))
        return DiagonalGaussian(mean, torch.logaddexp(log_variance, own))

    return noised


@dataclass(frozen=True)
class ConditionalScore(ABC):
    """p(x|z) by its scores: that of the prior, and what z adds to it."""

    prior: ScoreFn  # s_p
    encoder: Encoder

    @abstractmethod
    def correction(self, z: Latents) -> ScoreFn:
        """What z adds to the prior's score, all of it."""

    def score(self, z: Latents, *, guidance: float = 1.0) -> ScoreFn:
        """s(x_t, z, t) = s_p(x_t, t) + γ correction(x_t, t).

        γ = 1 is the model; γ = 0 is the prior itself (nothing else is called); any other γ is a
        different, sharpened or softened model to which no bound of the paper applies.
        """
        if guidance == 0:
            return self.prior
        correction = self.correction(z)

        def score(x_t: Data, t: Times) -> Data:
            t = t.to(x_t)
            with torch.no_grad():
                added = correction(x_t, t)
            return self.prior(x_t, t) + guidance * added

        return score


@dataclass(frozen=True)
class Posterior(ConditionalScore):
    """p(x|z) ∝ p(x) q(z|x): Bayes' rule for scores, §3.3.

    ScoreVAE+ (version 2 of the paper) has a corrector c(x_t, z, t) besides, for what the encoder's
    Gaussian family and its training leave undone.
    """

    log_determinant: bool = True  # as the encoder was trained, see :func:`latent_score`
    corrector: LatentScore | None = None  # c

    def correction(self, z: Latents) -> ScoreFn:
        """∇_{x_t} ln q(z|x_t, t), plus c(x_t, z, t) where there is a corrector."""
        corrector = None if self.corrector is None else self.corrector(z)

        def score(x_t: Data, t: Times) -> Data:
            added = latent_score(self.encoder, x_t, t, z, log_determinant=self.log_determinant)
            return added if corrector is None else added + corrector(x_t, t)

        return score


@dataclass(frozen=True)
class LearnedScore(ConditionalScore):
    """A network's own score s_θ(x_t, z, t) of p(x|z), the diffusion decoder's (§3.2)."""

    conditional: LatentScore  # s_θ

    def correction(self, z: Latents) -> ScoreFn:
        """s_θ − s_p, beside any prior of the same images."""
        conditional = self.conditional(z)
        return lambda x_t, t: conditional(x_t, t) - self.prior(x_t, t)

    def score(self, z: Latents, *, guidance: float = 1.0) -> ScoreFn:
        """s_p + γ (s_θ − s_p); for γ = 1 that is s_θ alone, and no prior is asked."""
        return self.conditional(z) if guidance == 1 else super().score(z, guidance=guidance)

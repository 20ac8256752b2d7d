"""Diagonal Gaussians: the family of q(z|x_t, t), eq. 12 of arXiv 2304.12141."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scorevae.shapes import Latents, PerSample


def normal_like(x: Tensor, generator: torch.Generator | None, *shape: int) -> Tensor:
    """Standard normal noise for each row of x, in the shape of a row or another one."""
    size = (len(x), *(shape or x.shape[1:]))
    return torch.randn(size, generator=generator, device=x.device, dtype=x.dtype)


class DiagonalGaussian(NamedTuple):
    """N(mean, diag exp(log_variance)), one Gaussian per row."""

    mean: Latents
    log_variance: Latents

    def at(self, noise: Latents) -> Latents:
        """mean + std · noise: a draw for standard normal noise, with gradients to both."""
        return self.mean + torch.exp(0.5 * self.log_variance) * noise

    def sample(self, generator: torch.Generator | None = None) -> Latents:
        """:meth:`at` noise that is drawn here."""
        return self.at(normal_like(self.mean, generator))

    def log_prob(self, z: Latents, *, log_determinant: bool = True) -> PerSample:
        """ln N(z; mean, Σ) = −½ Σ_i [(z_i − μ_i)²/Σ_ii + ln Σ_ii + ln 2π], summed over latents.

        ``log_determinant=False`` keeps the quadratic term alone. That is no density; it exists
        because the code published with arXiv 2304.12141 differentiates it (parity option).
        """
        quadratic = (z - self.mean) ** 2 * torch.exp(-self.log_variance)
        if not log_determinant:
            return -0.5 * quadratic.sum(dim=1)
        return -0.5 * (quadratic + self.log_variance + math.log(2 * math.pi)).sum(dim=1)

    def kl_per_latent(self) -> Latents:
        """KL(self ‖ N(0, 1)) of each latent, in nats: ½ (μ² + Σ − 1 − ln Σ)."""
        return 0.5 * (self.mean**2 + torch.expm1(self.log_variance) - self.log_variance)

    def kl_to_standard_normal(self) -> PerSample:
        """KL(self ‖ N(0, I)) in nats, summed over latents: the rate of one image."""
        return self.kl_per_latent().sum(dim=1)

    def kl_to(self, other: "DiagonalGaussian") -> PerSample:
        """KL(self ‖ other) in nats, summed over latents.

        ½ Σ_i [Σ_i/Σ'_i − 1 − ln(Σ_i/Σ'_i) + (μ_i − μ'_i)²/Σ'_i]
        """
        log_ratio = self.log_variance - other.log_variance
        distance = (self.mean - other.mean) ** 2 * torch.exp(-other.log_variance)
        return 0.5 * (torch.expm1(log_ratio) - log_ratio + distance).sum(dim=1)

"""The linear-Gaussian oracle: a world in which every score and every posterior is closed.

x_0 ~ N(m, diag S), z = A x_0 + N(0, diag Γ), everything diagonal, data flat (batch, dim). Then
p_t(x_t), p(z|x_t), p_t(x_t|z) and p(x_0|z) are Gaussian for every forward process, and the
oracle stands in for the prior's network and for the encoder.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from scorevae.gaussian import DiagonalGaussian
from scorevae.score import Posterior
from scorevae.sde import SDE


def mainly(kind: str) -> pytest.MarkDecorator:
    """One value of the fixture ``sde`` in `make test`, the others in `make test-faults`."""
    others = [k for k in ("vp", "subvp", "ve") if k != kind]
    rest = [pytest.param(other, marks=pytest.mark.faults) for other in others]
    return pytest.mark.parametrize("sde", [kind, *rest], indirect=True)


@dataclass(frozen=True)
class LinearGaussian:
    """Closed forms for one process; all vectors have shape (dim,), float64."""

    sde: SDE
    m: Tensor  # mean of x_0
    S: Tensor  # variance of x_0
    A: Tensor  # z = A x_0 + noise
    Γ: Tensor  # variance of that noise

    def sample_data(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw x_0."""
        noise = torch.randn(count, len(self.m), generator=generator, dtype=self.m.dtype)
        return self.m + self.S.sqrt() * noise

    def prior_score(self, x_t: Tensor, t: Tensor) -> Tensor:
        """∇ ln p_t(x_t) of p_t = N(α m, α² S + σ²)."""
        return self._score(x_t, t, self.m, self.S)

    def encode(self, x_t: Tensor, t: Tensor) -> DiagonalGaussian:
        """p(z|x_t); at t = 0 the image is clean, also under VE, whose σ_0 is not zero."""
        alpha, sigma = self._columns(t)
        sigma = torch.where(t.reshape(-1, 1) > 0, sigma, torch.zeros_like(sigma))
        total = alpha**2 * self.S + sigma**2
        mean = self.m + alpha * self.S / total * (x_t - alpha * self.m)
        variance = self.S * sigma**2 / total
        log_variance = torch.log(self.A**2 * variance + self.Γ)
        return DiagonalGaussian(self.A * mean, log_variance.expand(mean.shape))

    @property
    def posterior(self) -> Posterior:
        """Both of them, for Bayes' rule."""
        return Posterior(self.prior_score, self.encode)

    def data_given_latent(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (batch, dim) and variance (dim,) of p(x_0|z)."""
        total = self.A**2 * self.S + self.Γ
        mean = self.m + self.S * self.A / total * (z - self.A * self.m)
        return mean, self.S * self.Γ / total

    def conditional_score(self, x_t: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """∇ ln p_t(x_t|z)."""
        return self._score(x_t, t, *self.data_given_latent(z))

    def _score(self, x_t: Tensor, t: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        alpha, sigma = self._columns(t)
        return (alpha * mean - x_t) / (alpha**2 * variance + sigma**2)

    def _columns(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ as columns; written without the package's own broadcasting."""
        alpha, sigma = self.sde.marginal(t)
        return alpha.reshape(-1, 1), sigma.reshape(-1, 1)


def skewed(sde: SDE) -> LinearGaussian:
    """Three unlike dimensions, one of which the latent hardly sees."""
    return LinearGaussian(
        sde,
        m=vector(0.5, -1.0, 0.2),
        S=vector(1.0, 0.3, 2.0),
        A=vector(1.5, -0.8, 0.1),
        Γ=vector(0.2, 0.05, 1.0),
    )


def standardised(sde: SDE) -> LinearGaussian:
    """Two dimensions whose latents are N(0, I) over the data, as the model assumes."""
    S, Γ = vector(1.0, 0.3), vector(0.2, 0.5)
    return LinearGaussian(sde, m=vector(0.0, 0.0), S=S, A=torch.sqrt((1 - Γ) / S), Γ=Γ)


def vector(*values: float) -> Tensor:
    """A float64 vector."""
    return torch.tensor(values, dtype=torch.float64)


def scalar(value: float) -> Tensor:
    """A float64 time."""
    return torch.tensor(value, dtype=torch.float64)


def seeded(seed: int) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(seed)


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal float64 numbers."""
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def five_errors(samples: Tensor) -> Tensor:
    """Five standard errors of the mean over the first axis."""
    return 5 * samples.std(dim=0) / len(samples) ** 0.5


def randomise(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Give every weight, also those that start at zero, a value of its own."""
    generator = seeded(seed)
    with torch.no_grad():
        for weight in network.parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.copy_(0.3 * noise)
    return network


class Network(torch.nn.Module):
    """A function of (x_t, t), or (x_t, z, t), as the module that the package expects."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Tensor) -> Tensor:
        """The function's value."""
        return self.function(*arguments)


@dataclass(frozen=True)
class GaussianMixture:
    """x_0 ~ Σ_k w_k N(m_k, v_k I): p_t and its score are closed; float64, data (batch, dim)."""

    sde: SDE
    weights: Tensor  # (components,)
    means: Tensor  # (components, dim)
    variances: Tensor  # (components,)

    def log_density(self, x_t: Tensor, t: Tensor) -> Tensor:
        """ln p_t(x_t) of p_t = Σ_k w_k N(α m_k, (α² v_k + σ²) I)."""
        return self._log_joint(x_t, t).logsumexp(dim=1)

    def score(self, x_t: Tensor, t: Tensor) -> Tensor:
        """∇ ln p_t(x_t): the components' scores, weighted by their posterior probabilities."""
        alpha, variance = self._columns(t)
        share = self._log_joint(x_t, t).softmax(dim=1) / variance
        distance = alpha[..., None] * self.means - x_t[:, None]
        return (share[..., None] * distance).sum(dim=1)

    def _log_joint(self, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, variance = self._columns(t)
        squared = ((x_t[:, None] - alpha[..., None] * self.means) ** 2).sum(dim=2)
        log_normal = -0.5 * (
            squared / variance + x_t.shape[1] * torch.log(2 * torch.pi * variance)
        )
        return self.weights.log() + log_normal

    def _columns(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """α as (batch or 1, 1), and the components' variances."""
        alpha, sigma = (part.reshape(-1, 1) for part in self.sde.marginal(t))
        return alpha, alpha**2 * self.variances + sigma**2

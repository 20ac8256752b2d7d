"""Forward processes dx = a(t) x dt + g(t) dw with p(x_t|x_0) = N(α_t x_0, σ_t² I), t in [0, 1].

Formulas: Song et al. 2020, arXiv 2011.13456, appendix B and C; METHOD of ScoreVAE: arXiv
2304.12141, §2.2. All times are tensors of shape () or (batch,); results have the same shape.

Every process here satisfies g²/σ² = −dλ/dt with the log signal-to-noise ratio λ = ln(α²/σ²):
the likelihood weighting in noise space is the density of λ, which is why drawing λ uniformly
is the importance sampling of that weighting (:mod:`scorevae.objectives`).
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus

from scorevae.config import SDEConfig
from scorevae.shapes import Data, Times


class Marginal(NamedTuple):
    """Mean factor and standard deviation of p(x_t|x_0) = N(alpha x_0, sigma² I)."""

    alpha: Times
    sigma: Times


class SDE(Hashable, Protocol):
    """What a forward process answers; t in [0, 1], shapes () or (batch,)."""

    @property
    def t_min(self) -> float:
        """The smallest time ε that is trained and sampled, in (0, t_max)."""
        ...

    @property
    def t_max(self) -> float:
        """The largest, at most 1, the paper's: less where a prior does not know more noise."""
        ...

    @property
    def terminal_std(self) -> float:
        """Standard deviation of the distribution π at t_max from which sampling starts."""
        ...

    def marginal(self, t: Times) -> Marginal:
        """α_t and σ_t."""
        ...

    def drift_rate(self, t: Times) -> Times:
        """a(t) = d ln α_t / dt; the drift is f(x, t) = a(t) x."""
        ...

    def diffusion(self, t: Times) -> Times:
        """g(t)."""
        ...

    def log_snr(self, t: Times) -> Times:
        """λ(t) = ln(α_t²/σ_t²), strictly decreasing in t."""
        ...

    def time_of_log_snr(self, log_snr: Times) -> Times:
        """The inverse of :meth:`log_snr`."""
        ...


@dataclass(frozen=True)
class LinearRate:
    """β(t) = β_min + t (β_max − β_min) and its integral, shared by VP and sub-VP."""

    beta_min: float
    beta_max: float

    def rate(self, t: Times) -> Times:
        """β(t)."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integral(self, t: Times) -> Times:
        """B(t) = ∫_0^t β(s) ds = ½ (β_max − β_min) t² + β_min t."""
        return 0.5 * (self.beta_max - self.beta_min) * t**2 + self.beta_min * t

    def time_of_integral(self, integral: Times) -> Times:
        """The inverse of B: the root of the quadratic in its form without cancellation."""
        slope = self.beta_max - self.beta_min
        root = torch.sqrt(self.beta_min**2 + 2 * slope * integral)
        return 2 * integral / (self.beta_min + root)


@dataclass(frozen=True)
class VPSDE:
    """Variance preserving: α² = e^{−B}, σ² = 1 − e^{−B}, g² = β(t). Song 2020, eq. 11."""

    beta: LinearRate
    t_min: float
    t_max: float = 1.0
    terminal_std: float = 1.0

    def marginal(self, t: Times) -> Marginal:
        """α = e^{−B/2}; σ by expm1, since 1 − e^{−B} in float32 is 2.4 % wrong at t = 1e-5."""
        integral = self.beta.integral(t)
        return Marginal(torch.exp(-0.5 * integral), torch.sqrt(-torch.expm1(-integral)))

    def drift_rate(self, t: Times) -> Times:
        """a(t) = −½ β(t)."""
        return -0.5 * self.beta.rate(t)

    def diffusion(self, t: Times) -> Times:
        """g = √β(t)."""
        return torch.sqrt(self.beta.rate(t))

    def log_snr(self, t: Times) -> Times:
        """λ = −ln(e^B − 1) = −B − ln(1 − e^{−B})."""
        integral = self.beta.integral(t)
        return -integral - torch.log(-torch.expm1(-integral))

    def time_of_log_snr(self, log_snr: Times) -> Times:
        """B = softplus(−λ), then the inverse of B."""
        return self.beta.time_of_integral(softplus(-log_snr))


@dataclass(frozen=True)
class SubVPSDE:
    """Sub-VP: α² = e^{−B}, σ = 1 − e^{−B}, g² = β(t)(1 − e^{−2B}). Song 2020, eq. 12."""

    beta: LinearRate
    t_min: float
    t_max: float = 1.0
    terminal_std: float = 1.0

    def marginal(self, t: Times) -> Marginal:
        """α = e^{−B/2}, σ = −expm1(−B)."""
        integral = self.beta.integral(t)
        return Marginal(torch.exp(-0.5 * integral), -torch.expm1(-integral))

    def drift_rate(self, t: Times) -> Times:
        """a(t) = −½ β(t)."""
        return -0.5 * self.beta.rate(t)

    def diffusion(self, t: Times) -> Times:
        """g = √(β(t) (1 − e^{−2B}))."""
        return torch.sqrt(self.beta.rate(t) * -torch.expm1(-2 * self.beta.integral(t)))

    def log_snr(self, t: Times) -> Times:
        """λ = −B − 2 ln(1 − e^{−B})."""
        integral = self.beta.integral(t)
        return -integral - 2 * torch.log(-torch.expm1(-integral))

    def time_of_log_snr(self, log_snr: Times) -> Times:
        """σ/α = 2 sinh(B/2) = e^{−λ/2}, hence B = 2 asinh(e^{−λ/2}/2)."""
        return self.beta.time_of_integral(2 * torch.asinh(0.5 * torch.exp(-0.5 * log_snr)))


@dataclass(frozen=True)
class VESDE:
    """Variance exploding: α = 1, σ = σ_min (σ_max/σ_min)^t, g² = 2σ² ln(σ_max/σ_min).

    Song 2020, eq. 9 and 31.
    """

    sigma_min: float
    sigma_max: float
    t_min: float
    t_max: float = 1.0

    @property
    def terminal_std(self) -> float:
        """σ at t_max, where the data are negligible beside the noise."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** self.t_max

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def marginal(self, t: Times) -> Marginal:
        """α = 1, σ = σ_min e^{t ln(σ_max/σ_min)}."""
        return Marginal(torch.ones_like(t), self.sigma_min * torch.exp(t * self._log_ratio))

    def drift_rate(self, t: Times) -> Times:
        """a(t) = 0."""
        return torch.zeros_like(t)

    def diffusion(self, t: Times) -> Times:
        """g = σ √(2 ln(σ_max/σ_min))."""
        return self.marginal(t).sigma * math.sqrt(2 * self._log_ratio)

    def log_snr(self, t: Times) -> Times:
        """λ = −2 ln σ, linear in t."""
        return -2 * (math.log(self.sigma_min) + t * self._log_ratio)

    def time_of_log_snr(self, log_snr: Times) -> Times:
        """t = (−λ/2 − ln σ_min) / ln(σ_max/σ_min)."""
        return (-0.5 * log_snr - math.log(self.sigma_min)) / self._log_ratio


def build_sde(settings: SDEConfig) -> SDE:
    """The forward process that ``params.yaml`` asks for under ``sde``."""
    ends = settings.t_min, settings.t_max
    match settings.kind:
        case "vp":
            return VPSDE(LinearRate(settings.beta_min, settings.beta_max), *ends)
        case "subvp":
            return SubVPSDE(LinearRate(settings.beta_min, settings.beta_max), *ends)
        case "ve":
            return VESDE(settings.sigma_min, settings.sigma_max, *ends)


def over(t: Tensor, x: Tensor) -> Tensor:
    """View a per-sample quantity so that it multiplies x: () stays, (batch,) gets x's axes.

    The only place where times are broadcast over images.
    """
    return t if t.ndim == 0 else t.reshape(-1, *(1,) * (x.ndim - 1))


def perturb(sde: SDE, x_0: Data, t: Times, noise: Data) -> Data:
    """x_t = α_t x_0 + σ_t noise, a draw from p(x_t|x_0) for standard normal noise."""
    alpha, sigma = sde.marginal(t)
    return over(alpha, x_0) * x_0 + over(sigma, x_0) * noise


@lru_cache
def log_snr_range(sde: SDE) -> tuple[float, float]:
    """λ at t_min and at t_max (largest, smallest), computed in float64."""
    # Also where networks are built on torch's meta device, which knows no numbers.
    times = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64, device="cpu")
    ends = sde.log_snr(times)
    return ends[0].item(), ends[1].item()

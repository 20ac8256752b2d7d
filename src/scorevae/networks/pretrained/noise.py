"""What foreign networks are told of the noise: their own process at a log-SNR, and their label.

Whatever a checkpoint calls its time, at λ = ln(α²/σ²) its network was trained on x' = α' y + σ' ε
with ln(α'²/σ'²) = λ. Each section here knows α', σ' and the label at any λ of its range, which is
the range that the network was trained on, and all that it may be asked about.
"""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from scorevae.config import Positive, Section
from scorevae.sde import SDE, VESDE, VPSDE, LinearRate, SubVPSDE, log_snr_range
from scorevae.shapes import Times

Range = tuple[float, float]  # of λ: largest, smallest


class Native(NamedTuple):
    """The foreign process at some λ, and what its network is told; float64, as λ."""

    alpha: Times
    sigma: Times
    label: Times


class IndexedNoise(Section):
    """A DDPM grid of indices (Ho et al. 2020, arXiv 2006.11239), variance preserving.

    Between indices, of which alone the network was told, the index is linear in λ.
    """

    kind: Literal["indexed"] = "indexed"
    log_snr: Annotated[list[float], Field(min_length=2)]  # of index 0, 1, …, decreasing
    label_scale: Positive  # the label of index i is i times this

    def range(self) -> Range:
        """λ of the first index and of the last."""
        return self.log_snr[0], self.log_snr[-1]

    @cached_property
    def tables(self) -> dict[torch.device, Tensor]:
        """λ in rising order, by device: a network asks at every evaluation."""
        return {}

    def _rising(self, device: torch.device) -> Tensor:
        if device not in self.tables:
            table = torch.tensor(self.log_snr[::-1], dtype=torch.float64, device=device)
            self.tables[device] = table
        return self.tables[device]

    def at(self, log_snr: Times) -> Native:
        """α'² = sigmoid(λ), σ'² = sigmoid(−λ), and the fractional index."""
        rising = self._rising(log_snr.device)
        right = torch.searchsorted(rising, log_snr.contiguous()).clamp(1, len(rising) - 1)
        low, high = rising[right - 1], rising[right]
        index = len(rising) - right - (log_snr - low) / (high - low)
        alpha, sigma = (torch.exp(0.5 * logsigmoid(sign * log_snr)) for sign in (1, -1))
        return Native(alpha, sigma, index.clamp(0, len(rising) - 1) * self.label_scale)


class ContinuousNoise(Section):
    """A process of Song et al. 2020 (arXiv 2011.13456), in continuous time from t_min to 1.

    Networks of VP and sub-VP are told 999 t, those of VE σ.
    """

    kind: Literal["continuous"] = "continuous"
    process: Literal["vp", "subvp", "ve"]
    low: Positive  # β_min, σ_min
    high: Positive  # β_max, σ_max
    t_min: Positive

    @property
    def sde(self) -> SDE:
        """The process."""
        match self.process:
            case "vp":
                return VPSDE(LinearRate(self.low, self.high), self.t_min)
            case "subvp":
                return SubVPSDE(LinearRate(self.low, self.high), self.t_min)
            case "ve":
                return VESDE(self.low, self.high, self.t_min)

    def range(self) -> Range:
        """λ at t_min and at 1."""
        return log_snr_range(self.sde)

    def at(self, log_snr: Times) -> Native:
        """The process at the time that has this λ."""
        t = self.sde.time_of_log_snr(log_snr)
        alpha, sigma = self.sde.marginal(t)
        return Native(alpha, sigma, sigma if self.process == "ve" else 999 * t)


# c_noise of Karras et al. 2022, table 1, for their own networks and for those of VE.
SIGMA_LABELS: dict[str, Callable[[Tensor], Tensor]] = {
    "quarter_log": lambda sigma: sigma.log() / 4,
    "log_half": lambda sigma: (0.5 * sigma).log(),
}


class SigmaNoise(Section):
    """x' = y + σ' ε (Karras et al. 2022, arXiv 2206.00364), the network told of σ'."""

    kind: Literal["sigma"] = "sigma"
    sigma_min: Positive
    sigma_max: Positive
    label: Literal["quarter_log", "log_half"]

    def range(self) -> Range:
        """λ = −2 ln σ' at the ends."""
        return -2 * math.log(self.sigma_min), -2 * math.log(self.sigma_max)

    def at(self, log_snr: Times) -> Native:
        """α' = 1, σ' = e^{−λ/2}."""
        sigma = torch.exp(-0.5 * log_snr)
        return Native(torch.ones_like(sigma), sigma, SIGMA_LABELS[self.label](sigma))


Noise = Annotated[IndexedNoise | ContinuousNoise | SigmaNoise, Field(discriminator="kind")]

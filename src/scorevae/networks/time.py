"""What every time-dependent network sees of t: the noise level, and images of unit scale."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from scorevae.sde import SDE, log_snr_range, over
from scorevae.shapes import Data, Times


class NoiseLevel:
    """The noise of x_t as a number in [0, 1000], increasing in t, like the index of a DDPM grid.

    From t_min to t_max it runs from 50 to 1000, linear in the log-SNR and hence evenly resolved
    where the likelihood weighting trains. From 0 to t_min, where the log-SNR diverges, it is
    linear in t: a clean image (t = 0, encoding) is a distinct input, not one of noise t_min.
    Were they one, q(z|x_0, 0) could be no more certain than q(z|x_t, t_min).
    """

    def __init__(self, sde: SDE) -> None:
        self.sde = sde
        # Here, for the numbers of a tensor are nothing that a graph could compute.
        self.largest, self.smallest = log_snr_range(sde)

    def __call__(self, t: Times) -> Times:
        """The level of every time."""
        sde, length = self.sde, self.largest - self.smallest
        fraction = (self.largest - sde.log_snr(t.clamp(min=sde.t_min))) / length
        return 50 * (t / sde.t_min).clamp(max=1) + 950 * fraction.clamp(0, 1)


def unit_scale(sde: SDE, x_t: Data, t: Times) -> Data:
    """x_t / √(α² + σ²): keeps inputs of order one under VE; the identity for VP."""
    alpha, sigma = sde.marginal(t)
    return x_t / over(torch.sqrt(alpha**2 + sigma**2), x_t)


def signal_share(sde: SDE, t: Times) -> Float[Tensor, " batch"]:
    """α/√(α² + σ²), one number for each time: from 1 (clean) to nearly 0 (noise)."""
    alpha, sigma = sde.marginal(t.reshape(-1))
    return alpha / torch.sqrt(alpha**2 + sigma**2)


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding of the noise level, then a two-layer perceptron."""

    def __init__(self, sde: SDE, width: int) -> None:
        super().__init__()
        self.sde, self.width = sde, width
        self.noise_level = NoiseLevel(sde)
        self.layers = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Times) -> Float[Tensor, "batch width"] | Float[Tensor, "1 width"]:
        """Embed times of shape (batch,) or (); the latter gives one row."""
        level = self.noise_level(t.reshape(-1))
        half = self.width // 2
        octaves = torch.arange(half, device=t.device, dtype=t.dtype) / half
        angles = level[:, None] * torch.exp(-math.log(10_000) * octaves)
        return self.layers(torch.cat([angles.sin(), angles.cos()], dim=1))

"""A foreign network behind (x_t, t): whatever it was trained to say, ε is read off it.

A network knows images y, which are ours, x_0 in [−1, 1], or (x_0 + 1)/2 in [0, 1]. At time t of
our process x_t = α x_0 + σ ε. Divided by α and moved to the range of y that is y + (s σ/α) ε with
s = 1 or ½, whose log-SNR is λ' = λ − 2 ln s; brought to the network's own scale it is
x' = α' y + σ' ε with the same ε. That is what the network sees, and what it says of x' gives ε.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from scorevae.config import Count, DataRange, Section
from scorevae.networks.pretrained.noise import Noise, Range
from scorevae.networks.pretrained.song_unet import SongUNetConfig
from scorevae.sde import SDE, over
from scorevae.shapes import Images, Times

SIGMA_DATA = 0.5  # of EDM's networks

# How far apart two images are in the range of y, for one between ours.
RANGES = {"[-1, 1]": 1.0, "[0, 1]": 0.5}

AnyOutput = Float[Tensor, "batch _ height width"]  # maybe with a variance beside the rest

# (output, x', α', σ') -> ε. Outputs, by name: ε; −ε; y; v = α' ε − σ' y (Salimans & Ho 2022, arXiv
# 2202.00512), where α'² + σ'² = 1; the score −ε/σ'; and F of Karras et al. 2022 (arXiv 2206.00364,
# table 1), y = c_skip x' + c_out F with σ_data = ½.
Reading = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
PREDICTIONS: dict[str, Reading] = {
    "noise": lambda output, x, alpha, sigma: output,
    "negative_noise": lambda output, x, alpha, sigma: -output,
    "sample": lambda output, x, alpha, sigma: (x - alpha * output) / sigma,
    "velocity": lambda output, x, alpha, sigma: sigma * x + alpha * output,
    "score": lambda output, x, alpha, sigma: -sigma * output,
    "edm": lambda output, x, alpha, sigma: _edm_noise(output, x, sigma),
}
Prediction = Literal["noise", "negative_noise", "sample", "velocity", "score", "edm"]


def _edm_noise(output: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """(x' − c_skip x' − c_out F)/σ' = (σ' x' − σ_data √(σ'² + σ_data²) F)/(σ'² + σ_data²)."""
    total = sigma**2 + SIGMA_DATA**2
    return (sigma * x - SIGMA_DATA * total.sqrt() * output) / total


class DiffusersUNet(Section):
    """diffusers' ``UNet2DModel`` by its own configuration."""

    kind: Literal["diffusers"] = "diffusers"
    config: dict[str, Any]
    # Heads of every attention, where that is what is fixed and not their width; else null.
    heads: Count | None

    def build(self) -> nn.Module:
        """The network, untrained, (x', label) -> output."""
        from diffusers import UNet2DModel

        unet = UNet2DModel(**self.config)
        for module in unet.modules() if self.heads is not None else []:
            if hasattr(module, "heads"):
                width = module.to_q.out_features
                module.heads, module.scale = self.heads, (width // self.heads) ** -0.5
        return _Diffusers(unet)


class _Diffusers(nn.Module):
    """``UNet2DModel`` called as the others are."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Images, label: Times) -> AnyOutput:
        return self.unet(x, label, return_dict=False)[0]


class ForeignNetwork(Section):
    """A network of somebody else's, and all that is needed to read ε off it."""

    network: Annotated[DiffusersUNet | SongUNetConfig, Field(discriminator="kind")]
    noise: Noise
    prediction: Prediction
    data_range: DataRange
    origin: str  # where it came from, for the report
    sha256: str  # of the file of weights

    def log_snr_range(self) -> Range:
        """The λ of our images between which it was trained (largest, smallest)."""
        shift = 2 * math.log(RANGES[self.data_range])
        largest, smallest = self.noise.range()
        return largest + shift, smallest + shift


class PretrainedPrior(nn.Module):
    """ε_p(x_t, t) of a foreign network, under any process whose noise it knows."""

    def __init__(self, settings: ForeignNetwork, sde: SDE) -> None:
        super().__init__()
        self.sde, self.settings = sde, settings
        self.network = settings.network.build()

    def forward(self, x_t: Images, t: Times) -> Images:
        """Predict the noise of x_t; t has shape () or (batch,)."""
        scale = RANGES[self.settings.data_range]
        exact = t.to(torch.float64).reshape(-1)
        log_snr = self.sde.log_snr(exact) - 2 * math.log(scale)
        native = self.settings.noise.at(log_snr)
        alpha, sigma, ours = (
            over(part.to(x_t), x_t) for part in (*native[:2], self.sde.marginal(exact).alpha)
        )
        x = alpha * (scale * (x_t / ours) + (1 - scale))
        seen = x if self.settings.prediction != "edm" else x / torch.sqrt(sigma**2 + SIGMA_DATA**2)
        output = self.network(seen, native.label.to(x_t).expand(len(x_t)))
        output = output[:, : x_t.shape[1]]  # a learned variance comes after the rest
        return PREDICTIONS[self.settings.prediction](output, x, alpha, sigma)

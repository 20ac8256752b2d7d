"""The prior: a DDPM U-Net that predicts the noise in x_t, or a network from elsewhere."""

import copy
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import nn

from scorevae.config import ImageConfig, SDEConfig, UNetConfig
from scorevae.errors import UserError
from scorevae.networks.pretrained.adapter import ForeignNetwork, PretrainedPrior
from scorevae.networks.time import NoiseLevel, unit_scale
from scorevae.networks.weights import Header, load_weights, read_header
from scorevae.runtime.files import own_path
from scorevae.sde import SDE, build_sde, log_snr_range, over
from scorevae.shapes import Images, Times

PRIOR = "prior.safetensors"  # in a folder of models
RANGE_ROUNDING = 1e-6  # of a log-SNR that went through a time and back


def build_unet(
    image: ImageConfig,
    settings: UNetConfig,
    in_channels: int,
    **further: Any,  # noqa: ANN401 (arguments of diffusers)
) -> nn.Module:
    """diffusers' ``UNet2DModel`` (Ho et al. 2020) of ``params.yaml``, from images to images.

    Raises:
        UserError: the image cannot be halved as often as there are levels.
    """
    # Here, for who builds none: it takes seconds, as any path imports all of its models.
    from diffusers import UNet2DModel

    levels = len(settings.channels)
    if image.size % 2 ** (levels - 1):
        raise UserError(
            f"prior.network.channels: {levels} levels do not divide images of size "
            f"{image.size}; give fewer levels"
        )
    attends = [image.size // 2**level in settings.attention for level in range(levels)]
    return UNet2DModel(
        sample_size=image.size,
        in_channels=in_channels,
        out_channels=image.channels,
        layers_per_block=settings.blocks,
        block_out_channels=tuple(settings.channels),
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in attends[::-1]),
        norm_num_groups=settings.groups,
        dropout=settings.dropout,
        add_attention=bool(settings.attention),
        **further,
    )


def predicted_noise(
    sde: SDE, kind: Literal["noise", "velocity"], output: Images, scaled: Images, t: Times
) -> Images:
    """ε̂ of what a U-Net gives for x_t at unit scale: that, or of the velocity σ x_t + α v."""
    if kind == "noise":
        return output
    alpha, sigma = (over(part, scaled) for part in sde.marginal(t))
    return (sigma * scaled + alpha * output) / torch.sqrt(alpha**2 + sigma**2)


class PriorUNet(nn.Module):
    """ε_p(x_t, t): diffusers' ``UNet2DModel`` of Ho et al. 2020 behind (x_t, t).

    The U-Net reads the noise level (linear in log-SNR, 0 to 1000) in place of the DDPM index.
    With ``output: noise`` it gives ε_p, as in the paper. With ``output: velocity`` it gives
    v = α ε − σ x_0 (Salimans & Ho 2022, arXiv 2202.00512, appendix D) of x_t at unit scale, and
    ε_p = σ x_t + α v: its errors in x̂_0 are then multiplied by σ, not by σ/α, which is 150 at
    t = 1 of the paper's process.
    """

    def __init__(self, image: ImageConfig, settings: UNetConfig, sde: SDE) -> None:
        super().__init__()
        self.sde, self.noise_level = sde, NoiseLevel(sde)
        self.output = settings.output
        self.unet = build_unet(image, settings, image.channels)

    def forward(self, x_t: Images, t: Times) -> Images:
        """Predict the noise of x_t; t has shape () or (batch,)."""
        level, scaled = self.noise_level(t), unit_scale(self.sde, x_t, t)
        output = self.unet(scaled, level.to(torch.float32), return_dict=False)[0]
        return predicted_noise(self.sde, self.output, output, scaled, t)


class PriorHeader(Header):
    """What a prior's weights are."""

    kind: Literal["prior"] = "prior"
    image: ImageConfig
    sde: SDEConfig
    network: UNetConfig | ForeignNetwork

    @property
    def foreign(self) -> bool:
        """Whether others made the network, for which any process will do whose noise it knows."""
        return isinstance(self.network, ForeignNetwork)

    @property
    def origin(self) -> str:
        """Where the network comes from."""
        return self.network.origin if isinstance(self.network, ForeignNetwork) else "trained here"

    def build(self) -> PriorUNet | PretrainedPrior:
        """The network, untrained."""
        if isinstance(self.network, ForeignNetwork):
            return PretrainedPrior(self.network, build_sde(self.sde))
        return PriorUNet(self.image, self.network, build_sde(self.sde))

    def check_covers(self, sde: SDEConfig, where: str) -> None:
        """Raise UserError, naming ``where``, unless it knows all noise of a process.

        A network of ours knows its own process, from t_min to t_max; a foreign one any process,
        from its largest log-SNR to its smallest.
        """
        process = build_sde(sde)
        if isinstance(self.network, ForeignNetwork):
            known = self.network.log_snr_range()
        elif sde.model_copy(update={"t_min": self.sde.t_min, "t_max": self.sde.t_max}) == self.sde:
            known = log_snr_range(build_sde(self.sde))
        else:
            raise UserError(
                f"{where}: a prior of the process ({self.sde}), not of ({sde}); choose one that "
                "was trained under this process"
            )
        largest, smallest = log_snr_range(process)
        first, last = process.time_of_log_snr(torch.tensor(known, dtype=torch.float64)).tolist()
        remedies = []
        if largest > known[0] + RANGE_ROUNDING:
            remedies.append(f"sde.t_min to {math.ceil(first * 1e5) / 1e5:g} or more")
        if smallest < known[1] - RANGE_ROUNDING:
            remedies.append(f"sde.t_max to {math.floor(last * 1e4) / 1e4:g} or less")
        if remedies:
            raise UserError(
                f"{where}: the prior knows noise of log-SNR {known[0]:.4g} to {known[1]:.4g}, the "
                f"process goes from {largest:.4g} to {smallest:.4g}; set {' and '.join(remedies)}"
            )


class Prior(NamedTuple):
    """A loaded prior."""

    network: PriorUNet | PretrainedPrior
    header: PriorHeader

    @property
    def sde(self) -> SDE:
        """The process that it is used under."""
        return build_sde(self.header.sde)

    def under(self, sde: SDEConfig) -> Self:
        """The same prior under a process whose noise it knows.

        Raises:
            UserError: it does not.
        """
        if sde == self.header.sde:
            return self
        self.header.check_covers(sde, "prior")
        network = self.network
        if isinstance(network, PretrainedPrior):
            network = copy.copy(network)  # the same weights
            network.sde = build_sde(sde)
        return self._replace(network=network, header=self.header.model_copy(update={"sde": sde}))


def load_prior(path: Path) -> Prior:
    """Rebuild a frozen prior on the CPU; raises as ``read_header`` and ``load_weights``."""
    header = read_header(path, PriorHeader)
    return Prior(load_weights(path, header.build()), header)


def decoding_prior(folder: Path, other: str | None) -> Path:
    """The prior of a folder of models, with which its encoder was trained, or another file.

    ``other`` is ``reconstruct.prior``.

    Raises:
        UserError: there is nothing at the path that it names.
    """
    return folder / PRIOR if other is None else own_path(other, "reconstruct.prior")

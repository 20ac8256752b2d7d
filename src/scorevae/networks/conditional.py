"""U-Nets that read z beside x_t, and the diffusion decoder (arXiv 2304.12141, §3.2).

z enters in one of two ways. ``concatenate``, the paper's: the mirror decoder makes an image of z,
which lies beside x_t as further channels of the input. ``scale``: a linear map of SiLU(z) joins
the embedding of time, by which every residual block scales and shifts its second group norm.
"""

from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import nn

from scorevae.config import Conditioning, EncoderNetworkConfig, ImageConfig, SDEConfig, UNetConfig
from scorevae.networks.encoder import build_encoder
from scorevae.networks.prior import build_unet, predicted_noise
from scorevae.networks.time import NoiseLevel, unit_scale
from scorevae.networks.vae import build_decoder
from scorevae.networks.weights import Header, load_weights, read_header
from scorevae.sde import SDE, build_sde
from scorevae.shapes import Images, Latents, Times


class ConcatenatingUNet(nn.Module):
    """A U-Net of x_t and an image of z, 2C channels in all; the image by the mirror decoder."""

    def __init__(
        self, image: ImageConfig, settings: UNetConfig, encoder: EncoderNetworkConfig, latent: int
    ) -> None:
        super().__init__()
        self.decoder = build_decoder(encoder, image, latent)
        self.unet = build_unet(image, settings, 2 * image.channels)

    @property
    def last_layer(self) -> nn.Module:
        """The convolution that gives the output."""
        return self.unet.get_submodule("conv_out")

    def forward(self, scaled: Images, z: Latents, level: Times) -> Images:
        """The U-Net's output for x_t at unit scale and its noise level."""
        both = torch.cat([scaled, self.decoder(z)], dim=1)  # (batch, 2C, height, width)
        return self.unet(both, level.to(torch.float32), return_dict=False)[0]


class ScalingUNet(nn.Module):
    """A U-Net whose residual blocks are scaled and shifted by z and time together.

    With e = embedding(t) + W SiLU(z), every block computes GN(h) (1 + a) + b, where a and b are
    linear in SiLU(e), as in ``UNet2DModel`` with ``resnet_time_scale_shift="scale_shift"``. DiffAE
    (Preechakul et al. 2022, arXiv 2111.15640, eq. 7) keeps the two apart: time scales and shifts,
    (1 + a(t)) GN(h) + b(t), and z scales the result once more, by a linear map of its own in each
    block.
    """

    def __init__(self, image: ImageConfig, settings: UNetConfig, latent: int) -> None:
        super().__init__()
        self.map = nn.Sequential(nn.SiLU(), nn.Linear(latent, 4 * settings.channels[0]))
        kinds = {"class_embed_type": "identity", "resnet_time_scale_shift": "scale_shift"}
        self.unet = build_unet(image, settings, image.channels, **kinds)

    def forward(self, scaled: Images, z: Latents, level: Times) -> Images:
        """The U-Net's output for x_t at unit scale and its noise level."""
        level = level.to(torch.float32)
        return self.unet(scaled, level, class_labels=self.map(z), return_dict=False)[0]


class ConditionalUNet(nn.Module):
    """ε(x_t, z, t): as :class:`scorevae.networks.prior.PriorUNet`, noise or velocity, given z."""

    def __init__(
        self,
        image: ImageConfig,
        settings: UNetConfig,
        encoder: EncoderNetworkConfig,
        latent: int,
        sde: SDE,
        conditioning: Conditioning,
    ) -> None:
        super().__init__()
        self.sde, self.noise_level = sde, NoiseLevel(sde)
        self.output = settings.output
        self.conditioned: nn.Module = (
            ConcatenatingUNet(image, settings, encoder, latent)
            if conditioning == "concatenate"
            else ScalingUNet(image, settings, latent)
        )

    def forward(self, x_t: Images, z: Latents, t: Times) -> Images:
        """Predict the noise of x_t given z; t has shape () or (batch,)."""
        level, scaled = self.noise_level(t), unit_scale(self.sde, x_t, t)
        output = self.conditioned(scaled, z, level)
        return predicted_noise(self.sde, self.output, output, scaled, t)


class DiffusionDecoderHeader(Header):
    """What a diffusion decoder's weights are."""

    kind: Literal["diffusion_decoder"] = "diffusion_decoder"
    image: ImageConfig
    sde: SDEConfig
    latent: int
    encoder: EncoderNetworkConfig
    network: UNetConfig
    conditioning: Conditioning

    def build(self) -> "EncoderAndUNet":
        """The networks, untrained."""
        return EncoderAndUNet(self)


class EncoderAndUNet(nn.Module):
    """Encoder q(z|x_0) without time and U-Net ε(x_t, z, t), trained together."""

    def __init__(self, header: DiffusionDecoderHeader) -> None:
        super().__init__()
        image, latent, encoder = header.image, header.latent, header.encoder
        self.encoder = build_encoder(encoder, image, latent, sde=None)
        self.decoder = ConditionalUNet(
            image, header.network, encoder, latent, build_sde(header.sde), header.conditioning
        )


class TrainedDiffusionDecoder(NamedTuple):
    """A loaded diffusion decoder."""

    network: EncoderAndUNet
    header: DiffusionDecoderHeader


def load_diffusion_decoder(path: Path) -> TrainedDiffusionDecoder:
    """Rebuild a frozen one on the CPU; raises as ``read_header`` and ``load_weights``."""
    header = read_header(path, DiffusionDecoderHeader)
    return TrainedDiffusionDecoder(load_weights(path, header.build()), header)

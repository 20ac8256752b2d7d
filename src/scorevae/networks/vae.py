"""The β-VAE baseline: the encoder without time and its mirror (arXiv 2304.12141, B.2)."""

from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

from torch import nn

from scorevae.config import EncoderNetworkConfig, ImageConfig
from scorevae.networks.encoder import (
    build_encoder,
    middle,
    residual_level,
    run_layers,
    smallest_side,
)
from scorevae.networks.weights import Header, load_weights, read_header
from scorevae.shapes import Images, Latents


class ConvDecoder(nn.Module):
    """Linear, unflatten, then transposed convolutions + GELU that mirror :class:`ConvEncoder`."""

    def __init__(self, image: ImageConfig, latent: int, channels: list[int]) -> None:
        super().__init__()
        side = smallest_side(image, len(channels))
        layers: list[nn.Module] = [
            nn.Linear(latent, channels[-1] * side**2),
            nn.Unflatten(1, (channels[-1], side, side)),
        ]
        for depth, (before, after) in enumerate(pairwise([*reversed(channels), image.channels])):
            if depth > 0:
                layers += [nn.GELU(), nn.ConvTranspose2d(before, before, 3, padding=1)]
            layers += [nn.GELU(), nn.ConvTranspose2d(before, after, 3, 2, 1, output_padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Latents) -> Images:
        """The mean of p(x|z)."""
        return self.layers(z)


class ResNetDecoder(nn.Module):
    """The mirror of :class:`ResNetEncoder`: linear, unflatten, blocks, nearest upsampling."""

    def __init__(self, image: ImageConfig, latent: int, settings: EncoderNetworkConfig) -> None:
        super().__init__()
        channels, groups, patch = settings.channels, settings.groups, settings.patch
        side = smallest_side(image, len(channels) - 1, patch)
        before = channels[-1]
        self.start = nn.Sequential(
            nn.Linear(latent, before * side**2), nn.Unflatten(1, (before, side, side))
        )
        layers = middle(settings, None)
        for depth, after in reversed(list(enumerate(channels))):
            side = smallest_side(image, depth, patch)
            if depth < len(channels) - 1:
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(before, before, 3, padding=1)]
            layers += residual_level(before, after, settings, side=side, time_width=None)
            before = after
        self.layers = nn.ModuleList(layers)
        self.finish = nn.Sequential(
            nn.GroupNorm(groups, before),
            nn.SiLU(),
            nn.Conv2d(before, image.channels * patch**2, 3, padding=1),
            nn.PixelShuffle(patch),
        )
        self.linear: nn.Module | None = None
        if settings.linear:
            self.linear = nn.Sequential(
                nn.Linear(latent, image.pixels, bias=False), nn.Unflatten(1, image.shape)
            )

    def forward(self, z: Latents) -> Images:
        """The mean of p(x|z)."""
        x = self.finish(run_layers(self.layers, self.start(z), None))
        return x if self.linear is None else x + self.linear(z)


class VAE(nn.Module):
    """Encoder q(z|x) and decoder, the mean of p(x|z), trained together."""

    def __init__(self, settings: EncoderNetworkConfig, image: ImageConfig, latent: int) -> None:
        super().__init__()
        self.encoder = build_encoder(settings, image, latent, sde=None)
        self.decoder = build_decoder(settings, image, latent)


def build_decoder(settings: EncoderNetworkConfig, image: ImageConfig, latent: int) -> nn.Module:
    """The mirror of the encoder that the same settings describe."""
    if settings.kind == "conv":
        return ConvDecoder(image, latent, settings.channels)
    return ResNetDecoder(image, latent, settings)


class VAEHeader(Header):
    """What a VAE's weights are."""

    kind: Literal["vae"] = "vae"
    image: ImageConfig
    latent: int
    network: EncoderNetworkConfig

    def build(self) -> VAE:
        """The network, untrained."""
        return VAE(self.network, self.image, self.latent)


class TrainedVAE(NamedTuple):
    """A loaded VAE."""

    network: VAE
    header: VAEHeader


def load_vae(path: Path) -> TrainedVAE:
    """Rebuild a frozen VAE on the CPU; raises as ``read_header`` and ``load_weights``."""
    header = read_header(path, VAEHeader)
    return TrainedVAE(load_weights(path, header.build()), header)

"""The β-VAE baseline: the encoder without time and its mirror (arXiv 2304.12141, B.2)."""

from pathlib import Path
from typing import Literal, NamedTuple, cast

from jaxtyping import Float
from torch import Tensor, nn

from scorevae.checkpoint import Header, load_weights, read_header
from scorevae.config import EncoderNetworkConfig, ImageConfig
from scorevae.gaussian import Latents
from scorevae.networks.encoder import ResBlock, build_encoder, smallest_side

Images = Float[Tensor, "batch channel height width"]


class ConvDecoder(nn.Module):
    """Linear, unflatten, then transposed convolutions + GELU that mirror :class:`ConvEncoder`."""

    def __init__(self, image: ImageConfig, latent: int, channels: list[int]) -> None:
        super().__init__()
        side = smallest_side(image, len(channels))
        layers: list[nn.Module] = [
            nn.Linear(latent, channels[-1] * side**2),
            nn.Unflatten(1, (channels[-1], side, side)),
        ]
        widths = [*reversed(channels), image.channels]
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.GELU(), nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Latents) -> Images:
        """The mean of p(x|z)."""
        return self.layers(z)


class ResNetDecoder(nn.Module):
    """Linear, unflatten, residual blocks with nearest upsampling between levels."""

    def __init__(
        self, image: ImageConfig, latent: int, channels: list[int], *, blocks: int, groups: int
    ) -> None:
        super().__init__()
        side = smallest_side(image, len(channels) - 1)
        before = channels[-1]
        self.start = nn.Sequential(
            nn.Linear(latent, before * side**2), nn.Unflatten(1, (before, side, side))
        )
        self.levels = nn.ModuleList()
        for depth, after in enumerate(reversed(channels)):
            level = nn.ModuleList()
            if depth > 0:
                level.append(
                    nn.Sequential(
                        nn.Upsample(scale_factor=2, mode="nearest"),
                        nn.Conv2d(before, before, 3, padding=1),
                    )
                )
            for _ in range(blocks):
                level.append(ResBlock(before, after, groups, None))
                before = after
            self.levels.append(level)
        self.finish = nn.Sequential(
            nn.GroupNorm(groups, before),
            nn.SiLU(),
            nn.Conv2d(before, image.channels, 3, padding=1),
        )

    def forward(self, z: Latents) -> Images:
        """The mean of p(x|z)."""
        hidden = self.start(z)
        for level in self.levels:
            for layer in cast(nn.ModuleList, level):
                hidden = layer(hidden, None) if isinstance(layer, ResBlock) else layer(hidden)
        return self.finish(hidden)


class VAE(nn.Module):
    """Encoder q(z|x) and decoder, the mean of p(x|z), trained together."""

    def __init__(self, settings: EncoderNetworkConfig, image: ImageConfig, latent: int) -> None:
        super().__init__()
        self.encoder = build_encoder(settings, image, latent, sde=None)
        self.decoder = build_decoder(settings, image, latent)


def build_decoder(settings: EncoderNetworkConfig, image: ImageConfig, latent: int) -> nn.Module:
    """The mirror of the encoder that the same settings describe."""
    match settings.kind:
        case "conv":
            return ConvDecoder(image, latent, settings.channels)
        case "resnet":
            return ResNetDecoder(
                image, latent, settings.channels, blocks=settings.blocks, groups=settings.groups
            )


class VAEHeader(Header):
    """What a VAE's weights are."""

    kind: Literal["vae"] = "vae"
    image: ImageConfig
    latent: int
    network: EncoderNetworkConfig


class TrainedVAE(NamedTuple):
    """A loaded VAE."""

    network: VAE
    header: VAEHeader


def load_vae(path: Path) -> TrainedVAE:
    """Rebuild a frozen VAE on the CPU.

    Raises:
        UserError: as :func:`scorevae.checkpoint.read_header` and ``load_weights``.
    """
    header = read_header(path, VAEHeader)
    network = VAE(header.network, header.image, header.latent)
    load_weights(path, network)
    return TrainedVAE(network, header)

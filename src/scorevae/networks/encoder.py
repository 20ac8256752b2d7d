"""Encoders q(z|x_t, t) and, without a forward process, the VAE's q(z|x_0).

They are differentiated twice (∇_x ln q, then the loss): smooth activations, group norm, no
dropout, no in-place operations (METHOD: arXiv 2304.12141, §3.5 and appendix B).
"""

from pathlib import Path
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from scorevae.checkpoint import Header, load_weights, read_header
from scorevae.config import EncoderNetworkConfig, ImageConfig, SDEConfig
from scorevae.errors import UserError
from scorevae.gaussian import DiagonalGaussian
from scorevae.networks.time import TimeEmbedding, unit_scale
from scorevae.sde import SDE, Times, build_sde

# e^{−log-variance} enters the second derivative squared: unbounded, one bad step ends training.
LOG_VARIANCE_RANGE = (-14.0, 4.0)

Images = Float[Tensor, "batch channel height width"]
Features = Float[Tensor, "batch _ height width"]


def soft_bound(x: Tensor, low: float, high: float) -> Tensor:
    """A smooth clamp to (low, high), within e^{low − high}; the identity well inside."""
    return high - softplus(high - low - softplus(x - low))


class GaussianHead(nn.Module):
    """Linear map to the mean and the bounded log-variance."""

    def __init__(self, features: int, latent: int) -> None:
        super().__init__()
        self.mean = nn.Linear(features, latent)
        self.log_variance = nn.Linear(features, latent)
        nn.init.zeros_(self.log_variance.weight)
        nn.init.zeros_(self.log_variance.bias)

    def forward(self, features: Float[Tensor, "batch feature"]) -> DiagonalGaussian:
        """The Gaussian of each row of features."""
        return DiagonalGaussian(
            self.mean(features), soft_bound(self.log_variance(features), *LOG_VARIANCE_RANGE)
        )


class ConvEncoder(nn.Module):
    """The paper's plain encoder: convolutions + GELU, flattened, time concatenated, linear.

    Each level halves the image. Time enters only before the last layer (appendix B.1).
    """

    def __init__(
        self, image: ImageConfig, latent: int, channels: list[int], sde: SDE | None
    ) -> None:
        super().__init__()
        widths = [image.channels, *channels]
        layers: list[nn.Module] = []
        for before, after in zip(widths, channels, strict=False):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.GELU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        self.time = None if sde is None else TimeEmbedding(sde, channels[0])
        side = smallest_side(image, len(channels))
        time_width = 0 if sde is None else channels[0]
        self.head = GaussianHead(channels[-1] * side**2 + time_width, latent)

    def forward(self, x_t: Images, t: Times) -> DiagonalGaussian:
        """q(z|x_t, t); t is ignored by an encoder built without a forward process."""
        if self.time is None:
            return self.head(self.trunk(x_t))
        features = self.trunk(unit_scale(self.time.sde, x_t, t))
        embedded = self.time(t).expand(len(x_t), -1)
        return self.head(torch.cat([features, embedded], dim=1))


class ResBlock(nn.Module):
    """Residual block: norm, SiLU, convolution, twice; time scales and shifts the second norm."""

    def __init__(self, before: int, after: int, groups: int, time_width: int | None) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(groups if before % groups == 0 else 1, before),
            nn.SiLU(),
            nn.Conv2d(before, after, 3, padding=1),
        )
        self.norm = nn.GroupNorm(groups, after)
        self.second = nn.Sequential(nn.SiLU(), nn.Conv2d(after, after, 3, padding=1))
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        self.modulation: nn.Linear | None = None
        if time_width is not None:
            # Zero at the start, so that weights of an encoder without time stay valid at every t.
            self.modulation = nn.Linear(time_width, 2 * after)
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Features, embedded: Tensor | None) -> Features:
        """x plus its residual; ``embedded`` is the embedded time (batch or 1, time_width)."""
        hidden = self.norm(self.first(x))
        if self.modulation is not None:
            scale, shift = self.modulation(embedded)[:, :, None, None].chunk(2, dim=1)
            hidden = hidden * (1 + scale) + shift
        return self.skip(x) + self.second(hidden)


class ResNetEncoder(nn.Module):
    """The downsampling half of a DDPM U-Net without skips: residual blocks, flatten, linear.

    Time modulates every block. A strided convolution halves the image between levels.
    """

    def __init__(
        self,
        image: ImageConfig,
        latent: int,
        channels: list[int],
        *,
        blocks: int,
        groups: int,
        sde: SDE | None,
    ) -> None:
        super().__init__()
        time_width = None if sde is None else 2 * channels[0]
        self.time = None if sde is None else TimeEmbedding(sde, 2 * channels[0])
        self.stem = nn.Conv2d(image.channels, channels[0], 3, padding=1)
        self.levels = nn.ModuleList()
        before = channels[0]
        for depth, after in enumerate(channels):
            level = nn.ModuleList()
            if depth > 0:
                level.append(nn.Conv2d(before, before, 3, stride=2, padding=1))
            for _ in range(blocks):
                level.append(ResBlock(before, after, groups, time_width))
                before = after
            self.levels.append(level)
        side = smallest_side(image, len(channels) - 1)
        self.finish = nn.Sequential(nn.GroupNorm(groups, before), nn.SiLU(), nn.Flatten())
        self.head = GaussianHead(before * side**2, latent)

    def forward(self, x_t: Images, t: Times) -> DiagonalGaussian:
        """q(z|x_t, t); t is ignored by an encoder built without a forward process."""
        embedded = None
        if self.time is not None:
            x_t = unit_scale(self.time.sde, x_t, t)
            embedded = self.time(t)
        hidden = self.stem(x_t)
        for level in self.levels:
            for layer in cast(nn.ModuleList, level):
                hidden = layer(hidden, embedded) if isinstance(layer, ResBlock) else layer(hidden)
        return self.head(self.finish(hidden))


def smallest_side(image: ImageConfig, halvings: int) -> int:
    """Side of the feature map after ``halvings`` strided convolutions.

    Raises:
        UserError: the image cannot be halved that often.
    """
    if image.size % 2**halvings:
        raise UserError(
            f"encoder.network.channels: {halvings} halvings do not divide images of size "
            f"{image.size}; give fewer levels"
        )
    return image.size // 2**halvings


def build_encoder(
    settings: EncoderNetworkConfig, image: ImageConfig, latent: int, sde: SDE | None
) -> nn.Module:
    """The encoder of ``params.yaml``; ``sde=None`` gives the VAE's, which knows no time."""
    match settings.kind:
        case "conv":
            return ConvEncoder(image, latent, settings.channels, sde)
        case "resnet":
            return ResNetEncoder(
                image,
                latent,
                settings.channels,
                blocks=settings.blocks,
                groups=settings.groups,
                sde=sde,
            )


def copy_trunk(source: nn.Module, target: nn.Module) -> None:
    """Give a time-dependent encoder the weights of the same encoder without time.

    All but the log-variance head: the VAE's variances hold at t = 0 only, and at large t would
    start the regression at losses of 1e5; the target keeps its own, a variance of one. The
    convolutional encoder keeps its whole head, which reads the time as well.
    """
    weights = source.state_dict()
    shared = {k: v for k, v in weights.items() if not k.startswith("head.log_variance")}
    if isinstance(source, ConvEncoder):
        shared = {k: v for k, v in shared.items() if not k.startswith("head")}
    unexpected = target.load_state_dict(shared, strict=False).unexpected_keys
    assert not unexpected, unexpected


class EncoderHeader(Header):
    """What a time-dependent encoder's weights are, and the score it was trained to give."""

    kind: Literal["encoder"] = "encoder"
    image: ImageConfig
    sde: SDEConfig
    latent: int
    network: EncoderNetworkConfig
    log_determinant: Literal["full", "dropped"]


class TrainedEncoder(NamedTuple):
    """A loaded time-dependent encoder."""

    network: nn.Module
    sde: SDE
    header: EncoderHeader


def load_encoder(path: Path) -> TrainedEncoder:
    """Rebuild a frozen encoder on the CPU.

    Raises:
        UserError: as :func:`scorevae.checkpoint.read_header` and ``load_weights``.
    """
    header = read_header(path, EncoderHeader)
    sde = build_sde(header.sde)
    network = build_encoder(header.network, header.image, header.latent, sde)
    load_weights(path, network)
    return TrainedEncoder(network, sde, header)

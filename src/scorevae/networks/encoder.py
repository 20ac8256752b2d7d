"""Encoders q(z|x_t, t) and, without a forward process, the VAE's q(z|x_0).

They are differentiated twice (∇_x ln q, then the loss): smooth activations, group norm, no
dropout, no in-place operations (METHOD: arXiv 2304.12141, §3.5 and appendix B).
"""

import math
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from scorevae.config import EncoderNetworkConfig, ImageConfig, SDEConfig
from scorevae.errors import UserError
from scorevae.gaussian import DiagonalGaussian
from scorevae.networks.time import TimeEmbedding, signal_share, unit_scale
from scorevae.networks.weights import Header, load_weights, read_header
from scorevae.sde import SDE, build_sde
from scorevae.shapes import Images, Times

# e^{−log-variance} enters the second derivative squared: unbounded, one bad step ends training.
LOG_VARIANCE_RANGE = (-14.0, 4.0)

Features = Float[Tensor, "batch _ height width"]
AnyFeatures = Float[Tensor, "batch _ _ _"]


def zero_linear(features: int, outputs: int) -> nn.Linear:
    """A linear map that starts as zero."""
    layer = nn.Linear(features, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def soft_bound(x: Tensor, low: float, high: float) -> Tensor:
    """A smooth clamp to (low, high), within e^{low − high}; the identity well inside."""
    return high - softplus(high - low - softplus(x - low))


class GaussianHead(nn.Module):
    """Linear map to the mean and the bounded log-variance."""

    def __init__(self, features: int, latent: int) -> None:
        super().__init__()
        self.mean = nn.Linear(features, latent)
        self.log_variance = zero_linear(features, latent)

    def forward(self, features: Float[Tensor, "batch feature"]) -> DiagonalGaussian:
        """The Gaussian of each row of features, in float32 under autocast too.

        z − μ is divided by standard deviations down to e^{−7}: rounding μ to bfloat16 (0.4 %)
        would be larger than them.
        """
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.mean.weight.dtype)
            log_variance = soft_bound(self.log_variance(features), *LOG_VARIANCE_RANGE)
            return DiagonalGaussian(self.mean(features), log_variance)


class LinearPath(nn.Module):
    """A linear map from pixels to latents beside the network, and the right size of both at t.

    For Gaussian data it is all there is: E[z|x_t] is a linear map of x_t, each of its principal
    components with the gain of a Wiener filter, and the variance depends on t alone. A network
    that starts from nothing takes thousands of steps to learn that part. At unit scale every such
    gain is c = α/√(α² + σ²) times a factor that stays bounded, hence

    μ = c (μ_net + g(t) W x), ln σ² = c (ln σ²)_net + s(t).

    Without c, errors of ∇ ln q would enter x̂_0 with σ²/α, which is 150 at t = 1.
    """

    def __init__(self, pixels: int, latent: int, time: TimeEmbedding | None) -> None:
        super().__init__()
        self.map = nn.Linear(pixels, latent, bias=False)
        self.modulation = None if time is None else zero_linear(time.width, 2 * latent)

    def forward(
        self, posterior: DiagonalGaussian, x: Images, embedded: Tensor | None, c: Tensor | None
    ) -> DiagonalGaussian:
        """Add to the network's posterior; float32 under autocast, as :class:`GaussianHead`."""
        with torch.autocast(x.device.type, enabled=False):
            mapped = self.map(x.flatten(1))
            if self.modulation is None or embedded is None or c is None:
                return DiagonalGaussian(posterior.mean + mapped, posterior.log_variance)
            gain, shift = self.modulation(embedded.to(x.dtype)).chunk(2, dim=1)
            log_variance = soft_bound(c * posterior.log_variance + shift, *LOG_VARIANCE_RANGE)
            return DiagonalGaussian(c * (posterior.mean + (1 + gain) * mapped), log_variance)


class ConvEncoder(nn.Module):
    """The paper's plain encoder: convolutions + GELU, flattened, time concatenated, linear.

    Each level halves the image by a strided 3×3 convolution; a second 3×3 convolution follows in
    all but the last, as in the published code. Time enters only before the last layer (appendix
    B.1), embedded: a raw t would be nearly constant beside thousands of features.
    """

    def __init__(
        self, image: ImageConfig, latent: int, channels: list[int], sde: SDE | None
    ) -> None:
        super().__init__()
        widths = [image.channels, *channels]
        layers: list[nn.Module] = []
        for depth, (before, after) in enumerate(pairwise(widths), start=1):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GELU()]
            if depth < len(channels):
                layers += [nn.Conv2d(after, after, 3, padding=1), nn.GELU()]
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
        # Zero at the start, so that weights of an encoder without time stay valid at every t.
        self.modulation = None if time_width is None else zero_linear(time_width, 2 * after)

    def forward(self, x: Features, embedded: Tensor | None) -> Features:
        """x plus its residual; ``embedded`` is the embedded time (batch or 1, time_width)."""
        hidden = self.norm(self.first(x))
        if self.modulation is not None:
            scale, shift = self.modulation(embedded)[:, :, None, None].chunk(2, dim=1)
            hidden = hidden * (1 + scale) + shift
        return self.skip(x) + self.second(hidden)


class SelfAttention(nn.Module):
    """Single-head attention over the pixels of a feature map, as in DDPM; x plus its residual.

    Softmax and products are written out: PyTorch's fused kernels have no second derivative.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Features) -> Features:
        """softmax(qᵀk/√channels) v for every pixel."""
        # Each (batch, channels, pixels).
        query, key, value = self.query_key_value(self.norm(x)).flatten(2).chunk(3, dim=1)
        weights = (query.transpose(1, 2) @ key / math.sqrt(x.shape[1])).softmax(dim=2)
        mixed = value @ weights.transpose(1, 2)
        return x + self.out(mixed.unflatten(2, tuple(x.shape[2:])))


def residual_level(
    before: int, after: int, settings: EncoderNetworkConfig, *, side: int, time_width: int | None
) -> list[nn.Module]:
    """The blocks of one level, each followed by attention where ``side`` asks for it."""
    layers: list[nn.Module] = []
    for _ in range(settings.blocks):
        layers.append(ResBlock(before, after, settings.groups, time_width))
        if side in settings.attention:
            layers.append(SelfAttention(after, settings.groups))
        before = after
    return layers


def middle(settings: EncoderNetworkConfig, time_width: int | None) -> list[nn.Module]:
    """Block, attention, block at the smallest side, as between the halves of a DDPM U-Net.

    Only networks that attend have it: without, the levels do.
    """
    if not settings.attention:
        return []
    width, groups = settings.channels[-1], settings.groups
    first = ResBlock(width, width, groups, time_width)
    return [first, SelfAttention(width, groups), ResBlock(width, width, groups, time_width)]


def run_layers(layers: nn.ModuleList, x: Features, embedded: Tensor | None) -> AnyFeatures:
    """Apply layers in order; residual blocks read the embedded time as well."""
    for layer in layers:
        x = layer(x, embedded) if isinstance(layer, ResBlock) else layer(x)
    return x


class ResNetEncoder(nn.Module):
    """The downsampling half of a DDPM U-Net without skips: residual blocks, flatten, linear.

    Time modulates every block. A strided convolution halves the image between levels. With
    ``patch`` above one, squares of so many pixels a side become channels first: fewer, wider
    feature maps, several times faster on a CPU.
    """

    def __init__(
        self, image: ImageConfig, latent: int, settings: EncoderNetworkConfig, sde: SDE | None
    ) -> None:
        super().__init__()
        channels, groups, patch = settings.channels, settings.groups, settings.patch
        time_width = None if sde is None else 2 * channels[0]
        self.time = None if sde is None else TimeEmbedding(sde, 2 * channels[0])
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(patch),
            nn.Conv2d(image.channels * patch**2, channels[0], 3, padding=1),
        )
        layers: list[nn.Module] = []
        before = channels[0]
        for depth, after in enumerate(channels):
            side = smallest_side(image, depth, patch)
            if depth > 0:
                layers.append(nn.Conv2d(before, before, 3, stride=2, padding=1))
            layers += residual_level(before, after, settings, side=side, time_width=time_width)
            before = after
        self.layers = nn.ModuleList([*layers, *middle(settings, time_width)])
        self.finish = nn.Sequential(nn.GroupNorm(groups, before), nn.SiLU(), nn.Flatten())
        self.head = GaussianHead(before * side**2, latent)
        self.linear = LinearPath(image.pixels, latent, self.time) if settings.linear else None

    def forward(self, x_t: Images, t: Times) -> DiagonalGaussian:
        """q(z|x_t, t); t is ignored by an encoder built without a forward process."""
        embedded, c = None, None
        if self.time is not None:
            x_t, embedded = unit_scale(self.time.sde, x_t, t), self.time(t)
            c = signal_share(self.time.sde, t)[:, None]
        posterior = self.head(self.finish(run_layers(self.layers, self.stem(x_t), embedded)))
        return posterior if self.linear is None else self.linear(posterior, x_t, embedded, c)


def smallest_side(image: ImageConfig, halvings: int, patch: int = 1) -> int:
    """Side of the feature map after ``halvings`` strided convolutions of patches.

    Raises:
        UserError: the image cannot be divided that often.
    """
    divisor = patch * 2**halvings
    if image.size % divisor:
        raise UserError(
            f"encoder.network: patch {patch} and {halvings} halvings do not divide images of size "
            f"{image.size}; give fewer channels (levels) or a smaller patch"
        )
    return image.size // divisor


def build_encoder(
    settings: EncoderNetworkConfig, image: ImageConfig, latent: int, sde: SDE | None
) -> nn.Module:
    """The encoder of ``params.yaml``; ``sde=None`` gives the VAE's, which knows no time."""
    if settings.kind == "conv":
        return ConvEncoder(image, latent, settings.channels, sde)
    return ResNetEncoder(image, latent, settings, sde)


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

    def build(self) -> nn.Module:
        """The network, untrained."""
        return build_encoder(self.network, self.image, self.latent, build_sde(self.sde))


class TrainedEncoder(NamedTuple):
    """A loaded time-dependent encoder."""

    network: nn.Module
    header: EncoderHeader


def load_encoder(path: Path) -> TrainedEncoder:
    """Rebuild a frozen encoder on the CPU; raises as ``read_header`` and ``load_weights``."""
    header = read_header(path, EncoderHeader)
    return TrainedEncoder(load_weights(path, header.build()), header)

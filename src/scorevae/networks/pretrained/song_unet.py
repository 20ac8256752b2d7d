"""DDPM++ and NCSN++, the U-Nets of Song et al. 2020 and Karras et al. 2022.

Song et al., arXiv 2011.13456, appendix H: the U-Net of Ho et al. 2020 (arXiv 2006.11239) with the
residual blocks of BigGAN, which halve and double inside of them, skips times √½ and, in NCSN++,
smoothed halving, Fourier features of ln σ, and the image itself fed in again at every level.
Karras et al., arXiv 2206.00364, appendix F.3 and table 7, name the same parts. Parameters are
named as in the files of the latter; :mod:`.score_sde` translates the former's.
"""

import math
from typing import Annotated, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, scaled_dot_product_attention, silu

from scorevae.config import Count, Counts, Positive, Section, Share
from scorevae.sde import over
from scorevae.shapes import PerSample

Maps = Float[Tensor, "batch _ _ _"]  # images or feature maps, of any channels and sides
Rows = Float[Tensor, "batch feature"]
Taps = Annotated[list[Count], Field(min_length=2)]


class SongUNetConfig(Section):
    """All that distinguishes one of these networks from another."""

    kind: Literal["song"] = "song"
    size: Count
    in_channels: Count
    out_channels: Count
    channels: Count
    multipliers: Counts  # of channels, level by level
    embedding_multiplier: Count  # of channels, for what every block is told
    noise_multiplier: Count  # of channels, for sines and cosines of the label
    blocks: Count
    attention: list[Count]  # sides of feature maps
    dropout: Share
    embedding: Literal["positional", "fourier"]
    log_label: bool  # the label is σ, and embedded is ln σ
    encoder: Literal["standard", "skip", "residual"]  # how the image is fed in again
    decoder: Literal["standard", "skip"]  # whether every level adds to the output
    taps: Taps  # of the filter before halving and after doubling, along either axis
    skip_scale: Positive
    norm_eps: Positive
    groups: Count  # at most so many, and
    group_channels: Count  # each of at least so many channels
    doubled_input: bool  # images are in [0, 1], and 2x − 1 is what the first layer sees
    scale_by_sigma: bool  # the output is divided by the label

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.size % (divisor := 2 ** (len(self.multipliers) - 1)):
            levels = f"{len(self.multipliers)} levels need a size that {divisor} divides"
            raise ValueError(f"{levels}, not {self.size}; import a network of that size")
        return self

    @property
    def sides(self) -> list[int]:
        """Of the feature maps, from the image down."""
        return [self.size // 2**level for level in range(len(self.multipliers))]

    def build(self) -> nn.Module:
        """The network, untrained, (x, label) -> output."""
        return SongUNet(self)

    def norm(self, width: int) -> nn.GroupNorm:
        """Group normalisation of so many channels."""
        return nn.GroupNorm(min(self.groups, width // self.group_channels), width, self.norm_eps)


class Embedding(nn.Module):
    """sin(f label) and cos(f label): f from 1 to 1e-4 geometrically, or 2π times normal draws."""

    freqs: Tensor | None

    def __init__(self, kind: Literal["positional", "fourier"], width: int) -> None:
        super().__init__()
        self.count = width // 2
        self.register_buffer("freqs", 16 * torch.randn(self.count) if kind == "fourier" else None)

    def forward(self, label: PerSample) -> Rows:
        """Sines, then cosines."""
        if self.freqs is None:
            freqs = torch.logspace(0, -4, self.count, dtype=label.dtype, device=label.device)
        else:
            freqs = 2 * math.pi * self.freqs
        angles = label[:, None] * freqs
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class Resample(nn.Module):
    """Halve the sides of images after smoothing them, or double them before that."""

    kernel: Tensor

    def __init__(self, taps: list[int], up: bool) -> None:
        super().__init__()
        line = torch.tensor(taps, dtype=torch.float32)
        kernel = torch.outer(line, line) / line.sum() ** 2
        self.register_buffer("kernel", kernel[None, None], persistent=False)
        self.up, self.padding = up, (len(taps) - 1) // 2

    def forward(self, x: Maps) -> Maps:
        """Each channel by itself."""
        kernel = self.kernel.expand(x.shape[1], -1, -1, -1)
        if self.up:  # zeros come between the pixels, hence the 4
            return conv_transpose2d(x, 4 * kernel, None, 2, self.padding, groups=x.shape[1])
        return conv2d(x, kernel, None, 2, self.padding, groups=x.shape[1])


class HalvingConv(nn.Conv2d):
    """A convolution of 3×3, smoothing and halving, padded once for both of them."""

    def __init__(self, taps: list[int], inner: int, outer: int) -> None:
        halve = Resample(taps, up=False)
        super().__init__(inner, outer, 3, padding=1 + halve.padding)
        self.halve, halve.padding = halve, 0

    def forward(self, x: Maps) -> Maps:
        """The filter comes last, which is the same as first."""
        return self.halve(super().forward(x))


class Block(nn.Module):
    """A residual block told of the noise, which may halve or double, and attention after it."""

    def __init__(
        self,
        config: SongUNetConfig,
        inner: int,
        outer: int,
        resample: Resample | None = None,
        attends: bool = False,
    ) -> None:
        super().__init__()
        self.attends, self.skip_scale = attends, config.skip_scale
        self.resample = resample or nn.Identity()
        self.norm0 = config.norm(inner)
        self.conv0 = nn.Conv2d(inner, outer, 3, padding=1)
        self.affine = nn.Linear(config.channels * config.embedding_multiplier, outer)
        self.norm1 = config.norm(outer)
        self.dropout = nn.Dropout(config.dropout)
        self.conv1 = nn.Conv2d(outer, outer, 3, padding=1)
        same = inner == outer and resample is None
        self.skip = nn.Identity() if same else nn.Conv2d(inner, outer, 1)
        if attends:
            self.norm2 = config.norm(outer)
            self.qkv = nn.Conv2d(outer, 3 * outer, 1)
            self.proj = nn.Conv2d(outer, outer, 1)

    def forward(self, x: Maps, embedding: Rows) -> Maps:
        """Feature maps (batch, inner, …) to (batch, outer, …)."""
        h = self.conv0(self.resample(silu(self.norm0(x))))
        h = silu(self.norm1(h + self.affine(embedding)[:, :, None, None]))
        h = self.conv1(self.dropout(h))
        h = (self.skip(self.resample(x)) + h) * self.skip_scale
        return (h + self.attention(h)) * self.skip_scale if self.attends else h

    def attention(self, x: Maps) -> Maps:
        """Self-attention of one head over the pixels; query, key and value alternate in qkv."""
        joint = self.qkv(self.norm2(x)).unflatten(1, (-1, 3)).flatten(3)  # (batch, C, 3, pixels)
        query, key, value = joint.permute(2, 0, 3, 1)[:, :, None]
        found = scaled_dot_product_attention(query, key, value)[:, 0]
        return self.proj(found.mT.reshape(x.shape))


class SongUNet(nn.Module):
    """What the network says of x (batch, in_channels, size, size), told label (batch,)."""

    def __init__(self, config: SongUNetConfig) -> None:
        super().__init__()
        self.config = config
        told = config.channels * config.embedding_multiplier
        noise = config.channels * config.noise_multiplier
        self.map_noise = Embedding(config.embedding, noise)
        self.map_layer0 = nn.Linear(noise, told)
        self.map_layer1 = nn.Linear(told, told)
        self.smaller, self.larger = (Resample(config.taps, up) for up in (False, True))
        widths = [config.channels * multiplier for multiplier in config.multipliers]
        self.enc, skips = _encoder(config, widths)
        self.dec = _decoder(config, widths, skips)

    def forward(self, x: Maps, label: PerSample) -> Maps:
        """The raw output, of the same sides as x."""
        embedding = self.map_noise(label.log() if self.config.log_label else label)
        embedding = silu(self.map_layer1(silu(self.map_layer0(embedding))))
        skips = self.encode(2 * x - 1 if self.config.doubled_input else x, embedding)
        output = self.decode(skips, embedding)
        return output / over(label, output) if self.config.scale_by_sigma else output

    def encode(self, image: Maps, embedding: Rows) -> list[Maps]:
        """The feature maps that the decoder sees, of which the last is the smallest."""
        skips: list[Maps] = [self.enc[_name(self.config.size, "conv")](image)]
        for side in self.config.sides:
            if side != self.config.size:
                h = self.enc[_name(side, "down")](skips[-1], embedding)
                if self.config.encoder == "skip":
                    image = self.smaller(image)
                    h = h + self.enc[_name(side, "aux_skip")](image)
                elif self.config.encoder == "residual":
                    h = h + self.enc[_name(side, "aux_residual")](image)
                    h = image = h * self.config.skip_scale
                skips.append(h)
            for index in range(self.config.blocks):
                skips.append(self.enc[_name(side, f"block{index}")](skips[-1], embedding))
        return skips

    def decode(self, skips: list[Maps], embedding: Rows) -> Maps:
        """The output, of the last level or the sum of what every level adds."""
        h, output = skips[-1], None
        for side in reversed(self.config.sides):
            for name in ["in0", "in1"] if side == self.config.sides[-1] else ["up"]:
                h = self.dec[_name(side, name)](h, embedding)
            for index in range(self.config.blocks + 1):
                joint = torch.cat([h, skips.pop()], dim=1)
                h = self.dec[_name(side, f"block{index}")](joint, embedding)
            if self.config.decoder == "skip" or side == self.config.size:
                normed = silu(self.dec[_name(side, "aux_norm")](h))
                part = self.dec[_name(side, "aux_conv")](normed)
                output = part if output is None else self.larger(output) + part
        assert output is not None  # the last side is the image's
        return output


def _name(side: int, part: str) -> str:
    return f"{side}x{side}_{part}"


def _encoder(config: SongUNetConfig, widths: list[int]) -> tuple[nn.ModuleDict, list[int]]:
    """Its modules in the order of their work, and the widths of the maps that they leave."""
    first = nn.Conv2d(config.in_channels, config.channels, 3, padding=1)
    modules: dict[str, nn.Module] = {_name(config.size, "conv"): first}
    skips, image = [config.channels], config.in_channels
    for side, width in zip(config.sides, widths, strict=True):
        if side != config.size:
            halve, before = Resample(config.taps, up=False), skips[-1]
            modules[_name(side, "down")] = Block(config, before, before, halve)
            if config.encoder == "skip":
                modules[_name(side, "aux_skip")] = nn.Conv2d(image, before, 1)
            elif config.encoder == "residual":
                modules[_name(side, "aux_residual")] = HalvingConv(config.taps, image, before)
                image = before
            skips.append(before)
        for index in range(config.blocks):
            attends = side in config.attention
            block = Block(config, skips[-1], width, attends=attends)
            modules[_name(side, f"block{index}")] = block
            skips.append(width)
    return nn.ModuleDict(modules), skips


def _decoder(config: SongUNetConfig, widths: list[int], skips: list[int]) -> nn.ModuleDict:
    """Its modules in the order of their work; the last block of a level attends."""
    modules: dict[str, nn.Module] = {}
    before, skips = widths[-1], list(skips)
    for side, width in reversed(list(zip(config.sides, widths, strict=True))):
        if side == config.sides[-1]:
            modules[_name(side, "in0")] = Block(config, before, before, attends=True)
            modules[_name(side, "in1")] = Block(config, before, before)
        else:
            double = Resample(config.taps, up=True)
            modules[_name(side, "up")] = Block(config, before, before, double)
        attends = [False] * config.blocks + [side in config.attention]
        for index, attend in enumerate(attends):
            block = Block(config, before + skips.pop(), width, attends=attend)
            modules[_name(side, f"block{index}")], before = block, width
        if config.decoder == "skip" or side == config.size:
            modules[_name(side, "aux_norm")] = config.norm(width)
            modules[_name(side, "aux_conv")] = nn.Conv2d(width, config.out_channels, 3, padding=1)
    return nn.ModuleDict(modules)

"""State dicts of guided-diffusion and improved-diffusion, which describe no network.

Dhariwal & Nichol 2021, arXiv 2105.05233; Nichol & Dhariwal 2021, arXiv 2102.09672. Their U-Net is
diffusers' ``UNet2DModel`` under other names, so that this module is a list of names. Two networks
of the same shapes can differ (order of queries, keys and values; number of heads): what the files
leave open is asked for in the settings.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from scorevae.config import GuidedPriorConfig, GuidedUNetConfig, ImageConfig
from scorevae.errors import UserError
from scorevae.networks.pretrained.adapter import DiffusersUNet, ForeignNetwork
from scorevae.networks.pretrained.diffusers import indexed, log_snr_of
from scorevae.networks.pretrained.read import KEY, Read, check_channels, load_checkpoint, locate

Table = dict[str, str]  # parts of a block: theirs, diffusers'

WHOLE = {"": ""}
RESBLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "qkv": "to_qkv", "proj_out": "to_out.0"}
RESAMPLING = {"op": "conv", "conv": "conv"}
OUTER = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def read(settings: GuidedPriorConfig, image: ImageConfig) -> Read:
    """A state dict as diffusers' U-Net, with the noise of ``schedule``.

    Raises:
        UserError: the file is missing or damaged, classes condition the network, or its weights
            are not those of the network that the settings describe.
    """
    path, digest = locate(settings)
    state = load_checkpoint(path)
    if not isinstance(state, dict) or "time_embed.0.weight" not in state:
        raise UserError(f"{path}: no state dict of {settings.format}; name its model*.pt")
    if "label_emb.weight" in state:
        raise UserError(f"{path}: classes condition it (label_emb); choose an unconditional one")
    check_channels(path, _channels(state), image, twice=settings.learned_variance)
    attends = _attends(settings.network, image)
    network = DiffusersUNet(config=_config(settings, image), heads=settings.network.heads)
    weights = renamed(state, settings.network, attends)
    scale = 1000 / settings.timesteps if settings.rescale_timesteps else 1.0
    return Read(
        ForeignNetwork(
            network=network,
            noise=indexed(log_snr_of(alphas(settings.schedule, settings.timesteps)), scale),
            prediction="noise",
            data_range="[-1, 1]",
            origin=f"{settings.format} {path.name}",
            sha256=digest,
        ),
        {f"unet.{name}": value for name, value in weights.items()},
    )


def alphas(schedule: str, timesteps: int) -> Tensor:
    """ᾱ of every index, float64.

    linear: β from 1e-4 to 0.02 at 1,000 steps, scaled by 1000/T for others. cosine: ᾱ(i) =
    f((i+1)/T)/f(0) with f(u) = cos²(π/2 (u + 0.008)/1.008), no β above 0.999 (arXiv 2102.09672,
    eq. 17).
    """
    if schedule == "linear":
        scale = 1000 / timesteps
        betas = torch.linspace(scale * 1e-4, scale * 0.02, timesteps, dtype=torch.float64)
    else:
        u = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
        signal = torch.cos((u + 0.008) / 1.008 * torch.pi / 2) ** 2
        betas = (1 - signal[1:] / signal[:-1]).clamp(max=0.999)
    return torch.cumprod(1 - betas, dim=0)


def _attends(network: GuidedUNetConfig, image: ImageConfig) -> list[bool]:
    """Whether each level has attention, the largest feature maps first."""
    sides = (image.size // 2**level for level in range(len(network.multipliers)))
    return [side in network.attention for side in sides]


def _channels(state: dict[str, Tensor]) -> tuple[int, int]:
    return state["input_blocks.0.0.weight"].shape[1], state["out.2.weight"].shape[0]


def _config(settings: GuidedPriorConfig, image: ImageConfig) -> dict[str, Any]:
    """The arguments of diffusers' U-Net."""
    network, attends = settings.network, _attends(settings.network, image)
    resample = "resnet" if network.resblock_updown else "conv"
    names = ("Downsample", "Upsample") if network.resblock_updown else ("Down", "Up")
    plain = [f"{'Resnet' * network.resblock_updown}{name}Block2D" for name in names]
    return {
        "sample_size": image.size,
        "in_channels": image.channels,
        "out_channels": image.channels * (1 + settings.learned_variance),
        "layers_per_block": network.blocks,
        "block_out_channels": [network.channels * factor for factor in network.multipliers],
        "down_block_types": ["AttnDownBlock2D" if a else plain[0] for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else plain[1] for a in attends[::-1]],
        "downsample_type": resample,
        "upsample_type": resample,
        "downsample_padding": 1,
        "resnet_time_scale_shift": "scale_shift" if network.scale_shift else "default",
        "attention_head_dim": network.head_channels,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "attn_norm_num_groups": 32,  # else the middle has none beside scale_shift
    }


def renamed(
    state: dict[str, Tensor], network: GuidedUNetConfig, attends: list[bool]
) -> dict[str, Tensor]:
    """The weights under diffusers' names; queries, keys and values apart.

    Raises:
        UserError: a block is missing, or one is left over.
    """
    left = dict(state)
    found: dict[str, Tensor] = {}
    for theirs, ours, table in _blocks(network, attends):
        taken = [name for name in left if name.startswith(f"{theirs}.")]
        if not taken:
            raise UserError(_unfit(f"no {theirs}"))
        for name in taken:
            part, _, kind = name.removeprefix(f"{theirs}.").rpartition(".")
            if part not in table:
                raise UserError(_unfit(f"a {name} where none is expected"))
            value, place = left.pop(name), ".".join(filter(None, (ours, table[part])))
            if table is ATTENTION and kind == "weight":
                value = value.reshape(value.shape[:2])  # a convolution of one pixel
            if part == "qkv":
                found |= _apart(place, kind, value, network)
            else:
                found[f"{place}.{kind}"] = value
    if left:
        raise UserError(_unfit(f"{len(left)} tensors beyond it, the first {next(iter(left))}"))
    return found


def _unfit(what: str) -> str:
    return (
        f"{KEY}.network: the file has {what}; correct multipliers, blocks, attention or "
        "resblock_updown"
    )


def _apart(place: str, kind: str, value: Tensor, network: GuidedUNetConfig) -> dict[str, Tensor]:
    """Queries, keys and values: by three for all heads together (new order), or head by head."""
    width = len(value) // 3
    heads = network.heads or width // (network.head_channels or width)
    sizes = (3, heads) if network.new_attention_order else (heads, 3)
    parts = value.unflatten(0, (*sizes, width // heads))
    parts = parts if network.new_attention_order else parts.transpose(0, 1)
    stem = place.removesuffix("to_qkv")
    return {
        f"{stem}to_{letter}.{kind}": part.flatten(0, 1).contiguous()
        for letter, part in zip("qkv", parts, strict=True)
    }


def _blocks(network: GuidedUNetConfig, attends: list[bool]) -> Iterator[tuple[str, str, Table]]:
    """Every block: its name in the file, its name in diffusers, and those of its parts."""
    for theirs, ours in OUTER.items():
        yield theirs, ours, WHOLE
    last = len(attends) - 1
    resampling = RESBLOCK if network.resblock_updown else RESAMPLING
    index = 1
    for level, attend in enumerate(attends):
        at = f"down_blocks.{level}"
        for block in range(network.blocks):
            yield f"input_blocks.{index}.0", f"{at}.resnets.{block}", RESBLOCK
            if attend:
                yield f"input_blocks.{index}.1", f"{at}.attentions.{block}", ATTENTION
            index += 1
        if level < last:
            yield f"input_blocks.{index}.0", f"{at}.downsamplers.0", resampling
            index += 1
    yield "middle_block.0", "mid_block.resnets.0", RESBLOCK
    yield "middle_block.1", "mid_block.attentions.0", ATTENTION
    yield "middle_block.2", "mid_block.resnets.1", RESBLOCK
    for level, attend in enumerate(reversed(attends)):
        at = f"up_blocks.{level}"
        for block in range(network.blocks + 1):
            theirs = f"output_blocks.{level * (network.blocks + 1) + block}"
            yield f"{theirs}.0", f"{at}.resnets.{block}", RESBLOCK
            if attend:
                yield f"{theirs}.1", f"{at}.attentions.{block}", ATTENTION
            if block == network.blocks and level < last:
                yield f"{theirs}.{1 + attend}", f"{at}.upsamplers.0", resampling

"""Checkpoints of score_sde_pytorch, the code of Song et al. 2020 (arXiv 2011.13456).

Read are its ``ncsnpp`` networks with blocks of BigGAN, trained in continuous time: DDPM++ under VP
and sub-VP, whose output is ε, and NCSN++ under VE, whose output is the score. A checkpoint has the
weights under ``model``, by name, and under ``ema`` their moving average, as a list in the order of
the trainable ones, which is what the paper samples with. Where images are in [0, 1]
(``data.centered`` False), the process runs there, and the network's first step is 2x − 1.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scorevae.config import ImageConfig, ScoreSDEPriorConfig, parse
from scorevae.errors import UserError, in_a_line
from scorevae.networks.pretrained.adapter import ForeignNetwork
from scorevae.networks.pretrained.noise import ContinuousNoise
from scorevae.networks.pretrained.read import KEY, Read, load_checkpoint, locate
from scorevae.networks.pretrained.song_unet import Block, SongUNetConfig

T_MIN = 1e-5  # from where all of its networks are trained
REMEDY = f"set {KEY}.network and data.image as in the configuration that it was trained with"

# The configuration's words for what the paper calls them.
ENCODERS = {"none": "standard", "input_skip": "skip", "residual": "residual"}
DECODERS = {"none": "standard", "output_skip": "skip"}


def read(settings: ScoreSDEPriorConfig, image: ImageConfig) -> Read:
    """Read the moving average of a checkpoint.

    Raises:
        UserError: the file is missing, not the expected one, truncated or no checkpoint of
            score_sde; its network is not what the parameters say, or is of a kind that is not
            read.
    """
    network = _network(settings, image)
    path, digest = locate(settings)
    with torch.device("meta"):
        built = _built(network)
    averaged = _averaged(path, load_checkpoint(path))
    noise = ContinuousNoise(
        process=settings.process, low=settings.low, high=settings.high, t_min=T_MIN
    )
    foreign = ForeignNetwork(
        network=network,
        noise=noise,
        prediction="score" if settings.process == "ve" else "noise",
        data_range=settings.data_range,
        origin=f"score_sde {path.name}",
        sha256=digest,
    )
    return Read(foreign, _translated(path, built, averaged))


def _network(settings: ScoreSDEPriorConfig, image: ImageConfig) -> SongUNetConfig:
    """The network that the configuration describes; there is no dropout in a trained one."""
    given, key = settings.network, f"{KEY}.network"
    positional = given.embedding_type == "positional"
    if positional and (settings.process == "ve" or given.scale_by_sigma):
        raise UserError(
            f"{key}.embedding_type: got positional, with which VE and scale_by_sigma count noise "
            "levels; give a network trained in continuous time (fourier)"
        )
    if given.progressive_input == "residual" and not given.fir:
        raise UserError(
            f"{key}.progressive_input: got residual without fir, which is not read; give a "
            "network with fir"
        )
    tree = dict(
        size=image.size,
        in_channels=image.channels,
        out_channels=image.channels,
        channels=given.nf,
        multipliers=given.ch_mult,
        embedding_multiplier=4,
        noise_multiplier=1 if positional else 2,
        blocks=given.num_res_blocks,
        attention=given.attn_resolutions,
        dropout=0.0,
        embedding=given.embedding_type,
        log_label=not positional,
        encoder=ENCODERS[given.progressive_input],
        decoder=DECODERS[given.progressive],
        taps=[1, 3, 3, 1] if given.fir else [1, 1],
        skip_scale=0.5**0.5 if given.skip_rescale else 1.0,
        norm_eps=1e-6,
        groups=32,
        group_channels=4,
        doubled_input=settings.data_range == "[0, 1]",
        scale_by_sigma=given.scale_by_sigma,
    )
    return parse(SongUNetConfig, tree, key)


def _built(network: SongUNetConfig) -> nn.Module:
    """Its modules; there may be no groups that divide the channels."""
    try:
        return network.build()
    except (ValueError, ZeroDivisionError, RuntimeError) as error:
        why = in_a_line(error, 100)
        raise UserError(f"{KEY}.network.nf: got {network.channels}; {why}; correct it") from None


def _averaged(path: Path, checkpoint: object) -> dict[str, Tensor]:
    """The moving averages by name, with what is not trained in its place.

    Raises:
        UserError: it is no checkpoint of score_sde, or the list does not fit the names.
    """
    try:
        named, listed = checkpoint["model"], checkpoint["ema"]["shadow_params"]  # type: ignore[index]
        state = {name.removeprefix("module."): value for name, value in named.items()}
        shapes = {name: value.shape for name, value in state.items()}
        averages = [(value, value.shape) for value in listed]
    except (KeyError, TypeError, AttributeError, IndexError):
        raise UserError(
            f"{path}: no checkpoint of score_sde, which has the keys model and ema; give one of "
            "its checkpoint_*.pth"
        ) from None
    # Untrained are the noise levels, and the one vector W: frequencies. NIN's W are matrices.
    fixed = {name for name in state if name.endswith(".W") and len(shapes[name]) == 1}
    trained = [name for name in state if name not in fixed | {"sigmas"}]
    if len(averages) != len(trained):
        raise UserError(
            f"{path}: ema.shadow_params has {len(averages)} entries, model has {len(trained)} "
            "trained ones; give a checkpoint whose ema is of its model"
        )
    for name, (value, shape) in zip(trained, averages, strict=True):
        if shape != shapes[name]:
            raise UserError(
                f"{path}: ema.shadow_params has {tuple(shape)} where model.{name} has "
                f"{tuple(shapes[name])}; give a checkpoint whose ema is of its model"
            )
        state[name] = value
    return state


Join = Callable[[list[Tensor]], Tensor]


class Translation(NamedTuple):
    """One of our parameters, the checkpoint's that it is made of, and how."""

    ours: str
    theirs: list[str]
    join: Join


def _only(values: list[Tensor]) -> Tensor:
    (value,) = values
    return value


def _alternating(values: list[Tensor]) -> Tensor:
    """Biases of several layers as one layer's whose outputs take turns."""
    return torch.stack(values, dim=1).flatten(0, 1)


def _as_convolution(values: list[Tensor]) -> Tensor:
    """The same of matrices (in, out), as a convolution of 1×1."""
    return _alternating([value.T for value in values])[:, :, None, None]


def _layer(ours: str, theirs: str) -> Iterator[Translation]:
    for part in ("weight", "bias"):
        yield Translation(f"{ours}.{part}", [f"{theirs}.{part}"], _only)


def _attention(ours: str, theirs: str) -> Iterator[Translation]:
    yield from _layer(f"{ours}.norm2", f"{theirs}.GroupNorm_0")
    for name, indices in {"qkv": (0, 1, 2), "proj": (3,)}.items():
        for part, letter, join in (("weight", "W", _as_convolution), ("bias", "b", _alternating)):
            layers = [f"{theirs}.NIN_{index}.{letter}" for index in indices]
            yield Translation(f"{ours}.{name}.{part}", layers, join)


BLOCK = {
    "norm0": "GroupNorm_0",
    "conv0": "Conv_0",
    "affine": "Dense_0",
    "norm1": "GroupNorm_1",
    "conv1": "Conv_1",
    "skip": "Conv_2",
}
INSIDE = {"aux_skip": ".Conv_0", "aux_residual": ".Conv2d_0"}  # of a module with one layer


def _translations(network: nn.Module) -> Iterator[Translation]:
    """All parameters; the checkpoint counts its modules in the order of their work."""
    halves = {half: network.get_submodule(half).named_children() for half in ("enc", "dec")}
    names = [f"{half}.{name}" for half, parts in halves.items() for name, _ in parts]
    index = -1

    def following() -> str:
        nonlocal index
        index += 1
        return f"all_modules.{index}"

    if "map_noise.freqs" in network.state_dict():
        yield Translation("map_noise.freqs", [f"{following()}.W"], _only)
    for name in ["map_layer0", "map_layer1", *names]:
        module = network.get_submodule(name)
        if isinstance(module, Block):
            theirs = following()
            for ours, part in BLOCK.items():
                if not isinstance(module.get_submodule(ours), nn.Identity):
                    yield from _layer(f"{name}.{ours}", f"{theirs}.{part}")
            if module.attends:
                yield from _attention(name, following())
        else:
            inside = INSIDE.get(name.partition("_")[2], "")
            yield from _layer(name, following() + inside)


def _translated(path: Path, network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's weights out of the checkpoint's.

    Raises:
        UserError: names or shapes are not those of the network.
    """
    weights, left = {}, set(state) - {"sigmas"}
    expected = network.state_dict()
    for ours, theirs, join in _translations(network):
        if missing := [name for name in theirs if name not in state]:
            raise UserError(f"{path}: model.{missing[0]} is missing; {REMEDY}")
        parts = [state[name] for name in theirs]
        wanted = tuple(expected[ours].shape)
        try:
            weights[ours] = join(parts)
        except (RuntimeError, IndexError):  # parts that do not go together
            weights[ours] = torch.empty(0)
        if tuple(weights[ours].shape) != wanted:
            held = ", ".join(str(tuple(part.shape)) for part in parts)
            raise UserError(
                f"{path}: model.{theirs[0]} has shape {held}, the parameters ask for "
                f"{wanted}; {REMEDY}"
            )
        left -= set(theirs)
    if left:
        raise UserError(f"{path}: model.{min(left)} is in no network of the kind; {REMEDY}")
    return weights

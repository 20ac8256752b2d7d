"""What the tests of DDPM++ and NCSN++ share: score_sde's network by hand, pickles of EDM."""

import math
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from oracles import vector
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, group_norm, interpolate, pad, silu

from scorevae.config import ImageConfig, NCSNppConfig
from scorevae.errors import UserError
from scorevae.networks.pretrained.adapter import PretrainedPrior
from scorevae.networks.pretrained.read import Read
from scorevae.sde import SDE, VPSDE, LinearRate

OURS = VPSDE(LinearRate(0.1, 20.0), t_min=1e-3)
T = vector(0.02, 0.3, 0.8)
IMAGE = ImageConfig(channels=2, size=8)

SONG: dict[str, Any] = dict(
    size=8,
    in_channels=2,
    out_channels=2,
    channels=8,
    multipliers=[1, 2],
    embedding_multiplier=4,
    noise_multiplier=1,
    blocks=1,
    attention=[4],
    dropout=0.0,
    embedding="positional",
    log_label=False,
    encoder="standard",
    decoder="standard",
    taps=[1, 1],
    skip_scale=0.5**0.5,
    norm_eps=1e-6,
    groups=32,
    group_channels=4,
    doubled_input=False,
    scale_by_sigma=False,
)
NCSNPP: dict[str, Any] = dict(
    noise_multiplier=2, embedding="fourier", encoder="residual", taps=[1, 3, 3, 1]
)


def prior_of(read: Read, sde: SDE) -> nn.Module:
    """The prior of what a file holds, in float64."""
    prior = PretrainedPrior(read.settings, sde)
    prior.network.load_state_dict(read.weights)
    return prior.double().eval()


def refused(message: str, call: Callable[[], Any]) -> None:
    """One line that says this, with a remedy."""
    with pytest.raises(UserError, match=message) as caught:
        call()
    text = str(caught.value.message)
    assert "\n" not in text
    assert ";" in text


class Malicious:
    """Pickled, it asks for a call that leaves a file behind."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Weights:
    """Weights by score_sde's names: drawn when first asked for, in the order of its modules."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.state: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        if name not in self.state:
            size = 0.7 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.3
            self.state[name] = size * torch.randn(shape, generator=self.generator)
        return self.state[name].double()


def smoothed(x: Tensor, up: bool) -> Tensor:
    """Halved or doubled with the filter 1, 3, 3, 1 along either axis, zeros around the image."""
    line = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype) / 8
    kernel = torch.outer(line, line).expand(x.shape[1], 1, 4, 4)
    if not up:
        return conv2d(pad(x, (1, 1, 1, 1)), kernel, groups=x.shape[1])[..., ::2, ::2]
    spread = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    spread[..., ::2, ::2] = x
    return 4 * conv2d(pad(spread, (2, 1, 2, 1)), kernel, groups=x.shape[1])


class NCSNpp:
    """score_sde's ``ncsnpp`` as a function of its weights, read off its module list."""

    def __init__(self, weights: Weights, config: NCSNppConfig, centered: bool) -> None:
        self.weights, self.config, self.centered = weights, config, centered
        self.scale = math.sqrt(0.5) if config.skip_rescale else 1.0

    def following(self) -> str:
        self.index += 1
        return f"all_modules.{self.index}"

    def dense(self, name: str, x: Tensor, width: int) -> Tensor:
        weight = self.weights(f"{name}.weight", width, x.shape[1])
        return x @ weight.T + self.weights(f"{name}.bias", width)

    def conv(self, name: str, x: Tensor, width: int, side: int = 3, **how: Any) -> Tensor:
        weight = self.weights(f"{name}.weight", width, x.shape[1], side, side)
        how = how or {"padding": side // 2}
        return conv2d(x, weight, self.weights(f"{name}.bias", width), **how)

    def norm(self, name: str, x: Tensor) -> Tensor:
        width = x.shape[1]
        weight, bias = (self.weights(f"{name}.{part}", width) for part in ("weight", "bias"))
        return group_norm(x, min(width // 4, 32), weight, bias, 1e-6)

    def resample(self, x: Tensor, how: str) -> Tensor:
        if how == "same":
            return x
        if self.config.fir:
            return smoothed(x, how == "up")
        return interpolate(x, scale_factor=2) if how == "up" else avg_pool2d(x, 2)

    def block(self, x: Tensor, told: Tensor, width: int, how: str = "same") -> Tensor:
        name = self.following()
        h = self.resample(silu(self.norm(f"{name}.GroupNorm_0", x)), how)
        x_resampled = self.resample(x, how)
        h = self.conv(f"{name}.Conv_0", h, width)
        h = h + self.dense(f"{name}.Dense_0", silu(told), width)[:, :, None, None]
        h = self.conv(f"{name}.Conv_1", silu(self.norm(f"{name}.GroupNorm_1", h)), width)
        if width != x.shape[1] or how != "same":
            x_resampled = self.conv(f"{name}.Conv_2", x_resampled, width, 1)
        return (x_resampled + h) * self.scale

    def attention(self, x: Tensor) -> Tensor:
        name, width = self.following(), x.shape[1]
        pixels = self.norm(f"{name}.GroupNorm_0", x).flatten(2).mT  # (batch, pixels, C)

        def nin(index: int, h: Tensor) -> Tensor:
            w = self.weights(f"{name}.NIN_{index}.W", width, width)
            return h @ w + self.weights(f"{name}.NIN_{index}.b", width)

        query, key, value = (nin(index, pixels) for index in range(3))
        share = (query @ key.mT / math.sqrt(width)).softmax(dim=-1)
        return (x + nin(3, share @ value).mT.reshape(x.shape)) * self.scale

    def told(self, label: Tensor) -> Tensor:
        nf = self.config.nf
        if self.config.embedding_type == "fourier":
            angles = label.log()[:, None] * self.weights(f"{self.following()}.W", nf) * 2 * math.pi
        else:
            freqs = 10_000.0 ** -(torch.arange(nf // 2, dtype=label.dtype) / (nf // 2 - 1))
            angles = label[:, None] * freqs
        h = torch.cat([angles.sin(), angles.cos()], dim=1)
        h = silu(self.dense(self.following(), h, 4 * nf))
        return self.dense(self.following(), h, 4 * nf)

    def __call__(self, x: Tensor, label: Tensor) -> Tensor:
        config, channels = self.config, x.shape[1]
        self.index = -1
        told = self.told(label)
        image = x if self.centered else 2 * x - 1
        h = self.conv(self.following(), image, config.nf)
        skips = [h]
        for level, multiplier in enumerate(config.ch_mult):
            for _ in range(config.num_res_blocks):
                h = self.block(h, told, config.nf * multiplier)
                h = self.attention(h) if h.shape[-1] in config.attn_resolutions else h
                skips.append(h)
            if level < len(config.ch_mult) - 1:
                h = self.block(h, told, h.shape[1], "down")
                if config.progressive_input == "input_skip":
                    image = self.resample(image, "down")
                    h = h + self.conv(f"{self.following()}.Conv_0", image, h.shape[1], 1)
                elif config.progressive_input == "residual":
                    line = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype) / 8
                    kernel = torch.outer(line, line).expand(image.shape[1], 1, 4, 4)
                    image = conv2d(pad(image, (2, 2, 2, 2)), kernel, groups=image.shape[1])
                    name = f"{self.following()}.Conv2d_0"
                    image = self.conv(name, image, h.shape[1], stride=2)
                    h = image = (image + h) * self.scale
                skips.append(h)
        h = self.block(self.attention(self.block(h, told, h.shape[1])), told, h.shape[1])
        output = None
        for level, multiplier in reversed(list(enumerate(config.ch_mult))):
            for _ in range(config.num_res_blocks + 1):
                h = self.block(torch.cat([h, skips.pop()], 1), told, config.nf * multiplier)
            h = self.attention(h) if h.shape[-1] in config.attn_resolutions else h
            if config.progressive == "output_skip" or level == 0:
                part = silu(self.norm(self.following(), h))
                part = self.conv(self.following(), part, channels)
                output = part if output is None else self.resample(output, "up") + part
            h = self.block(h, told, h.shape[1], "up") if level else h
        return output / label[:, None, None, None] if config.scale_by_sigma else output


def save_score_sde(
    path: Path, network: NCSNpp, average: Weights, channels: int, size: int
) -> None:
    """A checkpoint as score_sde writes it: the network's weights, and others as their average."""
    x, label = torch.zeros(1, channels, size, size).double(), torch.ones(1).double()
    for weights in (network.weights, average):
        NCSNpp(weights, network.config, network.centered)(x, label)
    fixed = "all_modules.0.W"  # untrained, hence in no list
    model = {f"module.{name}": value for name, value in network.weights.state.items()}
    shadow = [value for name, value in average.state.items() if name != fixed]
    if fixed in average.state:
        average.state[fixed] = network.weights.state[fixed]
    sigmas = torch.linspace(50, 0.01, 10, dtype=torch.float64)
    ema = {"decay": 0.999, "num_updates": 3, "shadow_params": shadow}
    optimizer = {"state": {0: {"step": 3, "exp_avg": shadow[0]}}, "param_groups": [{"lr": 2e-4}]}
    state = {"model": {"module.sigmas": sigmas, **model}, "ema": ema, "optimizer": optimizer}
    torch.save({**state, "step": np.int64(3)}, path)


class Persistent:
    """An object of EDM as its persistence mechanism pickles it."""

    def __init__(self, class_name: str, state: dict[str, Any], source: str) -> None:
        self.meta = dict(
            type="class", version=6, module_src=source, class_name=class_name, state=state
        )

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


@contextmanager
def edm_modules():
    """EDM's modules under their names, while something is pickled."""

    def function(meta):
        raise AssertionError("the file's own loader has run")

    easy = type("EasyDict", (dict,), {"__module__": "dnnlib.util", "__qualname__": "EasyDict"})
    function.__module__, function.__qualname__ = "torch_utils.persistence", function.__name__
    function.__qualname__ = function.__name__ = "_reconstruct_persistent_obj"
    places = {"torch_utils": {}, "torch_utils.persistence": {function.__name__: function}}
    places |= {"dnnlib": {}, "dnnlib.util": {"EasyDict": easy}}
    for name, content in places.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(content)
    try:
        yield easy
    finally:
        for name in places:
            del sys.modules[name]


def persistent_module(name: str, module: nn.Module, source: str, **attributes: Any) -> Persistent:
    """A module and all in it as EDM's classes; ModuleDicts stay PyTorch's own."""
    children: dict[str, Any] = {}
    for key, child in module.named_children():
        children[key] = persistent_module(type(child).__name__, child, source)
        if isinstance(child, nn.ModuleDict):
            children[key] = nn.ModuleDict()
            for inner, grandchild in child.items():
                part = persistent_module(type(grandchild).__name__, grandchild, source)
                children[key]._modules[inner] = part
    names = {"kernel": "resample_filter"}  # EDM's for the only constant
    buffers = OrderedDict((names.get(key, key), value) for key, value in module._buffers.items())
    state = dict(
        training=False,
        _parameters=OrderedDict(module._parameters),
        _buffers=buffers,
        _non_persistent_buffers_set=set(),
        _backward_hooks=OrderedDict(),
        _modules=children,
        skip_scale=np.sqrt(0.5),
        **attributes,
    )
    return Persistent(name, state, source)


def save_edm(path: Path, network: nn.Module, source: str, **changes: Any) -> None:
    """A snapshot as EDM writes it; ``changes`` to the preconditioner, its network or arguments."""
    given = dict(precond="EDMPrecond", model="SongUNet", constants={}, arguments={}) | changes
    with edm_modules() as easy:
        augment = nn.Linear(9, 4, bias=False)
        model = persistent_module(
            given["model"], network, source, _init_args=(), _init_kwargs=easy(given["arguments"])
        )
        model.meta["state"]["_modules"]["map_augment"] = persistent_module(
            "Linear", augment, source
        )
        whole = nn.Module()
        precond = persistent_module(given["precond"], whole, source, **given["constants"])
        precond.meta["state"]["_modules"]["model"] = model
        loss = Persistent("EDMLoss", {"P_mean": -1.2}, source)
        path.write_bytes(pickle.dumps(dict(ema=precond, loss_fn=loss, dataset_kwargs=easy())))

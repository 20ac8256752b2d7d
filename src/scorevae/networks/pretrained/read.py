"""What every format's reader gives, and the checks that all of them make."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.serialization import safe_globals

from scorevae.config import ImageConfig, PretrainedConfig
from scorevae.errors import UserError
from scorevae.networks.pretrained.adapter import ForeignNetwork
from scorevae.runtime.files import own_path, sha256

KEY = "prior.pretrained"

# Numbers of NumPy, which old trainers left among the weights: a type, and bytes.
_SCALAR: Any = np.float64(0).__reduce__()[0]
_SCALARS: list[Any] = [
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
    np.dtype,
]


class Read(NamedTuple):
    """A foreign network as its file has it, and its weights: those of ``settings.network``."""

    settings: ForeignNetwork
    weights: dict[str, Tensor]


class Source(NamedTuple):
    """A file of weights, and its SHA-256."""

    path: Path
    sha256: str


def locate(settings: PretrainedConfig) -> Source:
    """Find the file that the parameters name, and compare its SHA-256 before it is opened.

    Raises:
        UserError: there is no such file, or its content is another.
    """
    path = own_path(settings.path, f"{KEY}.path")
    if not path.is_file():
        raise UserError(f"{KEY}.path: {settings.path!r} is no file; give the file of weights")
    return Source(path, checked(path, settings.sha256))


def checked(path: Path, expected: str | None) -> str:
    """The SHA-256 of a file of weights, before anything in it is opened.

    Raises:
        UserError: it is not the expected one, or the file cannot be read.
    """
    try:
        found = sha256(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable") from None
    if expected not in (None, found):
        raise UserError(
            f"{path}: its SHA-256 is {found}, {KEY}.sha256 is {expected}; bring the file "
            "again, or correct the key if you trust what is there"
        )
    return found


def check_channels(path: Path, found: tuple[int, int], image: ImageConfig, *, twice: bool) -> None:
    """Raise UserError unless (in, out) are the image's channels, out twice for a variance."""
    wanted = image.channels, image.channels * (1 + twice)
    if found != wanted:
        variance = ", half of them a learned variance" if twice else ""
        raise UserError(
            f"{path}: its network has {found[0]} channels in and {found[1]} out, images of the "
            f"preset have {image.channels} ({wanted[1]} out{variance}); choose another network, "
            f"data.image.channels, or say whether the variance is learned"
        )


def load_checkpoint(path: Path) -> Any:  # noqa: ANN401 (whatever was saved)
    """What ``torch.save`` wrote: tensors, numbers, text and containers of them, on the CPU.

    Raises:
        UserError: the file is truncated or no checkpoint, or holds anything else; no code of the
            file runs.
    """
    try:
        with safe_globals(_SCALARS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a file is odd; either it is read or refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        if found := re.search(r"GLOBAL (\S+) (was not an allowed|whose module)", str(error)):
            why = f"holds {found[1]}, which may run code and is not read; save tensors only"
        else:
            why = "truncated, or no checkpoint of PyTorch; bring the file again"
        raise UserError(f"{path}: {why}") from None


def check_weights(path: str | Path, network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Raise UserError unless names and shapes are the network's, which is on any device."""
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            held, wanted = (shapes.get(name, "missing") for shapes in (found, expected))
            raise UserError(
                f"{path}: {name} is {held}, its own description asks for {wanted}; correct "
                "the settings of the network or bring the file again"
            )

"""What reading a foreign checkpoint gives, and what its readers share."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scorevae.config import ImageConfig, PretrainedConfig
from scorevae.errors import UserError
from scorevae.networks.pretrained.adapter import ForeignNetwork
from scorevae.runtime.files import own_path, sha256

KEY = "prior.pretrained"  # under the preset


class Read(NamedTuple):
    """A foreign network: what it is, and its weights under the names of what it builds."""

    settings: ForeignNetwork
    weights: dict[str, Tensor]


def checked(path: Path, settings: PretrainedConfig) -> str:
    """The SHA-256 of a file of weights, before anything in it is opened.

    Raises:
        UserError: there is no such file, or its SHA-256 is not that of the settings.
    """
    try:
        found = sha256(path)
    except OSError as error:
        raise UserError(
            f"{KEY}.path: {path} cannot be read ({error.strerror}); name the file of weights"
        ) from None
    if settings.sha256 not in (None, found):
        raise UserError(
            f"{path}: its SHA-256 is {found}, {KEY}.sha256 is {settings.sha256}; fetch the file "
            "again, or correct the parameter if another file is meant"
        )
    return found


def source_file(settings: PretrainedConfig) -> Path:
    """The file that ``path`` names, seen from the repository's folder."""
    return own_path(settings.path, f"{KEY}.path")


def load_checkpoint(path: Path) -> Any:  # noqa: ANN401 (whatever a checkpoint holds)
    """What torch saved, of tensors and plain values alone: nothing in the file is run.

    Raises:
        UserError: it is no such file, is cut short, or holds other objects.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: no checkpoint of torch with weights alone ({reason}); fetch it again, or "
            "save its state dict with torch.save"
        ) from None


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

"""Where networks run."""

from collections.abc import Mapping

import torch

from scorevae.errors import UserError
from scorevae.networks.weights import Trained


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def chosen_device(device: torch.device | str | None) -> torch.device:
    """The device that is asked for, else :func:`default_device`.

    Raises:
        UserError: there is no such device here.
    """
    if device is None:
        return default_device()
    known = ["cpu"]
    if torch.cuda.is_available():
        known += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        known.append("mps:0")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or not {f"{chosen.type}:{chosen.index or 0}", str(chosen)} & set(known):
        raise UserError(f"device: got {str(device)!r}; there is {', '.join(known)}: choose one")
    return chosen


def place(weights: Mapping[str, Trained], device: torch.device) -> None:
    """Move the networks there."""
    for network, _ in weights.values():
        network.to(device)

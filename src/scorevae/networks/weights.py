"""Self-describing weights: safetensors with the network's own settings as a header."""

import json
from pathlib import Path
from typing import TypeVar, get_args

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import nn

from scorevae.config import Section, parse
from scorevae.errors import UserError
from scorevae.runtime.files import replacing

FORMAT = 2
DATA_RANGE = "[-1, 1]"  # the images that a network reads


class Header(Section):
    """What a weights file says of itself. Each network adds what ``build`` takes to build it."""

    kind: str
    format: int = FORMAT
    data_range: str = DATA_RANGE


Trained = tuple[nn.Module, Header]

AnyHeader = TypeVar("AnyHeader", bound=Header)
AnyNetwork = TypeVar("AnyNetwork", bound=nn.Module)


def save_weights(path: Path, network: nn.Module, header: Header) -> None:
    """Write weights and header as one safetensors file, atomically.

    Raises:
        UserError: the disk is full; what was there before is intact.
    """
    tensors = {name: value.contiguous().cpu() for name, value in network.state_dict().items()}
    metadata = {"scorevae": header.model_dump_json()}
    with replacing(path) as temporary:  # as bytes, since save_file hides why a write failed
        temporary.write_bytes(safetensors.torch.save(tensors, metadata))


def read_header(path: Path, expected: type[AnyHeader]) -> AnyHeader:
    """Read and check the header of a weights file.

    Raises:
        UserError: the file is absent, is no safetensors file, was not written by ScoreVAE, or
            holds weights of another kind or format.
    """
    (wanted,) = get_args(expected.model_fields["kind"].annotation)
    remedy = f"give {wanted} weights written by ScoreVAE"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        why = "no such file; run the stage that writes it (dvc repro)"
        raise UserError(f"{path}: {why}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a safetensors file ({error}); {remedy}") from None
    if "scorevae" not in metadata:
        raise UserError(f"{path}: carries no ScoreVAE header; {remedy}")
    try:
        tree = json.loads(metadata["scorevae"])
        found = tree["kind"], tree["format"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: its ScoreVAE header is damaged; {remedy}") from None
    if found != (wanted, FORMAT):
        held = f"holds {found[0]} weights of format {found[1]}"
        raise UserError(f"{path}: {held}; give {wanted} weights of format {FORMAT}")
    if isinstance(sde := tree.get("sde"), dict):
        tree["sde"] = {"t_max": 1.0, **sde}  # see SDEConfig
    header = parse(expected, tree, str(path))
    if header.data_range != DATA_RANGE:
        raise UserError(
            f"{path}: {wanted} weights for images in {header.data_range}; images are in "
            f"{DATA_RANGE} here, so train them again"
        )
    return header


def load_weights(path: Path, network: AnyNetwork) -> AnyNetwork:
    """Fill a network built from the file's header; freeze it, in evaluation mode, on the CPU.

    Raises:
        UserError: names or shapes of the weights are not the network's.
    """
    try:
        network.load_state_dict(safetensors.torch.load_file(path))
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: the weights do not fit the header ({first}); write the file again"
        ) from None
    return network.eval().requires_grad_(False)


def check_header(path: Path, header: Header, **expected: Section | int) -> None:
    """Raise UserError unless the named entries of a header are what the parameters ask for."""
    for name, wanted in expected.items():
        found = getattr(header, name)
        if found != wanted:
            raise UserError(
                f"{path}: its {name} is ({found}), the parameters ask for ({wanted}); train it "
                "again with these parameters or restore the ones it was trained with"
            )

"""Self-describing weights: safetensors with the network's own settings as a header."""

import json
import math
from pathlib import Path
from typing import Any, TypeVar, get_args

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import nn

from scorevae.config import Section, parse
from scorevae.errors import UserError, in_a_line
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
    tree = _said(path, f"give {wanted} weights written by ScoreVAE")
    found = tree["kind"], tree["format"]
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


def _said(path: Path, remedy: str) -> dict[str, Any]:
    """The header's tree, in which kind and format are sure to be."""
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
        tree["kind"], tree["format"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: its ScoreVAE header is damaged; {remedy}") from None
    return tree


def load_weights(path: Path, network: AnyNetwork) -> AnyNetwork:
    """Fill a network built from the file's header; freeze it, in evaluation mode, on the CPU.

    Raises:
        UserError: names or shapes of the weights are not the network's.
    """
    try:
        network.load_state_dict(safetensors.torch.load_file(path))
    except RuntimeError as error:
        first = in_a_line(error)
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


def described(path: Path) -> dict[str, Any]:
    """What a weights file says of itself, with its number of parameters, as plain values.

    Raises:
        UserError: it is no weights file of ScoreVAE.
    """
    tree = _said(path, "give weights written by ScoreVAE")
    with safe_open(path, framework="pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    return _short(tree) | {"parameters": sum(math.prod(shape) for shape in shapes)}


def _short(value: Any, most: int = 20) -> Any:  # noqa: ANN401 (plain values)
    """The same with long lists, such as a schedule, told by their length alone."""
    if isinstance(value, dict):
        return {name: _short(inner) for name, inner in value.items()}
    if isinstance(value, list) and len(value) > most:
        return f"{len(value)} values"
    return value

"""The file that says how a run decoded, ``decoding.json`` beside the weights."""

import json
from pathlib import Path

from scorevae.config import Config, DecodingConfig, parse
from scorevae.errors import UserError
from scorevae.runtime.files import replacing

DECODING = "decoding.json"  # written by the stage reconstruct


def decoding_of(config: Config) -> DecodingConfig:
    """How a run reconstructs."""
    chosen = config.reconstruct
    return DecodingConfig(
        format=1,
        beta=config.beta,
        guidance=chosen.guidance,
        prior=chosen.prior,
        protocol=config.sampling,
    )


def read_decoding(path: Path) -> DecodingConfig | None:
    """What the stage ``reconstruct`` has left beside the weights, None where it has not.

    Raises:
        UserError: the file is damaged or of another version.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not JSON ({error}); run the stage reconstruct again") from None
    return parse(DecodingConfig, tree, str(path))


def write_decoding(path: Path, decoding: DecodingConfig) -> None:
    """Write it as one JSON file, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(decoding.model_dump_json(indent=2) + "\n", encoding="utf-8")

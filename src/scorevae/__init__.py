"""Auto-encoding without a decoder (arXiv 2304.12141): ``from scorevae import ScoreVAE``.

Importing the package costs nothing; PyTorch comes with the first name that is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scorevae.autoencoders.diffusion_decoder import DiffusionDecoder
    from scorevae.autoencoders.score_vae import ScoreVAE, ScoreVAEPlus
    from scorevae.autoencoders.vae import VAE

PLACES = {
    "DiffusionDecoder": "diffusion_decoder",
    "ScoreVAE": "score_vae",
    "ScoreVAEPlus": "score_vae",
    "VAE": "vae",
}
__all__ = ["VAE", "DiffusionDecoder", "ScoreVAE", "ScoreVAEPlus"]
__version__ = "0.1.0"  # as in pyproject.toml, which a checkout without installation cannot ask


def __getattr__(name: str) -> Any:  # noqa: ANN401 (a module's attribute)
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"scorevae.autoencoders.{PLACES[name]}"), name)

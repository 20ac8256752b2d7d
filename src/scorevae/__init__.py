"""Auto-encoding without a decoder (arXiv 2304.12141): ``from scorevae import ScoreVAE``.

Importing the package costs nothing; PyTorch comes with the first name that is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scorevae.autoencoders import VAE, DiffusionDecoder, ScoreVAE, ScoreVAEPlus

__all__ = ["VAE", "DiffusionDecoder", "ScoreVAE", "ScoreVAEPlus"]
__version__ = "0.1.0"  # as in pyproject.toml, which a checkout without installation cannot ask


def __getattr__(name: str) -> Any:  # noqa: ANN401 (a module's attribute)
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from scorevae import autoencoders

    return getattr(autoencoders, name)

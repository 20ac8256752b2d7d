"""What the stage reconstruct hands to evaluate: images and the posteriors they came from."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scorevae.errors import UserError
from scorevae.gaussian import DiagonalGaussian
from scorevae.shapes import Images


class Reconstructions(NamedTuple):
    """Test images as one system gives them back, in [0, 1], unclamped, in the data's order."""

    images: Images
    posterior: DiagonalGaussian


def save(folder: Path, name: str, reconstructions: Reconstructions) -> None:
    """Write ``<name>_{images,mean,log_variance}.npy`` (float32, N×C×H×W and N×latent)."""
    images, posterior = reconstructions
    np.save(folder / f"{name}_images.npy", images.numpy())
    np.save(folder / f"{name}_mean.npy", posterior.mean.numpy())
    np.save(folder / f"{name}_log_variance.npy", posterior.log_variance.numpy())


def load(folder: Path, name: str, originals: Images) -> Reconstructions:
    """Read what :func:`save` wrote for these originals.

    Raises:
        UserError: a file is missing or no array, or its images are not those of the test set.
    """
    images = _read(folder / f"{name}_images.npy")
    if images.shape != originals.shape:
        raise UserError(
            f"{folder / name}_images.npy: shape {tuple(images.shape)}, the test images have "
            f"{tuple(originals.shape)}; run the stage reconstruct again"
        )
    mean = _read(folder / f"{name}_mean.npy")
    return Reconstructions(
        images, DiagonalGaussian(mean, _read(folder / f"{name}_log_variance.npy"))
    )


def _read(path: Path) -> Tensor:
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read as an array ({error}); run the stage reconstruct again"
        ) from None

"""Lines of reference for L2 at a rate: what codes of Gaussian data with the same moments reach.

Reverse water-filling (Cover & Thomas, theorem 10.3.3): with λ_i the eigenvalues of the pixels'
covariance and D the level, R = Σ_{λ_i > D} ½ ln(λ_i/D) nats buy the squared error Σ min(λ_i, D).
It is the least for Gaussian data, and for any data the most that an ideal code needs at that rate.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

Eigenvalues = Float[np.ndarray, " pixels"]
LEVELS = 200  # points of a curve
PERFECT_DRAW = math.sqrt(2)  # L2 of a perfect draw from p(x|z) over that of E[x|z]


class Curve(NamedTuple):
    """L2 against rate, by rising rate."""

    rate_nats: Float[np.ndarray, " level"]
    l2: Float[np.ndarray, " level"]


def eigenvalues(images: UInt8[np.ndarray, "image height width channel"]) -> Eigenvalues:
    """Of the covariance of the pixels in [0, 1], the largest first; rounding below 0 becomes 0."""
    pixels = images.reshape(len(images), -1).astype(np.float32) / 255
    centred = pixels - pixels.mean(axis=0)
    covariance = (centred.T @ centred).astype(np.float64) / max(1, len(pixels) - 1)
    return np.maximum(np.linalg.eigvalsh(covariance)[::-1], 0)


def gaussian_curve(variances: Eigenvalues) -> Curve:
    """√(Σ min(λ_i, D)) against Σ_{λ_i > D} ½ ln(λ_i/D), for levels D from the largest λ down."""
    largest = variances.max()
    levels = largest * np.logspace(-1e-9, -6, LEVELS)[:, None]
    rates = 0.5 * np.log(np.maximum(variances / levels, 1)).sum(axis=1)
    return Curve(rates, np.sqrt(np.minimum(variances, levels).sum(axis=1)))


def principal_floor(variances: Eigenvalues, latent: int) -> float:
    """L2 that no linear code of so many numbers falls below: √(Σ_{i > latent} λ_i)."""
    return math.sqrt(variances[latent:].sum())

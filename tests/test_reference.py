"""What codes of Gaussian data reach, against closed forms."""

import math

import numpy as np
import pytest

from scorevae.evaluation.reference import eigenvalues, gaussian_curve, principal_floor


def test_equal_variances_have_the_scalar_curve() -> None:
    """Catches bits for nats, a lost ½, and errors that are not summed over pixels.

    For n equal variances λ: R = (n/2) ln(λ/D), so that L2 = √(n λ) e^(−R/n).
    """
    curve = gaussian_curve(np.full(5, 0.3))
    np.testing.assert_allclose(curve.l2, math.sqrt(1.5) * np.exp(-curve.rate_nats / 5), rtol=1e-6)
    assert curve.rate_nats[0] == pytest.approx(0, abs=1e-6)
    assert (np.diff(curve.rate_nats) > 0).all()


def test_small_variances_are_left_out() -> None:
    """Catches a rate for directions below the water, and their error forgotten."""
    curve = gaussian_curve(np.array([1.0, 1e-9]))
    np.testing.assert_allclose(curve.l2**2 - 1e-9, np.exp(-2 * curve.rate_nats), rtol=1e-6)


def test_floor_is_what_is_left() -> None:
    """Catches the largest eigenvalues counted in place of the rest."""
    assert principal_floor(np.array([9.0, 3.0, 1.0]), 1) == 2.0
    assert principal_floor(np.array([9.0, 3.0]), 5) == 0.0


def test_eigenvalues_are_those_of_pixels_in_the_unit_range() -> None:
    """Catches bytes for [0, 1], a mean left in, and an order that begins with the smallest."""
    images = np.random.default_rng(0).integers(0, 256, (400, 2, 2, 3), np.uint8)
    expected = np.linalg.eigvalsh(np.cov(images.reshape(400, -1).T / 255.0))[::-1]
    np.testing.assert_allclose(eigenvalues(images), expected, rtol=1e-4)

"""What reconstructions look like: spectra and features against closed forms."""

import math

import numpy as np
import pytest
import torch
from oracles import seeded
from torch import Tensor
from torch.nn.functional import avg_pool2d

from scorevae.errors import Unavailable
from scorevae.evaluation.parts import trade
from scorevae.evaluation.parts.perception import (
    FEATURES,
    feature_distances,
    power_spectrum,
    relative_spectrum,
)
from scorevae.evaluation.parts.trade import Point


def images(count: int = 4, size: int = 8) -> Tensor:
    """Noise, which has power at every frequency."""
    return torch.rand(count, 2, size, size, generator=seeded(0), dtype=torch.float64)


@pytest.mark.parametrize(("u", "v", "frequency"), [(2, 0, 2), (0, 3, 3), (1, 2, 2), (3, 3, 4)])
def test_a_wave_has_its_power_at_its_frequency(u: int, v: int, frequency: int) -> None:
    """Catches axes exchanged with channels, a shifted spectrum, and |FFT| in place of its square.

    cos(2π(ux + vy)/n) has |FFT|² = n⁴/4 at ±(u, v); the ring k averages over its frequencies.
    """
    n = 8
    x = torch.arange(n, dtype=torch.float64) / n
    wave = torch.cos(2 * math.pi * (u * x[:, None] + v * x[None, :]))[None, None]
    line = np.fft.fftfreq(n, 1 / n)
    ring = np.rint(np.hypot(line[:, None], line[None, :])) == frequency
    expected = np.zeros(n // 2)
    expected[frequency - 1] = 2 * n**4 / 4 / ring.sum()
    np.testing.assert_allclose(power_spectrum(wave), expected, atol=1e-9)


def test_scaled_images_differ_by_the_scale_in_decibels() -> None:
    """Catches natural logarithms, amplitudes for powers, and the wrong one below the fraction."""
    x = images()
    found = relative_spectrum(x, 0.1 * x)
    np.testing.assert_allclose(found, -20, atol=1e-6)
    np.testing.assert_allclose(relative_spectrum(x, x), 0, atol=1e-9)


def test_blur_loses_high_frequencies() -> None:
    """A measure of perception that does not see blur."""
    x = images(size=16)
    blurred = avg_pool2d(x, 3, 1, padding=1, count_include_pad=False)
    found = relative_spectrum(x, blurred)
    assert found[-1] < -6
    assert found[-1] < found[0]


def test_constant_images_have_no_spectrum() -> None:
    """An infinite ratio in metrics.json."""
    with pytest.raises(Unavailable, match="constant"):
        relative_spectrum(torch.full((3, 1, 8, 8), 0.5), images(3)[:, :1])
    with pytest.raises(Unavailable, match="no frequencies"):
        relative_spectrum(torch.rand(3, 1, 1, 1), torch.rand(3, 1, 1, 1))


def test_feature_distances_are_paired_and_of_shown_images() -> None:
    """Catches a distance of sets where one of pairs is meant, a lost root, and no clamping.

    With the mean grey value as every feature, x̂ = x + 0.1 is 0.1 away in each, and the sets'
    Gaussians differ by their means alone: ‖0.1 · 1‖² = 0.01 FEATURES.
    """
    x = 0.2 + 0.5 * images()

    def grey(batch: Tensor) -> Tensor:
        assert batch.min() >= 0
        assert batch.max() <= 1
        return batch.mean(dim=(1, 2, 3))[:, None].expand(-1, FEATURES)

    found = feature_distances(grey, x, x + 0.1)
    assert found["feature_distance"] == pytest.approx(0.1, rel=1e-9)
    assert found["reconstruction_fd"] == pytest.approx(0.01 * FEATURES, rel=1e-5)
    exchanged = feature_distances(grey, x, x.flip(0))
    assert exchanged["reconstruction_fd"] == pytest.approx(0, abs=1e-6)
    assert exchanged["feature_distance"] > 1e-3
    feature_distances(grey, x, 10 * x)
    assert feature_distances(grey, x[:1], x[:1])["reconstruction_fd"] is None


@pytest.mark.parametrize(
    ("l2", "sharpness", "evaluations", "said"),
    [
        (0.9, 0.8, 1, "in one pass: τ, γ = 1, τ 0.8, with 0.9000 and 0.800"),
        (0.9, 1.2, 1, "in one pass"),
        (1.1, 0.8, 1, "No single pass"),  # sharper and farther
        (0.9, 0.4, 1, "No single pass"),  # nearer and blurred
        (0.9, 0.8, 4, "No single pass"),  # at the price of four
    ],
)
def test_the_headline_is_nearer_and_sharper(
    l2: float, sharpness: float, evaluations: int, said: str
) -> None:
    """A claim that takes one half for both, or a mean of draws for one pass."""
    found = [
        Point("τ, γ = 1", 0.8, evaluations, l2, sharpness),
        Point("τ, γ = 1", 1.0, 1, 2.0, 0.95),
        Point("VAE", 1.0, 1, 1.0, 0.5),
    ]
    (note,) = trade.notes(found)
    assert said in note

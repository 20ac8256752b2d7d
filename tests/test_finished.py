"""Whether a training had ended when it stopped: in its curve, in the numbers, on the page."""

import math

import pytest

from scorevae.evaluation.parts.comparison import collapsed
from scorevae.training.loop import falling


def test_slope_is_that_of_a_line_in_log_steps() -> None:
    """Natural for binary logarithms, all points in place of the last fifth, or the wrong sign.

    loss = 3 − 0.1 log₂ step falls by 0.1 for each doubling, 0.1/last of it; what happened before
    the last fifth does not count.
    """
    late = [(step, 3 - 0.1 * math.log2(step)) for step in (800, 900, 1000)]
    expected = 100 * 0.1 / late[-1][1]
    assert falling(late) == pytest.approx(expected)
    assert falling([(100, 50.0), (799, 20.0), *late]) == pytest.approx(expected)
    assert falling([(s, -loss) for s, loss in late]) == pytest.approx(-expected)  # it rises


def test_two_points_are_the_least() -> None:
    """A last fifth with one validation or none says nothing; then the last two are taken."""
    assert falling([(500, 4.0), (1000, 2.0)]) == pytest.approx(100.0)
    assert falling([(250, 9.0), (500, 4.0), (1000, 2.0)]) == pytest.approx(100.0)
    assert falling([(1000, 2.0)]) is None
    assert falling([(500, 1.0), (1000, 0.0)]) is None


def test_a_system_whose_z_is_not_used_is_named() -> None:
    """A comparison of images that nothing chose, without a word."""
    numbers = {"scorevae": {"rate_nats": 0.01}, "vae": {"rate_nats": 0.3}}
    (note,) = collapsed(numbers, 100.0)
    assert note == "ScoreVAE: rate 0.0 nats: z is not used; lower beta (100)."

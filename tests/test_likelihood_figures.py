"""The picture of the likelihood bound."""

from pathlib import Path

import numpy as np
import pytest
import torch

from scorevae.evaluation.bound import Bound, Estimate, Integrand
from scorevae.evaluation.figures import save
from scorevae.evaluation.parts.likelihood import draw


def bound(level: float, rate: float) -> Bound:
    """A bound whose integrand is flat; one bin is empty."""
    terms = {"diffusion": Estimate(10 * level, 0.1, 0.1), "rate": Estimate(rate, 0.0, 0.1)}
    mean = torch.tensor([level, level, float("nan"), level], dtype=torch.float64)
    middles = torch.tensor([-6.0, -2.0, 2.0, 6.0], dtype=torch.float64)
    return Bound(
        dimensions=2,
        total=Estimate(10 * level + rate, 0.1, 0.1),
        terms=terms,
        below_t_min=Estimate(1.0, 0.1, 0.1),
        theorem_3=Estimate(10 * level + rate, 0.1, 0.1),
        per_image=torch.ones(3, dtype=torch.float64),
        integrand=Integrand(middles, mean, 0.1 * mean, trained=5.0),
    )


@pytest.mark.parametrize("latent", [False, True])
def test_the_integrand_is_drawn(tmp_path: Path, latent: bool) -> None:
    """Catches curves swapped, the prior missing, or a model without a latent that crashes."""
    drawn = {"prior": bound(2.0, 0.0)} | ({"ScoreVAE": bound(0.5, 7.0)} if latent else {})
    figure = draw(drawn)
    (axis,) = figure.axes
    lines = {line.get_label().split(":")[0]: line for line in axis.get_lines()}
    assert set(lines) == {*drawn, "t_min"}
    for name, shown in drawn.items():
        np.testing.assert_array_equal(lines[name].get_ydata(), shown.integrand.mean)
        assert f"rate {shown.bits_per_dimension()['rate'].mean:.2f}" in lines[name].get_label()
    assert lines["t_min"].get_xdata()[0] == 5
    save(figure, tmp_path / "integrand.png")
    assert (tmp_path / "integrand.png").stat().st_size > 1000

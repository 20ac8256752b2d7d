"""figures: what is drawn, and that it reaches a file."""

import warnings
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from scorevae.evaluation import figures
from scorevae.evaluation.parts.training import draw, read_curve

PNG = b"\x89PNG\r\n\x1a\n"


def pictures(figure: Figure) -> list[np.ndarray]:
    """The pixels of every image drawn, in order."""
    return [np.asarray(axis.get_images()[0].get_array()) for axis in figure.axes if axis.images]


def assert_written(figure: Figure, path: Path) -> None:
    """Save, and look at the file."""
    figures.save(figure, path)
    assert path.read_bytes().startswith(PNG)
    assert min(plt.imread(path).shape[:2]) > 50
    assert not plt.fignum_exists(figure.number)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("channels", [1, 3])
def test_image_rows(tmp_path: Path, channels: int) -> None:
    """Catches lost or swapped rows or labels, misplaced channels, and a shorter row that fails."""
    levels = (("a", 4, 0.25), ("b", 2, 0.5))
    rows = [(name, torch.full((count, channels, 8, 8), v)) for name, count, v in levels]
    figure = figures.image_rows(rows, "title")
    assert len(figure.axes) == 8
    drawn = pictures(figure)
    assert [p.flat[0] for p in drawn] == [0.25] * 4 + [0.5] * 2
    assert {p.shape for p in drawn} == {(8, 8) if channels == 1 else (8, 8, 3)}
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert texts == ["a", "b"]
    assert_written(figure, tmp_path / "out" / "rows.png")


def test_values_are_clamped() -> None:
    """Catches a picture rescaled to its own range, or integers wrapped around."""
    x = torch.tensor([-1.0, 0.0, 0.5, 2.0]).reshape(1, 1, 2, 2)
    figure = figures.image_rows([("", x)], "title")
    assert pictures(figure)[0].flatten().tolist() == [0, 0, 0.5, 1]
    assert figure.axes[0].get_images()[0].get_clim() == (0, 1)
    plt.close(figure)


def test_image_grid(tmp_path: Path) -> None:
    """Catches images out of order or lost in an incomplete last row."""
    x = torch.linspace(0, 1, 7)[:, None, None, None].expand(-1, 1, 8, 8)
    figure = figures.image_grid(x, 3, "title")
    assert len(figure.axes) == 9
    assert [p.flat[0] for p in pictures(figure)] == x[:, 0, 0, 0].tolist()
    assert_written(figure, tmp_path / "out" / "grid.png")


def test_training_curves(tmp_path: Path) -> None:
    """Catches phases joined to one line, and rows of validation drawn as losses."""
    rows = {
        "prior": "prior,1,4.0,1,\nprior,2,,2,3.0\nprior,3,2.0,3,\n",
        "encoder": "warm_start,1,9,1,\nencoder,1,8,1,\nencoder,2,7,2,\n",
    }
    curves = {}
    for name, text in rows.items():
        (tmp_path / "curve.csv").write_text(f"phase,step,loss,seconds,test_loss\n{text}")
        curves[name] = read_curve(tmp_path / "curve.csv")
    figure = draw(curves)
    lines = [(a.get_title(), line) for a in figure.axes for line in a.get_lines()]
    assert [(panel, line.get_label(), line.get_xydata().tolist()) for panel, line in lines] == [
        ("prior", "prior", [[1, 4], [3, 2]]),
        ("encoder", "warm_start", [[1, 9]]),
        ("encoder", "encoder", [[1, 8], [2, 7]]),
    ]
    assert_written(figure, tmp_path / "out" / "curves.png")


def test_no_curve_of_a_pretrained_prior() -> None:
    """Catches a warning of Matplotlib about a legend of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (axis,) = draw({"prior": []}).axes
    assert axis.get_legend() is None


@pytest.mark.parametrize(
    "values", [(5, 9, 10, 19, 20, 49, 50), (0.1, 0.19), (0.11, 0.37), (3.0, 4e5), (2.0, 2.0)]
)
def test_numbers_of_a_logarithmic_axis_can_be_read(values: tuple[float, ...]) -> None:
    """Catches labels over one another, as 3×10¹4×10¹, and an axis with fewer than two."""
    figure, (axis,) = figures.lines(1)
    axis.plot(values, values, ".")
    axis.set(xscale="log", yscale="log")
    for one in (axis.xaxis, axis.yaxis):
        figures.logarithmic(one)
    figure.canvas.draw()
    for one, side in ((axis.xaxis, 0), (axis.yaxis, 1)):
        low, high = sorted(one.get_view_interval())
        ticks = [*one.get_major_ticks(), *one.get_minor_ticks()]
        inside = [t for t in ticks if low <= t.get_loc() <= high and t.label1.get_text()]
        extents = [tick.label1.get_window_extent() for tick in inside]
        boxes = sorted(tuple(box.intervaly if side else box.intervalx) for box in extents)
        assert len(boxes) >= 2
        assert all(end < start for (_, end), (start, _) in pairwise(boxes))
    plt.close(figure)

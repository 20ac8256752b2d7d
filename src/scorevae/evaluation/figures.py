"""Pictures: what several parts draw with, and how a figure becomes a PNG."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np

from scorevae.runtime.files import replacing
from scorevae.shapes import AnyImages, Images

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 (the backend must be chosen first)
from matplotlib.axes import Axes as Axes  # noqa: E402, PLC0414
from matplotlib.axis import Axis  # noqa: E402
from matplotlib.figure import Figure as Figure  # noqa: E402, PLC0414 (others draw with it too)
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter  # noqa: E402


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically, and close it."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, bbox_inches="tight")
    plt.close(figure)


def image_rows(rows: Sequence[tuple[str, AnyImages]], title: str) -> Figure:
    """One labelled row of images for each entry; values in [0, 1] are clamped for display."""
    columns = max(len(images) for _, images in rows)
    size = (0.8 * columns + 1, 0.8 * len(rows) + 0.4)
    figure, axes = plt.subplots(
        len(rows), columns, figsize=size, squeeze=False, layout="constrained"
    )
    for (name, images), row in zip(rows, axes, strict=True):
        for axis in row:
            axis.set_axis_off()
        for axis, image in zip(row, images, strict=False):
            pixels = image.clamp(0, 1).permute(1, 2, 0).numpy()
            axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        row[0].text(-0.15, 0.5, name, transform=row[0].transAxes, ha="right", va="center")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")  # seen where a phone cuts it off
    return figure


def image_grid(images: Images, columns: int, title: str) -> Figure:
    """Images row by row without labels."""
    return image_rows([("", chunk) for chunk in images.split(columns)], title)


def lines(panels: int) -> tuple[Figure, np.ndarray]:
    """An empty figure of panels side by side, for curves."""
    figure, axes = plt.subplots(1, panels, figsize=(4.5 * panels, 3.5), layout="constrained")
    return figure, np.atleast_1d(axes)


def logarithmic(axis: Axis) -> None:
    """A logarithmic axis of which plain numbers are labelled, few enough to be read.

    On less than a decade matplotlib labels every multiple, in powers of ten, over one another.
    """
    low, high = sorted(axis.get_view_interval())
    ratio = high / low if low > 0 else math.inf
    wide = LogLocator(subs=(1,) if ratio > 1000 else (1, 2, 5))
    axis.set_major_locator(MaxNLocator(4) if ratio < 5 else wide)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def label_name(label: int, names: Mapping[int, str] | None) -> str:
    """A label's name, to be drawn letter by letter: matplotlib reads ``$`` as mathematics.

    What has no encoding, as in the name of a file that is not UTF-8, becomes a question mark.
    """
    name = (names or {}).get(label, str(label))
    return name.encode(errors="replace").decode().replace("$", r"\$")


def name_columns(figure: Figure, names: Sequence[str]) -> None:
    """Titles over the first row of :func:`image_rows`."""
    for axis, name in zip(figure.axes, names, strict=False):
        axis.set_title(name, fontsize=8)

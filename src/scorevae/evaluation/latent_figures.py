"""Pictures of the latent space: what :mod:`scorevae.evaluation.probe` computes, drawn."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from scorevae.evaluation.figures import as_written, image_rows
from scorevae.evaluation.probe import (
    Accuracy,
    Direction,
    Indices,
    Points,
    Spread,
)
from scorevae.shapes import (
    Groups,
    Images,
)

MOST_NAMED = 20  # classes that a legend lists, and a colour map tells apart


def probe_curve(accuracies: Mapping[float, Accuracy], title: str) -> Figure:
    """Accuracy of the probe against the time t of the noise that the encoder reads."""
    figure, axis = plt.subplots(figsize=(5, 3.5), layout="constrained")
    times = list(accuracies)
    for name in ("accuracy", "balanced"):
        axis.plot(times, [getattr(a, name) for a in accuracies.values()], marker="o", label=name)
    majority = next(iter(accuracies.values())).majority
    axis.axhline(majority, color="grey", linestyle="--", label="most frequent class")
    axis.set(
        title=title, xlabel="t of the noise", ylabel="accuracy on test images", ylim=(0, 1.03)
    )
    axis.legend(fontsize=8)
    return figure


def embedding(
    points: Points, labels: Indices | None, title: str, names: Mapping[int, str] | None = None
) -> Figure:
    """Points in the plane, coloured by class, or by the label itself where classes are many.

    Args:
        points: from :func:`scorevae.evaluation.probe.embed`.
        labels: of each point; None draws them in one colour.
        title: above the picture.
        names: of the classes in the legend, where the label alone says too little.
    """
    figure, axis = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
    values = np.unique(labels) if labels is not None else np.array([])
    if labels is not None and len(values) <= MOST_NAMED:
        colours = plt.get_cmap("tab10" if len(values) <= 10 else "tab20")
        for index, value in enumerate(values):
            x, y = points[labels == value].T
            name = _name(int(value), names)
            axis.scatter(x, y, s=12, color=colours(index), label=name, linewidths=0)
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
    else:
        axis.scatter(points[:, 0], points[:, 1], s=12, c=labels, linewidths=0)
    axis.set(title=title, xticks=[], yticks=[])
    return figure


def interpolations(first: Images, second: Images, straight: Groups, curved: Groups) -> Figure:
    """For each pair of images the straight and the spherical path, images themselves outermost."""
    rows = []
    for a, b, *paths in zip(first, second, straight, curved, strict=True):
        for name, path in zip(("straight", "spherical"), paths, strict=True):
            rows.append((name, torch.cat([a[None], path, b[None]])))
    title = "between two test images (outermost): decoded from a line and from an arc of z"
    return image_rows(rows, title)


def edits(
    originals: Images,
    edited: Groups,
    strengths: Sequence[float],
    direction: Direction,
    names: Mapping[int, str] | None = None,
) -> Figure:
    """Each original, then its z moved by every strength along the direction."""
    source, target = (_name(label, names) for label in (direction.source, direction.target))
    rows = [("", torch.cat([a[None], row])) for a, row in zip(originals, edited, strict=True)]
    figure = image_rows(rows, f"z moved along E[z|{target}] − E[z|{source}]")
    _name_columns(figure, ["original", *(f"{s:+g}" if s else "0" for s in strengths)])
    return figure


def draws(
    originals: Images, drawn: Groups, spread: Spread, title: str = "several draws for one z"
) -> Figure:
    """Each original, K draws for its z, their mean and their standard deviation."""
    # One pixel that varies by far the most would leave all others black.
    brightest = max(float(np.quantile(spread.std.numpy(), 0.99)), 1e-6)
    columns: list[Float[Tensor, "batch channel height width"]] = [
        originals,
        *drawn.unbind(dim=1),
        spread.mean,
        spread.std / brightest,
    ]
    rows = [("", torch.stack(row)) for row in zip(*columns, strict=True)]
    figure = image_rows(rows, f"{title}; standard deviation: white is {brightest:.2g} or more")
    numbers = [str(1 + index) for index in range(drawn.shape[1])]
    _name_columns(figure, ["original", *numbers, "mean", "std"])
    return figure


def shuffled(originals: Images, own: Images, other: Images, donors: Images) -> Figure:
    """Each original, its reconstruction, that from another's z with the same noise, the other."""
    rows = [
        ("original", originals),
        ("own z", own),
        ("other's z", other),
        ("the other", donors),
    ]
    return image_rows(rows, "the same noise, decoded with the image's own z and with another's")


def _name(label: int, names: Mapping[int, str] | None) -> str:
    """What a label is called in a picture."""
    return as_written((names or {}).get(label, str(label)))


def _name_columns(figure: Figure, names: Sequence[str]) -> None:
    """Titles over the first row of :func:`scorevae.evaluation.figures.image_rows`."""
    for axis, name in zip(figure.axes, names, strict=False):
        axis.set_title(name, fontsize=8)

"""z moved from one class towards another, and how often a classifier sees the target."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scorevae.errors import Unavailable
from scorevae.evaluation.figures import Figure, image_rows, label_name, name_columns
from scorevae.evaluation.metrics import Classifier
from scorevae.evaluation.part import Caption, Columns, Found, Part, Subject
from scorevae.evaluation.probe import Indices, Labelled, label_column, labelled
from scorevae.evaluation.report.tables import Rows
from scorevae.shapes import Groups, Images

EDITS_PER_CLASS = 2  # of the images that are shown


def compute(subject: Subject) -> Found:
    """Edit, judge, draw."""
    settings, config = subject.config.evaluate.edits, subject.config
    direction = class_direction(subject.z_probed)
    labels = label_column(labelled(subject.z, subject.test.labels).labels)
    rows = rows_to_edit(labels, direction, subject.looked_at(settings.images, least=2))
    z, weight = edit(subject.z[rows], direction, settings.strengths), config.reconstruct.guidance
    edited = subject.model.decode_groups(z, guidance=weight, seed=config.seed)
    shares = share_of_target(subject.feature_classifier.predict, edited, direction)
    pairs = zip(settings.strengths, shares, strict=True)
    table: Rows = [{"strength": s, "share_of_target": share} for s, share in pairs]
    # A few of the first rows and as many of the second half: some of either class.
    half = len(rows) // 2
    few = min(EDITS_PER_CLASS, half)
    shown = [*range(few), *range(half, half + few)]
    originals = subject.originals[rows][shown]
    figure = draw(originals, edited[shown], settings.strengths, direction, subject.names)
    return Found(tables={"edits": table}, figures={"edits": figure})


class Direction(NamedTuple):
    """From the mean z of one class to that of another."""

    vector: Float[Tensor, " width"]
    source: int
    target: int


def class_direction(train: Labelled) -> Direction:
    """E[z|target] − E[z|source] of the two largest classes (by label), or of attribute 0 to 1.

    The difference of means rather than a probe's weight: one unit of it carries the mean of one
    class onto that of the other, whatever the penalty, and it stays where latents vary.

    Raises:
        Unavailable: fewer than two classes.
    """
    labels = label_column(train.labels)
    values, counts = np.unique(labels, return_counts=True)
    if len(values) < 2:
        raise Unavailable("direction: the training labels hold a single class")
    source, target = sorted(values[np.argsort(-counts, kind="stable")[:2]].tolist())
    members = (torch.from_numpy(labels == label) for label in (source, target))
    first, second = (train.vectors[rows].mean(dim=0) for rows in members)
    return Direction(second - first, source, target)


def rows_to_edit(labels: Indices, direction: Direction, count: int) -> Indices:
    """The first images of either class, half of ``count`` each, the source's before the target's.

    Raises:
        Unavailable: there are fewer, or ``count`` is under two.
    """
    if count < 2:
        raise Unavailable(f"edits: {count} image asked for; 2, one of each class, are the least")
    rows = [np.flatnonzero(labels == label)[: count // 2] for label in direction[1:]]
    if (there := min(map(len, rows))) < count // 2:
        asked = f"{count // 2} images of either class asked for"
        raise Unavailable(f"edits: {asked}, {there} there; lower evaluate's number")
    return np.concatenate(rows)


def edit(
    z: Float[Tensor, "batch width"], direction: Direction, strengths: list[float]
) -> Float[Tensor, "batch strength width"]:
    """z + s·(E[z|target] − E[z|source]) for every strength s."""
    steps = torch.tensor(strengths).to(z)
    return z[:, None] + steps[None, :, None] * direction.vector


def share_of_target(classifier: Classifier, edited: Groups, direction: Direction) -> list[float]:
    """For each strength, the share of edited images that a classifier takes for the target."""
    verdicts = (label_column(classifier(images)) for images in edited.unbind(dim=1))
    return [float(np.mean(verdict == direction.target)) for verdict in verdicts]


def draw(
    originals: Images,
    edited: Groups,
    strengths: Sequence[float],
    direction: Direction,
    names: Mapping[int, str] | None = None,
) -> Figure:
    """Each original, then its z moved by every strength along the direction."""
    source, target = (label_name(label, names) for label in direction[1:])
    rows = [("", torch.cat([a[None], row])) for a, row in zip(originals, edited, strict=True)]
    figure = image_rows(rows, f"z moved along E[z|{target}] − E[z|{source}]")
    name_columns(figure, ["original", *(f"{s:+g}" if s else "0" for s in strengths)])
    return figure


PART = Part(
    name="edits",
    title="Edits",
    text="What moving z from the mean of one class towards that of another does to images.",
    compute=compute,
    settings="edits",
    tables={"edits": Columns(("strength", "share_of_target"))},
    figures={
        "edits": Caption(
            "z moved along the difference of two classes' means, from one noise.",
            "Rows of images that change from one class towards another.",
        )
    },
)

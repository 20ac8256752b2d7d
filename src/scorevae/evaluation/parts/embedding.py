"""t-SNE of the z of test images, coloured by label."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np

from scorevae.errors import Unavailable
from scorevae.evaluation.figures import Figure, label_name
from scorevae.evaluation.part import Caption, Found, Part, Subject
from scorevae.evaluation.probe import Indices, Points, Vectors, label_column
from scorevae.evaluation.tsne import tsne
from scorevae.randomness import derive_seed

PERPLEXITY = 30.0
FEWEST_EMBEDDED = 10  # points; below, t-SNE's neighbourhoods hold next to nothing
MOST_NAMED = 20  # classes that a legend lists, and a colour map tells apart


def compute(subject: Subject) -> Found:
    """Embed, and colour where there are labels."""
    count = subject.config.evaluate.embedding.images
    points = embed(subject.z[:count], perplexity=PERPLEXITY, seed=subject.config.seed)
    labels = subject.test.labels
    known = None if labels is None else label_column(labels[:count])
    title = "t-SNE of z" if labels is None else "t-SNE of z, coloured by label"
    return Found(figures={"embedding": draw(points, known, title, subject.names)})


def embed(vectors: Vectors, *, perplexity: float, seed: int) -> Points:
    """Of :func:`scorevae.evaluation.tsne.tsne`; the perplexity is at most a third of the points.

    Raises:
        Unavailable: too few points for neighbourhoods, or t-SNE failed.
    """
    count = len(vectors)
    if count < FEWEST_EMBEDDED:
        raise Unavailable(f"embedding: {count} images, {FEWEST_EMBEDDED} are the least")
    lowered = min(perplexity, (count - 1) / 3)
    state = derive_seed(seed, "latents", "embedding") % 2**32
    return tsne(vectors.double().numpy(), perplexity=lowered, seed=state)


def draw(
    points: Points, labels: Indices | None, title: str, names: Mapping[int, str] | None = None
) -> Figure:
    """Points in the plane, coloured by class, or by the label itself where classes are many."""
    figure, axis = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
    values = np.unique(labels) if labels is not None else np.array([])
    if labels is not None and len(values) <= MOST_NAMED:
        colours = plt.get_cmap("tab10" if len(values) <= 10 else "tab20")
        for index, value in enumerate(values):
            x, y = points[labels == value].T
            name = label_name(int(value), names)
            axis.scatter(x, y, s=12, color=colours(index), label=name, linewidths=0)
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), markerscale=2)
    else:
        axis.scatter(points[:, 0], points[:, 1], s=12, c=labels, linewidths=0)
    axis.set(title=title, xticks=[], yticks=[])
    return figure


PART = Part(
    name="embedding",
    title="Embedding of z",
    text="Which test images have neighbouring codes.",
    compute=compute,
    settings="embedding",
    figures={
        "embedding": Caption(
            "t-SNE of the z of test images, coloured by label.",
            "Points in the plane, in groups of one colour each.",
        )
    },
)

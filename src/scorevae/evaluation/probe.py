"""What simple classifiers read from vectors: latents, or pixels."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

from scorevae.errors import Unavailable
from scorevae.shapes import Labels

Vectors = Float[Tensor, "_ width"]
Points = Float[np.ndarray, "_ 2"]
Columns = Int64[np.ndarray, "_ column"]
Indices = Int64[np.ndarray, " _"]


class Labelled(NamedTuple):
    """One vector for each image (z, or its pixels), and the images' labels."""

    vectors: Vectors
    labels: Labels


def labelled(vectors: Vectors, labels: Labels | None) -> Labelled:
    """Vectors with their labels; raise Unavailable where there are none."""
    if labels is None:
        raise Unavailable("latents: the data have no labels")
    assert len(vectors) == len(labels), (len(vectors), len(labels))
    return Labelled(vectors, labels)


class Probe(NamedTuple):
    """A classifier of vectors. Classes are one column of labels, attributes are several."""

    predict: Callable[[Vectors], Columns]
    columns: Indices  # those that vary in the training labels; the others are left out
    majority: Indices  # the most frequent training label of each


class Accuracy(NamedTuple):
    """Of a probe on test images; the mean over attributes where there are several."""

    accuracy: float  # share of right verdicts
    balanced: float  # mean over the classes of their share of right verdicts
    majority: float  # accuracy of always saying the most frequent training label


def linear_probe(train: Labelled) -> Probe:
    """Logistic regression (ridge penalty 1) on standardised vectors, one for each column.

    Alain & Bengio 2016, arXiv 1610.01644. Vectors are standardised by the training mean and
    standard deviation, so that the penalty treats z and pixels alike.

    Raises:
        Unavailable: the training labels hold a single class.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, columns = train.vectors.numpy(), _varying(train.labels)
    models = [
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x, column)
        for column in _columns(train.labels)[:, columns].T
    ]

    def predict(vectors: Vectors) -> Columns:
        return np.stack([model.predict(vectors.numpy()) for model in models], axis=1)

    return Probe(predict, columns, _majority(train.labels, columns))


def neighbour_probe(train: Labelled, *, neighbours: int) -> Probe:
    """The vote of the nearest training vectors (Euclidean, as they are).

    Raises:
        Unavailable: a single class, or fewer training images than ``neighbours``.
    """
    from sklearn.neighbors import KNeighborsClassifier

    if len(train.vectors) < neighbours:
        there = f"{len(train.vectors)} training images"
        raise Unavailable(f"neighbours: {neighbours} asked for, {there}")
    columns = _varying(train.labels)
    truth = _columns(train.labels)[:, columns]
    model = KNeighborsClassifier(n_neighbors=neighbours)
    model.fit(train.vectors.numpy(), truth[:, 0] if len(columns) == 1 else truth)

    def predict(vectors: Vectors) -> Columns:
        return model.predict(vectors.numpy()).reshape(len(vectors), -1)

    return Probe(predict, columns, _majority(train.labels, columns))


def judge(probe: Probe, test: Labelled) -> Accuracy:
    """Accuracy of a probe on test images."""
    truth = _columns(test.labels)[:, probe.columns]
    predicted = probe.predict(test.vectors)
    pairs = zip(predicted.T, truth.T, strict=True)
    return Accuracy(
        accuracy=float(np.mean(predicted == truth)),
        balanced=float(np.mean([_balanced(*pair) for pair in pairs])),
        majority=float(np.mean(truth == probe.majority)),
    )


def _columns(labels: Labels) -> Columns:
    return labels.reshape(len(labels), -1)


def _varying(labels: Labels) -> Indices:
    """The columns in which more than one label occurs."""
    columns = _columns(labels)
    found = np.flatnonzero((columns != columns[:1]).any(axis=0))
    if len(found) == 0:
        raise Unavailable("latents: the training labels hold a single class")
    return found


def _majority(labels: Labels, columns: Indices) -> Indices:
    counted = (np.unique(c, return_counts=True) for c in _columns(labels)[:, columns].T)
    return np.array([values[counts.argmax()] for values, counts in counted])


def _balanced(predicted: Indices, truth: Indices) -> float:
    return float(np.mean([np.mean(predicted[truth == c] == c) for c in np.unique(truth)]))


def label_column(labels: Labels) -> Indices:
    """Classes as they are; of several attributes, the first."""
    return _columns(labels)[:, 0]

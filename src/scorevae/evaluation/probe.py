"""What z holds and what it does: probes, embeddings, paths, directions, spread, and its use.

Everything here is a function of latents, labels and images; the model that makes them is
:class:`scorevae.autoencoders.ScoreVAE`.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from scorevae.errors import MetricUnavailable
from scorevae.evaluation.metrics import (
    Classifier,
    l2_distances,
)
from scorevae.randomness import derive_seed, make_generator
from scorevae.shapes import Groups, Images, Labels

Vectors = Float[Tensor, "_ width"]
Points = Float[np.ndarray, "_ 2"]
Columns = Int64[np.ndarray, "_ column"]
Indices = Int64[np.ndarray, " _"]

FEWEST_EMBEDDED = 10  # points; below, t-SNE's neighbourhoods hold next to nothing
STANDARD_ERRORS = 5.0  # by which shuffling z must raise L2, or z counts as ignored


class Labelled(NamedTuple):
    """One vector for each image (z, or its pixels), and the images' labels."""

    vectors: Vectors
    labels: Labels


def labelled(vectors: Vectors, labels: Labels | None) -> Labelled:
    """Vectors with their labels.

    Raises:
        MetricUnavailable: there are no labels.
    """
    if labels is None:
        raise MetricUnavailable("latents: the data have no labels")
    assert len(vectors) == len(labels), (len(vectors), len(labels))
    return Labelled(vectors, labels)


def training_rows(count: int, limit: int, seed: int) -> Indices:
    """At most ``limit`` of ``count`` rows, drawn without replacement, in ascending order."""
    rng = np.random.default_rng(derive_seed(seed, "latents", "rows"))
    return np.sort(rng.permutation(count)[:limit])


def first_images(
    images: Images, count: int, part: str
) -> Float[Tensor, "{count} channel height width"]:
    """The first ``count`` images, all of them or an exception that names the part that asks.

    Raises:
        MetricUnavailable: there are fewer.
    """
    if len(images) < count:
        raise MetricUnavailable(
            f"{part}: {count} images asked for, {len(images)} there; lower evaluate's number"
        )
    return images[:count]


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
        MetricUnavailable: the training labels hold a single class.
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
        MetricUnavailable: a single class, or fewer training images than ``neighbours``.
    """
    from sklearn.neighbors import KNeighborsClassifier

    if len(train.vectors) < neighbours:
        raise MetricUnavailable(
            f"neighbours: {neighbours} asked for, {len(train.vectors)} training images"
        )
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
    pairs = list(zip(predicted.T, truth.T, strict=True))
    return Accuracy(
        accuracy=float(np.mean(predicted == truth)),
        balanced=float(np.mean([_balanced(*pair) for pair in pairs])),
        majority=float(np.mean(truth == probe.majority)),
    )


def accuracy_over_time(
    probe: Probe, codes: Mapping[float, Vectors], labels: Labels
) -> dict[float, Accuracy]:
    """One probe, trained at t = 0, on the encoder's means of images noised to each time t.

    By eq. 11 of arXiv 2304.12141, q(z|x_t, t) is a distribution of the z of the clean image, and
    its mean approximates E[z|x_t]. Every t shares one space, hence one probe; how much of the
    class is still in reach at t is what it then measures.
    """
    return {t: judge(probe, Labelled(z, labels)) for t, z in codes.items()}


def _columns(labels: Labels) -> Columns:
    return labels.reshape(len(labels), -1)


def _varying(labels: Labels) -> Indices:
    """The columns in which more than one label occurs."""
    columns = _columns(labels)
    found = np.flatnonzero((columns != columns[:1]).any(axis=0))
    if len(found) == 0:
        raise MetricUnavailable("latents: the training labels hold a single class")
    return found


def _majority(labels: Labels, columns: Indices) -> Indices:
    counted = (np.unique(c, return_counts=True) for c in _columns(labels)[:, columns].T)
    return np.array([values[counts.argmax()] for values, counts in counted])


def _balanced(predicted: Indices, truth: Indices) -> float:
    return float(np.mean([np.mean(predicted[truth == c] == c) for c in np.unique(truth)]))


def embed(vectors: Vectors, *, perplexity: float, seed: int) -> Points:
    """t-SNE of vectors in the plane (van der Maaten & Hinton 2008), started from their PCA.

    The perplexity is lowered to a third of the points where there are few.

    Raises:
        MetricUnavailable: too few points for neighbourhoods.
    """
    from sklearn.manifold import TSNE

    count = len(vectors)
    if count < FEWEST_EMBEDDED:
        raise MetricUnavailable(f"embedding: {count} images, {FEWEST_EMBEDDED} are the least")
    method = TSNE(
        perplexity=min(perplexity, (count - 1) / 3),
        init="pca",
        random_state=derive_seed(seed, "latents", "embedding") % 2**32,
    )
    return method.fit_transform(vectors.double().numpy())


def label_column(labels: Labels, attribute: int = 0) -> Indices:
    """Classes as they are; of several attributes, the chosen one.

    Raises:
        MetricUnavailable: there is no such attribute.
    """
    columns = _columns(labels)
    index = 0 if labels.ndim == 1 else attribute
    if not 0 <= index < columns.shape[1]:
        raise MetricUnavailable(
            f"latents: attribute {attribute} is not among the {columns.shape[1]} of the data"
        )
    return columns[:, index]


def line(start: Vectors, end: Vectors, steps: int) -> Float[Tensor, "_ steps width"]:
    """Points in equal steps along the straight line of each pair, ends included."""
    weight = _weights(start, steps)
    return (1 - weight) * start[:, None] + weight * end[:, None]


def _weights(start: Vectors, steps: int) -> Float[Tensor, "1 steps 1"]:
    return torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)[None, :, None]


def arc(start: Vectors, end: Vectors, steps: int) -> Float[Tensor, "_ steps width"]:
    """Points in equal angles from start to end: [sin((1−w)θ) a + sin(wθ) b] / sin θ.

    White 2016, arXiv 1609.04468, with θ the angle between a and b. For ends of one length the
    length is kept, as it nearly is for draws of N(0, I), while a straight line passes close to
    the origin. Ends on one line through the origin have no arc; they get the straight line.
    """
    cosine = torch.nn.functional.cosine_similarity(start, end, dim=1).clamp(-1, 1)
    angle = torch.arccos(cosine)[:, None, None]
    sine = torch.sin(angle)
    # A cosine of ±1 that is off by k roundings gives a sine of √(2k eps); k to 50.
    aligned = sine < 10 * math.sqrt(torch.finfo(sine.dtype).eps)
    weight = _weights(start, steps)
    first, second = torch.sin((1 - weight) * angle), torch.sin(weight * angle)
    curved = (first * start[:, None] + second * end[:, None]) / sine.where(~aligned, 1)
    return torch.where(aligned, line(start, end, steps), curved)


class Direction(NamedTuple):
    """From the mean z of one class to that of another."""

    vector: Float[Tensor, " width"]
    source: int
    target: int


def class_direction(
    train: Labelled, *, pair: tuple[int, int] | None = None, attribute: int = 0
) -> Direction:
    """E[z|target] − E[z|source]: the difference of two classes' means.

    The difference of means rather than a probe's weight: one unit of it carries the mean of one
    class onto that of the other, whatever the penalty, and it stays where latents vary.

    Args:
        train: latents and labels.
        pair: (source, target); None takes the two largest classes, in the order of their labels
            (0 to 1 for an attribute).
        attribute: which one, where each image has several.

    Raises:
        MetricUnavailable: fewer than two classes, or one of the pair does not occur.
    """
    labels = label_column(train.labels, attribute)
    source, target = _largest_classes(labels) if pair is None else pair
    means = []
    for label in (source, target):
        members = torch.from_numpy(labels == label)
        if not members.any():
            raise MetricUnavailable(f"direction: no training image has the label {label}")
        means.append(train.vectors[members].mean(dim=0))
    return Direction(means[1] - means[0], source, target)


def _largest_classes(labels: Indices) -> tuple[int, int]:
    values, counts = np.unique(labels, return_counts=True)
    if len(values) < 2:
        raise MetricUnavailable("direction: the training labels hold a single class")
    first, second = sorted(values[np.argsort(-counts, kind="stable")[:2]].tolist())
    return first, second


def rows_to_edit(labels: Indices, direction: Direction, count: int) -> Indices:
    """The first images of either class, half of ``count`` each, the source's before the target's.

    Raises:
        MetricUnavailable: there are fewer, or ``count`` is under two.
    """
    if count < 2:
        raise MetricUnavailable(
            f"edits: {count} image asked for; 2, one of each class, are the least"
        )
    classes = (direction.source, direction.target)
    rows = [np.flatnonzero(labels == label)[: count // 2] for label in classes]
    if min(map(len, rows)) < count // 2:
        raise MetricUnavailable(
            f"edits: {count // 2} images of either class asked for, {min(map(len, rows))} there; "
            "lower evaluate's number"
        )
    return np.concatenate(rows)


def edit(
    z: Float[Tensor, "batch width"], direction: Direction, strengths: list[float]
) -> Float[Tensor, "batch strength width"]:
    """z + s·(E[z|target] − E[z|source]) for every strength s."""
    steps = torch.tensor(strengths).to(z)
    return z[:, None] + steps[None, :, None] * direction.vector


def share_of_target(
    classifier: Classifier, edited: Groups, direction: Direction, attribute: int = 0
) -> list[float]:
    """For each strength, the share of edited images that a classifier takes for the target."""
    verdicts = (label_column(classifier(images), attribute) for images in edited.unbind(dim=1))
    return [float(np.mean(verdict == direction.target)) for verdict in verdicts]


class Spread(NamedTuple):
    """K draws of p(x|z) for one z of each image, against the image that z came from."""

    mean: Images
    std: Images  # of each pixel over the draws
    l2_one: float  # L2 of a single draw, averaged over all of them
    l2_mean: float  # L2 of the mean of the K
    pixel_std: float  # root of the variance, averaged over images and pixels
    calibration: float | None  # see :func:`spread`


def spread(originals: Images, draws: Groups) -> Spread:
    """What K draws for one z have in common, and where they differ.

    The mean of K draws approaches the posterior mean, which has the least squared error and less
    detail than any draw. If the original itself is distributed as a draw, it is further from
    the mean of K others by E‖x − x̄‖² = (1 + 1/K) Σ s², with s² the unbiased variance of each
    pixel over the draws. ``calibration`` is the ratio of the two sides: above 1 the draws agree
    with each other more than with the original. For a perfect model it is 1 if z was drawn
    from q(z|x). None where the draws do not differ at all.

    Raises:
        MetricUnavailable: fewer than two draws.
    """
    count = draws.shape[1]
    if count < 2:
        raise MetricUnavailable(f"spread: {count} draw for each z; 2 are the least")
    mean, variance = draws.mean(dim=1), draws.var(dim=1)
    single = torch.stack([l2_distances(originals, drawn) for drawn in draws.unbind(dim=1)])
    error = (mean - originals).square().mean().item()
    expected = (1 + 1 / count) * variance.mean().item()
    return Spread(
        mean=mean,
        std=variance.sqrt(),
        l2_one=single.mean().item(),
        l2_mean=l2_distances(originals, mean).mean().item(),
        pixel_std=math.sqrt(variance.mean().item()),
        calibration=error / expected if expected > 0 else None,
    )


def derangement(count: int, seed: int) -> Int64[Tensor, " count"]:
    """A random permutation of 0 … count − 1 in one cycle: none stays in its place.

    Raises:
        MetricUnavailable: one image has no other to exchange with.
    """
    if count < 2:
        raise MetricUnavailable(f"shuffled z: {count} image; 2 are the least")
    order = torch.randperm(count, generator=make_generator("cpu", seed, "latents", "shuffle"))
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner


class ShuffledZ(NamedTuple):
    """L2 of reconstructions from each image's own z, and from that of another."""

    l2: float
    l2_shuffled: float
    ratio: float  # shuffled over own
    threshold: float  # the ratio from which on z counts as used
    warning: str | None


def shuffled_z(originals: Images, own: Images, shuffled: Images) -> ShuffledZ:
    """Is z used? Both reconstructions must come from the same noise.

    A model that ignores z gives the same images either way, a ratio of 1. The threshold is
    1 + 5 standard errors of the mean L2 itself, sd(L2) / (√n mean(L2)): if exchanging all z
    moves L2 by less than the choice of test images does, z carries nothing worth its rate.

    Raises:
        MetricUnavailable: a single image, or errorless reconstructions.
    """
    if len(originals) < 2:
        raise MetricUnavailable(f"shuffled z: {len(originals)} image; 2 are the least")
    distance, other = l2_distances(originals, own), l2_distances(originals, shuffled)
    l2, l2_shuffled = distance.mean().item(), other.mean().item()
    if l2 == 0:
        raise MetricUnavailable("shuffled z: the reconstructions have no error to compare with")
    ratio = l2_shuffled / l2
    threshold = 1 + STANDARD_ERRORS * distance.std().item() / (math.sqrt(len(originals)) * l2)
    warning = None
    if ratio <= threshold:
        warning = (
            f"z is ignored: the L2 with another image's z is {ratio:.3f} times that with its own "
            f"(above {threshold:.3f} it would count as used); lower beta, or train the encoder "
            "for longer"
        )
    return ShuffledZ(l2, l2_shuffled, ratio, threshold, warning)

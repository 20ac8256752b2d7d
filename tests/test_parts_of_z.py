"""The parts of the evaluation that ask what z holds: numbers against formulas, and figures."""

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure
from oracles import five_errors, normal, seeded, vector
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from tiny import tiny_config
from torch import Tensor

from scorevae.data.arrays import Split
from scorevae.errors import Unavailable
from scorevae.evaluation import figures
from scorevae.evaluation.metrics import l2_distances
from scorevae.evaluation.part import Subject
from scorevae.evaluation.parts import draws, edits, embedding, interpolations, probes, shuffled
from scorevae.evaluation.parts.edits import Direction
from scorevae.evaluation.probe import (
    Accuracy,
    Labelled,
    Probe,
    judge,
    label_column,
    labelled,
    linear_probe,
    neighbour_probe,
)

pytestmark = pytest.mark.usefixtures("closed_figures")

ROUNDING = {"rtol": 1e-12, "atol": 1e-12}  # float64, a few hundred operations


def clouds(count: int = 60, gap: float = 8.0, seed: int = 0) -> Labelled:
    """Three classes 3, 5 and 9 in turn, around three corners that are ``gap`` apart."""
    labels = np.array([3, 5, 9])[np.arange(count) % 3]
    corners = gap * torch.eye(3, 4, dtype=torch.float64)
    return Labelled(corners[torch.arange(count) % 3] + normal((count, 4), seed), labels)


def attributes(count: int = 60) -> Labelled:
    """Three attributes: the signs of the first two numbers, and one that never varies."""
    vectors = normal((count, 4), 0)
    labels = np.stack([*(vectors.T[:2] > 0).numpy(), np.zeros(count)], axis=1).astype(np.int64)
    return Labelled(vectors, labels)


CONSTANT = Labelled(normal((4, 2), 0), np.zeros((4, 1), dtype=np.int64))  # its only attribute


def images(count: int = 5, seed: int = 0) -> Tensor:
    """Random float64 images in [0, 1]."""
    return torch.rand(count, 1, 8, 8, generator=seeded(seed), dtype=torch.float64)


def fixed(*verdicts: list[int]) -> Probe:
    """A probe of fixed verdicts, one list for each label column, after the majority 0."""
    columns = np.arange(len(verdicts))
    return Probe(lambda x: np.stack(verdicts, axis=1), columns, np.zeros_like(columns))


def test_linear_probe_is_logistic_regression_of_standardised_vectors() -> None:
    """Catches vectors as they are, or standardised by the test's moments, and another penalty."""
    scale = torch.tensor([100.0, 1.0, 0.01, 1.0])
    (x, y), (x_test, _) = clouds(gap=1.0), clouds(gap=1.0, seed=1)
    probe = linear_probe(Labelled(x * scale + 5, y))
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
    expected = LogisticRegression(max_iter=1000).fit(((x - mean) / std).numpy(), y)
    ours, theirs = probe.predict(x_test * scale + 5), expected.predict((x_test - mean) / std)
    np.testing.assert_array_equal(ours[:, 0], theirs)
    assert 0.3 < np.mean(theirs == y) < 0.9  # hard enough for details to matter


@pytest.mark.parametrize("neighbours", [1, 4])
def test_neighbours(neighbours: int) -> None:
    """Catches another distance or number of neighbours, and standardised vectors."""
    (x, y), (x_test, _) = clouds(gap=1.0), clouds(gap=1.0, seed=1)
    scale = torch.tensor([3.0, 1.0, 0.3, 1.0])
    probe = neighbour_probe(Labelled(x * scale, y), neighbours=neighbours)
    nearest = torch.cdist(x_test * scale, x * scale).argsort(dim=1)[:, :neighbours]
    expected = [np.bincount(y[row]).argmax() for row in nearest.numpy()]
    assert probe.predict(x_test * scale)[:, 0].tolist() == expected


@pytest.mark.parametrize("fit", [linear_probe, partial(neighbour_probe, neighbours=1)])
def test_probe_of_attributes(fit: Callable[[Labelled], Probe]) -> None:
    """Catches attributes exchanged, and one that never varies counted among them."""
    train = attributes()
    probe, truth = fit(train), train.labels[:, :2]
    np.testing.assert_array_equal(probe.columns, [0, 1])
    np.testing.assert_array_equal(probe.majority, truth.mean(axis=0) > 0.5)
    ours = judge(probe, train)
    assert ours.accuracy >= 0.95
    assert ours.majority == np.mean(truth == probe.majority)


def test_accuracy_of_classes() -> None:
    """Catches a mean over images where one over classes is meant, and the other way round."""
    truth, vectors = np.array([0, 0, 0, 0, 1, 1, 2, 2]), torch.zeros(8, 1)
    said = [0, 0, 0, 7, 1, 0, 0, 0]  # 7 is no class of the test images
    ours = judge(fixed(said), Labelled(vectors, truth))
    assert ours == Accuracy(accuracy=4 / 8, balanced=(3 / 4 + 1 / 2 + 0) / 3, majority=4 / 8)
    assert ours.accuracy == accuracy_score(truth, said)
    said[3] = 1
    ours = judge(fixed(said), Labelled(vectors, truth))
    assert ours.balanced == pytest.approx(balanced_accuracy_score(truth, said), rel=1e-15)


def test_accuracy_of_attributes() -> None:
    """Catches classes pooled over attributes, and images that count only where all agree."""
    truth = np.array([[0, 1], [0, 1], [0, 1], [1, 0]])
    ours = judge(fixed([0, 0, 0, 0], [1, 1, 0, 0]), Labelled(torch.zeros(4, 1), truth))
    assert ours.accuracy == (3 / 4 + 3 / 4) / 2
    assert ours.balanced == pytest.approx(((1 + 0) / 2 + (2 / 3 + 1) / 2) / 2, rel=1e-15)
    assert ours.majority == (3 / 4 + 1 / 4) / 2


def test_accuracy_over_time() -> None:
    """Catches times or codes exchanged, and a probe trained anew at each time."""
    train = clouds()
    probe = linear_probe(train)
    # With classes moved on by one place the probe of t = 0 is always wrong, a new one never.
    codes = {0.0: train.vectors, 0.5: train.vectors.roll(1, dims=0)}
    ours = probes.accuracy_over_time(probe, codes, train.labels)
    assert {t: a.accuracy for t, a in ours.items()} == {0.0: 1, 0.5: 0}


def subject(count: int, **overrides: int) -> Subject:
    """Only images, so many for training and for testing."""
    split = Split(np.arange(count, dtype=np.uint8)[:, None, None, None], None)
    nowhere = Path("nowhere")
    return Subject(tiny_config(**overrides), nowhere, nowhere, split, split, nowhere)


def test_which_images_are_taken() -> None:
    """Catches training rows that are no draw, repeated or unseeded, and others than the first."""
    rows = subject(1000).training_rows(100)
    assert len(set(rows.tolist())) == 100
    assert (np.diff(rows) > 0).all()
    # Uniform from 0 … 999: mean 499.5, five standard errors are 5 · 288.7/√100 · √0.9.
    assert abs(rows.mean() - 499.5) < 137
    np.testing.assert_array_equal(rows, subject(1000).training_rows(100))
    assert not np.array_equal(rows, subject(1000, seed=1).training_rows(100))
    np.testing.assert_array_equal(subject(3).training_rows(100), [0, 1, 2])
    assert torch.equal(subject(3).first(2, "edits"), subject(3).originals[:2])


def test_embedding_keeps_clouds_together() -> None:
    """Catches points out of order, an embedding of fixed seed, and two equal runs that differ."""
    vectors, labels = clouds(gap=40.0)
    points = embedding.embed(vectors, perplexity=30, seed=0)
    assert points.shape == (60, 2)
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    np.testing.assert_array_equal(labels[distance.argmin(axis=1)], labels)
    np.testing.assert_array_equal(points, embedding.embed(vectors, perplexity=30, seed=0))


def test_line_and_arc() -> None:
    """Catches ends exchanged, unequal steps, and an arc that leaves the sphere or the plane."""
    start, end = vector(2, 0)[None], vector(0, 2)[None]
    straight, curved = interpolations.line(start, end, 3), interpolations.arc(start, end, 4)
    assert straight[0].tolist() == [[2, 0], [1, 1], [0, 2]]
    angles = torch.arange(4).double() * math.pi / 6
    expected = 2 * torch.stack([angles.cos(), angles.sin()], dim=1)
    torch.testing.assert_close(curved[0], expected, **ROUNDING)


def test_arc_between_any_ends() -> None:
    """Catches ends that are missed where their lengths differ, and pairs mixed up.

    And a division by sin θ = 0 where they lie on one line.
    """
    start, end = normal((5, 7), 0), 3 * normal((5, 7), 1)
    # Half-way, (a + b)/(2 cos(θ/2)): sin(θ/2)/sin θ by the double angle.
    half = torch.sqrt((1 + torch.cosine_similarity(start, end)) / 2)[:, None]
    expected = torch.stack([start, (start + end) / (2 * half), end], dim=1)
    torch.testing.assert_close(interpolations.arc(start, end, 3), expected, **ROUNDING)
    for factor in (1.0, 2.0, -1.0):
        straight = interpolations.line(start, factor * start, 5)
        curved = interpolations.arc(start, factor * start, 5)
        torch.testing.assert_close(curved, straight, **ROUNDING)


LABELS = np.array([[0, 1], [1, 1], [0, 0], [1, 0]])


@pytest.mark.parametrize(
    ("points", "labels", "expected"),
    [
        ((0, 2, 10, 14, 100), np.array([7, 7, 4, 4, 5]), (4, 7, 1 - 12)),
        ((0, 1, 5, 7), LABELS, (0, 1, 4 - 2.5)),
        ((0, 1, 5, 7), LABELS[:, ::-1].copy(), (0, 1, 0.5 - 6)),
    ],
    ids=["classes", "attributes", "attributes swapped"],
)
def test_direction_is_the_difference_of_means(
    points: tuple[int, ...], labels: np.ndarray, expected: tuple[int, int, float]
) -> None:
    """Catches its sign, a mean over all images, other classes, and another attribute."""
    ours = edits.class_direction(Labelled(vector(*points)[:, None], labels))
    assert (ours.source, ours.target, ours.vector.item()) == expected


def test_the_first_attribute_is_the_label() -> None:
    """Catches another attribute, and several."""
    assert label_column(LABELS).tolist() == [0, 1, 0, 1]


TO_2 = Direction(torch.zeros(1), 5, 2)


def test_rows_to_edit() -> None:
    """Catches images of another class, a class twice, and the last in place of the first."""
    labels = np.array([2, 5, 7, 5, 2, 2, 5])
    assert edits.rows_to_edit(labels, TO_2, 4).tolist() == [1, 3, 0, 4]
    with pytest.raises(Unavailable, match="edits: 4 images of either class asked for, 3"):
        edits.rows_to_edit(labels, TO_2, 8)


def test_edit() -> None:
    """Catches strengths out of order, and z replaced in place of moved."""
    z, direction, strengths = normal((3, 4), 0), Direction(normal((4,), 1), 0, 1), [-1.0, 0.0, 0.5]
    expected = torch.stack([z + s * direction.vector for s in strengths], dim=1)
    torch.testing.assert_close(edits.edit(z, direction, strengths), expected, **ROUNDING)


def test_share_of_target() -> None:
    """Catches a share for each image in place of each strength, and the source's share."""
    edited = torch.stack([flat(1.0, 4.0, 9.0), flat(0.0, 8.0, 9.0)])

    def classifier(x: Tensor) -> np.ndarray:
        return np.where(x.mean(dim=(1, 2, 3)).numpy() > 5, 5, 3)

    direction = Direction(torch.zeros(1), 3, 5)
    assert edits.share_of_target(classifier, edited, direction) == [0, 0.5, 1]


def test_spread() -> None:
    """Catches images and draws exchanged, a biased variance, and L2 of the wrong mean."""
    x, drawn = images(3), torch.stack([images(3, seed) for seed in (1, 2, 3, 4)], dim=1)
    ours, numbers = draws.spread(x, drawn), drawn.numpy()
    np.testing.assert_allclose(ours.mean, numbers.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(ours.std, numbers.std(axis=1, ddof=1), rtol=1e-12)
    each = [l2_distances(x, drawn[:, k]).mean().item() for k in range(4)]
    assert ours.l2_of_one_draw == pytest.approx(np.mean(each), rel=1e-12)
    assert ours.l2_of_mean == l2_distances(x, drawn.mean(dim=1)).mean().item()
    assert ours.l2_of_mean < ours.l2_of_one_draw  # by convexity of the norm
    root = np.sqrt(np.mean(numbers.var(axis=1, ddof=1)))
    assert ours.pixel_std == pytest.approx(root, rel=1e-12)


def test_calibration_of_exchangeable_draws() -> None:
    """Catches the factor 1 + 1/K, which is ¾ or 1 elsewhere, and a ratio upside down."""
    sigma = torch.tensor([0.5, 2.0]).double()[:, None, None, None]
    drawn = sigma[:, None] * normal((2, 4, 3, 40, 40), 0)
    x = sigma * normal((2, 3, 40, 40), 1)
    # Ratio of two means over 4800 pixels of each image. The larger variance rules: its squares
    # have a relative standard deviation of √2 above, √(2/3) below: √(8/3/4800) = 0.024.
    assert draws.spread(x, drawn).calibration == pytest.approx(1, abs=5 * 0.024)


def test_calibration_by_hand() -> None:
    """Catches a ratio of roots, and a division by zero where all draws agree."""
    x, drawn = torch.full((1, 1, 1, 1), 4.0), torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1, 1)
    # Mean 2, s² = 2: (4 − 2)² / ((1 + ½) 2).
    assert draws.spread(x, drawn).calibration == pytest.approx(4 / 3, rel=1e-6)
    agreed = draws.spread(x, torch.zeros_like(drawn))
    assert agreed.calibration is None
    assert agreed.pixel_std == 0


@pytest.mark.parametrize("count", [2, 3, 50])
def test_derangement(count: int) -> None:
    """Catches an image that keeps its z, one that is used twice, and one that is unseeded."""
    ours = shuffled.derangement(count, seed=0)
    assert sorted(ours.tolist()) == list(range(count))
    assert (ours != torch.arange(count)).all()
    assert torch.equal(ours, shuffled.derangement(count, seed=0))


def test_derangements_are_varied() -> None:
    """Catches a mere shift, or the same for every seed: all places are taken equally often."""
    taken = torch.stack([shuffled.derangement(5, seed) for seed in range(400)])
    share = (taken[:, :1] == torch.arange(1, 5)).double()
    assert ((share.mean(dim=0) - 1 / 4).abs() < five_errors(share)).all()


def test_shuffled_z() -> None:
    """Catches a ratio upside down, one of squares, a mean of ratios, and another threshold.

    And silence where both reconstructions agree, or nearly do.
    """
    x, own, other = (vector(*v).reshape(4, 1, 1, 1) for v in ([0] * 4, [1, 2, 3, 2], [6] * 4))
    ours = shuffled.shuffled_z(x, own, other)
    assert (ours.l2, ours.l2_shuffled, ours.ratio) == (2, 6, 3)
    # Standard deviation √(2/3) of four distances with mean 2.
    assert ours.threshold == pytest.approx(1 + 5 * math.sqrt(2 / 3) / math.sqrt(4) / 2, rel=1e-12)
    assert ours.warning is None
    x, own, apart = images(20), images(20, seed=1), 1e-3 * images(20, seed=2)
    for other in (own, own + apart):
        ours = shuffled.shuffled_z(x, own, other)
        assert ours.ratio == pytest.approx(1, abs=1e-3)
        assert ours.warning.startswith("z is ignored: ")


@pytest.mark.parametrize(
    ("compute", "reason"),
    [
        (lambda: labelled(torch.zeros(2, 1), None), "no labels"),
        (lambda: linear_probe(clouds(1)), "single class"),
        (lambda: neighbour_probe(clouds(4), neighbours=5), "5 asked for, 4 training"),
        (lambda: embedding.embed(torch.zeros(9, 2), perplexity=5, seed=0), "9 images, 10 are"),
        (lambda: edits.class_direction(clouds(1)), "single class"),
        (lambda: edits.class_direction(CONSTANT), "single class"),
        (lambda: edits.rows_to_edit(np.array([2, 5, 5]), TO_2, 1), "1 image asked for; 2"),
        (lambda: shuffled.derangement(1, 0), "1 image"),
        (lambda: shuffled.shuffled_z(*[images(1)] * 3), "1 image"),
        (lambda: shuffled.shuffled_z(*[images(2)] * 3), "no error"),
        (lambda: subject(2).first(3, "edits"), "edits: 3 images asked for, 2"),
    ],
)
def test_what_cannot_be_computed(compute: Callable[[], object], reason: str) -> None:
    """Catches a library's error, or a number of nothing, where a reason is due."""
    with pytest.raises(Unavailable, match=reason):
        compute()


def pictures(figure: Figure) -> list[float]:
    """The first pixel of every image drawn, in order."""
    return [float(np.ravel(a.get_images()[0].get_array())[0]) for a in figure.axes if a.images]


def texts(figure: Figure) -> list[str]:
    """The titles of columns, and the names of rows."""
    titles = [axis.get_title() for axis in figure.axes]
    names = [text.get_text() for axis in figure.axes for text in axis.texts]
    return [text for text in titles + names if text]


def flat(*values: float) -> Tensor:
    """Images of one grey each."""
    return torch.tensor(values)[:, None, None, None].expand(-1, 1, 8, 8)


def test_probe_curve() -> None:
    """Catches accuracies exchanged, and times out of place."""
    (axis,) = probes.draw({0.0: Accuracy(0.9, 0.8, 0.3), 0.5: Accuracy(0.6, 0.5, 0.3)}, "").axes
    first, second, chance = (line.get_xydata().tolist() for line in axis.get_lines())
    assert first == [[0, 0.9], [0.5, 0.6]]
    assert second == [[0, 0.8], [0.5, 0.5]]
    assert [y for _, y in chance] == [0.3, 0.3]


def test_embedding_figure() -> None:
    """Catches labels given to the wrong points, and classes without their name."""
    points, labels = np.arange(12.0).reshape(6, 2), np.array([4, 4, 2, 2, 2, 9])
    (axis,) = embedding.draw(points, labels, "title", names={2: "smile"}).axes
    drawn = {c.get_label(): np.asarray(c.get_offsets()).tolist() for c in axis.collections}
    classes = {"smile": points[2:5], "4": points[:2], "9": points[5:]}
    assert drawn == {name: members.tolist() for name, members in classes.items()}
    assert len({tuple(c.get_facecolor()[0]) for c in axis.collections}) == 3
    assert {text.get_text() for text in axis.get_legend().texts} == set(classes)


@pytest.mark.parametrize("labels", [None, np.arange(40)], ids=["none", "many"])
def test_embedding_without_a_legend(labels: np.ndarray | None) -> None:
    """Catches points that vanish where there is nothing to name, or too much."""
    (axis,) = embedding.draw(np.zeros((40, 2)), labels, "title").axes
    assert sum(len(c.get_offsets()) for c in axis.collections) == 40
    assert axis.get_legend() is None


AWKWARD = {0: "a_$", 1: "b_$", 2: "$100 {", 3: r"c\$", 4: os.fsdecode(b"caf\xe9")}
DRAWN = [r"a_\$", r"b_\$", r"\$100 {", r"c\\$", "caf?"]


def test_names_of_any_class_are_drawn(tmp_path: Path) -> None:
    """Catches the name of a folder read as mathematics, or not to be encoded, after all work."""
    figure = embedding.draw(np.zeros((5, 2)), np.arange(5), "title", names=AWKWARD)
    assert [text.get_text() for text in figure.axes[0].get_legend().texts] == DRAWN
    assert not any(is_math_text(text) for text in DRAWN)
    figures.save(figure, tmp_path / "embedding.png")
    for source, target in ((0, 1), (2, 3), (4, 4)):
        direction = Direction(torch.zeros(1), source, target)
        figure = edits.draw(flat(0.9), flat(0.1)[None], [1.0], direction, names=AWKWARD)
        moved = f"z moved along E[z|{DRAWN[target]}] − E[z|{DRAWN[source]}]"
        assert figure.get_suptitle() == moved
        figures.save(figure, tmp_path / "edits.png")


def test_interpolation_figure() -> None:
    """Catches ends on the wrong side, and the two paths exchanged."""
    paths = flat(0.1, 0.2)[None], flat(0.3, 0.4)[None]
    figure = interpolations.draw(flat(0.0), flat(1.0), *paths)
    assert texts(figure) == ["straight", "spherical"]
    assert pictures(figure) == pytest.approx([0, 0.1, 0.2, 1, 0, 0.3, 0.4, 1])


def test_edit_figure() -> None:
    """Catches strengths over the wrong columns, and source and target exchanged."""
    direction, edited = Direction(torch.zeros(1), 0, 1), flat(0.1, 0.2, 0.3)[None]
    figure = edits.draw(flat(0.9), edited, [-1.0, 0.0, 0.5], direction, names={1: "smile"})
    assert texts(figure) == ["original", "-1", "0", "+0.5"]
    assert figure.get_suptitle() == "z moved along E[z|smile] − E[z|0]"
    assert pictures(figure) == pytest.approx([0.9, 0.1, 0.2, 0.3])


def test_draw_figure() -> None:
    """Catches mean and deviation exchanged, and a deviation too dark to be seen."""
    x, drawn = flat(0.9), flat(0.2, 0.4)[None]
    figure = draws.draw(x, drawn, draws.spread(x, drawn))
    assert texts(figure) == ["original", "1", "2", "mean", "std"]
    assert "white is 0.14" in figure.get_suptitle()  # √((0.1² + 0.1²)/1)
    assert pictures(figure) == pytest.approx([0.9, 0.2, 0.4, 0.3, 1.0])


def test_shuffled_figure() -> None:
    """Catches rows under another name."""
    figure = shuffled.draw(*(flat(v, v) for v in (0.1, 0.2, 0.3, 0.4)))
    assert texts(figure) == ["original", "own z", "other's z", "the other"]
    assert pictures(figure) == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4])

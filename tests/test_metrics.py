"""metrics: each number against its formula."""

import numpy as np
import pytest
import torch
from conftest import Checks
from jaxtyping import TypeCheckError
from oracles import normal, seeded
from sklearn.linear_model import RidgeClassifier as Ridge
from sklearn.svm import SVC
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import avg_pool2d, pad

from scorevae.data.arrays import Split, to_tensor, to_unit_range
from scorevae.errors import Unavailable
from scorevae.evaluation import metrics
from scorevae.evaluation.parts.comparison import Judges, summarise
from scorevae.gaussian import DiagonalGaussian
from scorevae.reconstructions import Reconstructions


def images(count: int = 3, channels: int = 2, size: int = 8, seed: int = 0) -> Tensor:
    """Random images in [0, 1], in float64 for exact comparisons."""
    shape = (count, channels, size, size)
    return torch.rand(shape, generator=seeded(seed), dtype=torch.float64)


def posterior(count: int = 50, latent: int = 3) -> DiagonalGaussian:
    """Some Gaussians."""
    return DiagonalGaussian(normal((count, latent), 1), normal((count, latent), 2))


def test_l2_distances_and_mean_squared_error() -> None:
    """Catches sum and mean exchanged, a lost root, a norm of the whole batch, and clamping."""
    x, y = images(), images(seed=1)
    errors = (x - y).numpy() ** 2
    # float64: rounding of sums of 128 and 384 terms
    expected = np.sqrt(errors.sum(axis=(1, 2, 3)))
    assert metrics.l2_distances(x, y).tolist() == pytest.approx(expected, rel=128 * 2**-52)
    assert metrics.mean_squared_error(x, y) == pytest.approx(errors.mean(), rel=400 * 2**-52)
    x = torch.zeros(1, 1, 2, 2)
    assert metrics.l2_distances(x, x + 3).item() == 6
    assert metrics.mean_squared_error(x, x + 3) == 9


def test_peak_signal_to_noise_ratio() -> None:
    """Catches the PSNR of the pooled error, and a range other than 1."""
    x = torch.zeros(2, 1, 4, 4)
    y = torch.cat([x[:1] + 0.1, x[:1] + 0.01])
    # Errors of 0.01 and 1e-4: 20 and 40 dB, mean 30; the pooled error would give 23 dB. The
    # float32 errors 2^-24 relative give 1e-6 dB.
    assert metrics.peak_signal_to_noise_ratio(x, y) == pytest.approx(30, abs=1e-5)
    assert metrics.peak_signal_to_noise_ratio(x, x) == float("inf")


def by_hand_ssim(x: Tensor, y: Tensor) -> float:
    """Wang et al. 2004, eq. 13, in Gaussian windows of σ 1.5 and side 11, borders reflected."""
    line = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2

    def mean(a: Tensor) -> Tensor:
        a = pad(a, (5, 5, 5, 5), mode="reflect")
        return (a.unfold(2, 11, 1).unfold(3, 11, 1) * window).sum(dim=(-2, -1))

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mx * my + c1) * (2 * vxy + c2)
    return (top / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean().item()


@pytest.mark.parametrize("size", [6, 8, 16])
def test_structural_similarity(size: int) -> None:
    """Catches another window or range than stated, and another treatment of borders.

    And an evaluation that ends because the window is larger than the smallest images.
    """
    x = images(size=size)
    y = 0.7 * x + 0.3 * images(size=size, seed=1)
    # Variances are differences of terms near 1 (rounding 1e-16), divided by c2 = 9e-4 or more.
    assert metrics.structural_similarity(x, y) == pytest.approx(by_hand_ssim(x, y), abs=1e-12)
    assert metrics.structural_similarity(x, x) == pytest.approx(1, abs=1e-12)
    for small in (images(size=4), images(size=5)):
        assert metrics.structural_similarity(small, small) is None


def test_laplacian_energy() -> None:
    """Catches a wrong stencil, borders, and channels summed together."""
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    plane, bowl = 2 * rows - columns, rows**2 + columns**2
    x = torch.stack([plane, bowl])[None]
    # Δ of a plane is 0 and of the bowl 4, everywhere inside; small integers are exact.
    assert metrics.laplacian_energy(x) == (0 + 4**2) / 2


def test_sharpness() -> None:
    """Catches an inverted ratio, one of amplitudes in place of energies, and a division by 0."""
    x = images(size=16)
    assert metrics.sharpness(x, x) == 1
    assert metrics.sharpness(x, avg_pool2d(x, 3, stride=1, padding=1)) < 1
    # Δ is linear: contrast 0.5 scales its square by 0.25 (exact in binary), brightness by nothing.
    assert metrics.sharpness(x, 0.5 * x) == 0.25
    assert metrics.sharpness(x, x + 0.5) == pytest.approx(1, rel=1e-12)
    constant = torch.full((2, 1, 8, 8), 0.5)
    with pytest.raises(Unavailable, match="constant"):
        metrics.sharpness(constant, constant)
    for size in (1, 2):  # the kernel has 3 pixels
        small = images(size=size)
        with pytest.raises(Unavailable, match="under 3 pixels"):
            metrics.sharpness(small, small)


def test_rate() -> None:
    """Catches a mean over latents, or a KL the other way round."""
    q = posterior()
    std = torch.exp(0.5 * q.log_variance)
    standard = Normal(torch.zeros_like(std), torch.ones_like(std))
    expected = kl_divergence(Normal(q.mean, std), standard).sum(1).mean().item()
    # 150 positive terms of float64
    assert metrics.rate_nats(q) == pytest.approx(expected, rel=1e-13)


def test_active_units() -> None:
    """Catches the variance of q counted in place of that of its mean, and a mean over latents."""
    steps = torch.linspace(-1, 1, 101)
    mean = torch.stack([steps, 0.01 * steps, torch.ones_like(steps), 5 + 0.3 * steps], dim=1)
    q = DiagonalGaussian(mean, torch.zeros_like(mean))
    # The variances are 0.34, 3.4e-5, 0 and 0.031.
    assert [metrics.active_units(q, limit) for limit in (1e-6, 0.01, 0.1, 1.0)] == [3, 2, 1, 0]
    single = DiagonalGaussian(mean[:1], torch.zeros(1, 4))
    assert metrics.active_units(single, 0.01) is None  # one image does not vary


def stored(count: int = 20) -> np.ndarray:
    """Random images as a data set stores them."""
    return np.random.default_rng(0).integers(0, 64, (count, 8, 8, 1), dtype=np.uint8)


def unit(split: Split) -> Tensor:
    """Its images in [0, 1], as reconstructions are."""
    return to_unit_range(to_tensor(split.images))


def two_classes() -> Split:
    """Dark and bright images in turn."""
    labels = np.arange(20) % 2
    return Split(stored() + 180 * labels[:, None, None, None].astype(np.uint8), labels)


def two_attributes() -> Split:
    """Bright left halves and bright lower halves, in all four combinations in turn."""
    labels = np.stack([np.arange(20) % 2, np.arange(20) // 2 % 2], axis=1)
    images = stored()
    images[:, :, :4] += 90 * labels[:, 0, None, None, None].astype(np.uint8)
    images[:, 4:] += 90 * labels[:, 1, None, None, None].astype(np.uint8)
    return Split(images, labels)


def neighbours_exchanged(x: Tensor) -> Tensor:
    """The images in another order, in which each has its neighbour's place."""
    return x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def test_class_agreement() -> None:
    """Catches agreement with the labels in place of agreement between the two verdicts.

    And images that count only where all attributes agree, or attributes exchanged.
    """
    train = two_classes()
    x, classifier = unit(train), metrics.train_classifier(train, limit=20, seed=0)
    assert classifier(x).tolist() == train.labels.tolist()
    assert metrics.class_agreement(classifier, x, x) == 1
    half = torch.cat([neighbours_exchanged(x[:10]), x[10:]])
    assert metrics.class_agreement(classifier, x, half) == 0.5
    assert metrics.class_agreement(classifier, neighbours_exchanged(x), x) == 0
    train = two_attributes()
    x, classifier = unit(train), metrics.train_classifier(train, limit=20, seed=0)
    np.testing.assert_array_equal(classifier(x), train.labels)
    assert metrics.class_agreement(classifier, x, x) == 1
    # Exchanging neighbours changes the first attribute of each and never the second.
    assert metrics.class_agreement(classifier, x, neighbours_exchanged(x)) == 0.5


@pytest.mark.parametrize(("train", "model"), [(two_classes(), SVC), (two_attributes(), Ridge)])
def test_classifier_sees_at_most_its_limit(
    monkeypatch: pytest.MonkeyPatch, train: Split, model: type
) -> None:
    """Catches a classifier of all images, parted from labels, on another range, or unseeded."""
    seen = []
    monkeypatch.setattr(model, "fit", lambda self, x, y: seen.append((x, y)))
    for seed in (3, 3, 4):
        metrics.train_classifier(train, limit=8, seed=seed)
    assert seen[0][0].shape == (8, 64)
    for given, label in zip(*seen[0], strict=True):
        (index,) = np.flatnonzero((unit(train).flatten(1).numpy() == given).all(axis=1))
        np.testing.assert_array_equal(train.labels[index], label)
    np.testing.assert_array_equal(seen[0][0], seen[1][0])
    assert not np.array_equal(seen[0][0], seen[2][0])


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (None, "class_agreement: the data have no labels"),
        (np.zeros(20, dtype=np.int64), "class_agreement: the training labels hold a single class"),
        # Two attributes that are the same in every image, and differ from each other
        (np.tile([0, 1], (20, 1)), "class_agreement: the training labels hold a single class"),
        # One image of the other class, which is not among those that the classifier sees.
        (np.eye(20, dtype=np.int64)[0], "class_agreement: "),
    ],
    ids=["none", "single", "constant-attributes", "single-seen"],
)
def test_labels_that_train_nothing(labels: np.ndarray | None, reason: str) -> None:
    """Catches scikit-learn's error for unlabelled, filtered or lopsided data."""
    with pytest.raises(Unavailable, match=reason):
        metrics.train_classifier(Split(stored(), labels), limit=2, seed=0)


class Distance(nn.Module):
    """Stands for LPIPS: a multiple of the mean absolute difference."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.factor * (first - second).abs().mean(dim=(1, 2, 3), keepdim=True)


def judged(x: Tensor, y: Tensor, missing: str = "") -> dict[str, float | int | None]:
    """The summary of one system by three judges, or by two of them."""
    classifier = metrics.train_classifier(two_classes(), limit=20, seed=0)
    judges = {"lpips": Distance(1.0), "paper_lpips": Distance(10.0), "class_agreement": classifier}
    present = [None if name == missing else judge for name, judge in judges.items()]
    return summarise(x, Reconstructions(y, posterior(20)), 0.01, Judges(*present))


def test_summary() -> None:
    """Catches arguments in the wrong order, judges exchanged, and missing entries.

    The images differ by 0.01 everywhere: in [−1, 1], which LPIPS reads, by 0.02. The paper's
    evaluation gave it [0, 1].
    """
    x = unit(two_classes())
    y = x + 0.01
    numbers = judged(x, y)
    assert list(numbers) == [
        "l2", "mse", "psnr", "ssim", "sharpness", "lpips", "paper_lpips", "rate_nats",
        "active_units", "class_agreement",
    ]  # fmt: skip
    # float32 images between 0 and 1, rounded to 2^-25: differences of 0.01 within 1e-5
    assert numbers.pop("lpips") == pytest.approx(0.02, rel=1e-5)
    assert numbers.pop("paper_lpips") == pytest.approx(0.1, rel=1e-5)
    assert numbers == {
        "l2": metrics.l2_distances(x, y).mean().item(),
        "mse": metrics.mean_squared_error(x, y),
        "psnr": metrics.peak_signal_to_noise_ratio(x, y),
        "ssim": metrics.structural_similarity(x, y),
        "sharpness": metrics.sharpness(x, y),
        "rate_nats": metrics.rate_nats(posterior(20)),
        "active_units": 3,
        "class_agreement": 1.0,
    }


@pytest.mark.parametrize("missing", ["lpips", "paper_lpips", "class_agreement"])
def test_missing_judges_give_null(missing: str) -> None:
    """Catches an entry that is dropped, or another one that goes with it."""
    x = unit(two_classes())
    numbers = judged(x, x, missing)
    assert [name for name, value in numbers.items() if value is None] == [missing]


@pytest.mark.parametrize("originals", [torch.full((20, 1, 8, 8), 0.5), torch.rand(20, 1, 2, 2)])
def test_what_has_no_sharpness_has_the_rest(originals: Tensor) -> None:
    """Catches a comparison lost to one of its metrics, on constant images and on tiny ones."""
    numbers = summarise(
        originals, Reconstructions(originals + 0.01, posterior(20)), 0.01, Judges(None, None, None)
    )
    assert numbers["sharpness"] is None
    assert numbers["l2"] == pytest.approx(0.01 * originals[0].numel() ** 0.5, rel=1e-4)


def test_shapes_are_checked_in_the_first_calls_of_a_test() -> None:
    """Catches tests that check no shape, and checks that take longer than the tests."""
    flat, whole = torch.zeros(2, 3, 4), torch.zeros(2, 1, 3, 4)
    with pytest.raises(TypeCheckError):
        metrics.l2_distances(flat, flat)
    for _ in range(Checks.EACH):
        metrics.l2_distances(whole, whole)
    assert metrics.l2_distances(flat, flat).tolist() == [0.0, 0.0]

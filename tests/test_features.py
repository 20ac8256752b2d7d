"""features: both distances against closed forms and libraries, and the features they live in."""

import hashlib
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from oracles import five_errors, normal, vector
from pictures import Evil
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from scorevae.data.arrays import Split, to_tensor, to_unit_range
from scorevae.errors import Unavailable, UserError
from scorevae.evaluation import features as quality
from scorevae.runtime import published as pretrained

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class AsIs(nn.Module):
    """Stands for Inception: features are given in place of images."""

    num_features = 5

    def forward(self, x: Tensor) -> Tensor:
        return x


def sets(count: int = 80, other: int = 60) -> tuple[Tensor, Tensor]:
    """Two sets of correlated features that differ in mean, spread and number."""
    mixing, shift = normal((5, 5), 2), normal((5,), 3)
    return normal((count, 5), 0) @ mixing, 0.7 * normal((other, 5), 1) + shift


def measured(metric: Metric, first: Tensor, second: Tensor) -> Tensor:
    """What torchmetrics says of two sets."""
    metric.update(first, real=True)
    metric.update(second, real=False)
    return metric.compute()


def test_frechet_distance_of_commuting_gaussians() -> None:
    """Catches a lost root or cross term: for diagonal covariances d² = ‖Δμ‖² + Σ(√a − √b)²."""
    a, b, mean, other = vector(4, 1, 9), vector(1, 1, 0), vector(1, 2, 3), vector(1, 0, 3)
    ours = quality.gaussian_frechet_distance(mean, a.diag(), other, b.diag())
    assert ours == pytest.approx(4 + (2 - 1) ** 2 + 0 + 3**2, rel=1e-12)


def test_frechet_distance_of_any_gaussians() -> None:
    """Catches a cross term that holds for commuting covariances only."""
    first, second = (m @ m.T for m in (normal((6, 6), 0), normal((6, 6), 1)))
    zero = torch.zeros(6, dtype=torch.float64)
    root = np.real(sqrtm(first.numpy() @ second.numpy()))
    expected = np.trace(first.numpy() + second.numpy() - 2 * root)
    # Roots of eigenvalues down to 1e-3 of the largest: rounding 1e-16 enlarged to 1e-13.
    ours = quality.gaussian_frechet_distance(zero, first, zero, second)
    assert ours == pytest.approx(expected, rel=1e-9)


# Complex eigenvalues of torchmetrics' of a rank of 2 in 5 are roots of rounding: √1e-15.
@pytest.mark.parametrize(("count", "other", "rounding"), [(80, 60, 1e-9), (3, 4, 1e-6)])
def test_frechet_distance_is_that_of_torchmetrics(count: int, other: int, rounding: float) -> None:
    """Catches biased covariances, the two sets' moments mixed up, and NaN without full rank."""
    first, second = sets(count, other)
    expected = measured(FrechetInceptionDistance(feature=AsIs()), first, second).item()
    assert quality.frechet_distance(first, second) == pytest.approx(expected, rel=rounding)
    assert quality.frechet_distance(first, first) == pytest.approx(0, abs=rounding)


def test_kernel_distance_is_the_double_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches pairs (i, i) counted, denominators exchanged, and chunks lost."""
    monkeypatch.setattr(quality, "CHUNK", 7)
    first, second = sets(20, 13)

    def kernels(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / 5 + 1) ** 3

    def within(x: Tensor) -> Tensor:
        return kernels(x, x)[~torch.eye(len(x), dtype=torch.bool)].mean()

    expected = within(first) + within(second) - 2 * kernels(first, second).mean()
    ours = quality.kernel_distance(first, second)
    assert ours == pytest.approx(expected.item(), rel=1e-11)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save:UserWarning")
def test_kernel_distance_is_that_of_torchmetrics() -> None:
    """Catches another kernel than KID's."""
    metric = KernelInceptionDistance(feature=AsIs(), subsets=1, subset_size=60)
    expected = measured(metric, *sets(60, 60))[0].item()
    assert quality.kernel_distance(*sets(60, 60)) == pytest.approx(expected, rel=1e-6)  # float32


def test_kernel_distance_is_unbiased() -> None:
    """Catches a bias: over pairs of sets of one distribution the mean is 0."""
    pairs = [(normal((10, 3), 2 * s), normal((10, 3), 2 * s + 1)) for s in range(300)]
    values = vector(*[quality.kernel_distance(*pair) for pair in pairs])[:, None]
    assert values.mean().abs() < five_errors(values)
    assert values.min() < 0


def test_distances_clamp() -> None:
    """Catches values outside [0, 1] that no one would see, and a set without a covariance."""
    x, y = torch.rand(6, 1, 4, 4), 2 * torch.rand(4, 1, 4, 4) - 0.5

    def features(images: Tensor) -> Tensor:
        assert images.min() >= 0
        assert images.max() <= 1
        return images.flatten(1)

    pair = y.clamp(0, 1).flatten(1), x.flatten(1)
    expected = (quality.frechet_distance(*pair), quality.kernel_distance(*pair))
    assert quality.distances(features, y, x) == expected
    with pytest.raises(Unavailable, match="1 image; 2 are the least"):
        quality.distances(features, y[:1], x)


def stripes(count: int = 90, size: int = 8, channels: int = 1) -> Split:
    """Noise with one bright column, one row, or neither: classes 2, 3 and 7 in turn."""
    images = np.random.default_rng(0).integers(0, 90, (count, size, size, channels))
    labels = np.array([2, 3, 7])[np.arange(count) % 3]
    images[labels == 2, :, 3] += 150
    images[labels == 3, 5] += 150
    return Split(images.astype(np.uint8), labels)


def striped(count: int = 90) -> Split:
    """The same as two attributes: a bright column, a bright row."""
    images, labels = stripes(count)
    return Split(images, np.stack([labels == 2, labels == 3], axis=1).astype(np.int64))


def unit(split: Split) -> Tensor:
    """Its images in [0, 1]."""
    return to_unit_range(to_tensor(split.images))


@pytest.mark.parametrize("train", [stripes(), striped()], ids=["classes", "attributes"])
def test_classifier_learns(train: Split) -> None:
    """Catches labels parted from images, classes returned as numbers 0, 1, …, and another loss."""
    classifier = quality.train_feature_classifier(train, 90, steps=60, seed=0)
    verdicts = classifier.predict(unit(train))
    assert verdicts.dtype == np.int64
    np.testing.assert_array_equal(verdicts, train.labels)


def test_features_are_standardised() -> None:
    """Catches features on an arbitrary scale, or standardised by the set at hand."""
    train = stripes()
    features = quality.train_feature_classifier(train, 90, steps=20, seed=0).features
    ours = features(unit(train))
    assert ours.shape == (90, quality.FEATURES)
    # float32 over 90 images; features that are nearly constant amplify their own rounding.
    torch.testing.assert_close(ours.mean(dim=0), torch.zeros(64), rtol=0, atol=1e-3)
    torch.testing.assert_close(ours.std(dim=0), torch.ones(64), rtol=0, atol=1e-3)
    few = features(unit(train)[:3])
    torch.testing.assert_close(few, ours[:3], rtol=1e-3, atol=1e-3)


def test_classifier_follows_from_its_seed() -> None:
    """Catches weights of the global generator, and a limit without effect."""
    train, x = stripes(), unit(stripes(5))

    def features(limit: int = 60, seed: int = 0) -> Tensor:
        return quality.train_feature_classifier(train, limit, steps=3, seed=seed).features(x)

    first = features()
    torch.manual_seed(99)
    assert torch.equal(features(), first)
    assert not torch.allclose(features(seed=1), first)
    assert not torch.allclose(features(limit=30), first)


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32), (3, 64)])
def test_classifier_of_any_size(channels: int, size: int) -> None:
    """Catches sides that do not halve evenly, and colours."""
    train = stripes(6, size, channels)
    classifier = quality.train_feature_classifier(train, 6, steps=1, seed=0)
    assert classifier.features(unit(train)).isfinite().all()


def test_distances_in_the_feature_space() -> None:
    """Catches features that do not tell data from noise."""
    x = unit(stripes(60))
    features = quality.train_feature_classifier(stripes(), 90, steps=60, seed=0).features
    near = quality.distances(features, x[::2], x[1::2])
    far = quality.distances(features, torch.rand_like(x[::2]), x[1::2])
    assert all(ours < theirs for ours, theirs in zip(near, far, strict=True))


def test_labels_that_train_nothing() -> None:
    """Catches a feature space that knows no classes."""
    for labels, reason in ((None, "no labels"), (np.ones(90, dtype=np.int64), "a single class")):
        with pytest.raises(Unavailable, match=f"classifier distances: .*{reason}"):
            quality.train_feature_classifier(Split(stripes().images, labels), 90, steps=1, seed=0)


def test_where_weights_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a stack trace, an FID of thumbnails, and a download in spite of a file at hand."""

    def fail(url: str, target: str, hash_prefix: str, progress: bool) -> None:
        assert (url, hash_prefix, progress) == (quality.INCEPTION.url, SHA256, False)
        raise URLError("no route")

    monkeypatch.setattr(pretrained, "download_url_to_file", fail)
    with pytest.raises(Unavailable, match="fid and kid: .*no route.*TORCH_HOME"):
        quality.locate_inception(None, 32)
    with pytest.raises(Unavailable, match="images of 28 pixels are under the 32"):
        quality.locate_inception(None, 28)
    monkeypatch.setattr(pretrained, "download_url_to_file", None)
    own = tmp_path / "own.pth"
    with pytest.raises(UserError, match="evaluate.quality.inception: .*own.pth' does not exist"):
        quality.locate_inception(str(own), 32)
    own.touch()
    assert quality.locate_inception(str(own), 32) == own
    kept = tmp_path / "torch/hub/checkpoints/weights-inception-2015-12-05-6726825d.pth"
    kept.touch()
    assert quality.locate_inception(None, 32) == kept


def test_foreign_weights(tmp_path: Path) -> None:
    """Catches a truncated or another file, which would be unpickled."""
    path = tmp_path / "weights.pth"
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match=f"begins with {SHA256}: incomplete or another file"):
        quality.load_inception(path)
    with pytest.raises(UserError, match="cannot be read .*; name the file of torch-fidelity's"):
        quality.load_inception(tmp_path / "absent.pth")


def test_pickle_with_the_same_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a file opened for the first digits of its sum, which can be found by trying."""
    path = tmp_path / "weights.pth"
    torch.save(Evil(tmp_path / "ran"), path)
    monkeypatch.setattr(pretrained, "sha256", lambda path: SHA256[:-1] + "0")
    with pytest.raises(UserError, match=rf"weights\.pth: .* {SHA256}: .*; fetch it again"):
        quality.load_inception(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_inception_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches images in another range than 0 … 255, grey ones refused, and weights not loaded.

    The published weights are not at hand; random ones of the same shapes stand for them.
    """
    extractor = feature_extractor_inceptionv3.FeatureExtractorInceptionV3
    with monkeypatch.context() as patched, torch.random.fork_rng():
        torch.manual_seed(0)
        module = feature_extractor_inceptionv3.__name__
        patched.setattr(f"{module}.load_state_dict_from_url", lambda *a, **k: {})
        patched.setattr(extractor, "load_state_dict", lambda self, weights: None)
        network = FrechetInceptionDistance(feature=2048).inception
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    published = pretrained.weights_file(f"https://example.org/weights-{digest[:8]}.pth")
    monkeypatch.setattr(quality, "INCEPTION", published)
    stored = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    ours = quality.load_inception(path)(stored / 255)
    expected = network(stored.expand(-1, 3, -1, -1))
    assert ours.shape == (2, 2048)
    assert torch.equal(ours, expected)

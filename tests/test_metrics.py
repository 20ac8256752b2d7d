"""metrics: each number against its formula."""

from urllib.error import URLError

import lpips
import numpy as np
import pytest
import torch
from sklearn.svm import SVC
from torch import Tensor, nn
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn.functional import avg_pool2d, pad

from scorevae import metrics
from scorevae.gaussian import DiagonalGaussian
from scorevae.metrics import MetricUnavailable
from scorevae.reconstructions import Reconstructions

TORCHVISION = pytest.mark.filterwarnings(
    "ignore:The parameter 'pretrained' is deprecated:UserWarning",
    "ignore:Arguments other than a weight enum:UserWarning",
)


def images(count: int = 3, channels: int = 2, size: int = 8, seed: int = 0) -> Tensor:
    """Random images in [0, 1], in float64 for exact comparisons."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, channels, size, size, generator=generator, dtype=torch.float64)


def posterior(count: int = 50, latent: int = 3) -> DiagonalGaussian:
    """Some Gaussians."""
    generator = torch.Generator().manual_seed(1)
    draw = [torch.randn(count, latent, generator=generator).double() for _ in range(2)]
    return DiagonalGaussian(*draw)


def test_l2_distances() -> None:
    """Catches a mean over pixels, a square without root, or a norm over the whole batch."""
    x, y = images(), images(seed=1)
    expected = [np.sqrt(np.sum((a - b) ** 2)) for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    # float64: rounding of a sum of 128 terms
    assert metrics.l2_distances(x, y).tolist() == pytest.approx(expected, rel=128 * 2**-52)


def test_distances_do_not_clamp() -> None:
    """Catches values outside [0, 1] that count as if they were inside."""
    x = torch.zeros(1, 1, 2, 2)
    assert metrics.l2_distances(x, x + 3).item() == 6
    assert metrics.mean_squared_error(x, x + 3) == 9


def test_mean_squared_error() -> None:
    """Catches a sum in place of the mean."""
    x, y = images(), images(seed=1)
    expected = float(np.mean((x.numpy() - y.numpy()) ** 2))
    assert metrics.mean_squared_error(x, y) == pytest.approx(expected, rel=400 * 2**-52)


def test_peak_signal_to_noise_ratio() -> None:
    """Catches the PSNR of the pooled error, and a range other than 1."""
    x = torch.zeros(2, 1, 4, 4)
    y = torch.cat([x[:1] + 0.1, x[:1] + 0.01])
    # Errors of 0.01 and 1e-4: 20 and 40 dB, mean 30; the pooled error would give 23 dB. The
    # float32 errors 2^-24 relative give 1e-6 dB.
    assert metrics.peak_signal_to_noise_ratio(x, y) == pytest.approx(30, abs=1e-5)
    assert metrics.peak_signal_to_noise_ratio(x, x) == float("inf")


def by_hand_ssim(x: Tensor, y: Tensor, sigma: float, width: int) -> float:
    """Wang et al. 2004, eq. 13, in Gaussian windows around every pixel, borders reflected."""
    axis = torch.arange(width, dtype=torch.float64) - width // 2
    line = torch.exp(-(axis**2) / (2 * sigma**2))
    window = torch.outer(line, line) / line.sum() ** 2

    def mean(a: Tensor) -> Tensor:
        a = pad(a, (width // 2,) * 4, mode="reflect")
        return (a.unfold(2, width, 1).unfold(3, width, 1) * window).sum(dim=(-2, -1))

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mx * my + c1) * (2 * vxy + c2)
    return (top / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean().item()


@pytest.mark.parametrize(("size", "sigma", "width"), [(8, 1.5, 11), (16, 1.5, 11)])
def test_structural_similarity(size: int, sigma: float, width: int) -> None:
    """Catches another window or range than stated, and another treatment of borders."""
    x = images(size=size)
    y = 0.7 * x + 0.3 * images(size=size, seed=1)
    expected = by_hand_ssim(x, y, sigma, width)
    # Variances are differences of terms near 1 (rounding 1e-16), divided by c2 = 9e-4 or more.
    assert metrics.structural_similarity(x, y) == pytest.approx(expected, abs=1e-12)
    assert metrics.structural_similarity(x, x) == pytest.approx(1, abs=1e-12)


def test_laplacian_energy() -> None:
    """Catches a wrong stencil, borders, and channels summed together."""
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    plane, bowl = 2 * rows - columns, rows**2 + columns**2
    x = torch.stack([plane, bowl])[None]
    # Δ of a plane is 0 and of the bowl 4, everywhere inside; small integers are exact.
    assert metrics.laplacian_energy(x) == (0 + 4**2) / 2


def test_sharpness() -> None:
    """Catches an inverted ratio, and one of amplitudes in place of energies."""
    x = images(size=16)
    assert metrics.sharpness(x, x) == 1
    blurred = avg_pool2d(x, 3, stride=1, padding=1)
    assert metrics.sharpness(x, blurred) < 1
    # Δ is linear: contrast 0.5 scales its square by 0.25 (exact in binary), brightness by nothing.
    assert metrics.sharpness(x, 0.5 * x) == 0.25
    assert metrics.sharpness(x, x + 0.5) == pytest.approx(1, rel=1e-12)


def test_sharpness_of_constant_images() -> None:
    """Catches a division by zero."""
    x = torch.full((2, 1, 8, 8), 0.5)
    with pytest.raises(MetricUnavailable, match="constant"):
        metrics.sharpness(x, x)


def test_rate() -> None:
    """Catches a mean over latents, or a KL the other way round."""
    q = posterior()
    std = torch.exp(0.5 * q.log_variance)
    ours = Independent(Normal(q.mean, std), 1)
    standard = Independent(Normal(torch.zeros_like(std), torch.ones_like(std)), 1)
    expected = kl_divergence(ours, standard).mean().item()
    # 150 positive terms of float64
    assert metrics.rate_nats(q) == pytest.approx(expected, rel=1e-13)


def test_active_units() -> None:
    """Catches the variance of q counted in place of that of its mean, and a mean over latents."""
    steps = torch.linspace(-1, 1, 101)
    mean = torch.stack([steps, 0.01 * steps, torch.ones_like(steps), 5 + 0.3 * steps], dim=1)
    q = DiagonalGaussian(mean, torch.zeros_like(mean))
    # The variances are 0.34, 3.4e-5, 0 and 0.031.
    assert [metrics.active_units(q, limit) for limit in (1e-6, 0.01, 0.1, 1.0)] == [3, 2, 1, 0]


class Recorder(nn.Module):
    """Stands for LPIPS: keeps what it is given, answers the mean absolute difference."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        self.seen.append(first)
        return (first - second).abs().mean(dim=(1, 2, 3), keepdim=True)


def test_lpips_distance_prepares_images() -> None:
    """Catches images left in [0, 1] or in grey, chunks that count alike, and lost images."""
    x, y = images(230, channels=1, size=2), images(230, channels=1, size=2, seed=1)
    network = Recorder()
    # Moving to [−1, 1] doubles differences; rounding of a mean of 920 terms.
    expected = 2 * (x - y).abs().mean().item()
    assert metrics.lpips_distance(network, x, y) == pytest.approx(expected, rel=1e-12)
    seen = torch.cat(network.seen)
    assert seen.shape == (230, 3, 2, 2)
    assert torch.equal(seen, (2 * x - 1).expand(-1, 3, -1, -1))


@TORCHVISION
def test_lpips_distance_of_the_real_network() -> None:
    """Catches a call that the real network refuses (random weights: only the path is tested)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = lpips.LPIPS(net="squeeze", pnet_rand=True, pretrained=False, verbose=False)
    network.eval()
    x, y = (images(3, channels=1, size=32, seed=seed).float() for seed in (0, 1))
    assert metrics.lpips_distance(network, x, x) == 0
    each = [metrics.lpips_distance(network, x[i : i + 1], y[i : i + 1]) for i in range(3)]
    assert 0 not in each
    # float32 convolutions whose order of summation may differ between batch sizes
    assert metrics.lpips_distance(network, x, y) == pytest.approx(sum(each) / 3, rel=1e-4)


def test_small_images_have_no_lpips() -> None:
    """Catches a trunk that fails on 8×8 pixels after all training is done."""
    with pytest.raises(MetricUnavailable, match="images of 8 pixels are under the 32"):
        metrics.load_lpips("alex", 8)


@pytest.mark.parametrize("error", [URLError("offline"), OSError("full"), RuntimeError("hash")])
def test_lpips_without_its_trunk(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Catches random weights in place of the trunk, or an evaluation that ends without network."""

    def refuse(**_: object) -> None:
        raise error

    monkeypatch.setattr(lpips, "LPIPS", refuse)
    with pytest.raises(MetricUnavailable, match=r"the vgg trunk cannot be fetched .*TORCH_HOME"):
        metrics.load_lpips("vgg", 64)


def two_classes() -> tuple[Tensor, np.ndarray]:
    """Dark and bright images with their labels."""
    labels = np.arange(20) % 2
    return images(20, channels=1) / 4 + 0.7 * torch.from_numpy(labels)[:, None, None, None], labels


def test_class_agreement() -> None:
    """Catches agreement with the labels in place of agreement between the two verdicts."""
    x, labels = two_classes()
    classifier = metrics.train_classifier(x, labels, limit=20, seed=0)
    assert classifier(x).tolist() == labels.tolist()
    assert metrics.class_agreement(classifier, x, x) == 1
    half = torch.cat([x[:10].flip(0), x[10:]])  # neighbours are of different classes
    assert metrics.class_agreement(classifier, x, half) == 0.5
    assert metrics.class_agreement(classifier, x.flip(0), x) == 0


def test_classifier_sees_at_most_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an SVM of all images, images parted from labels, and a choice without seed."""
    seen = []
    monkeypatch.setattr(SVC, "fit", lambda self, x, y: seen.append((x, y)))
    x, labels = two_classes()
    for seed in (3, 3, 4):
        metrics.train_classifier(x, labels, limit=8, seed=seed)
    assert seen[0][0].shape == (8, 64)
    for given, label in zip(*seen[0], strict=True):
        (index,) = np.flatnonzero((x.flatten(1).numpy() == given).all(axis=1))
        assert labels[index] == label
    np.testing.assert_array_equal(seen[0][0], seen[1][0])
    assert not np.array_equal(seen[0][0], seen[2][0])


def test_single_class() -> None:
    """Catches scikit-learn's error for unlabelled or filtered data."""
    with pytest.raises(MetricUnavailable, match="class_agreement: .* single class"):
        metrics.train_classifier(images(5), np.zeros(5, dtype=np.int64), limit=5, seed=0)


def test_summary() -> None:
    """Catches arguments of a metric given in the wrong order, and missing entries."""
    x, labels = two_classes()
    y = x + 0.01
    system = Reconstructions(y, posterior(20))
    classifier = metrics.train_classifier(x, labels, limit=20, seed=0)
    numbers = metrics.summarise(
        x, system, active_threshold=0.01, lpips_network=None, classifier=classifier
    )
    assert numbers == {
        "l2": metrics.l2_distances(x, y).mean().item(),
        "mse": metrics.mean_squared_error(x, y),
        "psnr": metrics.peak_signal_to_noise_ratio(x, y),
        "ssim": metrics.structural_similarity(x, y),
        "sharpness": metrics.sharpness(x, y),
        "lpips": None,
        "rate_nats": metrics.rate_nats(system.posterior),
        "active_units": 3,
        "class_agreement": 1.0,
    }
    without = metrics.summarise(
        x, system, active_threshold=0.01, lpips_network=Recorder(), classifier=None
    )
    assert without["lpips"] == pytest.approx(0.02, rel=1e-9)
    assert "class_agreement" not in without

"""How close samples are to data, as distributions: Fréchet and kernel distance of features.

FID (Heusel et al. 2017, arXiv 1706.08500) and KID (Bińkowski et al. 2018, arXiv 1801.01401) are
these distances in the feature space of an Inception network; its weights must be at hand. For
images too small for it, and without its weights, a small classifier of the training images takes
its place. Those numbers are comparable for one data set, one seed and one version of this module
only, and have names of their own.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from scorevae.data.arrays import Split, to_tensor, to_unit_range
from scorevae.errors import Unavailable
from scorevae.randomness import derive_seed, global_seed
from scorevae.runtime.published import check_digest, locate, weights_file
from scorevae.shapes import AnyImages, Labels

Features = Float[Tensor, "_ feature"]
FeatureFn = Callable[[AnyImages], Features]

INCEPTION = weights_file(
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)._replace(  # in full: torch-fidelity unpickles the file, which runs whatever it says
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
)
SMALLEST = 32  # pixels; Inception would see little but the blur of enlarging smaller images
FEWEST = 2  # images that have a covariance
CHUNK = 1000  # images whose kernels are held at once

# The small classifier: a trunk of strided convolutions, trained for a few seconds.
WIDTHS = (32, 64)  # of the first convolution, and of all others
FEATURES = 64
BATCH = 128
FEWEST_IN_BATCH = 32  # where there are few: at least eight batches make a pass
PASSES = 20  # most of them through the training images, but for FEWEST_STEPS
FEWEST_STEPS = 60
LEARNING_RATE = 3e-3


def frechet_distance(first: Features, second: Features) -> float:
    """d² = ‖μ − μ'‖² + tr(Σ + Σ' − 2 (ΣΣ')^½) of the Gaussians with the sets' moments.

    Fréchet 1957; Dowson & Landau 1982. Covariances are unbiased, everything is float64. The
    estimate is too high by a term that falls with the number of images: compare equal numbers.
    """
    moments = [(x.double().mean(dim=0), torch.cov(x.double().T)) for x in (first, second)]
    return gaussian_frechet_distance(*moments[0], *moments[1])


def gaussian_frechet_distance(
    mean: Float[Tensor, " feature"],
    covariance: Float[Tensor, "feature feature"],
    other_mean: Float[Tensor, " feature"],
    other_covariance: Float[Tensor, "feature feature"],
) -> float:
    """The same of given moments; tr (ΣΣ')^½ = tr (S Σ' S)^½ with S = Σ^½, which is symmetric."""
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    inner = torch.linalg.eigvalsh(root @ other_covariance @ root)
    cross = inner.clamp(min=0).sqrt().sum()
    trace = covariance.trace() + other_covariance.trace() - 2 * cross
    return ((mean - other_mean).square().sum() + trace).item()


def kernel_distance(first: Features, second: Features) -> float:
    """MMD², unbiased, with k(a, b) = (a·b/d + 1)³; it may be below zero.

    Σ_{i≠j} k(x_i, x_j)/(m(m−1)) + Σ_{i≠j} k(y_i, y_j)/(n(n−1)) − 2 Σ_{ij} k(x_i, y_j)/(mn)
    (Bińkowski et al. 2018, eq. 4), of all pairs at once. Libraries average over random subsets,
    with the same expectation and a larger variance.
    """
    x, y = first.double(), second.double()
    m, n = len(x), len(y)
    within = (_kernel_sum(x, x) - _kernel(x, x, pairs=False).sum().item()) / (m * (m - 1))
    across = (_kernel_sum(y, y) - _kernel(y, y, pairs=False).sum().item()) / (n * (n - 1))
    return within + across - 2 * _kernel_sum(x, y) / (m * n)


def _kernel(x: Features, y: Features, *, pairs: bool = True) -> Tensor:
    """k of every pair, or of rows in step."""
    inner = x @ y.T if pairs else (x * y).sum(dim=1)
    return (inner / x.shape[1] + 1) ** 3


def _kernel_sum(x: Features, y: Features) -> float:
    return sum(_kernel(chunk, y).sum().item() for chunk in x.split(CHUNK))


def distances(
    features: FeatureFn, generated: AnyImages, reference: AnyImages
) -> tuple[float, float]:
    """Fréchet and kernel distance of images in [0, 1], clamped as they would be shown.

    The sets must be independent: reconstructions of the reference are not.

    Raises:
        Unavailable: a set without a covariance.
    """
    count = min(len(generated), len(reference))
    if count < FEWEST:
        raise Unavailable(f"sample quality: {count} image; {FEWEST} are the least")
    first, second = (features(images.clamp(0, 1)) for images in (generated, reference))
    return frechet_distance(first, second), kernel_distance(first, second)


def locate_inception(own: str | None, size: int) -> Path:
    """torch-fidelity's weights: the user's file, else the one in TORCH_HOME, else a download.

    Raises:
        Unavailable: they cannot be had, or the images are too small.
        UserError: the user's file is not there.
    """
    if size < SMALLEST:
        raise Unavailable(
            f"fid and kid: images of {size} pixels are under the {SMALLEST} that Inception needs"
        )
    key = "evaluate.quality.inception"
    return locate(INCEPTION, own, key, "fid and kid: Inception's weights")


def load_inception(path: Path, device: torch.device | str = "cpu") -> FeatureFn:
    """The 2048 pooled features of torchmetrics' Inception, of images as bytes and RGB.

    Raises:
        UserError: the file is not the one that torch-fidelity publishes.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    # The guard of what torch-fidelity then unpickles.
    check_digest(path, INCEPTION, "torch-fidelity's weights")
    metric = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=str(path))
    network = metric.inception.to(device)

    @torch.no_grad()
    def features(images: AnyImages) -> Features:
        pixels = (255 * images).round().byte().expand(-1, 3, -1, -1)
        return torch.cat([network(chunk.to(device)).cpu() for chunk in pixels.split(50)])

    return features


class SmallClassifier(nn.Module):
    """Strided convolutions down to 4 pixels a side, ``FEATURES`` numbers, and class logits."""

    def __init__(self, channels: int, size: int, outputs: int) -> None:
        super().__init__()
        first, width = WIDTHS
        # Full resolution is worth a layer only where there is little of it.
        stride = 1 if size <= 16 else 2
        layers: list[nn.Module] = [nn.Conv2d(channels, first, 3, stride, 1), nn.GELU()]
        before, side = first, -(-size // stride)
        while side > 4:
            layers += [nn.Conv2d(before, width, 3, 2, 1), nn.GroupNorm(8, width), nn.GELU()]
            before, side = width, -(-side // 2)
        layers += [nn.Flatten(), nn.Linear(before * side**2, FEATURES), nn.GELU()]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Linear(FEATURES, outputs)

    def features(self, x: AnyImages) -> Features:
        """What the logits are linear in; images in [0, 1]."""
        return self.trunk(2 * x - 1)

    def forward(self, x: AnyImages) -> Features:
        """Logits of the classes, or of each attribute."""
        return self.head(self.features(x))


class FeatureClassifier(NamedTuple):
    """A trained :class:`SmallClassifier`."""

    features: FeatureFn  # standardised by the training images' mean and standard deviation
    predict: Callable[[AnyImages], Labels]


def train_feature_classifier(
    train: Split, limit: int, steps: int, seed: int, device: torch.device | str = "cpu"
) -> FeatureClassifier:
    """Train on at most ``limit`` images: softmax for classes, logistic for attributes.

    At most ``steps`` steps, fewer on images so few that they would be seen over and over.

    The features are standardised over these images, so that every one counts alike and the
    distances do not depend on the arbitrary scale of a layer.

    Raises:
        Unavailable: no labels, or a single class.
    """
    if train.labels is None:
        raise Unavailable("classifier distances: the data have no labels")
    rng = np.random.default_rng(derive_seed(seed, "quality", "images"))
    chosen = np.sort(rng.permutation(len(train.images))[:limit])
    labels = train.labels[chosen]
    if (labels == labels[:1]).all():
        raise Unavailable("classifier distances: the training labels hold a single class")
    images = to_unit_range(to_tensor(train.images[chosen]))
    # Classes are numbered in the order of their labels; an attribute is 0 or 1 as it is.
    classes = np.unique(labels) if labels.ndim == 1 else None
    targets = labels if classes is None else np.searchsorted(classes, labels)
    outputs = labels.shape[1] if classes is None else len(classes)
    with global_seed(seed, "quality", "weights"):
        network = SmallClassifier(images.shape[1], images.shape[2], outputs).to(device)
    batch = min(BATCH, max(FEWEST_IN_BATCH, len(images) // 8))
    enough = max(FEWEST_STEPS, PASSES * len(images) // batch)
    known = torch.from_numpy(targets).to(device)
    _fit(network, images.to(device), known, min(steps, enough), batch, rng)

    @torch.no_grad()
    def run(module: Callable[[AnyImages], Features], x: AnyImages) -> Features:
        return torch.cat([module(chunk.to(device)).cpu() for chunk in x.split(500)])

    raw = run(network.features, images)
    mean, std = raw.mean(dim=0), raw.std(dim=0)
    std = std.where(std > 0, 1)

    def features(x: AnyImages) -> Features:
        return (run(network.features, x) - mean) / std

    def predict(x: AnyImages) -> Labels:
        logits = run(network, x).numpy()
        return (logits > 0).astype(np.int64) if classes is None else classes[logits.argmax(axis=1)]

    return FeatureClassifier(features, predict)


def _fit(
    network: nn.Module,
    images: AnyImages,
    targets: Tensor,
    steps: int,
    batch: int,
    rng: np.random.Generator,
) -> None:
    """Adam with a rate that falls to zero, on random batches; no other randomness."""
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.from_numpy(rng.integers(0, len(images), batch)).to(images.device)
        logits = network(images[rows])
        if targets.ndim == 1:
            loss = cross_entropy(logits, targets[rows])
        else:
            loss = binary_cross_entropy_with_logits(logits, targets[rows].to(logits))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

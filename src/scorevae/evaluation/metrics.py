"""How good reconstructions are. Images are in [0, 1] (values may lie outside), batch first."""

from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import conv2d

from scorevae.data.arrays import Split, to_tensor, to_unit_range
from scorevae.errors import Unavailable
from scorevae.gaussian import DiagonalGaussian
from scorevae.randomness import derive_seed
from scorevae.shapes import Images, Labels, PerSample

Classifier = Callable[[Images], Labels]


def l2_distances(originals: Images, reconstructions: Images) -> PerSample:
    """‖x̂ − x‖₂ of each flattened image, unclamped: the L2 of arXiv 2304.12141, tables 1 and 2."""
    return (reconstructions - originals).flatten(1).norm(dim=1)


def mean_squared_error(originals: Images, reconstructions: Images) -> float:
    """Mean over images and pixels of (x̂ − x)²."""
    return (reconstructions - originals).square().mean().item()


def peak_signal_to_noise_ratio(originals: Images, reconstructions: Images) -> float:
    """Mean over images of −10 log₁₀(mean over pixels of (x̂ − x)²), in dB (torchmetrics)."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    pair = reconstructions, originals
    return peak_signal_noise_ratio(*pair, data_range=1.0, dim=(1, 2, 3)).item()


def structural_similarity(originals: Images, reconstructions: Images) -> float | None:
    """Mean SSIM (Wang et al. 2004, Gaussian window of standard deviation 1.5; torchmetrics).

    None for images of under 6 pixels: half a window is 5, by which they cannot be mirrored.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(originals.shape[2:]) < 6:
        return None
    return float(structural_similarity_index_measure(reconstructions, originals, data_range=1.0))


def laplacian_energy(images: Images) -> float:
    """Mean over inner pixels of (Δx)², with the five-point Laplacian of each channel."""
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]], dtype=images.dtype)
    flat = images.flatten(0, 1)[:, None]
    return conv2d(flat, kernel[None, None]).square().mean().item()


def sharpness(originals: Images, reconstructions: Images) -> float:
    """Laplacian energy of the reconstructions over that of the originals; below 1 is blur.

    Raises:
        Unavailable: the originals are constant images, or have no inner pixels.
    """
    if min(originals.shape[2:]) < 3:
        raise Unavailable("sharpness: images of under 3 pixels have none inside")
    reference = laplacian_energy(originals)
    if reference == 0:
        raise Unavailable("sharpness: the original images are constant")
    return laplacian_energy(reconstructions) / reference


def rate_nats(posterior: DiagonalGaussian) -> float:
    """Mean over images of KL(q(z|x_0, 0) ‖ N(0, I)), in nats."""
    return posterior.kl_to_standard_normal().mean().item()


def active_units(posterior: DiagonalGaussian, threshold: float) -> int | None:
    """Latents whose mean varies over the data by more than ``threshold`` (variance).

    Burda et al. 2015, arXiv 1509.00519, §5.2, with 0.01. None for a single image.
    """
    if len(posterior.mean) < 2:
        return None
    return int((posterior.mean.var(dim=0) > threshold).sum())


def train_classifier(train: Split, limit: int, seed: int) -> Classifier:
    """A classifier of pixels, trained on at most ``limit`` training images.

    Classes: a support-vector machine with an RBF kernel. Attributes (several 0/1 labels for each
    image): linear, by ridge regression.

    Raises:
        Unavailable: no labels, or the same for every image.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.svm import SVC

    if train.labels is None:
        raise Unavailable("class_agreement: the data have no labels")
    rng = np.random.default_rng(derive_seed(seed, "classifier"))
    chosen = rng.permutation(len(train.images))[:limit]
    labels = train.labels[chosen]
    if (labels == labels[:1]).all():
        raise Unavailable("class_agreement: the training labels hold a single class")
    model = SVC() if labels.ndim == 1 else RidgeClassifier()
    images = to_unit_range(to_tensor(train.images[chosen]))
    model.fit(images.flatten(1).numpy(), labels)
    return lambda x: model.predict(x.flatten(1).numpy())


def class_agreement(classifier: Classifier, originals: Images, reconstructions: Images) -> float:
    """Share of verdicts (one for each image, or for each attribute) that x̂ and x share."""
    return float(np.mean(classifier(originals) == classifier(reconstructions)))

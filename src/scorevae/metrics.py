"""How good reconstructions are. Images are in [0, 1] (values may lie outside), batch first."""

import warnings
from collections.abc import Callable
from typing import Literal
from urllib.error import URLError

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv2d

from scorevae.data import Labels
from scorevae.gaussian import DiagonalGaussian, PerSample
from scorevae.randomness import derive_seed
from scorevae.reconstructions import Reconstructions

Images = Float[Tensor, "batch channel height width"]
Classifier = Callable[[Images], Labels]

SMALLEST_LPIPS = 32  # pixels; the trunks' strides and poolings exhaust smaller images


class MetricUnavailable(Exception):
    """A metric cannot be computed here; the message says why and what would help."""


def l2_distances(originals: Images, reconstructions: Images) -> PerSample:
    """‖x̂ − x‖₂ of each flattened image, unclamped: the L2 of arXiv 2304.12141, tables 1 and 2."""
    return (reconstructions - originals).flatten(1).norm(dim=1)


def mean_squared_error(originals: Images, reconstructions: Images) -> float:
    """Mean over images and pixels of (x̂ − x)²."""
    return (reconstructions - originals).square().mean().item()


def peak_signal_to_noise_ratio(originals: Images, reconstructions: Images) -> float:
    """Mean over images of −10 log₁₀(mean over pixels of (x̂ − x)²), in dB (torchmetrics)."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    return peak_signal_noise_ratio(
        reconstructions, originals, data_range=1.0, dim=(1, 2, 3)
    ).item()


def structural_similarity(originals: Images, reconstructions: Images) -> float:
    """Mean SSIM (Wang et al. 2004, Gaussian window of standard deviation 1.5; torchmetrics)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    return float(structural_similarity_index_measure(reconstructions, originals, data_range=1.0))


def laplacian_energy(images: Images) -> float:
    """Mean over inner pixels of (Δx)², with the five-point Laplacian of each channel."""
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]], dtype=images.dtype)
    flat = images.flatten(0, 1)[:, None]
    return conv2d(flat, kernel[None, None]).square().mean().item()


def sharpness(originals: Images, reconstructions: Images) -> float:
    """Laplacian energy of the reconstructions over that of the originals; below 1 is blur.

    Raises:
        MetricUnavailable: the originals are constant images.
    """
    reference = laplacian_energy(originals)
    if reference == 0:
        raise MetricUnavailable("sharpness: the original images are constant")
    return laplacian_energy(reconstructions) / reference


def rate_nats(posterior: DiagonalGaussian) -> float:
    """Mean over images of KL(q(z|x_0, 0) ‖ N(0, I)), in nats."""
    return posterior.kl_to_standard_normal().mean().item()


def active_units(posterior: DiagonalGaussian, threshold: float) -> int:
    """Latents whose mean varies over the data by more than ``threshold`` (variance).

    Burda et al. 2015, arXiv 1509.00519, §5.2, with 0.01.
    """
    return int((posterior.mean.var(dim=0) > threshold).sum())


def lpips_distance(network: nn.Module, originals: Images, reconstructions: Images) -> float:
    """Mean LPIPS (Zhang et al. 2018, arXiv 1801.03924) of images moved to [−1, 1] and RGB."""
    total = 0.0
    for first, second in zip(originals.split(100), reconstructions.split(100), strict=True):
        pair = [(2 * x - 1).expand(-1, 3, -1, -1) for x in (first, second)]
        with torch.no_grad():
            total += network(*pair).sum().item()
    return total / len(originals)


def load_lpips(net: Literal["alex", "vgg", "squeeze"], size: int) -> nn.Module:
    """The pretrained LPIPS network; never one with random weights.

    Raises:
        MetricUnavailable: images of this size are too small, or the trunk cannot be fetched.
    """
    if size < SMALLEST_LPIPS:
        raise MetricUnavailable(
            f"lpips: images of {size} pixels are under the {SMALLEST_LPIPS} that its trunk needs"
        )
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's notes on arguments that lpips chooses
        try:
            return lpips.LPIPS(net=net, verbose=False).eval()
        except (URLError, OSError, RuntimeError) as error:
            raise MetricUnavailable(
                f"lpips: the {net} trunk cannot be fetched ({error}); put its file under "
                "$TORCH_HOME/hub/checkpoints"
            ) from None


def train_classifier(images: Images, labels: Labels, limit: int, seed: int) -> Classifier:
    """A support-vector classifier (RBF kernel) on at most ``limit`` training images.

    Raises:
        MetricUnavailable: fewer than two classes.
    """
    from sklearn.svm import SVC

    if len(np.unique(labels)) < 2:
        raise MetricUnavailable("class_agreement: the training labels hold a single class")
    rng = np.random.default_rng(derive_seed(seed, "classifier"))
    chosen = rng.permutation(len(images))[:limit]
    model = SVC().fit(images[chosen].flatten(1).numpy(), labels[chosen])
    return lambda x: model.predict(x.flatten(1).numpy())


def class_agreement(classifier: Classifier, originals: Images, reconstructions: Images) -> float:
    """Share of images for which the classifier's verdict on x̂ is its verdict on x."""
    return float(np.mean(classifier(originals) == classifier(reconstructions)))


def summarise(
    originals: Images,
    system: Reconstructions,
    *,
    active_threshold: float,
    lpips_network: nn.Module | None,
    classifier: Classifier | None,
) -> dict[str, float | int | None]:
    """All numbers of one system, the entry of ``results/metrics.json``; None: not available."""
    x, x_hat = originals, system.images
    numbers: dict[str, float | int | None] = {
        "l2": l2_distances(x, x_hat).mean().item(),
        "mse": mean_squared_error(x, x_hat),
        "psnr": peak_signal_to_noise_ratio(x, x_hat),
        "ssim": structural_similarity(x, x_hat),
        "sharpness": sharpness(x, x_hat),
        "lpips": lpips_distance(lpips_network, x, x_hat) if lpips_network else None,
        "rate_nats": rate_nats(system.posterior),
        "active_units": active_units(system.posterior, active_threshold),
    }
    if classifier is not None:
        numbers["class_agreement"] = class_agreement(classifier, x, x_hat)
    return numbers

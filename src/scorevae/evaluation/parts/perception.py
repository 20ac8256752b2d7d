"""Whether reconstructions look like data: power spectra, and the features of a classifier.

Distances from the original image, like L2, are least for an average of images; these are not. The
classifier is a small one of the training images (:mod:`scorevae.evaluation.features`), at hand for
any labelled data, which the weights of LPIPS and Inception need not be.
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from scorevae.autoencoders.table import SYSTEMS
from scorevae.errors import Unavailable
from scorevae.evaluation.features import FEATURES, FeatureFn, Features, frechet_distance
from scorevae.evaluation.figures import Figure, lines
from scorevae.evaluation.part import Caption, Found, Numbers, Part, Subject
from scorevae.evaluation.report.tables import Metric
from scorevae.shapes import Images

Spectrum = Float[Tensor, " frequency"]


def compute(subject: Subject) -> Found:
    """All of it for the first images of every system."""
    count = subject.config.evaluate.perception.images
    originals = subject.originals[:count]
    shown = {name: found.images[:count] for name, found in subject.reconstructed.items()}
    numbers: Numbers = {name: dict.fromkeys(METRICS) for name in shown}
    reasons: dict[str, str] = {}
    figures = {}
    try:
        spectra = {name: relative_spectrum(originals, x_hat) for name, x_hat in shown.items()}
        for name, spectrum in spectra.items():
            numbers[name]["spectrum_db"] = spectrum.square().mean().sqrt().item()
        figures["spectrum"] = draw({SYSTEMS[name].title: s for name, s in spectra.items()})
    except Unavailable as reason:
        reasons["spectrum_db"] = str(reason)
    try:
        features = subject.feature_classifier.features
        for name, x_hat in shown.items():
            numbers[name] |= feature_distances(features, originals, x_hat)
    except Unavailable as reason:
        reasons |= dict.fromkeys(("feature_distance", "reconstruction_fd"), str(reason))
    return Found(numbers, figures=figures, reasons=reasons)


def power_spectrum(images: Images) -> Spectrum:
    """Mean power at each whole spatial frequency, from 1 to half the side.

    |FFT|² averaged over images, channels and the (u, v) whose √(u² + v²) rounds to the frequency.
    """
    side = images.shape[-1]
    power = torch.fft.fft2(images.double()).abs().square().flatten(0, 1).mean(dim=0)
    line = torch.fft.fftfreq(side, d=1 / side, dtype=torch.float64)
    radius = torch.hypot(line[:, None], line[None, :]).round().long()
    return torch.stack([power[radius == k].mean() for k in range(1, side // 2 + 1)])


def relative_spectrum(originals: Images, reconstructions: Images) -> Spectrum:
    """10 log₁₀ of the reconstructions' power over that of the originals, in dB; blur is below 0.

    Raises:
        Unavailable: the originals have no power at some frequency, as constant images, or are
            single pixels, which have no frequencies.
    """
    if originals.shape[-1] < 2:
        raise Unavailable("power spectrum: images of 1 pixels have no frequencies")
    reference = power_spectrum(originals)
    if not (reference > 1e-12).all():
        raise Unavailable("power spectrum: the original images are constant at some frequency")
    return 10 * torch.log10(power_spectrum(reconstructions) / reference + 1e-12)


def feature_distances(
    features: FeatureFn, originals: Images, reconstructions: Images
) -> dict[str, float | int | None]:
    """Of images in [0, 1], clamped as they would be shown, in standardised features.

    ``feature_distance``: root mean square of f(x̂) − f(x), one image with its own reconstruction;
    ``reconstruction_fd``: Fréchet distance of the two sets, None for a single image. The sets are
    not independent, so it compares systems and not, like FID, samples with data.
    """
    first: Features = features(originals.clamp(0, 1))
    second: Features = features(reconstructions.clamp(0, 1))
    squared = (first - second).square().sum(dim=1) / FEATURES
    several = len(originals) > 1
    return {
        "feature_distance": squared.sqrt().mean().item(),
        "reconstruction_fd": frechet_distance(second, first) if several else None,
    }


def draw(spectra: Mapping[str, Spectrum]) -> Figure:
    """Power against spatial frequency, relative to the data's."""
    figure, (axis,) = lines(1)
    for title, spectrum in spectra.items():
        axis.plot(np.arange(1, len(spectrum) + 1), spectrum.numpy(), ".-", label=title)
    axis.axhline(0, color="grey", linewidth=0.5)
    axis.set(xlabel="spatial frequency, periods per image", ylabel="power over the data's, dB")
    axis.legend(fontsize=8)
    return figure


METRICS = {
    "spectrum_db": Metric(
        "Power spectrum, dB",
        "root mean square distance from the data's, over frequencies",
        "lower",
    ),
    "feature_distance": Metric(
        "Feature distance", "of x̂ from x, in the features of a small classifier", "lower"
    ),
    "reconstruction_fd": Metric(
        "Fréchet distance", "of all x̂ from all x, in the same features", "lower"
    ),
}
PART = Part(
    name="perception",
    title="Perception",
    text="Whether reconstructions have the detail and the features of data. An average has not.",
    compute=compute,
    settings="perception",
    metrics=METRICS,
    rows=dict.fromkeys(SYSTEMS),
    figures={
        "spectrum": Caption(
            "Power of the reconstructions at each spatial frequency, over that of the originals: "
            "blur falls below 0 at the right.",
            "A curve for each system over spatial frequency, around a line at 0 dB.",
        )
    },
)

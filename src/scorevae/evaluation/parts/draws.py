"""Several images for one z ~ q(z|x_0): their spread, and the L2 of their mean."""

import math
from typing import NamedTuple

import numpy as np
import torch

from scorevae.autoencoders import MODEL
from scorevae.evaluation.figures import Figure, image_rows, name_columns
from scorevae.evaluation.metrics import l2_distances
from scorevae.evaluation.part import Caption, Found, Part, Subject
from scorevae.evaluation.report.tables import Metric
from scorevae.randomness import make_generator
from scorevae.shapes import Groups, Images


def compute(subject: Subject) -> Found:
    """Draw for the first images, and show four of them."""
    settings, config = subject.config.evaluate.draws, subject.config
    originals = subject.originals[: settings.images]
    noise = make_generator("cpu", config.seed, "draws", "z")
    z = subject.reconstructed[MODEL].posterior.sample(noise)
    weight, z = config.reconstruct.guidance, z[: settings.images]
    drawn = subject.model.decode_draws(z, settings.count, guidance=weight, seed=config.seed)
    found = spread(originals, drawn)
    numbers = {name: getattr(found, name) for name in METRICS}
    shown = slice(0, 4)
    part = found._replace(mean=found.mean[shown], std=found.std[shown])
    return Found({MODEL: numbers}, figures={"draws": draw(originals[shown], drawn[shown], part)})


class Spread(NamedTuple):
    """K draws of p(x|z) for one z of each image, against the image that z came from."""

    mean: Images
    std: Images  # of each pixel over the draws
    l2_of_one_draw: float  # L2 of a single draw, averaged over all of them
    l2_of_mean: float  # L2 of the mean of the K
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
    """
    count = draws.shape[1]
    mean, variance = draws.mean(dim=1), draws.var(dim=1)
    single = torch.stack([l2_distances(originals, drawn) for drawn in draws.unbind(dim=1)])
    error = (mean - originals).square().mean().item()
    expected = (1 + 1 / count) * variance.mean().item()
    return Spread(
        mean=mean,
        std=variance.sqrt(),
        l2_of_one_draw=single.mean().item(),
        l2_of_mean=l2_distances(originals, mean).mean().item(),
        pixel_std=math.sqrt(variance.mean().item()),
        calibration=error / expected if expected > 0 else None,
    )


def draw(originals: Images, drawn: Groups, spread: Spread) -> Figure:
    """Each original, K draws for its z, their mean and their standard deviation."""
    # One pixel that varies by far the most would leave all others black.
    brightest = max(float(np.quantile(spread.std.numpy(), 0.99)), 1e-6)
    columns: list[Images] = [originals, *drawn.unbind(dim=1), spread.mean, spread.std / brightest]
    rows = [("", torch.stack(row)) for row in zip(*columns, strict=True)]
    scale = f"standard deviation: white is {brightest:.2g} or more"
    figure = image_rows(rows, f"several draws for one z; {scale}")
    numbers = [str(1 + index) for index in range(drawn.shape[1])]
    name_columns(figure, ["original", *numbers, "mean", "std"])
    return figure


METRICS = {
    "l2_of_one_draw": Metric("L2 of one draw for z", "", "lower"),
    "l2_of_mean": Metric("L2 of the mean of K draws", "", "lower"),
    "pixel_std": Metric("Spread of a pixel over draws", "standard deviation"),
    "calibration": Metric(
        "Error of the mean over spread", "1 if the image is like a draw for its z", "one"
    ),
}
PART = Part(
    name="draws",
    title="Draws for one z",
    text="What differs between several images for one z is what z does not hold.",
    compute=compute,
    settings="draws",
    metrics=METRICS,
    rows={MODEL: None},
    figures={
        "draws": Caption(
            "Several images for one z: what differs is what z does not hold.",
            "Rows: an image, draws for its z, their mean and their standard deviation.",
        )
    },
)

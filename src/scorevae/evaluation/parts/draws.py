"""Several images for one z ~ q(z|x_0): their spread, and the L2 of their mean.

For every system: one whose image follows from z draws once, without a spread.
"""

import math
from typing import NamedTuple

import numpy as np
import torch

from scorevae.autoencoders.drawing import DiffusionSystem
from scorevae.autoencoders.system import System
from scorevae.autoencoders.table import MODEL, SYSTEMS
from scorevae.config import Config
from scorevae.evaluation.figures import Figure, image_rows, name_columns
from scorevae.evaluation.metrics import l2_distances
from scorevae.evaluation.part import Caption, Found, Numbers, Part, Subject
from scorevae.evaluation.report.tables import Metric
from scorevae.randomness import make_generator
from scorevae.shapes import Groups, Images, Latents


def compute(subject: Subject) -> Found:
    """Draw for the first images from every system, and show four of the model's."""
    settings, config = subject.config.evaluate.draws, subject.config
    count = subject.looked_at(settings.images)
    originals = subject.originals[:count]
    numbers: Numbers = {}
    for name, system in subject.systems.items():
        noise = make_generator("cpu", config.seed, "draws", "z")
        z = subject.reconstructed[name].posterior.sample(noise)[:count]
        drawn = draws_of(system, z, config)
        found = spread(originals, drawn)
        numbers[name] = {metric: getattr(found, metric) for metric in METRICS}
        if name == MODEL:
            figure = draw(originals[:SHOWN], drawn[:SHOWN, :COLUMNS], found)
    return Found(numbers, figures={"draws": figure}, notes=[f"Images: {count}."])


def draws_of(system: System, z: Latents, config: Config) -> Groups:
    """``count`` images for each z, as the model has them (τ = 1); one where z says it all."""
    if not isinstance(system, DiffusionSystem):
        return system.decode(z)[:, None]
    weight, count = config.reconstruct.guidance, config.evaluate.draws.count
    return system.decode_draws(z, count, guidance=weight, seed=config.seed)


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
    from q(z|x). None where the draws do not differ at all, as a single one.
    """
    count = draws.shape[1]
    mean, variance = draws.mean(dim=1), draws.var(dim=1, correction=min(1, count - 1))
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
    """Each original, some draws for its z, the mean and the standard deviation of all."""
    mean, std = (part[: len(originals)] for part in (spread.mean, spread.std))
    # One pixel that varies by far the most would leave all others black.
    brightest = max(float(np.quantile(std.numpy(), 0.99)), 1e-6)
    columns: list[Images] = [originals, *drawn.unbind(dim=1), mean, std / brightest]
    rows = [("", torch.stack(row)) for row in zip(*columns, strict=True)]
    scale = f"standard deviation: white is {brightest:.2g} or more"
    figure = image_rows(rows, f"several draws for one z; {scale}")
    numbers = [str(1 + index) for index in range(drawn.shape[1])]
    name_columns(figure, ["original", *numbers, "mean", "std"])
    return figure


SHOWN, COLUMNS = 4, 8  # images, and draws of each
METRICS = {
    "l2_of_one_draw": Metric("L2 of one draw for z", "", "lower"),
    "l2_of_mean": Metric("L2 of the mean of K draws", "", "lower"),
    "pixel_std": Metric("Spread of a pixel over draws", "standard deviation"),
    "calibration": Metric(
        "Error of the mean over spread",
        "1 if the image is like a draw for its z",
        "one",
        absent="not applicable: all draws for one z are one image",
    ),
}
PART = Part(
    name="draws",
    title="Draws for one z",
    text=(
        "What differs between several images for one z is what z does not hold. A draw pays for "
        "its detail with distance: L2² of a draw is that of the mean of all draws plus their "
        "spread²."
    ),
    compute=compute,
    settings="draws",
    metrics=METRICS,
    rows=dict.fromkeys(SYSTEMS),
    figures={
        "draws": Caption(
            "Several images for one z: what differs is what z does not hold.",
            "Rows: an image, draws for its z, their mean and their standard deviation.",
        )
    },
)

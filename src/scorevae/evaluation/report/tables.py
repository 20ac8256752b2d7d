"""Tables from plain numbers: how each metric is named, printed and judged."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from scorevae.evaluation.report.page import Cell, Label, Number, Table, Value, Values


class Metric(NamedTuple):
    """How a metric is printed."""

    label: str
    meaning: str = ""
    better: Literal["lower", "higher", "one", ""] = ""
    digits: int = 4
    unit: str = ""


METRICS = {
    "l2": Metric("L2", "mean ‖x̂ − x‖₂ of the flattened image in [0, 1]", "lower"),
    "mse": Metric("MSE", "mean over pixels of (x̂ − x)²", "lower", 6),
    "psnr": Metric("PSNR, dB", "mean over images", "higher"),
    "ssim": Metric("SSIM", "structural similarity", "higher"),
    "sharpness": Metric(
        "Sharpness", "Laplacian energy over that of the data; below 1: blur", "one"
    ),
    "lpips": Metric("LPIPS", "perceptual distance, as its authors define it", "lower"),
    "paper_lpips": Metric("LPIPS, the paper's", "VGG fed [0, 1]: too low as a distance", "lower"),
    "rate_nats": Metric("Rate, nats", "mean KL(q(z|x₀) ‖ N(0, I))"),
    "active_units": Metric("Active units", "latents whose mean varies over the data"),
    "class_agreement": Metric(
        "Class agreement", "share of a classifier's verdicts that x̂ and x share", "higher"
    ),
    "bits_per_dim": Metric("Bits per dimension", "the bound on −log₂ p(x), β = 1", "lower"),
    "bits_per_dim_error": Metric("its standard error", "Monte Carlo: same images, other noise"),
    "bits_per_dim_image_error": Metric("its standard error over images", "other images, too"),
    "bits_reconstruction": Metric("reconstruction", "−E log₂ p(x₀|x_ε) of the 256 grey values"),
    "bits_prior_matching": Metric("prior matching", "KL(q(x₁|x₀) ‖ π)"),
    "bits_diffusion": Metric("diffusion", "½ ∫ g² E‖∇ln p(xₜ|x₀) − s‖² dt"),
    "bits_rate": Metric("rate", "KL(q(z|x₀) ‖ N(0, I))"),
    "bits_below_t_min": Metric("of the diffusion, below t_min", "where nothing was trained"),
    "bits_theorem_3": Metric("the bound by Song's theorem 3", "another estimator of the same"),
    "ode_bits_per_dim": Metric("Bits per dimension by the ODE", "the prior's own likelihood"),
    "ode_bits_per_dim_error": Metric("its standard error", "over images"),
    "linear_probe": Metric("Linear probe", "accuracy on test images", "higher"),
    "neighbours": Metric("Nearest neighbours", "accuracy on test images", "higher"),
    "l2_of_one_draw": Metric("L2 of one draw for z", "", "lower"),
    "l2_of_mean": Metric("L2 of the mean of K draws", "", "lower"),
    "pixel_std": Metric("Spread of a pixel over draws", "standard deviation"),
    "calibration": Metric(
        "Error of the mean over spread", "1 if the image is like a draw for its z", "one"
    ),
    "l2_shuffled_z": Metric("L2 with another image's z", "from the same noise"),
    "shuffled_ratio": Metric("the same over L2 with its own z", "1: z is ignored"),
    "classifier_fd": Metric("Fréchet distance", "features of a small classifier", "lower"),
    "classifier_kd": Metric("Kernel distance", "features of a small classifier", "lower"),
    "fid": Metric("FID", "", "lower"),
    "kid": Metric("KID", "", "lower"),
    "evaluations": Metric("Evaluations", digits=0),
    "seconds": Metric("Time, s", digits=2),
}
ARROWS = {
    "lower": "\u00a0↓",
    "higher": "\u00a0↑",
    "one": "\u00a0→\u00a01",
    "": "",
}  # no break before
SYSTEMS = {
    "scorevae": "ScoreVAE",
    "vae": "VAE",
    "prior": "Prior",
    "pixels": "Pixels",
    "train_images": "Training images",
}
ARROW_NOTE = "↓ lower is better, ↑ higher is better, → 1 closest to one is best; bold: the best."


def metric_label(metric: str) -> Label:
    """The head of a metric's row; a metric that is not in METRICS goes by its own name."""
    known = METRICS.get(metric, Metric(metric.replace("_", " ").capitalize()))
    return Label(known.label + ARROWS[known.better], known.meaning)


def number(metric: str, value: Value, reason: str = "", *, best: bool = False) -> Number:
    """A value with its metric's precision; without unit, which the label has."""
    return Number(value, METRICS.get(metric, Metric(metric)).digits, reason=reason, best=best)


def systems_table(
    caption: str,
    numbers: Mapping[str, Values],
    reasons: Mapping[str, str] | None = None,
    note: str = "",
) -> Table:
    """One row for each metric, one column for each system.

    Args:
        caption: of the table.
        numbers: system -> metric -> value, as in ``results/metrics.json``; a metric that only
            some systems have is missing in the others.
        reasons: why a value is None, under "system.metric", "metric" or "system".
        note: below the table.
    """
    known = reasons or {}
    rows: list[list[Cell]] = []
    for metric in dict.fromkeys(m for values in numbers.values() for m in values):
        values = [numbers[system].get(metric) for system in numbers]
        best = _best(metric, values)
        rows.append([metric_label(metric)])
        for system, value in zip(numbers, values, strict=True):
            why = reason_of(known, f"{system}.{metric}", metric, system)
            rows[-1].append(number(metric, value, why, best=value is not None and value in best))
    columns = ["Metric", *(SYSTEMS.get(system, system) for system in numbers)]
    return Table(caption, columns, rows, note)


def records_table(
    caption: str,
    records: Sequence[Mapping[str, str | Value]],
    reasons: Mapping[str, str] | None = None,
    note: str = "",
) -> Table:
    """One row for each record (a setting, an experiment), one column for each key.

    The keys of the first record are the columns; the first one is the head of each row.
    ``reasons`` says under a key why its values are None.
    """
    known = reasons or {}
    names = list(records[0]) if records else []
    rows: list[list[Cell]] = []
    for record in records:
        cells = [(name, record.get(name)) for name in names]
        rows.append(
            [c if isinstance(c, str) else number(n, c, known.get(n, "")) for n, c in cells]
        )
    return Table(caption, [metric_label(name).text for name in names], rows, note)


def _best(metric: str, values: Sequence[Value]) -> set[float | int]:
    """The best of at least two different values; none where a metric has no better."""
    better = METRICS.get(metric, Metric(metric)).better
    finite = {value for value in values if value is not None and math.isfinite(value)}
    if better == "" or len(finite) < 2:
        return set()
    match better:
        case "lower":
            return {min(finite)}
        case "higher":
            return {max(finite)}
        case _:
            return {min(finite, key=lambda value: abs(value - 1))}


def reason_of(reasons: Mapping[str, str], *keys: str) -> str:
    """The reason under the first of the keys that has one; else empty."""
    return next((reasons[key] for key in keys if key in reasons), "")

"""The stage evaluate: the comparison of ScoreVAE with the VAE, in numbers and in pictures."""

import csv
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from scorevae import figures
from scorevae.config import Config, EvaluateConfig
from scorevae.data import Labels, Split
from scorevae.files import replacing
from scorevae.metrics import (
    Judges,
    MetricUnavailable,
    l2_distances,
    summarise,
    train_classifier,
)
from scorevae.model import ScoreVAE, default_device
from scorevae.perceptual import PAPER_NET, LPIPSUnavailable, load_lpips
from scorevae.reconstructions import Reconstructions

Images = Float[Tensor, "batch channel height width"]
Numbers = dict[str, dict[str, float | int | None]]
CURVES = ("prior", "vae", "encoder")
TITLES = {"scorevae": "ScoreVAE", "vae": "VAE"}


def compare(
    originals: Images,
    systems: dict[str, Reconstructions],
    judges: Judges,
    settings: EvaluateConfig,
) -> Numbers:
    """All metrics of every system; one that cannot be had is None."""
    return {
        name: summarise(
            originals, system, active_threshold=settings.active_threshold, judges=judges
        )
        for name, system in systems.items()
    }


def open_judges(config: Config, train: Split, lpips: Path) -> Judges:
    """LPIPS from the folder ``lpips``, and a classifier of the training images.

    A warning on stderr says why one is missing.
    """

    def judge(load: Callable[[], Any]) -> Any:  # noqa: ANN401 (each judge has its own type)
        try:
            return load()
        except (LPIPSUnavailable, MetricUnavailable) as reason:
            print(f"warning: {reason}; reported as null", file=sys.stderr, flush=True)
            return None

    device = default_device()
    net, limit = config.selected.lpips.net, config.evaluate.classifier_images
    return Judges(
        judge(lambda: load_lpips(lpips, net).to(device)),
        judge(lambda: load_lpips(lpips, PAPER_NET).to(device)),
        judge(lambda: train_classifier(train, limit, config.seed)),
    )


def write_metrics(path: Path, numbers: Numbers) -> None:
    """``results/metrics.json``: what DVC compares between experiments.

    A value that is not finite (the PSNR of identical images) is written as null: JSON has no inf.
    """
    plain = {
        name: {k: v if v is None or math.isfinite(v) else None for k, v in values.items()}
        for name, values in numbers.items()
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(plain, indent=2) + "\n")


def write_errors(
    path: Path, originals: Images, systems: dict[str, Reconstructions], labels: Labels | None
) -> None:
    """One row for each test image: its number, class and L2 under every system (CSV)."""
    distances = {name: l2_distances(originals, s.images) for name, s in systems.items()}
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", *(f"{name}_l2" for name in distances)])
        for index in range(len(originals)):
            label = int(labels[index]) if labels is not None and labels.ndim == 1 else ""
            row = [f"{values[index].item():.6f}" for values in distances.values()]
            writer.writerow([index, label, *row])


def table(numbers: Numbers) -> str:
    """The metrics as aligned text, one column for each system."""
    names = list(numbers)
    lines = [f"{'metric':<16}" + "".join(f"{TITLES[name]:>12}" for name in names)]
    for metric in numbers[names[0]]:
        cells = (numbers[name][metric] for name in names)
        lines.append(f"{metric:<16}" + "".join(f"{_cell(value):>12}" for value in cells))
    return "\n".join(lines)


def _cell(value: float | int | None) -> str:
    return "null" if value is None else f"{value:d}" if isinstance(value, int) else f"{value:.4f}"


def draw_figures(
    folder: Path,
    model: ScoreVAE,
    originals: Images,
    systems: dict[str, Reconstructions],
    curves: Path,
    config: Config,
) -> None:
    """Write every figure into ``folder``, all or none."""
    count, seed = config.evaluate.figure_images, config.seed
    rows = [("original", originals[:count])]
    rows += [(TITLES[name], system.images[:count]) for name, system in systems.items()]
    grid = count * min(count, 8)
    guidance = config.reconstruct.guidance
    pairs = min(4, len(originals) // 2)
    lines = model.interpolate(
        originals[:pairs],
        originals[pairs : 2 * pairs],
        config.evaluate.interpolation_steps,
        guidance=guidance,
        seed=seed,
    )
    ends = zip(originals[:pairs], lines, originals[pairs : 2 * pairs], strict=True)
    between = [torch.cat([a[None], line, b[None]]) for a, line, b in ends]
    drawn = {
        "comparison": figures.image_rows(rows, "test images and their reconstructions"),
        "prior_samples": figures.image_grid(
            model.sample_prior(grid, seed=seed), count, "samples of the diffusion prior"
        ),
        "samples": figures.image_grid(
            model.sample(grid, guidance=guidance, seed=seed),
            count,
            "samples of ScoreVAE, z ~ N(0, I)",
        ),
        "interpolations": figures.image_rows(
            [("", row) for row in between],
            "between two test images (outermost): decoded from the line between their z",
        ),
        "training_curves": figures.training_curves(
            {name: curves / f"{name}.csv" for name in CURVES}
        ),
    }
    with replacing(folder) as temporary:
        for name, figure in drawn.items():
            figures.save(figure, temporary / f"{name}.png")


def headline(numbers: Numbers) -> dict[str, float]:
    """The metrics under flat names, as a comparison page wants them; nulls left out."""
    return {
        f"{system}.{metric}": float(value)
        for system, values in numbers.items()
        for metric, value in values.items()
        if value is not None and math.isfinite(value)
    }

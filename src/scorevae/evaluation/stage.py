"""The stage evaluate: the comparison of ScoreVAE with the VAE, in numbers and in pictures."""

import csv
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from scorevae.autoencoders import default_device
from scorevae.config import Config, EvaluateConfig
from scorevae.data.arrays import Split
from scorevae.errors import MetricUnavailable
from scorevae.evaluation import figures
from scorevae.evaluation.lpips import PAPER_NET, LPIPSUnavailable, load_lpips
from scorevae.evaluation.metrics import (
    Judges,
    l2_distances,
    summarise,
    train_classifier,
)
from scorevae.evaluation.part import PARTS, Analysis, Numbers, Subject, analyse
from scorevae.evaluation.report.assembly import CURVES, assemble
from scorevae.evaluation.report.page import write
from scorevae.evaluation.report.provenance import provenance
from scorevae.evaluation.report.sections import cards, sections
from scorevae.reconstructions import Reconstructions
from scorevae.runtime.files import replacing
from scorevae.shapes import Images, Labels

TITLES = {"scorevae": "ScoreVAE", "vae": "VAE"}
COMPARISON, FIGURES = "comparison", "figures"  # steps of the stage before and after PARTS


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


def open_judges(config: Config, train: Split, lpips: Path) -> tuple[Judges, dict[str, str]]:
    """LPIPS from the folder ``lpips``, a classifier of the training images, and what is missing.

    Returns:
        The judges, and for each metric that has none the reason, which goes to stderr too.
    """
    reasons: dict[str, str] = {}

    def judge(metric: str, load: Callable[[], Any]) -> Any:  # noqa: ANN401 (types of their own)
        try:
            return load()
        except (LPIPSUnavailable, MetricUnavailable) as reason:
            reasons[metric] = str(reason)
            warn(str(reason))
            return None

    device = default_device()
    net, limit = config.selected.lpips.net, config.evaluate.classifier_images
    judges = Judges(
        judge("lpips", lambda: load_lpips(lpips, net).to(device)),
        judge("paper_lpips", lambda: load_lpips(lpips, PAPER_NET).to(device)),
        judge("class_agreement", lambda: train_classifier(train, limit, config.seed)),
    )
    return judges, reasons


def warn(reason: str) -> None:
    """Say on stderr why something is reported as null."""
    print(f"warning: {reason}; reported as null", file=sys.stderr, flush=True)


class Outputs(NamedTuple):
    """Where the stage writes."""

    metrics: Path
    reasons: Path
    errors: Path
    tables: Path
    figures: Path
    page: Path

    def artifacts(self) -> list[Path]:
        """What goes with the run's headline into MLflow."""
        return [*sorted(self.figures.glob("*.png")), self.metrics, self.errors, self.page]


def evaluate(
    subject: Subject,
    outputs: Outputs,
    *,
    lpips: Path,
    curves: Path,
    params: Path,
    report_step: Callable[[str], None],
) -> tuple[Numbers, Numbers]:
    """Compare, analyse, and write everything.

    Args:
        subject: what is evaluated.
        outputs: where to write.
        lpips: folder of the trunks.
        curves: folder of the training curves.
        params: the parameter file, for the page's commands.
        report_step: called with COMPARISON, the name of each part of the analysis, and FIGURES.

    Returns:
        The comparison's numbers, and all of them.
    """
    config = subject.config
    report_step(COMPARISON)
    judges, missing = open_judges(config, subject.train, lpips)
    compared = compare(subject.originals, subject.systems, judges, config.evaluate)
    analysis = analyse(subject, report_step)
    numbers = merged(compared, analysis.numbers())
    report_step(FIGURES)
    draw_figures(outputs.figures, subject, analysis, curves)
    write_errors(outputs.errors, subject.originals, subject.systems, subject.test.labels)
    write_tables(outputs.tables, analysis)
    write_reasons(outputs.reasons, missing | analysis.reasons)
    write_metrics(outputs.metrics, numbers)
    page = assemble(
        config,
        compared,
        figures=outputs.figures,
        curves=curves,
        provenance=provenance(config, params),
        images=len(subject.originals),
        reasons=missing,
        cards=cards(numbers),
        sections=sections(analysis, numbers, outputs.figures),
    )
    write(outputs.page, page)
    return compared, numbers


def memory_remedy(config: Config, step: str) -> str:
    """What to lower where a step, named as it was reported, runs out of memory."""
    settings, batch = config.evaluate, f"reconstruct.batch ({config.reconstruct.batch})"
    if step in PARTS:
        _, part = PARTS[step]
        sizes = getattr(settings, part).model_dump().items()
        counts = [f"evaluate.{part}.{key} ({n})" for key, n in sizes if key.endswith("images")]
        keys = [batch, *counts]
    elif step == FIGURES:
        keys = [batch, f"evaluate.figure_images ({settings.figure_images})"]
    else:
        images = f"presets.{config.preset}.test_images"
        keys = [images, f"evaluate.classifier_images ({settings.classifier_images})"]
    return f"in {step}, lower {' or '.join(keys)}"


def merged(compared: Numbers, analysed: Numbers) -> Numbers:
    """The comparison's numbers followed by those of the analysis, for each system."""
    names = dict.fromkeys([*compared, *analysed])
    return {name: {**compared.get(name, {}), **analysed.get(name, {})} for name in names}


def write_reasons(path: Path, reasons: dict[str, str]) -> None:
    """``results/reasons.json``: why a metric, or a whole part of the evaluation, is null."""
    with replacing(path) as temporary:
        text = json.dumps(reasons, indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8", errors="replace")


def write_tables(folder: Path, analysis: Analysis) -> None:
    """One CSV for each table of the analysis, all or none; empty but for its head if not run."""
    with replacing(folder) as temporary:
        temporary.mkdir()
        for name, columns, rows in analysis.tables():
            with (temporary / f"{name}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(rows)


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
    names = [name for name in TITLES if name in numbers]
    lines = [f"{'metric':<16}" + "".join(f"{TITLES[name]:>12}" for name in names)]
    for metric in numbers[names[0]]:
        cells = (numbers[name].get(metric) for name in names)
        lines.append(f"{metric:<16}" + "".join(f"{_cell(value):>12}" for value in cells))
    return "\n".join(lines)


def _cell(value: float | int | None) -> str:
    return "null" if value is None else f"{value:d}" if isinstance(value, int) else f"{value:.4f}"


def draw_figures(folder: Path, subject: Subject, analysis: Analysis, curves: Path) -> None:
    """Write every figure into ``folder``, all or none."""
    config, model, systems = subject.config, subject.model, subject.systems
    count, seed = config.evaluate.figure_images, config.seed
    rows = [("original", subject.originals[:count])]
    rows += [(TITLES[name], system.images[:count]) for name, system in systems.items()]
    grid = count * min(count, 8)
    guidance = config.reconstruct.guidance
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
        "latent_costs": figures.latent_costs(
            {TITLES[name]: system.posterior for name, system in systems.items()}
        ),
        **analysis.figures(),
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

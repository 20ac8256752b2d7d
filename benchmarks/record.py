"""Keep the finished run's metrics, figures and times in docs/<preset>, and print the tables.

A run with variants is kept in docs/<preset>_variants.

    python benchmarks/record.py               # after dvc repro or dvc exp run

The tables are printed as README.md and docs/results.md want them, each below its mark there;
tests/test_readme.py compares them with the recorded metrics.
"""

import csv
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT / "src"))  # this checkout's code

import click

from scorevae.autoencoders.table import SYSTEMS
from scorevae.config import load_config

Run = Mapping[str, Mapping[str, Any]]  # system -> metric -> value, a metrics.json
Column = tuple[str, Run, str]  # head of a column, the run and the system that it shows

# What the README shows of digits, in words for everyone; docs/results.md has the other metrics.
README = {
    "l2": "distance from the original image; 0 is perfect",
    "psnr": "squared error in decibels; higher is better",
    "sharpness": "fine detail compared with the originals; below 1 is blur",
    "rate_nats": "how much the code tells of an image, in nats of 1.44 bits",
    "class_agreement": "share of images that a classifier takes for the same digit as before",
    "linear_probe": "share of images whose digit a linear classifier reads from the code",
}
WITH_VARIANTS = "_variants"  # ends the name of a run that has them
VARIANTS = (
    "l2", "psnr", "sharpness", "spectrum_db", "feature_distance", "reconstruction_fd",
    "l2_of_one_draw", "l2_of_mean", "calibration", "falling_percent", "bits_per_dim",
)  # fmt: skip
BITS = {  # label -> metric, and the standard error to print beside it
    "bound": ("bits_per_dim", "bits_per_dim_error"),
    "its standard error over images": ("bits_per_dim_image_error", ""),
    "reconstruction": ("bits_reconstruction", ""),
    "prior matching": ("bits_prior_matching", ""),
    "diffusion": ("bits_diffusion", ""),
    "of it below t_min": ("bits_below_t_min", ""),
    "rate": ("bits_rate", ""),
    "the bound by Song's theorem 3": ("bits_theorem_3", ""),
    "probability-flow ODE": ("ode_bits_per_dim", "ode_bits_per_dim_error"),
}
ALONE = {  # label -> system, metric: numbers that one system alone has
    "L2 of one draw for a z": ("scorevae", "l2_of_one_draw"),
    "L2 of the mean of the draws": ("scorevae", "l2_of_mean"),
    "error of that mean over the spread": ("scorevae", "calibration"),
    "L2 with another image's z, over that with its own": ("scorevae", "shuffled_ratio"),
    "linear probe on pixels": ("pixels", "linear_probe"),
    "nearest neighbours on pixels": ("pixels", "neighbours"),
    "Fréchet distance of samples, z ~ N(0, I)": ("scorevae", "classifier_fd"),
    "Fréchet distance of the prior's samples": ("prior", "classifier_fd"),
    "Fréchet distance of training images": ("train_images", "classifier_fd"),
}


def cell(value: float | int | None) -> str:
    """Four significant digits; a count as it is."""
    if value is None:
        return "null"
    return f"{value:d}" if isinstance(value, int) else f"{value:#.4g}".removesuffix(".")


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown."""
    lines = [f"| {' | '.join(line)} |" for line in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def readme_table(run: Run) -> str:
    """The README's rows, with what they mean."""
    rows = [
        [f"`{m}`", cell(run["scorevae"][m]), cell(run["vae"][m]), text]
        for m, text in README.items()
    ]
    return table(["metric", "ScoreVAE", "VAE", "what it is"], rows)


def comparison_table(run: Run, left_out: Mapping[str, str]) -> str:
    """Every metric that both systems have, but for those of other tables."""
    alone = {metric for system, metric in ALONE.values() if system == "scorevae"}
    rows = [
        [f"`{m}`", cell(run["scorevae"][m]), cell(value)]
        for m, value in run["vae"].items()
        if m not in alone and m not in left_out
    ]
    return table(["metric", "ScoreVAE", "VAE"], rows)


def variants_table(run: Run) -> str:
    """The variants of a run; what they share with ScoreVAE stands in its own tables."""
    systems = [name for name, row in SYSTEMS.items() if row.variant and name in run]
    rows = [[f"`{m}`", *(cell(run[name][m]) for name in systems)] for m in VARIANTS]
    return table(["metric", *(SYSTEMS[name].title for name in systems)], rows)


def likelihood_table(runs: Mapping[str, Run]) -> str:
    """The bound and its terms, of all presets, in bits per dimension."""
    heads = {"scorevae": "ScoreVAE", "prior": "prior"}
    columns = [(f"{p}, {heads[s]}", run.get(s, {})) for p, run in runs.items() for s in heads]

    def bits(numbers: Mapping[str, Any], metric: str, error: str) -> str:
        if numbers.get(metric) is None:
            return ""
        value = f"{numbers[metric]:.3f}"
        return f"{value} ± {numbers[error]:.3f}" if numbers.get(error) is not None else value

    rows = [
        [label, *(bits(numbers, metric, error) for _, numbers in columns)]
        for label, (metric, error) in BITS.items()
    ]
    return table(["bits per dimension", *(head for head, _ in columns)], rows)


def alone_table(runs: Mapping[str, Run]) -> str:
    """What one system alone has, of all presets."""
    rows = [
        [label, *(cell(run.get(system, {}).get(metric)) for run in runs.values())]
        for label, (system, metric) in ALONE.items()
    ]
    return table(["", *runs], rows)


def tables(runs: Mapping[str, Run]) -> dict[str, dict[str, str]]:
    """File -> mark -> table, from preset -> metrics; the mark stands above it in the file."""
    usual = {p: run for p, run in runs.items() if not p.endswith(WITH_VARIANTS)}
    shown = {p: comparison_table(run, README if p == "digits" else {}) for p, run in usual.items()}
    shown |= {p: variants_table(run) for p, run in runs.items() if p not in usual}
    shared = {"likelihood": likelihood_table(usual), "one system": alone_table(usual)}
    return {
        "README.md": {"digits": readme_table(runs["digits"])},
        "docs/results.md": shown | shared,
    }


def recorded() -> dict[str, Run]:
    """The metrics of every preset that was recorded, digits first."""
    paths = sorted(DOCS.glob("*/metrics.json"), key=lambda p: (p.parent.name != "digits", p))
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def seconds() -> dict[str, tuple[int, float]]:
    """Steps and seconds of every training, from the curves."""
    found: dict[str, tuple[int, float]] = {}
    for name in ("prior", "vae", "encoder", "variants"):
        with (ROOT / f"results/digits/curves/{name}.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                found[row["phase"]] = int(row["step"]), float(row["seconds"])
    return found


@click.command(help=__doc__)
def main() -> None:
    """Copy and print."""
    config = load_config(ROOT / "params.yaml")
    folder = DOCS / (config.preset + (WITH_VARIANTS if config.variants else ""))
    folder.mkdir(exist_ok=True)
    for path in (ROOT / "results/digits/figures").glob("*.png"):
        shutil.copy(path, folder)
    numbers = json.loads((ROOT / "results/digits/metrics.json").read_text())
    trainings = {name: {"steps": n, "seconds": round(s)} for name, (n, s) in seconds().items()}
    record = {**numbers, "trainings": trainings}
    (folder / "metrics.json").write_text(json.dumps(record, indent=2) + "\n")
    for name, marked in tables(recorded()).items():
        for mark, text in marked.items():
            click.echo(f"{name}\n\n<!-- table: {mark} -->\n{text}\n")
    with (ROOT / "results/digits/tables/costs.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            click.echo(f"{row['part']}: {float(row['seconds']):.1f} s")
    for name, (steps, spent) in seconds().items():
        click.echo(f"{name}: {steps} steps, {spent:.0f} s")


if __name__ == "__main__":
    main()

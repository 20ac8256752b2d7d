"""Keep the finished run's metrics, figures and times in docs/<preset>, and print its table.

python benchmarks/record.py               # after dvc repro or dvc exp run
"""

import csv
import json
import shutil

import click
from common import DOCS, ROOT

from scorevae.config import load_config


def seconds() -> dict[str, tuple[int, float]]:
    """Steps and seconds of every training, from the curves."""
    found: dict[str, tuple[int, float]] = {}
    for name in ("prior", "vae", "encoder"):
        with (ROOT / f"results/curves/{name}.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                found[row["phase"]] = int(row["step"]), float(row["seconds"])
    return found


def cell(value: float | int | None) -> str:
    """A metric as the README prints it."""
    return "null" if value is None else f"{value:d}" if isinstance(value, int) else f"{value:.4f}"


@click.command(help=__doc__)
def main() -> None:
    """Copy and print."""
    folder = DOCS / load_config(ROOT / "params.yaml").preset
    folder.mkdir(exist_ok=True)
    for path in (ROOT / "results/figures").glob("*.png"):
        shutil.copy(path, folder)
    numbers = json.loads((ROOT / "results/metrics.json").read_text())
    trainings = {name: {"steps": n, "seconds": round(s)} for name, (n, s) in seconds().items()}
    record = {**numbers, "trainings": trainings}
    (folder / "metrics.json").write_text(json.dumps(record, indent=2) + "\n")
    click.echo("| metric | ScoreVAE | VAE |\n|---|---|---|")
    for metric, value in numbers["vae"].items():
        click.echo(f"| {metric} | {cell(numbers['scorevae'][metric])} | {cell(value)} |")
    click.echo("\n| bits per dimension | ScoreVAE | prior |\n|---|---|---|")
    for metric, value in numbers["scorevae"].items():
        if metric.startswith("bits"):
            click.echo(f"| {metric} | {cell(value)} | {cell(numbers['prior'].get(metric))} |")
    with (ROOT / "results/tables/costs.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            click.echo(f"{row['part']}: {float(row['seconds']):.1f} s")
    for name, (steps, spent) in seconds().items():
        click.echo(f"{name}: {steps} steps, {spent:.0f} s")


if __name__ == "__main__":
    main()

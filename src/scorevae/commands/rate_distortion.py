"""Rate against distortion over β: what the code costs and what it buys, from DVC's experiments.

    dvc exp run --queue -S beta=0.003,0.01,0.03,0.1,0.3 && dvc queue start -j 2
    python -m scorevae.commands.rate_distortion

Rate is the mean KL(q(z|x_0, 0) ‖ N(0, I)) in nats, distortion L2, PSNR or sharpness of the
reconstructions (Alemi et al. 2018, arXiv 1711.00464).
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import click

from scorevae.autoencoders import SYSTEMS
from scorevae.config import load_config
from scorevae.errors import UserError
from scorevae.evaluation import figures
from scorevae.runtime.files import replacing

DISTORTIONS = {"l2": "L2", "psnr": "PSNR, dB", "sharpness": "sharpness"}
FIXED = ("seed", "sde.", "objective.", "reconstruct.", "protocols.")
UNFINISHED = ("Running", "Queued", "Failed")  # DVC shows them with their commit's metrics
Row = Mapping[str, object]


class Point(NamedTuple):
    """One system of one experiment."""

    experiment: str
    system: str
    beta: float
    rate_nats: float
    l2: float
    psnr: float
    sharpness: float


def points(rows: Sequence[Row]) -> list[Point]:
    """The systems of all experiments that differ from the workspace in β alone, by rising β.

    The rows are those of ``dvc.api.exp_show``.

    Raises:
        UserError: there is no workspace among them, or no second β.
    """
    reference = next((row for row in rows if row.get("rev") == "workspace"), None)
    if reference is None:
        raise UserError("rate_distortion: DVC shows no workspace; run it in the repository")
    found: dict[tuple[str, float], Point] = {}
    for row in rows:
        if row.get("State") in UNFINISHED or _settings(row) != _settings(reference):
            continue
        for system in SYSTEMS:
            if point := _point(row, system):  # the workspace first, its commit shows it again
                found.setdefault((system, point.beta), point)
    if len({point.beta for point in found.values()}) < 2:
        raise UserError(
            "rate_distortion: experiments with one β only; run others that differ from params.yaml"
            " in beta alone: dvc exp run --queue -S beta=0.003,0.03,0.1 && dvc queue start"
        )
    return sorted(found.values(), key=lambda point: (point.system, point.beta))


def _settings(row: Row) -> dict[str, str]:
    """Every parameter but β, and but those of presets and parts that change no number here."""
    fixed = (*FIXED, f"presets.{row.get('preset')}.")
    return {k: str(value) for k, value in row.items() if k == "preset" or k.startswith(fixed)}


def _point(row: Row, system: str) -> Point | None:
    keys = ("beta", *(f"{system}.{name}" for name in ("rate_nats", *DISTORTIONS)))
    values = [float(value) for key in keys if isinstance(value := row.get(key), int | float)]
    if len(values) < len(keys):
        return None  # queued, failed, or of a time without these metrics
    return Point(str(row.get("Experiment") or row.get("rev")), system, *values)


def figure(found: Sequence[Point]) -> figures.Figure:
    """Each distortion against rate, a curve for each system, β at its points."""
    drawn, axes = figures.lines(len(DISTORTIONS))
    for axis, (name, label) in zip(axes, DISTORTIONS.items(), strict=True):
        for system, row in SYSTEMS.items():
            own = [point for point in found if point.system == system]
            if not own:  # a variant that none of the experiments trained
                continue
            rates = [point.rate_nats for point in own]
            values = [getattr(point, name) for point in own]
            axis.plot(rates, values, ".-", label=row.title)
            beside = {"fontsize": 6, "textcoords": "offset points", "xytext": (3, 3)}
            for point, rate, value in zip(own, rates, values, strict=True):
                axis.annotate(f"{point.beta:g}", (rate, value), **beside)
        axis.set(xlabel="rate, nats", ylabel=label)
    axes[0].legend(fontsize=8)
    return drawn


def write(folder: Path, found: Sequence[Point]) -> None:
    """``rate_distortion.csv`` and ``.png``."""
    table = folder / "rate_distortion.csv"
    with replacing(table) as temporary, temporary.open("w", newline="") as file:
        csv.writer(file).writerows([Point._fields, *found])
    figures.save(figure(found), folder / "rate_distortion.png")


@click.command(help=__doc__)
@click.option("--params", type=click.Path(path_type=Path), default="params.yaml")
@click.option("--output", type=click.Path(path_type=Path), default="results")
@click.option("--commits", default=1, help="baselines to look for experiments under")
def main(params: Path, output: Path, commits: int) -> None:
    """Read, draw and print."""
    load_config(params)
    from dvc.api import exp_show

    found = points(exp_show(num=commits))
    write(output, found)
    for point in found:
        click.echo(
            f"{point.system:<17} beta {point.beta:<8g} rate {point.rate_nats:9.2f} nats  L2 "
            f"{point.l2:.4f}  PSNR {point.psnr:.2f}  sharpness {point.sharpness:.3f}"
        )


if __name__ == "__main__":
    main()

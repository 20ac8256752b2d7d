"""Rate, distortion and perception over β: what the code costs and buys, from DVC's experiments.

    dvc exp run --queue -S beta=0.003,0.01,0.03,0.1,0.3 && dvc queue start -j 2
    python -m scorevae.commands.rate_distortion

Rate is the mean KL(q(z|x_0, 0) ‖ N(0, I)) in nats (Alemi et al. 2018, arXiv 1711.00464),
distortion the L2 of a draw and of the mean of several, perception sharpness and the Fréchet
distance of reconstructions. Systems are compared at one rate, beside what Gaussian data with the
same moments allow (:mod:`scorevae.evaluation.reference`).
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from scorevae.autoencoders.table import BASELINE, DRAWING, MODEL, SYSTEMS
from scorevae.config import load_config
from scorevae.data.arrays import load_split
from scorevae.errors import UserError
from scorevae.evaluation import figures
from scorevae.evaluation.reference import (
    PERFECT_DRAW,
    Eigenvalues,
    eigenvalues,
    gaussian_curve,
    principal_floor,
)
from scorevae.runtime.files import replacing

FIXED = ("seed", "sde.", "objective.", "reconstruct.", "protocols.")
UNFINISHED = ("Running", "Queued", "Failed")  # DVC shows them with their commit's metrics
SWEEP = "dvc exp run --queue -S beta=0.003,0.03,0.1 && dvc queue start"
Row = Mapping[str, object]


class Point(NamedTuple):
    """One system of one experiment; what experiments before a metric lack is None."""

    experiment: str
    system: str
    beta: float
    rate_nats: float
    l2: float
    psnr: float
    sharpness: float
    l2_of_mean: float | None = None
    reconstruction_fd: float | None = None


NEEDED = ("rate_nats", "l2", "psnr", "sharpness")


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
            f" in beta alone: {SWEEP}"
        )
    return sorted(found.values(), key=lambda point: (point.system, point.beta))


def _settings(row: Row) -> dict[str, str]:
    """Every parameter but β, and but those of presets and parts that change no number here."""
    fixed = (*FIXED, f"presets.{row.get('preset')}.")
    alike = ("preset", "quick")
    return {k: str(value) for k, value in row.items() if k in alike or k.startswith(fixed)}


def _point(row: Row, system: str) -> Point | None:
    def number(key: str) -> float | None:
        # DVC names the file where experiments with several presets have one each
        value = row.get(key, row.get(f"results/{row.get('preset')}/metrics.json:{key}"))
        return float(value) if isinstance(value, int | float) else None

    beta, *needed = number("beta"), *(number(f"{system}.{name}") for name in NEEDED)
    if beta is None or None in needed:
        return None  # queued, failed, or of a time without these metrics
    more = (number(f"{system}.{name}") for name in ("l2_of_mean", "reconstruction_fd"))
    return Point(str(row.get("Experiment") or row.get("rev")), system, beta, *needed, *more)  # type: ignore[arg-type]


def at_rate(own: Sequence[Point], metric: str, rate: float) -> float | None:
    """A metric of one system at a rate, on lines in logarithms; None beyond its points."""
    known = sorted((p.rate_nats, getattr(p, metric)) for p in own if getattr(p, metric))
    if len(known) < 2 or not known[0][0] <= rate <= known[-1][0]:
        return None
    rates, values = np.log(np.array(known)).T
    return float(np.exp(np.interp(np.log(rate), rates, values)))


def shared_rate(found: Sequence[Point]) -> float:
    """The rate in the middle (in logarithms) of those that model and baseline both reach.

    Raises:
        UserError: they reach none in common.
    """
    rates = {name: [p.rate_nats for p in found if p.system == name] for name in (MODEL, BASELINE)}
    low, high = max(map(min, rates.values())), min(map(max, rates.values()))
    if low > high or low <= 0:
        spans = " and ".join(
            f"{SYSTEMS[name].title} {min(own):.1f} to {max(own):.1f} nats"
            for name, own in rates.items()
        )
        raise UserError(
            f"rate_distortion: the rates do not overlap ({spans}); run more experiments, with a "
            f"higher beta for the dearer and a lower one for the cheaper system: {SWEEP}"
        )
    return float(np.sqrt(low * high))


def at_one_rate(found: Sequence[Point], rate: float) -> list[str]:
    """What each system is worth at one rate, its L2 over the baseline's."""
    lines = [f"at {rate:.1f} nats (a perfect draw has {PERFECT_DRAW:.2f} times the L2 of a mean):"]
    own = {name: [p for p in found if p.system == name] for name in SYSTEMS}
    reference = at_rate(own[BASELINE], "l2", rate)
    for name, system in SYSTEMS.items():
        if (l2 := at_rate(own[name], "l2", rate)) is None or reference is None:
            continue
        mean, sharp = (at_rate(own[name], key, rate) for key in ("l2_of_mean", "sharpness"))
        line = f"  {system.title:<18} L2 {l2:.4f} ({l2 / reference:.2f} times the baseline's)"
        if name in DRAWING and mean is not None:  # else z is all that is drawn
            line += f"  mean of draws {mean:.4f} ({mean / reference:.2f})"
        lines.append(line + f"  sharpness {sharp:.3f}")
    return lines


def figure(found: Sequence[Point], variances: Eigenvalues, latent: int) -> figures.Figure:
    """L2 and sharpness against rate, Fréchet distance against L2; β at the points."""
    plane, axes = figures.lines(3)
    for name, row in SYSTEMS.items():
        own = [point for point in found if point.system == name]
        if own:
            drawn = ", a draw" if name in DRAWING else ""
            _curve(axes[0], own, "rate_nats", "l2", row.title + drawn)
            _curve(axes[1], own, "rate_nats", "sharpness", row.title)
            _curve(axes[2], own, "l2", "reconstruction_fd", row.title)
    for name, row in SYSTEMS.items():
        known = [p for p in found if p.system == name and p.l2_of_mean is not None]
        if known and name != BASELINE:
            rates, means = [p.rate_nats for p in known], [p.l2_of_mean for p in known]
            axes[0].plot(rates, means, ":", label=f"{row.title}, mean of draws")
    gaussian, floor = gaussian_curve(variances), principal_floor(variances, latent)
    inside = gaussian.rate_nats <= 1.1 * max(point.rate_nats for point in found)
    axes[0].plot(*(part[inside] for part in gaussian), "k-", linewidth=0.7, label="Gaussian R(D)")
    if floor > 0:
        axes[0].axhline(floor, color="grey", linewidth=0.7, label=f"PCA of {latent}")
    axes[0].set(xlabel="rate, nats", ylabel="L2", yscale="log")
    figures.logarithmic(axes[0].yaxis)
    axes[1].set(xlabel="rate, nats", ylabel="sharpness")
    axes[2].set(xlabel="L2", ylabel="Fréchet distance of reconstructions")
    for axis in axes:
        axis.legend(fontsize=7)
    return plane


def _curve(axis: figures.Axes, own: Sequence[Point], x: str, y: str, label: str) -> None:
    known = [(getattr(p, x), getattr(p, y), p.beta) for p in own if getattr(p, y) is not None]
    axis.plot([a for a, _, _ in known], [b for _, b, _ in known], ".-", label=label)
    for a, b, beta in known:
        axis.annotate(f"{beta:g}", (a, b), (3, 3), textcoords="offset points", fontsize=6)


def write(folder: Path, found: Sequence[Point], variances: Eigenvalues, latent: int) -> None:
    """``rate_distortion.csv`` and ``.png``."""
    table = folder / "rate_distortion.csv"
    with replacing(table) as temporary, temporary.open("w", newline="") as file:
        csv.writer(file).writerows([Point._fields, *found])
    figures.save(figure(found, variances, latent), folder / "rate_distortion.png")


@click.command(help=__doc__)
@click.option("--params", type=click.Path(path_type=Path), default="params.yaml")
@click.option("--data", type=click.Path(path_type=Path), help="of download; data/<preset>")
@click.option("--output", type=click.Path(path_type=Path), help="folder; results/<preset>")
@click.option("--commits", default=1, help="baselines to look for experiments under")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="nats to compare at; the middle of what model and baseline both reach",
)
def main(
    params: Path, data: Path | None, output: Path | None, commits: int, rate: float | None
) -> None:
    """Read, draw and print."""
    config = load_config(params)
    folder = data or Path("data") / config.preset
    images = load_split(folder, "train", config.selected.data.image).images
    from dvc.api import exp_show

    found = points(exp_show(num=commits))
    write(
        output or Path("results") / config.preset,
        found,
        eigenvalues(images),
        config.selected.latent,
    )
    for point in found:
        click.echo(
            f"{point.system:<17} beta {point.beta:<8g} rate {point.rate_nats:9.2f} nats  L2 "
            f"{point.l2:.4f}  PSNR {point.psnr:.2f}  sharpness {point.sharpness:.3f}"
        )
    click.echo("\n".join(at_one_rate(found, rate or shared_rate(found))))


if __name__ == "__main__":
    main()

"""Rate, distortion and perception over β: what the code costs and buys, from DVC's experiments.

    dvc exp run --queue -S beta=0.003,0.01,0.03,0.1,0.3 && dvc queue start -j 2
    python -m scorevae.commands.rate_distortion

Rate is the mean KL(q(z|x_0, 0) ‖ N(0, I)) in nats (Alemi et al. 2018, arXiv 1711.00464),
distortion the L2 of a draw and of the mean of several, perception sharpness and the Fréchet
distance of reconstructions. Systems are compared at one rate, beside what Gaussian data with the
same moments allow (:mod:`scorevae.evaluation.reference`).

The rate is what a sample of q(z|x) costs; its mean tells more, the more the wider q is. So L2 is
compared twice: of the protocol's z (most often the mean), and of a sample of z, for all systems.
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
    l2: float  # of the protocol's z
    psnr: float
    sharpness: float
    l2_of_one_draw: float | None = None  # of a sample of z, with τ = 1
    l2_of_mean: float | None = None  # of several such draws
    reconstruction_fd: float | None = None


NEEDED = ("rate_nats", "l2", "psnr", "sharpness")
LATER = ("l2_of_one_draw", "l2_of_mean", "reconstruction_fd")


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
    more = (number(f"{system}.{name}") for name in LATER)
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
    """What each system is worth at one rate, beside the baseline from the same kind of z."""
    lines = [f"at {rate:.1f} nats (a perfect draw has {PERFECT_DRAW:.2f} times the L2 of a mean):"]
    own = {name: [p for p in found if p.system == name] for name in SYSTEMS}

    def beside(name: str, metric: str, reference: str, label: str) -> str:
        value = at_rate(own[name], metric, rate)
        theirs = at_rate(own[BASELINE], reference, rate)
        if value is None or theirs is None:
            return ""
        return f"  {label} {value:.4f} ({value / theirs:.2f} times the baseline's)"

    for name, system in SYSTEMS.items():
        if not (line := beside(name, "l2", "l2", "L2")):
            continue
        line = f"  {system.title:<18}{line[1:]}"
        line += f"  sharpness {at_rate(own[name], 'sharpness', rate):.3f}"
        line += beside(name, "l2_of_one_draw", "l2_of_one_draw", "of a sample of z")
        if name in DRAWING:  # else z is all that is drawn
            line += beside(name, "l2_of_mean", "l2_of_one_draw", "mean of its draws")
        lines.append(line)
    return lines


def figure(found: Sequence[Point], variances: Eigenvalues, latent: int) -> figures.Figure:
    """L2 and sharpness against rate, Fréchet distance against L2; β at the points."""
    plane, axes = figures.lines(3)
    for index, (name, row) in enumerate(SYSTEMS.items()):
        if own := [point for point in found if point.system == name]:
            colour = f"C{index}"
            _curve(axes[0], own, "rate_nats", "l2", row.title, colour)
            _curve(axes[1], own, "rate_nats", "sharpness", row.title, colour)
            _curve(axes[2], own, "l2", "reconstruction_fd", row.title, colour)
            _sampled(
                axes[0], own, "l2_of_one_draw", f"{row.title}, of a sample of z", colour, "--"
            )
            if name in DRAWING:
                label = f"{row.title}, mean of its draws"
                _sampled(axes[0], own, "l2_of_mean", label, colour, ":")
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


def _curve(
    axis: figures.Axes, own: Sequence[Point], x: str, y: str, label: str, colour: str
) -> None:
    known = [(getattr(p, x), getattr(p, y), p.beta) for p in own if getattr(p, y) is not None]
    axis.plot([a for a, _, _ in known], [b for _, b, _ in known], ".-", label=label, color=colour)
    for a, b, beta in known:
        axis.annotate(f"{beta:g}", (a, b), (3, 3), textcoords="offset points", fontsize=6)


def _sampled(
    axis: figures.Axes, own: Sequence[Point], metric: str, label: str, colour: str, style: str
) -> None:
    if known := [(p.rate_nats, getattr(p, metric)) for p in own if getattr(p, metric) is not None]:
        rates, values = zip(*known, strict=True)
        axis.plot(rates, values, style, label=label, color=colour)


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

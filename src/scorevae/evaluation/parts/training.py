"""What the trainings cost and where they ended, out of their curve files."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt

from scorevae.errors import Unavailable
from scorevae.evaluation.figures import Figure, logarithmic
from scorevae.evaluation.part import Caption, Found, Part, Subject
from scorevae.evaluation.report.page import Cell, Label, Number, Table

CURVES = ("prior", "vae", "encoder")  # files in the folder of curves, and panels
VARIANTS = "variants"  # one more, where a variant is switched on
PHASES = {
    "prior": Label("Prior", "diffusion U-Net"),
    "vae": Label("VAE", "the baseline"),
    "warm_start": Label("Encoder, warm start", "regression on the VAE's encoder"),
    "objective": Label("Encoder, objective", "arXiv 2304.12141 §3.5"),
    "corrector": Label("Corrector", "of ScoreVAE+, prior and encoder frozen"),
    "diffusion_decoder": Label("Diffusion decoder", "encoder and conditional U-Net"),
}
FINISHED = 2.0  # percent for each doubling of the steps: a training that falls by less has ended


class Phase(NamedTuple):
    """One training, out of its curve file; losses with their steps."""

    name: str
    steps: int
    seconds: float  # from its own start
    loss: list[tuple[int, float]]
    test_loss: list[tuple[int, float]]
    falling: float | None  # percent for each doubling of the steps, at the end


def compute(subject: Subject) -> Found:
    """A table of all trainings and their curves."""
    curves = read_curves(subject)
    phases = [phase for trainings in curves.values() for phase in trainings]
    return Found(figures={"training_curves": draw(curves)}, page=[table(phases)])


def still_falling(subject: Subject) -> dict[str, float]:
    """By phase, how fast its test loss fell at its end, where that was recorded.

    Raises:
        Unavailable: as :func:`read_curve`.
    """
    phases = (phase for trainings in read_curves(subject).values() for phase in trainings)
    return {phase.name: phase.falling for phase in phases if phase.falling is not None}


def read_curves(subject: Subject) -> dict[str, list[Phase]]:
    """The curve files of the run; raises as :func:`read_curve`."""
    names = (*CURVES, VARIANTS) if subject.config.variants else CURVES
    return {name: read_curve(subject.curves / f"{name}.csv") for name in names}


def read_curve(path: Path) -> list[Phase]:
    """The trainings that a curve file records.

    Raises:
        Unavailable: it is missing, a column is, or a value is no number.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            records = list(csv.DictReader(file))
        names = dict.fromkeys(row["phase"] for row in records)
        return [_phase(name, [row for row in records if row["phase"] == name]) for name in names]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise Unavailable(
            f"{path}: not a training curve ({type(error).__name__}: {error}); run the stage that "
            "trains it again"
        ) from None


def _phase(name: str, rows: Sequence[Mapping[str, str]]) -> Phase:
    loss, test_loss, falling = (
        [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]
        for column in ("loss", "test_loss", "falling")
    )
    seconds = max(float(row["seconds"]) for row in rows)
    steps = max(int(row["step"]) for row in rows)
    return Phase(name, steps, seconds, loss, test_loss, falling[-1][1] if falling else None)


def table(phases: Sequence[Phase]) -> Table:
    """Steps, time and final loss of every training."""
    total = sum(phase.seconds for phase in phases)
    columns = ["Training", "Steps", "Time, s", "ms per step", "Loss", "Test loss", "Falling, %"]
    note = (
        f"{duration(total)} of training in all, validation included. Losses of different rows are "
        "different quantities. Falling: by how much of itself the test loss still fell for each "
        f"doubling of the steps, over the last fifth of them; under {FINISHED:g} % counts as "
        "finished."
    )
    return Table("Trainings", columns, [_row(phase) for phase in phases], note)


def _row(phase: Phase) -> list[Cell]:
    head = PHASES.get(phase.name, Label(phase.name.replace("_", " ")))
    each = 1000 * phase.seconds / phase.steps if phase.steps else None
    last = (found[-1][1] if found else None for found in (phase.loss, phase.test_loss))
    losses = (Number(loss, reason="not recorded") for loss in last)
    spent = Number(phase.steps), Number(phase.seconds, 1), Number(each, 1, reason="no steps")
    return [head, *spent, *losses, Number(phase.falling, 1, reason="validated once")]


def duration(seconds: float) -> str:
    """Seconds as people say them: "42 s", "5 min 20 s", "3 h 7 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def draw(curves: Mapping[str, Sequence[Phase]]) -> Figure:
    """One panel for each curve file: the loss against steps."""
    figure, axes = plt.subplots(1, len(curves), figsize=(4 * len(curves), 3), squeeze=False)
    for axis, (name, phases) in zip(axes[0], curves.items(), strict=True):
        for phase in phases:
            steps = [step for step, _ in phase.loss]
            axis.plot(steps, [loss for _, loss in phase.loss], label=phase.name)
        axis.set(title=name, xlabel="step", ylabel="loss", yscale="log")
        logarithmic(axis.yaxis)
        if phases:  # a pretrained prior has none
            axis.legend(fontsize=8)
    figure.tight_layout()
    return figure


PART = Part(
    name="training",
    title="Training",
    text="The last record of each training; the figure shows the loss against steps.",
    compute=compute,
    figures={
        "training_curves": Caption(
            "Training loss against steps.",
            "One panel for each training: its loss, falling with the steps, on a logarithmic "
            "axis.",
        )
    },
)

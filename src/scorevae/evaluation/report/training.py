"""What training and evaluation cost, out of the curve files."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from scorevae.errors import UserError
from scorevae.evaluation.report.page import Cell, FigureFile, Label, Number, Section, Table, Values


class Phase(NamedTuple):
    """The end of one training, out of its curve file."""

    name: str
    steps: int
    seconds: float
    loss: float | None
    test_loss: float | None


PHASES = {
    "prior": Label("Prior", "diffusion U-Net"),
    "vae": Label("VAE", "the baseline"),
    "warm_start": Label("Encoder, warm start", "regression on the VAE's encoder"),
    "objective": Label("Encoder, objective", "arXiv 2304.12141 §3.5"),
}


def read_phases(path: Path) -> list[Phase]:
    """The trainings that a curve file records; ``seconds`` counts from the start of each.

    Raises:
        UserError: a column is missing or a value is no number.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        return [_phase(name, rows) for name in dict.fromkeys(row["phase"] for row in rows)]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: not a training curve ({type(error).__name__}: {error}); run the stage that "
            "trains it again"
        ) from None


def _phase(name: str, rows: Sequence[Mapping[str, str]]) -> Phase:
    own = [row for row in rows if row["phase"] == name]

    def last(column: str) -> float | None:
        found = [row[column] for row in own if row.get(column)]
        return float(found[-1]) if found else None

    steps = max(int(row["step"]) for row in own)
    seconds = max(float(row["seconds"]) for row in own)
    return Phase(name, steps, seconds, last("loss"), last("test_loss"))


def training(curves: Mapping[str, Path], *, figures: Sequence[FigureFile] = ()) -> Section:
    """Steps, time and final loss of every training, out of its curve file."""
    rows: list[list[Cell]] = []
    total = 0.0
    for name, path in curves.items():
        if not path.is_file():
            missing = Number(None, reason=f"there is no curve file {path.name}")
            rows.append([PHASES.get(name, Label(name)), *[missing] * 5])
            continue
        for phase in read_phases(path):
            total += phase.seconds
            rows.append(_phase_row(phase))
    columns = ["Training", "Steps", "Time, s", "ms per step", "Loss", "Test loss"]
    note = f"{duration(total)} of training in all, validation included. Losses of different rows "
    note += "are different quantities."
    text = "The last record of each training; the figure shows the loss against steps."
    return Section("Training", text, [Table("Trainings", columns, rows, note)], figures)


def _phase_row(phase: Phase) -> list[Cell]:
    each = 1000 * phase.seconds / phase.steps if phase.steps else None
    return [
        PHASES.get(phase.name, Label(phase.name.replace("_", " "))),
        Number(phase.steps),
        Number(phase.seconds, 1),
        Number(each, 1, reason="no steps"),
        Number(phase.loss, reason="not recorded"),
        Number(phase.test_loss, reason="not recorded"),
    ]


def duration(seconds: float) -> str:
    """Seconds as people say them: "42 s", "5 min 20 s", "3 h 7 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def timings(seconds: Values, reasons: Mapping[str, str] | None = None) -> Table:
    """What each part of the evaluation cost."""
    rows: list[list[Cell]] = [
        [Label(part.replace("_", " ")), Number(value, 1, reason=(reasons or {}).get(part, ""))]
        for part, value in seconds.items()
    ]
    return Table("Parts of the evaluation", ["Part", "Time, s"], rows)

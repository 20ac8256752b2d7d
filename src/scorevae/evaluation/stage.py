"""The stage evaluate: every part that is switched on, and the files that hold what it found."""

import csv
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from scorevae.autoencoders.table import SYSTEMS
from scorevae.config import Config
from scorevae.errors import Unavailable, in_words
from scorevae.evaluation import figures
from scorevae.evaluation.metrics import l2_distances
from scorevae.evaluation.part import Found, Numbers, Part, Subject
from scorevae.evaluation.parts import PARTS
from scorevae.evaluation.report.assembly import assemble
from scorevae.evaluation.report.page import write
from scorevae.evaluation.report.provenance import provenance
from scorevae.evaluation.report.tables import Rows
from scorevae.runtime.files import replacing
from scorevae.runtime.memory import explaining_memory

FILES = "figures and report"  # the last step, after the parts
Report = Callable[[str], None]


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


@dataclass
class Analysis:
    """What all parts found, put together."""

    config: Config
    parts: Sequence[Part]
    found: dict[str, Found] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)  # part -> why it is not there
    seconds: dict[str, float] = field(default_factory=dict)
    processes: int = 1  # that took them

    def numbers(self) -> Numbers:
        """By system and metric; null where a part that is switched on could not be had."""
        merged: Numbers = {}
        for part in self.parts:
            found = self.found.get(part.name)
            nothing = part.nothing(self.config) if part.name in self.unavailable else {}
            for system, values in (found.numbers if found else nothing).items():
                merged.setdefault(system, {}).update(values)
        return merged

    def reasons(self) -> dict[str, str]:
        """Why a metric, or a whole part, is null."""
        by_metric = [found.reasons for found in self.found.values()]
        return {k: v for reasons in [*by_metric, self.unavailable] for k, v in reasons.items()}

    def tables(self) -> Iterator[tuple[str, tuple[str, ...], Rows]]:
        """Name, columns and rows of every table; no rows where the part did not run."""
        rows = {k: v for found in self.found.values() for k, v in found.tables.items()}
        for part in self.parts:
            for name, columns in part.tables.items():
                own = rows.get(name, [])  # may have further columns, of the systems of the run
                yield (
                    name,
                    tuple(dict.fromkeys([*columns.names, *(k for r in own for k in r)])),
                    own,
                )
        count = self.processes
        costs: Rows = [
            {"part": name, "seconds": seconds, "processes": count}
            for name, seconds in self.seconds.items()
        ]
        yield "costs", ("part", "seconds", "processes"), costs

    def figures(self) -> dict[str, figures.Figure]:
        """Every figure by its name."""
        return {k: v for found in self.found.values() for k, v in found.figures.items()}


def evaluate(
    subject: Subject,
    outputs: Outputs,
    *,
    params: Path,
    report_step: Report,
    parts: Sequence[Part] = PARTS,
) -> Numbers:
    """Run the parts, write everything, return the numbers of ``metrics.json``.

    Of a team one process writes. ``params`` is the parameter file, for the page's commands;
    ``report_step`` is called with the name of each part, and at last with FILES.
    """
    analysis = analyse(subject, parts, report_step)
    numbers = analysis.numbers()
    if not subject.team.writes:
        return numbers
    report_step(FILES)
    with replacing(outputs.figures) as temporary:
        for name, figure in analysis.figures().items():
            figures.save(figure, temporary / f"{name}.png")
    write_errors(outputs.errors, subject)
    write_tables(outputs.tables, analysis)
    write_json(outputs.reasons, analysis.reasons())
    write_metrics(outputs.metrics, numbers)
    page = assemble(
        subject.config,
        [(part, analysis.found.get(part.name)) for part in parts],
        analysis.unavailable,
        analysis.seconds,
        figures=outputs.figures,
        provenance=provenance(subject.config, params),
        images=len(subject.originals),
        processes=subject.team.count,
    )
    write(outputs.page, page)
    return numbers


def analyse(subject: Subject, parts: Sequence[Part], report: Report) -> Analysis:
    """Run the parts that are switched on, one after the other.

    What a part raises, in any process of a team, makes that part null, with the reason. Only the
    first one, the comparison that all others stand beside, ends the evaluation.

    Raises:
        UserError: the first part's: what it compares is missing or foreign, or memory ran out.
    """
    result = Analysis(subject.config, parts, processes=subject.team.count)
    for part in parts:
        if not part.is_on(subject.config):
            continue
        report(part.name)
        started = time.perf_counter()
        try:
            remedy = memory_remedy(subject.config, part.name, parts)
            with subject.team.agreeing(), explaining_memory(remedy):
                found = part.compute(subject)
            result.found[part.name] = found
        except Exception as error:  # noqa: BLE001 (whatever it is: a finished run is not lost)
            if part is parts[0] and not isinstance(error, Unavailable):
                raise
            result.unavailable[part.name] = why = in_words(error)
            report(f"{part.name} is null: {why}")
        result.seconds[part.name] = time.perf_counter() - started
    return result


def memory_remedy(config: Config, step: str, parts: Sequence[Part] = PARTS) -> str:
    """What to lower where a step, named as it was reported, runs out of memory."""
    keys = [f"reconstruct.batch ({config.reconstruct.batch})"]
    part = next((part for part in parts if part.name == step), None)
    if part is not None and (settings := part.settings_of(config)) is not None:
        counts = settings.model_dump().items()
        keys += [f"evaluate.{part.settings}.{k} ({n})" for k, n in counts if k.endswith("images")]
    else:
        keys.append(f"presets.{config.preset}.test_images")
        others = ("classifier_images", "figure_images")
        keys += [f"evaluate.{key} ({getattr(config.evaluate, key)})" for key in others]
    return f"in {step}, lower {' or '.join(keys)}"


def write_json(path: Path, tree: dict[str, Any]) -> None:
    """Write plain values; of the name of a file that is not UTF-8 a question mark remains."""
    with replacing(path) as temporary:
        text = json.dumps(tree, indent=2, ensure_ascii=False) + "\n"
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
    """``metrics.json``: what DVC compares between experiments.

    A value that is not finite (the PSNR of identical images) is written as null: JSON has no inf.
    """
    plain = {
        name: {k: v if v is None or math.isfinite(v) else None for k, v in values.items()}
        for name, values in numbers.items()
    }
    write_json(path, plain)


def write_errors(path: Path, subject: Subject) -> None:
    """One row for each test image: its number, class and L2 under every system (CSV)."""
    originals, labels = subject.originals, subject.test.labels
    distances = {n: l2_distances(originals, s.images) for n, s in subject.reconstructed.items()}
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", *(f"{name}_l2" for name in distances)])
        for index in range(len(originals)):
            label = int(labels[index]) if labels is not None and labels.ndim == 1 else ""
            row = [f"{values[index].item():.6f}" for values in distances.values()]
            writer.writerow([index, label, *row])


def table(numbers: Numbers) -> str:
    """The comparison as aligned text, one column for each system."""
    names = [name for name in SYSTEMS if name in numbers]
    widths = [max(12, len(SYSTEMS[name].title) + 2) for name in names]

    def line(head: str, cells: Iterable[str]) -> str:
        aligned = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        return f"{head:<16}{''.join(aligned)}"

    lines = [line("metric", (SYSTEMS[name].title for name in names))]
    for metric in PARTS[0].metrics:
        lines.append(line(metric, (_cell(numbers[name].get(metric)) for name in names)))
    return "\n".join(lines)


def _cell(value: float | int | None) -> str:
    return "null" if value is None else f"{value:d}" if isinstance(value, int) else f"{value:.4f}"


def headline(numbers: Numbers) -> dict[str, float]:
    """The metrics under flat names, as a comparison page wants them; nulls left out."""
    return {
        f"{system}.{metric}": float(value)
        for system, values in numbers.items()
        for metric, value in values.items()
        if value is not None and math.isfinite(value)
    }

"""``python -m scorevae.commands.sync``: record afterwards what MLflow missed.

Reads the files that the stages left in results/ and completes the runs that they would have made.
What is recorded already is recognised by metric, step and value, so that a second call adds
nothing, and a stage whose server died in mid-training keeps its run.
"""

import csv
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from scorevae.commands.dvc_lock import check_parameters
from scorevae.config import Config, PresetConfig, flatten, load_config
from scorevae.errors import UserError
from scorevae.runtime.runs import Execution, Point, load_mlflow, one_line, server_errors
from scorevae.runtime.tracking import FIGURES

if TYPE_CHECKING:
    from mlflow.entities import Run

PATH = click.Path(path_type=Path)
Identities = set[tuple[str, int, float]]  # of points, see identities()
CURVES = {"train_prior": "prior", "train_vae_baseline": "vae", "train_encoder": "encoder"}
SYNCED = {"scorevae.synced": "true"}  # marks a run that was recorded afterwards
NAME_HELP = (
    "the experiment or run, as DVC and MLflow show it; default: DVC_EXP_NAME, else the run of "
    "these parameters that holds these results, else a new one"
)
LARGEST = sys.float_info.max  # what MLflow stores for infinity


@dataclass(frozen=True)
class Curve:
    """The training curve of one stage, as the points of its run."""

    stage: str
    path: Path
    points: list[Point]


@dataclass(frozen=True)
class Headline:
    """What the stage evaluate shows on the parent."""

    numbers: dict[str, float]
    files: list[Path]


@click.command(help=__doc__)
@click.option("--params", type=PATH, default=Path("params.yaml"), show_default=True)
@click.option("--results", type=PATH, default=Path("results"), show_default=True)
@click.option("--name", help=NAME_HELP)
@click.option("--dry-run", is_flag=True, help="say what is missing, record nothing")
def main(params: Path, results: Path, name: str | None, dry_run: bool) -> None:
    """Record in MLflow what is in the results and not there yet."""
    config = load_config(params)
    check_parameters(results, params)
    curves, headline, absent = read_results(results, config)
    for reason in absent:
        click.echo(f"left out: {reason}")
    if not curves and headline is None:
        raise UserError(
            f"{results}: nothing to record; run `dvc repro`, or name its folder with --results"
        )
    load_mlflow()
    execution = Execution(config, name)
    with server_errors(execution), execution.lock():
        completion = _Completion(execution, dry_run=dry_run)
        lines = completion.run(curves, headline)
    for line in lines:
        click.echo(f"{'would add' if dry_run else 'added'}: {line}")
    where = f"run {completion.name} at {one_line(execution.uri)}"
    click.echo(where if lines else f"{where}: everything is recorded, nothing to add")


@dataclass(frozen=True)
class _Parent:
    """A run that is there, and what it holds of the results."""

    run: "Run"
    children: dict[str, "tuple[Run, Identities]"]  # by stage: the one that holds most, and what
    shows: bool  # all metrics of the headline
    contradicts: bool  # it has other numbers in the place of a curve or of the headline

    @property
    def holds(self) -> int:
        """How many points."""
        return sum(len(recorded) for _, recorded in self.children.values())


class _Completion:
    """Adds what is missing to the runs of one execution; each step tells in a line what it did.

    Results are committed after they were made. Runs of the same parameters that were begun at
    another commit, or under a name, therefore count too where they hold some of these results.
    """

    def __init__(self, execution: Execution, *, dry_run: bool) -> None:
        self._execution = execution
        self._dry_run = dry_run
        self._lines: list[str] = []
        self._parent = ""  # the run of what no other run holds; none yet
        self.name = execution.key  # its name

    def run(self, curves: list[Curve], headline: Headline | None) -> list[str]:
        """Complete the parent's parameters, each stage's run, then what ends the parent."""
        own, others = self._look(curves, headline)
        home = own or _fullest(others)
        if home is not None:
            self._complete(home.run)
        for curve in curves:
            self._curve(curve, _child(curve.stage, home, others))
        if headline is not None:
            shown = self._shown(own, others) or home
            self._headline(headline, None if shown is None else shown.run)
        return self._lines

    def _look(
        self, curves: list[Curve], headline: Headline | None
    ) -> tuple[_Parent | None, list[_Parent]]:
        """The run of this execution, and the similar ones unless a name was asked for."""
        execution = self._execution
        if self._dry_run and execution.database_is_absent():
            return None, []
        own = execution.find_parent(any_parameters=True)
        if own is not None:
            self._check_parameters(own)
        similar = [] if execution.name else execution.similar_parents()
        others = [run for run in similar if own is None or run.info.run_id != own.info.run_id]
        return (
            None if own is None else self._look_at(own, curves, headline),
            [self._look_at(run, curves, headline) for run in others],
        )

    def _check_parameters(self, found: "Run") -> None:
        other = self._execution.other_parameters(found)
        if other:
            there = ", ".join(f"{name}: {found.data.params[name]}" for name in other[:3])
            raise UserError(
                f"the run {self._execution.key} in MLflow has other parameters than these "
                f"results ({there}); check out what belongs to it, or name another with --name"
            )

    def _look_at(self, run: "Run", curves: list[Curve], headline: Headline | None) -> _Parent:
        execution = self._execution
        children, contradicts = {}, False
        for curve in curves:
            found = [
                (child, identities(execution.history(child)))
                for child in execution.children(run.info.run_id, curve.stage)
            ]
            best = closest(found, identities(curve.points))
            if best is not None:
                children[curve.stage] = best
            recorded = any(points for _, points in found)
            contradicts |= recorded and (best is None or not best[1])
        numbers = {} if headline is None else headline.numbers
        there = run.data.metrics
        shows = bool(numbers) and all(there.get(name) == x for name, x in numbers.items())
        contradicts |= bool(numbers and there) and not shows
        return _Parent(run, children, shows, contradicts)

    def _shown(self, own: _Parent | None, others: list[_Parent]) -> _Parent | None:
        """The run of the evaluation: one that began here, else one that agrees."""
        if own is not None and (
            own.run.data.metrics or self._execution.children(own.run.info.run_id, "evaluate")
        ):
            return own
        return next((other for other in others if other.shows and not other.contradicts), None)

    def _complete(self, run: "Run") -> None:
        """Continue a parent, with all its parameters."""
        self._parent, self.name = str(run.info.run_id), str(run.info.run_name)
        lacking = len(self._execution.parameters.keys() - run.data.params.keys())
        if lacking:
            self._lines.append(f"{lacking} parameters")
        if not self._dry_run:
            self._execution.complete_parameters(self._parent, run)

    def _begin(self) -> str:
        """The parent, a new one if none is there; in a dry run its name."""
        execution = self._execution
        if not self._parent:
            self._lines.append(f"{len(execution.parameters)} parameters")
            self._parent = execution.key if self._dry_run else execution.create_parent()
            if not self._dry_run:
                execution.complete_parameters(self._parent, None)
        return self._parent

    def _curve(self, curve: Curve, found: "tuple[Run, Identities] | None") -> None:
        execution = self._execution
        run, recorded = found if found is not None else (None, set())
        missing = [p for p in curve.points if identities([p]).isdisjoint(recorded)]
        whole = run is not None and execution.holds(run.info.run_id, curve.path, None)
        if run is not None and whole and not missing and run.info.status == "FINISHED":
            return
        parent = "" if run is not None else self._begin()
        of = f"to run {run.info.run_id}" if run is not None else "in a new run"
        self._lines.append(f"{curve.stage}: {len(missing)} of {len(curve.points)} points {of}")
        if self._dry_run:
            return
        times = [time for _, _, time, _ in curve.points]
        identity = (
            run.info.run_id
            if run is not None
            else execution.create_child(parent, curve.stage, SYNCED, min(times))
        )
        execution.points(identity, missing)
        if not whole:
            execution.upload(identity, curve.path, None)
        execution.client.set_terminated(identity, "FINISHED", max(times))

    def _headline(self, headline: Headline, run: "Run | None") -> None:
        execution = self._execution
        recorded = {} if run is None else run.data.metrics
        numbers = {k: v for k, v in headline.numbers.items() if recorded.get(k) != v}
        files = [
            path
            for path in headline.files
            if run is None or not execution.holds(run.info.run_id, path, FIGURES)
        ]
        if run is not None and run.info.status == "FINISHED" and not numbers and not files:
            return
        parent = self._begin() if run is None else str(run.info.run_id)
        self._lines.append(f"headline: {len(numbers)} metrics and {len(files)} files")
        if self._dry_run:
            return
        execution.headline(parent, numbers)
        for path in files:
            execution.upload(parent, path, FIGURES)
        execution.client.set_terminated(parent, "FINISHED")


def _fullest(others: list[_Parent]) -> _Parent | None:
    """The run that holds most of the results, and nothing else in their place."""
    fitting = [other for other in others if not other.contradicts and (other.holds or other.shows)]
    return max(fitting, key=lambda other: other.holds, default=None)


def _child(
    stage: str, home: _Parent | None, others: list[_Parent]
) -> "tuple[Run, Identities] | None":
    """A stage's run that holds most: in the parent at home, or with a point elsewhere.

    An empty one fits everything; elsewhere it may be that of somebody who trains right now.
    """
    near = [] if home is None else [home]
    found = [
        parent.children[stage]
        for parent in (*near, *others)
        if stage in parent.children and (parent is home or parent.children[stage][1])
    ]
    return max(found, key=lambda child: len(child[1]), default=None)


def closest(
    runs: "list[tuple[Run, Identities]]", wanted: Identities
) -> "tuple[Run, Identities] | None":
    """The run that holds most of what is wanted and nothing else; the newest of equals.

    One with other numbers is another attempt (killed, then resumed a little earlier): to complete
    it would mix two curves.
    """
    own = [(run, recorded) for run, recorded in runs if recorded <= wanted]
    return max(own, key=lambda pair: len(pair[1]), default=None)


def identities(points: list[Point]) -> Identities:
    """What makes a point the same one: its metric, step and value, not the time of its recording.

    MLflow stores infinity as the largest number. A NaN equals nothing: its place is taken by
    infinity, which is not stored.
    """
    return {(name, step, _comparable(value)) for name, value, _, step in points}


def _comparable(value: float) -> float:
    return math.inf if math.isnan(value) else max(-LARGEST, min(LARGEST, value))


def read_results(results: Path, config: Config) -> tuple[list[Curve], Headline | None, list[str]]:
    """Everything under results/ that belongs into MLflow, and why some of it does not.

    Raises:
        UserError: a file that is not what its stage writes.
    """
    ends = _ends(config.selected)
    curves, absent = [], []
    for stage, name in CURVES.items():
        path = results / "curves" / f"{name}.csv"
        if not path.exists():
            absent.append(f"{path}: no such file; {stage} writes it")
            continue
        points = read_curve(path)
        phase, steps = ends[stage]
        at, last = (points[-1][0].partition("/")[0], points[-1][3]) if points else (phase, 0)
        if (at, last) != (phase, steps):
            wanted = f"of {steps}" if at == phase else f"of {at}, not {steps} of {phase}"
            absent.append(f"{path}: ends at step {last} {wanted}; run `dvc repro`")
        elif points:
            curves.append(Curve(stage, path, points))
    metrics = results / "metrics.json"
    if not metrics.exists():
        return curves, None, [*absent, f"{metrics}: no such file; evaluate writes it"]
    figures = sorted((results / "figures").glob("*.png"))
    files = [*figures, metrics, results / "errors.csv"]
    absent += [f"{path}: no such file; evaluate writes it" for path in files if not path.exists()]
    headline = Headline(_read_metrics(metrics), [path for path in files if path.exists()])
    return curves, headline, absent


def _ends(preset: PresetConfig) -> dict[str, tuple[str, int]]:
    """The phase and step at which each stage's curve ends; a phase without steps has no rows."""
    warm_start, objective = preset.encoder.warm_start.training.steps, preset.encoder.training.steps
    skipped = objective == 0 and warm_start > 0
    return {
        "train_prior": ("prior", preset.prior.training.steps),
        "train_vae_baseline": ("vae", preset.vae.training.steps),
        "train_encoder": ("warm_start", warm_start) if skipped else ("objective", objective),
    }


def _read_metrics(path: Path) -> dict[str, float]:
    """The metrics under flat names, nulls left out, as evaluate records them."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(tree, dict):
            raise ValueError(f"a {type(tree).__name__}")
        return {name: float(text) for name, text in flatten(tree).items() if text != "None"}
    except ValueError as error:
        raise UserError(
            f"{path}: not the metrics of evaluate ({one_line(error)}); run `dvc repro evaluate`"
        ) from None


def read_curve(path: Path) -> list[Point]:
    """A curve file as the points that the stage recorded, at about the times when it did.

    The file was written when training ended; ``seconds`` counts from the start of each phase.

    Raises:
        UserError: not a table of phase, step and numbers.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        try:
            rows = [_row(cells) for cells in reader]
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise UserError(
                f"{path}, line {reader.line_num}: not a training curve ({error!r}); "
                "run its stage again"
            ) from None
    elapsed = _elapsed([(phase, numbers.get("seconds", 0.0)) for phase, _, numbers in rows])
    start = path.stat().st_mtime - (elapsed[-1] if elapsed else 0.0)
    return [
        (f"{phase}/{name}", value, int(1000 * (start + seconds)), step)
        for (phase, step, numbers), seconds in zip(rows, elapsed, strict=True)
        for name, value in numbers.items()
    ]


def _row(cells: dict[str, str]) -> tuple[str, int, dict[str, float]]:
    """Phase, step and those numbers that the row has."""
    numbers = {k: float(v) for k, v in cells.items() if k not in ("phase", "step") and v}
    return cells["phase"], int(cells["step"]), numbers


def _elapsed(rows: list[tuple[str, float]]) -> list[float]:
    """Seconds since the start of the first phase, from (phase, seconds since its start)."""
    before, last, current = 0.0, 0.0, None
    elapsed = []
    for phase, seconds in rows:
        if phase != current:
            before, current = before + last, phase
        last = seconds
        elapsed.append(before + seconds)
    return elapsed


if __name__ == "__main__":
    main()

"""``python -m scorevae.commands.sync``: record afterwards what MLflow missed.

Reads the files that the stages left in results/ and completes the runs that they would have made.
A run is known by the time of its curve's first row, a point by its metric, step and time: a second
call adds nothing, and a stage whose server died in mid-training keeps its run.
"""

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from scorevae.config import Config, flatten, leaves, load_config, read_tree, shown
from scorevae.errors import UserError
from scorevae.runtime.runs import (
    CURVE_TAG,
    PARENT_ID,
    Data,
    Execution,
    Point,
    curve_points,
    folder_of,
    grouped,
    load_mlflow,
    note_of,
    one_line,
    read_data,
    server_errors,
)

if TYPE_CHECKING:
    from mlflow.entities import Run

PATH = click.Path(path_type=Path)
SYNCED = {"scorevae.synced": "true"}  # marks a run that was recorded afterwards
NAMED = 5  # parameters in one message
NAME_HELP = (
    "the experiment or run, as DVC and MLflow show it; default: DVC_EXP_NAME, else the run of "
    "these parameters that holds these results, else a new one"
)


class Curve(NamedTuple):
    """The training curve of one stage, as the points of its run."""

    stage: str
    path: Path
    points: list[Point]


class Headline(NamedTuple):
    """What the stage evaluate shows on the parent."""

    numbers: dict[str, float]
    files: list[Path]
    data: Data | None = None


@click.command(help=__doc__)
@click.option("--params", type=PATH, default=Path("params.yaml"), show_default=True)
@click.option("--results", type=PATH, default=Path("results"), show_default=True)
@click.option("--data", type=PATH, default=Path("data"), show_default=True)
@click.option("--name", help=NAME_HELP)
@click.option("--dry-run", is_flag=True, help="say what is missing, record nothing")
def main(params: Path, results: Path, data: Path, name: str | None, dry_run: bool) -> None:
    """Record in MLflow what is in the results and not there yet."""
    config = load_config(params)
    check_parameters(results, params)
    own = results / config.preset
    curves, headline, absent = read_results(own, data / config.preset, config)
    for reason in absent:
        click.echo(f"left out: {reason}")
    if not curves and headline is None:
        raise UserError(
            f"{own}: nothing to record; run `dvc repro`, or name its folder with --results"
        )
    load_mlflow()
    execution = Execution(config, name)
    with server_errors(execution.uri), execution.lock():
        completion = _Completion(execution, dry_run=dry_run)
        completion.run(curves, headline)
    for line in completion.lines:
        click.echo(f"{'would add' if dry_run else 'added'}: {line}")
    where = f"run {completion.name} at {one_line(execution.uri)}"
    click.echo(where if completion.lines else f"{where}: everything is recorded, nothing to add")


class _Completion:
    """Adds what is missing to the runs of one execution; each step tells in a line what it did.

    Results are committed after they were made. Unless a name is asked for, runs of the same
    parameters that were begun at another commit, or under a name, therefore count too.
    """

    def __init__(self, execution: Execution, *, dry_run: bool) -> None:
        self._execution, self._dry_run = execution, dry_run
        self.name = execution.title  # of the parent
        self.lines: list[str] = []

    def run(self, curves: list[Curve], headline: Headline | None) -> None:
        """Complete the parent's parameters, each stage's run, then what ends the parent."""
        execution = self._execution
        own = execution.find_parent(any_parameters=True)
        if own is not None:
            self._check_parameters(own)
        similar = [] if execution.name else execution.similar_parents()
        parents = {run.info.run_id: run for run in [*similar, *([own] if own else [])]}
        found = [self._find(curve, own, parents) for curve in curves]
        homes = [parents[run.data.tags[PARENT_ID]] for run, _ in found if run is not None]
        home, everything = own or next(iter(homes), None), len(homes) == len(curves)
        begins = home is None and not everything
        if home is not None or begins:
            home = self._parent(home)
        for curve, (run, missing) in zip(curves, found, strict=True):
            self._curve(curve, run, missing, home)
        if headline is not None:
            at = own or _evaluated(headline, home, similar if everything else [])
            self._headline(headline, at if at is not None or begins else self._parent(None))

    def _check_parameters(self, found: "Run") -> None:
        other = self._execution.other_parameters(found)
        if other:
            there = ", ".join(f"{name}: {found.data.params[name]}" for name in other[:3])
            raise UserError(
                f"the run {self._execution.key} in MLflow has other parameters than these "
                f"results ({there}); check out what belongs to it, or name another with --name"
            )

    def _find(
        self, curve: Curve, own: "Run | None", parents: dict[str, "Run"]
    ) -> "tuple[Run | None, list[Point]]":
        """The newest run of a curve, at home also an empty one, and the points that it lacks.

        One with other points is another attempt, which was killed and resumed a little earlier: to
        complete it would mix two curves. Values do not count: MLflow changes infinity, and NaN
        equals nothing.
        """
        execution = self._execution
        points = {(point.metric, point.step, point.time): point for point in curve.points}
        runs = execution.children_of_curve(curve.stage, curve.points[0].time)
        if own is not None:
            runs += execution.children(own.info.run_id, curve.stage)
        for run in runs:
            recorded = {(p.metric, p.step, p.time) for p in execution.history(run)}
            if run.data.tags[PARENT_ID] in parents and recorded <= points.keys():
                return run, [point for key, point in points.items() if key not in recorded]
        return None, curve.points

    def _parent(self, run: "Run | None") -> "Run | None":
        """A parent with all its parameters; for None a new one, but not in a dry run."""
        execution = self._execution
        self.name = execution.title if run is None else str(run.info.run_name)
        lacking = execution.parameters.keys() - (run.data.params if run is not None else {})
        if lacking:
            self.lines.append(f"{len(lacking)} parameters")
        if not self._dry_run:
            run = run or execution.create_parent()
            execution.complete_parameters(run)
        return run

    def _curve(
        self, curve: Curve, run: "Run | None", missing: list[Point], home: "Run | None"
    ) -> None:
        execution, began = self._execution, curve.points[0].time
        whole = run is not None and execution.holds(run.info.run_id, curve.path, None)
        if run is not None and whole and not missing and run.info.status == "FINISHED":
            return
        of = "in a new run" if run is None else f"to run {run.info.run_id}"
        self.lines.append(f"{curve.stage}: {len(missing)} of {len(curve.points)} points {of}")
        if self._dry_run:
            return
        if run is not None:
            child = run.info.run_id
        else:
            assert home is not None
            child = execution.create_child(home.info.run_id, curve.stage, SYNCED, began)
        execution.client.set_tag(child, CURVE_TAG, str(began))
        execution.points(child, missing)
        if not whole:
            execution.upload(child, curve.path, None)
        execution.client.set_terminated(child, "FINISHED", curve.points[-1].time)

    def _headline(self, headline: Headline, run: "Run | None") -> None:
        execution = self._execution
        recorded = run.data.metrics if run is not None else {}
        numbers = {k: v for k, v in headline.numbers.items() if recorded.get(k) != v}
        files = [
            path
            for path in headline.files
            if run is None or not execution.holds(run.info.run_id, path, folder_of(path))
        ]
        data = headline.data
        if data is not None and run is not None and execution.has_data(run, data):
            data = None
        done = run is not None and run.info.status == "FINISHED"
        if done and not numbers and not files and data is None:
            return
        self.lines.append(f"headline: {len(numbers)} metrics and {len(files)} files")
        if run is None or self._dry_run:
            return
        execution.headline(
            run.info.run_id, numbers, note_of(headline.numbers, execution.changes())
        )
        for path in files:
            execution.upload(run.info.run_id, path, folder_of(path))
        if data is not None:
            execution.data(run.info.run_id, data)
        execution.client.set_terminated(run.info.run_id, "FINISHED")


def _evaluated(headline: Headline, home: "Run | None", others: "list[Run]") -> "Run | None":
    """The parent that shows just these numbers, else the one at home if it shows none."""
    numbers, near = headline.numbers.items(), [] if home is None else [home]
    agreeing = (run for run in [*near, *others] if numbers <= run.data.metrics.items())
    return next(agreeing, next((run for run in near if not run.data.metrics), None))


def check_parameters(results: Path, params: Path) -> None:
    """Refuse parameters other than those with which DVC made what is in a folder of results.

    Where no dvc.lock beside the folder knows the files, all pass. (`dvc status` takes seconds,
    names sections without values, and refuses to tell while DVC runs a stage.)

    Raises:
        UserError: names the parameters and both of their values.
    """
    lock = results.absolute().parent / "dvc.lock"
    now = dict(leaves(read_tree(params)))
    other = dict.fromkeys(  # once: stages share parameters
        f"{name}: {shown(made)} in dvc.lock, now {shown(now.get(name))}"
        for name, made in (_parameters(lock, results.absolute()) if lock.exists() else [])
        if made != now.get(name)  # as numbers: 0.01 and 1e-2 are the same
    )
    if other:
        more = f"; {len(other) - NAMED} more" if len(other) > NAMED else ""
        raise UserError(
            f"{params}: not the parameters that made {results} "
            f"({'; '.join(list(other)[:NAMED])}{more}); run `dvc repro`, or restore {params}"
        )


def _parameters(lock: Path, results: Path) -> list[tuple[str, object]]:
    """Those of the stages that wrote what is there of the results, and of all stages upstream.

    `evaluate` does not read β; the weights that it measures depend on it.
    """
    try:
        tree: Any = read_tree(lock)
        stages = tree.get("stages", {})
        writers = {out["path"]: name for name in stages for out in stages[name].get("outs", [])}
        places = {path: results.parent / path for path in writers}
        waiting = [p for p, at in places.items() if at.is_relative_to(results) and at.exists()]
        found = set()
        while waiting:
            name = writers.get(waiting.pop())
            if name is not None and name not in found:
                found.add(name)
                waiting += [dep["path"] for dep in stages[name].get("deps", [])]
        params = [stages[name].get("params", {}) for name in stages if name in found]
        tracked = [item for files in params for item in files.get("params.yaml", {}).items()]
        return [leaf for key, value in tracked for leaf in leaves(value, key)]
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{lock}: not what DVC writes ({error!r}); restore it") from None


def read_results(
    results: Path, data: Path, config: Config
) -> tuple[list[Curve], Headline | None, list[str]]:
    """Everything under results/<preset> that belongs into MLflow, and why some of it does not.

    Raises:
        UserError: a file that is not what its stage writes.
    """
    curves, absent = [], []
    for stage, (name, phase, steps) in _ends(config).items():
        path = results / "curves" / f"{name}.csv"
        if not path.exists():
            absent.append(f"{path}: no such file; {stage} writes it")
            continue
        points = read_curve(path)
        at, last = (points[-1].metric.partition("/")[0], points[-1].step) if points else (phase, 0)
        if (at, last) != (phase, steps):
            wanted = f"of {steps}" if at == phase else f"of {at}, not {steps} of {phase}"
            absent.append(f"{path}: ends at step {last} {wanted}; run `dvc repro`")
        elif points:
            curves.append(Curve(stage, path, points))
    metrics = results / "metrics.json"
    if not metrics.exists():
        return curves, None, [*absent, f"{metrics}: no such file; evaluate writes it"]
    figures = sorted((results / "figures").glob("*.png"))
    files = [*figures, metrics, results / "errors.csv", results / "report.html"]
    absent += [f"{path}: no such file; evaluate writes it" for path in files if not path.exists()]
    numbers, there = grouped(_read_metrics(metrics)), [path for path in files if path.exists()]
    try:
        headline = Headline(numbers, there, read_data(data))
    except (OSError, ValueError, KeyError, TypeError) as error:
        headline = Headline(numbers, there)
        absent.append(f"{data}: not what download writes ({one_line(error)}); run `dvc repro`")
    return curves, headline, absent


def _ends(config: Config) -> dict[str, tuple[str, str, int]]:
    """Each stage's curve, the phase it ends in and the step; a phase without steps has no rows.

    Where no variant is switched on, that stage trains nothing.
    """
    preset = config.selected
    variants = {
        "corrector": preset.corrector.training.steps,
        "diffusion_decoder": preset.diffusion_decoder.training.steps,
    }
    last = [(name, steps) for name, steps in variants.items() if name in config.variants]
    last = [end for end in last if end[1] > 0] or last
    return {
        "train_prior": ("prior", "prior", preset.prior.training.steps),
        "train_vae_baseline": ("vae", "vae", preset.vae.training.steps),
        "train_encoder": ("encoder", *preset.encoder.last_training),
        **({"train_variants": ("variants", *last[-1])} if last else {}),
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
    """A curve file as the points that the stage recorded, at the times when it did.

    Raises:
        UserError: not a table of phase, step, timestamp and numbers.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        try:
            return [point for cells in reader for point in _row(cells)]
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise UserError(
                f"{path}, line {reader.line_num}: not a training curve with times ({error!r}); "
                "run its stage again"
            ) from None


def _row(cells: dict[str, str]) -> list[Point]:
    numbers = {k: float(v) for k, v in cells.items() if k not in ("phase", "step") and v}
    return curve_points(cells["phase"], int(cells["step"]), numbers)


if __name__ == "__main__":
    main()

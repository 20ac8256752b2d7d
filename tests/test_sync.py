"""sync: what MLflow missed is recorded afterwards, once, and as the live run would have done."""

import csv
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from mlflow.entities import DatasetInput, Run
from tiny import tiny_config, tiny_params, write_params

from scorevae.commands import sync
from scorevae.evaluation import stage as evaluation
from scorevae.runtime.runs import EXPERIMENT, PARENT_TAG, Execution
from scorevae.runtime.tracking import track

pytestmark = pytest.mark.usefixtures("dvc_root")

START = 1_700_000_000_000  # of the training, in milliseconds since 1970

# Two rows at one step, a NaN, an infinity; the last step is the tiny settings' (tests/tiny.py).
ROWS = {
    "train_prior": ("prior", [
        ("prior", 2, {"loss": 0.5, "gradient_norm": math.inf, "seconds": 1.0, "timestamp": START}),
        ("prior", 2, {"test_loss": 0.1 + 0.2, "seconds": 1.5, "timestamp": START + 500}),
        ("prior", 4, {"loss": math.nan, "gradient_norm": 1e-30, "seconds": 3.0,
                      "timestamp": START + 2000}),
    ]),
    "train_vae_baseline": ("vae", [
        ("vae", 4, {"loss": 7.0, "seconds": 2.0, "timestamp": START + 5000}),
    ]),
    "train_encoder": ("encoder", [
        ("warm_start", 4, {"loss": 1.0, "seconds": 10.0, "timestamp": START + 20_000}),
        ("objective", 2, {"loss": 2.0, "seconds": 1.0, "timestamp": START + 21_000}),
        ("objective", 4, {"loss": 3.0, "seconds": 4.0, "timestamp": START + 24_000}),
    ]),
}  # fmt: skip
NUMBERS = {"scorevae": {"l2": 1.25, "lpips": None, "active_units": 3}, "vae": {"l2": 1 / 3}}

FILES = ("figures/comparison.png", "figures/samples.png", "errors.csv", "report.html")


@pytest.fixture
def workspace(dvc_root: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with parameters and the results of a whole pipeline, whose MLflow knows nothing."""
    shutil.copy(empty_database, dvc_root / "mlflow.db")
    monkeypatch.chdir(dvc_root)
    write_params(dvc_root / "params.yaml", tiny_params())
    for name, rows in ROWS.values():
        write_curve(dvc_root / f"results/digits/curves/{name}.csv", rows)
    (dvc_root / "results/digits/figures").mkdir()
    for name in FILES:
        (dvc_root / "results/digits" / name).write_text(name)
    (dvc_root / "data/digits").mkdir(parents=True)
    (dvc_root / "data/digits/meta.json").write_text('{"source": "drawn"}')
    (dvc_root / "results/digits/metrics.json").write_text(json.dumps(NUMBERS))
    return dvc_root


def write_curve(path: Path, rows: list[tuple[str, int, dict[str, float]]]) -> None:
    """As the training stages write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for _, _, numbers in rows for name in numbers))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["phase", "step", *columns])
        writer.writeheader()
        writer.writerows({"phase": p, "step": s, **numbers} for p, s, numbers in rows)


def run_live(stages: tuple[str, ...] = (*ROWS, "evaluate"), name: str | None = None) -> None:
    """Record what the stages themselves record, in an experiment of DVC if it has a name."""
    with pytest.MonkeyPatch.context() as patch:
        if name is not None:
            patch.setenv("DVC_EXP_NAME", name)
        for stage in stages:
            if stage == "evaluate":
                evaluate_live(NUMBERS)
            else:
                record(
                    stage,
                    *ROWS[stage][1],
                    curve=Path(f"results/digits/curves/{ROWS[stage][0]}.csv"),
                )


def evaluate_live(numbers: dict[str, dict[str, float | None]]) -> None:
    """Record what the stage evaluate records."""
    files = [Path("results/digits") / name for name in (*FILES, "metrics.json")]
    with track("evaluate", tiny_config()) as tracker:
        tracker.data(Path("data/digits"))
        tracker.headline(evaluation.headline(numbers), files)


def record(
    stage: str, *rows: tuple[str, int, dict[str, float]], curve: Path | None = None
) -> None:
    """Record some rows of a stage's curve, and the file if it came so far."""
    with track(stage, tiny_config()) as tracker:
        for row in rows:
            tracker.record(*row)
        if curve is not None:
            tracker.artifact(curve)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(sync.main, [*arguments])


def succeed(*arguments: str) -> str:
    """The output of a call that must succeed."""
    result = invoke(*arguments)
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    return result.output


def refuse(*arguments: str) -> str:
    """The output of a call that must fail."""
    result = invoke(*arguments)
    assert result.exit_code == 1
    return result.output


def client(folder: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")


def runs(folder: Path) -> list[Run]:
    """All runs, the oldest first."""
    server = client(folder)
    known = server.get_experiment_by_name(EXPERIMENT)
    at = [] if known is None else [known.experiment_id]
    return list(server.search_runs(at, order_by=["start_time ASC"])) if at else []


def children(folder: Path, stage: str) -> list[Run]:
    """The runs of a stage, the oldest first."""
    return [run for run in runs(folder) if run.data.tags.get("stage") == stage]


def parents(folder: Path) -> list[Run]:
    """The runs of executions."""
    return [run for run in runs(folder) if PARENT_TAG in run.data.tags]


def parent(folder: Path) -> Run:
    """The one run of the execution."""
    (found,) = parents(folder)
    return found


def below(folder: Path, parent: Run) -> list[Run]:
    """The runs of an execution's stages."""
    tag, wanted = "mlflow.parentRunId", parent.info.run_id
    return [run for run in runs(folder) if run.data.tags.get(tag) == wanted]


def history(folder: Path, run: Run, *, times: bool = False) -> list[tuple[str, int, str, int]]:
    """Every point as (metric, step, value, time), sorted; NaN equals NaN as text."""
    server = client(folder)
    points = [p for k in run.data.metrics for p in server.get_metric_history(run.info.run_id, k)]
    return sorted((p.key, p.step, repr(p.value), p.timestamp if times else 0) for p in points)


SHOWN = ("mlflow.note.content", "mlflow.source.name", "mlflow.source.type", "mlflow.user")


def datasets(run: Run) -> list[DatasetInput]:
    return list(run.inputs.dataset_inputs)


def recorded(folder: Path) -> dict[str, object]:
    """Everything that is to be the same after a live run and after sync."""
    server, found = client(folder), {}
    for run in runs(folder):
        listed = (server.list_artifacts(run.info.run_id, at) for at in (None, "figures"))
        files = sorted(file.path for files in listed for file in files)
        times = "stage" in run.data.tags  # a headline's is when it was recorded
        points = history(folder, run, times=times)
        assert run.info.run_name not in found, "two runs of one stage"
        tags = {name: run.data.tags.get(name) for name in SHOWN}
        data = [(e.dataset.name, e.dataset.digest, e.dataset.source) for e in datasets(run)]
        state = (run.info.status, run.data.params, points, files, tags, data)
        found[run.info.run_name] = state
    return found


Commit = Callable[[str], None]


@pytest.fixture
def commit(monkeypatch: pytest.MonkeyPatch) -> Commit:
    """Let Git tell another commit from now on."""
    name = "scorevae.runtime.runs._git_commit"
    return lambda letter: monkeypatch.setattr(name, lambda: letter * 40)


def everything(folder: Path) -> list[object]:
    """All that sync could change, times included."""
    infos = [(dict(run.info), run.data.tags, run.data.params) for run in runs(folder)]
    files = [(str(p), p.stat().st_mtime_ns) for p in sorted(folder.rglob("mlartifacts/**/*"))]
    return [infos, [history(folder, run, times=True) for run in runs(folder)], files]


def test_synced_run_is_that_of_an_undisturbed_one(workspace: Path, empty_database: Path) -> None:
    """Catches a point, parameter, metric, file or status that is lost, renamed or rounded."""
    run_live()
    live = recorded(workspace)
    assert all(live[name][2] for name in ROWS), "the comparison would be empty"
    shutil.rmtree(workspace / "mlartifacts")
    shutil.copy(empty_database, workspace / "mlflow.db")
    assert "train_prior: 8 of 8 points in a new run" in succeed()
    live.pop("evaluate")  # it holds nothing but its times
    assert recorded(workspace) == live
    assert parent(workspace).data.tags[PARENT_TAG] == Execution(tiny_config()).key
    found = {run.info.run_name: run.info for run in below(workspace, parent(workspace))}
    assert sorted(found) == sorted(ROWS)
    ends = found["train_encoder"].start_time, found["train_encoder"].end_time
    assert ends == (START + 20_000, START + 24_000)  # and not when sync ran


@pytest.mark.parametrize("before", ["live", "sync"])
def test_second_call_adds_nothing(workspace: Path, before: str) -> None:
    """Catches numbers recorded twice, and a fully recorded run that is touched."""
    if before == "live":
        run_live()
    else:
        assert "added: " in succeed()
    for _ in range(2):
        state = everything(workspace)
        assert "everything is recorded, nothing to add" in succeed()
        assert everything(workspace) == state


@pytest.mark.parametrize(("count", "missing"), [(0, 8), (1, 5)], ids=["empty", "partial"])
def test_run_that_lost_its_server_is_completed(workspace: Path, count: int, missing: int) -> None:
    """Catches a second run beside the one whose server died, and points doubled there."""
    record("train_prior", *ROWS["train_prior"][1][:count])
    (before,) = children(workspace, "train_prior")
    assert f"train_prior: {missing} of 8 points to run" in succeed()
    (after,) = children(workspace, "train_prior")
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")
    points = history(workspace, after)
    assert len(points) == len(set(points)) == 8
    assert "nothing to add" in succeed()


@pytest.mark.parametrize(
    "row",
    [
        (3, {"loss": 0.75, "timestamp": START + 700}),  # killed, and resumed at an earlier step
        (4, {"loss": 0.25, "timestamp": START + 1900}),
        (2, {"foreign": 0.5, "timestamp": START}),
    ],
)
def test_another_attempt_is_left_alone(workspace: Path, row: tuple[int, dict]) -> None:
    """Catches the points of a killed attempt mixed with those of the one that finished."""
    record("train_prior", ROWS["train_prior"][1][0], ("prior", *row))
    (attempt,) = children(workspace, "train_prior")
    state = history(workspace, attempt, times=True)
    succeed()
    assert history(workspace, attempt, times=True) == state
    counts = {
        r.info.run_id: len(history(workspace, r)) for r in children(workspace, "train_prior")
    }
    assert counts.pop(attempt.info.run_id) == len(state)
    assert list(counts.values()) == [8]


def test_newest_of_two_attempts_is_completed(workspace: Path) -> None:
    """Catches a killed attempt completed beside the one that resumed it; an empty one filled."""
    for count in (1, 2, 0):
        record("train_prior", *ROWS["train_prior"][1][:count])
    succeed()
    found = children(workspace, "train_prior")
    assert [len(history(workspace, run)) for run in found] == [3, 8, 0]


def test_what_has_changed_is_replaced(workspace: Path) -> None:
    """Catches a file that a full disk cut short and that passes for recorded.

    And metrics.json and MLflow disagreeing after a second evaluation without a server.
    """
    run_live()
    (path,) = (workspace / "mlartifacts").rglob("prior.csv")
    whole = path.read_bytes()
    path.write_bytes(whole[:5])
    (workspace / "results/digits/metrics.json").write_text(
        json.dumps(NUMBERS | {"vae": {"l2": 0.5}})
    )
    assert "headline: 1 metrics" in succeed()
    assert path.read_bytes() == whole
    assert parent(workspace).data.metrics["vae/l2"] == 0.5


def test_commits_made_since_begin_no_other_run(workspace: Path, commit: Commit) -> None:
    """Catches everything recorded a second time because the results were committed meanwhile."""
    commit("a")
    run_live()
    key, state = Execution(tiny_config()).title, everything(workspace)
    commit("b")
    for arguments in (["--dry-run"], []):
        output = succeed(*arguments)
        assert f"run {key} at " in output
        assert "everything is recorded, nothing to add" in output
    assert everything(workspace) == state


def test_run_of_a_former_commit_is_completed(workspace: Path, commit: Commit) -> None:
    """Catches a second parent for what the server missed, and another child for half a curve."""
    commit("a")
    run_live(("train_prior",))
    phase, step, numbers = ROWS["train_vae_baseline"][1][0]
    known = {name: value for name, value in numbers.items() if name != "seconds"}
    record("train_vae_baseline", (phase, step, known))
    commit("b")
    lines = succeed().splitlines()
    (vae,) = children(workspace, "train_vae_baseline")
    assert lines[:-1] == [
        f"added: train_vae_baseline: 1 of 2 points to run {vae.info.run_id}",
        "added: train_encoder: 6 of 6 points in a new run",
        "added: headline: 3 metrics and 5 files",
    ]
    found = parent(workspace)
    assert (found.info.status, found.data.metrics["scorevae/l2"]) == ("FINISHED", 1.25)
    assert len(below(workspace, found)) == 3
    assert "nothing to add" in succeed()


def test_parameters_lost_at_a_former_commit_are_added(workspace: Path, commit: Commit) -> None:
    """Catches a run that is not known again because a dying server lost its parameters."""
    commit("a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Execution, "complete_parameters", lambda *_: 0)
        run_live()
    commit("b")
    wanted = Execution(tiny_config()).parameters
    assert f"added: {len(wanted)} parameters" in succeed()
    assert parent(workspace).data.params == wanted


def test_evaluations_of_other_commits_stay_where_they_are(workspace: Path, commit: Commit) -> None:
    """Catches curves recorded anew beside a later evaluation, and one that replaces a former one.

    The code of evaluate was changed and committed; DVC ran that stage alone, tracked or not.
    """
    commit("a")
    run_live()
    commit("b")
    later = {**NUMBERS, "vae": {"l2": 0.5}}
    (workspace / "results/digits/metrics.json").write_text(json.dumps(later))
    evaluate_live(later)
    state = everything(workspace)
    for letter in "bc":
        commit(letter)
        assert "everything is recorded, nothing to add" in succeed()
        assert everything(workspace) == state
    (workspace / "results/digits/metrics.json").write_text(json.dumps({"vae": {"l2": 0.25}}))
    assert "train_" not in succeed()
    found = parents(workspace)
    assert [run.data.metrics["vae/l2"] for run in found] == [1 / 3, 0.5, 0.25]
    assert [run.data.params for run in found] == [found[0].data.params] * 3


def test_evaluation_that_lost_its_headline_gets_it(workspace: Path, commit: Commit) -> None:
    """Catches one that stays without metrics because a former commit's has the same numbers."""
    commit("a")
    run_live()
    commit("b")
    record("evaluate")
    assert succeed().splitlines()[:-1] == ["added: headline: 3 metrics and 5 files"]
    assert [run.data.metrics["vae/l2"] for run in parents(workspace)] == [1 / 3] * 2
    assert len(children(workspace, "train_prior")) == 1


def test_others_with_the_same_parameters_are_left_alone(workspace: Path, commit: Commit) -> None:
    """Catches a curve that lands in the run of another, who trains or trained the same thing."""

    def told() -> dict[str, tuple[str, dict[str, float]]]:
        return {run.info.run_id: (run.info.status, run.data.metrics) for run in runs(workspace)}

    commit("a")
    record("train_prior", ("prior", 2, {"loss": 0.75, "timestamp": START - 1}))
    record("train_encoder")
    commit("b")
    record("train_vae_baseline")
    theirs = told()
    commit("c")
    succeed()
    assert theirs.items() <= told().items()
    key = Execution(tiny_config()).key
    (own,) = [run for run in parents(workspace) if run.data.tags[PARENT_TAG] == key]
    assert sorted(run.info.run_name for run in below(workspace, own)) == sorted(ROWS)


def test_equal_numbers_of_another_training_are_not_mine(workspace: Path, commit: Commit) -> None:
    """Catches an evaluation that is not recorded because somebody else's has the same numbers."""
    commit("a")
    with pytest.MonkeyPatch.context() as patch:
        for stage, (name, rows) in ROWS.items():
            later = [(p, s, n | {"timestamp": n["timestamp"] + 1}) for p, s, n in rows]
            patch.setitem(ROWS, stage, (name, later))
        run_live()
    state = everything(workspace)
    commit("b")
    succeed()
    theirs, mine = parents(workspace)
    assert mine.data.metrics == theirs.data.metrics
    assert len(children(workspace, "train_prior")) == 2
    for run in (*below(workspace, mine), mine):
        client(workspace).delete_run(run.info.run_id)
    assert everything(workspace)[:2] == state[:2]


def test_stage_that_was_lost_joins_its_evaluation(workspace: Path, commit: Commit) -> None:
    """Catches a headline recorded anew beside a stage that only lacked its curve."""
    commit("a")
    run_live(("train_prior", "train_vae_baseline", "evaluate"))
    commit("b")
    assert succeed().splitlines()[:-1] == ["added: train_encoder: 6 of 6 points in a new run"]
    names = [run.info.run_name for run in below(workspace, parent(workspace))]
    assert "train_encoder" in names


def test_dry_run_writes_nothing(workspace: Path) -> None:
    """Catches a database, an experiment, a run or a point made by asking."""
    run_live(("train_prior",))
    state = everything(workspace)
    assert succeed("--dry-run").splitlines()[:-1] == [
        "would add: train_vae_baseline: 2 of 2 points in a new run",
        "would add: train_encoder: 6 of 6 points in a new run",
        "would add: headline: 3 metrics and 5 files",
    ]
    assert everything(workspace) == state
    (workspace / "mlflow.db").unlink()
    assert "would add: train_prior: 8 of 8 points in a new run" in succeed("--dry-run")
    assert not (workspace / "mlflow.db").exists()


def test_name_chooses_the_experiment(workspace: Path, commit: Commit) -> None:
    """Catches an experiment of DVC whose numbers land in a run of another name.

    And one recorded again, without its name, after `dvc exp apply` and a commit.
    """
    run_live(("train_prior",), name="grave-fate")
    assert "run digits β=0.01 seed 0 (grave-fate) at " in succeed("--name", "grave-fate")
    commit("b")
    assert "run digits β=0.01 seed 0 (grave-fate) at " in succeed()
    assert parent(workspace).info.run_name == "digits β=0.01 seed 0 (grave-fate)"
    assert len(children(workspace, "train_prior")) == 1


def test_name_means_that_run_alone(workspace: Path) -> None:
    """Catches results that were asked for under a name left in the run of another one."""
    run_live()
    assert "run digits β=0.01 seed 0 (grave-fate) at " in succeed("--name", "grave-fate")
    assert len(children(workspace, "train_prior")) == 2
    assert "nothing to add" in succeed("--name", "grave-fate")


def test_experiment_of_other_parameters_is_refused(workspace: Path) -> None:
    """Catches the numbers of one experiment recorded under the parameters of another."""
    write_params(workspace / "params.yaml", tiny_params(beta=0.02))
    succeed("--name", "grave-fate")
    state = everything(workspace)
    write_params(workspace / "params.yaml", tiny_params())
    output = refuse("--name", "grave-fate")
    assert "the run grave-fate in MLflow has other parameters" in output
    assert "(beta: 0.02)" in output
    assert everything(workspace) == state


def write_lock(folder: Path, *stages: str) -> None:
    """A dvc.lock as DVC would write it after these stages, or all, ran with parameters as now."""
    tree = tiny_params()
    digits = tree["presets"]["digits"]
    known = {
        "train_prior": (
            {"sde": tree["sde"], "presets.digits.prior": digits["prior"]},
            [], ["models/digits/prior.safetensors", "results/digits/curves/prior.csv"],
        ),
        "train_encoder": (
            {"beta": tree["beta"], "sde": tree["sde"], "presets.digits.latent": digits["latent"]},
            ["models/digits/prior.safetensors"],
            ["models/digits/encoder.safetensors", "results/digits/curves/encoder.csv"],
        ),
        "evaluate": (
            {"evaluate": tree["evaluate"], "presets.digits.test_images": digits["test_images"]},
            ["models/digits/encoder.safetensors", "src/scorevae/evaluation/metrics.py"],
            ["results/digits/metrics.json"],
        ),
    }  # fmt: skip
    locked = {}
    for stage in stages or known:
        params, reads, writes = known[stage]
        locked[stage] = {
            "cmd": f"python stages/{stage}.py",
            "deps": [{"path": path, "hash": "md5", "md5": "0"} for path in reads],
            "params": {"params.yaml": params},
            "outs": [{"path": path, "hash": "md5", "md5": "0", "size": 1} for path in writes],
        }
    lock = {"schema": "2.0", "stages": locked}
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.02}, "beta: 0.01 in dvc.lock, now 0.02"),
        (
            {"sde.t_min": 0.1, "presets.digits.prior.training.steps": 5},
            "sde.t_min: 0.001 in dvc.lock, now 0.1; "
            "presets.digits.prior.training.steps: 4 in dvc.lock, now 5",
        ),
        ({"presets.digits.test_images": 7}, "test_images: None in dvc.lock, now 7"),
        ({"evaluate.guidance.weights": [1.0]}, "weights: [0.0, 1.0] in dvc.lock, now [1.0]"),
    ],
)
def test_results_of_other_parameters_are_refused(
    workspace: Path, changes: dict[str, object], message: str
) -> None:
    """Catches results recorded in a run of parameters that were edited since; one told twice."""
    write_lock(workspace)
    write_params(workspace / "params.yaml", tiny_params(**changes))
    output = refuse("--name", "grave-fate")
    assert output.startswith("Error: params.yaml: not the parameters that made results (")
    assert output.count(message) == 1
    assert output.endswith("); run `dvc repro`, or restore params.yaml\n")
    assert runs(workspace) == []


def test_metrics_are_of_the_parameters_upstream(workspace: Path) -> None:
    """Catches old metrics recorded beside a new β while the encoder is being trained anew."""
    write_lock(workspace)
    write_params(workspace / "params.yaml", tiny_params(beta=0.02))
    (workspace / "results/digits/curves/encoder.csv").unlink()
    assert "beta: 0.01 in dvc.lock, now 0.02" in refuse()
    (workspace / "results/digits/metrics.json").unlink()
    assert "train_prior: 8 of 8 points in a new run" in succeed()


@pytest.mark.parametrize("form", ["1.0e-2", "1e-2", "+.01", "0.010"])
def test_the_same_number_written_otherwise_is_no_edit(workspace: Path, form: str) -> None:
    """Catches a refusal because DVC writes 0.01 where params.yaml says 1e-2."""
    write_lock(workspace)
    text = (workspace / "params.yaml").read_text()
    assert "beta: 0.01\n" in text
    (workspace / "params.yaml").write_text(text.replace("beta: 0.01\n", f"beta: {form}\n"))
    assert "added: " in succeed()


def test_parameters_that_made_none_of_the_results_may_differ(workspace: Path) -> None:
    """Catches a refusal for stages whose results are elsewhere or were made without DVC."""
    write_lock(workspace, "evaluate")
    write_params(workspace / "params.yaml", tiny_params(beta=0.02))
    assert "added: " in succeed()
    shutil.copytree(workspace / "results", workspace / "copy/results")
    write_params(workspace / "params.yaml", tiny_params(**{"evaluate.figure_images": 4}))
    assert "added: " in succeed("--results", "copy/results")


def test_what_is_missing_is_named(workspace: Path) -> None:
    """Catches an incomplete run that passes for a complete one, and one that is not recorded."""
    (workspace / "results/digits/curves/vae.csv").unlink()
    (workspace / "results/digits/metrics.json").unlink()
    write_curve(workspace / "results/digits/curves/prior.csv", ROWS["train_prior"][1][:2])
    assert succeed().splitlines()[:3] == [
        "left out: results/digits/curves/prior.csv: ends at step 2 of 4; run `dvc repro`",
        "left out: results/digits/curves/vae.csv: no such file; train_vae_baseline writes it",
        "left out: results/digits/metrics.json: no such file; evaluate writes it",
    ]
    names = {run.info.run_name: run.info.status for run in runs(workspace)}
    assert names.pop("train_encoder") == "FINISHED"
    assert list(names.values()) == ["RUNNING"]  # the parent: not evaluated yet


WARM_START = "encoder.warm_start"
SHORT = "left out: {path}: ends at step"


@pytest.mark.parametrize(
    ("stage", "steps", "rows", "outcome"),
    [
        ("train_vae_baseline", {"vae": 0}, slice(0), None),
        ("train_encoder", {"encoder": 0}, slice(1), "added: {stage}: 2 of 2 points"),
        ("train_encoder", {WARM_START: 0}, slice(1, 3), "added: {stage}: 4 of 4 points"),
        ("train_encoder", {"encoder": 0, WARM_START: 8}, slice(1), f"{SHORT} 4 of 8; run"),
        ("train_encoder", {}, slice(1), f"{SHORT} 4 of warm_start, not 4 of objective; run"),
        ("train_encoder", {}, slice(0), f"{SHORT} 0 of 4; run"),
    ],
)
def test_curve_ends_with_the_last_phase_that_has_steps(
    workspace: Path, stage: str, steps: dict[str, int], rows: slice, outcome: str | None
) -> None:
    """Catches a whole curve left out, and one killed between its phases that passes for whole.

    And a traceback at a curve without rows, or a run without points for it.
    """
    changes = {f"presets.digits.{part}.training.steps": count for part, count in steps.items()}
    write_params(workspace / "params.yaml", tiny_params(**changes))
    name, whole = ROWS[stage]
    path = f"results/digits/curves/{name}.csv"
    write_curve(workspace / path, whole[rows])
    lines = [line for line in succeed().splitlines()[:-1] if name in line]
    assert len(lines) == (outcome is not None)
    said = (outcome or "").format(stage=stage, path=path)
    assert "".join(lines).startswith(said)
    assert len(children(workspace, stage)) == said.startswith("added")


def test_nothing_to_record(workspace: Path) -> None:
    """Catches an empty run, and a success, where the folder is the wrong one."""
    output = refuse("--results", "elsewhere")
    for name in ("curves/prior.csv", "curves/vae.csv", "curves/encoder.csv", "metrics.json"):
        assert f"elsewhere/digits/{name}: no such file" in output
    assert "Error: elsewhere/digits: nothing to record" in output
    assert runs(workspace) == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("../../dvc.lock", "<<<<<<< HEAD\n", "/dvc.lock: "),  # what a merge left
        ("../../dvc.lock", "", "/dvc.lock: "),
        ("../../dvc.lock", "stages: {evaluate: {outs: [1]}}", "/dvc.lock: "),
        ("curves/prior.csv", "step,loss\n4,1\n", "curves/prior.csv, line 2: not a train"),
        ("curves/prior.csv", "phase,step,loss\na,4,x\n", "curves/prior.csv, line 2: not a train"),
        ("curves/prior.csv", "phase,step\na,4,1\n", "curves/prior.csv, line 2: not a train"),
        ("curves/prior.csv", "phase,step,loss\nprior,4,1\n", "('timestamp')); run its stage"),
        ("metrics.json", "{", "metrics.json: not the metrics of evaluate"),
        ("metrics.json", "[]", "metrics.json: not the metrics of evaluate"),
        ("metrics.json", '{"vae": {"l2": "x"}}', "metrics.json: not the metrics of evaluate"),
    ],
)
def test_damaged_files_are_refused(workspace: Path, name: str, text: str, message: str) -> None:
    """Catches a traceback, or half of the results recorded before the fault is found."""
    (workspace / "results/digits" / name).write_text(text)
    (line,) = refuse().splitlines()
    assert line.startswith("Error: ")
    assert message in line
    assert runs(workspace) == []


def test_unreachable_server_is_named(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a traceback, and a password in it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:1")
    (line,) = refuse().splitlines()
    assert "Error: MLflow at http://***@127.0.0.1:1 does not take the records (" in line
    assert "set MLFLOW_TRACKING_URI, and sync again" in line
    assert "secret" not in line


def test_deleted_experiment_is_named_and_its_remedy_helps(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a promise that sync mends what makes sync itself fail."""
    run_live(("train_prior",))
    client(workspace).delete_experiment(runs(workspace)[0].info.experiment_id)
    run_live(("train_vae_baseline",))
    warning, error = capsys.readouterr().err, refuse()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    for said in (warning, error, refuse()):
        remedy = re.search(
            r"was deleted; restore it, in the repository's folder, by `(.*?)`", said
        )
    assert remedy
    here = f"PATH={Path(sys.executable).parent}:$PATH {remedy[1]}"
    done = subprocess.run(here, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train_vae_baseline: 2 of 2 points in a new run" in succeed()
    assert len(children(workspace, "train_prior")) == 1


@pytest.mark.parametrize("name", ["it's", "100%", 'a_"b"', "é;x"])
def test_name_of_any_characters(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Catches a printed command that another shell word ends, and a search that a quote ends."""
    run_live(("train_prior",), name="axb")  # a pattern of such a name also fits this one
    with monkeypatch.context() as patch:
        patch.setattr(Execution, "points", lambda *_: 1 / 0)
        run_live(("train_prior",), name=name)
    found = re.search(
        "mended `python -m scorevae.commands.sync (.*)` records", capsys.readouterr().err
    )
    assert found
    succeed(*shlex.split(found[1]))
    first, second = parents(workspace)
    assert [run.data.tags[PARENT_TAG] for run in (first, second)] == ["axb", name]
    (run,) = (run for run in below(workspace, second) if run.data.tags["stage"] == "train_prior")
    assert len(history(workspace, run)) == 8


def test_held_lock_is_named(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a command that waits for ever beside a stage that is stuck."""
    monkeypatch.setattr("scorevae.runtime.runs.LOCK_SECONDS", 0.0)
    with Execution(tiny_config()).lock():
        assert str(workspace / ".mlflow.lock") in refuse()

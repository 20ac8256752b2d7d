"""sync: what MLflow missed is recorded afterwards, once, and as the live run would have done."""

import csv
import json
import math
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from mlflow.entities import Run
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


@pytest.fixture
def workspace(dvc_root: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with parameters and the results of a whole pipeline, whose MLflow knows nothing."""
    shutil.copy(empty_database, dvc_root / "mlflow.db")
    monkeypatch.chdir(dvc_root)
    write_params(dvc_root / "params.yaml", tiny_params())
    for name, rows in ROWS.values():
        write_curve(dvc_root / f"results/curves/{name}.csv", rows)
    (dvc_root / "results/figures").mkdir()
    for name in ("figures/samples.png", "errors.csv"):
        (dvc_root / "results" / name).write_text(name)
    (dvc_root / "results/metrics.json").write_text(json.dumps(NUMBERS))
    return dvc_root


def write_curve(path: Path, rows: list[tuple[str, int, dict[str, float]]]) -> None:
    """As the training stages write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for _, _, numbers in rows for name in numbers))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["phase", "step", *columns])
        writer.writeheader()
        writer.writerows({"phase": p, "step": s, **numbers} for p, s, numbers in rows)


def run_live(stages: tuple[str, ...] = (*ROWS, "evaluate")) -> None:
    """Record what the stages themselves record."""
    for stage in stages:
        with track(stage, tiny_config()) as tracker:
            if stage == "evaluate":
                files = [Path("results") / n for n in ("metrics.json", "errors.csv")]
                figures = [Path("results/figures/samples.png"), *files]
                tracker.headline(evaluation.headline(NUMBERS), figures)
                continue
            name, rows = ROWS[stage]
            for row in rows:
                tracker.record(*row)
            tracker.artifact(Path(f"results/curves/{name}.csv"))


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(sync.main, [*arguments])


def succeed(*arguments: str) -> str:
    """The output of a call that must succeed."""
    result = invoke(*arguments)
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    return result.output


def client(folder: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")


def runs(folder: Path) -> list[Run]:
    """All runs, the oldest first."""
    server = client(folder)
    experiment = server.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    return list(server.search_runs([experiment.experiment_id], order_by=["start_time ASC"]))


def children(folder: Path, stage: str) -> list[Run]:
    """The runs of a stage, the oldest first."""
    return [run for run in runs(folder) if run.data.tags.get("stage") == stage]


def parent(folder: Path) -> Run:
    """The one run of the execution."""
    (found,) = [run for run in runs(folder) if PARENT_TAG in run.data.tags]
    return found


def history(folder: Path, run: Run, *, times: bool = False) -> list[tuple[str, int, str, int]]:
    """Every point as (metric, step, value, time), sorted; NaN equals NaN as text."""
    server = client(folder)
    points = [p for k in run.data.metrics for p in server.get_metric_history(run.info.run_id, k)]
    return sorted((p.key, p.step, repr(p.value), p.timestamp if times else 0) for p in points)


def recorded(folder: Path) -> dict[str, object]:
    """Everything that is to be the same after a live run and after sync."""
    server, found = client(folder), {}
    for run in runs(folder):
        folders = [None, "figures"]
        files = [f.path for at in folders for f in server.list_artifacts(run.info.run_id, at)]
        times = "stage" in run.data.tags  # a headline's is when it was recorded
        points = history(folder, run, times=times)
        content = (run.info.status, run.data.params, points, sorted(files))
        assert run.info.run_name not in found, "two runs of one stage"
        found[run.info.run_name] = content
    return found


def commit(patch: pytest.MonkeyPatch, letter: str) -> None:
    """Let Git tell another commit from now on."""
    patch.setattr("scorevae.runtime.runs._git_commit", lambda: letter * 40)


def everything(folder: Path) -> list[object]:
    """All that sync could change, times included."""
    infos = [(dict(run.info), run.data.tags, run.data.params) for run in runs(folder)]
    files = [(str(p), p.stat().st_mtime_ns) for p in sorted(folder.rglob("mlartifacts/**/*"))]
    return [infos, [history(folder, run, times=True) for run in runs(folder)], files]


def test_synced_run_is_that_of_an_undisturbed_one(workspace: Path, empty_database: Path) -> None:
    """Catches a point, parameter, metric, file or status that is lost, renamed or rounded."""
    run_live()
    live = recorded(workspace)
    for name in ("train_prior", "train_encoder"):
        assert live[name][2], "the comparison would be empty"
    shutil.rmtree(workspace / "mlartifacts")
    shutil.copy(empty_database, workspace / "mlflow.db")
    output = succeed()
    synced = recorded(workspace)
    live.pop("evaluate")  # it holds nothing but its times
    assert synced == live
    assert "train_prior: 8 of 8 points in a new run" in output
    key = Execution(tiny_config()).key
    assert parent(workspace).data.tags[PARENT_TAG] == key
    (child,) = children(workspace, "train_prior")
    assert child.data.tags["mlflow.parentRunId"] == parent(workspace).info.run_id


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


def test_partial_child_is_completed(workspace: Path) -> None:
    """Catches a second run beside the one whose server died, and points doubled there."""
    phase, step, numbers = ROWS["train_prior"][1][0]
    with track("train_prior", tiny_config()) as tracker:
        tracker.record(phase, step, numbers)
    (before,) = children(workspace, "train_prior")
    assert "train_prior: 5 of 8 points to run" in succeed()
    (after,) = children(workspace, "train_prior")
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")
    points = history(workspace, after)
    assert len(points) == len(set(points)) == 8


@pytest.mark.parametrize(
    ("step", "numbers"),
    [
        (3, {"loss": 0.75, "timestamp": START + 700}),  # killed, and resumed at an earlier step
        (4, {"loss": 0.25, "timestamp": START + 1900}),
        (2, {"foreign": 0.5, "timestamp": START}),
    ],
)
def test_another_attempt_is_left_alone(
    workspace: Path, step: int, numbers: dict[str, float]
) -> None:
    """Catches the points of a killed attempt mixed with those of the one that finished."""
    with track("train_prior", tiny_config()) as tracker:
        tracker.record(*ROWS["train_prior"][1][0])
        tracker.record("prior", step, numbers)
    (attempt,) = children(workspace, "train_prior")
    state = history(workspace, attempt, times=True)
    succeed()
    found = children(workspace, "train_prior")
    assert len(found) == 2
    assert history(workspace, attempt, times=True) == state
    (other,) = [run for run in found if run.info.run_id != attempt.info.run_id]
    assert len(history(workspace, other)) == 8


def test_newest_of_two_attempts_is_completed(workspace: Path) -> None:
    """Catches a killed attempt completed beside the one that resumed it; an empty one filled."""
    for count in (1, 2, 0):
        with track("train_prior", tiny_config()) as tracker:
            for row in ROWS["train_prior"][1][:count]:
                tracker.record(*row)
    succeed()
    found = children(workspace, "train_prior")
    assert [len(history(workspace, run)) for run in found] == [3, 8, 0]


def test_run_that_lost_its_server_before_the_first_point_is_filled(workspace: Path) -> None:
    """Catches a second run beside an empty one of the same execution."""
    with track("train_prior", tiny_config()):
        pass
    succeed()
    (child,) = children(workspace, "train_prior")
    assert len(history(workspace, child)) == 8
    assert "nothing to add" in succeed()


def test_truncated_artifact_is_replaced(workspace: Path) -> None:
    """Catches a file that a full disk cut short and that passes for recorded."""
    run_live()
    (path,) = (workspace / "mlartifacts").rglob("prior.csv")
    whole = path.read_bytes()
    path.write_bytes(whole[:5])
    succeed()
    assert path.read_bytes() == whole


def test_headline_of_another_evaluation_is_replaced(workspace: Path) -> None:
    """Catches metrics.json and MLflow disagreeing after a second evaluation without a server."""
    run_live()
    numbers = {**NUMBERS, "vae": {"l2": 0.5}}
    (workspace / "results/metrics.json").write_text(json.dumps(numbers))
    assert "headline: 1 metrics" in succeed()
    assert parent(workspace).data.metrics["vae.l2"] == 0.5


def test_flat_metrics_are_those_of_evaluate(workspace: Path) -> None:
    """Catches other names or roundings than the stage evaluate sends."""
    _, headline, _ = sync.read_results(workspace / "results", tiny_config())
    assert headline is not None
    assert headline.numbers == evaluation.headline(NUMBERS)


def test_times_are_those_of_the_training(workspace: Path) -> None:
    """Catches curves drawn at the time of sync, and phases on top of each other."""
    succeed()
    (child,) = children(workspace, "train_encoder")
    times = {time for *_, time in history(workspace, child, times=True)}
    assert times == {START + 20_000, START + 21_000, START + 24_000}
    assert (child.info.start_time, child.info.end_time) == (min(times), max(times))


def test_commits_made_since_begin_no_other_run(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches everything recorded a second time because the results were committed meanwhile."""
    commit(monkeypatch, "a")
    run_live()
    key, state = Execution(tiny_config()).key, everything(workspace)
    commit(monkeypatch, "b")
    for arguments in (["--dry-run"], []):
        output = succeed(*arguments)
        assert f"run {key} at " in output
        assert "everything is recorded, nothing to add" in output
    assert everything(workspace) == state


def test_run_of_a_former_commit_is_completed(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a second parent for what the server missed, and another child for half a curve."""
    commit(monkeypatch, "a")
    run_live(("train_prior",))
    phase, step, numbers = ROWS["train_vae_baseline"][1][0]
    with track("train_vae_baseline", tiny_config()) as tracker:
        tracker.record(phase, step, {k: v for k, v in numbers.items() if k != "seconds"})
    commit(monkeypatch, "b")
    lines = succeed().splitlines()
    (vae,) = children(workspace, "train_vae_baseline")
    assert lines[:-1] == [
        f"added: train_vae_baseline: 1 of 2 points to run {vae.info.run_id}",
        "added: train_encoder: 6 of 6 points in a new run",
        "added: headline: 3 metrics and 3 files",
    ]
    found = parent(workspace)
    assert (found.info.status, found.data.metrics["scorevae.l2"]) == ("FINISHED", 1.25)
    (encoder,) = children(workspace, "train_encoder")
    assert encoder.data.tags["mlflow.parentRunId"] == found.info.run_id
    assert "nothing to add" in succeed()


def test_parameters_lost_at_a_former_commit_are_added(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a run that is not known again because a dying server lost its parameters."""
    commit(monkeypatch, "a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Execution, "complete_parameters", lambda *_: 0)
        run_live()
    commit(monkeypatch, "b")
    wanted = Execution(tiny_config()).parameters
    assert f"added: {len(wanted)} parameters" in succeed()
    assert parent(workspace).data.params == wanted


def test_evaluations_of_several_commits_stay_where_they_are(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches curves recorded anew beside a later evaluation, and one that replaces a former one.

    The code of evaluate was changed and committed; DVC ran that stage alone, tracked or not.
    """
    commit(monkeypatch, "a")
    run_live()
    commit(monkeypatch, "b")
    later = {**NUMBERS, "vae": {"l2": 0.5}}
    (workspace / "results/metrics.json").write_text(json.dumps(later))
    figures = [workspace / "results" / n for n in ("figures/samples.png", "errors.csv")]
    with track("evaluate", tiny_config()) as tracker:
        tracker.headline(
            evaluation.headline(later), [*figures, workspace / "results/metrics.json"]
        )
    state = everything(workspace)
    for letter in "bc":
        commit(monkeypatch, letter)
        assert "everything is recorded, nothing to add" in succeed()
        assert everything(workspace) == state
    (workspace / "results/metrics.json").write_text(json.dumps({"vae": {"l2": 0.25}}))
    assert "train_" not in succeed()
    parents = [run for run in runs(workspace) if PARENT_TAG in run.data.tags]
    assert [run.data.metrics["vae.l2"] for run in parents] == [1 / 3, 0.5, 0.25]
    assert [run.data.params for run in parents] == [parents[0].data.params] * 3


def test_evaluation_that_lost_its_headline_gets_it(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches one that stays without metrics because a former commit's has the same numbers."""
    commit(monkeypatch, "a")
    run_live()
    commit(monkeypatch, "b")
    with track("evaluate", tiny_config()):
        pass
    lines = succeed().splitlines()
    assert lines[:-1] == ["added: headline: 3 metrics and 3 files"]
    parents = [run for run in runs(workspace) if PARENT_TAG in run.data.tags]
    assert [run.data.metrics["vae.l2"] for run in parents] == [1 / 3] * 2
    assert len(children(workspace, "train_prior")) == 1


def test_others_with_the_same_parameters_are_left_alone(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a curve that lands in the run of another, who trains or trained the same thing."""
    commit(monkeypatch, "a")
    with track("train_prior", tiny_config()) as tracker:
        tracker.record("prior", 2, {"loss": 0.75, "timestamp": START - 1})
    with track("train_encoder", tiny_config()):
        pass
    commit(monkeypatch, "b")
    with track("train_vae_baseline", tiny_config()):
        pass
    theirs = {run.info.run_id: (run.info.status, run.data.metrics) for run in runs(workspace)}
    commit(monkeypatch, "c")
    succeed()
    after = {run.info.run_id: (run.info.status, run.data.metrics) for run in runs(workspace)}
    assert theirs.items() <= after.items()
    key = Execution(tiny_config()).key
    (own,) = [run for run in runs(workspace) if run.data.tags.get(PARENT_TAG) == key]
    stages = [
        run.info.run_name
        for run in runs(workspace)
        if run.data.tags.get("mlflow.parentRunId") == own.info.run_id
    ]
    assert sorted(stages) == sorted(ROWS)


def test_equal_numbers_of_another_training_are_not_mine(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an evaluation that is not recorded because somebody else's has the same numbers."""
    commit(monkeypatch, "a")
    with pytest.MonkeyPatch.context() as patch:
        for stage, (name, rows) in ROWS.items():
            later = [(p, s, n | {"timestamp": n["timestamp"] + 1}) for p, s, n in rows]
            patch.setitem(ROWS, stage, (name, later))
        run_live()
    state = everything(workspace)
    commit(monkeypatch, "b")
    succeed()
    theirs, mine = [run for run in runs(workspace) if PARENT_TAG in run.data.tags]
    assert mine.data.metrics == theirs.data.metrics
    assert len(children(workspace, "train_prior")) == 2
    client(workspace).delete_run(mine.info.run_id)
    for run in runs(workspace):
        if run.data.tags.get("mlflow.parentRunId") == mine.info.run_id:
            client(workspace).delete_run(run.info.run_id)
    assert everything(workspace)[:2] == state[:2]


def test_stage_that_was_lost_joins_its_evaluation(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a headline recorded anew beside a stage that only lacked its curve."""
    commit(monkeypatch, "a")
    run_live(("train_prior", "train_vae_baseline", "evaluate"))
    commit(monkeypatch, "b")
    assert succeed().splitlines()[:-1] == ["added: train_encoder: 6 of 6 points in a new run"]
    (encoder,) = children(workspace, "train_encoder")
    assert encoder.data.tags["mlflow.parentRunId"] == parent(workspace).info.run_id


def test_applied_experiment_is_known_without_its_name(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an experiment recorded again after `dvc exp apply` and a commit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_EXP_NAME", "grave-fate")
        run_live()
    commit(monkeypatch, "b")
    assert "run grave-fate at " in succeed()
    assert parent(workspace).info.run_name == "grave-fate"


def test_dry_run_writes_nothing(workspace: Path) -> None:
    """Catches a database, an experiment, a run or a point made by asking."""
    run_live(("train_prior",))
    state = everything(workspace)
    output = succeed("--dry-run")
    assert everything(workspace) == state
    lines = output.splitlines()
    assert lines[:-1] == [
        "would add: train_vae_baseline: 2 of 2 points in a new run",
        "would add: train_encoder: 6 of 6 points in a new run",
        "would add: headline: 3 metrics and 3 files",
    ]
    (workspace / "mlflow.db").unlink()
    assert "would add: train_prior: 8 of 8 points in a new run" in succeed("--dry-run")
    assert not (workspace / "mlflow.db").exists()


def test_name_chooses_the_experiment(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an experiment of DVC whose numbers land in a run of another name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_EXP_NAME", "grave-fate")
        run_live(("train_prior",))
    succeed("--name", "grave-fate")
    assert parent(workspace).info.run_name == "grave-fate"
    assert len(children(workspace, "train_prior")) == 1


def test_name_means_that_run_alone(workspace: Path) -> None:
    """Catches results that were asked for under a name left in the run of another one."""
    run_live()
    assert "run grave-fate at " in succeed("--name", "grave-fate")
    assert len(children(workspace, "train_prior")) == 2
    assert "nothing to add" in succeed("--name", "grave-fate")


def test_experiment_of_other_parameters_is_refused(workspace: Path) -> None:
    """Catches the numbers of one experiment recorded under the parameters of another."""
    write_params(workspace / "params.yaml", tiny_params(beta=0.02))
    succeed("--name", "grave-fate")
    state = everything(workspace)
    write_params(workspace / "params.yaml", tiny_params())
    result = invoke("--name", "grave-fate")
    assert result.exit_code == 1
    assert "the run grave-fate in MLflow has other parameters" in result.output
    assert "(beta: 0.02)" in result.output
    assert everything(workspace) == state


def write_lock(folder: Path, *stages: str) -> None:
    """A dvc.lock as DVC would write it after these stages ran with the parameters of now."""
    tree = tiny_params()
    digits = tree["presets"]["digits"]
    known = {
        "train_prior": (
            {"sde": tree["sde"], "presets.digits.prior": digits["prior"]},
            [], ["models/digits/prior.safetensors", "results/curves/prior.csv"],
        ),
        "train_encoder": (
            {"beta": tree["beta"], "sde": tree["sde"], "presets.digits.latent": digits["latent"]},
            ["models/digits/prior.safetensors"],
            ["models/digits/encoder.safetensors", "results/curves/encoder.csv"],
        ),
        "evaluate": (
            {"evaluate": tree["evaluate"], "presets.digits.test_images": digits["test_images"]},
            ["models/digits/encoder.safetensors", "src/scorevae/evaluation/metrics.py"],
            ["results/metrics.json"],
        ),
    }  # fmt: skip
    locked = {
        stage: {
            "cmd": f"python stages/{stage}.py",
            "deps": [{"path": path, "hash": "md5", "md5": "0"} for path in reads],
            "params": {"params.yaml": params},
            "outs": [{"path": path, "hash": "md5", "md5": "0", "size": 1} for path in writes],
        }
        for stage, (params, reads, writes) in known.items()
        if stage in stages
    }
    (folder / "dvc.lock").write_text(
        yaml.safe_dump({"schema": "2.0", "stages": locked}, sort_keys=False)
    )


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
    write_lock(workspace, "train_prior", "train_encoder", "evaluate")
    write_params(workspace / "params.yaml", tiny_params(**changes))
    result = invoke("--name", "grave-fate")
    assert result.exit_code == 1
    remedy = "; run `dvc repro`, or restore params.yaml\n"
    assert result.output.startswith("Error: params.yaml: not the parameters that made results (")
    assert result.output.count(message) == 1
    assert result.output.endswith(f"){remedy}")
    assert runs(workspace) == []


def test_metrics_are_of_the_parameters_upstream(workspace: Path) -> None:
    """Catches old metrics recorded beside a new β while the encoder is being trained anew."""
    write_lock(workspace, "train_prior", "train_encoder", "evaluate")
    write_params(workspace / "params.yaml", tiny_params(beta=0.02))
    (workspace / "results/curves/encoder.csv").unlink()
    assert "beta: 0.01 in dvc.lock, now 0.02" in invoke().output
    (workspace / "results/metrics.json").unlink()
    assert "train_prior: 8 of 8 points in a new run" in succeed()


@pytest.mark.parametrize("form", ["1.0e-2", "1e-2", "+.01", "0.010"])
def test_the_same_number_written_otherwise_is_no_edit(workspace: Path, form: str) -> None:
    """Catches a refusal because DVC writes 0.01 where params.yaml says 1e-2."""
    write_lock(workspace, "train_prior", "train_encoder", "evaluate")
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


def test_damaged_lock_is_refused(workspace: Path) -> None:
    """Catches a traceback at what a merge left of dvc.lock."""
    for text in ("<<<<<<< HEAD\n", "", "stages: {evaluate: {outs: [1]}}"):
        (workspace / "dvc.lock").write_text(text)
        result = invoke()
        assert result.exit_code == 1
        assert result.output.startswith(f"Error: {workspace / 'dvc.lock'}: ")


def test_what_is_missing_is_named(workspace: Path) -> None:
    """Catches an incomplete run that passes for a complete one, and one that is not recorded."""
    (workspace / "results/curves/vae.csv").unlink()
    (workspace / "results/metrics.json").unlink()
    write_curve(workspace / "results/curves/prior.csv", ROWS["train_prior"][1][:2])
    assert succeed().splitlines()[:3] == [
        "left out: results/curves/prior.csv: ends at step 2 of 4; run `dvc repro`",
        "left out: results/curves/vae.csv: no such file; train_vae_baseline writes it",
        "left out: results/metrics.json: no such file; evaluate writes it",
    ]
    names = {run.info.run_name: run.info.status for run in runs(workspace)}
    assert names.pop("train_encoder") == "FINISHED"
    assert list(names.values()) == ["RUNNING"]  # the parent: not evaluated yet


WARM_START = "presets.digits.encoder.warm_start.training.steps"
OBJECTIVE = "presets.digits.encoder.training.steps"


def test_training_without_steps_has_nothing_to_record(workspace: Path) -> None:
    """Catches a traceback at a curve without rows, and a run without points for it."""
    params = tiny_params(**{"presets.digits.vae.training.steps": 0})
    write_params(workspace / "params.yaml", params)
    (workspace / "results/curves/vae.csv").write_text("phase,step\n")
    output = succeed()
    assert "left out" not in output
    assert "train_vae_baseline" not in output
    assert children(workspace, "train_vae_baseline") == []
    assert len(children(workspace, "train_encoder")) == 1


@pytest.mark.parametrize(
    ("changes", "rows", "outcome"),
    [
        ({OBJECTIVE: 0}, slice(1), "added: train_encoder: 2 of 2 points"),
        ({WARM_START: 0}, slice(1, 3), "added: train_encoder: 4 of 4 points"),
        ({OBJECTIVE: 0, WARM_START: 0}, slice(0), None),
        ({OBJECTIVE: 0, WARM_START: 8}, slice(1), "left out: {}: ends at step 4 of 8; run"),
        ({}, slice(1), "left out: {}: ends at step 4 of warm_start, not 4 of objective; run"),
        ({}, slice(0), "left out: {}: ends at step 0 of 4; run"),
    ],
)
def test_encoder_ends_with_the_last_phase_that_has_steps(
    workspace: Path, changes: dict[str, object], rows: slice, outcome: str | None
) -> None:
    """Catches a whole curve left out, and one killed between its phases that passes for whole."""
    write_params(workspace / "params.yaml", tiny_params(**changes))
    path = "results/curves/encoder.csv"
    write_curve(workspace / path, ROWS["train_encoder"][1][rows])
    lines = [line for line in succeed().splitlines()[:-1] if "encoder" in line]
    assert len(lines) == (outcome is not None)
    assert "".join(lines).startswith((outcome or "").format(path))


def test_nothing_to_record(workspace: Path) -> None:
    """Catches an empty run, and a success, where the folder is the wrong one."""
    result = invoke("--results", "elsewhere")
    assert result.exit_code == 1
    for name in ("curves/prior.csv", "curves/vae.csv", "curves/encoder.csv", "metrics.json"):
        assert f"elsewhere/{name}: no such file" in result.output
    assert "Error: elsewhere: nothing to record" in result.output
    assert runs(workspace) == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("curves/prior.csv", "step,loss\n4,1\n", "curves/prior.csv, line 2: not a training"),
        ("curves/prior.csv", "phase,step,loss\na,4,x\n", "curves/prior.csv, line 2: not a train"),
        ("curves/prior.csv", "phase,step\na,4,1\n", "curves/prior.csv, line 2: not a training"),
        ("curves/prior.csv", "phase,step,loss\nprior,4,1\n", "('timestamp')); run its stage"),
        ("metrics.json", "{", "metrics.json: not the metrics of evaluate"),
        ("metrics.json", "[]", "metrics.json: not the metrics of evaluate"),
        ("metrics.json", '{"vae": {"l2": "x"}}', "metrics.json: not the metrics of evaluate"),
    ],
)
def test_damaged_files_are_refused(workspace: Path, name: str, text: str, message: str) -> None:
    """Catches a traceback, or half of the results recorded before the fault is found."""
    (workspace / "results" / name).write_text(text)
    result = invoke()
    assert result.exit_code == 1
    assert message in result.output
    assert len(result.output.splitlines()) == 1
    assert runs(workspace) == []


def test_unreachable_server_is_named(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a traceback, and a password in it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:1")
    result = invoke()
    assert result.exit_code == 1
    assert "Error: MLflow at http://***@127.0.0.1:1 does not take the records (" in result.output
    assert "set MLFLOW_TRACKING_URI, and sync again" in result.output
    assert "secret" not in result.output
    assert len(result.output.splitlines()) == 1


def test_held_lock_is_named(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a command that waits for ever beside a stage that is stuck."""
    monkeypatch.setattr("scorevae.runtime.runs.LOCK_SECONDS", 0.0)
    with Execution(tiny_config()).lock():
        result = invoke()
    assert result.exit_code == 1
    assert str(workspace / ".mlflow.lock") in result.output

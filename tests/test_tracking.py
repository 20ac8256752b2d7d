"""tracking: what MLflow shows, and that nothing it does stops a training."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from tiny import tiny_config, tiny_params

from scorevae.config import Config, flatten, parse, resolved
from scorevae.runtime import runs as runtime
from scorevae.runtime import tracking
from scorevae.runtime.files import sha256
from scorevae.runtime.runs import CURVE_TAG, EXPERIMENT, PARENT_TAG, Execution, _git_commit
from scorevae.runtime.tracking import track

pytestmark = pytest.mark.usefixtures("dvc_root")


@pytest.fixture
def client(empty_database: Path, dvc_root: Path) -> MlflowClient:
    """A look at this test's own database, which is where tracking writes by default."""
    shutil.copy(empty_database, dvc_root / "mlflow.db")
    return MlflowClient(tracking_uri=f"sqlite:///{dvc_root / 'mlflow.db'}")


def runs(client: MlflowClient) -> list[Run]:
    """All runs, oldest first."""
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    return list(client.search_runs([experiment], order_by=["attributes.start_time ASC"]))


def parents(client: MlflowClient) -> list[Run]:
    """The runs of whole executions."""
    return [run for run in runs(client) if PARENT_TAG in run.data.tags]


def child(client: MlflowClient, stage: str) -> Run:
    """The run of one stage."""
    (found,) = [run for run in runs(client) if run.data.tags.get("stage") == stage]
    return found


def run_stage(*stages: str, **overrides: object) -> None:
    """Stages one after another that have nothing to record."""
    for stage in stages or ("download",):
        with track(stage, tiny_config(**overrides)):
            pass


POINT = ("prior", 1, {"loss": 1.0, "timestamp": 1})


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What went to the error stream since it was asked last."""
    return lambda: capsys.readouterr().err


def test_a_stage_is_a_child_run(client: MlflowClient, dvc_root: Path) -> None:
    """Catches curves without steps, lost artifacts, and weights that cannot be traced."""
    weights, curve = dvc_root / "prior.safetensors", dvc_root / "prior.csv"
    weights.write_text("weights")
    curve.write_text("step,loss\n")
    with track("train_prior", tiny_config()) as tracker:
        tracker.record("prior", 2, {"loss": 0.5, "test_loss": 0.75, "timestamp": 1000})
        tracker.record("prior", 4, {"loss": 0.25, "timestamp": 3000})
        tracker.weights("wrote", weights)
        tracker.weights("read", curve)
        tracker.artifact(curve)
        tracker.artifact(dvc_root / "prior.csv", "folder")
    run = child(client, "train_prior")
    (parent,) = parents(client)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "train_prior")
    tags = run.data.tags
    assert tags["mlflow.parentRunId"] == parent.info.run_id
    assert tags["mlflow.source.git.commit"] == _git_commit()
    assert tags["sha256.wrote.prior"] == sha256(weights)
    assert tags["sha256.read.prior"] == sha256(curve)
    assert tags[CURVE_TAG] == "1000"
    points = client.get_metric_history(run.info.run_id, "prior/loss")
    assert [(p.step, p.value, p.timestamp) for p in points] == [(2, 0.5, 1000), (4, 0.25, 3000)]
    assert run.data.metrics == {"prior/loss": 0.25, "prior/test_loss": 0.75}
    stored = [f.path for f in client.list_artifacts(run.info.run_id)]
    assert stored == ["folder", "prior.csv"]


def test_stages_share_their_parent(client: MlflowClient) -> None:
    """Catches a parent for each stage, and one parent for different parameters.

    And parameters of presets that were not used, or nested keys that are lost.
    """
    config = tiny_config(beta=0.02)
    run_stage("download", "train_prior", beta=0.02)
    (parent,) = parents(client)
    children = [child(client, stage) for stage in ("download", "train_prior")]
    assert {c.data.tags["mlflow.parentRunId"] for c in children} == {parent.info.run_id}
    found = parent.data.params
    assert (found["beta"], found["sde.kind"]) == ("0.02", "vp")
    assert found["presets.digits.prior.network.channels"] == "[8, 16]"
    other = config.model_copy(update={"presets": config.presets | {"other": config.selected}})
    assert flatten(resolved(other)) == found
    assert parent.info.status == "RUNNING"
    run_stage("evaluate", beta=0.03)
    assert len(parents(client)) == 2


def test_headline_ends_the_parent(client: MlflowClient, dvc_root: Path) -> None:
    """Catches a comparison page without results, and a parent that runs for ever."""
    figure = dvc_root / "comparison.png"
    figure.write_text("picture")
    numbers = {"scorevae.l2": 1.5, "vae.active_units": 4.0}
    with track("evaluate", tiny_config()) as tracker:
        tracker.headline(numbers, [figure])
    (parent,) = parents(client)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == numbers
    found = client.list_artifacts(parent.info.run_id, "figures")
    assert [f.path for f in found] == ["figures/comparison.png"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_is_recorded(client: MlflowClient, error: type[BaseException]) -> None:
    """Catches a failed stage shown as finished, and an exception swallowed by the tracker.

    And a second parent, or one that stays FAILED, after `dvc repro` is run again.
    """
    with pytest.raises(error), track("train_prior", tiny_config()):
        raise error
    assert child(client, "train_prior").info.status == "FAILED"
    (parent,) = parents(client)
    assert parent.info.status == "FAILED"
    run_stage("train_prior")
    (parent,) = parents(client)
    assert parent.info.status == "RUNNING"


def test_experiment_name_names_the_parent(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches runs that cannot be found by the name that `dvc exp show` prints.

    And a parent for each commit although DVC names the experiment, or numbers beside the
    parameters of an earlier experiment of the same name.
    """
    executions = (("grave-fate", "a", 0.02), ("calm-owl", "a", 0.02), ("grave-fate", "b", 0.02))
    for name, commit, beta in (*executions, ("grave-fate", "b", 0.03)):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        monkeypatch.setattr(runtime, "_git_commit", lambda commit=commit: 40 * commit)
        run_stage(beta=beta)
    found = [(run.info.run_name, run.data.params["beta"]) for run in parents(client)]
    assert found == [("grave-fate", "0.02"), ("calm-owl", "0.02"), ("grave-fate", "0.03")]


def test_all_lies_in_the_repository(
    client: MlflowClient, dvc_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches artifacts in the temporary copy of `dvc exp run --temp`, which is deleted.

    And another place than DVC_ROOT/mlflow.db when nothing is set.
    """
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    copy = dvc_root / "copy"
    copy.mkdir()
    monkeypatch.chdir(copy)
    run_stage()
    assert list(copy.iterdir()) == []
    assert len(parents(client)) == 1
    location = client.get_experiment_by_name(EXPERIMENT).artifact_location
    assert location == (dvc_root / "mlartifacts").as_uri()


def test_dead_server_costs_a_warning(
    dvc_root: Path, monkeypatch: pytest.MonkeyPatch, stderr: Callable[[], str]
) -> None:
    """Catches a training that ends because its tracking server does not answer.

    And a remedy that would record an experiment of `dvc exp run` elsewhere.
    """
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("DVC_EXP_NAME", "grave-fate")
    with track("train_prior", tiny_config()) as tracker:
        tracker.record(*POINT)
        tracker.artifact(dvc_root / "absent")
        tracker.weights("read", dvc_root / "absent")
        tracker.headline({"l2": 1.0}, [])
    start = "warning: MLflow tracking stopped ("
    (warning,) = [line for line in stderr().splitlines() if line.startswith(start)]
    assert warning.endswith(
        "; results/ holds every number, and when that is mended "
        "`dvc exp apply grave-fate && python -m scorevae.commands.sync --name grave-fate` "
        "records them"
    )


@pytest.mark.parametrize("stopped", ["tracking", "artifacts"])
def test_failing_call_stops_no_more_than_it_must(
    client: MlflowClient, dvc_root: Path, stderr: Callable[[], str], stopped: str
) -> None:
    """Catches an exception of the background thread that reaches the stage.

    And numbers lost because a file could not be stored, or a warning for each file.
    """
    with track("train_prior", tiny_config()) as tracker:
        for _ in range(2):
            if stopped == "tracking":
                tracker.weights("read", dvc_root / "absent")
            else:
                tracker.artifact(dvc_root / "absent")
        tracker.record(*POINT)
    assert stderr().count(f"warning: MLflow {stopped} stopped") == 1
    run = child(client, "train_prior")
    assert run.data.metrics == ({} if stopped == "tracking" else {"prior/loss": 1.0})
    assert stopped == "tracking" or run.info.status == "FINISHED"


def test_block_does_not_wait(monkeypatch: pytest.MonkeyPatch, stderr: Callable[[], str]) -> None:
    """Catches a stage that starts, records or ends only once the server answers; two warnings.

    MLflow is there only after the block is over: waiting for it would never end.
    """
    released = threading.Event()

    def slow() -> None:
        released.wait()
        raise RuntimeError("too late")

    monkeypatch.setattr(tracking, "load_mlflow", slow)
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.0)
    with track("train_prior", tiny_config()) as tracker:
        tracker.record(*POINT)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "tracking"]
    released.set()
    thread.join(60)
    assert not thread.is_alive()
    (line,) = stderr().splitlines()
    assert "(no answer within 0 s at the end from MLflow's import)" in line


def test_records_after_the_end_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches memory that fills for days once the server is gone."""
    monkeypatch.setattr(tracking, "load_mlflow", lambda: 1 / 0)
    with track("train_prior", tiny_config()) as tracker:
        tracker._worker.join(60)
        tracker.record(*POINT)
        assert tracker._worker._tasks.empty()


def test_parameters_that_a_dying_server_lost_are_added(client: MlflowClient) -> None:
    """Catches a parent that was created and then stays without parameters."""
    execution = Execution(tiny_config())
    execution.create_parent()
    run_stage()
    (parent,) = parents(client)
    assert parent.data.params == execution.parameters


NAME = "Aa0_-" + 55 * "z"  # of the longest, with every kind of character


def test_every_name_and_value_is_taken(
    client: MlflowClient, stderr: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a name that params.yaml may have and MLflow not, and a second parent.

    DVC lets an experiment's name hold quotes; MLflow cuts off long values without a word.
    """
    monkeypatch.setenv("DVC_EXP_NAME", 'it\'s 100%_"x"')
    tree = tiny_params(**{"evaluate.samplers.evaluations": list(range(1, 3000)), "preset": NAME})
    tree["presets"][NAME], tree["protocols"][NAME] = (
        tree["presets"]["digits"],
        {**tree["protocols"]["ode"]},
    )
    config = parse(Config, tree, "named")
    for beta in (0.01, 0.01, 0.02):
        with track("download", config.model_copy(update={"beta": beta})):
            pass
    assert stderr() == ""
    assert [run.data.params["beta"] for run in parents(client)] == ["0.01", "0.02"]
    found = parents(client)[0].data.params
    assert found[f"protocols.{NAME}.sampler"] == "dpm_solver_pp"
    assert f"presets.{NAME}.encoder.warm_start.training.validate_every" in found
    long = found["evaluate.samplers.evaluations"]
    assert len(long) == 6000
    assert long.startswith("[1, 2, 3, ")


def test_passwords_are_not_printed(
    monkeypatch: pytest.MonkeyPatch, stderr: Callable[[], str]
) -> None:
    """Catches the password of a tracking URI in the log of a CI job."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://user:secret@host/database")
    run_stage()
    error = stderr()
    assert "nonsense://***@host/database" in error
    assert "secret" not in error


def test_flatten() -> None:
    """Catches lost levels, and lists taken apart."""
    tree = {"a": 1, "b": {"c": [1, 2], "d": {"e": None}}}
    assert flatten(tree) == {"a": "1", "b.c": "[1, 2]", "b.d.e": "None"}


def test_commit_outside_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a stage that fails in an unpacked archive without Git."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert _git_commit() == "unknown"

"""tracking: what MLflow shows, and that nothing it does stops a training."""

import getpass
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from tiny import tiny_config, tiny_params, write_params

from scorevae.config import Config, flatten, parse, resolved
from scorevae.runtime import runs as runtime
from scorevae.runtime import tracking
from scorevae.runtime.files import sha256
from scorevae.runtime.interruption import Ended, Interrupted, signals_raised
from scorevae.runtime.runs import (
    CURVE_TAG,
    EXPERIMENT,
    PARENT_TAG,
    Execution,
    _git_commit,
    grouped,
)
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


def test_machine_is_recorded_where_it_is_wanted(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches runs that do not tell how full the machine was, and a curve made of it by sync."""
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    with track("train_prior", tiny_config()) as tracker:
        tracker.record(*POINT)
        tracker._worker.put(lambda session: time.sleep(1))
    run = child(client, "train_prior")
    machine = {name for name in run.data.metrics if name.startswith("system/")}
    assert "system/system_memory_usage_percentage" in machine
    points = Execution(tiny_config()).history(run)
    assert [point.metric for point in points] == ["prior/loss"]
    ends = run.info.status, threading.active_count()
    time.sleep(0.5)
    assert (client.get_run(run.info.run_id).info.status, threading.active_count()) == ends


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
    """Catches a comparison page without results, and a parent that runs for ever.

    Charts group by what stands before the slash; the comparison shows what lies at the root.
    """
    figures = [dvc_root / name for name in ("comparison.png", "samples.png", "report.html")]
    for figure in figures:
        figure.write_text("picture")
    numbers = {"vae.active_units": 4.0, "scorevae.l2": 1.5, "vae.l2": 25.0}
    with track("evaluate", tiny_config()) as tracker:
        tracker.headline(numbers, figures)
    (parent,) = parents(client)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == {"vae/active_units": 4.0, "scorevae/l2": 1.5, "vae/l2": 25.0}
    assert next(iter(grouped(numbers))) == "scorevae/l2"
    note = parent.data.tags["mlflow.note.content"].splitlines()
    assert note[:3] == ["| metric | scorevae | vae |", "|---|---|---|", "| `l2` | 1.500 | 25.00 |"]
    assert "| `psnr` | – | – |" in note
    stored = [f.path for f in client.list_artifacts(parent.info.run_id)]
    assert stored == ["comparison.png", "figures", "report.html"]
    found = client.list_artifacts(parent.info.run_id, "figures")
    assert [f.path for f in found] == ["figures/samples.png"]


def test_runs_say_what_they_are(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches runs that a person cannot tell apart, without source, user or commit."""
    run_stage("download", beta=0.02, seed=3)
    monkeypatch.setenv("DVC_EXP_NAME", "calm-owl")
    run_stage("evaluate", beta=0.02, seed=3)
    plain, named = parents(client)
    assert plain.info.run_name == "digits β=0.02 seed 3"
    assert named.info.run_name == "digits β=0.02 seed 3 (calm-owl)"
    sources = {"dvc repro": plain, "dvc exp run": named}
    sources |= {f"stages/{name}.py": child(client, name) for name in ("download", "evaluate")}
    for source, run in sources.items():
        tags = run.data.tags
        assert tags["mlflow.source.name"] == source
        assert tags["mlflow.source.type"] == "LOCAL"
        assert tags["mlflow.source.git.commit"] == _git_commit()
        assert tags["mlflow.user"] == getpass.getuser()


def test_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a stage that cannot be tracked in a container, whose users have numbers only."""
    monkeypatch.setattr(getpass, "getuser", lambda: {}["no such user"])
    assert Execution(tiny_config())._origin("stages/evaluate.py")["mlflow.user"] == "unknown"


def test_data_is_an_input(client: MlflowClient, dvc_root: Path) -> None:
    """Catches runs of which nobody knows the data, and one digest for two data sets."""
    digests = set()
    for number, stage in enumerate(("download", "evaluate")):
        meta = {"source": "drawn", "sha256": {"train_images.npy": str(number)}}
        (dvc_root / "meta.json").write_text(json.dumps(meta))
        with track(stage, tiny_config(beta=0.01 * number)) as tracker:
            tracker.data(dvc_root)
            tracker.data(dvc_root)
        run = child(client, stage)
        for known in (run, client.get_run(run.data.tags["mlflow.parentRunId"])):
            (data,) = [entry.dataset for entry in known.inputs.dataset_inputs]
            assert data.name == dvc_root.name
            assert json.loads(data.source) == {"uri": "drawn"}
            digests.add(data.digest)
    assert len(digests) == 2


STATES = [
    (ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (Interrupted, "KILLED"),
    (signal.SIGTERM, "KILLED"), (signal.SIGHUP, "KILLED"),
]  # fmt: skip


def stop(reason: type[BaseException] | signal.Signals) -> None:
    """End the block as a mistake or a signal does."""
    if isinstance(reason, signal.Signals):
        signal.raise_signal(reason)
    else:
        raise reason("stopped")


@pytest.mark.parametrize(("error", "status"), STATES)
def test_failure_is_recorded(
    client: MlflowClient, error: type[BaseException] | signal.Signals, status: str
) -> None:
    """Catches a failed stage shown as finished, a killed one as failed or as running for ever.

    An exception swallowed by the tracker; and a second parent, or one that stays FAILED, after
    `dvc repro` is run again.
    """
    raised = Ended if isinstance(error, signal.Signals) else error
    with pytest.raises(raised), track("train_prior", tiny_config()):
        stop(error)
    assert child(client, "train_prior").info.status == status
    (parent,) = parents(client)
    assert parent.info.status == status
    run_stage("evaluate")
    (parent,) = parents(client)
    assert parent.info.status == "RUNNING"


def test_signals_are_as_before_after_a_stage() -> None:
    """Catches handlers that are left behind, and a stage that `nohup` no longer protects."""
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run_stage()
        with signals_raised():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, former)


LOST = """
import os, sys
from pathlib import Path
from typing import Any
from scorevae.config import load_config
from scorevae.runtime.tracking import track
with track("train_prior", load_config(Path(sys.argv[1]))) as tracker:
    tracker.record("prior", 1, {"loss": 1.0, "timestamp": 1})
    tracker._worker.put(lambda session: os.kill(os.getpid(), 9))
    tracker._worker.join()
"""


def test_killed_without_a_word_is_marked_by_the_next(client: MlflowClient, dvc_root: Path) -> None:
    """Catches runs that are shown as running for ever after SIGKILL, and living ones ended."""
    params = write_params(dvc_root / "params.yaml", tiny_params(beta=0.5))
    subprocess.run([sys.executable, "-c", LOST, str(params)], check=False)
    assert child(client, "train_prior").info.status == "RUNNING"
    with track("download", tiny_config()) as tracker:
        tracker._worker.put(lambda session: run_stage("evaluate", beta=0.3))
    assert child(client, "train_prior").info.status == "KILLED"
    states = {run.data.params["beta"]: run.info.status for run in parents(client)}
    assert states == {"0.5": "KILLED", "0.01": "RUNNING", "0.3": "RUNNING"}
    assert child(client, "download").info.status == "FINISHED"


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
    found = [(run.data.tags[PARENT_TAG], run.data.params["beta"]) for run in parents(client)]
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


def test_artifacts_of_a_moved_folder(
    dvc_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Catches lines in the guide that do not lead MLflow to the artifacts of a moved folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (dvc_root / "file").write_text("text")
    with track("download", tiny_config()) as tracker:
        tracker.artifact(dvc_root / "file")
    moved = tmp_path_factory.mktemp("moved")
    for name in ("mlflow.db", "mlartifacts"):
        shutil.move(dvc_root / name, moved)
    guide = (Path(__file__).parents[1] / "docs/tracking.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    (lines,) = (snippet for snippet in snippets if "artifact_location" in snippet)
    lines = lines.replace("file:///former/folder", dvc_root.as_uri())
    monkeypatch.chdir(moved)
    exec(lines.replace("file:///new/folder", moved.as_uri()), {})
    there = MlflowClient(tracking_uri=f"sqlite:///{moved / 'mlflow.db'}")
    run = child(there, "download")
    assert [file.path for file in there.list_artifacts(run.info.run_id)] == ["file"]
    location = there.get_experiment_by_name(EXPERIMENT).artifact_location
    assert location == (moved / "mlartifacts").as_uri()


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


def commit(beta: float, **changes: Any) -> Config:  # noqa: ANN401 (any value of the file)
    """Commit params.yaml; what it then says."""
    tree = tiny_params(beta=beta, **changes)
    write_params(Path("params.yaml"), tree)
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "changed"]):
        subprocess.run(["git", *GIT_IDENTITY, *words], check=True)
    return parse(Config, tree, "committed")


GIT_IDENTITY = ("-c", "user.name=test", "-c", "user.email=test@example.invalid")


def test_the_note_says_what_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: MlflowClient
) -> None:
    """Catches a run of which nobody knows why it was made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    first = commit(0.01)
    assert Execution(first).changes() == ""  # nothing before it
    second = commit(0.02, **{"evaluate.figure_images": 4})
    found = re.fullmatch(
        r"Changed since commit (\w{10}): `beta` 0.01 → 0.02, `evaluate.figure_images` 3 → 4.",
        Execution(second).changes(),
    )
    assert found
    experiment = second.model_copy(update={"seed": 1})
    assert re.fullmatch(
        r"Changed since commit (\w{10}): `seed` 0 → 1.", Execution(experiment).changes()
    )
    with track("evaluate", experiment) as tracker:
        tracker.headline({"scorevae.l2": 1.5}, [])
    assert "`seed` 0 → 1." in parents(client)[-1].data.tags["mlflow.note.content"]


def test_without_git_a_note_says_nothing_of_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a run that needs Git, or a repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert Execution(tiny_config()).changes() == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Execution(tiny_config()).changes() == ""

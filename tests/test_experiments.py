"""Experiments of DVC for real: a queue with two workers, and a cache that two checkouts share."""

import csv
import io
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from test_pipeline import STAGES, Clone, make_clone, stages_run
from tiny import tiny_params, write_params

pytestmark = pytest.mark.slow


def wait_for_queue(clone: Clone, count: int) -> str:
    """The status of the queue once all of its tasks have ended."""
    while True:
        status = clone.run("dvc", "queue", "status")
        if status.count("Success") + status.count("Failed") == count:
            return status
        time.sleep(1)


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_queue_runs_each_experiment_with_its_own_code(tmp_path: Path) -> None:
    """Catches workers that disturb each other on fresh state, and code edited since queueing.

    All three need the same prior: who comes second must wait for it and not fail.
    """
    clone = make_clone(tmp_path)
    steps = {"presets.digits.prior.training.steps": 500}
    write_params(clone.folder / "params.yaml", tiny_params(**steps))
    clone.commit()
    queue = ("dvc", "exp", "run", "--queue", "--name")
    clone.run(*queue, "one", "-S", "beta=0.01")
    clone.run(*queue, "two", "-S", "beta=0.02")
    metrics = clone.folder / "src/scorevae/evaluation/metrics.py"
    code = metrics.read_text()
    metrics.write_text(code.replace("def l2_distances(", "def former_l2_distances(") + EDIT)
    clone.run(*queue, "three", "-S", "beta=0.03")
    metrics.write_text(code)
    clone.run("dvc", "queue", "start", "--jobs", "2")
    status = wait_for_queue(clone, 3)
    assert status.count("Success") == 3, status
    shown = csv.DictReader(io.StringIO(clone.run("dvc", "exp", "show", "--csv")))
    l2 = {row["Experiment"]: float(row["scorevae.l2"] or "nan") for row in shown}
    assert l2["three"] == 1000
    assert 0 < l2["one"] < 100
    assert 0 < l2["two"] < 100
    assert l2["one"] != l2["two"]
    client = MlflowClient(tracking_uri=clone.environment["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("scorevae")
    runs = client.search_runs([experiment.experiment_id])
    parents = {run.info.run_name: run for run in runs if "beta" in run.data.params}
    assert set(parents) == {"one", "two", "three"}
    for name, parent in parents.items():
        assert parent.info.status == "FINISHED"
        assert parent.data.metrics["scorevae.l2"] == pytest.approx(l2[name], rel=1e-9)
        identity = parent.info.run_id
        own = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == identity]
        # The first two are the same for all: whoever came later may have found them in the cache.
        names = {run.info.run_name for run in own}
        assert names - set(STAGES[:2]) == set(STAGES[2:])
        assert "metrics.json" in str(client.list_artifacts(identity, "figures"))


EDIT = """

def l2_distances(originals: Images, reconstructions: Images) -> Tensor:
    return torch.full((len(originals),), 1000.0)
"""


def test_checkout_elsewhere_reuses_the_cache(tmp_path: Path, empty_database: Path) -> None:
    """Catches anything of a path in commands, parameters or outputs, which would train anew."""
    outputs = []
    for name in ("first", "second"):
        clone = make_clone(tmp_path / name, empty_database)
        clone.run("dvc", "config", "--local", "cache.dir", str(tmp_path / "cache"))
        outputs.append(stages_run(clone.run("dvc", "repro", "train_prior")))
    assert outputs == [["download", "train_prior"], []]
    weights = [
        (tmp_path / name / "models/digits/prior.safetensors").read_bytes()
        for name in ("first", "second")
    ]
    assert weights[0] == weights[1]

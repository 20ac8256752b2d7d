"""What DVC makes of the graph for real: reruns, sweeps, a queue, a cache that is shared."""

import csv
import io
import os
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from pictures import encoded, noise
from pipeline import CHECK, STAGES, Clone, contents, make_clone, stages_run
from tiny import tiny_params, write_params

from scorevae.runtime.runs import PARENT_TAG

pytestmark = pytest.mark.slow
IDLE = {"train_variants"}  # trains nothing by default, and has no run in MLflow then


def runs_of(clone: Clone) -> tuple[dict[str, Run], dict[str, set[str]]]:
    """The finished parents in MLflow by their β, and for each the stages that are its children."""
    client = MlflowClient(tracking_uri=clone.environment["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("scorevae")
    runs = client.search_runs([experiment.experiment_id])
    parents = {run.data.params["beta"]: run for run in runs if "beta" in run.data.params}
    children = {}
    for beta, parent in parents.items():
        assert parent.info.status == "FINISHED"
        assert "scorevae/l2" in parent.data.metrics
        own = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        children[beta] = {run.info.run_name for run in own}
    return parents, children


def test_dvc_runs_what_changed_and_nothing_else(clone: Clone) -> None:
    """Catches deps or params that rerun too much or too little, and runs missing in MLflow."""
    assert stages_run(clone.run("dvc", "repro")) == []
    # An edit of a plot retrains nothing.
    figures = clone.folder / "src/scorevae/evaluation/figures.py"
    with figures.open("a") as code:
        code.write("\n# edited\n")
    assert stages_run(clone.run("dvc", "repro", "--dry")) == ["evaluate"]
    sweep = clone.run("dvc", "exp", "run", "--name", "swept", "-S", "beta=0.02")
    assert stages_run(sweep) == [CHECK, *STAGES[2:]]
    shown = clone.run("dvc", "exp", "show", "--csv")
    assert all(text in shown for text in ("swept", "scorevae.l2"))
    # MLflow holds one parent for the execution, with parameters and headline metrics.
    parents, children = runs_of(clone)
    assert children == {"0.02": set(stages_run(sweep)) - IDLE - {CHECK}}
    assert parents["0.02"].info.run_name == "digits β=0.02 seed 0 (swept)"
    # What the experiment has left goes by the command that the guide names, also if it is staged.
    clone.run("git", "add", "params.yaml")
    assert "beta: 0.02" in clone.run("git", "diff", "--cached", "params.yaml")
    clone.run("git", "checkout", "HEAD", "--", "params.yaml", "src")
    assert clone.run("git", "status", "--short", "params.yaml") == ""
    assert stages_run(clone.run("dvc", "repro")) == []


REFUSED = {
    "params.yaml: beta: got -1.0; ": {"beta": -1.0},
    "params.yaml: top level: preset 'nobody' is not under presets; choose one of: ": {
        "preset": "nobody"
    },
    "preset 'x;touch HACKED' is not under presets; choose one of: ": {"preset": "x;touch HACKED"},
    "reconstruct.protocol 'nobody' is not under protocols; choose one of: default, ": {
        "reconstruct.protocol": "nobody"
    },
}


def test_a_refused_value_costs_no_output(clone: Clone, tmp_path: Path) -> None:
    """Catches weights that DVC removes before a stage refuses, and names that reach the shell.

    And a traceback where `python` is not the one that has the packages.
    """

    def outputs() -> dict[str, bytes]:
        return {k: v for k, v in contents(clone.folder).items() if "checked" not in k}

    before = outputs()
    for message, override in REFUSED.items():
        write_params(clone.folder / "params.yaml", tiny_params(**override))
        output = clone.run("dvc", "repro", fails=True)
        assert message in output
        assert stages_run(output) == [CHECK]
        assert outputs() == before
    assert not (clone.folder / "HACKED").exists()
    bare = tmp_path / "bin/python"
    bare.parent.mkdir()
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    path = f"{bare.parent}{os.pathsep}{clone.environment['PATH']}"
    clone.environment["PATH"] = path
    output = clone.run("dvc", "repro", fails=True)
    assert "activate the environment (`source .venv/bin/activate`)" in output
    assert "Traceback" not in output
    # Back at the former values, the check runs anew and nothing else does.
    clone.environment["PATH"] = path.partition(os.pathsep)[2]
    clone.run("git", "checkout", "HEAD", "--", "params.yaml")
    assert set(stages_run(clone.run("dvc", "repro"))) <= {CHECK}
    write_params(clone.folder / "params.yaml", tiny_params(**{"evaluate.figure_images": 3}))
    assert stages_run(clone.run("dvc", "repro")) == []


@pytest.mark.faults
def test_going_back_to_a_preset_trains_nothing(clone: Clone, tmp_path: Path) -> None:
    """Catches outputs that DVC does not look up in its run cache (those marked persist)."""
    (tmp_path / "pictures").mkdir()
    for number, pixels in enumerate(noise(40, 64, 64)):
        (tmp_path / f"pictures/{number}.png").write_bytes(encoded(pixels))
    faces = {"root": f"{tmp_path}/pictures", "image.size": 16}  # too small for LPIPS's trunk
    changes = [f"--set-param=presets.faces_small.data.{key}={v}" for key, v in faces.items()]
    command = ("dvc", "exp", "run", "train_prior")
    other = clone.run(*command, "-S", "preset=faces_small", *changes)
    assert stages_run(other) == [CHECK, "download", "train_prior"]
    back = clone.run(*command, "-S", "preset=digits")
    assert stages_run(back) == [CHECK]


@pytest.mark.faults
def test_checkout_elsewhere_reuses_the_cache(
    finished: Path, finished_clone: Clone, tmp_path: Path, empty_database: Path
) -> None:
    """Catches anything of a path in commands, parameters or outputs, which would train anew."""
    clone = make_clone(tmp_path, empty_database)
    cache = finished_clone.folder / ".dvc/cache"
    clone.run("dvc", "config", "--local", "cache.dir", str(cache))
    assert stages_run(clone.run("dvc", "repro")) == []
    found = contents(clone.folder)
    assert {name: found[name] for name in contents(finished)} == contents(finished)


def wait_for_queue(clone: Clone, count: int) -> str:
    """The status of the queue once all of its tasks have ended."""
    while True:
        status = clone.run("dvc", "queue", "status")
        if status.count("Success") + status.count("Failed") == count:
            return status
        time.sleep(1)


@pytest.mark.faults
def test_queue_runs_each_experiment_with_its_own_code(
    tmp_path: Path, empty_database: Path
) -> None:
    """Catches workers that disturb each other on fresh state, and code edited since queueing.

    All three need the same prior: who comes second must wait for it and not fail.
    """
    clone = make_clone(tmp_path, empty_database, **{"presets.digits.prior.training.steps": 500})
    (tmp_path / "mlflow.db").unlink()
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
    # the workspace's row, which has no name, holds no metrics here
    l2 = {name: float(row["scorevae.l2"]) for row in shown if (name := row["Experiment"])}
    assert l2["three"] == 1000
    assert 0 < l2["one"] < 100
    assert 0 < l2["two"] < 100
    assert l2["one"] != l2["two"]
    client = MlflowClient(tracking_uri=clone.environment["MLFLOW_TRACKING_URI"])
    parents, children = runs_of(clone)
    names = {beta: run.data.tags[PARENT_TAG] for beta, run in parents.items()}
    assert set(names.values()) == {"one", "two", "three"}
    for beta, parent in parents.items():
        expected = l2[names[beta]]
        assert parent.data.metrics["scorevae/l2"] == pytest.approx(expected, rel=1e-9)
        # The first two are the same for all: whoever came later may have found them in the cache.
        assert children[beta] - set(STAGES[:2]) == set(STAGES[2:]) - IDLE
        assert "metrics.json" in str(client.list_artifacts(parent.info.run_id, "figures"))


EDIT = """

def l2_distances(originals: Images, reconstructions: Images) -> PerSample:
    return torch.full((len(originals),), 1000.0)
"""

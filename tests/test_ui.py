"""ui: the address that it prints, and what it starts."""

import os
import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from tiny import tiny_config

from scorevae.commands import ui
from scorevae.runtime.runs import EXPERIMENT
from scorevae.runtime.tracking import track

VIEW = "/runs?workflowType=machine_learning"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that the process would have become."""
    commands: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, command: commands.append(command))
    return commands


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(ui.main, [*arguments])
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    return result.output


def test_address_is_the_training_view_of_the_experiment(
    dvc_root: Path, started: list[list[str]]
) -> None:
    """Catches the pages for language models, which know nothing of a training, and another id."""
    with track("download", tiny_config()):
        pass
    uri = f"sqlite:///{dvc_root / 'mlflow.db'}"
    experiment = MlflowClient(tracking_uri=uri).get_experiment_by_name(EXPERIMENT).experiment_id
    address = f"open http://127.0.0.1:5000/#/experiments/{experiment}{VIEW}\n"
    assert invoke("--address-only") == address
    assert started == []
    assert invoke() == address
    ends = ["mlflow", "ui", "--host", "127.0.0.1", "--port", "5000", "--backend-store-uri", uri]
    assert started == [[sys.executable, "-m", *ends]]


def test_nothing_recorded_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[list[str]]
) -> None:
    """Catches a database made by asking, and an address that leads nowhere."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    first, second = invoke("--port", "5001", "--address-only").splitlines()
    assert first == "no run is recorded yet: `dvc repro` records the first"
    assert second == "open http://127.0.0.1:5001/#/experiments"
    assert not (tmp_path / "none.db").exists()


def test_a_server_elsewhere_is_named_and_none_started(
    monkeypatch: pytest.MonkeyPatch, started: list[list[str]]
) -> None:
    """Catches a second server before the first, and a password on the screen."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@host:5000/")
    monkeypatch.setattr(ui, "find_experiment", lambda client: "7")
    assert invoke() == f"open http://***@host:5000/#/experiments/7{VIEW}\n"
    assert started == []


def test_the_installed_pages_know_the_view() -> None:
    """Catches a release of MLflow that calls the view, or the path of the runs, otherwise."""
    import mlflow

    scripts = Path(mlflow.__file__).parent.glob("server/js/build/static/js/*.js")
    texts = [path.read_text(encoding="utf-8") for path in scripts]
    for pattern in (
        r'\.get\("workflowType"\)',
        r'"machine_learning"',
        r"experiments/:experimentId",
    ):
        assert any(re.search(pattern, text) for text in texts), pattern

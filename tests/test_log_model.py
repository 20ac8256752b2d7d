"""log-model: the trained model in MLflow, loaded back as MLflow's users do."""

from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from mlflow import MlflowClient

from scorevae import ScoreVAE
from scorevae.commands.main import main
from scorevae.config import load_config
from scorevae.runtime.runs import Execution
from scorevae.runtime.tracking import track

pytestmark = pytest.mark.filterwarnings("default")  # MLflow's own, of several libraries


def call(*words: str) -> Result:
    return CliRunner().invoke(main, ["log-model", *words])


@pytest.fixture
def uri(workspace: Path) -> str:
    """The records of a workspace with one execution, whose last stage has ended."""
    with track("evaluate", load_config(Path("params.yaml"))) as tracker:
        tracker.headline({"scorevae.l2": 1.0}, [])
    return f"sqlite:///{workspace / 'mlflow.db'}"


@pytest.mark.slow
def test_it_is_loaded_as_mlflow_loads_models(uri: str, workspace: Path) -> None:
    """Catches channels in the wrong place, a pickle, a run left open, a registered model."""
    done = call()
    assert done.exit_code == 0, f"{done.output}{done.exception!r}"
    client = MlflowClient(tracking_uri=uri)
    parent = Execution(load_config(Path("params.yaml"))).find_parent()
    assert parent is not None
    assert parent.info.status == "FINISHED"
    assert list(client.search_registered_models()) == []
    where = done.output.splitlines()[-1].split("'")[1]
    mlflow.set_tracking_uri(uri)
    served = mlflow.pyfunc.load_model(where)
    kept = {path.suffix for path in (workspace / "mlartifacts").rglob("*") if path.is_file()}
    assert not kept & {".pkl", ".pickle", ".pt", ".pth"}

    images = np.load("data/digits/test_images.npy")[:3]
    model = ScoreVAE.load("models/digits", device="cpu")
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    expected = model.reconstruct(pictures, seed=5).permute(0, 2, 3, 1).numpy()
    found = served.predict(images, params={"seed": 5})
    np.testing.assert_allclose(found, expected, atol=1e-5)
    codes = served.predict(images, params={"output": "latents"})
    np.testing.assert_allclose(codes, model.encode(pictures).mean.numpy(), atol=1e-5)
    assert served.input_example.dtype == np.uint8


def test_without_a_run_one_line_says_what_to_do(workspace: Path) -> None:
    """Catches a model that lies in a run of its own."""
    done = call()
    assert done.exit_code == 1
    assert done.output.splitlines()[-1].endswith(
        "has no run of these parameters; record it by `scorevae sync`"
    )


def test_without_a_model_one_line_says_so(workspace: Path) -> None:
    """Catches a traceback where nothing was trained."""
    done = call("--models", "nowhere")
    assert done.exit_code == 1
    assert done.output.startswith("Error: nowhere/digits")

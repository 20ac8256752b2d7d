"""``scorevae log-model``: the trained model in MLflow, beside the numbers of its run.

A command of its own, once a pipeline has ended: it takes MLflow a quarter of a minute, and no
training is to wait for that or to fail by it.
"""

from importlib.metadata import requires, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from scorevae.config import load_config
from scorevae.data.arrays import load_split
from scorevae.errors import UserError
from scorevae.runtime.runs import Execution, load_mlflow, one_line, server_errors

if TYPE_CHECKING:
    import numpy as np

PATH = click.Path(path_type=Path)
PACKAGE = __name__.partition(".")[0]
NAME = "model"  # of the model in its run
EXAMPLES = 2  # images that are stored with it, to try it out


@click.command()
@click.option("--params", type=PATH, default=Path("params.yaml"), show_default=True)
@click.option("--models", type=PATH, default=Path("models"), show_default=True)
@click.option("--data", type=PATH, default=Path("data"), show_default=True)
@click.option("--register", metavar="NAME", help="also as a new version of a registered model")
def log_model(params: Path, models: Path, data: Path, register: str | None) -> None:
    """Log the model of the preset in params.yaml to the MLflow run that trained it."""
    from scorevae import ScoreVAE

    config = load_config(params)
    model = ScoreVAE.load(models / config.preset, device="cpu")
    test = load_split(data / config.preset, "test", config.selected.data.image, EXAMPLES)
    load_mlflow()
    import mlflow

    execution = Execution(config)
    with TemporaryDirectory() as folder, server_errors(execution.uri):
        run = execution.find_parent() or next(iter(execution.similar_parents()), None)
        if run is None:
            raise UserError(
                f"MLflow at {one_line(execution.uri)} has no run of these parameters; record it "
                "by `scorevae sync`"
            )
        model.save_pretrained(folder)
        mlflow.set_tracking_uri(execution.uri)
        with mlflow.start_run(run_id=run.info.run_id, log_system_metrics=False):
            logged = mlflow.pyfunc.log_model(
                name=NAME,
                python_model=str(Path(__file__).with_name("served.py")),
                artifacts={"weights": folder},
                code_paths=[str(Path(__file__).parents[1])],
                signature=signature(test.images[:]),
                input_example=test.images[:],
                pip_requirements=requirements(),
                registered_model_name=register,
            )
    click.echo(f"mlflow.pyfunc.load_model({logged.model_uri!r}).predict(images)")


def signature(images: "np.ndarray") -> Any:  # noqa: ANN401 (MLflow's class)
    """uint8 images in; numbers out; what is asked for, and the seed, as parameters."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    from scorevae.commands.served import OUTPUTS

    shape = (-1, *images.shape[1:])
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), shape)]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), shape)]),
        params=ParamSchema(
            [ParamSpec("output", "string", OUTPUTS[0]), ParamSpec("seed", "long", 0)]
        ),
    )


def requirements() -> list[str]:
    """What this package needs, in the versions that are here. MLflow's own guess takes long."""
    names = [text.split(">")[0] for text in requires(PACKAGE) or []]
    return [f"{name}=={version(name)}" for name in names if name != "dvc"]

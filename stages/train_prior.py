"""Stage train_prior: the unconditional diffusion model, trained here or by others."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # this checkout's code

from scorevae.runtime.environment import check_environment

check_environment()

import click

from scorevae.config import load_config
from scorevae.networks.pretrained.importing import import_prior
from scorevae.networks.prior import PriorHeader
from scorevae.objectives import PriorObjective
from scorevae.sde import build_sde
from scorevae.training.stage import training_stage

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--params", type=PATH, default=Path("params.yaml"))
@click.option("--data", type=PATH, required=True, help="folder that download wrote")
@click.option("--output", type=PATH, required=True, help="weights to write")
@click.option("--curve", type=PATH, required=True, help="training curve to write (CSV)")
def main(params: Path, data: Path, output: Path, curve: Path) -> None:
    """Train the prior, or import it and go on from there."""
    config = load_config(params)
    image, prior = config.selected.data.image, config.selected.prior
    header, imported = PriorHeader(image=image, sde=config.sde, network=prior.network), None
    if prior.source == "pretrained" and prior.pretrained is not None:
        imported, header = import_prior(prior.pretrained, image, config.sde)
    objective = PriorObjective(sde=build_sde(config.sde), time=prior.time)
    with (
        training_stage("train_prior", config, data, curve, reads=[]) as run,
        run.state([prior, header], [data], output) as finished,
    ):
        if finished:
            return
        network = imported.to(run.device) if imported else run.build(header.build)
        if imported is None or prior.training.steps > 0:
            network = run.fit(network, objective, prior.training, "prior")
        run.save(output, network, header)


if __name__ == "__main__":
    main()

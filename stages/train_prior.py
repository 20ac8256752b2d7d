"""Stage train_prior: the unconditional diffusion model, by denoising score matching."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # this checkout's code

import click

from scorevae.config import load_config
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
    """Train the prior."""
    config = load_config(params)
    image, prior = config.selected.data.image, config.selected.prior
    header = PriorHeader(image=image, sde=config.sde, network=prior.network)
    objective = PriorObjective(sde=build_sde(config.sde), time=prior.time)
    with (
        training_stage("train_prior", config, data, curve, reads=[]) as run,
        run.state([config.sde, prior], [data], output) as finished,
    ):
        if not finished:
            network = run.build(header.build)
            trained = run.fit(network, objective, prior.training, "prior")
            run.save(output, trained, header)


if __name__ == "__main__":
    main()

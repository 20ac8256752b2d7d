"""Stage train_vae_baseline: the β-VAE, with the encoder's architecture without time."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # this checkout's code

from scorevae.runtime.environment import check_environment

check_environment()

import click

from scorevae.config import load_config
from scorevae.networks.vae import VAEHeader
from scorevae.objectives import VAEObjective
from scorevae.training.stage import training_stage

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--params", type=PATH, default=Path("params.yaml"))
@click.option("--data", type=PATH, required=True, help="folder that download wrote")
@click.option("--output", type=PATH, required=True, help="weights to write")
@click.option("--curve", type=PATH, required=True, help="training curve to write (CSV)")
def main(params: Path, data: Path, output: Path, curve: Path) -> None:
    """Train the VAE."""
    config = load_config(params)
    preset = config.selected
    image, latent, network = preset.data.image, preset.latent, preset.encoder.network
    header = VAEHeader(image=image, latent=latent, network=network)
    objective = VAEObjective(latent=latent, beta=config.beta, error=preset.vae.error)
    determines = (config.beta, float(latent), network, preset.vae)
    with (
        training_stage("train_vae_baseline", config, data, curve, reads=[]) as run,
        run.state(determines, [data], output) as finished,
    ):
        if not finished:
            vae = run.build(header.build)
            trained = run.fit(vae, objective, preset.vae.training, "vae")
            run.save(output, trained, header)


if __name__ == "__main__":
    main()

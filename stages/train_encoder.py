"""Stage train_encoder: the time-dependent encoder, warm start first, then the objective."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # this checkout's code

from scorevae.runtime.environment import check_environment

check_environment()

import click

from scorevae.config import load_config
from scorevae.networks.encoder import EncoderHeader, copy_trunk
from scorevae.networks.prior import PriorHeader, load_prior
from scorevae.networks.vae import VAEHeader, load_vae
from scorevae.networks.weights import check_header, read_header
from scorevae.objectives import EncoderObjective, WarmStartObjective
from scorevae.score import prior_score
from scorevae.training.stage import training_stage

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--params", type=PATH, default=Path("params.yaml"))
@click.option("--data", type=PATH, required=True, help="folder that download wrote")
@click.option("--prior", "prior_path", type=PATH, required=True, help="weights of the prior")
@click.option("--vae", "vae_path", type=PATH, required=True, help="weights of the VAE")
@click.option("--output", type=PATH, required=True, help="weights to write")
@click.option("--curve", type=PATH, required=True, help="training curve to write (CSV)")
def main(
    params: Path, data: Path, prior_path: Path, vae_path: Path, output: Path, curve: Path
) -> None:
    """Train the encoder."""
    config = load_config(params)
    preset, settings = config.selected, config.selected.encoder
    image, latent, network = preset.data.image, preset.latent, settings.network
    check_header(prior_path, read_header(prior_path, PriorHeader), sde=config.sde, image=image)
    vae_header = read_header(vae_path, VAEHeader)
    check_header(vae_path, vae_header, image=image, latent=latent, network=network)
    form = config.objective.log_determinant
    header = EncoderHeader(
        image=image, sde=config.sde, latent=latent, network=network, log_determinant=form
    )
    determines = (config.beta, config.sde, config.objective, float(latent), settings)
    with (
        training_stage("train_encoder", config, data, curve, [prior_path, vae_path]) as run,
        run.state(determines, [data, prior_path, vae_path], output) as finished,
    ):
        if finished:
            return
        prior, vae = load_prior(prior_path), load_vae(vae_path)
        sde, warm = prior.sde, settings.warm_start
        score = prior_score(prior.network.to(run.device), sde)
        teacher = vae.network.encoder.to(run.device)
        regression = WarmStartObjective(warm, sde=sde, teacher=teacher)
        objective = EncoderObjective(
            config.objective, sde=sde, prior=score, beta=config.beta, latent=latent
        )
        encoder = run.build(header.build)
        if warm.training.steps > 0:
            copy_trunk(teacher, encoder)
            encoder = run.fit(encoder, regression, warm.training, "warm_start")
        trained = run.fit(encoder, objective, settings.training, "objective")
        run.save(output, trained, header)


if __name__ == "__main__":
    main()

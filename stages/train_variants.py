"""Stage train_variants: the further systems that `variants` names; by default there is none."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # this checkout's code

from scorevae.runtime.environment import check_environment

check_environment()

import click

from scorevae.config import Config, load_config
from scorevae.runtime.files import replacing, sha256

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--params", type=PATH, default=Path("params.yaml"))
@click.option("--data", type=PATH, required=True, help="folder that download wrote")
@click.option("--prior", "prior_path", type=PATH, required=True, help="weights of the prior")
@click.option("--encoder", "encoder_path", type=PATH, required=True, help="those of the encoder")
@click.option("--output", type=PATH, required=True, help="folder of weights to write")
@click.option("--curve", type=PATH, required=True, help="training curve to write (CSV)")
def main(
    params: Path, data: Path, prior_path: Path, encoder_path: Path, output: Path, curve: Path
) -> None:
    """Train what is named, or write an empty folder and the head of a curve."""
    config = load_config(params)
    if config.variants:
        train(config, data, prior_path, encoder_path, output, curve)
        return
    with replacing(output) as temporary:
        temporary.mkdir()
    with replacing(curve) as temporary:
        temporary.write_text("phase,step\n")


def train(
    config: Config, data: Path, prior_path: Path, encoder_path: Path, output: Path, curve: Path
) -> None:
    """One variant after the other, each of whose bits follow from its own name and settings."""
    # Here, since most runs have nothing to do: PyTorch takes seconds.
    from scorevae.networks.conditional import DiffusionDecoderHeader
    from scorevae.networks.corrector import CorrectorHeader
    from scorevae.networks.encoder import load_encoder
    from scorevae.networks.prior import load_prior
    from scorevae.networks.weights import Trained, check_header
    from scorevae.objectives import CorrectorObjective, DiffusionDecoderObjective
    from scorevae.score import Posterior, prior_score
    from scorevae.training.stage import training_stage

    preset, reads = config.selected, [prior_path, encoder_path]
    image, latent, network = preset.data.image, preset.latent, preset.encoder.network
    prior, encoder = load_prior(prior_path), load_encoder(encoder_path)
    sde, weighting, beta = prior.sde, config.objective, config.beta
    check_header(prior_path, prior.header, sde=config.sde, image=image)
    own = {"sde": config.sde, "image": image, "network": network}
    check_header(encoder_path, encoder.header, **own, latent=latent)
    determines = (beta, config.sde, weighting, float(latent), network, preset.prior.network)
    variants = (preset.corrector, preset.diffusion_decoder, *config.variants)
    trained: dict[str, Trained] = {}
    weights = [output / f"{name}.safetensors" for name in config.variants]
    with (
        training_stage("train_variants", config, data, curve, reads) as run,
        run.state([*determines, *variants], [data, *reads], *weights) as finished,
    ):
        if finished:
            return
        if "corrector" in config.variants:
            pair = Posterior(
                prior_score(prior.network.to(run.device), sde),
                encoder.network.to(run.device),
                log_determinant=encoder.header.log_determinant == "full",
            )
            corrector = CorrectorHeader(
                image=image, sde=config.sde, latent=latent, encoder=network,
                network=preset.corrector.network,
                prior_sha256=sha256(prior_path), encoder_sha256=sha256(encoder_path),
            )  # fmt: skip
            regression = CorrectorObjective(weighting, sde=sde, latent=latent, posterior=pair)
            settings = preset.corrector.training
            fitted = run.fit(run.build(corrector.build), regression, settings, "corrector")
            trained["corrector"] = fitted, corrector
        if "diffusion_decoder" in config.variants:
            decoder = DiffusionDecoderHeader(
                image=image, sde=config.sde, latent=latent, encoder=network,
                network=preset.prior.network, conditioning=preset.diffusion_decoder.conditioning,
            )  # fmt: skip
            objective = DiffusionDecoderObjective(weighting, sde=sde, latent=latent, beta=beta)
            settings = preset.diffusion_decoder.training
            fitted = run.fit(run.build(decoder.build), objective, settings, "diffusion_decoder")
            trained["diffusion_decoder"] = fitted, decoder
        run.save_folder(output, trained)


if __name__ == "__main__":
    main()

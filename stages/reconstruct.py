"""Stage reconstruct: the test images through ScoreVAE and through the VAE."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # this checkout's code

import click

from scorevae.config import load_config
from scorevae.data import load_split, to_tensor, to_unit_range
from scorevae.files import replacing
from scorevae.model import ScoreVAE, VAEBaseline
from scorevae.networks.encoder import load_encoder
from scorevae.networks.prior import load_prior
from scorevae.networks.vae import load_vae
from scorevae.progress import progress
from scorevae.randomness import make_generator
from scorevae.reconstructions import Reconstructions, save
from scorevae.tracking import track

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--params", type=PATH, default=Path("params.yaml"))
@click.option("--data", type=PATH, required=True, help="folder that download wrote")
@click.option("--prior", "prior_path", type=PATH, required=True, help="weights of the prior")
@click.option("--encoder", "encoder_path", type=PATH, required=True, help="weights of the encoder")
@click.option("--vae", "vae_path", type=PATH, required=True, help="weights of the VAE")
@click.option("--output", type=PATH, required=True, help="folder to write")
def main(
    params: Path, data: Path, prior_path: Path, encoder_path: Path, vae_path: Path, output: Path
) -> None:
    """Reconstruct."""
    config = load_config(params)
    settings, sampling, preset = config.reconstruct, config.sampling, config.selected
    images = load_split(data, "test", preset.data.image, preset.test_images).images
    originals = to_unit_range(to_tensor(images))
    prior, encoder, vae = load_prior(prior_path), load_encoder(encoder_path), load_vae(vae_path)
    model = ScoreVAE(prior, encoder, sampling=sampling, batch=settings.batch)
    with track("reconstruct", config) as tracker, replacing(output) as temporary:
        for path in (prior_path, encoder_path, vae_path):
            tracker.weights("read", path)
        posterior = model.encode(originals)
        noise = make_generator("cpu", config.seed, "reconstruct", "z")
        z = posterior.mean if sampling.z == "mean" else posterior.sample(noise)
        with progress("reconstruct", 0, len(originals)) as report:
            decoded = model.decode(z, guidance=settings.guidance, seed=config.seed, report=report)
        temporary.mkdir()
        save(temporary, "scorevae", Reconstructions(decoded, posterior))
        save(temporary, "vae", VAEBaseline(vae, batch=settings.batch).reconstruct(originals))


if __name__ == "__main__":
    main()

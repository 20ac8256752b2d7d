"""Stage reconstruct: the test images through ScoreVAE and through the VAE."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # this checkout's code

import click

from scorevae.autoencoders import ScoreVAE, VAEBaseline
from scorevae.config import load_config
from scorevae.data.arrays import load_split, to_tensor, to_unit_range
from scorevae.networks.encoder import load_encoder
from scorevae.networks.prior import load_prior
from scorevae.networks.vae import load_vae
from scorevae.reconstruct import reconstruct
from scorevae.reconstructions import save
from scorevae.runtime.files import replacing
from scorevae.runtime.memory import explaining_memory
from scorevae.runtime.state import code_of, resumable, state_key
from scorevae.runtime.tracking import track

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
    weights = [prior_path, encoder_path, vae_path]
    images = load_split(data, "test", preset.data.image, preset.test_images).images
    prior, encoder = load_prior(prior_path), load_encoder(encoder_path)
    model = ScoreVAE(prior, encoder, sampling=sampling, batch=settings.batch)
    vae = VAEBaseline(load_vae(vae_path), batch=settings.batch)
    inputs = [data, *weights, *code_of("reconstruct")]
    key = state_key([config.seed, settings, sampling, len(images)], inputs)
    remedy = f"lower reconstruct.batch ({settings.batch})"
    with (
        track("reconstruct", config) as tracker,
        resumable("reconstruct", key, repeats=True) as state,
    ):
        for path in weights:
            tracker.weights("read", path)
        with explaining_memory(remedy), replacing(output) as temporary:
            originals = to_unit_range(to_tensor(images))
            both = reconstruct(model, vae, originals, config, state.batches())
            temporary.mkdir()
            for name, reconstructions in both.items():
                save(temporary, name, reconstructions)


if __name__ == "__main__":
    main()

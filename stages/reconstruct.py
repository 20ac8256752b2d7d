"""Stage reconstruct: the test images through ScoreVAE and through the VAE."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # this checkout's code

import click

from scorevae.config import Config, load_config
from scorevae.data import load_split, to_tensor, to_unit_range
from scorevae.files import replacing
from scorevae.gaussian import Latents
from scorevae.interruption import Interrupted, stop_requests
from scorevae.memory import explaining_memory
from scorevae.model import Images, ScoreVAE, VAEBaseline
from scorevae.networks.encoder import load_encoder
from scorevae.networks.prior import load_prior
from scorevae.networks.vae import load_vae
from scorevae.progress import progress
from scorevae.randomness import make_generator
from scorevae.reconstructions import Reconstructions, save
from scorevae.state import BatchFolder, resumable, state_key
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
    weights = [prior_path, encoder_path, vae_path]
    key = state_key([config.seed, settings, sampling, len(originals)], [data, *weights])
    remedy = f"lower reconstruct.batch ({settings.batch})"
    with track("reconstruct", config) as tracker, resumable("reconstruct", key) as state:
        for path in weights:
            tracker.weights("read", path)
        with explaining_memory(remedy), replacing(output) as temporary:
            posterior = model.encode(originals)
            noise = make_generator("cpu", config.seed, "reconstruct", "z")
            z = posterior.mean if sampling.z == "mean" else posterior.sample(noise)
            decoded = _decode(model, z, config, state.batches())
            temporary.mkdir()
            save(temporary, "scorevae", Reconstructions(decoded, posterior))
            save(temporary, "vae", VAEBaseline(vae, batch=settings.batch).reconstruct(originals))
        state.discard()


def _decode(model: ScoreVAE, z: Latents, config: Config, kept: BatchFolder) -> Images:
    """Decode batch by batch; a run that is started again goes on after the last finished one."""
    with progress("reconstruct", kept.rows(), len(z)) as shown, stop_requests() as stopping:

        def report(done: int) -> None:
            shown(done)
            if (reason := stopping()) and done < len(z):
                raise Interrupted(
                    f"reconstruct: stopped by {reason}; {done} of {len(z)} images are saved, and "
                    "the same command goes on from there"
                )

        guidance = config.reconstruct.guidance
        return model.decode(z, guidance=guidance, seed=config.seed, report=report, kept=kept)


if __name__ == "__main__":
    main()

"""What the stage reconstruct computes: the test images through ScoreVAE and through the VAE."""

from scorevae.autoencoders import (
    ScoreVAE,
    VAEBaseline,
)
from scorevae.config import Config
from scorevae.randomness import make_generator
from scorevae.reconstructions import Reconstructions
from scorevae.runtime.interruption import Interrupted, stop_requests
from scorevae.runtime.progress import progress
from scorevae.runtime.state import BatchFolder
from scorevae.shapes import Images, Latents


def reconstruct(
    model: ScoreVAE, vae: VAEBaseline, originals: Images, config: Config, kept: BatchFolder
) -> dict[str, Reconstructions]:
    """Reconstructions of both systems by name; batches found in ``kept`` are not drawn again.

    Raises:
        Interrupted: stopped from outside; the finished batches are saved.
    """
    posterior = model.encode(originals)
    noise = make_generator("cpu", config.seed, "reconstruct", "z")
    z = posterior.mean if config.sampling.z == "mean" else posterior.sample(noise)
    decoded = _decode(model, z, config, kept)
    return {
        "scorevae": Reconstructions(decoded, posterior),
        "vae": vae.reconstruct(originals),
    }


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

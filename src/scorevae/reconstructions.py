"""The stage reconstruct: test images through every system, batch by batch, kept for evaluate."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from scorevae.autoencoders.drawing import DiffusionSystem, chosen_z
from scorevae.autoencoders.system import System
from scorevae.config import Config
from scorevae.data.arrays import read_array
from scorevae.errors import UserError
from scorevae.gaussian import DiagonalGaussian
from scorevae.runtime.interruption import Interrupted, stop_requests
from scorevae.runtime.progress import progress
from scorevae.runtime.state import BatchFolder
from scorevae.runtime.team import ALONE, Team
from scorevae.shapes import Images, Latents

KINDS = ("images", "mean", "log_variance")  # the files of a system


class Reconstructions(NamedTuple):
    """Test images as one system gives them back, in [0, 1], unclamped, in the data's order."""

    images: Images
    posterior: DiagonalGaussian


def reconstruct(
    systems: Mapping[str, System],
    originals: Images,
    config: Config,
    kept: BatchFolder,
    team: Team = ALONE,
) -> dict[str, Reconstructions]:
    """Reconstructions of every system by name; batches found in ``kept`` are not drawn again.

    A system that draws takes z as the protocol says, one that does not the mean of q(z|x). The
    processes of a team divide the batches that are drawn, and each is given all.

    Raises:
        Interrupted: a process was stopped from outside; the finished batches are saved.
    """
    found = {}
    for name, system in systems.items():
        posterior = system.encode(originals)
        if isinstance(system, DiffusionSystem):
            z = latents(posterior, config)
            images = _decode(system.with_share(team.map), z, config, kept.of(name), team)
        else:
            images = system.decode(posterior.mean)
        found[name] = Reconstructions(images, posterior)
    return found


def latents(posterior: DiagonalGaussian, config: Config) -> Latents:
    """The z that the protocol reconstructs from: the mean of q(z|x_0), or a sample of it."""
    return chosen_z(posterior, config.sampling.z, config.seed)


def _decode(
    model: DiffusionSystem, z: Latents, config: Config, kept: BatchFolder, team: Team
) -> Images:
    """Decode batch by batch; a run that is started again goes on after the last finished one."""
    with progress("reconstruct", kept.rows(), len(z)) as shown, stop_requests() as stopping:

        def report(done: int) -> None:
            shown(done)
            reasons = [reason for reason in team.exchange(stopping()) if reason]
            if reasons and done < len(z):
                raise Interrupted(
                    f"reconstruct: stopped by {reasons[0]}; {kept.rows()} of {len(z)} images are "
                    "saved, and the same command goes on from there"
                )

        guidance = config.reconstruct.guidance
        return model.decode(z, guidance=guidance, seed=config.seed, report=report, kept=kept)


def save(folder: Path, name: str, reconstructions: Reconstructions) -> None:
    """Write ``<name>_{images,mean,log_variance}.npy`` (float32, N×C×H×W and N×latent)."""
    images, posterior = reconstructions
    for kind, values in zip(KINDS, (images, *posterior), strict=True):
        np.save(folder / f"{name}_{kind}.npy", values.numpy())


def load(folder: Path, name: str, originals: Images) -> Reconstructions:
    """Read what :func:`save` wrote for these originals.

    Raises:
        UserError: a file is missing or no array, or its images are not those of the test set.
    """
    images, mean, log_variance = (
        torch.from_numpy(read_array(folder / f"{name}_{kind}.npy", "reconstruct"))
        for kind in KINDS
    )
    if images.shape != originals.shape:
        raise UserError(
            f"{folder / name}_images.npy: shape {tuple(images.shape)}, the test images have "
            f"{tuple(originals.shape)}; run the stage reconstruct again"
        )
    return Reconstructions(images, DiagonalGaussian(mean, log_variance))

"""The β-VAE that ScoreVAE is compared with, as an auto-encoder."""

from pathlib import Path
from typing import Self

import torch

from scorevae.autoencoders.names import BASELINE_FILE
from scorevae.autoencoders.system import DEFAULT_BATCH, System
from scorevae.data.arrays import to_unit_range
from scorevae.networks.vae import TrainedVAE, load_vae
from scorevae.networks.weights import Trained
from scorevae.score import Encoder
from scorevae.shapes import Images, Latents


class VAE(System):
    """The β-VAE as an auto-encoder; the mean of p(x|z) is its image."""

    def __init__(
        self,
        vae: TrainedVAE,
        *,
        device: torch.device | str | None = None,
        batch: int = DEFAULT_BATCH,
    ) -> None:
        """Wrap a VAE.

        Args:
            vae: from :func:`scorevae.networks.vae.load_vae`.
            device: where the network runs, as torch names it; CUDA if there is one, else the CPU.
            batch: images in one evaluation of the network, 1 or more.

        Raises:
            UserError: there is no such device.
        """
        weights: dict[str, Trained] = {BASELINE_FILE: vae}
        super().__init__(weights, vae.header, device=device, batch=batch)
        self._network = vae.network

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        device: torch.device | str | None = None,
        batch: int = DEFAULT_BATCH,
    ) -> Self:
        """Load ``vae.safetensors`` from a folder.

        Args:
            folder: the folder, as ``models/<preset>`` of a run.
            device: where the network runs, as torch names it; CUDA if there is one, else the CPU.
            batch: images in one evaluation of the network, 1 or more. It bounds the memory.

        Raises:
            UserError: the file is missing or foreign; there is no such device.
        """
        return cls(load_vae(Path(folder) / BASELINE_FILE), device=device, batch=batch)

    @property
    def encoder(self) -> Encoder:
        """The encoder, which knows no time."""
        return self._network.encoder

    @torch.no_grad()
    def decode(self, z: Latents, *, seed: int = 0) -> Images:
        """The mean of p(x|z) of each latent; nothing is drawn, so that no seed matters.

        Args:
            z: latents, (count, latent).
            seed: of no effect; systems that draw have one.

        Raises:
            UserError: latents have the wrong shape.
        """
        del seed
        self._check_latents(z)
        chunks = z.split(self.batch)
        decoded = [self._network.decoder(chunk.to(self.device)) for chunk in chunks]
        return torch.cat([to_unit_range(x).cpu() for x in decoded])

"""The paper's diffusion decoder: a conditional diffusion model trained with its encoder."""

from pathlib import Path
from typing import Self

import torch

from scorevae.autoencoders.drawing import DiffusionSystem, beside
from scorevae.autoencoders.manner import DEFAULT_SAMPLING
from scorevae.autoencoders.names import DIFFUSION_DECODER
from scorevae.autoencoders.system import DEFAULT_BATCH
from scorevae.config import SamplingConfig
from scorevae.networks.conditional import TrainedDiffusionDecoder, load_diffusion_decoder
from scorevae.networks.prior import PRIOR, Prior, load_prior
from scorevae.networks.weights import Trained
from scorevae.score import LearnedScore, conditional_score, prior_score


class DiffusionDecoder(DiffusionSystem):
    """An encoder q(z|x_0) and a conditional diffusion model ε(x_t, z, t), trained together.

    arXiv 2304.12141, §3.2. γ = 1 is the model; any other γ mixes its score with that of a prior
    of the same images, s_p + γ (s_θ − s_p).
    """

    def __init__(
        self,
        prior: Prior,
        decoder: TrainedDiffusionDecoder,
        *,
        device: torch.device | str | None = None,
        sampling: SamplingConfig = DEFAULT_SAMPLING,
        guidance: float = 1.0,
        batch: int = DEFAULT_BATCH,
    ) -> None:
        """Put a diffusion decoder beside a prior.

        Args:
            prior: from :func:`scorevae.networks.prior.load_prior`.
            decoder: from :func:`scorevae.networks.conditional.load_diffusion_decoder`.
            device: where networks run, as torch names it; CUDA if there is one, else the CPU.
            sampling: how images are drawn; a :class:`scorevae.config.ProtocolConfig` says which z
                to reconstruct from besides.
            guidance: γ of what decodes, 0 or more.
            batch: images in one evaluation of the networks, 1 or more.

        Raises:
            UserError: they were trained under different processes or image shapes.
        """
        prior = beside(prior, decoder.header, "diffusion decoder")
        weights: dict[str, Trained] = {PRIOR: prior, DIFFUSION_DECODER: decoder}
        posterior = LearnedScore(
            prior_score(prior.network, prior.sde),
            decoder.network.encoder,
            conditional_score(decoder.network.decoder, prior.sde),
        )
        super().__init__(
            weights,
            decoder.header,
            prior.sde,
            posterior,
            device=device,
            sampling=sampling,
            guidance=guidance,
            batch=batch,
        )

    @classmethod
    def _read(
        cls, folder: Path, prior: Path, device: torch.device | str | None, batch: int
    ) -> Self:
        decoder = load_diffusion_decoder(folder / DIFFUSION_DECODER)
        return cls(load_prior(prior), decoder, device=device, batch=batch)

"""ScoreVAE, and ScoreVAE+ which corrects its score."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Self, overload

import torch

from scorevae.autoencoders.drawing import DiffusionSystem, beside
from scorevae.autoencoders.manner import DEFAULT_SAMPLING
from scorevae.autoencoders.names import CORRECTOR, ENCODER
from scorevae.autoencoders.system import DEFAULT_BATCH, joined
from scorevae.config import SamplingConfig
from scorevae.data.given import Batches, Given, Pictures, over
from scorevae.errors import UserError
from scorevae.gaussian import DiagonalGaussian
from scorevae.networks.corrector import TrainedCorrector, load_corrector
from scorevae.networks.encoder import TrainedEncoder, load_encoder
from scorevae.networks.prior import PRIOR, Prior, load_prior
from scorevae.networks.weights import Trained
from scorevae.randomness import make_generator
from scorevae.sampling import Report
from scorevae.score import Posterior, conditional_score, of_coarser_code, prior_score
from scorevae.sde import perturb
from scorevae.shapes import Images


class ScoreVAE(DiffusionSystem):
    """p(x|z) ∝ p(x) q(z|x): a diffusion prior and a time-dependent encoder, no decoder.

    arXiv 2304.12141.
    """

    posterior: Posterior

    def __init__(
        self,
        prior: Prior,
        encoder: TrainedEncoder,
        *,
        device: torch.device | str | None = None,
        sampling: SamplingConfig = DEFAULT_SAMPLING,
        guidance: float = 1.0,
        batch: int = DEFAULT_BATCH,
    ) -> None:
        """Combine a prior and an encoder.

        Args:
            prior: from :func:`scorevae.networks.prior.load_prior`.
            encoder: from :func:`scorevae.networks.encoder.load_encoder`.
            device: where networks run, as torch names it; CUDA if there is one, else the CPU.
            sampling: how images are drawn; a :class:`scorevae.config.ProtocolConfig` says which z
                to reconstruct from besides.
            guidance: γ of what decodes, 0 or more.
            batch: images in one evaluation of the networks, 1 or more.

        Raises:
            UserError: prior and encoder were trained under different processes or image shapes.
        """
        prior = beside(prior, encoder.header, "encoder")
        weights: dict[str, Trained] = {PRIOR: prior, ENCODER: encoder}
        posterior = Posterior(
            prior_score(prior.network, prior.sde),
            encoder.network,
            log_determinant=encoder.header.log_determinant == "full",
        )
        super().__init__(
            weights,
            encoder.header,
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
        return cls(load_prior(prior), load_encoder(folder / ENCODER), device=device, batch=batch)

    def with_coarser_code(self, noise: float) -> Self:
        """The same networks for the code z' = z + s ε, ε ~ N(0, I), which tells less of an image.

        Exact, with nothing trained: q(z'|x_t) = N(μ, Σ + s² I). :meth:`encode` gives it for x_0;
        what is to be decoded is a sample of it, since its mean tells as much as z. A code made
        coarser twice has the sum of both s². The model is for this session: it is not saved, and
        compiled again by :meth:`with_precision` alone.

        Args:
            noise: s, above 0, in the units of z.

        Raises:
            UserError: s is not above 0 and finite.
        """
        if not 0 < noise < math.inf:
            raise UserError(f"noise: got {noise}; give a number above 0")
        other = copy.copy(self)
        encoder = of_coarser_code(self.posterior.encoder, noise)
        other.posterior = replace(self.posterior, encoder=encoder)
        other._unsavable = "a coarser code is not saved; save the model that it was made from"
        other._compiled = None  # which was of the other code
        return other

    @overload
    def encode_at(  # type: ignore[overload-overlap]
        self,
        images: Pictures,
        t: float,
        *,
        seed: int = ...,
        resize: bool = ...,
        progress: bool = ...,
    ) -> DiagonalGaussian: ...
    @overload
    def encode_at(
        self,
        images: Batches,
        t: float,
        *,
        seed: int = ...,
        resize: bool = ...,
        progress: bool = ...,
    ) -> Iterator[DiagonalGaussian]: ...
    def encode_at(
        self,
        images: Given,
        t: float,
        *,
        seed: int = 0,
        resize: bool = False,
        progress: bool = False,
    ) -> DiagonalGaussian | Iterator[DiagonalGaussian]:
        """q(z|x_t, t) of images to which the noise of time t is added.

        The noise follows from the seed alone: for several t it is the same, only scaled. At t = 0
        this is :meth:`encode`.

        Args:
            images: as :meth:`encode`.
            t: 0, or a time from the process's t_min to its t_max (``self.sde``).
            seed: of the noise; the further batches of a stream have seeds that follow from it.
            resize: as :meth:`encode`.
            progress: show how many images are done.

        Returns:
            As :meth:`encode`.

        Raises:
            UserError: as :meth:`encode`, or a time at which the encoder was never trained.
        """
        if t != 0 and not self.sde.t_min <= t <= self.sde.t_max:
            known = f"{self.sde.t_min} to {self.sde.t_max}"
            raise UserError(f"t: got {t}; give 0, or a time from {known}")

        def run(x: Images, seed: int, report: Report) -> DiagonalGaussian:
            return self._encode_at(x, t, seed, report) if t else self._encode(x, report)

        return over(
            images, self.image, run, name="encode", seed=seed, resize=resize, shown=progress
        )

    @torch.no_grad()
    def _encode_at(self, images: Images, t: float, seed: int, report: Report) -> DiagonalGaussian:
        noise = torch.randn(images.shape, generator=make_generator("cpu", seed, "encode_at"))
        parts, done = [], 0
        for chunk, added in zip(images.split(self.batch), noise.split(self.batch), strict=True):
            times = torch.full((len(chunk),), t, device=self.device)
            x_0, added = (2 * chunk - 1).to(self.device), added.to(chunk).to(self.device)
            parts.append(self.encoder(perturb(self.sde, x_0, times, added), times))
            report(done := done + len(chunk))
        return joined(parts)


class ScoreVAEPlus(ScoreVAE):
    """ScoreVAE+: a trained correction c(x_t, z, t) of ScoreVAE's score, s_p + ∇ln q + c.

    Version 2 of arXiv 2304.12141. γ multiplies all that z adds, ∇ln q + c.
    """

    def __init__(
        self,
        prior: Prior,
        encoder: TrainedEncoder,
        corrector: TrainedCorrector,
        *,
        device: torch.device | str | None = None,
        sampling: SamplingConfig = DEFAULT_SAMPLING,
        guidance: float = 1.0,
        batch: int = DEFAULT_BATCH,
    ) -> None:
        """Add a corrector to ScoreVAE.

        Args:
            prior: from :func:`scorevae.networks.prior.load_prior`.
            encoder: from :func:`scorevae.networks.encoder.load_encoder`.
            corrector: from :func:`scorevae.networks.corrector.load_corrector`.
            device: where networks run, as torch names it; CUDA if there is one, else the CPU.
            sampling: how images are drawn; a :class:`scorevae.config.ProtocolConfig` says which z
                to reconstruct from besides.
            guidance: γ of what decodes, 0 or more.
            batch: images in one evaluation of the networks, 1 or more.

        Raises:
            UserError: as ScoreVAE, or the corrector is for another process or image shape.
        """
        prior = beside(prior, corrector.header, "corrector")
        super().__init__(
            prior, encoder, device=device, sampling=sampling, guidance=guidance, batch=batch
        )
        self.weights = {**self.weights, CORRECTOR: corrector}
        network = corrector.network.to(self.device)
        self.posterior = replace(self.posterior, corrector=conditional_score(network, self.sde))

    def with_coarser_code(self, noise: float) -> Self:
        """Refused: the corrector was trained for z as it is.

        Args:
            noise: s.

        Raises:
            UserError: always.
        """
        raise UserError("ScoreVAE+ corrects for z as it is; make ScoreVAE's code coarser")

    @classmethod
    def _read(
        cls, folder: Path, prior: Path, device: torch.device | str | None, batch: int
    ) -> Self:
        encoder = folder / ENCODER
        corrector = load_corrector(folder / CORRECTOR, prior, encoder)
        networks = load_prior(prior), load_encoder(encoder), corrector
        return cls(*networks, device=device, batch=batch)

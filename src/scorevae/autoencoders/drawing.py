"""Auto-encoders that draw from p(x|z) by a reverse process."""

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Literal, Self, overload

import torch
from jaxtyping import Float
from torch import Tensor

from scorevae.autoencoders.fast import Fitting, in_precision
from scorevae.autoencoders.manner import decoding_manner
from scorevae.autoencoders.system import DEFAULT_BATCH, LatentHeader, System
from scorevae.config import DecodingConfig, Precision, ProtocolConfig, SamplingConfig
from scorevae.data.arrays import to_unit_range
from scorevae.data.given import Batches, Given, Pictures, over, reporting
from scorevae.errors import UserError
from scorevae.gaussian import DiagonalGaussian
from scorevae.networks.conditional import DiffusionDecoderHeader
from scorevae.networks.corrector import CorrectorHeader
from scorevae.networks.encoder import EncoderHeader
from scorevae.networks.prior import Prior
from scorevae.networks.weights import Trained
from scorevae.randomness import make_generator
from scorevae.runtime.compiled import Compiled, compiling
from scorevae.sampling import KeptBatches, Report, Share, draw_in_batches
from scorevae.score import ConditionalScore, Encoder, ScoreFn
from scorevae.sde import SDE
from scorevae.shapes import Groups, Images, Latents

ZKind = Literal["mean", "sample"]
DrawingHeader = EncoderHeader | CorrectorHeader | DiffusionDecoderHeader


def chosen_z(posterior: DiagonalGaussian, kind: ZKind, seed: int) -> Latents:
    """The z that is reconstructed from: the mean of q(z|x_0), or a sample of it."""
    if kind == "mean":
        return posterior.mean
    return posterior.sample(make_generator("cpu", seed, "reconstruct", "z"))


class DiffusionSystem(System):
    """What draws from p(x|z) by a reverse process: a score for each z, and an encoder.

    With a deterministic sampler (ddim, heun, dpm_solver_pp) ``batch`` does not change results
    beyond rounding, with a stochastic one the noise depends on it.
    """

    def __init__(
        self,
        weights: Mapping[str, Trained],
        header: LatentHeader,
        sde: SDE,
        posterior: ConditionalScore,
        *,
        device: torch.device | str | None,
        sampling: SamplingConfig,
        guidance: float,
        batch: int,
    ) -> None:
        """Draw by these scores, of the networks among ``weights``, under this process."""
        super().__init__(weights, header, device=device, batch=batch)
        self.sde, self.posterior = sde, posterior
        self.sampling, self.guidance = sampling, guidance
        self.precision: Precision | None = None
        self._share: Share = map
        self._fitting = Fitting("batch")
        self._compiled: Compiled[[Tensor, Tensor, Tensor, float], Tensor] | None = None

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        prior: Path | str | None = None,
        device: torch.device | str | None = None,
        sampling: SamplingConfig | None = None,
        guidance: float | None = None,
        batch: int = DEFAULT_BATCH,
    ) -> Self:
        """Load the system from its files in a folder; SYSTEMS lists them.

        Args:
            folder: the folder, as ``models/<preset>`` of a run.
            prior: the file of another prior to decode with: the encoder stays as it is. ScoreVAE+
                takes no other, since its corrector knows what the one of its training gets wrong;
                the diffusion decoder uses it where γ is not 1.
            device: where networks run, as torch names it; CUDA if there is one, else the CPU.
            sampling: how images are drawn; None is as the run did, from the folder's
                ``decoding.json``, or the shipped default where there is no such file.
            guidance: γ of what decodes, 0 or more; None likewise.
            batch: images in one evaluation of the networks, 1 or more. It bounds the memory.

        Raises:
            UserError: a file is missing, foreign or does not fit the others; no such device.
        """
        manner = decoding_manner(Path(folder), prior, sampling, guidance)
        model = cls._read(Path(folder), manner.prior, device, batch)
        model.sampling, model.guidance, model.beta = manner.sampling, manner.guidance, manner.beta
        return model

    @classmethod
    @abstractmethod
    def _read(
        cls, folder: Path, prior: Path, device: torch.device | str | None, batch: int
    ) -> Self:
        """The networks of a folder beside this prior, decoding by default."""

    @property
    def z(self) -> ZKind:
        """Which z :meth:`reconstruct` decodes: the mean of q(z|x_0), or a sample, as in a run."""
        return self.sampling.z if isinstance(self.sampling, ProtocolConfig) else "mean"

    def _facts(self) -> list[str]:
        sampling = self.sampling
        return [f"{sampling.sampler} in {sampling.steps} steps", f"guidance {self.guidance:g}"]

    def _decoding(self) -> DecodingConfig:
        protocol = ProtocolConfig(**{**self.sampling.model_dump(), "z": self.z})
        return DecodingConfig(
            format=1, beta=self.beta, guidance=self.guidance, prior=None, protocol=protocol
        )

    def with_sampling(self, sampling: SamplingConfig) -> Self:
        """The same networks, with images drawn in another way.

        Args:
            sampling: sampler, grid, steps, noise and clamping; a
                :class:`scorevae.config.ProtocolConfig` says which z to reconstruct from besides.
        """
        other = copy.copy(self)
        other.sampling = sampling
        return other

    def with_noise_scale(self, noise_scale: float) -> Self:
        """The same with τ: 1 is the model's own draw, less is nearer and smoother.

        What decodes goes by τ. :meth:`sample`, :meth:`sample_prior` and :meth:`decode_draws` are
        draws from the distributions themselves, with τ = 1 always.

        Args:
            noise_scale: τ, 0 or more.
        """
        return self.with_sampling(self.sampling.model_copy(update={"noise_scale": noise_scale}))

    def with_precision(self, precision: Precision) -> Self:
        """The same networks, evaluated in that precision, and compiled where a machine compiles.

        Args:
            precision: float32; tf32, float32 with convolutions on CUDA rounded; bf16, in which
                encoder's head, sums of scores and solver stay in float32. Without this it is as
                PyTorch is set.
        """
        other = copy.copy(self)
        other.precision = precision
        if compiling(self.device):
            other._compiled = Compiled(other._written, "decode", whole=False)
        return other

    def with_share(self, share: Share) -> Self:
        """The same networks, whose batches of images are drawn as ``share`` goes through them.

        Args:
            share: as :func:`map`; of several processes that divide the batches, each calls what
                decodes, and is given all images.
        """
        other = copy.copy(self)
        other._share = share
        return other

    @property
    def encoder(self) -> Encoder:
        """The encoder of its scores."""
        return in_precision(self.posterior.encoder, self.precision, self.device)

    def score(self, z: Latents, *, guidance: float = 1.0) -> ScoreFn:
        """s(x_t, z, t), a function of x_t and t, on the device.

        Args:
            z: latents, (count, latent), on the device.
            guidance: γ as in :meth:`scorevae.score.ConditionalScore.score`.
        """
        evaluate = self._written if self._compiled is None else self._compiled
        return in_precision(
            lambda x_t, t: evaluate(x_t, t, z, guidance), self.precision, self.device
        )

    def _written(self, x_t: Tensor, t: Tensor, z: Tensor, guidance: float) -> Tensor:
        return self.posterior.score(z, guidance=guidance)(x_t, t)

    def decode(
        self,
        z: Latents,
        *,
        guidance: float | None = None,
        seed: int = 0,
        x_1: Images | None = None,
        shared: int = 1,
        report: Report | None = None,
        kept: KeptBatches | None = None,
        progress: bool = False,
    ) -> Images:
        """Draw one image from p(x|z) for each latent; (count, C, H, W), about [0, 1].

        Args:
            z: latents, (count, latent).
            guidance: γ of :meth:`score`, 0 or more: 0 is the prior alone, 1 Bayes' rule; None is
                the model's own, ``self.guidance``.
            seed: of x_1 and of the sampler's noise.
            x_1: the noise to start from, standard normal, (count, C, H, W), instead of a draw.
            shared: so many consecutive latents see the same noise of the sampler.
            report: called with the number of images done.
            kept: batches that an interrupted call finished; those of this call are added.
            progress: show how many images are done, where there is no ``report``.

        Raises:
            UserError: latents or x_1 have the wrong shape.
        """
        gamma = self.guidance if guidance is None else guidance
        self._check_latents(z)
        x_1 = self._noise(len(z), seed) if x_1 is None else x_1
        if x_1.shape != (shape := (len(z), *self.image_shape)):
            raise UserError(f"x_1 has shape {tuple(x_1.shape)}; give {shape}")

        def score(rows: slice) -> ScoreFn:
            own = z[rows].to(self.device)

            def evaluate(x: Tensor, t: Tensor, part: slice) -> Tensor:
                return self.score(own[part], guidance=gamma)(x[part], t)

            return lambda x, t: self._fitting(partial(evaluate, x, t), len(x))

        with reporting("decode", len(z), progress and report is None) as shown:
            return self._draw(score, x_1, seed, shared, report or shown, kept)

    @overload
    def reconstruct(  # type: ignore[overload-overlap]
        self,
        images: Pictures,
        *,
        guidance: float | None = ...,
        seed: int = ...,
        resize: bool = ...,
        progress: bool = ...,
    ) -> Images: ...
    @overload
    def reconstruct(
        self,
        images: Batches,
        *,
        guidance: float | None = ...,
        seed: int = ...,
        resize: bool = ...,
        progress: bool = ...,
    ) -> Iterator[Images]: ...
    def reconstruct(
        self,
        images: Given,
        *,
        guidance: float | None = None,
        seed: int = 0,
        resize: bool = False,
        progress: bool = False,
    ) -> Images | Iterator[Images]:
        """Encode to z and draw from p(x|z) as the run did; (count, C, H, W), about [0, 1].

        The same images, seed and batch give what the stage ``reconstruct`` wrote.

        Args:
            images: as :meth:`encode`.
            guidance: as :meth:`decode`.
            seed: of all noise; the further batches of a stream have seeds that follow from it.
            resize: as :meth:`encode`.
            progress: show how many images are done.

        Returns:
            One image for each; for an iterable of batches, a generator of those of each batch.

        Raises:
            UserError: as :meth:`encode`.
        """

        def run(x: Images, seed: int, report: Report) -> Images:
            z = chosen_z(self._encode(x), self.z, seed)
            return self.decode(z, guidance=guidance, seed=seed, report=report)

        return over(
            images, self.image, run, name="reconstruct", seed=seed, resize=resize, shown=progress
        )

    def sample(
        self, count: int, *, guidance: float = 1.0, seed: int = 0, progress: bool = False
    ) -> Images:
        """Draw z ~ N(0, I), then x ~ p(x|z) with τ = 1: (count, C, H, W), about [0, 1].

        Args:
            count: how many, 0 or more.
            guidance: γ of :meth:`score`; 1 is the model's own distribution.
            seed: of z and of all other noise.
            progress: show how many images are done.

        Raises:
            UserError: the count is negative.
        """
        _check_count(count)
        z = torch.randn(count, self.latent, generator=make_generator("cpu", seed, "z"))
        own = self.with_noise_scale(1.0)
        return own.decode(z, guidance=guidance, seed=seed, progress=progress)

    def sample_prior(self, count: int, *, seed: int = 0) -> Images:
        """Draw from the unconditional diffusion model: (count, C, H, W), about [0, 1].

        Args:
            count: how many, 0 or more.
            seed: of all noise.

        Raises:
            UserError: the count is negative.
        """
        _check_count(count)
        own = self.with_noise_scale(1.0)
        prior = in_precision(own.posterior.prior, self.precision, self.device)
        return own._draw(lambda rows: prior, own._noise(count, seed), seed)

    def interpolate(
        self,
        first: Pictures,
        second: Pictures,
        steps: int,
        *,
        guidance: float | None = None,
        seed: int = 0,
        resize: bool = False,
        progress: bool = False,
    ) -> Float[Tensor, "pairs steps channel height width"]:
        """Images along the straight line between the latents of each pair, ends included.

        Every image of a pair sees the same noise, as in :meth:`decode_groups`, so that only z
        changes along the line. Other paths: :func:`scorevae.evaluation.parts.interpolations.arc`.

        Args:
            first: where lines begin, as :meth:`encode`, but no stream.
            second: where they end, as many.
            steps: images of a line, its ends included.
            guidance: as :meth:`decode`.
            seed: of all noise.
            resize: as :meth:`encode`.
            progress: show how many images are done.

        Raises:
            UserError: as :meth:`encode`; streams, or another number of second images.
        """
        ends = [self.encode(given, resize=resize) for given in (first, second)]
        if not all(isinstance(end, DiagonalGaussian) for end in ends):
            raise UserError("interpolate: got an iterable of batches; give images, pair by pair")
        start, end = (found.mean for found in ends)
        if len(start) != len(end):
            raise UserError(f"interpolate: {len(start)} first, {len(end)} second; give as many")
        weight = torch.linspace(0, 1, steps)[None, :, None]
        z = (1 - weight) * start[:, None] + weight * end[:, None]
        return self.decode_groups(z, guidance=guidance, seed=seed, progress=progress)

    def decode_groups(
        self,
        z: Float[Tensor, "group member latent"],
        *,
        guidance: float | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> Groups:
        """Draw one image for each latent, all members of a group from the same noise.

        That is the same x_1 and the same noise of the sampler: within a group only z changes.

        Args:
            z: latents, (groups, members, latent).
            guidance: as :meth:`decode`.
            seed: of all noise.
            progress: show how many images are done.
        """
        groups, members, _ = z.shape
        x_1 = self._noise(groups, seed).repeat_interleave(members, dim=0)
        z = z.flatten(0, 1)
        images = self.decode(
            z, guidance=guidance, seed=seed, x_1=x_1, shared=members, progress=progress
        )
        return images.unflatten(0, (groups, members))

    def decode_draws(
        self, z: Latents, draws: int, *, guidance: float = 1.0, seed: int = 0
    ) -> Groups:
        """Draw so many images from p(x|z), with τ = 1, for each latent, each from its own noise.

        Args:
            z: latents, (count, latent).
            draws: images for each, 1 or more.
            guidance: γ of :meth:`score`; 1 is the model's own distribution.
            seed: of all noise.

        Raises:
            UserError: no draws are asked for, or latents have the wrong shape.
        """
        if draws < 1:
            raise UserError(f"draws: got {draws}; give 1 or more")
        own, z = self.with_noise_scale(1.0), z.repeat_interleave(draws, dim=0)
        images = own.decode(z, guidance=guidance, seed=seed)
        return images.unflatten(0, (-1, draws))

    def _noise(self, count: int, seed: int) -> Images:
        return torch.randn(count, *self.image_shape, generator=make_generator("cpu", seed, "x_1"))

    def _draw(
        self,
        score: Callable[[slice], ScoreFn],
        x_1: Images,
        seed: int,
        shared: int = 1,
        report: Report = lambda done: None,
        kept: KeptBatches | None = None,
    ) -> Images:
        if len(x_1) == 0:
            return x_1
        x_0 = draw_in_batches(
            score,
            self.sde,
            x_1,
            self.sampling,
            device=self.device,
            batch=self.batch,
            seed=seed,
            shared=shared,
            report=report,
            kept=kept,
            share=self._share,
        )
        return to_unit_range(x_0)


def _check_count(count: int) -> None:
    if count < 0:
        raise UserError(f"count: got {count}; give 0 or more")


def beside(prior: Prior, other: DrawingHeader, role: str) -> Prior:
    """The prior under the process of what was trained with it, or with another prior.

    Scores add up under one process and in one image space.

    Raises:
        UserError: the prior knows other images, another process or less of its noise.
    """
    if (ours := other.image) != (theirs := prior.header.image):
        raise UserError(
            f"the {role}'s image is ({ours}), the prior's ({theirs}); train the {role} "
            "with this prior"
        )
    try:
        return prior.under(other.sde)
    except UserError as error:
        reason = f"the {role}'s sde is ({other.sde}), not the prior's ({error})"
        raise UserError(f"{reason}; or train the {role} with this prior") from None

"""Trained systems: images to latents and back. Images are in [0, 1], batch first.

Every system answers to the same four verbs (:class:`System`), and SYSTEMS is the one place that
knows their names: what compares systems goes through its rows.

Images are given as people have them (:func:`scorevae.data.given.to_images`): paths, pictures,
arrays, tensors, lists of them, and streams of batches, for which results are a stream too.
"""

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, Self, TypeVar, overload

import torch
from jaxtyping import Float
from torch import Tensor

from scorevae.config import Config, DecodingConfig, ProtocolConfig, SamplingConfig, Variant, parse
from scorevae.data.arrays import to_unit_range
from scorevae.data.given import Batches, Given, Pictures, over, reporting
from scorevae.errors import UserError
from scorevae.gaussian import DiagonalGaussian
from scorevae.networks.conditional import (
    DiffusionDecoderHeader,
    TrainedDiffusionDecoder,
    load_diffusion_decoder,
)
from scorevae.networks.corrector import CorrectorHeader, TrainedCorrector, load_corrector
from scorevae.networks.encoder import EncoderHeader, TrainedEncoder, load_encoder
from scorevae.networks.prior import PRIOR, Prior, decoding_prior, load_prior
from scorevae.networks.vae import TrainedVAE, VAEHeader, load_vae
from scorevae.networks.weights import Trained, save_weights
from scorevae.randomness import make_generator
from scorevae.runtime.files import replacing
from scorevae.runtime.hub import CARD, card, fetched, pushed
from scorevae.sampling import KeptBatches, Report, draw_in_batches
from scorevae.score import (
    ConditionalScore,
    Encoder,
    LearnedScore,
    Posterior,
    ScoreFn,
    conditional_score,
    prior_score,
)
from scorevae.sde import SDE, perturb
from scorevae.shapes import Groups, Images, Latents, PerSample

DEFAULT_SAMPLING = SamplingConfig(
    sampler="sde_dpm_solver_pp",
    grid="log_snr",
    steps=20,
    corrector_snr=0.16,
    noise_scale=0.8,
    clip=True,
)

DECODING = "decoding.json"  # beside the weights, written by the stage reconstruct
ENCODER = "encoder.safetensors"
BASELINE_FILE = "vae.safetensors"
CORRECTOR = "variants/corrector.safetensors"
DIFFUSION_DECODER = "variants/diffusion_decoder.safetensors"
DEFAULT_BATCH = 500

ZKind = Literal["mean", "sample"]
DrawingHeader = EncoderHeader | CorrectorHeader | DiffusionDecoderHeader
LatentHeader = DrawingHeader | VAEHeader
AnyDrawing = TypeVar("AnyDrawing", bound="DiffusionSystem")


class System(ABC):
    """An auto-encoder: what ScoreVAE and its baselines have in common.

    Results are on the CPU, whatever the device; ``batch`` images at a time bound the memory.
    """

    beta: float | None = None  # of its training, where that is known

    def __init__(self, weights: Mapping[str, Trained], header: LatentHeader, batch: int) -> None:
        """Hold the networks by their files' names; ``header`` says what images and z are."""
        if batch < 1:
            raise UserError(f"batch: got {batch}; give 1 or more")
        self.weights, self.batch = weights, batch
        self.image, self.image_shape, self.latent = header.image, header.image.shape, header.latent

    @property
    @abstractmethod
    def encoder(self) -> Encoder:
        """q(z|x_t, t), of which t = 0 encodes."""

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        network, _ = next(iter(self.weights.values()))
        return next(network.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        """Move the networks, also those of copies that other settings made, and return itself.

        Args:
            device: as torch names it: "cpu", "cuda", "cuda:1".

        Raises:
            UserError: there is no such device.
        """
        _place(self.weights, chosen_device(device))
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join([*self._about(), str(self.device)])})"

    def _about(self) -> list[str]:
        """What it is, in words."""
        channels, height, width = self.image_shape
        beta = [] if self.beta is None else [f"β = {self.beta:g}"]
        facts = [f"images {channels}×{height}×{width}", f"{self.latent} latents"]
        return [*facts, *beta, *self._facts()]

    def _facts(self) -> list[str]:
        """How it decodes, in words."""
        return []

    @classmethod
    @abstractmethod
    def load(
        cls,
        folder: Path | str,
        *,
        device: torch.device | str | None = None,
        batch: int = DEFAULT_BATCH,
    ) -> Self:
        """The system of a folder of weights."""

    @classmethod
    def from_pretrained(
        cls,
        name: Path | str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: Path | str | None = None,
        local_files_only: bool = False,
        **options: Any,  # noqa: ANN401 (those of load)
    ) -> Self:
        """Load a folder, or a model of the Hugging Face hub. No file can run code.

        Args:
            name: a folder, as for :meth:`load`, or a hub id, "owner/name".
            revision: branch, tag or commit on the hub; None is its main branch.
            token: for private models; None is the one of ``hf auth login``.
            cache_dir: where the hub's files are kept; None is huggingface_hub's own place.
            local_files_only: take what was fetched before, and ask nobody.
            **options: as :meth:`load`.

        Raises:
            UserError: there is neither such a folder nor such a model, or no network; and as
                :meth:`load`.
        """
        if Path(name).is_dir():
            return cls.load(name, **options)
        folder = fetched(
            str(name),
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        return cls.load(folder, **options)

    def save_pretrained(
        self,
        folder: Path | str,
        *,
        metrics: Path | str | None = None,
        data: Path | str | None = None,
    ) -> None:
        """Write weights, how they decode, and a card, for :meth:`from_pretrained` to load.

        Args:
            folder: where; made where there is none. Other files in it stay.
            metrics: ``results/<preset>/metrics.json``, for the card's numbers and commit.
            data: the prepared data set, ``data/<preset>``, for its source and licence.

        Raises:
            UserError: ``metrics`` or ``data`` cannot be read, or the disk is full.
        """
        text = card(
            type(self).__name__,
            self._about(),
            {name: row.title for name, row in SYSTEMS.items()},
            metrics=None if metrics is None else Path(metrics),
            data=None if data is None else Path(data),
        )
        for name, (network, header) in self.weights.items():
            save_weights(Path(folder) / name, network, header)
        if (decoding := self._decoding()) is not None:
            write_decoding(Path(folder) / DECODING, decoding)
        with replacing(Path(folder) / CARD) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload a model of scorevae",
        metrics: Path | str | None = None,
        data: Path | str | None = None,
    ) -> str:
        """Upload what :meth:`save_pretrained` writes to the Hugging Face hub.

        Args:
            repo_id: "owner/name"; made where there is none.
            private: whether a new one is to be; None is the account's own setting.
            token: with the right to write; None is the one of ``hf auth login``.
            commit_message: of the one commit.
            metrics: as :meth:`save_pretrained`.
            data: as :meth:`save_pretrained`.

        Returns:
            The address of the commit.

        Raises:
            UserError: the hub cannot be reached or refuses; and as :meth:`save_pretrained`.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, metrics=metrics, data=data)
            return pushed(
                Path(folder), repo_id, private=private, token=token, message=commit_message
            )

    def _decoding(self) -> DecodingConfig | None:
        """What ``decoding.json`` says of it; None where there is no choice."""
        return None

    @abstractmethod
    def decode(self, z: Latents, *, seed: int = 0) -> Images:
        """One image for each latent; the same one for the same seed."""

    @overload
    def encode(  # type: ignore[overload-overlap]
        self, images: Pictures, *, resize: bool = ..., progress: bool = ...
    ) -> DiagonalGaussian: ...
    @overload
    def encode(
        self, images: Batches, *, resize: bool = ..., progress: bool = ...
    ) -> Iterator[DiagonalGaussian]: ...
    def encode(
        self, images: Given, *, resize: bool = False, progress: bool = False
    ) -> DiagonalGaussian | Iterator[DiagonalGaussian]:
        """q(z|x_0, 0): mean and log_variance, each (count, latent).

        Args:
            images: the path of a picture; a PIL image; an array of uint8 (H×W, H×W×C, N×H×W×C);
                a tensor or array of floats in [0, 1] (N×C×H×W, C×H×W); a list of these; a
                DataLoader or another iterable of batches, each one of these or (images, labels).
            resize: crop to a square, shrink and make grey or colour what does not have the
                model's shape, as ``download`` does; else it is refused. Nothing is enlarged.
            progress: show how many images are done.

        Returns:
            One Gaussian for each image; for an iterable of batches, a generator of those of each.

        Raises:
            UserError: images cannot be read, have another shape than the model's, or leave [0, 1].
        """
        return over(
            images,
            self.image,
            lambda x, seed, report: self._encode(x, report),
            name="encode",
            seed=0,
            resize=resize,
            shown=progress,
        )

    @torch.no_grad()
    def _encode(self, images: Images, report: Report = lambda done: None) -> DiagonalGaussian:
        parts, done = [], 0
        for chunk in images.split(self.batch):
            x = (2 * chunk - 1).to(self.device)
            parts.append(self.encoder(x, torch.zeros(len(x), device=x.device)))
            report(done := done + len(x))
        return _joined(parts)

    @overload
    def reconstruct(  # type: ignore[overload-overlap]
        self, images: Pictures, *, seed: int = ..., resize: bool = ..., progress: bool = ...
    ) -> Images: ...
    @overload
    def reconstruct(
        self, images: Batches, *, seed: int = ..., resize: bool = ..., progress: bool = ...
    ) -> Iterator[Images]: ...
    def reconstruct(
        self, images: Given, *, seed: int = 0, resize: bool = False, progress: bool = False
    ) -> Images | Iterator[Images]:
        """Encode to the mean of q(z|x_0, 0), then decode; (count, C, H, W), about [0, 1].

        Args:
            images: as :meth:`encode`.
            seed: of what is drawn, where anything is.
            resize: as :meth:`encode`.
            progress: show how many images are done.

        Returns:
            One image for each; for an iterable of batches, a generator of those of each batch.

        Raises:
            UserError: as :meth:`encode`.
        """
        return over(
            images,
            self.image,
            lambda x, seed, report: self.decode(self._encode(x, report).mean, seed=seed),
            name="reconstruct",
            seed=seed,
            resize=resize,
            shown=progress,
        )

    @overload
    def rate(self, images: Pictures, *, resize: bool = ..., progress: bool = ...) -> PerSample: ...  # type: ignore[overload-overlap]
    @overload
    def rate(
        self, images: Batches, *, resize: bool = ..., progress: bool = ...
    ) -> Iterator[PerSample]: ...
    def rate(
        self, images: Given, *, resize: bool = False, progress: bool = False
    ) -> PerSample | Iterator[PerSample]:
        """KL(q(z|x_0, 0) ‖ N(0, I)) of each image, in nats.

        Args:
            images: as :meth:`encode`.
            resize: as :meth:`encode`.
            progress: show how many images are done.

        Returns:
            One number for each image; for an iterable of batches, a generator of those of each.

        Raises:
            UserError: as :meth:`encode`.
        """
        return over(
            images,
            self.image,
            lambda x, seed, report: self._encode(x, report).kl_to_standard_normal(),
            name="rate",
            seed=0,
            resize=resize,
            shown=progress,
        )

    def _check_latents(self, z: Latents) -> None:
        if z.ndim != 2 or z.shape[1] != self.latent:
            raise UserError(f"z has shape {tuple(z.shape)}; give (count, {self.latent})")


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def chosen_device(device: torch.device | str | None) -> torch.device:
    """The device that is asked for, else :func:`default_device`.

    Raises:
        UserError: there is no such device here.
    """
    if device is None:
        return default_device()
    known = ["cpu"]
    if torch.cuda.is_available():
        known += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        known.append("mps:0")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or not {f"{chosen.type}:{chosen.index or 0}", str(chosen)} & set(known):
        raise UserError(f"device: got {str(device)!r}; there is {', '.join(known)}: choose one")
    return chosen


def _place(weights: Mapping[str, Trained], device: torch.device) -> None:
    for network, _ in weights.values():
        network.to(device)


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
        sampling: SamplingConfig,
        guidance: float,
        batch: int,
    ) -> None:
        """Draw by these scores, of the networks among ``weights``, under this process."""
        super().__init__(weights, header, batch)
        self.sde, self.posterior = sde, posterior
        self.sampling, self.guidance = sampling, guidance

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

    @property
    def encoder(self) -> Encoder:
        """The encoder of its scores."""
        return self.posterior.encoder

    def score(self, z: Latents, *, guidance: float = 1.0) -> ScoreFn:
        """s(x_t, z, t), a function of x_t and t, on the device.

        Args:
            z: latents, (count, latent), on the device.
            guidance: γ as in :meth:`scorevae.score.ConditionalScore.score`.
        """
        return self.posterior.score(z, guidance=guidance)

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
            return self.score(z[rows].to(self.device), guidance=gamma)

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
        return own._draw(lambda rows: own.posterior.prior, own._noise(count, seed), seed)

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
        )
        return to_unit_range(x_0)


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
        prior = _beside(prior, encoder.header, "encoder")
        weights: dict[str, Trained] = {PRIOR: prior, ENCODER: encoder}
        _place(weights, chosen_device(device))
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
            sampling=sampling,
            guidance=guidance,
            batch=batch,
        )

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
        """Load ``prior.safetensors`` and ``encoder.safetensors`` from a folder.

        Args:
            folder: the folder, as ``models/<preset>`` of a run.
            prior: the file of another prior to decode with: the encoder stays as it is.
            device: where networks run, as torch names it; CUDA if there is one, else the CPU.
            sampling: how images are drawn; None is as the run did, from the folder's
                ``decoding.json``, or the shipped default where there is no such file.
            guidance: γ of what decodes, 0 or more; None likewise.
            batch: images in one evaluation of the networks, 1 or more. It bounds the memory.

        Raises:
            UserError: a file is missing, foreign or does not fit the other; no such device.
        """
        manner = decoding_manner(Path(folder), prior, sampling, guidance)
        encoder = load_encoder(Path(folder) / ENCODER)
        return manner.given_to(cls(load_prior(manner.prior), encoder, device=device, batch=batch))

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
        return _joined(parts)


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
        prior = _beside(prior, corrector.header, "corrector")
        super().__init__(
            prior, encoder, device=device, sampling=sampling, guidance=guidance, batch=batch
        )
        self.weights = {**self.weights, CORRECTOR: corrector}
        network = corrector.network.to(self.device)
        self.posterior = replace(self.posterior, corrector=conditional_score(network, self.sde))

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
        """Load ScoreVAE's two files and ``variants/corrector.safetensors`` from a folder.

        Args:
            folder: the folder, as ``models/<preset>`` of a run.
            prior: the file of the prior, if it lies elsewhere. No other will do: the corrector
                knows what this one gets wrong.
            device: where networks run, as torch names it; CUDA if there is one, else the CPU.
            sampling: how images are drawn; None is as the run did, from the folder's
                ``decoding.json``, or the shipped default where there is no such file.
            guidance: γ of what decodes, 0 or more; None likewise.
            batch: images in one evaluation of the networks, 1 or more. It bounds the memory.

        Raises:
            UserError: a file is missing, foreign or does not fit the others; no such device.
        """
        manner = decoding_manner(Path(folder), prior, sampling, guidance)
        paths = manner.prior, Path(folder) / ENCODER
        found, encoder = load_prior(paths[0]), load_encoder(paths[1])
        corrector = load_corrector(Path(folder) / CORRECTOR, *paths)
        return manner.given_to(cls(found, encoder, corrector, device=device, batch=batch))


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
        prior = _beside(prior, decoder.header, "diffusion decoder")
        weights: dict[str, Trained] = {PRIOR: prior, DIFFUSION_DECODER: decoder}
        _place(weights, chosen_device(device))
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
            sampling=sampling,
            guidance=guidance,
            batch=batch,
        )

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
        """Load ``variants/diffusion_decoder.safetensors`` from a folder, and its prior or another.

        Args:
            folder: the folder, as ``models/<preset>`` of a run.
            prior: the file of another prior, which decodes where γ is not 1.
            device: where networks run, as torch names it; CUDA if there is one, else the CPU.
            sampling: how images are drawn; None is as the run did, from the folder's
                ``decoding.json``, or the shipped default where there is no such file.
            guidance: γ of what decodes, 0 or more; None likewise.
            batch: images in one evaluation of the networks, 1 or more. It bounds the memory.

        Raises:
            UserError: a file is missing, foreign or does not fit the other; no such device.
        """
        manner = decoding_manner(Path(folder), prior, sampling, guidance)
        decoder = load_diffusion_decoder(Path(folder) / DIFFUSION_DECODER)
        return manner.given_to(cls(load_prior(manner.prior), decoder, device=device, batch=batch))


class Manner(NamedTuple):
    """How a folder's model decodes: as its run did, but for what a caller says."""

    prior: Path
    sampling: SamplingConfig
    guidance: float
    beta: float | None

    def given_to(self, model: AnyDrawing) -> AnyDrawing:
        """The model, decoding so."""
        model.sampling, model.guidance, model.beta = self.sampling, self.guidance, self.beta
        return model


def decoding_manner(
    folder: Path, prior: Path | str | None, sampling: SamplingConfig | None, guidance: float | None
) -> Manner:
    """What is said wins over ``decoding.json``, which is read where something is not said."""
    run = None
    if prior is None or sampling is None or guidance is None:
        run = read_decoding(folder / DECODING)
    file = decoding_prior(folder, run.prior if run else None) if prior is None else Path(prior)
    return Manner(
        file,
        sampling or (run.protocol if run else DEFAULT_SAMPLING),
        (run.guidance if run else 1.0) if guidance is None else guidance,
        run.beta if run else None,
    )


def decoding_of(config: Config) -> DecodingConfig:
    """How a run reconstructs."""
    chosen = config.reconstruct
    return DecodingConfig(
        format=1,
        beta=config.beta,
        guidance=chosen.guidance,
        prior=chosen.prior,
        protocol=config.sampling,
    )


def read_decoding(path: Path) -> DecodingConfig | None:
    """What the stage ``reconstruct`` has left beside the weights, None where it has not.

    Raises:
        UserError: the file is damaged or of another version.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not JSON ({error}); run the stage reconstruct again") from None
    return parse(DecodingConfig, tree, str(path))


def write_decoding(path: Path, decoding: DecodingConfig) -> None:
    """Write it as one JSON file, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(decoding.model_dump_json(indent=2) + "\n", encoding="utf-8")


def chosen_z(posterior: DiagonalGaussian, kind: ZKind, seed: int) -> Latents:
    """The z that is reconstructed from: the mean of q(z|x_0), or a sample of it."""
    if kind == "mean":
        return posterior.mean
    return posterior.sample(make_generator("cpu", seed, "reconstruct", "z"))


def _check_count(count: int) -> None:
    if count < 0:
        raise UserError(f"count: got {count}; give 0 or more")


def _beside(prior: Prior, other: DrawingHeader, role: str) -> Prior:
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
        _place(weights, chosen_device(device))
        super().__init__(weights, vae.header, batch)
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


def _joined(parts: list[DiagonalGaussian]) -> DiagonalGaussian:
    """The Gaussians of several batches as one, on the CPU."""
    mean, log_variance = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return DiagonalGaussian(mean, log_variance)


class SystemRow(NamedTuple):
    """A system as those see it that compare systems."""

    title: str
    weights: tuple[str, ...]  # its files in the folder of models
    load: Callable[[Path, Config], System]  # from the folder of models, to decode as a run does
    phases: tuple[str, ...]  # the trainings that decide what it is worth
    # As printed in arXiv 2304.12141 for β = 0.01 (tables 1 and 2, and version 2 for the last two
    # systems; with β = 0 the diffusion decoder has 2.851 and 0.127 on CIFAR-10, 8.626 and 0.166 on
    # CelebA): data set -> metric -> number.
    published: Mapping[str, Mapping[str, str]]
    variant: Variant | None = None  # what ``variants`` must name for it to be trained
    note: str = ""  # what the page says of a variant


def _drawing(
    kind: type[ScoreVAE] | type[DiffusionDecoder],
) -> Callable[[Path, Config], DiffusionSystem]:
    def load(folder: Path, config: Config) -> DiffusionSystem:
        return kind.load(
            folder,
            prior=decoding_prior(folder, config.reconstruct.prior),
            sampling=config.sampling,
            guidance=1.0,  # whoever weighs ∇ ln q says so
            batch=config.reconstruct.batch,
        )

    return load


# In the order of rows and columns; the first is the one that the others are compared with.
SYSTEMS = {
    "scorevae": SystemRow(
        "ScoreVAE",
        (PRIOR, ENCODER),
        _drawing(ScoreVAE),
        ("prior", "objective"),
        {
            "CIFAR-10": {"l2": "2.634", "paper_lpips": "0.125"},
            "CelebA 64×64": {"l2": "7.322", "paper_lpips": "0.158"},
        },
    ),
    "vae": SystemRow(
        "VAE",
        (BASELINE_FILE,),
        lambda folder, config: VAE.load(folder, batch=config.reconstruct.batch),
        ("vae",),
        {
            "CIFAR-10": {"l2": "3.410", "paper_lpips": "0.269"},
            "CelebA 64×64": {"l2": "6.97", "paper_lpips": "0.217"},
        },
    ),
    "scorevae_plus": SystemRow(
        "ScoreVAE+",
        (PRIOR, ENCODER, CORRECTOR),
        _drawing(ScoreVAEPlus),
        ("prior", "objective", "corrector"),
        {
            "CIFAR-10": {"l2": "2.591", "paper_lpips": "0.119"},
            "CelebA 64×64": {"l2": "7.248", "paper_lpips": "0.155"},
        },
        "corrector",
        "ScoreVAE+ adds a trained correction to ScoreVAE's score; prior, encoder and rate are the "
        "same.",
    ),
    "diffusion_decoder": SystemRow(
        "Diffusion decoder",
        (PRIOR, DIFFUSION_DECODER),
        _drawing(DiffusionDecoder),
        ("diffusion_decoder",),
        {
            "CIFAR-10": {"l2": "19.53", "paper_lpips": "0.562"},
            "CelebA 64×64": {"l2": "40.25", "paper_lpips": "0.476"},
        },
        "diffusion_decoder",
        "The diffusion decoder's score is a network's own, of xₜ, z and t, trained together with "
        "an encoder that knows no time.",
    ),
}
MODEL, BASELINE = list(SYSTEMS)[:2]
DRAWING = tuple(name for name in SYSTEMS if name != BASELINE)  # each a DiffusionSystem


def weight_files(folder: Path, config: Config) -> list[Path]:
    """Every file of weights that the systems of a run are loaded from."""
    other = config.reconstruct.prior
    names = dict.fromkeys(name for row in systems_of(config).values() for name in row.weights)
    return [decoding_prior(folder, other) if name == PRIOR else folder / name for name in names]


def systems_of(config: Config) -> dict[str, SystemRow]:
    """The rows of a run: those that are always trained, and the variants that are switched on."""
    switched_on = (None, *config.variants)
    return {name: row for name, row in SYSTEMS.items() if row.variant in switched_on}

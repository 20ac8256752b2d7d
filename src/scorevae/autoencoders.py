"""Trained systems: images to latents and back. Images are in [0, 1], batch first.

Every system answers to the same four verbs (:class:`System`), and SYSTEMS is the one place that
knows their names: what compares systems goes through its rows.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Self

import torch
from jaxtyping import Float
from torch import Tensor

from scorevae.config import Config, SamplingConfig, Variant
from scorevae.data.arrays import to_unit_range
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
from scorevae.randomness import make_generator
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

DrawingHeader = EncoderHeader | CorrectorHeader | DiffusionDecoderHeader
LatentHeader = DrawingHeader | VAEHeader


class System(ABC):
    """An auto-encoder: what ScoreVAE and its baselines have in common.

    Results are on the CPU, whatever the device; ``batch`` images at a time bound the memory.
    """

    def __init__(
        self, header: LatentHeader, device: torch.device | str | None, batch: int
    ) -> None:
        self.device = chosen_device(device)
        self.batch, self.image_shape, self.latent = batch, header.image.shape, header.latent

    @property
    @abstractmethod
    def encoder(self) -> Encoder:
        """q(z|x_t, t), of which t = 0 encodes."""

    @abstractmethod
    def decode(self, z: Latents, *, seed: int = 0) -> Images:
        """One image for each latent; the same one for the same seed."""

    @torch.no_grad()
    def encode(self, images: Images) -> DiagonalGaussian:
        """q(z|x_0, 0) of images in [0, 1].

        Raises:
            UserError: the images have another shape than the model's, or leave [0, 1].
        """
        self._check_images(images)
        parts = ((2 * chunk - 1).to(self.device) for chunk in images.split(self.batch))
        return _joined([self.encoder(x, torch.zeros(len(x), device=x.device)) for x in parts])

    def reconstruct(self, images: Images, *, seed: int = 0) -> Images:
        """Encode to the mean of q(z|x_0, 0), then decode."""
        return self.decode(self.encode(images).mean, seed=seed)

    def rate(self, images: Images) -> PerSample:
        """KL(q(z|x_0, 0) ‖ N(0, I)) of each image, in nats."""
        return self.encode(images).kl_to_standard_normal()

    def _check_images(self, images: Images) -> None:
        if len(images) == 0 or images.shape[1:] != self.image_shape:
            wanted = ", ".join(map(str, ("count", *self.image_shape)))
            raise UserError(f"images have shape {tuple(images.shape)}; give ({wanted})")
        low, high = images.min().item(), images.max().item()
        if not (low >= 0 and high <= 1):  # NaN too
            raise UserError(f"images have values from {low:.3g} to {high:.3g}; scale to [0, 1]")

    def _check_latents(self, z: Latents) -> None:
        if z.ndim != 2 or z.shape[1] != self.latent:
            raise UserError(f"z has shape {tuple(z.shape)}; give (count, {self.latent})")


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def chosen_device(device: torch.device | str | None) -> torch.device:
    """The device that is asked for, else :func:`default_device`."""
    return default_device() if device is None else torch.device(device)


class DiffusionSystem(System):
    """What draws from p(x|z) by a reverse process: a score for each z, and an encoder.

    With a deterministic sampler (ddim, heun, dpm_solver_pp) ``batch`` does not change results
    beyond rounding, with a stochastic one the noise depends on it.
    """

    def __init__(
        self,
        header: LatentHeader,
        sde: SDE,
        posterior: ConditionalScore,
        *,
        device: torch.device,
        sampling: SamplingConfig,
        batch: int,
    ) -> None:
        """Draw by these scores, whose networks are on the device, under this process."""
        super().__init__(header, device, batch)
        self.sde, self.posterior, self.sampling = sde, posterior, sampling

    def with_sampling(self, sampling: SamplingConfig) -> Self:
        """The same networks, with images drawn in another way."""
        other = copy.copy(self)
        other.sampling = sampling
        return other

    def with_noise_scale(self, noise_scale: float) -> Self:
        """The same with τ: 1 is the model's own draw, less is nearer and smoother.

        What decodes goes by τ. :meth:`sample`, :meth:`sample_prior` and :meth:`decode_draws` are
        draws from the distributions themselves, with τ = 1 always.
        """
        return self.with_sampling(self.sampling.model_copy(update={"noise_scale": noise_scale}))

    @property
    def encoder(self) -> Encoder:
        """The encoder of its scores."""
        return self.posterior.encoder

    def score(self, z: Latents, *, guidance: float = 1.0) -> ScoreFn:
        """s(x_t, z, t), on the device; γ as in :meth:`scorevae.score.ConditionalScore.score`."""
        return self.posterior.score(z, guidance=guidance)

    def decode(
        self,
        z: Latents,
        *,
        guidance: float = 1.0,
        seed: int = 0,
        x_1: Images | None = None,
        shared: int = 1,
        report: Report = lambda done: None,
        kept: KeptBatches | None = None,
    ) -> Images:
        """Draw one image from p(x|z) for each latent.

        Args:
            z: latents, (count, latent).
            guidance: γ of :meth:`score`.
            seed: of x_1 and of the sampler's noise.
            x_1: the noise to start from, standard normal, instead of a draw.
            shared: so many consecutive latents see the same noise of the sampler.
            report: called with the number of images done.
            kept: batches that an interrupted call finished; those of this call are added.

        Raises:
            UserError: latents or x_1 have the wrong shape.
        """
        self._check_latents(z)
        x_1 = self._noise(len(z), seed) if x_1 is None else x_1
        if x_1.shape != (shape := (len(z), *self.image_shape)):
            raise UserError(f"x_1 has shape {tuple(x_1.shape)}; give {shape}")

        def score(rows: slice) -> ScoreFn:
            return self.score(z[rows].to(self.device), guidance=guidance)

        return self._draw(score, x_1, seed, shared, report, kept)

    def reconstruct(self, images: Images, *, guidance: float = 1.0, seed: int = 0) -> Images:
        """Encode to the mean of q(z|x_0, 0) and draw from p(x|z)."""
        return self.decode(self.encode(images).mean, guidance=guidance, seed=seed)

    def sample(self, count: int, *, guidance: float = 1.0, seed: int = 0) -> Images:
        """Draw z ~ N(0, I), then x ~ p(x|z)."""
        z = torch.randn(count, self.latent, generator=make_generator("cpu", seed, "z"))
        return self.with_noise_scale(1.0).decode(z, guidance=guidance, seed=seed)

    def sample_prior(self, count: int, *, seed: int = 0) -> Images:
        """Draw from the unconditional diffusion model."""
        own = self.with_noise_scale(1.0)
        return own._draw(lambda rows: own.posterior.prior, own._noise(count, seed), seed)

    def interpolate(
        self, first: Images, second: Images, steps: int, *, guidance: float = 1.0, seed: int = 0
    ) -> Float[Tensor, "pairs steps channel height width"]:
        """Images along the straight line between the latents of each pair, ends included.

        Every image of a pair sees the same noise, as in :meth:`decode_groups`, so that only z
        changes along the line. Other paths: :func:`scorevae.evaluation.parts.interpolations.arc`.
        """
        start, end = self.encode(first).mean, self.encode(second).mean
        weight = torch.linspace(0, 1, steps)[None, :, None]
        z = (1 - weight) * start[:, None] + weight * end[:, None]
        return self.decode_groups(z, guidance=guidance, seed=seed)

    def decode_groups(
        self, z: Float[Tensor, "group member latent"], *, guidance: float = 1.0, seed: int = 0
    ) -> Groups:
        """Draw one image for each latent, all members of a group from the same noise.

        That is the same x_1 and the same noise of the sampler: within a group only z changes.
        """
        groups, members, _ = z.shape
        x_1 = self._noise(groups, seed).repeat_interleave(members, dim=0)
        z = z.flatten(0, 1)
        images = self.decode(z, guidance=guidance, seed=seed, x_1=x_1, shared=members)
        return images.unflatten(0, (groups, members))

    def decode_draws(
        self, z: Latents, draws: int, *, guidance: float = 1.0, seed: int = 0
    ) -> Groups:
        """Draw so many images from p(x|z) for each latent, each from noise of its own.

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
        batch: int = 500,
    ) -> None:
        """Combine a prior and an encoder.

        Args:
            prior: from :func:`scorevae.networks.prior.load_prior`.
            encoder: from :func:`scorevae.networks.encoder.load_encoder`.
            device: where networks run; CUDA if there is one, else the CPU.
            sampling: how images are drawn.
            batch: images in one evaluation of the networks.

        Raises:
            UserError: prior and encoder were trained under different processes or image shapes.
        """
        prior = _beside(prior, encoder.header, "encoder")
        device = chosen_device(device)
        posterior = Posterior(
            prior_score(prior.network.to(device), prior.sde),
            encoder.network.to(device),
            log_determinant=encoder.header.log_determinant == "full",
        )
        super().__init__(
            encoder.header, prior.sde, posterior, device=device, sampling=sampling, batch=batch
        )

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        prior: Path | str | None = None,
        device: torch.device | str | None = None,
        sampling: SamplingConfig = DEFAULT_SAMPLING,
        batch: int = 500,
    ) -> Self:
        """Load ``prior.safetensors`` and ``encoder.safetensors`` from a folder.

        ``prior`` is the file of another prior to decode with: the encoder stays as it is.

        Raises:
            UserError: a file is missing, foreign or does not fit the other.
        """
        encoder = load_encoder(Path(folder) / "encoder.safetensors")
        found = load_prior(prior_path(Path(folder), prior))
        return cls(found, encoder, device=device, sampling=sampling, batch=batch)

    @torch.no_grad()
    def encode_at(self, images: Images, t: float, *, seed: int = 0) -> DiagonalGaussian:
        """q(z|x_t, t) of images in [0, 1] to which the noise of time t is added.

        The noise follows from the seed alone: for several t it is the same, only scaled. At t = 0
        this is :meth:`encode`.

        Raises:
            UserError: as :meth:`encode`, or a time at which the encoder was never trained.
        """
        if t == 0:
            return self.encode(images)
        if not self.sde.t_min <= t <= self.sde.t_max:
            known = f"{self.sde.t_min} to {self.sde.t_max}"
            raise UserError(f"t: got {t}; give 0, or a time from {known}")
        self._check_images(images)
        noise = torch.randn(images.shape, generator=make_generator("cpu", seed, "encode_at"))
        parts = []
        for chunk, added in zip(images.split(self.batch), noise.split(self.batch), strict=True):
            times = torch.full((len(chunk),), t, device=self.device)
            x_0, added = (2 * chunk - 1).to(self.device), added.to(chunk).to(self.device)
            parts.append(self.encoder(perturb(self.sde, x_0, times, added), times))
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
        batch: int = 500,
    ) -> None:
        """Add a corrector, from :func:`scorevae.networks.corrector.load_corrector`, to ScoreVAE.

        Raises:
            UserError: as ScoreVAE, or the corrector is for another process or image shape.
        """
        prior = _beside(prior, corrector.header, "corrector")
        super().__init__(prior, encoder, device=device, sampling=sampling, batch=batch)
        network = corrector.network.to(self.device)
        self.posterior = replace(self.posterior, corrector=conditional_score(network, self.sde))

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        prior: Path | str | None = None,
        device: torch.device | str | None = None,
        sampling: SamplingConfig = DEFAULT_SAMPLING,
        batch: int = 500,
    ) -> Self:
        """Load ScoreVAE's two files and ``variants/corrector.safetensors`` from a folder.

        No other ``prior`` will do: the corrector knows what this one gets wrong.

        Raises:
            UserError: a file is missing, foreign or does not fit the others.
        """
        paths = prior_path(Path(folder), prior), Path(folder) / "encoder.safetensors"
        found, encoder = load_prior(paths[0]), load_encoder(paths[1])
        corrector = load_corrector(Path(folder) / "variants/corrector.safetensors", *paths)
        return cls(found, encoder, corrector, device=device, sampling=sampling, batch=batch)


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
        batch: int = 500,
    ) -> None:
        """Put a diffusion decoder beside a prior.

        Args:
            prior: from :func:`scorevae.networks.prior.load_prior`.
            decoder: from :func:`scorevae.networks.conditional.load_diffusion_decoder`.
            device: where networks run; CUDA if there is one, else the CPU.
            sampling: how images are drawn.
            batch: images in one evaluation of the networks.

        Raises:
            UserError: they were trained under different processes or image shapes.
        """
        prior = _beside(prior, decoder.header, "diffusion decoder")
        device = chosen_device(device)
        network = decoder.network.to(device)
        posterior = LearnedScore(
            prior_score(prior.network.to(device), prior.sde),
            network.encoder,
            conditional_score(network.decoder, prior.sde),
        )
        super().__init__(
            decoder.header, prior.sde, posterior, device=device, sampling=sampling, batch=batch
        )

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        prior: Path | str | None = None,
        device: torch.device | str | None = None,
        sampling: SamplingConfig = DEFAULT_SAMPLING,
        batch: int = 500,
    ) -> Self:
        """Load ``variants/diffusion_decoder.safetensors`` from a folder, and its prior or another.

        Raises:
            UserError: a file is missing, foreign or does not fit the other.
        """
        found = load_prior(prior_path(Path(folder), prior))
        decoder = load_diffusion_decoder(Path(folder) / "variants/diffusion_decoder.safetensors")
        return cls(found, decoder, device=device, sampling=sampling, batch=batch)


def prior_path(folder: Path, other: Path | str | None) -> Path:
    """The file of the prior that decodes: ``other``, or the folder's own."""
    return folder / PRIOR if other is None else Path(other)


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
        self, vae: TrainedVAE, *, device: torch.device | str | None = None, batch: int = 500
    ) -> None:
        """Wrap a VAE from :func:`scorevae.networks.vae.load_vae`."""
        super().__init__(vae.header, device, batch)
        self._network = vae.network.to(self.device)

    @classmethod
    def load(
        cls, folder: Path | str, *, device: torch.device | str | None = None, batch: int = 500
    ) -> Self:
        """Load ``vae.safetensors`` from a folder.

        Raises:
            UserError: the file is missing or foreign.
        """
        return cls(load_vae(Path(folder) / "vae.safetensors"), device=device, batch=batch)

    @property
    def encoder(self) -> Encoder:
        """The encoder, which knows no time."""
        return self._network.encoder

    @torch.no_grad()
    def decode(self, z: Latents, *, seed: int = 0) -> Images:
        """The mean of p(x|z) of each latent; nothing is drawn, so that no seed matters.

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
            batch=config.reconstruct.batch,
        )

    return load


# In the order of rows and columns; the first is the one that the others are compared with.
SYSTEMS = {
    "scorevae": SystemRow(
        "ScoreVAE",
        (PRIOR, "encoder.safetensors"),
        _drawing(ScoreVAE),
        ("prior", "objective"),
        {
            "CIFAR-10": {"l2": "2.634", "paper_lpips": "0.125"},
            "CelebA 64×64": {"l2": "7.322", "paper_lpips": "0.158"},
        },
    ),
    "vae": SystemRow(
        "VAE",
        ("vae.safetensors",),
        lambda folder, config: VAE.load(folder, batch=config.reconstruct.batch),
        ("vae",),
        {
            "CIFAR-10": {"l2": "3.410", "paper_lpips": "0.269"},
            "CelebA 64×64": {"l2": "6.97", "paper_lpips": "0.217"},
        },
    ),
    "scorevae_plus": SystemRow(
        "ScoreVAE+",
        (PRIOR, "encoder.safetensors", "variants/corrector.safetensors"),
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
        (PRIOR, "variants/diffusion_decoder.safetensors"),
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

"""A trained ScoreVAE: images to latents and back. Images are in [0, 1], batch first."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from scorevae.config import SamplingConfig
from scorevae.data import to_unit_range
from scorevae.errors import UserError
from scorevae.gaussian import DiagonalGaussian, Latents
from scorevae.networks.encoder import EncoderHeader, TrainedEncoder, load_encoder
from scorevae.networks.prior import Prior, PriorHeader, load_prior
from scorevae.networks.vae import TrainedVAE
from scorevae.randomness import make_generator
from scorevae.reconstructions import Reconstructions
from scorevae.sampling import generate
from scorevae.score import ScoreFn, posterior_score, prior_score

Images = Float[Tensor, "batch channel height width"]
Report = Callable[[int], None]

DEFAULT_SAMPLING = SamplingConfig(
    sampler="dpm_solver_pp", grid="log_snr", steps=20, corrector_snr=0.16, clip=True
)


def default_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class ScoreVAE:
    """p(x|z) ∝ p(x) q(z|x): a diffusion prior and a time-dependent encoder, no decoder.

    arXiv 2304.12141. Results are on the CPU, whatever the device. ``batch`` bounds memory;
    with a deterministic sampler (ddim, heun, dpm_solver_pp) it does not change results beyond
    rounding, with a stochastic one the noise depends on it.
    """

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
        _check_same_space(prior.header, encoder.header)
        self.device = torch.device(device) if device is not None else default_device()
        self.sampling = sampling
        self.batch = batch
        self.sde = prior.sde
        self.image_shape = encoder.header.image.shape
        self.latent = encoder.header.latent
        self._log_determinant = encoder.header.log_determinant == "full"
        self._encoder = encoder.network.to(self.device)
        self._prior_score = prior_score(prior.network.to(self.device), prior.sde)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        *,
        device: torch.device | str | None = None,
        sampling: SamplingConfig = DEFAULT_SAMPLING,
        batch: int = 500,
    ) -> Self:
        """Load ``prior.safetensors`` and ``encoder.safetensors`` from a folder.

        Raises:
            UserError: a file is missing, foreign or does not fit the other.
        """
        prior = load_prior(Path(folder) / "prior.safetensors")
        encoder = load_encoder(Path(folder) / "encoder.safetensors")
        return cls(prior, encoder, device=device, sampling=sampling, batch=batch)

    @torch.no_grad()
    def encode(self, images: Images) -> DiagonalGaussian:
        """q(z|x_0, 0) of images in [0, 1].

        Raises:
            UserError: the images have another shape than the model's, or leave [0, 1].
        """
        self._check_images(images)
        parts = [
            self._encoder(
                (2 * chunk - 1).to(self.device), torch.zeros(len(chunk), device=self.device)
            )
            for chunk in images.split(self.batch)
        ]
        return DiagonalGaussian(
            torch.cat([part.mean for part in parts]).cpu(),
            torch.cat([part.log_variance for part in parts]).cpu(),
        )

    def decode(
        self,
        z: Latents,
        *,
        guidance: float = 1.0,
        seed: int = 0,
        x_1: Images | None = None,
        shared: int = 1,
        report: Report = lambda done: None,
    ) -> Images:
        """Draw one image from p(x|z) for each latent.

        Args:
            z: latents, (count, latent).
            guidance: γ of :func:`scorevae.score.posterior_score`.
            seed: of x_1 and of the sampler's noise.
            x_1: the noise to start from, standard normal, instead of a draw.
            shared: so many consecutive latents see the same noise of the sampler.
            report: called with the number of images done.

        Raises:
            UserError: latents or x_1 have the wrong shape.
        """
        if z.ndim != 2 or z.shape[1] != self.latent:
            raise UserError(f"z has shape {tuple(z.shape)}; give (count, {self.latent})")

        def score(rows: slice) -> ScoreFn:
            return posterior_score(
                self._prior_score,
                self._encoder,
                z[rows].to(self.device),
                guidance=guidance,
                log_determinant=self._log_determinant,
            )

        return self._draw(len(z), score, seed, x_1, report, shared)

    def reconstruct(self, images: Images, *, guidance: float = 1.0, seed: int = 0) -> Images:
        """Encode to the mean of q(z|x_0, 0) and draw from p(x|z)."""
        return self.decode(self.encode(images).mean, guidance=guidance, seed=seed)

    def sample(self, count: int, *, guidance: float = 1.0, seed: int = 0) -> Images:
        """Draw z ~ N(0, I), then x ~ p(x|z)."""
        z = torch.randn(count, self.latent, generator=make_generator("cpu", seed, "z"))
        return self.decode(z, guidance=guidance, seed=seed)

    def sample_prior(self, count: int, *, seed: int = 0) -> Images:
        """Draw from the unconditional diffusion model."""
        return self._draw(count, lambda rows: self._prior_score, seed, None, lambda done: None)

    def interpolate(
        self, first: Images, second: Images, steps: int, *, guidance: float = 1.0, seed: int = 0
    ) -> Float[Tensor, "pairs steps channel height width"]:
        """Images along the straight line between the latents of each pair, ends included.

        Every image of a pair sees the same x_1 and the same noise of the sampler, so that only z
        changes along the line.
        """
        start, end = self.encode(first).mean, self.encode(second).mean
        weight = torch.linspace(0, 1, steps)[None, :, None]
        z = (1 - weight) * start[:, None] + weight * end[:, None]
        x_1 = self._noise(len(first), seed).repeat_interleave(steps, dim=0)
        images = self.decode(z.flatten(0, 1), guidance=guidance, seed=seed, x_1=x_1, shared=steps)
        return images.unflatten(0, (len(first), steps))

    def _noise(self, count: int, seed: int) -> Images:
        return torch.randn(count, *self.image_shape, generator=make_generator("cpu", seed, "x_1"))

    def _draw(
        self,
        count: int,
        score: Callable[[slice], ScoreFn],
        seed: int,
        x_1: Images | None,
        report: Report,
        shared: int = 1,
    ) -> Images:
        x_1 = self._noise(count, seed) if x_1 is None else x_1
        if x_1.shape != (count, *self.image_shape):
            raise UserError(f"x_1 has shape {tuple(x_1.shape)}; give {(count, *self.image_shape)}")
        parts = []
        for rows in self._slices(count, shared):
            generator = make_generator(self.device, seed, "sampler", rows.start)
            start = x_1[rows].to(self.device) * self.sde.terminal_std
            x_0 = generate(
                score(rows), self.sde, start, self.sampling, noise=_draws(generator, shared)
            )
            parts.append(to_unit_range(x_0).cpu())
            report(rows.stop)
        return torch.cat(parts)

    def _slices(self, count: int, shared: int) -> Iterator[slice]:
        """Slices of at most ``batch`` images, in whole groups of ``shared``."""
        size = max(1, self.batch // shared) * shared
        for first in range(0, count, size):
            yield slice(first, min(first + size, count))

    def _check_images(self, images: Images) -> None:
        if len(images) == 0 or images.shape[1:] != self.image_shape:
            raise UserError(
                f"images have shape {tuple(images.shape)}; give (count, "
                f"{', '.join(map(str, self.image_shape))})"
            )
        low, high = images.min().item(), images.max().item()
        if not (low >= 0 and high <= 1):  # NaN too
            raise UserError(f"images have values from {low:.3g} to {high:.3g}; scale to [0, 1]")


def _check_same_space(prior: PriorHeader, encoder: EncoderHeader) -> None:
    """Bayes' rule needs both scores under one process and in one image space."""
    for name in ("sde", "image"):
        ours, theirs = getattr(encoder, name), getattr(prior, name)
        if ours != theirs:
            raise UserError(
                f"the encoder's {name} is ({ours}), the prior's ({theirs}); train the encoder "
                "with this prior"
            )


class VAEBaseline:
    """The β-VAE as an auto-encoder of images in [0, 1]; the decoder's mean is the image."""

    def __init__(
        self, vae: TrainedVAE, *, device: torch.device | str | None = None, batch: int = 500
    ) -> None:
        """Wrap a VAE from :func:`scorevae.networks.vae.load_vae`."""
        self.device = torch.device(device) if device is not None else default_device()
        self.batch = batch
        self._network = vae.network.to(self.device)

    @torch.no_grad()
    def reconstruct(self, images: Images) -> Reconstructions:
        """Encode to the mean of q(z|x), decode to the mean of p(x|z)."""
        decoded, means, log_variances = [], [], []
        for chunk in images.split(self.batch):
            x = (2 * chunk - 1).to(self.device)
            posterior = self._network.encoder(x, torch.zeros(len(x), device=self.device))
            decoded.append(to_unit_range(self._network.decoder(posterior.mean)).cpu())
            means.append(posterior.mean.cpu())
            log_variances.append(posterior.log_variance.cpu())
        posterior = DiagonalGaussian(torch.cat(means), torch.cat(log_variances))
        return Reconstructions(torch.cat(decoded), posterior)


def _draws(generator: torch.Generator, shared: int) -> Callable[[Tensor], Tensor]:
    """Standard normal noise like its argument, the same for ``shared`` consecutive rows."""

    def noise(x: Tensor) -> Tensor:
        shape = (len(x) // shared, *x.shape[1:])
        drawn = torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)
        return drawn.repeat_interleave(shared, dim=0)

    return noise

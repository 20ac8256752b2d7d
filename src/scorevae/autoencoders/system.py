"""An auto-encoder as Python callers see it, whatever it is made of. Images are in [0, 1].

Every system answers to the same four verbs (:class:`System`), batch first. Images are given as
people have them (:func:`scorevae.data.given.to_images`): paths, pictures, arrays, tensors, lists
of them, and streams of batches, for which results are a stream too.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, overload

import torch

from scorevae.autoencoders.decoding import DECODING, write_decoding
from scorevae.autoencoders.devices import chosen_device, place
from scorevae.autoencoders.names import TITLES
from scorevae.config import DecodingConfig
from scorevae.data.given import Batches, Given, Pictures, over
from scorevae.errors import UserError
from scorevae.gaussian import DiagonalGaussian
from scorevae.networks.conditional import DiffusionDecoderHeader
from scorevae.networks.corrector import CorrectorHeader
from scorevae.networks.encoder import EncoderHeader
from scorevae.networks.vae import VAEHeader
from scorevae.networks.weights import Trained, save_weights
from scorevae.runtime.files import replacing
from scorevae.runtime.hub import CARD, card, fetched, pushed
from scorevae.sampling import Report
from scorevae.score import Encoder
from scorevae.shapes import Images, Latents, PerSample

DEFAULT_BATCH = 500

LatentHeader = EncoderHeader | CorrectorHeader | DiffusionDecoderHeader | VAEHeader


class System(ABC):
    """An auto-encoder: what ScoreVAE and its baselines have in common.

    Results are on the CPU, whatever the device; ``batch`` images at a time bound the memory.
    """

    beta: float | None = None  # of its training, where that is known
    _unsavable = ""  # why files cannot say what it is, where they cannot

    def __init__(
        self,
        weights: Mapping[str, Trained],
        header: LatentHeader,
        *,
        device: torch.device | str | None,
        batch: int,
    ) -> None:
        """Hold the networks by their files' names on the device, CUDA if there is one for None.

        ``header`` says what images and z are.
        """
        place(weights, chosen_device(device))
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
        place(self.weights, chosen_device(device))
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
            UserError: ``metrics`` or ``data`` cannot be read, the disk is full, or the code was
                made coarser, which no file tells of.
        """
        if self._unsavable:
            raise UserError(self._unsavable)
        text = card(
            type(self).__name__,
            self._about(),
            TITLES,
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
        return joined(parts)

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


def joined(parts: list[DiagonalGaussian]) -> DiagonalGaussian:
    """The Gaussians of several batches as one, on the CPU."""
    mean, log_variance = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    return DiagonalGaussian(mean, log_variance)

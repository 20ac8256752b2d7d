"""The table of systems: what compares systems goes through its rows."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from scorevae.autoencoders.diffusion_decoder import DiffusionDecoder
from scorevae.autoencoders.drawing import DiffusionSystem
from scorevae.autoencoders.names import (
    BASELINE_FILE,
    CORRECTOR,
    DIFFUSION_DECODER,
    ENCODER,
    TITLES,
)
from scorevae.autoencoders.score_vae import ScoreVAE, ScoreVAEPlus
from scorevae.autoencoders.system import System
from scorevae.autoencoders.vae import VAE
from scorevae.config import Config, Variant
from scorevae.networks.prior import PRIOR, decoding_prior


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
        system = kind.load(
            folder,
            prior=decoding_prior(folder, config.reconstruct.prior),
            sampling=config.sampling,
            guidance=1.0,  # whoever weighs ∇ ln q says so
            batch=config.reconstruct.batch,
        )
        return system.with_precision(config.reconstruct.precision)

    return load


# In the order of rows and columns; the first is the one that the others are compared with.
SYSTEMS = {
    "scorevae": SystemRow(
        TITLES["scorevae"],
        (PRIOR, ENCODER),
        _drawing(ScoreVAE),
        ("prior", "objective"),
        {
            "CIFAR-10": {"l2": "2.634", "paper_lpips": "0.125"},
            "CelebA 64×64": {"l2": "7.322", "paper_lpips": "0.158"},
        },
    ),
    "vae": SystemRow(
        TITLES["vae"],
        (BASELINE_FILE,),
        lambda folder, config: VAE.load(folder, batch=config.reconstruct.batch),
        ("vae",),
        {
            "CIFAR-10": {"l2": "3.410", "paper_lpips": "0.269"},
            "CelebA 64×64": {"l2": "6.97", "paper_lpips": "0.217"},
        },
    ),
    "scorevae_plus": SystemRow(
        TITLES["scorevae_plus"],
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
        TITLES["diffusion_decoder"],
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

"""How a folder's model decodes: as its run did, but for what a caller says."""

from pathlib import Path
from typing import NamedTuple

from scorevae.autoencoders.decoding import DECODING, read_decoding
from scorevae.config import SamplingConfig
from scorevae.networks.prior import decoding_prior

DEFAULT_SAMPLING = SamplingConfig(
    sampler="sde_dpm_solver_pp",
    grid="log_snr",
    steps=20,
    corrector_snr=0.16,
    noise_scale=0.8,
    clip=True,
)


class Manner(NamedTuple):
    """How a folder's model decodes: as its run did, but for what a caller says."""

    prior: Path
    sampling: SamplingConfig
    guidance: float
    beta: float | None


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

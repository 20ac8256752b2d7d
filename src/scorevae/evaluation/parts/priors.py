"""Which diffusion model trained the encoder, and which decodes: they need not be the same."""

from pathlib import Path

from scorevae.autoencoders.table import MODEL, SYSTEMS
from scorevae.evaluation.part import Found, Part, Subject
from scorevae.evaluation.report.page import Cell, Label, Number, Table
from scorevae.networks.prior import PRIOR, PriorHeader, decoding_prior
from scorevae.networks.weights import read_header
from scorevae.runtime.files import sha256
from scorevae.sde import build_sde, log_snr_range

TITLE = SYSTEMS[MODEL].title


def compute(subject: Subject) -> Found:
    """A row for each role; two rows of one SHA-256 are one prior."""
    trained = subject.models / PRIOR
    decodes = decoding_prior(subject.models, subject.config.reconstruct.prior)
    digests = {path: sha256(path) for path in (trained, decodes)}
    swapped = digests[trained] != digests[decodes]
    roles = {"trained the encoder": trained, "decodes": decodes}
    rows = [_row(role, path, digests[path]) for role, path in roles.items()]
    columns = ["Prior that", "Origin", "SHA-256 of the file", "Largest log-SNR", "Smallest"]
    notes = [f"{TITLE} decodes with a prior that its encoder was not trained with."]
    return Found(page=[Table("Priors", columns, rows)], notes=notes if swapped else [])


def _row(role: str, path: Path, digest: str) -> list[Cell]:
    header = read_header(path, PriorHeader)
    largest, smallest = log_snr_range(build_sde(header.sde))
    return [
        Label(role),
        Label(header.origin),
        Label(digest[:12]),
        Number(largest, 2),
        Number(smallest, 2),
    ]


PART = Part(
    name="priors",
    title="Priors",
    text="The encoder depends on the prior only through the score that it was trained beside.",
    compute=compute,
)

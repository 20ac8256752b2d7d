"""Sections of what the paper does not show: likelihood, samplers, latents, sample quality."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from scorevae.evaluation.report.page import FigureFile, Section, Table, Value, Values
from scorevae.evaluation.report.tables import records_table, systems_table


class Topic(NamedTuple):
    """What a section with one table of systems is about."""

    title: str
    text: str
    caption: str


LIKELIHOOD = Topic(
    "Likelihood",
    "A lower bound on ln p(x) of the test images, as bits per dimension (lower is better), "
    "with the terms that add up to it and the standard error of the estimate. β is 1 here, "
    "whatever β trained the encoder. The prior's own bound comes from the same estimator.",
    "Likelihood bound and its terms",
)
LATENTS = Topic(
    "Latents",
    "How much of the labels a simple classifier reads from z, beside the pixels and the VAE's "
    "z; and what moving through z does to the image.",
    "What the code tells of the labels",
)
SAMPLE_QUALITY = Topic(
    "Sample quality",
    "How far the distribution of samples is from that of the test images; lower is better.",
    "Distances from the test images",
)


def finding(
    topic: Topic,
    numbers: Mapping[str, Values],
    *,
    reasons: Mapping[str, str] | None = None,
    figures: Sequence[FigureFile] = (),
    notes: Sequence[str] = (),
) -> Section:
    """The numbers of a topic, system -> metric -> value; warnings go to ``notes``."""
    tables = [systems_table(topic.caption, numbers, reasons)]
    return _section(topic.title, topic.text, tables, figures, notes)


likelihood = partial(finding, LIKELIHOOD)
latents = partial(finding, LATENTS)
sample_quality = partial(finding, SAMPLE_QUALITY)


def sampler_study(
    records: Sequence[Mapping[str, str | Value]],
    guidance: Sequence[Mapping[str, str | Value]] = (),
    *,
    reasons: Mapping[str, str] | None = None,
    figures: Sequence[FigureFile] = (),
    notes: Sequence[str] = (),
) -> Section:
    """Quality against network evaluations: one record for each setting, its name first."""
    text = (
        "What reconstruction costs and gains: every sampler on every grid, from the same starting "
        "noise. Guidance γ weighs ∇\u00a0ln\u00a0q(z|xₜ,\u00a0t) in the score: 1 is the model, 0 "
        "the prior."
    )
    tables = [
        records_table("Samplers", records, reasons),
        records_table("Guidance", guidance, reasons),
    ]
    return _section("Samplers and guidance", text, tables, figures, notes)


def _section(
    title: str,
    text: str,
    tables: Sequence[Table],
    figures: Sequence[FigureFile],
    notes: Sequence[str],
) -> Section:
    """A section without its empty tables; one with nothing at all says so."""
    filled = [table for table in tables if table.rows]
    if not filled and not figures and not notes:
        notes = ["Nothing to show: this part was switched off in params.yaml."]
    return Section(title, text, filled, figures, notes)

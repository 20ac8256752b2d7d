"""The whole page of a run: a section for each part, out of its declaration and what it found."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from scorevae.autoencoders.table import MODEL, SYSTEMS
from scorevae.config import Config
from scorevae.evaluation.part import Found, Part
from scorevae.evaluation.report.page import (
    Card,
    FigureFile,
    Label,
    Number,
    Provenance,
    Report,
    Section,
    Table,
)
from scorevae.evaluation.report.provenance import parameters
from scorevae.evaluation.report.tables import (
    Metric,
    metric_label,
    reason_of,
    records_table,
    systems_table,
)

# Systems, and what stands beside them in some tables.
TITLES = {name: system.title for name, system in SYSTEMS.items()} | {
    "prior": "Prior",
    "pixels": "Pixels",
    "train_images": "Training images",
}
QUICK = "A quick run: a few images and steps, to see that everything works. No number counts."
SETTINGS = {  # columns of tables whose rows are settings
    "evaluations": Metric("Evaluations", digits=0),
    "seconds": Metric("Time, s", digits=2),
}


def assemble(
    config: Config,
    parts: Sequence[tuple[Part, Found | None]],
    unavailable: Mapping[str, str],
    seconds: Mapping[str, float],
    *,
    figures: Path,
    provenance: Provenance,
    images: int,
    processes: int = 1,
) -> Report:
    """The page of one run on so many test images, with PNG out of the folder ``figures``.

    ``parts`` come in the order of the page, with what each found, None where it did not run; by
    their names, ``unavailable`` says why one that was switched on found nothing, ``seconds`` what
    each cost in so many ``processes``.
    """
    metrics = {k: v for part, _ in parts for k, v in part.metrics.items()} | SETTINGS
    cards, sections, off = [], [], []
    cautions = [QUICK] if config.quick else []
    lead = None
    for part, found in parts:
        why = unavailable.get(part.name, "")
        if found is None and not why:
            off.append(part.title)
            continue
        found = found or Found(part.nothing(config))
        sections.append(section(part, found, why, metrics, figures))
        cards += [] if why else cards_of(part, found)
        cautions += found.cautions
        lead = drawn(part, part.lead, figures) if part.lead in found.figures else lead
    notes = [f"Switched off in params.yaml: {', '.join(off)}."] if off else []
    sections.append(Section("Costs", tables=[_costs(seconds, processes)], notes=notes))
    title = f"{SYSTEMS[MODEL].title} on {config.preset}"
    return Report(
        title,
        summary(config, images),
        cards,
        sections,
        parameters(config),
        provenance,
        lead,
        cautions,
    )


def drawn(part: Part, name: str, figures: Path) -> FigureFile:
    """A figure of a part, as a file with its caption."""
    caption = part.figures[name]
    return FigureFile(figures / f"{name}.png", caption.text, caption.alt)


def section(
    part: Part, found: Found, why: str, metrics: Mapping[str, Metric], figures: Path
) -> Section:
    """What one part found; ``why`` says why it found nothing."""
    reasons = found.reasons | (dict.fromkeys(part.metrics, why) if why else {})
    tables, numbers = [], found.numbers
    if numbers:
        caption = f"{part.title} in numbers"
        tables.append(systems_table(caption, numbers, metrics, TITLES, reasons, part.note))
    for name, rows in found.tables.items():
        if (shown := part.tables[name].shown) is not None:
            records = [shown(row) for row in rows]
            tables.append(records_table(part.tables[name].caption, records, metrics))
    here = [name for name in part.figures if name in found.figures and name != part.lead]
    notes = [*found.notes, why] if why else found.notes
    files = [drawn(part, name, figures) for name in here]
    return Section(part.title, part.text, [*tables, *found.page], files, notes)


def cards_of(part: Part, found: Found) -> list[Card]:
    """The headline numbers of a part: the model's, with the others' beside it."""
    cards = list(found.cards)
    for name, metric in part.metrics.items():
        if metric.headline is None:
            continue
        why = reason_of(found.reasons, f"{MODEL}.{name}", name, MODEL)
        value = Number(found.numbers.get(MODEL, {}).get(name), metric.headline, reason=why)
        others = {
            TITLES.get(row, row): Number(values[name], metric.headline)
            for row, values in found.numbers.items()
            if row != MODEL and name in values
        }
        detail = ", ".join(f"{title} {n.text}" for title, n in others.items() if not n.missing)
        cards.append(Card(metric_label(name, part.metrics).text, value, detail))
    return cards


def _costs(seconds: Mapping[str, float], processes: int) -> Table:
    rows = [(Label(name.replace("_", " ")), Number(cost, 1)) for name, cost in seconds.items()]
    note = f"In {processes} processes, which divide what is drawn." if processes > 1 else ""
    return Table("Parts of the evaluation", ["Part", "Time, s"], rows, note)


def summary(config: Config, images: int) -> str:
    """One sentence: data, code, weight and sampler."""
    preset, sampling = config.selected, config.sampling
    size, channels = preset.data.image.size, preset.data.image.channels
    return (
        f"Auto-encoding {images} test images of {size}×{size}×{channels} with {preset.latent} "
        f"latents, β {config.beta}, {config.objective.weighting} weighting; reconstructed by "
        f"{sampling.sampler} in {sampling.steps} steps on the grid {sampling.grid}, guidance "
        f"{config.reconstruct.guidance:g}, seed {config.seed}."
    )

"""What the analysis found, as sections of the report."""

from collections.abc import Callable, Sequence
from pathlib import Path

from scorevae.evaluation.part import NUMBERS, Analysis, Numbers, Rows, Value
from scorevae.evaluation.report import findings
from scorevae.evaluation.report.assembly import find_figures
from scorevae.evaluation.report.page import Card, FigureFile, Number, Section
from scorevae.evaluation.report.training import timings

TERMS = ("bits_reconstruction", "bits_prior_matching", "bits_diffusion", "bits_rate")
BITS = (
    "bits_per_dim", "bits_per_dim_error", "bits_per_dim_image_error",
    *TERMS, "bits_below_t_min", "bits_theorem_3",
    "ode_bits_per_dim", "ode_bits_per_dim_error",
)  # fmt: skip
CODES = ("linear_probe", "neighbours")
USE = (
    "l2_of_one_draw", "l2_of_mean", "pixel_std", "calibration", "l2_shuffled_z", "shuffled_ratio",
)  # fmt: skip
DISTANCES = ("classifier_fd", "classifier_kd", "fid", "kid")


def sections(analysis: Analysis, numbers: Numbers, figures: Path) -> list[Section]:
    """Likelihood, samplers and guidance, latents, sample quality, costs.

    Args:
        analysis: what was found.
        numbers: those of ``metrics.json``.
        figures: the folder in which the figures were written.
    """

    def drawn(*names: str) -> list[FigureFile]:
        return find_figures(figures, *names)

    return [
        findings.likelihood(
            _chosen(numbers, BITS),
            reasons=_reasons(analysis, "likelihood"),
            figures=drawn("integrand"),
            notes=_notes(analysis, "likelihood"),
        ),
        findings.sampler_study(
            _named(analysis, "samplers", lambda row: f"{row['sampler']}, {row['grid']}"),
            _named(analysis, "guidance", lambda row: f"γ = {row['guidance']:g}"),
            figures=drawn("samplers", "guidance"),
            notes=_notes(analysis, "samplers", "guidance"),
        ),
        findings.latents(
            _chosen(numbers, (*CODES, *USE)),
            reasons=_reasons(analysis, "probes", "draws", "shuffled"),
            figures=drawn("latent_costs", "embedding", "probe_over_time", "edits", "draws",
                          "shuffled_z"),
            notes=_notes(analysis, "probes", "embedding", "interpolations", "edits", "draws",
                         "shuffled"),
        ),
        findings.sample_quality(
            _chosen(numbers, DISTANCES),
            reasons=_reasons(analysis, "classifier_distances", "inception_distances"),
            notes=_notes(analysis, "classifier_distances", "inception_distances"),
        ),
        Section("Costs", tables=[timings(dict(analysis.seconds))]),
    ]  # fmt: skip


def cards(numbers: Numbers) -> list[Card]:
    """Headline numbers beyond the comparison's, where they were computed."""
    bits = numbers.get("scorevae", {}).get("bits_per_dim")
    alone = numbers.get("prior", {}).get("bits_per_dim")
    found = []
    if bits is not None and alone is not None:
        number = Number(bits, 2)
        found.append(Card("Bits per dimension", number, f"bound; the prior's {alone:.2f}"))
    probe = numbers.get("scorevae", {}).get("linear_probe")
    if probe is not None:
        vae = numbers.get("vae", {}).get("linear_probe")
        detail = "accuracy" if vae is None else f"accuracy; the VAE's z {vae:.3f}"
        found.append(Card("Linear probe on z", Number(probe, 3), detail))
    return found


def _chosen(numbers: Numbers, metrics: Sequence[str]) -> Numbers:
    """The metrics in question, of the systems that have any of them."""
    chosen: Numbers = {}
    for system, values in numbers.items():
        found: dict[str, Value] = {name: values[name] for name in metrics if name in values}
        if found:
            chosen[system] = found
    return chosen


def _reasons(analysis: Analysis, *parts: str) -> dict[str, str]:
    """The reason of a part under the name of every metric that it would have given."""
    return {
        metric: analysis.reasons[part]
        for part in parts
        if part in analysis.reasons
        for metrics in NUMBERS.get(part, {}).values()
        for metric in metrics
    }


def _notes(analysis: Analysis, *parts: str) -> list[str]:
    found = [
        note for part in parts if part in analysis.parts for note in analysis.parts[part].notes
    ]
    return found + [
        f"{part.replace('_', ' ')}: {analysis.reasons[part]}"
        for part in parts
        if part in analysis.reasons
    ]


def _named(analysis: Analysis, part: str, name: Callable[[dict[str, Value | str]], str]) -> Rows:
    """A table of trials with the setting's name first and without what the name says."""
    if part not in analysis.parts:
        return []
    keys = ("evaluations", "l2", "ssim", "sharpness", "seconds")
    return [
        {"setting": name(row), **{key: row[key] for key in keys}}
        for row in analysis.parts[part].tables[part]
    ]

"""One page that shows a whole run: self-contained HTML without scripts.

The first half is a contract of text, numbers and picture files (:class:`Report`) and its
rendering; it knows nothing of the pipeline. The second half builds the parts of that contract
from plain numbers, one function for each section. A number that could not be had is None: the
page shows "–" with the reason beside it.
"""

import base64
import csv
import hashlib
import math
import os
import platform
import re
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jinja2
import torch
from markupsafe import Markup
from PIL import Image

from scorevae.config import Config, load_config
from scorevae.errors import UserError
from scorevae.files import replacing
from scorevae.tracking import flatten

Value = float | int | None
Values = Mapping[str, Value]

# --- the contract -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    """A number of the page; None, inf and NaN are shown as "–" with the reason."""

    value: Value
    digits: int = 4  # decimals; an int has none
    unit: str = ""
    reason: str = ""  # why there is no value
    best: bool = False  # emphasised

    @property
    def missing(self) -> bool:
        """Whether there is nothing to show."""
        return self.value is None or not math.isfinite(self.value)

    @property
    def why(self) -> str:
        """Why there is nothing to show; empty if there is."""
        if not self.missing:
            return ""
        return self.reason or ("no reason was given" if self.value is None else "not finite")

    @property
    def text(self) -> str:
        """The number as printed; one that its decimals would round to zero in powers of ten."""
        if self.value is None or not math.isfinite(self.value):
            return "–"
        if isinstance(self.value, int):
            number = f"{self.value:d}"
        elif self.value != 0 and float(f"{self.value:.{self.digits}f}") == 0:
            number = f"{self.value:.1e}"
        else:
            number = f"{self.value:.{self.digits}f}"
        return f"{number} {self.unit}".rstrip()


@dataclass(frozen=True)
class Label:
    """The head of a row, with an explanation in small print."""

    text: str
    detail: str = ""


Cell = str | Number | Label


@dataclass(frozen=True)
class Card:
    """A headline number."""

    label: str
    number: Number
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """Rows under named columns; the first cell of a row is its head."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class FigureFile:
    """A picture file (PNG, JPEG, WebP or GIF) that is embedded."""

    path: Path
    caption: str
    alt: str  # what it shows, for those who do not see it


@dataclass(frozen=True)
class Section:
    """A part of the page. Paragraphs of ``text`` are parted by empty lines."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    figures: Sequence[FigureFile] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Provenance:
    """Where the numbers come from and how to get them again."""

    commit: str  # "unknown" outside Git
    dirty: bool  # code differs from the commit
    hardware: Mapping[str, str]
    commands: Sequence[str]
    notes: Sequence[str] = ()
    finished: str = ""  # when, as text


@dataclass(frozen=True)
class Report:
    """The whole page."""

    title: str
    summary: str
    headline: Sequence[Card]
    sections: Sequence[Section]
    parameters: Mapping[str, str]  # dotted name -> value
    provenance: Provenance


# --- rendering ----------------------------------------------------------------------------------

# An absolute path tells of the machine, not of the run: only its last part is shown.
ABSOLUTE_PATH = re.compile(r"(?<![^\s'\"(=\[])/(?:[^\s/'\"():,;]+/)+([^\s/'\"():,;]*)")


def write(path: Path, report: Report) -> None:
    """Write the page, atomically."""
    page = render(report)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render(report: Report) -> str:
    """The page as HTML: the same for the same report, and asking for nothing from elsewhere.

    Raises:
        UserError: a figure cannot be read.
    """
    return _template().render(report=report, groups=_groups(report.parameters))


def without_paths(text: str) -> str:
    """The text with absolute paths cut to their last part."""
    return ABSOLUTE_PATH.sub(r"…/\1", text)


@cache
def _template() -> jinja2.Template:
    source = files("scorevae").joinpath("templates/report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # Whatever text comes from elsewhere, reasons of failures above all, passes through here.
        finalize=lambda value: without_paths(value) if type(value) is str else value,
    )
    environment.filters |= {"csp_hash": _csp_hash, "kind": _kind, "marks": _marks, "open": _open}
    return environment.from_string(source)


def _csp_hash(style: str) -> Markup:
    """The source expression that allows this one style sheet (Content Security Policy 3, §2.3)."""
    digest = hashlib.sha256(style.encode()).digest()
    return Markup(f"'sha256-{base64.b64encode(digest).decode()}'")


def _kind(cell: Cell) -> str:
    return type(cell).__name__


def _marks(table: Table) -> dict[str, int]:
    """The reasons for missing numbers of a table, numbered in order of appearance."""
    cells = [cell for row in table.rows for cell in row if isinstance(cell, Number)]
    reasons = dict.fromkeys(cell.why for cell in cells if cell.missing)
    return {reason: index for index, reason in enumerate(reasons, start=1)}


Shape = Literal["wide", "broad", "plain"]  # how far a phone may shrink a picture


class _Picture(NamedTuple):
    """An embedded file, as the template wants it."""

    source: Markup
    width: int
    height: int
    shape: Shape


def _open(figure: FigureFile) -> _Picture:
    try:
        with Image.open(figure.path, formats=("PNG", "JPEG", "WEBP", "GIF")) as image:
            (width, height), kind = image.size, image.get_format_mimetype()
        content = base64.b64encode(figure.path.read_bytes()).decode()
    except OSError as error:
        raise UserError(
            f"{figure.path}: no picture ({error.strerror or 'not PNG, JPEG, WebP or GIF'}); run "
            "the stage that draws it again"
        ) from None
    return _Picture(Markup(f"data:{kind};base64,{content}"), width, height, _shape(width, height))


def _shape(width: int, height: int) -> Shape:
    return "wide" if width > 2.8 * height else "broad" if width > 1.8 * height else "plain"


def _groups(parameters: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Parameters by the first part of their name; those without parts under "general"."""
    groups: dict[str, dict[str, str]] = {}
    for name, value in parameters.items():
        first, dot, _ = name.partition(".")
        groups.setdefault(first if dot else "general", {})[name] = value
    return groups


# --- tables from plain numbers ------------------------------------------------------------------


class Metric(NamedTuple):
    """How a metric is printed."""

    label: str
    meaning: str = ""
    better: Literal["lower", "higher", "one", ""] = ""
    digits: int = 4
    unit: str = ""


METRICS = {
    "l2": Metric("L2", "mean ‖x̂ − x‖₂ of the flattened image in [0, 1]", "lower"),
    "mse": Metric("MSE", "mean over pixels of (x̂ − x)²", "lower", 6),
    "psnr": Metric("PSNR, dB", "mean over images", "higher"),
    "ssim": Metric("SSIM", "structural similarity", "higher"),
    "sharpness": Metric(
        "Sharpness", "Laplacian energy over that of the data; below 1: blur", "one"
    ),
    "lpips": Metric("LPIPS", "perceptual distance, as its authors define it", "lower"),
    "paper_lpips": Metric("LPIPS, the paper's", "VGG fed [0, 1]: too low as a distance", "lower"),
    "rate_nats": Metric("Rate, nats", "mean KL(q(z|x₀) ‖ N(0, I))"),
    "active_units": Metric("Active units", "latents whose mean varies over the data"),
    "class_agreement": Metric(
        "Class agreement", "share of a classifier's verdicts that x̂ and x share", "higher"
    ),
    "bits_per_dim": Metric("Bits per dimension", "the bound on −log₂ p(x), β = 1", "lower"),
    "bits_per_dim_error": Metric("its standard error", "Monte Carlo: same images, other noise"),
    "bits_reconstruction": Metric("reconstruction", "−E log₂ p(x₀|x_ε) of the 256 grey values"),
    "bits_prior_matching": Metric("prior matching", "KL(q(x₁|x₀) ‖ π)"),
    "bits_diffusion": Metric("diffusion", "½ ∫ g² E‖∇ln p(xₜ|x₀) − s‖² dt"),
    "bits_rate": Metric("rate", "KL(q(z|x₀) ‖ N(0, I))"),
    "bits_below_t_min": Metric("of the diffusion, below t_min", "where nothing was trained"),
    "bits_theorem_3": Metric("the bound by Song's theorem 3", "another estimator of the same"),
    "ode_bits_per_dim": Metric("Bits per dimension by the ODE", "the prior's own likelihood"),
    "ode_bits_per_dim_error": Metric("its standard error", "over images"),
    "linear_probe": Metric("Linear probe", "accuracy on test images", "higher"),
    "neighbours": Metric("Nearest neighbours", "accuracy on test images", "higher"),
    "l2_of_one_draw": Metric("L2 of one draw for z", "", "lower"),
    "l2_of_mean": Metric("L2 of the mean of K draws", "", "lower"),
    "pixel_std": Metric("Spread of a pixel over draws", "standard deviation"),
    "calibration": Metric("Error of the mean over spread", "1 if the image is like a draw", "one"),
    "l2_shuffled_z": Metric("L2 with another image's z", "from the same noise"),
    "shuffled_ratio": Metric("the same over L2 with its own z", "1: z is ignored"),
    "classifier_fd": Metric("Fréchet distance", "features of a small classifier", "lower"),
    "classifier_kd": Metric("Kernel distance", "features of a small classifier", "lower"),
    "fid": Metric("FID", "", "lower"),
    "kid": Metric("KID", "", "lower"),
    "evaluations": Metric("Evaluations", digits=0),
    "seconds": Metric("Time, s", digits=2),
}
ARROWS = {
    "lower": "\u00a0↓",
    "higher": "\u00a0↑",
    "one": "\u00a0→\u00a01",
    "": "",
}  # no break before
SYSTEMS = {
    "scorevae": "ScoreVAE",
    "vae": "VAE",
    "prior": "Prior",
    "pixels": "Pixels",
    "train_images": "Training images",
}
ARROW_NOTE = "↓ lower is better, ↑ higher is better, → 1 closest to one is best; bold: the best."


def metric_label(metric: str) -> Label:
    """The head of a metric's row; a metric that is not in METRICS goes by its own name."""
    known = METRICS.get(metric, Metric(metric.replace("_", " ").capitalize()))
    return Label(known.label + ARROWS[known.better], known.meaning)


def number(metric: str, value: Value, reason: str = "", *, best: bool = False) -> Number:
    """A value with its metric's precision; without unit, which the label has."""
    return Number(value, METRICS.get(metric, Metric(metric)).digits, reason=reason, best=best)


def systems_table(
    caption: str,
    numbers: Mapping[str, Values],
    reasons: Mapping[str, str] | None = None,
    note: str = "",
) -> Table:
    """One row for each metric, one column for each system.

    Args:
        caption: of the table.
        numbers: system -> metric -> value, as in ``results/metrics.json``; a metric that only
            some systems have is missing in the others.
        reasons: why a value is None, under "system.metric", "metric" or "system".
        note: below the table.
    """
    known = reasons or {}
    rows: list[list[Cell]] = []
    for metric in dict.fromkeys(m for values in numbers.values() for m in values):
        values = [numbers[system].get(metric) for system in numbers]
        best = _best(metric, values)
        rows.append([metric_label(metric)])
        for system, value in zip(numbers, values, strict=True):
            why = _reason(known, f"{system}.{metric}", metric, system)
            rows[-1].append(number(metric, value, why, best=value is not None and value in best))
    columns = ["Metric", *(SYSTEMS.get(system, system) for system in numbers)]
    return Table(caption, columns, rows, note)


def records_table(
    caption: str,
    records: Sequence[Mapping[str, str | Value]],
    reasons: Mapping[str, str] | None = None,
    note: str = "",
) -> Table:
    """One row for each record (a setting, an experiment), one column for each key.

    The keys of the first record are the columns; the first one is the head of each row.
    ``reasons`` says under a key why its values are None.
    """
    known = reasons or {}
    names = list(records[0]) if records else []
    rows: list[list[Cell]] = []
    for record in records:
        cells = [(name, record.get(name)) for name in names]
        rows.append(
            [c if isinstance(c, str) else number(n, c, known.get(n, "")) for n, c in cells]
        )
    return Table(caption, [metric_label(name).text for name in names], rows, note)


def _best(metric: str, values: Sequence[Value]) -> set[float | int]:
    """The best of at least two different values; none where a metric has no better."""
    better = METRICS.get(metric, Metric(metric)).better
    finite = {value for value in values if value is not None and math.isfinite(value)}
    if better == "" or len(finite) < 2:
        return set()
    match better:
        case "lower":
            return {min(finite)}
        case "higher":
            return {max(finite)}
        case _:
            return {min(finite, key=lambda value: abs(value - 1))}


def _reason(reasons: Mapping[str, str], *keys: str) -> str:
    return next((reasons[key] for key in keys if key in reasons), "")


# --- the comparison -----------------------------------------------------------------------------


class Published(NamedTuple):
    """L2 and LPIPS as printed in arXiv 2304.12141, tables 1 and 2 (β = 0.01)."""

    data: str
    numbers: dict[str, dict[str, str]]  # metric -> system -> as printed
    remark: str = ""


CIFAR10 = Published(
    "CIFAR-10",
    {
        "l2": {"scorevae": "2.634", "vae": "3.410"},
        "paper_lpips": {"scorevae": "0.125", "vae": "0.269"},
    },
)
CELEBA64 = Published(
    "CelebA 64×64",
    {
        "l2": {"scorevae": "7.322", "vae": "6.97"},
        "paper_lpips": {"scorevae": "0.158", "vae": "0.217"},
    },
    "The paper's images are CelebA-HQ, stretched and shrunk; its numbers on them are comparable "
    "with no other work's.",
)
PUBLISHED = {"cifar10": CIFAR10, "cifar10_resnet": CIFAR10, "celeba64": CELEBA64}
PUBLISHED_RATIO = {"cifar10_small": CIFAR10}  # same data, other budget: only the ratio compares
NOT_COMPARABLE = (
    "Absolute values are not comparable with the paper's, which are for other images, networks or "
    "budgets."
)


def comparison(
    config: Config,
    numbers: Mapping[str, Values],
    *,
    reasons: Mapping[str, str] | None = None,
    figures: Sequence[FigureFile] = (),
) -> Section:
    """ScoreVAE beside the VAE, and both beside the paper where that means something."""
    systems = {name: numbers[name] for name in ("scorevae", "vae") if name in numbers}
    tables = [
        systems_table("ScoreVAE and the VAE on the test images", systems, reasons, ARROW_NOTE)
    ]
    published = PUBLISHED.get(config.preset)
    ratio_of = published or PUBLISHED_RATIO.get(config.preset)
    notes = [] if published else [NOT_COMPARABLE]
    if ratio_of:
        tables.append(_paper_table(config, systems, ratio_of, reasons or {}))
        notes += [ratio_of.remark] if published and ratio_of.remark else []
    text = (
        "Both systems read the same images, with the same encoder architecture, size of z and β. "
        "The VAE decodes by a network, ScoreVAE by the reverse diffusion with the score "
        "sₚ + ∇\u00a0ln\u00a0q(z|xₜ,\u00a0t)."
    )
    return Section("Comparison", text, tables, figures, notes)


def _paper_table(
    config: Config, systems: Mapping[str, Values], published: Published, reasons: Mapping[str, str]
) -> Table:
    rows: list[list[Cell]] = []
    if config.preset in PUBLISHED:
        for metric, printed in published.numbers.items():
            for system, text in printed.items():
                why = _reason(reasons, f"{system}.{metric}", metric, system)
                value = systems.get(system, {}).get(metric)
                head = Label(f"{METRICS[metric].label}, {SYSTEMS[system]}")
                rows.append([head, number(metric, value, why), text])
    paper = published.numbers["l2"]
    paper_ratio = float(paper["scorevae"]) / float(paper["vae"])
    head = Label("L2, ScoreVAE over VAE", "below 1: ScoreVAE is closer")
    rows.append([head, Number(_ratio(systems), 2, reason="needs both L2"), f"{paper_ratio:.2f}"])
    return Table(
        f"Beside the paper ({published.data})",
        ["Quantity", "This run", "Paper"],
        rows,
        "Paper: arXiv 2304.12141, β 0.01, 1000 steps of the reverse SDE, z sampled (the protocol "
        f"“paper”). This run: β {config.beta}, protocol “{config.reconstruct.protocol}”.",
    )


def _ratio(systems: Mapping[str, Values]) -> float | None:
    ours, theirs = (systems.get(name, {}).get("l2") for name in ("scorevae", "vae"))
    if ours is None or theirs is None or theirs == 0:
        return None
    return ours / theirs


HEADLINE = {"l2": 3, "psnr": 2, "ssim": 3, "sharpness": 3, "lpips": 3, "rate_nats": 1}  # decimals


def headline(
    numbers: Mapping[str, Values], reasons: Mapping[str, str] | None = None
) -> list[Card]:
    """ScoreVAE's main numbers, each with the VAE's, rounded further than in the table."""
    systems = {name: numbers.get(name, {}) for name in ("scorevae", "vae")}
    ratio = Number(_ratio(systems), 2, reason="needs both L2")
    cards = [Card("L2 ratio\u00a0↓", ratio, "" if ratio.missing else "ScoreVAE over VAE")]
    for metric, digits in HEADLINE.items():
        why = _reason(reasons or {}, f"scorevae.{metric}", metric, "scorevae")
        ours = Number(systems["scorevae"].get(metric), digits, reason=why)
        vae = Number(systems["vae"].get(metric), digits)
        cards.append(
            Card(metric_label(metric).text, ours, "" if vae.missing else f"VAE {vae.text}")
        )
    return cards


# --- training -----------------------------------------------------------------------------------


class Phase(NamedTuple):
    """The end of one training, out of its curve file."""

    name: str
    steps: int
    seconds: float
    loss: float | None
    test_loss: float | None


PHASES = {
    "prior": Label("Prior", "diffusion U-Net"),
    "vae": Label("VAE", "the baseline"),
    "warm_start": Label("Encoder, warm start", "regression on the VAE's encoder"),
    "objective": Label("Encoder, objective", "arXiv 2304.12141 §3.5"),
}


def read_phases(path: Path) -> list[Phase]:
    """The trainings that a curve file records; ``seconds`` counts from the start of each.

    Raises:
        UserError: a column is missing or a value is no number.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        return [_phase(name, rows) for name in dict.fromkeys(row["phase"] for row in rows)]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: not a training curve ({type(error).__name__}: {error}); run the stage that "
            "trains it again"
        ) from None


def _phase(name: str, rows: Sequence[Mapping[str, str]]) -> Phase:
    own = [row for row in rows if row["phase"] == name]

    def last(column: str) -> float | None:
        found = [row[column] for row in own if row.get(column)]
        return float(found[-1]) if found else None

    steps = max(int(row["step"]) for row in own)
    seconds = max(float(row["seconds"]) for row in own)
    return Phase(name, steps, seconds, last("loss"), last("test_loss"))


def training(curves: Mapping[str, Path], *, figures: Sequence[FigureFile] = ()) -> Section:
    """Steps, time and final loss of every training, out of its curve file."""
    rows: list[list[Cell]] = []
    total = 0.0
    for name, path in curves.items():
        if not path.is_file():
            missing = Number(None, reason=f"there is no curve file {path.name}")
            rows.append([PHASES.get(name, Label(name)), *[missing] * 5])
            continue
        for phase in read_phases(path):
            total += phase.seconds
            rows.append(_phase_row(phase))
    columns = ["Training", "Steps", "Time, s", "ms per step", "Loss", "Test loss"]
    note = f"{duration(total)} of training in all, validation included. Losses of different rows "
    note += "are different quantities."
    text = "The last record of each training; the figure shows the loss against steps."
    return Section("Training", text, [Table("Trainings", columns, rows, note)], figures)


def _phase_row(phase: Phase) -> list[Cell]:
    each = 1000 * phase.seconds / phase.steps if phase.steps else None
    return [
        PHASES.get(phase.name, Label(phase.name.replace("_", " "))),
        Number(phase.steps),
        Number(phase.seconds, 1),
        Number(each, 1, reason="no steps"),
        Number(phase.loss, reason="not recorded"),
        Number(phase.test_loss, reason="not recorded"),
    ]


def duration(seconds: float) -> str:
    """Seconds as people say them: "42 s", "5 min 20 s", "3 h 7 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def timings(seconds: Values, reasons: Mapping[str, str] | None = None) -> Table:
    """What each part of the evaluation cost."""
    rows: list[list[Cell]] = [
        [Label(part.replace("_", " ")), Number(value, 1, reason=(reasons or {}).get(part, ""))]
        for part, value in seconds.items()
    ]
    return Table("Parts of the evaluation", ["Part", "Time, s"], rows)


# --- what the paper does not show ---------------------------------------------------------------


def likelihood(
    numbers: Mapping[str, Values],
    *,
    reasons: Mapping[str, str] | None = None,
    figures: Sequence[FigureFile] = (),
    notes: Sequence[str] = (),
) -> Section:
    """The bound on ln p(x) and its terms: system -> term -> value."""
    text = (
        "A lower bound on ln p(x) of the test images, as bits per dimension (lower is better), "
        "with the terms that add up to it and the standard error of the estimate. β is 1 here, "
        "whatever β trained the encoder. The prior's own bound comes from the same estimator."
    )
    tables = [systems_table("Likelihood bound and its terms", numbers, reasons)]
    return _section("Likelihood", text, tables, figures, notes)


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


def latents(
    numbers: Mapping[str, Values],
    *,
    reasons: Mapping[str, str] | None = None,
    figures: Sequence[FigureFile] = (),
    notes: Sequence[str] = (),
) -> Section:
    """What z knows: representation -> measure -> value; warnings (z ignored) go to ``notes``."""
    text = (
        "How much of the labels a simple classifier reads from z, beside the pixels and the VAE's "
        "z; and what moving through z does to the image."
    )
    tables = [systems_table("What the code tells of the labels", numbers, reasons)]
    return _section("Latents", text, tables, figures, notes)


def sample_quality(
    numbers: Mapping[str, Values],
    *,
    reasons: Mapping[str, str] | None = None,
    figures: Sequence[FigureFile] = (),
    notes: Sequence[str] = (),
) -> Section:
    """Distances between samples and test images: kind of sample -> distance -> value."""
    text = "How far the distribution of samples is from that of the test images; lower is better."
    tables = [systems_table("Distances from the test images", numbers, reasons)]
    return _section("Sample quality", text, tables, figures, notes)


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


# --- the whole page -----------------------------------------------------------------------------

# File name under results/figures -> caption and description.
FIGURES = {
    "comparison": (
        "Test images and their reconstructions.",
        "Rows of small images: test images, ScoreVAE's reconstructions of them, the VAE's.",
    ),
    "prior_samples": (
        "Samples of the diffusion prior, which knows no z.",
        "A grid of images drawn from the diffusion prior.",
    ),
    "samples": (
        "Samples of ScoreVAE: z from N(0, I), then x from p(x|z).",
        "A grid of images drawn from ScoreVAE.",
    ),
    "interpolations": (
        "Between two test images (outermost): decoded from the line and from the arc between "
        "their z, with one noise for each path.",
        "Rows of images that turn from one test image into another.",
    ),
    "integrand": (
        "Where z helps: the cost of each noise level, for the prior and with z. The area between "
        "the curves is what z saves.",
        "Two curves over the log signal-to-noise ratio, the one with z below the prior's.",
    ),
    "samplers": (
        "L2 and sharpness against network evaluations; squares mark what nothing beats.",
        "Two panels of curves, one for each sampler, on logarithmic axes.",
    ),
    "guidance": (
        "L2 and sharpness against γ, the weight of ∇ ln q(z|x_t).",
        "Two curves over γ.",
    ),
    "latent_costs": (
        "What each latent costs: its mean KL from N(0, 1), the dearest first.",
        "Two falling curves, one for ScoreVAE and one for the VAE.",
    ),
    "embedding": (
        "t-SNE of the z of test images, coloured by label.",
        "Points in the plane, in groups of one colour each.",
    ),
    "probe_over_time": (
        "A linear probe, trained on z of clean images, on z of noised ones.",
        "Accuracy falls with the time of the noise to that of the most frequent class.",
    ),
    "edits": (
        "z moved along the difference of two classes' means, from one noise.",
        "Rows of images that change from one class towards another.",
    ),
    "draws": (
        "Several images for one z: what differs is what z does not hold.",
        "Rows: an image, draws for its z, their mean and their standard deviation.",
    ),
    "shuffled_z": (
        "The same noise, decoded with an image's own z and with another's.",
        "Rows: images, their reconstructions, those from others' z, and the others.",
    ),
    "training_curves": (
        "Training loss against steps.",
        "One panel for each training: its loss, falling with the steps, on a logarithmic axis.",
    ),
}
CURVES = ("prior", "vae", "encoder")


def find_figures(folder: Path, *names: str) -> list[FigureFile]:
    """Those of the named figures that were drawn; a part that was switched off drew none."""
    paths = [folder / f"{name}.png" for name in names]
    return [figure_file(path) for path in paths if path.is_file()]


def figure_file(path: Path) -> FigureFile:
    """A figure with its caption; one that FIGURES does not know is called by its name."""
    name = path.stem.replace("_", " ")
    caption, alt = FIGURES.get(path.stem, (f"{name[:1].upper()}{name[1:]}.", f"Figure: {name}."))
    return FigureFile(path, caption, alt)


def assemble(
    config: Config,
    numbers: Mapping[str, Values],
    *,
    figures: Path,
    curves: Path,
    provenance: Provenance,
    images: int | None = None,
    reasons: Mapping[str, str] | None = None,
    cards: Sequence[Card] = (),
    sections: Sequence[Section] = (),
) -> Report:
    """The page of one run.

    Args:
        config: of the run.
        numbers: system -> metric -> value, for scorevae and vae (``results/metrics.json``).
        figures: folder of PNG; those that no section names stand at the end.
        curves: folder of the training curves.
        provenance: see :func:`provenance`.
        images: how many test images there were.
        reasons: why a value is None, see :func:`systems_table`.
        cards: further headline numbers.
        sections: further sections, between samples and training.
    """
    compared = find_figures(figures, "comparison")
    drawn = find_figures(figures, "prior_samples", "samples", "interpolations")
    text = "What the prior draws, what ScoreVAE draws, and what lies between two codes."
    parts = [
        comparison(config, numbers, reasons=reasons, figures=compared),
        *([Section("Samples", text, figures=drawn)] if drawn else []),
        *sections,
        training(
            {name: curves / f"{name}.csv" for name in CURVES},
            figures=find_figures(figures, "training_curves"),
        ),
    ]
    shown = {figure.path.name for part in parts for figure in part.figures}
    left = [figure_file(p) for p in sorted(figures.glob("*.png")) if p.name not in shown]
    if left:
        parts.append(Section("Further figures", figures=left))
    cards = [*headline(numbers, reasons), *cards]
    title = f"ScoreVAE on {config.preset}"
    return Report(title, summary(config, images), cards, parts, parameters(config), provenance)


def summary(config: Config, images: int | None = None) -> str:
    """One sentence: data, code, weight and sampler."""
    preset, sampling = config.selected, config.sampling
    size, channels = preset.data.image.size, preset.data.image.channels
    counted = f"{images} test images" if images is not None else "test images"
    return (
        f"Auto-encoding {counted} of {size}×{size}×{channels} with {preset.latent} latents, "
        f"β {config.beta}, {config.objective.weighting} weighting; reconstructed by "
        f"{sampling.sampler} in {sampling.steps} steps on the grid {sampling.grid}, guidance "
        f"{config.reconstruct.guidance:g}, seed {config.seed}."
    )


# --- parameters, machine and commands -----------------------------------------------------------

YAML = {"None": "null", "True": "true", "False": "false"}
LOCAL = ("data.root", "lpips.trunk")  # of the preset: where files lie on one machine
INCEPTION = "evaluate.quality.inception"
PLACEHOLDER = "PATH"
CODE = ("src", "stages", "dvc.yaml", "requirements.lock")  # parameters are in the commands


def parameters(config: Config) -> dict[str, str]:
    """Every parameter that counts, by dotted name, as params.yaml writes it.

    Only the selected preset and protocol; a path of this machine is PLACEHOLDER.
    """
    tree = config.model_dump(exclude={"presets", "protocols"})
    tree["protocols"] = {config.reconstruct.protocol: config.sampling.model_dump()}
    tree["presets"] = {config.preset: config.selected.model_dump()}
    local = {INCEPTION, *(f"presets.{config.preset}.{key}" for key in LOCAL)}
    return {
        name: PLACEHOLDER if name in local and text != "null" else text
        for name, text in _plain(tree).items()
    }


def _plain(tree: dict[str, Any]) -> dict[str, str]:
    return {name: YAML.get(text, text) for name, text in flatten(tree).items()}


def provenance(config: Config, params: Path, finished: str = "") -> Provenance:
    """Commit, machine and commands of a run with this parameter file, in its folder."""
    folder = params.absolute().parent
    commit = _git(folder, "rev-parse", "HEAD")
    dirty = bool(_git(folder, "status", "--porcelain", "--", *CODE))
    ours, committed = parameters(config), committed_parameters(params)
    notes = []
    if not commit:
        notes.append("The run was not in a Git repository: no commit is known.")
    elif not ours.keys() <= committed.keys():
        notes.append("The commit lacks some of the parameters below: add them to params.yaml.")
    if dirty:
        notes.append("The code had local changes: the commit alone may give other numbers.")
    if PLACEHOLDER in ours.values():
        notes.append(f"{PLACEHOLDER} stands for files of your own.")
    lines = commands(ours, commit, committed)
    return Provenance(commit or "unknown", dirty, hardware(), lines, notes, finished)


def committed_parameters(params: Path) -> dict[str, str]:
    """All parameters in the commit's version of the file; empty where there is none."""
    text = _git(params.absolute().parent, "show", f"HEAD:./{params.name}")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / params.name
        copy.write_text(text, encoding="utf-8")
        try:
            return _plain(load_config(copy).model_dump())
        except UserError:  # of another version of this package, or no file in the commit
            return {}


def commands(ours: Mapping[str, str], commit: str, committed: Mapping[str, str]) -> list[str]:
    """The lines to type for the same run: preset, β, seed and whatever differs from the commit."""
    settings = {
        name: value
        for name, value in ours.items()
        if name in ("preset", "beta", "seed")
        or value == PLACEHOLDER
        or committed.get(name, value) != value
    }
    texts = [f"{name}={value.replace(', ', ',')}" for name, value in settings.items()]
    run = ["dvc exp run", *(f"-S {shlex.quote(text)}" for text in texts)]
    checkout = [f"git checkout {commit}"] if commit else []
    return [*checkout, "make .venv/installed", ". .venv/bin/activate", " ".join(run)]


def _git(folder: Path, *arguments: str) -> str:
    """What git prints; empty where it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def hardware() -> dict[str, str]:
    """The machine that runs this, without its name."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "Processor": _processor(),
        "Cores": str(cores),
        "Memory": _memory(),
        "GPU": ", ".join(gpus) or "none",
        "System": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "PyTorch": str(torch.__version__),
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1] if found else platform.processor() or "unknown"


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not POSIX
        return "unknown"
    return f"{size / 2**30:.0f} GiB"

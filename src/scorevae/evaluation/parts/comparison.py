"""Every system on the test images: distances, sharpness, rate, what a classifier still sees."""

import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from scorevae.autoencoders.devices import default_device
from scorevae.autoencoders.drawing import DiffusionSystem
from scorevae.autoencoders.table import BASELINE, MODEL, SYSTEMS, SystemRow, systems_of
from scorevae.config import Config
from scorevae.errors import Unavailable
from scorevae.evaluation import lpips, metrics
from scorevae.evaluation.figures import Figure, image_rows, lines
from scorevae.evaluation.part import Caption, Found, Numbers, Part, Subject
from scorevae.evaluation.parts.training import FINISHED, still_falling
from scorevae.evaluation.report.page import Card, Cell, Label, Number, Table
from scorevae.evaluation.report.tables import ARROW_NOTE, Metric, number, reason_of
from scorevae.gaussian import DiagonalGaussian
from scorevae.reconstructions import Reconstructions
from scorevae.sampling import network_evaluations
from scorevae.shapes import Images


class Judges(NamedTuple):
    """Trained models that compare images; None where one cannot be had."""

    lpips: nn.Module | None
    paper_lpips: nn.Module | None
    classifier: metrics.Classifier | None


def compute(subject: Subject) -> Found:
    """All metrics of every system; beside the paper's numbers where that means something."""
    config, x = subject.config, subject.originals
    judges, reasons = open_judges(subject)
    threshold, found = config.evaluate.active_threshold, subject.reconstructed.items()
    numbers = {name: summarise(x, system, threshold, judges) for name, system in found}
    unfinished = add_falling(numbers, subject, reasons)
    data = PUBLISHED.get(config.preset)
    variants = [system.note for system in systems_of(config).values() if system.note]
    return Found(
        numbers,
        figures=draw(subject),
        notes=[*variants, *notes(config.preset)],
        cautions=[*unequal_rates(numbers), *collapsed(numbers, config.beta), *unfinished],
        reasons=reasons,
        cards=[ratio_card(numbers)],
        page=[cost_table(subject)]
        + ([] if data is None else [paper_table(config, numbers, data, reasons)]),
    )


def cost_table(subject: Subject) -> Table:
    """What an image costs: evaluations of the networks, and time once everything is warm.

    On the page alone: seconds differ from run to run, and metrics.json is to be the same.
    """
    count = subject.looked_at(TIMED)

    def cost(name: str) -> list[Cell]:
        system = subject.systems[name]
        z = subject.reconstructed[name].posterior.mean[:count]
        system.decode(z[:1])  # what happens once only: buffers, kernels
        started = time.perf_counter()
        system.decode(z)
        each = (time.perf_counter() - started) / len(z)
        drawn = isinstance(system, DiffusionSystem)
        evaluations = network_evaluations(subject.config.sampling) if drawn else 1
        return [Label(SYSTEMS[name].title), Number(evaluations), Number(1000 * each, 1)]

    rows = list(subject.team.map(cost, list(subject.systems)))
    note = f"Images decoded together: {count}; measured warm, in this run, by one process"
    note += f" of {subject.team.count}." if subject.team.count > 1 else "."
    columns = ["System", "Network evaluations", "Time for an image, ms"]
    return Table("What a reconstruction costs", columns, rows, note)


def open_judges(subject: Subject) -> tuple[Judges, dict[str, str]]:
    """LPIPS, a classifier of the training images, and why a metric has none (to stderr, too)."""
    reasons: dict[str, str] = {}

    def judge(metric: str, load: Callable[[], Any]) -> Any:  # noqa: ANN401 (types of their own)
        try:
            return load()
        except Unavailable as reason:
            reasons[metric] = str(reason)
            print(f"warning: {reason}; reported as null", file=sys.stderr, flush=True)
            return None

    config, device, trunks = subject.config, default_device(), subject.models / "lpips"
    net, seed = config.selected.lpips.net, config.seed
    limit = subject.worth(config.evaluate.classifier_images)
    judge("sharpness", lambda: metrics.sharpness(subject.originals, subject.originals))
    judges = Judges(
        judge("lpips", lambda: lpips.load_lpips(trunks, net).to(device)),
        judge("paper_lpips", lambda: lpips.load_lpips(trunks, lpips.PAPER_NET).to(device)),
        judge("class_agreement", lambda: metrics.train_classifier(subject.train, limit, seed)),
    )
    return judges, reasons


def summarise(
    originals: Images, system: Reconstructions, active_threshold: float, judges: Judges
) -> dict[str, float | int | None]:
    """All numbers of one system, its entry of ``metrics.json``; None: not available.

    ``lpips`` is the distance as its authors define it. ``paper_lpips`` is that of arXiv
    2304.12141: VGG, fed images in [0, 1]; comparable with tables 1 and 2, too low as a distance.
    ``l2`` is the same in both.
    """
    x, x_hat = originals, system.images
    own, paper, classifier = judges
    return {
        "l2": metrics.l2_distances(x, x_hat).mean().item(),
        "mse": metrics.mean_squared_error(x, x_hat),
        "psnr": metrics.peak_signal_to_noise_ratio(x, x_hat),
        "ssim": metrics.structural_similarity(x, x_hat),
        "sharpness": sharpness_if_any(x, x_hat),
        "lpips": lpips.distance(own, x, x_hat) if own else None,
        "paper_lpips": lpips.distance(paper, x, x_hat, unit_range=True) if paper else None,
        "rate_nats": metrics.rate_nats(system.posterior),
        "active_units": metrics.active_units(system.posterior, active_threshold),
        "class_agreement": metrics.class_agreement(classifier, x, x_hat) if classifier else None,
    }


def sharpness_if_any(originals: Images, reconstructions: Images) -> float | None:
    """None where the originals have none; ``open_judges`` says why."""
    try:
        return metrics.sharpness(originals, reconstructions)
    except Unavailable:
        return None


def add_falling(numbers: Numbers, subject: Subject, reasons: dict[str, str]) -> list[str]:
    """Add ``falling_percent`` of each system, the worst of its trainings; name the unfinished."""
    notes = []
    try:
        falling = still_falling(subject)
    except Unavailable as reason:
        falling, reasons["falling_percent"] = {}, str(reason)
    for name, values in numbers.items():
        system = SYSTEMS[name]
        phases = decisive(system, subject.config)
        own = {phase: falling[phase] for phase in phases if phase in falling}
        values["falling_percent"] = max(own.values(), default=None)
        if not own:
            why = "the test loss was measured fewer than twice"
            reasons.setdefault("falling_percent", why)
        for phase, percent in own.items():
            if percent > FINISHED:
                notes.append(
                    f"{system.title} is unfinished: at the end of its training “{phase}” the test "
                    f"loss still fell by {percent:.1f} % for each doubling of the steps."
                )
    return notes


def decisive(system: SystemRow, config: Config) -> list[str]:
    """The trainings that decide what a system is worth; of the encoder's, its last."""
    last, _ = config.selected.encoder.last_training
    return [last if phase == "objective" else phase for phase in system.phases]


UNEQUAL = 1.1  # of two rates, from where on they are another amount of information


def unequal_rates(numbers: Numbers) -> list[str]:
    """Say that L2 compares codes that tell unequally much, where they do."""
    ours, theirs = (numbers.get(name, {}).get("rate_nats") for name in (MODEL, BASELINE))
    if not ours or not theirs or max(ours / theirs, theirs / ours) < UNEQUAL:
        return []
    return [
        f"The ratio of L2 compares unequal codes: {SYSTEMS[MODEL].title}'s tells {ours:.1f} nats "
        f"of an image, {SYSTEMS[BASELINE].title}'s {theirs:.1f}. Distances at one rate: python -m "
        "scorevae.commands.rate_distortion, over experiments with several β."
    ]


TIMED = 32  # images
COLLAPSED = 0.05  # nats, which are printed as 0.0


def collapsed(numbers: Numbers, beta: float) -> list[str]:
    """Name the systems whose z tells nothing of the image."""
    rates = {name: values.get("rate_nats") for name, values in numbers.items()}
    return [
        f"{SYSTEMS[name].title}: rate {rate:.1f} nats: z is not used; lower beta ({beta:g})."
        for name, rate in rates.items()
        if rate is not None and rate < COLLAPSED
    ]


# Presets on the paper's data; in the last one's budget only the ratio of systems compares.
PUBLISHED = {
    "cifar10": "CIFAR-10",
    "cifar10_resnet": "CIFAR-10",
    "celeba64": "CelebA 64×64",
    "cifar10_small": "CIFAR-10",
    "cifar10_ddpm": "CIFAR-10",
}
COMPARABLE = ("cifar10", "cifar10_resnet", "celeba64")
REMARKS = {
    "CelebA 64×64": "The paper's images are CelebA-HQ, stretched and shrunk; its numbers on them "
    "are comparable with no other work's."
}
OVER = f"{SYSTEMS[MODEL].title} over {SYSTEMS[BASELINE].title}"
NOT_COMPARABLE = (
    "Absolute values are not comparable with the paper's, which are for other images, networks or "
    "budgets."
)


def notes(preset: str) -> list[str]:
    """What must be known before numbers are laid beside the paper's."""
    if preset not in COMPARABLE:
        return [NOT_COMPARABLE]
    return [REMARKS[data] for data in REMARKS if data == PUBLISHED[preset]]


def paper_table(config: Config, numbers: Numbers, data: str, reasons: dict[str, str]) -> Table:
    """This run beside the numbers printed in arXiv 2304.12141, tables 1 and 2."""
    rows: list[list[Cell]] = []
    if config.preset in COMPARABLE:
        for metric in SYSTEMS[MODEL].published[data]:
            for name, system in systems_of(config).items():
                why = reason_of(reasons, f"{name}.{metric}", metric, name)
                value = number(METRICS[metric], numbers.get(name, {}).get(metric), why)
                head = Label(f"{METRICS[metric].label}, {system.title}")
                rows.append([head, value, system.published[data][metric]])
    ours, theirs = (float(SYSTEMS[name].published[data]["l2"]) for name in (MODEL, BASELINE))
    head = Label(f"L2, {OVER}", f"below 1: {SYSTEMS[MODEL].title} is closer")
    rows.append([head, _ratio(numbers), f"{ours / theirs:.2f}"])
    return Table(
        f"Beside the paper ({data})",
        ["Quantity", "This run", "Paper"],
        rows,
        "Paper: arXiv 2304.12141, β 0.01, 1000 steps of the reverse SDE, z sampled (the protocol "
        f"“paper”). This run: β {config.beta}, protocol “{config.reconstruct.protocol}”.",
    )


def _ratio(numbers: Numbers) -> Number:
    ours, theirs = (numbers.get(name, {}).get("l2") for name in (MODEL, BASELINE))
    return Number(ours / theirs if ours is not None and theirs else None, 2, "needs both L2")


def ratio_card(numbers: Numbers) -> Card:
    """The headline: the model's L2 over the baseline's."""
    ratio = _ratio(numbers)
    return Card("L2 ratio\u00a0↓", ratio, "" if ratio.missing else OVER)


def draw(subject: Subject) -> dict[str, Figure]:
    """The first images as each system gives them back, and what each latent costs."""
    count = subject.config.evaluate.figure_images
    systems = {SYSTEMS[name].title: found for name, found in subject.reconstructed.items()}
    rows = [("original", subject.originals[:count])]
    rows += [(title, system.images[:count]) for title, system in systems.items()]
    costs = latent_costs({title: system.posterior for title, system in systems.items()})
    title = "test images and their reconstructions"
    return {"comparison": image_rows(rows, title), "latent_costs": costs}


def latent_costs(posteriors: dict[str, DiagonalGaussian]) -> Figure:
    """Mean KL(q(z_i|x) ‖ N(0, 1)) of each latent in nats, the dearest first, for each system."""
    figure, (axis,) = lines(1)
    for name, posterior in posteriors.items():
        costs = np.sort(posterior.kl_per_latent().mean(dim=0).numpy())[::-1]
        axis.plot(np.arange(1, len(costs) + 1), costs, label=f"{name}: {costs.sum():.0f} nats")
    axis.set(xlabel="latent, the dearest first", ylabel="KL, nats", ylim=(0, None))
    axis.legend(fontsize=8)
    return figure


METRICS = {
    "l2": Metric("L2", "mean ‖x̂ − x‖₂ of the flattened image in [0, 1]", "lower", headline=3),
    "mse": Metric("MSE", "mean over pixels of (x̂ − x)²", "lower", 6),
    "psnr": Metric("PSNR, dB", "mean over images", "higher", headline=2),
    "ssim": Metric("SSIM", "structural similarity", "higher", headline=3),
    "sharpness": Metric(
        "Sharpness", "Laplacian energy over that of the data; below 1: blur", "one", headline=3
    ),
    "lpips": Metric("LPIPS", "perceptual distance, as its authors define it", "lower", headline=3),
    "paper_lpips": Metric("LPIPS, the paper's", "VGG fed [0, 1]: too low as a distance", "lower"),
    "rate_nats": Metric("Rate, nats", "mean KL(q(z|x₀) ‖ N(0, I))", headline=1),
    "active_units": Metric("Active units", "latents whose mean varies over the data"),
    "class_agreement": Metric(
        "Class agreement", "share of a classifier's verdicts that x̂ and x share", "higher"
    ),
    "falling_percent": Metric(
        "Still falling, %",
        f"of its test loss, for each doubling of the steps; above {FINISHED:g}: unfinished",
        digits=1,
    ),
}
PART = Part(
    name="comparison",
    title="Comparison",
    text=(
        "All systems read the same images, with the same encoder architecture, size of z and β. "
        "The VAE decodes by a network, ScoreVAE by the reverse diffusion with the score "
        "sₚ + ∇\u00a0ln\u00a0q(z|xₜ,\u00a0t)."
    ),
    compute=compute,
    metrics=METRICS,
    rows=dict.fromkeys(SYSTEMS),
    figures={
        "comparison": Caption(
            "Test images and their reconstructions.",
            "Rows of small images: test images, then each system's reconstructions of them.",
        ),
        "latent_costs": Caption(
            "What each latent costs: its mean KL from N(0, 1), the dearest first.",
            "Falling curves, one for each system.",
        ),
    },
    lead="comparison",
    note=ARROW_NOTE,
)

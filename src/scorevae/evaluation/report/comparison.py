"""ScoreVAE beside the VAE and beside the paper, and the headline numbers."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scorevae.config import Config
from scorevae.evaluation.report.page import (
    Card,
    Cell,
    FigureFile,
    Label,
    Number,
    Section,
    Table,
    Values,
)
from scorevae.evaluation.report.tables import (
    ARROW_NOTE,
    METRICS,
    SYSTEMS,
    metric_label,
    number,
    reason_of,
    systems_table,
)


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
                why = reason_of(reasons, f"{system}.{metric}", metric, system)
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
        why = reason_of(reasons or {}, f"scorevae.{metric}", metric, "scorevae")
        ours = Number(systems["scorevae"].get(metric), digits, reason=why)
        vae = Number(systems["vae"].get(metric), digits)
        cards.append(
            Card(metric_label(metric).text, ours, "" if vae.missing else f"VAE {vae.text}")
        )
    return cards

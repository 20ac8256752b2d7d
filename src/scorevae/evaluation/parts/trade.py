"""Distance against detail: what γ, τ, the ODE and the mean of several draws make of the same z.

Nothing is trained for any of them. τ scales the noise of :func:`scorevae.sampling.generate`, γ
weighs ∇ ln q(z|x_t), the ODE draws no noise but x_1, and a mean of K draws nears E[x|z], which is
nearest of all and smoothest (Blau & Michaeli 2018, arXiv 1711.06077).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from scorevae.autoencoders.table import BASELINE, SYSTEMS
from scorevae.evaluation.figures import Figure, lines
from scorevae.evaluation.metrics import l2_distances, sharpness
from scorevae.evaluation.part import Caption, Columns, Found, Part, Subject
from scorevae.evaluation.report.tables import Row
from scorevae.shapes import Groups, Images

ODE = "dpm_solver_pp"


class Way(NamedTuple):
    """One way to turn z into an image; as a :class:`Point`."""

    curve: str
    setting: float
    evaluations: int
    images: Callable[[], Images]


class Point(NamedTuple):
    """One way to turn z into an image, and what came out."""

    curve: str
    setting: float  # what varies along the curve: τ, or K
    evaluations: int  # of the networks for one image, over those of one draw
    l2: float
    sharpness: float


def compute(subject: Subject) -> Found:
    """All curves for the first images, beside the baseline's point."""
    count = subject.studied(subject.config.evaluate.trade.images, "trade")
    originals = subject.originals[:count]

    def tried(way: Way) -> Point:
        return Point(*way[:3], *judged(originals, way.images()))

    found = list(subject.team.map(tried, list(ways(subject, count))))
    rows: list[Row] = [point._asdict() for point in found]
    told = [f"Images: {count}.", *notes(found)]
    return Found(tables={"trade": rows}, figures={"trade": draw(found)}, notes=told)


def ways(subject: Subject, count: int) -> Iterator[Way]:
    """Every way, all from the same z and x_1."""
    settings, seed, z = subject.config.evaluate.trade, subject.config.seed, subject.z[:count]
    model = subject.model
    for weight in settings.guidance:
        for tau in settings.noise_scales:
            decode = model.with_noise_scale(tau).decode
            images = partial(decode, z, guidance=weight, seed=seed)
            yield Way(f"τ, γ = {weight:g}", tau, 1, images)
    ode = model.with_sampling(model.sampling.model_copy(update={"sampler": ODE}))
    for tau in settings.noise_scales:
        yield Way("τ, ODE", tau, 1, partial(ode.with_noise_scale(tau).decode, z, seed=seed))
    drawn = model.decode_draws(z, max(settings.means), seed=seed)
    for several in settings.means:
        yield Way("mean of K draws", several, several, partial(mean_of, drawn, several))
    baseline = subject.reconstructed[BASELINE].images[:count]
    yield Way(SYSTEMS[BASELINE].title, 1.0, 1, lambda: baseline)


def mean_of(drawn: Groups, several: int) -> Images:
    """The mean of the first draws for each z."""
    return drawn[:, :several].mean(dim=1)


def judged(originals: Images, images: Images) -> tuple[float, float]:
    """L2 and sharpness."""
    return l2_distances(originals, images).mean().item(), sharpness(originals, images)


def notes(found: Sequence[Point]) -> list[str]:
    """Whether one pass is nearer and sharper than the baseline."""
    title = SYSTEMS[BASELINE].title
    baseline = next(point for point in found if point.curve == title)
    better = [
        point
        for point in found
        if point is not baseline
        and point.evaluations == 1
        and point.l2 < baseline.l2
        and abs(point.sharpness - 1) < abs(baseline.sharpness - 1)
    ]
    if not better:
        return [f"No single pass is both nearer and sharper than the {title}."]
    best = min(better, key=lambda point: abs(point.sharpness - 1))
    return [
        f"Nearer and sharper than the {title} (L2 {baseline.l2:.4f}, sharpness "
        f"{baseline.sharpness:.3f}), in one pass: {best.curve}, τ {best.setting:g}, with "
        f"{best.l2:.4f} and {best.sharpness:.3f}. At one β, not at one rate."
    ]


def draw(found: Sequence[Point]) -> Figure:
    """L2 against sharpness, a curve for each way, its settings at the points."""
    figure, (axis,) = lines(1)
    for curve in dict.fromkeys(point.curve for point in found):
        own = [point for point in found if point.curve == curve]
        axis.plot([p.sharpness for p in own], [p.l2 for p in own], "o-", markersize=3, label=curve)
        for point in own if len(own) > 1 else []:
            at, beside = (point.sharpness, point.l2), (3, 3)
            text = f"{point.setting:g}"
            axis.annotate(text, at, beside, textcoords="offset points", fontsize=6)
    axis.axvline(1, color="grey", linewidth=0.5)
    axis.set(xlabel="sharpness", ylabel="L2")
    axis.legend(fontsize=7)
    return figure


PART = Part(
    name="trade",
    title="Distance against detail",
    text=(
        "The same z, decoded in other ways: with the sampler's noise scaled by τ, with another γ, "
        "by the ODE, and as the mean of K draws."
    ),
    compute=compute,
    settings="trade",
    tables={
        "trade": Columns(
            Point._fields,
            "Ways to decode",
            lambda row: (
                {"way": f"{row['curve']}: {row['setting']:g}"}
                | {key: row[key] for key in ("evaluations", "l2", "sharpness")}
            ),
        )
    },
    figures={
        "trade": Caption(
            "L2 against sharpness for each way to decode; the numbers are τ, or K.",
            "Curves from near and smooth to far and sharp, and a point for the VAE.",
        )
    },
)

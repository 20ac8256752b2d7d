"""L2, SSIM, sharpness and seconds of every sampler at several costs, from one x_1.

Every trial decodes the same latents from the same x_1. What noise a sampler of the SDE adds on the
way depends on its steps, though: with another seed the L2 of a dozen digits moves by a tenth. So a
difference between trials counts by its standard error.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

import torch

from scorevae.autoencoders.score_vae import ScoreVAE
from scorevae.config import SamplingConfig
from scorevae.evaluation.figures import Figure, lines, logarithmic
from scorevae.evaluation.metrics import l2_distances, sharpness, structural_similarity
from scorevae.evaluation.part import Caption, Columns, Found, Part, Subject
from scorevae.evaluation.report.tables import Row
from scorevae.sampling import SAMPLERS, Share, network_evaluations, steps_within
from scorevae.shapes import Images, Latents

WITHIN = 0.02  # of the best L2: what counts as no worse in any case
STANDARD_ERRORS = 2.0  # of the difference to the best L2: the same,
AT_MOST = 0.1  # but not beyond a tenth, as a single image that fails would have it


@dataclass(frozen=True)
class Trial:
    """One way to decode, and what came out."""

    sampler: str
    grid: str
    evaluations: int  # of the networks
    guidance: float
    l2: float
    ssim: float | None
    sharpness: float
    seconds: float  # of decoding all images, in one process
    distances: tuple[float, ...] = field(repr=False)  # L2 of each image; not in tables

    def record(self) -> Row:
        """As a row of a table."""
        return {name: getattr(self, name) for name in COLUMNS}


COLUMNS = tuple(column.name for column in fields(Trial) if column.name != "distances")


def compute(subject: Subject) -> Found:
    """Try every sampler on every grid, and say which is enough."""
    config, settings = subject.config, subject.config.evaluate.samplers
    count = subject.studied(settings.images, "samplers")
    subject.model.decode(subject.z[:1])  # what happens once only: no trial is to pay for it
    trials = try_samplers(
        subject.model,
        subject.originals[:count],
        subject.z[:count],
        sampler_settings(settings.evaluations, settings.grids, config.sampling),
        guidance=config.reconstruct.guidance,
        seed=config.seed,
        share=subject.team.map,
    )
    best, enough = min(trials, key=lambda trial: trial.l2), recommended(trials)
    note = (
        f"Best L2: {_described(best)}. Fewest evaluations whose L2 is within 2 % of it, or within "
        f"10 % and the noise of {len(best.distances)} images (two standard errors of the "
        f"difference): {_described(enough)}. This run reconstructed by {config.sampling.sampler} "
        f"with {network_evaluations(config.sampling)} (reconstruct.protocol: "
        f"{config.reconstruct.protocol})."
    )
    rows = [trial.record() for trial in trials]
    return Found({}, {"samplers": rows}, {"samplers": draw(trials)}, [note])


def _described(trial: Trial) -> str:
    return (
        f"{trial.sampler} on the grid {trial.grid} with {trial.evaluations} (L2 {trial.l2:.4f}, "
        f"sharpness {trial.sharpness:.3f})"
    )


def as_shown(setting: Callable[[Row], str]) -> Callable[[Row], Row]:
    """A trial's row for the page: the setting's name first, and what the name does not say."""
    told = ("evaluations", "l2", "ssim", "sharpness", "seconds")
    return lambda row: {"setting": setting(row), **{key: row[key] for key in told}}


def sampler_settings(
    counts: Sequence[int], grids: Sequence[str], like: SamplingConfig
) -> list[SamplingConfig]:
    """Every sampler on every grid with at most so many evaluations; the rest as in ``like``."""
    return [
        like.model_copy(update={"sampler": sampler, "grid": grid, "steps": steps})
        for sampler in SAMPLERS
        for grid in grids
        for steps in sorted({steps_within(sampler, count) for count in counts})
    ]


def try_samplers(
    model: ScoreVAE,
    originals: Images,
    z: Latents,
    settings: Sequence[SamplingConfig],
    *,
    guidance: float,
    seed: int,
    report: Callable[[int], None] = lambda done: None,
    share: Share = map,
) -> list[Trial]:
    """Decode the latents of the originals once for each of the settings."""

    def tried(sampling: SamplingConfig) -> Trial:
        return attempt(model.with_sampling(sampling), originals, z, guidance, seed)

    trials = []
    for done, trial in enumerate(share(tried, settings), start=1):
        trials.append(trial)
        report(done)
    return trials


def attempt(model: ScoreVAE, originals: Images, z: Latents, guidance: float, seed: int) -> Trial:
    """Decode the latents of the originals, and judge the images."""
    started = time.perf_counter()
    images = model.decode(z, guidance=guidance, seed=seed)
    seconds = time.perf_counter() - started
    distances = l2_distances(originals, images)
    return Trial(
        sampler=model.sampling.sampler,
        grid=model.sampling.grid,
        evaluations=network_evaluations(model.sampling),
        guidance=guidance,
        l2=distances.mean().item(),
        ssim=structural_similarity(originals, images),
        sharpness=sharpness(originals, images),
        seconds=seconds,
        distances=tuple(distances.tolist()),
    )


def recommended(trials: Sequence[Trial]) -> Trial:
    """The fewest evaluations that are no worse than the best L2; of several, the best of them.

    No worse: by at most 2 %, or by at most 10 % and two standard errors of the mean difference
    over images.
    """
    best = min(trials, key=lambda trial: trial.l2)
    good = [trial for trial in trials if _no_worse(trial, best)]
    return min(good, key=lambda trial: (trial.evaluations, trial.l2))


def _no_worse(trial: Trial, best: Trial) -> bool:
    differences = torch.tensor(trial.distances) - torch.tensor(best.distances)
    count = len(differences)
    error = (differences.std() / count**0.5).item() if count > 1 else 0.0
    noise = min(STANDARD_ERRORS * error, AT_MOST * best.l2)
    return trial.l2 - best.l2 <= max(WITHIN * best.l2, noise)


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other one beats in both L2 and evaluations, in order of evaluations."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.evaluations, t.l2)):
        if not front or trial.l2 < front[-1].l2:
            front.append(trial)
    return front


def draw(trials: Sequence[Trial]) -> Figure:
    """L2 and sharpness against network evaluations; the front that nothing beats is marked."""
    grids = sorted({trial.grid for trial in trials})
    by_sampler: dict[str, list[Trial]] = {}
    for trial in sorted(trials, key=lambda t: t.evaluations):
        name = trial.sampler if len(grids) == 1 else f"{trial.sampler}, {trial.grid}"
        by_sampler.setdefault(name, []).append(trial)
    figure, axes = lines(2)
    for name, group in by_sampler.items():
        counts = [trial.evaluations for trial in group]
        axes[0].plot(counts, [trial.l2 for trial in group], ".-", label=name, linewidth=1)
        axes[1].plot(counts, [trial.sharpness for trial in group], ".-", linewidth=1)
    front = pareto(trials)
    counts = [trial.evaluations for trial in front]
    axes[0].plot(counts, [t.l2 for t in front], "ks", fillstyle="none", label="not beaten")
    axes[1].axhline(1, color="grey", linewidth=0.5)
    for axis, name in zip(axes, ("L2", "sharpness"), strict=True):
        axis.set(xlabel="network evaluations", ylabel=name, xscale="log", yscale="log")
        logarithmic(axis.xaxis)
        logarithmic(axis.yaxis)
    axes[0].legend(fontsize=8)
    return figure


PART = Part(
    name="samplers",
    title="Samplers",
    text="What decoding costs and gains: every sampler on every grid, from one starting noise.",
    compute=compute,
    settings="samplers",
    tables={
        "samplers": Columns(
            COLUMNS, "Samplers", as_shown(lambda row: f"{row['sampler']}, {row['grid']}")
        )
    },
    figures={
        "samplers": Caption(
            "L2 and sharpness against network evaluations; squares mark what nothing beats.",
            "Two panels of curves, one for each sampler, on logarithmic axes.",
        )
    },
)

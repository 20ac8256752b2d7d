"""L2 and sharpness for each weight γ of ∇ ln q(z|x_t); γ = 0 is the prior alone."""

from collections.abc import Sequence
from functools import partial

from scorevae.evaluation.figures import Figure, lines
from scorevae.evaluation.part import Caption, Columns, Found, Part, Subject
from scorevae.evaluation.parts.samplers import COLUMNS, Trial, as_shown, attempt


def compute(subject: Subject) -> Found:
    """Decode the same latents once for each γ."""
    settings, seed = subject.config.evaluate.guidance, subject.config.seed
    count = subject.studied(settings.images, "guidance")
    originals, z = subject.originals[:count], subject.z[:count]
    tried = partial(attempt, subject.model, originals, z, seed=seed)
    trials = list(subject.team.map(tried, settings.weights))
    rows = [trial.record() for trial in trials]
    looked_at = [f"Images: {count}."]
    return Found(tables={"guidance": rows}, figures={"guidance": draw(trials)}, notes=looked_at)


def draw(trials: Sequence[Trial]) -> Figure:
    """L2 and sharpness against γ."""
    figure, axes = lines(2)
    weights = [trial.guidance for trial in trials]
    for axis, name in zip(axes, ("l2", "sharpness"), strict=True):
        axis.plot(weights, [getattr(trial, name) for trial in trials], ".-")
        axis.set(xlabel="guidance γ", ylabel="L2" if name == "l2" else name)
    return figure


PART = Part(
    name="guidance",
    title="Guidance",
    text="γ weighs ∇\u00a0ln\u00a0q(z|xₜ,\u00a0t) in the score: 1 is the model, 0 the prior.",
    compute=compute,
    settings="guidance",
    tables={
        "guidance": Columns(COLUMNS, "Guidance", as_shown(lambda row: f"γ = {row['guidance']:g}"))
    },
    figures={
        "guidance": Caption(
            "L2 and sharpness against γ, the weight of ∇ ln q(z|x_t).", "Two curves over γ."
        )
    },
)

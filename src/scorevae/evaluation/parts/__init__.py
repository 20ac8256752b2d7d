"""The analyses of the stage evaluate, one file each, in the order of the page."""

from scorevae.evaluation.part import Part
from scorevae.evaluation.parts import (
    comparison,
    distances,
    draws,
    edits,
    embedding,
    guidance,
    interpolations,
    likelihood,
    perception,
    priors,
    probes,
    samplers,
    samples,
    shuffled,
    trade,
    training,
)

PARTS: tuple[Part, ...] = (
    comparison.PART,
    perception.PART,
    samples.PART,
    likelihood.PART,
    samplers.PART,
    guidance.PART,
    trade.PART,
    probes.PART,
    embedding.PART,
    interpolations.PART,
    edits.PART,
    draws.PART,
    shuffled.PART,
    distances.CLASSIFIER,
    distances.INCEPTION,
    training.PART,
    priors.PART,
)

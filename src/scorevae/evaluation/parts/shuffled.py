"""Is z used? L2 with the z of another image, from the same noise."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from scorevae.autoencoders.table import MODEL
from scorevae.errors import Unavailable
from scorevae.evaluation.figures import Figure, image_rows
from scorevae.evaluation.metrics import l2_distances
from scorevae.evaluation.part import Caption, Found, Numbers, Part, Subject
from scorevae.evaluation.report.tables import Metric
from scorevae.randomness import make_generator
from scorevae.shapes import Images

STANDARD_ERRORS = 5.0  # by which shuffling z must raise L2, or z counts as ignored


def compute(subject: Subject) -> Found:
    """Decode every z twice, for its own image and in another's place."""
    settings, config = subject.config.evaluate.shuffled, subject.config
    originals = subject.originals[: settings.images]
    partner = derangement(len(originals), config.seed)
    z = subject.z[: settings.images]
    own, other = subject.model.decode_groups(
        torch.stack([z, z[partner]], dim=1), guidance=config.reconstruct.guidance, seed=config.seed
    ).unbind(dim=1)
    found = shuffled_z(originals, own, other)
    count = config.evaluate.figure_images
    figure = draw(*(x[:count] for x in (originals, own, other, originals[partner])))
    numbers: Numbers = {MODEL: {"l2_shuffled_z": found.l2_shuffled, "shuffled_ratio": found.ratio}}
    notes = [found.warning] if found.warning else []
    return Found(numbers, figures={"shuffled_z": figure}, notes=notes)


def derangement(count: int, seed: int) -> Int64[Tensor, " count"]:
    """A random permutation of 0 … count − 1 in one cycle: none stays in its place.

    Raises:
        Unavailable: one image has no other to exchange with.
    """
    if count < 2:
        raise Unavailable(f"shuffled z: {count} image; 2 are the least")
    order = torch.randperm(count, generator=make_generator("cpu", seed, "latents", "shuffle"))
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner


class ShuffledZ(NamedTuple):
    """L2 of reconstructions from each image's own z, and from that of another."""

    l2: float
    l2_shuffled: float
    ratio: float  # shuffled over own
    threshold: float  # the ratio from which on z counts as used
    warning: str | None


def shuffled_z(originals: Images, own: Images, shuffled: Images) -> ShuffledZ:
    """Is z used? Both reconstructions must come from the same noise.

    A model that ignores z gives the same images either way, a ratio of 1. The threshold is
    1 + 5 standard errors of the mean L2 itself, sd(L2) / (√n mean(L2)): if exchanging all z
    moves L2 by less than the choice of test images does, z carries nothing worth its rate.

    Raises:
        Unavailable: a single image, or errorless reconstructions.
    """
    if len(originals) < 2:
        raise Unavailable(f"shuffled z: {len(originals)} image; 2 are the least")
    distance, other = l2_distances(originals, own), l2_distances(originals, shuffled)
    l2, l2_shuffled = distance.mean().item(), other.mean().item()
    if l2 == 0:
        raise Unavailable("shuffled z: the reconstructions have no error to compare with")
    ratio = l2_shuffled / l2
    threshold = 1 + STANDARD_ERRORS * distance.std().item() / (math.sqrt(len(originals)) * l2)
    warning = (
        f"z is ignored: the L2 with another image's z is {ratio:.3f} times that with its own "
        f"(above {threshold:.3f} it would count as used); lower beta, or train the encoder "
        "for longer"
    )
    return ShuffledZ(l2, l2_shuffled, ratio, threshold, warning if ratio <= threshold else None)


def draw(originals: Images, own: Images, other: Images, donors: Images) -> Figure:
    """Each original, its reconstruction, that from another's z with the same noise, the other."""
    rows = [("original", originals), ("own z", own), ("other's z", other), ("the other", donors)]
    return image_rows(rows, "the same noise, decoded with the image's own z and with another's")


PART = Part(
    name="shuffled",
    title="Use of z",
    text="Were z ignored, an image's own z and another's would give the same reconstruction.",
    compute=compute,
    settings="shuffled",
    metrics={
        "l2_shuffled_z": Metric("L2 with another image's z", "from the same noise"),
        "shuffled_ratio": Metric("the same over L2 with its own z", "1: z is ignored"),
    },
    rows={MODEL: None},
    figures={
        "shuffled_z": Caption(
            "The same noise, decoded with an image's own z and with another's.",
            "Rows: images, their reconstructions, those from others' z, and the others.",
        )
    },
)

"""Lines and arcs between the z of pairs of test images, decoded from the same noise."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from scorevae.evaluation.figures import Figure, image_rows
from scorevae.evaluation.part import Caption, Found, Part, Subject
from scorevae.evaluation.probe import Vectors
from scorevae.shapes import Groups, Images


def compute(subject: Subject) -> Found:
    """Decode both paths of every pair."""
    settings, config = subject.config.evaluate.interpolations, subject.config
    count = subject.looked_at(settings.images)
    first, second = subject.first(2 * count, "interpolations").split(count)
    start, end = subject.z[: 2 * count].split(count)
    paths = [path(start, end, settings.steps) for path in (line, arc)]
    weight = config.reconstruct.guidance
    decoded = [subject.model.decode_groups(z, guidance=weight, seed=config.seed) for z in paths]
    return Found(figures={"interpolations": draw(first, second, *decoded)})


def line(start: Vectors, end: Vectors, steps: int) -> Float[Tensor, "_ steps width"]:
    """Points in equal steps along the straight line of each pair, ends included."""
    weight = _weights(start, steps)
    return (1 - weight) * start[:, None] + weight * end[:, None]


def _weights(start: Vectors, steps: int) -> Float[Tensor, "1 steps 1"]:
    return torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)[None, :, None]


def arc(start: Vectors, end: Vectors, steps: int) -> Float[Tensor, "_ steps width"]:
    """Points in equal angles from start to end: [sin((1−w)θ) a + sin(wθ) b] / sin θ.

    White 2016, arXiv 1609.04468, with θ the angle between a and b. For ends of one length the
    length is kept, as it nearly is for draws of N(0, I), while a straight line passes close to
    the origin. Ends on one line through the origin have no arc; they get the straight line.
    """
    cosine = torch.nn.functional.cosine_similarity(start, end, dim=1).clamp(-1, 1)
    angle = torch.arccos(cosine)[:, None, None]
    sine = torch.sin(angle)
    # A cosine of ±1 that is off by k roundings gives a sine of √(2k eps); k to 50.
    aligned = sine < 10 * math.sqrt(torch.finfo(sine.dtype).eps)
    weight = _weights(start, steps)
    first, second = torch.sin((1 - weight) * angle), torch.sin(weight * angle)
    curved = (first * start[:, None] + second * end[:, None]) / sine.where(~aligned, 1)
    return torch.where(aligned, line(start, end, steps), curved)


def draw(first: Images, second: Images, straight: Groups, curved: Groups) -> Figure:
    """For each pair of images the straight and the spherical path, images themselves outermost."""
    rows = []
    for a, b, *paths in zip(first, second, straight, curved, strict=True):
        names = zip(("straight", "spherical"), paths, strict=True)
        rows += [(name, torch.cat([a[None], path, b[None]])) for name, path in names]
    title = "between two test images (outermost): decoded from a line and from an arc of z"
    return image_rows(rows, title)


PART = Part(
    name="interpolations",
    title="Interpolations",
    text="What lies between two codes.",
    compute=compute,
    settings="interpolations",
    figures={
        "interpolations": Caption(
            "Between two test images (outermost): decoded from the line and from the arc between "
            "their z, with one noise for each path.",
            "Rows of images that turn from one test image into another.",
        )
    },
)

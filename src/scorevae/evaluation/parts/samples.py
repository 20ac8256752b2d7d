"""Images drawn from the prior, and from the model with z ~ N(0, I)."""

from scorevae.autoencoders.table import MODEL, SYSTEMS
from scorevae.evaluation.figures import image_grid
from scorevae.evaluation.part import Caption, Found, Part, Subject

TITLE = SYSTEMS[MODEL].title


def compute(subject: Subject) -> Found:
    """Two grids."""
    columns, count = subject.config.evaluate.figure_images, subject.shown_samples
    prior, samples = (subject.generated[name][:count] for name in ("prior", MODEL))
    return Found(
        figures={
            "prior_samples": image_grid(prior, columns, "samples of the diffusion prior"),
            "samples": image_grid(samples, columns, f"samples of {TITLE}, z ~ N(0, I)"),
        }
    )


PART = Part(
    name="samples",
    title="Samples",
    text=f"What the prior draws, and what {TITLE} draws.",
    compute=compute,
    figures={
        "prior_samples": Caption(
            "Samples of the diffusion prior, which knows no z.",
            "A grid of images drawn from the diffusion prior.",
        ),
        "samples": Caption(
            f"Samples of {TITLE}: z from N(0, I), then x from p(x|z).",
            f"A grid of images drawn from {TITLE}.",
        ),
    },
)

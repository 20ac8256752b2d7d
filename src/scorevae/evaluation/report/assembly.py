"""The whole page of a run, from its numbers and figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from scorevae.config import Config
from scorevae.evaluation.report.comparison import comparison, headline
from scorevae.evaluation.report.page import Card, FigureFile, Provenance, Report, Section, Values
from scorevae.evaluation.report.provenance import parameters
from scorevae.evaluation.report.training import training

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
        provenance: see :func:`scorevae.evaluation.report.provenance.provenance`.
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

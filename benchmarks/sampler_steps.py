"""L2, sharpness and seconds against network evaluations: table and figure of docs/results.md.

    python benchmarks/sampler_steps.py        # after dvc repro; writes docs/sampler_steps.{md,png}

The study of the stage evaluate on more images, more evaluations and every grid. Every row starts
from the same latents and the same x_1.
"""

import click
from common import DOCS, open_trained

from scorevae.autoencoders.score_vae import ScoreVAE
from scorevae.evaluation import figures
from scorevae.evaluation.parts import samplers
from scorevae.runtime.files import replacing

COLUMNS = ("sampler", "grid", "evaluations", "l2", "ssim", "sharpness", "seconds")


@click.command(help=__doc__)
@click.option("--evaluations", default="5,10,20,50,100,250", help="comma-separated counts")
@click.option("--grids", default="log_snr,karras,uniform", help="comma-separated")
@click.option("--images", default=120, help="test images")
def main(evaluations: str, grids: str, images: int) -> None:
    """Write table and figure."""
    trained = open_trained()
    config = trained.config
    counts = [int(count) for count in evaluations.split(",")]
    model = ScoreVAE.load(trained.models, sampling=config.sampling)
    originals = trained.originals[:images]
    trials = samplers.try_samplers(
        model,
        originals,
        model.encode(originals).mean,
        samplers.sampler_settings(counts, grids.split(","), config.sampling),
        guidance=config.reconstruct.guidance,
        seed=config.seed,
        report=lambda done: click.echo(f"{done} settings", err=True),
    )
    best = samplers.recommended(trials)
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for trial in sorted(trials, key=lambda t: t.l2):
        row = trial.record()
        cells = [row[c] if c in COLUMNS[:3] else f"{row[c]:.4f}" for c in COLUMNS[:-1]]
        lines.append(f"| {' | '.join(map(str, cells))} | {trial.seconds:.1f} |")
    lines += [
        "",
        f"{images} test images of {config.preset}. Fewest evaluations whose L2 is within 2 % of "
        "the best, or within 10 % and two standard errors of the difference: "
        f"{best.sampler}, {best.grid}, {best.evaluations}.",
    ]
    with replacing(DOCS / "sampler_steps.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    figures.save(samplers.draw(trials), DOCS / "sampler_steps.png")
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()

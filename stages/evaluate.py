"""Stage evaluate: metrics, per-image errors and figures of ScoreVAE and of the VAE."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # this checkout's code

import click

from scorevae.autoencoders import ScoreVAE, VAEBaseline
from scorevae.config import load_config
from scorevae.data.arrays import class_names, load_split
from scorevae.evaluation import stage as evaluation
from scorevae.evaluation.part import Subject
from scorevae.networks.vae import load_vae
from scorevae.runtime.memory import explaining_memory
from scorevae.runtime.tracking import track

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--params", type=PATH, default=Path("params.yaml"))
@click.option("--data", type=PATH, required=True, help="folder that download wrote")
@click.option("--models", type=PATH, required=True, help="folder of all weights and of lpips")
@click.option("--reconstructions", type=PATH, required=True, help="folder of reconstruct")
@click.option("--curves", type=PATH, required=True, help="folder of the training curves")
@click.option("--metrics", type=PATH, required=True, help="JSON to write")
@click.option("--reasons", type=PATH, required=True, help="why a metric is null, to write (JSON)")
@click.option("--errors", type=PATH, required=True, help="per-image errors to write (CSV)")
@click.option("--tables", type=PATH, required=True, help="folder of CSV to write")
@click.option("--figures", type=PATH, required=True, help="folder of PNG to write")
@click.option("--page", type=PATH, required=True, help="report to write (HTML)")
def main(
    params: Path,
    data: Path,
    models: Path,
    reconstructions: Path,
    curves: Path,
    **written: Path,
) -> None:
    """Evaluate."""
    config = load_config(params)
    image, batch = config.selected.data.image, config.reconstruct.batch
    train = load_split(data, "train", image)
    test = load_split(data, "test", image, config.selected.test_images)
    model = ScoreVAE.load(models, sampling=config.sampling, batch=batch)
    vae = VAEBaseline(load_vae(models / "vae.safetensors"), batch=batch)
    subject = Subject(config, model, vae, train, test, reconstructions, class_names(data))
    outputs = evaluation.Outputs(**written)
    steps: list[str] = []

    def report(step: str) -> None:
        steps.append(step)
        click.echo(f"evaluate: {step}")

    with track("evaluate", config) as tracker:
        with explaining_memory(lambda: evaluation.memory_remedy(config, steps[-1])):
            compared, numbers = evaluation.evaluate(
                subject, outputs, lpips=models / "lpips", curves=curves, params=params,
                report_step=report,
            )  # fmt: skip
        tracker.headline(evaluation.headline(numbers), outputs.artifacts())
    click.echo(evaluation.table(compared))


if __name__ == "__main__":
    main()

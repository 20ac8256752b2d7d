"""Stage evaluate: metrics, per-image errors and figures of ScoreVAE and of the VAE."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # this checkout's code

import click

from scorevae import evaluation
from scorevae.config import load_config
from scorevae.data import load_split, to_tensor, to_unit_range
from scorevae.model import ScoreVAE
from scorevae.reconstructions import load
from scorevae.tracking import track

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--params", type=PATH, default=Path("params.yaml"))
@click.option("--data", type=PATH, required=True, help="folder that download wrote")
@click.option("--models", type=PATH, required=True, help="folder of prior, encoder and lpips")
@click.option("--reconstructions", type=PATH, required=True, help="folder of reconstruct")
@click.option("--curves", type=PATH, required=True, help="folder of the training curves")
@click.option("--metrics", type=PATH, required=True, help="JSON to write")
@click.option("--errors", type=PATH, required=True, help="per-image errors to write (CSV)")
@click.option("--figures", type=PATH, required=True, help="folder of PNG to write")
def main(
    params: Path,
    data: Path,
    models: Path,
    reconstructions: Path,
    curves: Path,
    metrics: Path,
    errors: Path,
    figures: Path,
) -> None:
    """Evaluate."""
    config = load_config(params)
    preset = config.selected
    train = load_split(data, "train", preset.data.image)
    test = load_split(data, "test", preset.data.image, preset.test_images)
    originals = to_unit_range(to_tensor(test.images))
    systems = {name: load(reconstructions, name, originals) for name in ("scorevae", "vae")}
    model = ScoreVAE.load(models, sampling=config.sampling, batch=config.reconstruct.batch)
    with track("evaluate", config) as tracker:
        judges = evaluation.open_judges(config, train, models / "lpips")
        numbers = evaluation.compare(originals, systems, judges, config.evaluate)
        evaluation.draw_figures(figures, model, originals, systems, curves, config)
        evaluation.write_errors(errors, originals, systems, test.labels)
        evaluation.write_metrics(metrics, numbers)
        tracker.headline(
            evaluation.headline(numbers), [*sorted(figures.glob("*.png")), metrics, errors]
        )
    click.echo(evaluation.table(numbers))


if __name__ == "__main__":
    main()

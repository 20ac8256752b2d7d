"""Stage evaluate: what every system is worth, in numbers, tables, figures and one page."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # this checkout's code

from scorevae.runtime.environment import check_environment

check_environment()

import click

from scorevae.config import load_config
from scorevae.data.arrays import class_names, load_split
from scorevae.evaluation.part import Subject
from scorevae.evaluation.stage import Outputs, evaluate, headline, memory_remedy, table
from scorevae.runtime.memory import explaining_memory
from scorevae.runtime.processes import spread
from scorevae.runtime.team import team
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
    params: Path, data: Path, models: Path, reconstructions: Path, curves: Path, **written: Path
) -> None:
    """Evaluate."""
    config = load_config(params)
    spread()
    image = config.selected.data.image
    train = load_split(data, "train", image)
    test = load_split(data, "test", image, config.selected.test_images)
    names, outputs, steps = class_names(data), Outputs(**written), ["start"]

    def report(step: str) -> None:
        steps.append(step)
        click.echo(f"evaluate: {step}")

    with team() as processes, track("evaluate", config) as tracker:
        subject = Subject(
            config, models, curves, train, test, reconstructions, names, team=processes
        )
        with explaining_memory(lambda: memory_remedy(config, steps[-1])):
            numbers = evaluate(subject, outputs, params=params, report_step=report)
        tracker.data(data)
        tracker.headline(headline(numbers), outputs.artifacts())
    click.echo(table(numbers))


if __name__ == "__main__":
    main()

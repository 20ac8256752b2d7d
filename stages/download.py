"""Stage download: write the preset's images as arrays."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # this checkout's code

import click

from scorevae.config import load_config
from scorevae.data import prepare
from scorevae.tracking import track


@click.command(help=__doc__)
@click.option("--params", type=click.Path(path_type=Path), default=Path("params.yaml"))
@click.option("--output", type=click.Path(path_type=Path), required=True, help="data folder")
def main(params: Path, output: Path) -> None:
    """Read the source, check it, write it."""
    config = load_config(params)
    with track("download", config) as tracker:
        prepare(config.selected.data, output)
        tracker.artifact(output / "meta.json")
    click.echo(f"download: wrote {output}")


if __name__ == "__main__":
    main()

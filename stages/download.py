"""Stage download: write the preset's images as arrays, and the trunk of LPIPS."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # this checkout's code

from scorevae.runtime.environment import check_environment

check_environment()

import click

from scorevae.config import load_config
from scorevae.data.sources.prepare import prepare
from scorevae.evaluation.lpips import prepare_trunks
from scorevae.runtime.tracking import track

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--params", type=PATH, default=Path("params.yaml"))
@click.option("--output", type=PATH, required=True, help="data folder to write")
@click.option("--lpips", type=PATH, required=True, help="folder of LPIPS trunks to write")
def main(params: Path, output: Path, lpips: Path) -> None:
    """Fetch the trunk first: it is the shorter, and may be what a preset cannot do without."""
    config = load_config(params)
    preset, key = config.selected, f"presets.{config.preset}"
    with track("download", config) as tracker:
        size = preset.data.image.size
        click.echo(prepare_trunks(preset.lpips, size, lpips, key=f"{key}.lpips"))
        prepare(preset.data, output, key=f"{key}.data")
        tracker.artifact(output / "meta.json")
        tracker.data(output)
    click.echo(f"download: wrote {output}")


if __name__ == "__main__":
    main()

"""Stage check: read the whole of params.yaml, before DVC removes an output for a refused value.

DVC deletes the outputs of a stage, then starts it. All other stages come after this one, whose
output never changes: it holds them back while a value is refused, and makes none of them run anew.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # this checkout's code

from scorevae.runtime.environment import check_environment

check_environment()

import click

from scorevae.config import load_config

PATH = click.Path(path_type=Path)


@click.command(help=__doc__)
@click.option("--params", type=PATH, default=Path("params.yaml"))
@click.option("--output", type=PATH, required=True, help="note to write, always the same")
def main(params: Path, output: Path) -> None:
    """Check, then say so."""
    load_config(params)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("Every value of params.yaml can be read.\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""``python -m scorevae.commands.priors``: priors of others in, ours out.

A preset's ``prior.pretrained`` reads most formats by itself (docs/priors.md).
"""

from pathlib import Path

import click

from scorevae.errors import UserError

PATH = click.Path(path_type=Path)


@click.group(help=__doc__)
def main() -> None:
    """Say which of them."""


@main.command()
@click.argument("weights", type=PATH)
@click.argument("folder", type=PATH)
def export(weights: Path, folder: Path) -> None:
    """Write the prior WEIGHTS as a FOLDER of diffusers' DDPMPipeline."""
    from scorevae.networks.pretrained.export import export_pipeline
    from scorevae.networks.prior import load_prior

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists and is not empty; name another folder")
    export_pipeline(load_prior(weights), folder)
    click.echo(f"{folder}: load it with diffusers.DDPMPipeline.from_pretrained")


if __name__ == "__main__":
    main()

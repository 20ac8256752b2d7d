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


@main.command()
@click.argument("pickle", type=PATH)
@click.argument("output", type=PATH)
def convert_edm(pickle: Path, output: Path) -> None:
    """Make of the EDM network PICKLE the file OUTPUT of safetensors, for format: edm.

    EDM's own loader runs the program text inside of the pickle. This one does not: it takes the
    tensors and the settings, and refuses whatever else is in the file.
    """
    from scorevae.networks.pretrained.edm import convert

    if output.exists():
        raise UserError(f"{output}: exists; name another file")
    convert(pickle, output)
    click.echo(f"{output}: name it in prior.pretrained.path, with format: edm")


if __name__ == "__main__":
    main()

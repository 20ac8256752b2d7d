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
@click.argument("output", type=PATH)
@click.option("--preset", help="of params.yaml; default: the one that is selected there")
@click.option("--params", type=PATH, default=Path("params.yaml"), show_default=True)
def import_prior(output: Path, preset: str | None, params: Path) -> None:
    """Write the prior that a preset names under prior.pretrained as weights OUTPUT.

    As train_prior does, with no data and no training: for decoding with it.
    """
    from scorevae.config import load_config
    from scorevae.networks.pretrained.importing import import_prior
    from scorevae.networks.weights import save_weights

    if output.exists():
        raise UserError(f"{output}: exists; name another file")
    config = load_config(params)
    if (name := preset or config.preset) not in config.presets:
        raise UserError(f"--preset: {name} is none; choose one of: {', '.join(config.presets)}")
    chosen = config.presets[name]
    if chosen.prior.pretrained is None:
        raise UserError(
            f"{params}: presets.{name}.prior.pretrained: null; name the format and the path of "
            "a prior there (docs/priors.md)"
        )
    prior = import_prior(chosen.prior.pretrained, chosen.data.image, config.sde)
    save_weights(output, prior.network, prior.header)
    click.echo(f"{output}: decode with it by `-S reconstruct.prior={output}`, or load(prior=…)")


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

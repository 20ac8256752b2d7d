"""``scorevae``: a trained model's codes, reconstructions and samples from the shell.

IMAGES are pictures, folders of them, or zip and tar archives. MODEL is the folder of weights that
a run left, models/<preset> of params.yaml if none is named. Completion for bash:
eval "$(_SCOREVAE_COMPLETE=bash_source scorevae)"
"""

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scorevae import __version__
from scorevae.commands.images import batches, save_pictures
from scorevae.commands.latents import WRITERS
from scorevae.commands.log_model import log_model
from scorevae.commands.new import new
from scorevae.commands.priors import convert_edm, export, import_prior
from scorevae.commands.rate_distortion import main as rate_distortion
from scorevae.commands.sync import main as sync
from scorevae.errors import UserError

if TYPE_CHECKING:
    from scorevae.autoencoders.score_vae import ScoreVAE

PATH = click.Path(path_type=Path)
IMAGES = click.argument("images", nargs=-1, required=True, type=PATH)


def with_model(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every command that loads a model, which is its first argument."""

    @wraps(command)
    def loading(model: Path | None, device: str | None, batch: int, **others: Any) -> None:  # noqa: ANN401
        command(load(model, device, batch), **others)

    loaded: Callable[..., None] = loading
    options = [
        click.option("--model", type=PATH, help="folder of weights; default: models/<preset>"),
        click.option("--device", help="cpu, cuda, cuda:1; default: cuda where there is one"),
        click.option("--batch", type=click.IntRange(1), default=64, show_default=True),
        click.option("--json", "as_json", is_flag=True, help="print what was done as JSON"),
    ]
    for option in reversed(options):
        loaded = option(loaded)
    return loaded


RESIZE = click.option("--resize", is_flag=True, help="crop, shrink and convert as download does")
SEED = click.option("--seed", type=int, default=0, show_default=True)


@click.group(help=__doc__)
@click.version_option(__version__, prog_name="scorevae")
def main() -> None:
    """Say which command."""


def load(model: Path | None, device: str | None, batch: int) -> "ScoreVAE":
    """The model of a folder, or of the preset of params.yaml in this folder."""
    from scorevae.autoencoders.score_vae import ScoreVAE
    from scorevae.config import load_config

    if model is None:
        params = Path("params.yaml")
        if not params.is_file():
            raise UserError(
                "--model: not given, and no params.yaml here; name a folder of weights"
            )
        model = Path("models") / load_config(params).preset
    return ScoreVAE.load(model, device=device, batch=batch)


def say(as_json: bool, **facts: Any) -> None:  # noqa: ANN401 (plain values)
    """What was done: as JSON, or as lines of words."""
    if as_json:
        click.echo(json.dumps(facts))
    else:
        click.echo("\n".join(f"{name}: {value}" for name, value in facts.items()))


def known_ending(context: click.Context, parameter: click.Parameter, out: Path) -> Path:
    """The file of codes, refused before a model is loaded if nothing writes such files."""
    del context, parameter
    if out.suffix.lower() not in WRITERS:
        raise UserError(f"--out: {out} ends in none of {', '.join(WRITERS)}; choose one of them")
    return out


@main.command()
@IMAGES
@click.option(
    "--out", type=PATH, required=True, callback=known_ending, help="latents.npz, .csv or .parquet"
)
@RESIZE
@with_model
def encode(
    model: "ScoreVAE", images: tuple[Path, ...], out: Path, resize: bool, as_json: bool
) -> None:
    """Write the code of each of IMAGES, mean and log-variance of q(z|x), beside its name."""
    import numpy as np

    from scorevae.runtime.files import replacing

    names: list[str] = []
    means, variances = [], []
    for some, pictures in batches(images, model, resize=resize):
        posterior = model.encode(pictures)
        names += some
        means.append(posterior.mean.numpy())
        variances.append(posterior.log_variance.numpy())
    with replacing(out) as temporary:
        WRITERS[out.suffix.lower()](
            temporary, names, np.concatenate(means), np.concatenate(variances)
        )
    say(as_json, images=len(names), latents=model.latent, written=str(out))


@main.command()
@IMAGES
@click.option("--out", type=PATH, required=True, help="folder for the PNG files")
@click.option("--guidance", type=click.FloatRange(0), help="γ; default: the run's")
@RESIZE
@SEED
@with_model
def reconstruct(
    model: "ScoreVAE",
    images: tuple[Path, ...],
    out: Path,
    guidance: float | None,
    resize: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Write what the code of each of IMAGES is decoded to."""
    count, total = 0, 0.0
    for some, pictures in batches(images, model, resize=resize):
        found = model.reconstruct(pictures, guidance=guidance, seed=seed)
        total += (found - pictures).flatten(1).norm(dim=1).sum().item()
        names = [f"{count + i:05d}_{Path(name).stem}" for i, name in enumerate(some)]
        save_pictures(out, names, found)
        count += len(some)
    say(as_json, images=count, mean_l2=round(total / count, 4), written=str(out))


@main.command()
@click.option("--count", type=click.IntRange(1), default=16, show_default=True)
@click.option("--prior", is_flag=True, help="from the diffusion model alone, without z")
@click.option("--out", type=PATH, required=True, help="folder for the PNG files")
@SEED
@with_model
def sample(
    model: "ScoreVAE", count: int, prior: bool, out: Path, seed: int, as_json: bool
) -> None:
    """Write images drawn from z ~ N(0, I), or from the prior."""
    drawn = model.sample_prior(count, seed=seed) if prior else model.sample(count, seed=seed)
    save_pictures(out, [f"{i:05d}" for i in range(count)], drawn)
    say(as_json, images=count, written=str(out))


@main.command()
@click.argument("first", type=PATH)
@click.argument("second", type=PATH)
@click.option("--steps", type=click.IntRange(2), default=8, show_default=True)
@click.option("--out", type=PATH, required=True, help="folder for the PNG files")
@RESIZE
@SEED
@with_model
def interpolate(
    model: "ScoreVAE",
    first: Path,
    second: Path,
    steps: int,
    out: Path,
    resize: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Write images along the line between the codes of FIRST and SECOND."""
    between = model.interpolate(first, second, steps, resize=resize, seed=seed)[0]
    save_pictures(out, [f"{i:05d}" for i in range(steps)], between)
    say(as_json, images=steps, written=str(out))


@main.command()
@click.argument("model", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="print it as JSON")
def info(model: Path, as_json: bool) -> None:
    """Say what is in a folder MODEL of weights, or in one file of them."""
    from scorevae.networks.weights import described

    files = sorted(model.rglob("*.safetensors")) if model.is_dir() else [model]
    if not files:
        raise UserError(f"{model}: no weights in it (*.safetensors); name a folder of a run")
    found = {str(path): described(path) for path in files}
    click.echo(json.dumps(found, indent=None if as_json else 2))


main.add_command(new)
main.add_command(log_model)
main.add_command(sync, "sync")
main.add_command(rate_distortion, "rate-distortion")
main.add_command(export, "export")
main.add_command(import_prior, "import-prior")
main.add_command(convert_edm, "convert-edm")

if __name__ == "__main__":
    main()

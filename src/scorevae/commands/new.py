"""``scorevae new``: a preset for a user's own images, written into params.yaml."""

import json
import os
import shlex
import sys
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import yaml
from pydantic import TypeAdapter, ValidationError

from scorevae.config import Config, Name, configuration, load_config, read_tree
from scorevae.errors import UserError
from scorevae.quick import trainings

if TYPE_CHECKING:
    from scorevae.commands.survey import Survey

PATH = click.Path(path_type=Path)
Tree = dict[str, Any]


class Fit(NamedTuple):
    """What images of a size are given: the networks of a shipped preset, and z."""

    size: int
    like: str
    latent_grey: int
    latent_colour: int


FITS = (  # the largest that the images have pixels for
    Fit(64, "faces_small", 256, 384),
    Fit(32, "cifar10_small", 256, 384),
    Fit(16, "digits", 96, 128),
    Fit(8, "digits", 40, 64),
)
PASSES = 500  # most times that the prior sees an image
MOST_STEPS = 10  # times those of the preset that is taken as a model
FEWEST_STEPS = 50
QUICK_MINUTES = 3.0


@click.command()
@click.argument("name")
@click.argument("folder", type=PATH)
@click.option("--params", type=PATH, default=Path("params.yaml"), show_default=True)
@click.option("--minutes", type=click.FloatRange(1), default=60, show_default=True, help="to fill")
@click.option("--size", type=click.Choice([str(fit.size) for fit in FITS]), help="pixels a side")
@click.option("--quick", is_flag=True, help="print the command of a look at all stages, minutes")
@click.option("--json", "as_json", is_flag=True, help="print what was done as JSON")
def new(
    name: str,
    folder: Path,
    params: Path,
    minutes: float,
    size: str | None,
    quick: bool,
    as_json: bool,
) -> None:
    """Write the preset NAME for the images in FOLDER, or in an archive, into params.yaml.

    It looks at the images, takes networks that fit their size, measures how fast this machine
    trains them, and gives the trainings as many steps as fill the time.
    """
    from scorevae.commands.survey import survey

    config = load_config(params)
    check_name(name, config)
    if not folder.exists():
        raise UserError(f"{folder}: no such folder or archive; name the one with your images")
    like = model_of(config, FITS[0].like, params)
    found = survey(folder, like.data, f"presets.{name}.data")
    fit = choose(found.side, size, folder)
    model_of(config, fit.like, params)
    tree: Any = read_tree(params)
    preset = fitted(tree["presets"][fit.like], fit, folder, found)
    costs = timed(preset, tree | {"preset": name, "quick": False}, found, minutes)
    text = added(params.read_text(encoding="utf-8"), name, preset, found.images, fit.like)
    write(params, text, tree, name, preset)
    command = command_for(name, quick=quick)
    if as_json:
        spent = QUICK_MINUTES if quick else sum(costs)
        click.echo(json.dumps({"preset": name, "minutes": round(spent, 1), "command": command}))
        return
    click.echo("\n".join(found.understood.lines()))
    shape = f"{fit.size}×{fit.size}, {'colour' if found.colour else 'grey'}, as {fit.like}"
    click.echo(f"{params}: preset {name}: {shape}")
    click.echo(f"{estimate(costs, quick=quick)}:\n{command}")


class Costs(NamedTuple):
    """Minutes of a run."""

    training: float
    others: float


def timed(preset: Tree, tree: Tree, found: "Survey", minutes: float) -> Costs:
    """Give a preset as many steps as this machine makes in the time; what it then costs."""
    from scorevae.commands import measure

    click.echo("measuring a few steps on this machine …", err=True)
    whole = tree | {"presets": tree["presets"] | {tree["preset"]: preset}}
    config = configuration(whole, "params.yaml")
    times, test = measure.measure(config), len(found.understood.splits["test"])
    others = measure.evaluation_seconds(config, test, times) + measure.STARTING
    left = 60 * minutes - others
    stretch(preset, left / measure.training_seconds(config, times), found.images - test)
    training = measure.training_seconds(configuration(whole, "params.yaml"), times)
    return Costs(training / 60, others / 60)


def check_name(name: str, config: Config) -> None:
    """Refuse a name that is taken, or that a shell, DVC or MLflow would break on."""
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        reason = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise UserError(f"NAME: {reason}") from None
    if name in config.presets:
        raise UserError(
            f"NAME: {name} is a preset already; choose another name, or remove that one from "
            "params.yaml"
        )


def model_of(config: Config, like: str, params: Path) -> Any:  # noqa: ANN401 (a PresetConfig)
    """The preset whose networks are taken."""
    if like not in config.presets:
        raise UserError(
            f"{params}: no preset {like}, which new presets are modelled on; restore it "
            f"(`git checkout HEAD -- {params}`)"
        )
    return config.presets[like]


def choose(side: int, asked: str | None, folder: Path) -> Fit:
    """The largest size that nearly all images have, or the one that is asked for."""
    possible = [fit for fit in FITS if fit.size <= side]
    if not possible:
        raise UserError(
            f"{folder}: images of {side} pixels a side, {FITS[-1].size} are the least; nothing is "
            "enlarged: give larger ones"
        )
    if asked is None:
        return possible[0]
    for fit in possible:
        if fit.size == int(asked):
            return fit
    raise UserError(
        f"--size: {asked}, but the images have {side} pixels a side, and nothing is enlarged; "
        f"choose at most {possible[0].size}"
    )


def fitted(like: Tree, fit: Fit, folder: Path, found: "Survey") -> Tree:
    """The model's values with the data, colour, size and z of these images."""
    preset = deepcopy(like)
    preset["data"] |= {
        "source": "folder",
        "root": str(folder),
        "image": {"channels": 3 if found.colour else 1, "size": fit.size},
        "test_fraction": found.test_fraction,
    }
    preset["latent"] = fit.latent_colour if found.colour else fit.latent_grey
    return preset


def stretch(preset: Tree, factor: float, images: int) -> None:
    """Every training longer or shorter by a factor, but for how often the prior sees an image."""
    prior = preset["prior"]["training"]
    seen = PASSES * images / (prior["batch"] * prior["steps"])
    factor = min(factor, seen, MOST_STEPS)
    for training in trainings(preset):
        if training["steps"] == 0:
            continue
        steps = max(FEWEST_STEPS, int(training["steps"] * factor))
        often = training["validate_every"] * steps // training["steps"]
        training["validate_every"] = max(1, often)
        training["steps"] = steps
        training["warmup"] = min(training["warmup"], steps // 5)
        training["log_every"] = min(training["log_every"], max(1, steps // 10))


class _Dumper(yaml.SafeDumper):
    """The form in which DVC writes: null is an empty value, lists as deep as their key."""


_Dumper.add_representer(
    type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", "")
)


def added(text: str, name: str, preset: Tree, images: int, like: str) -> str:
    """The file with one more block, at the end of ``presets``."""
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    begin = next((i for i, line in enumerate(lines) if line.startswith("presets:")), len(lines))
    inside = [i for i, line in enumerate(lines) if i > begin and line.startswith("  ")]
    others = (i for i, line in enumerate(lines) if i > begin and line[0] not in " #\n")
    after = next(others, len(lines))
    end = max((i + 1 for i in inside if i < after), default=begin + 1)
    block = yaml.dump(
        {name: preset}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6
    )
    indented = "".join(f"  {line}\n" for line in block.splitlines())
    note = f"  # {images} images, by `scorevae new`; networks as in {like}, where comments are.\n"
    return "".join([*lines[:end], "\n", note, indented, *lines[end:]])


def write(params: Path, text: str, before: Tree, name: str, preset: Tree) -> None:
    """Replace the file, if the block says what it is to say and all else is what it was."""
    from scorevae.runtime.files import replacing

    with replacing(params) as temporary:
        temporary.write_text(text, encoding="utf-8")
        expected = before | {"presets": before["presets"] | {name: preset}}
        if read_tree(temporary) != expected:
            raise UserError(
                f"{params}: not in the form in which DVC writes it, so that nothing can be added; "
                f"restore it (`git checkout HEAD -- {params}`) and call again"
            )


def command_for(name: str, *, quick: bool) -> str:
    """What to type next, with the environment where it is not active."""
    command = f"dvc exp run -S preset={name}{' -S quick=true' if quick else ''}"
    place = Path(sys.prefix)
    if os.environ.get("VIRTUAL_ENV") or not (place / "bin/activate").exists():
        return command
    if place.is_relative_to(Path.cwd()):
        place = place.relative_to(Path.cwd())
    return f"source {shlex.quote(str(place))}/bin/activate && {command}"


def estimate(costs: Costs, *, quick: bool) -> str:
    """The minutes, and how they are known."""
    if quick:
        return f"about {QUICK_MINUTES:.0f} minutes on two free cores"
    return (
        f"about {sum(costs):.0f} minutes on this machine ({costs.training:.0f} of training, by "
        f"steps measured just now; {costs.others:.0f} of all else, by the images to be drawn)"
    )

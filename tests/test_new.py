"""``scorevae new``: from a folder of images to a preset in params.yaml."""

import json
import zipfile
from difflib import ndiff
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from dvc.utils.hydra import apply_overrides
from pictures import encoded, noise
from tiny import committed_params, tiny_config
from torch import nn

from scorevae.commands import measure
from scorevae.commands.main import main
from scorevae.commands.measure import Times
from scorevae.commands.new import FEWEST_STEPS, FITS, PASSES
from scorevae.config import Config, PresetConfig, load_config
from scorevae.runtime import arithmetic
from scorevae.training.step import LossModule

PARAMS = Path("params.yaml")
SLOW = Times(prior=1.0, vae=1.0, warm_start=1.0, encoder=1.0, drawing=0.0)  # seconds a step
FAST = Times(prior=1e-6, vae=1e-6, warm_start=1e-6, encoder=1e-6, drawing=1e-9)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the committed params.yaml, on a machine of known speed."""
    monkeypatch.chdir(tmp_path)
    PARAMS.write_text(committed_params(), encoding="utf-8")
    on_a_machine(monkeypatch, FAST)


def on_a_machine(monkeypatch: pytest.MonkeyPatch, times: Times) -> None:
    monkeypatch.setattr(measure, "measure", lambda config: times)


def pictures(count: int = 40, side: int = 16, channels: int = 3, classes: int = 2) -> Path:
    """A folder of noise."""
    for i in range(count):
        file = Path("given") / "abcdefgh"[i % classes] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = noise(side, side + 3, channels, seed=i)
        file.write_bytes(encoded(pixels if channels == 3 else pixels[..., 0]))
    return Path("given")


def new(*words: str | Path) -> Result:
    return CliRunner().invoke(main, ["new", *(str(word) for word in words)])


def made(*words: str | Path) -> PresetConfig:
    done = new("mine", *words)
    assert done.exit_code == 0, f"{done.output} {done.exception!r}"
    return load_config(PARAMS).presets["mine"]


def test_one_block_is_added_and_no_other_line_changes() -> None:
    """Catches a file that is written anew, without its comments."""
    before = committed_params().splitlines()
    made(pictures())
    after = PARAMS.read_text(encoding="utf-8").splitlines()
    added = [line[2:] for line in ndiff(before, after) if line[0] in "+-"]
    assert len(after) == len(before) + len(added)
    assert "\n".join(added) in "\n".join(after)


def test_it_has_the_form_in_which_dvc_writes() -> None:
    """Catches null by name and lists in a line, for which -S would change other lines."""
    made(pictures())
    before = PARAMS.read_text(encoding="utf-8")
    apply_overrides(PARAMS.absolute(), ["preset=mine"])
    after = PARAMS.read_text(encoding="utf-8")
    lines = [line for line in ndiff(before.splitlines(), after.splitlines()) if line[0] in "+-"]
    assert [line.partition("#")[0].rstrip() for line in lines] == [
        "- preset: digits", "+ preset: mine",
    ]  # fmt: skip


@pytest.mark.parametrize("ending", ["", "\nlast:\n  key: 1\n"])
def test_the_end_of_presets_is_found(ending: str) -> None:
    """Catches a block that lands in the section behind, or on a line without an end."""
    from scorevae.commands.new import added

    text = added(f"presets:\n  a:\n    b: 1{ending}", "mine", {"c": None}, 20, "a")
    assert "    b: 1\n\n  # 20 images" in text
    assert text.endswith(ending or "  mine:\n    c:\n")


@pytest.mark.parametrize(
    ("side", "channels", "size", "like"),
    [(200, 3, 64, "faces_small"), (63, 3, 32, "cifar10_small"), (31, 1, 16, "digits"),
     (8, 1, 8, "digits")],
)  # fmt: skip
def test_size_and_colour_are_those_of_the_images(
    side: int, channels: int, size: int, like: str
) -> None:
    """Catches images that would have to be enlarged, colour lost, and networks that do not fit."""
    preset = made(pictures(24, side, channels))
    assert (preset.data.image.size, preset.data.image.channels) == (size, channels)
    assert preset.encoder.network == load_config(PARAMS).presets[like].encoder.network
    assert preset.data.root == "given"


def test_grey_pictures_that_are_stored_in_colour_are_grey() -> None:
    """Catches three channels of the same, which cost threefold."""
    folder = pictures(24)
    for file in folder.rglob("*.png"):
        grey = noise(16, 16, 1, seed=int(file.stem))
        file.write_bytes(encoded(np.repeat(grey, 3, axis=2)))
    assert made(folder).data.image.channels == 1


def test_an_archive_is_as_good_as_a_folder() -> None:
    """Catches a look that reads folders only."""
    folder = pictures(24)
    with zipfile.ZipFile("given.zip", "w") as archive:
        for file in folder.rglob("*.png"):
            archive.write(file, str(file))
    done = new("mine", "given.zip")
    assert done.exit_code == 0, done.output
    assert "19 images to train, 5 to test" in done.output


def test_the_steps_fill_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches steps that do not shrink on a slow machine, and an hour that means nothing."""
    on_a_machine(monkeypatch, SLOW)
    preset = made(pictures(400), "--minutes", "30")
    parts = (preset.prior, preset.vae, preset.encoder.warm_start, preset.encoder)
    steps = sum(part.training.steps for part in parts)
    assert 0.9 * 30 * 60 <= steps + measure.STARTING <= 30 * 60


def test_few_images_are_not_seen_for_ever() -> None:
    """Catches thousands of passes through a handful of images on a fast machine."""
    training = made(pictures(40)).prior.training
    assert training.steps == max(FEWEST_STEPS, PASSES * 32 // training.batch)


def test_the_command_is_printed() -> None:
    """Catches a command that DVC does not take, and a quick one that is not."""
    folder = pictures()
    done = new("mine", folder, "--quick", "--json")
    found = json.loads(done.output.splitlines()[-1])
    assert found["preset"] == "mine"
    assert found["command"].endswith("dvc exp run -S preset=mine -S quick=true")
    done = new("other", folder)
    assert done.output.splitlines()[-1].endswith("dvc exp run -S preset=other")


REFUSED: list[tuple[str, dict[str, Any], list[str], str]] = [
    ("digits", {}, [], "digits is a preset already"),
    ("my faces", {}, [], "rename it"),
    ("x;touch", {}, [], "rename it"),
    ("mine", {"count": 5}, [], "5 images in it, 20 are the least"),
    ("mine", {"side": 5}, [], "5 pixels a side, 8 are the least"),
    ("mine", {"side": 16}, ["--size", "64"], "choose at most 16"),
]


@pytest.mark.parametrize(("name", "given", "options", "reason"), REFUSED)
def test_what_does_not_fit_is_refused(
    name: str, given: dict[str, Any], options: list[str], reason: str
) -> None:
    """Catches a file that a refusal has changed, and a traceback."""
    done = new(name, pictures(**given), *options)
    assert done.exit_code == 1
    assert done.output.splitlines()[-1].startswith("Error: ")
    assert reason in done.output
    assert PARAMS.read_text(encoding="utf-8") == committed_params()


def test_a_folder_that_is_not_there_is_named() -> None:
    """Catches a traceback of the operating system."""
    done = new("mine", "nowhere")
    assert (done.exit_code, done.output) == (
        1, "Error: nowhere: no such folder or archive; name the one with your images\n",
    )  # fmt: skip


def test_every_size_is_modelled_on_a_shipped_preset() -> None:
    """Catches a preset that was renamed."""
    presets = load_config(PARAMS).presets
    assert {fit.like for fit in FITS} <= presets.keys()


def test_a_measurement_counts_every_training() -> None:
    """Catches a phase without a time, on networks that the command takes."""
    measured: Config = tiny_config()
    times = real_measure(measured)
    assert min(times) > 0
    seconds = measure.training_seconds(measured, times)
    assert seconds == pytest.approx(4 * sum(times[:4]))  # TRAINING of tiny.py: four steps each
    assert measure.evaluation_seconds(measured, 10, times) > 0


def test_steps_are_measured_in_the_precision_they_are_made_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches an hour estimated by bf16 that the CPU imitates, and that no training uses."""
    seen: list[bool] = []

    def loss(module: nn.Module, objective: Any, *, bf16: bool, compiled: bool) -> LossModule:
        seen.append(bf16)
        return LossModule(module, objective, bf16=bf16, compiled=compiled)

    monkeypatch.setattr(measure, "LossModule", loss)
    config = tiny_config(**{"presets.digits.prior.training.precision": "bf16"})
    for able in (False, True):
        monkeypatch.setattr(arithmetic, "cpu_has_bfloat16", lambda able=able: able)
        real_measure(config)
    assert seen == [False] * 4 + [True] + [False] * 3


real_measure = measure.measure

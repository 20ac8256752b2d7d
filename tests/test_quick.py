"""``quick: true``: every shipped preset made so small that the whole pipeline takes minutes."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import COLOUR, encoded, noise, settings
from tiny import SHIPPED, tiny_config, tiny_params, write_params

from scorevae.commands.measure import Times, evaluation_seconds
from scorevae.config import Config, configuration, load_config, read_tree
from scorevae.data.sources.prepare import prepare
from scorevae.evaluation.report.assembly import QUICK, assemble
from scorevae.evaluation.report.page import Provenance
from scorevae.quick import DECODING_SECONDS, SPEED, made_quick, operations, trainings

TREE: Any = read_tree(SHIPPED)
PRESETS = list(TREE["presets"])
MINUTE = 60 * SPEED  # operations


def shipped(preset: str) -> Config:
    """A shipped preset, quick."""
    return configuration(deepcopy(TREE) | {"preset": preset, "quick": True}, preset)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_quick_training_of_every_preset_ends_within_half_a_minute(preset: str) -> None:
    """Catches a preset whose networks the limits forget, and steps that do not shrink with them.

    The heaviest, at its least of two steps of two images, takes the longest.
    """
    small = shipped(preset).selected.model_dump()
    for training in trainings(small):
        assert training["steps"] >= 2 or training["steps"] == 0  # of fine-tuning
        cost = 3 * operations(small) * training["batch"] * training["steps"]
        assert cost < 0.5 * MINUTE
        assert training["warmup"] <= training["steps"]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_quick_evaluation_of_every_preset_draws_few_images(preset: str) -> None:
    """Catches a part that goes on as in a full run."""
    small = shipped(preset)
    work, images = operations(small.selected.model_dump()), small.selected.test_images or 0
    assert 2 <= images <= 20
    assert max(p.steps for p in small.protocols.values()) <= 10
    each = Times(0, 0, 0, 0, drawing=work / SPEED)
    assert evaluation_seconds(small, images, each) <= 1.5 * DECODING_SECONDS
    asked = {part["images"] for part in small.evaluate.model_dump().values() if _is_part(part)}
    assert max(asked) <= images


def _is_part(value: object) -> bool:
    return isinstance(value, dict)


def test_the_smallest_preset_still_has_every_part() -> None:
    """Catches limits under which a quick report shows nothing."""
    asked = shipped("digits").evaluate.model_dump().values()
    assert min(part["images"] for part in asked if _is_part(part)) >= 2


@pytest.mark.parametrize("preset", PRESETS)
def test_making_quick_twice_is_making_it_quick_once(preset: str) -> None:
    """Catches a report whose commands, run again, would make the run smaller still."""
    once = made_quick(deepcopy(TREE) | {"preset": preset})
    assert made_quick(once) == once


def test_nothing_grows() -> None:
    """Catches a limit that is taken for a value."""
    tiny, config = tiny_config(), configuration(tiny_params(quick=True), "tiny")
    for ours, theirs in zip(
        trainings(config.selected.model_dump()), trainings(tiny.selected.model_dump()), strict=True
    ):
        assert ours["steps"] <= theirs["steps"]
        assert ours["batch"] <= theirs["batch"]
    assert config.evaluate.samplers.evaluations == tiny.evaluate.samplers.evaluations


def test_a_file_that_does_not_ask_for_it_is_read_as_it_is(tmp_path: Path) -> None:
    """Catches limits that are always on."""
    path = write_params(tmp_path / "params.yaml", tiny_params(**{"evaluate.draws.count": 99}))
    assert load_config(path).evaluate.draws.count == 99


def test_of_a_folder_every_class_gives_its_share(tmp_path: Path) -> None:
    """Catches the first files of the tree, which are all of one class."""
    for i in range(40):
        file = tmp_path / "given" / "abcd"[i // 10] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(noise(8, 8, 3, seed=i)))
    asked = settings("folder", tmp_path / "given", image=COLOUR, images=20)
    prepare(asked, tmp_path / "data")
    labels = [np.load(tmp_path / f"data/{split}_labels.npy") for split in ("train", "test")]
    assert np.bincount(np.concatenate(labels)).tolist() == [5, 5, 5, 5]


def test_of_an_official_set_each_split_is_cut(tmp_path: Path) -> None:
    """Catches labels of images that were left out, and a header of the full number."""
    prepare(settings("digits", images=30), tmp_path / "data")
    for split in ("train", "test"):
        images = np.load(tmp_path / f"data/{split}_images.npy")
        assert len(images) == len(np.load(tmp_path / f"data/{split}_labels.npy")) == 30


@pytest.mark.parametrize("quick", [True, False])
def test_the_page_says_that_its_numbers_mean_nothing(quick: bool, tmp_path: Path) -> None:
    """Catches a quick run that passes for a result."""
    config = configuration(tiny_params(quick=quick), "tiny")
    origin = Provenance("commit", dirty=False, hardware={}, commands=[], notes=[])
    page = assemble(config, [], {}, {}, figures=tmp_path, provenance=origin, images=3)
    assert page.cautions == ([QUICK] if quick else [])

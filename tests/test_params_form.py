"""params.yaml as committed: in the form in which DVC writes it, so that -S changes one value."""

from difflib import ndiff
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides
from tiny import committed_params


def changed(override: str, path: Path) -> list[str]:
    """The lines that DVC takes away (-) and adds (+) where it sets a value for an experiment."""
    before = committed_params()
    path.write_text(before, encoding="utf-8")
    apply_overrides(path, [override])
    after = path.read_text(encoding="utf-8")
    return [line for line in ndiff(before.splitlines(), after.splitlines()) if line[0] in "-+"]


CHANGES = [
    ("beta=0.02", ["- beta: 0.01", "+ beta: 0.02"]),
    ("beta=1e-5", ["- beta: 0.01", "+ beta: 1e-05"]),
    ("presets.celeba64.vae.training.steps=77", ["-         steps: 600000", "+         steps: 77"]),
    (
        "presets.celeba64.data.image.size=32",
        ["-       image: {channels: 3, size: 64}", "+       image: {channels: 3, size: 32}"],
    ),
    ("variants=[corrector]", ["- variants: []", "+ variants:", "+ - corrector"]),
    ("presets.mnist.prior.network.attention=[14,7]", ["+         - 14"]),
    ("seed=0", []),
]


@pytest.mark.parametrize(("override", "lines"), CHANGES)
def test_an_override_changes_its_own_lines(
    override: str, lines: list[str], tmp_path: Path
) -> None:
    """Catches a form that DVC rewrites: null by name, lists in a line, maps wider than 80."""
    assert changed(override, tmp_path / "params.yaml") == lines


def test_comments_keep_their_places(tmp_path: Path) -> None:
    """Catches a comment behind a list, which DVC loses, and one that no longer fits beside."""
    lines = changed("presets.digits.data.root=/pictures", tmp_path / "params.yaml")
    assert [line.partition("#")[2] for line in lines] == [lines[0].partition("#")[2]] * 2
    assert lines[0].partition("#")[2]

"""The README's promises that a machine can keep."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import save_tiny_models

from scorevae.runtime.files import replacing

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_python_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a snippet that the interface has left behind."""
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    save_tiny_models(tmp_path / "models/digits")
    with replacing(tmp_path / "data/digits") as folder:
        folder.mkdir()
        images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
        np.save(folder / "test_images.npy", images)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(compile(snippet, "README.md", "exec"), scope)
    reconstructed = scope["reconstructed"]
    assert isinstance(reconstructed, torch.Tensor)
    assert reconstructed.shape == (8, 1, 8, 8)


def test_named_files_exist() -> None:
    """Catches a link, figure or module of the README that is not there."""
    targets = re.findall(r"\]\(((?!http)[^)#]+)\)", README)
    modules = re.findall(r"^\| `([\w/]+\.py)`", README, re.MULTILINE)
    assert targets
    assert modules
    for name in targets:
        assert (ROOT / name).exists(), name
    for name in modules:
        assert (ROOT / "src/scorevae" / name).exists(), name


def test_every_module_is_on_the_map() -> None:
    """Catches a module that the README's map does not explain."""
    package = ROOT / "src/scorevae"
    mapped = set(re.findall(r"`([\w/]+\.py)`", README))
    files = {str(p.relative_to(package)) for p in package.rglob("*.py") if p.stem != "__init__"}
    assert files <= mapped


def cell(value: float | int | None) -> str:
    """A metric as the README prints it."""
    return "null" if value is None else f"{value:d}" if isinstance(value, int) else f"{value:.4f}"


@pytest.mark.parametrize(
    ("preset", "path"),
    [
        ("digits", "results/metrics.json"),
        ("cifar10_small", "docs/cifar10_small/metrics.json"),
        ("faces_small", "docs/faces_small/metrics.json"),
    ],
)
def test_results_tables_are_the_committed_runs(preset: str, path: str) -> None:
    """Catches numbers in the README that no recorded run gave."""
    numbers = json.loads((ROOT / path).read_text())
    table = README.split(f"<!-- table: {preset} -->\n")[1].split("\n\n")[0]
    rows = dict(re.findall(r"^\| (\w+) \| (\S+ \| \S+) \|$", table, re.MULTILINE))
    for metric, value in numbers["vae"].items():
        cells = [cell(v) for v in (numbers["scorevae"][metric], value)]
        assert rows[metric] == " | ".join(cells), metric


def test_faults_name_tests_that_exist() -> None:
    """Catches a row whose test was renamed or removed."""
    named = 0
    for line in (ROOT / "docs/faults.md").read_text().splitlines():
        if not line.startswith("| ") or line.startswith("| fault"):
            continue
        cell = line.rstrip(" |").rpartition(" | ")[2]
        file = None
        for name, test in re.findall(r"(test_\w+\.py)?(?:::(test_\w+))?", cell):
            file = name or file
            if file and test:
                assert f"def {test}(" in (ROOT / "tests" / file).read_text(), test
                named += 1
            elif name:
                assert (ROOT / "tests" / name).exists(), name
    assert named > 20

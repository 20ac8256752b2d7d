"""What the benchmarks share: a trained pipeline's files, and a training that records L2."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from jaxtyping import Float
from torch import Tensor

from scorevae.config import Config, load_config, read_tree
from scorevae.data.arrays import Split, load_split, to_tensor, to_unit_range
from scorevae.runtime.files import replacing

DOCS = ROOT / "docs"


class Trained(NamedTuple):
    """A finished `dvc repro`: its configuration, data and folder of weights."""

    config: Config
    train: Split
    originals: Float[Tensor, "batch channel height width"]
    models: Path


def open_trained() -> Trained:
    """Read params.yaml and what the pipeline wrote for its preset."""
    config = load_config(ROOT / "params.yaml")
    data = ROOT / "data" / config.preset
    image = config.selected.data.image
    test = load_split(data, "test", image)
    return Trained(
        config,
        load_split(data, "train", image),
        to_unit_range(to_tensor(test.images)),
        ROOT / "models" / config.preset,
    )


def at_beta(preset: str, beta: float, weighting: str, times: str) -> Any:  # noqa: ANN401 (YAML)
    """params.yaml with a preset, a β and an objective, to be changed further."""
    tree: Any = read_tree(ROOT / "params.yaml")
    tree |= {"preset": preset, "beta": beta}
    tree["objective"] |= {"weighting": weighting, "time": times}
    return tree


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """A table (CSV), whole after every row of a long measurement."""
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


class NoState:
    """For trainings that nobody resumes."""

    def load(self) -> dict[str, Any] | None:
        """Nothing was saved."""
        return None

    def save(self, state: dict[str, Any]) -> None:
        """Keep nothing."""

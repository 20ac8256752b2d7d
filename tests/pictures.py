"""Pictures, evil pickles, the settings of a data set, and what a folder holds."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scorevae.config import DataConfig, ImageConfig

GREY, COLOUR = ImageConfig(channels=1, size=8), ImageConfig(channels=3, size=8)
SHAPES = {"mnist": (1, 28), "cifar10": (3, 32), "celeba64": (3, 140)}


def settings(source: str, root: Path | None = None, **changes: Any) -> DataConfig:  # noqa: ANN401
    """A data set at its own resolution, the digits' where it has none."""
    channels, size = SHAPES.get(source, (1, 8))
    image = ImageConfig(channels=channels, size=size)
    values = {"root": root and str(root), "image": image, "test_fraction": 0.2, "split": "auto"}
    values["images"] = None
    return DataConfig(source=source, **values | {"split_seed": 0} | changes)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Different pixels everywhere, the same in every run."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(picture: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """The content of an image file."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def listing(folder: Path) -> dict[str, bytes]:
    """Everything below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def meta(out: Path) -> dict[str, Any]:
    """The description of a prepared data set."""
    return json.loads((out / "meta.json").read_text())


def md5_of(path: Path) -> str:
    """The sum that official files are known by."""
    return hashlib.md5(path.read_bytes()).hexdigest()


class Evil:
    """Creates a file when its pickle is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)

"""A source of images to a prepared data set: the whole of the stage ``download``'s first half."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from scorevae.config import DataConfig
from scorevae.data.sources.celeba import read_celeba
from scorevae.data.sources.digits import read_digits
from scorevae.data.sources.folder import read_folder
from scorevae.data.sources.torchvision_sets import read_cifar10, read_mnist
from scorevae.data.sources.writer import SPLITS, DatasetWriter, Origin
from scorevae.errors import UserError
from scorevae.runtime.files import own_path, replacing, sha256

Source = Callable[[DataConfig, Path | None, DatasetWriter], Origin]

SOURCES: dict[str, Source] = {
    "digits": read_digits,
    "mnist": read_mnist,
    "cifar10": read_cifar10,
    "celeba64": read_celeba,
    "folder": read_folder,
}


def prepare(settings: DataConfig, folder: Path, *, key: str = "data") -> None:
    """Read a source and write it as a prepared data set, whole or not at all.

    ``key`` is where params.yaml has the settings, for messages.

    Raises:
        UserError: the source cannot be read, its images do not have the shape that
            ``data.image`` states, or the disk is full.
    """
    root = None if settings.root is None else own_path(settings.root, f"{key}.root")
    with replacing(folder) as temporary:
        temporary.mkdir()
        writer = DatasetWriter(temporary, settings.image, key, settings.images)
        origin = SOURCES[settings.source](settings, root, writer)
        shutil.rmtree(temporary / "unpacked", ignore_errors=True)
        _write_meta(temporary, writer, origin)


def _write_meta(folder: Path, writer: DatasetWriter, origin: Origin) -> None:
    for split in SPLITS:
        if not writer.counts.get(split):
            raise UserError(f"{writer.key}: no {split} images in it; give it some")
    meta = {
        "source": origin.source,
        "licence": origin.licence,
        "shape": list(writer.row_shape),
        "images": writer.counts,
        **origin.details,
        "sha256": {path.name: sha256(path) for path in sorted(folder.glob("*.npy"))},
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")

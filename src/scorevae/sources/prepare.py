"""A source of images to a prepared data set: the whole of the stage ``download``'s first half."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from scorevae.config import DataConfig
from scorevae.errors import UserError
from scorevae.files import replacing, sha256
from scorevae.sources.arrays import SPLITS, DatasetWriter
from scorevae.sources.celeba import read_celeba
from scorevae.sources.digits import read_digits
from scorevae.sources.folder import read_folder
from scorevae.sources.official import read_cifar10, read_mnist
from scorevae.sources.origin import Origin

Source = Callable[[DataConfig, Path | None, DatasetWriter], Origin]

SOURCES: dict[str, Source] = {
    "digits": read_digits,
    "mnist": read_mnist,
    "cifar10": read_cifar10,
    "celeba64": read_celeba,
    "folder": read_folder,
}


def data_root(settings: DataConfig) -> Path | None:
    """``data.root`` seen from the DVC repository, also where DVC works in a copy of it.

    Raises:
        UserError: there is nothing at that path, or it cannot be one.
    """
    if settings.root is None:
        return None
    try:
        root = Path(os.environ.get("DVC_ROOT", ".")) / Path(settings.root).expanduser()
        found = root.exists()
    except (OSError, RuntimeError) as error:  # too long a name; ~user without a home
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(
            f"data.root: {settings.root[:100]!r} is no path ({reason}); correct "
            "presets.<name>.data.root"
        ) from None
    if not found:
        raise UserError(
            f"data.root: {settings.root!r} does not exist (looked for {root.resolve()}); correct "
            "presets.<name>.data.root"
        )
    return root


def prepare(settings: DataConfig, folder: Path) -> None:
    """Read a source and write it as a prepared data set, whole or not at all.

    Raises:
        UserError: the source cannot be read, its images do not have the shape that
            ``data.image`` states, or the disk is full.
    """
    root = data_root(settings)
    with replacing(folder) as temporary:
        temporary.mkdir()
        writer = DatasetWriter(temporary, settings.image, settings.source)
        origin = SOURCES[settings.source](settings, root, writer)
        shutil.rmtree(temporary / "unpacked", ignore_errors=True)
        _write_meta(temporary, writer, origin)


def _write_meta(folder: Path, writer: DatasetWriter, origin: Origin) -> None:
    for split in SPLITS:
        if not writer.counts.get(split):
            raise UserError(f"data source: no {split} images in it; give it some")
    meta = {
        "source": origin.source,
        "licence": origin.licence,
        "shape": list(writer.row_shape),
        "images": writer.counts,
        **origin.details,
        "sha256": {path.name: sha256(path) for path in sorted(folder.glob("*.npy"))},
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")

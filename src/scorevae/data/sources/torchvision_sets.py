"""MNIST and CIFAR-10, read by torchvision from the official files."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from scorevae.config import DataConfig
from scorevae.data.arrays import SplitName
from scorevae.data.sources.folder import read_folder
from scorevae.data.sources.official import check_md5, find, find_checked
from scorevae.data.sources.writer import SPLITS, DatasetWriter, Origin
from scorevae.errors import UserError
from scorevae.randomness import derive_seed
from scorevae.runtime.published import attempt, downloads_folder, fetch


def read_mnist(settings: DataConfig, root: Path | None, writer: DatasetWriter) -> Origin:
    """MNIST: 60,000 + 10,000 digits, 28×28, grey, from the four official gz files.

    The order within a split is random, from ``split_seed``, so that any beginning of it is a fair
    sample: the first half of the official test split is the harder one.

    Raises:
        UserError: a file is missing, altered or cannot be fetched.
    """
    from torchvision.datasets import MNIST  # takes seconds, which other sources do without

    resources: dict[str, str] = dict(MNIST.resources)
    names = ", ".join(resources)
    if root is None:
        root = downloads_folder() / "MNIST" / "raw"
        for name in resources:
            fetch(f"MNIST's {name}", names, partial(_from_mirror, name, root), writer.key)
    files = find_checked(root, resources)
    if files is None:
        raise UserError(f"{root}: holds none of {names}; put them there")
    # Unpacked anew: unpacked files have no checksum.
    base = writer.folder / "unpacked"
    raw = base / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, path in files.items():
        (raw / name).symlink_to(path.resolve())
    attempt("MNIST", names, partial(MNIST, str(base), download=True), writer.key)
    for split, dataset in _both(MNIST, base):
        rng = np.random.default_rng(derive_seed(settings.split_seed, "order", split))
        order = rng.permutation(len(dataset.data))
        writer.images(split, [dataset.data.numpy()[order, ..., None]])
        writer.labels(split, dataset.targets.numpy()[order])
    return Origin(
        source="MNIST (LeCun, Cortes, Burges), official files",
        licence="CC BY-SA 3.0",
        details={"classes": list("0123456789")},
    )


def _from_mirror(name: str, folder: Path) -> None:
    """Fetch one file from the first of torchvision's mirrors that answers."""
    from torchvision.datasets import MNIST
    from torchvision.datasets.utils import download_url

    *mirrors, last = MNIST.mirrors
    md5 = dict(MNIST.resources)[name]
    for mirror in mirrors:
        try:
            return download_url(f"{mirror}{name}", str(folder), name, md5)
        except (OSError, RuntimeError) as error:
            print(f"{mirror}: {error}; trying {last}", flush=True)
    return download_url(f"{last}{name}", str(folder), name, md5)


def read_cifar10(
    settings: DataConfig, root: Path | None, writer: DatasetWriter, *, dataset: type | None = None
) -> Origin:
    """CIFAR-10: 50,000 + 10,000 images, 32×32, colour.

    ``root`` may hold the official ``cifar-10-python.tar.gz``, its unpacked folder
    ``cifar-10-batches-py``, or image files as ``train/<class>`` and ``test/<class>`` (also in an
    archive), which are read like the source ``folder``. Pickles are opened only once their MD5 is
    the official one. ``dataset`` is torchvision's class, or a smaller one in tests.

    Raises:
        UserError: a file is missing, altered or cannot be fetched.
    """
    from torchvision.datasets import CIFAR10  # takes seconds, which other sources do without

    kind: Any = dataset or CIFAR10
    if root is None:
        base = downloads_folder()
        load = partial(kind, str(base), download=True)
        fetch("CIFAR-10", kind.filename, load, writer.key)
    elif unpacked := find(root, kind.base_folder):
        base = unpacked.parent
        meta = (kind.meta["filename"], kind.meta["md5"])
        for name, md5 in [*kind.train_list, *kind.test_list, meta]:
            if not (unpacked / name).is_file():
                raise UserError(f"{unpacked / name}: missing; unpack the archive again")
            check_md5(unpacked / name, md5)
    elif archive := find(root, kind.filename):
        base = writer.folder / "unpacked"
        base.mkdir()
        (base / kind.filename).symlink_to(check_md5(archive, kind.tgz_md5).resolve())
        load = partial(kind, str(base), download=True)
        attempt("CIFAR-10", kind.filename, load, writer.key)
    else:
        return read_folder(settings, root, writer)
    for split, part in _both(kind, base):
        writer.images(split, [part.data])
        writer.labels(split, np.asarray(part.targets))
    return Origin(
        source="CIFAR-10 (A. Krizhevsky 2009), official files",
        licence="none stated; cite A. Krizhevsky, Learning Multiple Layers of Features, 2009",
        details={"classes": part.classes},
    )


def _both(kind: type, base: Path) -> Iterator[tuple[SplitName, Any]]:
    for split in SPLITS:
        yield split, kind(str(base), train=split == "train")

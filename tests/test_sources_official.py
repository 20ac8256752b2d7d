"""sources: MNIST, CIFAR-10, CelebA and the embedded digits, from their files to a data set."""

import errno
import gzip
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import urllib.request
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn, get_args
from urllib.error import URLError

import gdown
import numpy as np
import pytest
from gdown.exceptions import FileURLRetrievalError
from limits import disk_of
from PIL import Image
from torchvision import datasets

from scorevae.config import DataConfig, ImageConfig
from scorevae.data.arrays import SplitName, load_split
from scorevae.data.sources import celeba, prepare
from scorevae.data.sources.celeba import read_celeba
from scorevae.data.sources.digits import read_digits
from scorevae.data.sources.prepare import SOURCES
from scorevae.data.sources.torchvision_sets import read_cifar10
from scorevae.data.sources.writer import SPLITS, DatasetWriter, Origin
from scorevae.errors import UserError
from scorevae.runtime.files import sha256

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
MINE = "presets.mine.data"  # where the settings stand, for messages
Read = Callable[[DataConfig, Path | None, DatasetWriter], Origin]


@pytest.fixture(autouse=True)
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where official files are kept; there is no network."""

    def unreachable(*args: object, **options: object) -> NoReturn:
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(gdown, "download", unreachable)
    monkeypatch.setenv("SCOREVAE_DOWNLOADS", str(tmp_path / "downloads"))
    return tmp_path / "downloads"


def shared(name: str) -> Path:
    """Real data beside the repository."""
    if not (SHARED / name).exists():
        pytest.skip(f"needs {SHARED / name}")
    return SHARED / name


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Different pixels everywhere, the same in every run."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def settings(source: str, root: Path | None, channels: int, size: int) -> DataConfig:
    return DataConfig(
        source=source,
        root=None if root is None else str(root),
        image=ImageConfig(channels=channels, size=size),
        test_fraction=0.2,
        split_seed=0,
    )


def write(read: Read, data: DataConfig, out: Path, **options: Any) -> Origin:
    """One source alone, without what ``prepare`` adds."""
    out.mkdir()
    root = None if data.root is None else Path(data.root)
    return read(data, root, DatasetWriter(out, data.image, data.source), **options)


def loaded(out: Path, data: DataConfig, split: SplitName) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a split."""
    images, labels = load_split(out, split, data.image)
    assert labels is not None
    return images, labels


def listing(folder: Path) -> dict[str, bytes]:
    """Everything below a folder."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def md5_of(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


# MNIST

DIGIT_IMAGES = {"train": noise(4, 28, 28), "test": noise(3, 28, 28, seed=1)}
DIGIT_LABELS = {"train": [3, 0, 9, 1], "test": [7, 7, 2]}


def idx(array: np.ndarray) -> bytes:
    """The format of MNIST's files, packed."""
    sizes = b"".join(struct.pack(">I", n) for n in array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes(), mtime=0)


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small MNIST in the official format; its sums count as the official ones."""
    folder = tmp_path / "mine" / "deep"
    folder.mkdir(parents=True)
    for split, name in (("train", "train"), ("test", "t10k")):
        labels = np.array(DIGIT_LABELS[split], dtype=np.uint8)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(idx(DIGIT_IMAGES[split]))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    names = [name for name, _ in datasets.MNIST.resources]
    monkeypatch.setattr(datasets.MNIST, "resources", [(n, md5_of(folder / n)) for n in names])
    return tmp_path / "mine"


def check_mnist(out: Path) -> dict[str, list[int]]:
    """The prepared folder is the small MNIST; the official rows of each split in its order."""
    orders = {}
    for split in SPLITS:
        images, labels = loaded(out, settings("mnist", None, 1, 28), split)
        official = {image.tobytes(): row for row, image in enumerate(DIGIT_IMAGES[split])}
        order = [official[image.tobytes()] for image in images]
        assert sorted(order) == list(range(len(official)))
        assert labels.tolist() == [DIGIT_LABELS[split][row] for row in order]
        orders[split] = order
    return orders


def test_mnist(tmp_path: Path, mnist: Path, downloads: Path) -> None:
    """Catches exchanged splits or files, images without their labels, and traces elsewhere."""
    before = listing(mnist)
    prepare.prepare(settings("mnist", mnist, 1, 28), tmp_path / "out")
    check_mnist(tmp_path / "out")
    assert listing(mnist) == before
    assert not listing(downloads)
    assert len(list((tmp_path / "out").iterdir())) == 5
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta["images"] == {"train": 4, "test": 3}
    assert meta["shape"] == [28, 28, 1]
    assert meta["classes"] == list("0123456789")
    assert "MNIST" in meta["source"]
    assert meta["licence"] == "CC BY-SA 3.0"


def test_mnist_in_random_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mnist: Path
) -> None:
    """Catches the official order, whose beginning is no fair sample, and one without a seed."""
    data = settings("mnist", mnist, 1, 28)
    orders = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / str(number)
        prepare.prepare(data.model_copy(update={"split_seed": seed}), out)
        orders.append(check_mnist(out))
    first, again, other = orders
    assert first == again
    for split in SPLITS:
        assert first[split] != sorted(first[split])
        assert first[split] != other[split]


def test_mnist_of_a_wrong_shape(tmp_path: Path, mnist: Path) -> None:
    """Catches images that do not fit the preset written all the same."""
    with pytest.raises(UserError, match=r"^data: .*\(28, 28, 1\).*\(32, 32, 1\).* data\.image"):
        prepare.prepare(settings("mnist", mnist, 1, 32), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mnist_incomplete_or_altered(tmp_path: Path, mnist: Path) -> None:
    """Catches files that are not the official ones, and messages that do not name them."""
    data = settings("mnist", mnist, 1, 28)
    altered, missing = (
        mnist / "deep" / f"t10k-{n}-ubyte.gz" for n in ("images-idx3", "labels-idx1")
    )
    official = md5_of(altered)
    altered.write_bytes(altered.read_bytes() + b"x")
    expected = rf"{altered.name}: .*{md5_of(altered)}.*{official}"
    with pytest.raises(UserError, match=expected):
        prepare.prepare(data, tmp_path / "out")
    missing.unlink()
    with pytest.raises(UserError, match=rf"mine: {missing.name} missing"):
        prepare.prepare(data, tmp_path / "out")
    shutil.rmtree(mnist / "deep")
    with pytest.raises(UserError, match=r"mine: holds none of train-images.*t10k-labels"):
        prepare.prepare(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mnist_without_a_network(tmp_path: Path) -> None:
    """Catches a traceback, and a message that does not say which files to put where."""
    expected = rf"MNIST's train-images.*: cannot be downloaded \(.*no net.*t10k.* {MINE}\.root$"
    with pytest.raises(UserError, match=expected):
        prepare.prepare(settings("mnist", None, 1, 28), tmp_path / "out", key=MINE)


def test_mnist_is_fetched_once(tmp_path: Path, mnist: Path, downloads: Path) -> None:
    """Catches files fetched again although they are there."""
    shutil.copytree(mnist / "deep", downloads / "MNIST" / "raw")
    for out in ("first", "again"):
        prepare.prepare(settings("mnist", None, 1, 28), tmp_path / out)
        check_mnist(tmp_path / out)


class SlowServer(ThreadingHTTPServer):
    """Serves a folder; of the very first file only one half until it is let go."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, Counter[str]()
        self.half_sent, self.let_go = threading.Event(), threading.Event()

        class Handler(BaseHTTPRequestHandler):
            server: SlowServer

            def do_GET(self) -> None:  # noqa: N802 (the library's name)
                content = (self.server.folder / self.path[1:]).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.headers["Method"] == "HEAD":  # so torchvision looks for redirections
                    return
                half = 0 if self.server.asked else len(content) // 2
                self.server.asked[self.path] += 1
                if half:
                    self.wfile.write(content[:half])
                    self.server.half_sent.set()
                    self.server.let_go.wait()
                self.wfile.write(content[half:])

            def log_message(self, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def server(mnist: Path) -> Iterator[SlowServer]:
    """The small MNIST on a server of this machine."""
    with SlowServer(mnist / "deep") as slow:
        threading.Thread(target=slow.serve_forever).start()
        yield slow
        slow.let_go.set()
        slow.shutdown()


PREPARING = """
import json, sys
from pathlib import Path
from torchvision import datasets
from scorevae.config import DataConfig
from scorevae.data.sources.prepare import prepare
mirror, resources, data, out = sys.argv[1:]
datasets.MNIST.mirrors, datasets.MNIST.resources = [mirror], json.loads(resources)
prepare(DataConfig.model_validate_json(data), Path(out))
"""


@pytest.mark.slow
def test_two_processes_fetch_one_mnist(
    tmp_path: Path, server: SlowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a process that begins the download of another anew, or reads the half of it."""
    monkeypatch.setenv("no_proxy", "*")
    mirror = f"http://127.0.0.1:{server.server_port}/"
    resources = json.dumps(datasets.MNIST.resources)
    data = settings("mnist", None, 1, 28).model_dump_json()

    def start(out: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PREPARING, mirror, resources, data, str(tmp_path / out)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, text=True, **pipes)

    with start("first") as first:
        assert server.half_sent.wait(60)
        with start("second") as second:
            said = second.stdout.readline()
            server.let_go.set()
            ends = [process.communicate() for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), ends
    assert re.match(r"MNIST's train-images.*: another process fetches it .*; waiting", said)
    assert server.asked == {f"/{name}": 1 for name, _ in datasets.MNIST.resources}
    for out in ("first", "second"):
        check_mnist(tmp_path / out)


def test_downloads_that_may_only_be_read(
    tmp_path: Path, downloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a lock that cannot be made where there is nothing to fetch."""
    dataset = small_cifar10(downloads)
    writable = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: path != downloads and writable(path, mode)
    )
    before = listing(downloads)
    write(read_cifar10, settings("cifar10", None, 3, 32), tmp_path / "out", dataset=dataset)
    check_cifar10(tmp_path / "out")
    assert listing(downloads) == before


@pytest.mark.parametrize("damage", ["cut", "altered"])
def test_mnist_unpacked_earlier(tmp_path: Path, mnist: Path, downloads: Path, damage: str) -> None:
    """Catches trust in what an interrupted run unpacked: only the packed files have sums."""
    raw = downloads / "MNIST" / "raw"
    shutil.copytree(mnist / "deep", raw)
    for packed in list(raw.iterdir()):
        (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    last = raw / "t10k-labels-idx1-ubyte"
    content = last.read_bytes()
    last.write_bytes(content[:-1] if damage == "cut" else content[:-1] + b"\x00")
    prepare.prepare(settings("mnist", None, 1, 28), tmp_path / "out")
    check_mnist(tmp_path / "out")


def test_mnist_on_a_full_disk(tmp_path: Path, mnist: Path) -> None:
    """Catches the advice to fetch files that are there, where unpacking them finds no space."""
    with disk_of(1000), pytest.raises(UserError, match=r"out: .*free some space"):
        prepare.prepare(settings("mnist", mnist, 1, 28), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_real_mnist(tmp_path: Path) -> None:
    """Catches whatever the small files do not show: the counts and means are published facts.

    And a beginning that is no fair sample: of the official test split a linear classifier gets
    80 % of the first half right and 89 % of the second.
    """
    data = settings("mnist", shared("mnist"), 1, 28)
    prepare.prepare(data, tmp_path / "out")
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    images, labels = loaded(tmp_path / "out", data, "train")
    assert np.bincount(labels).tolist() == counts
    assert np.mean(images) / 255 == pytest.approx(0.1307, abs=5e-5)
    weights = ridge(pixels(images[:10_000]), np.eye(10)[labels[:10_000]])
    images, labels = loaded(tmp_path / "out", data, "test")
    assert len(images) == 10_000
    right = (pixels(images) @ weights).argmax(axis=1) == labels
    assert right.mean() > 0.8  # 0.1 where images and labels are of different rows
    first, second = right.reshape(2, 5000).mean(axis=1)
    # Five standard errors of a difference: the variance of each right or wrong is p (1 − p).
    assert abs(first - second) < 5 * np.sqrt(2 / 5000 * right.mean() * (1 - right.mean()))


def pixels(images: np.ndarray) -> np.ndarray:
    """One row of numbers in [0, 1] for each image, and a one."""
    rows = images.reshape(len(images), -1) / 255
    return np.column_stack([rows, np.ones(len(rows))])


def ridge(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The weights of least squares, with a small penalty for pixels that are always zero."""
    return np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ y)


# CIFAR-10

PLANES = noise(12, 3, 32, 32)  # two images of each batch, channels first as in the files
THINGS = ["airplane", "automobile", "bird", "cat", "deer"]
THINGS += ["dog", "frog", "horse", "ship", "truck"]
CIFAR_LABELS = [6, 9, 9, 4, 1, 1, 2, 7, 8, 3, 3, 8]


class Evil:
    """Creates a file when its pickle is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def small_cifar10(folder: Path) -> type[datasets.CIFAR10]:
    """Write CIFAR-10 with two images a batch; the class that takes its sums for official."""
    batches = folder / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for i, name in enumerate(names):
        rows = slice(2 * i, 2 * i + 2)
        content = {"data": PLANES[rows].reshape(2, 3072), "labels": CIFAR_LABELS[rows]}
        (batches / name).write_bytes(pickle.dumps(content))
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": THINGS}))
    sums = {path.name: md5_of(path) for path in batches.iterdir()}
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(batches, batches.name)

    class Small(datasets.CIFAR10):
        tgz_md5 = md5_of(folder / "cifar-10-python.tar.gz")
        train_list = [[name, sums[name]] for name in names[:5]]
        test_list = [[name, sums[name]] for name in names[5:]]
        meta = datasets.CIFAR10.meta | {"md5": sums["batches.meta"]}

    return Small


def check_cifar10(out: Path, images: np.ndarray = PLANES) -> None:
    """The prepared folder is the small CIFAR-10."""
    data = settings("cifar10", None, 3, 32)
    for split, rows in (("train", slice(10)), ("test", slice(10, 12))):
        found, labels = loaded(out, data, split)
        np.testing.assert_array_equal(found, images[rows].transpose(0, 2, 3, 1))
        assert labels.tolist() == CIFAR_LABELS[rows]


@pytest.mark.parametrize(
    "root",
    [
        "both",
        "batches",
        "batches/cifar-10-batches-py",
        "archive",
        "archive/deep",
        "archive/deep/cifar-10-python.tar.gz",
    ],
)
def test_cifar10(tmp_path: Path, downloads: Path, root: str) -> None:
    """Catches a layout that is not found, another order, channels first, and traces elsewhere."""
    mine = tmp_path / "mine"
    dataset = small_cifar10(mine / "both")
    unpacked, packed = dataset.base_folder, dataset.filename
    shutil.copytree(mine / "both" / unpacked, mine / "batches" / unpacked)
    (mine / "archive" / "deep").mkdir(parents=True)
    shutil.copy(mine / "both" / packed, mine / "archive" / "deep")
    before = listing(mine)
    data = settings("cifar10", mine / root, 3, 32)
    origin = write(read_cifar10, data, tmp_path / "out", dataset=dataset)
    check_cifar10(tmp_path / "out")
    assert listing(mine) == before
    assert not listing(downloads)
    assert origin.details == {"classes": THINGS}


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_altered_batch_is_not_opened(tmp_path: Path, name: str) -> None:
    """Catches a pickle opened before its sum is compared: opening one runs what it says."""
    dataset = small_cifar10(tmp_path / "mine")
    altered = tmp_path / "mine" / dataset.base_folder / name
    altered.write_bytes(pickle.dumps(Evil(tmp_path / "evil")))
    with pytest.raises(UserError, match=rf"{name}: .*MD5"):
        write(
            read_cifar10,
            settings("cifar10", tmp_path / "mine", 3, 32),
            tmp_path / "out",
            dataset=dataset,
        )
    assert not (tmp_path / "evil").exists()
    pickle.loads(altered.read_bytes())
    assert (tmp_path / "evil").exists()  # it would have been


def test_altered_archive_is_not_opened(tmp_path: Path) -> None:
    """Catches an archive unpacked before its sum is compared."""
    dataset = small_cifar10(tmp_path / "mine")
    batches = tmp_path / "mine" / dataset.base_folder
    (batches / "test_batch").write_bytes(pickle.dumps(Evil(tmp_path / "evil")))
    archive = tmp_path / "mine" / dataset.filename
    with tarfile.open(archive, "w:gz") as file:
        file.add(batches, batches.name)
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz: .*MD5"):
        write(read_cifar10, settings("cifar10", archive, 3, 32), tmp_path / "out", dataset=dataset)
    assert not (tmp_path / "evil").exists()
    assert not list((tmp_path / "out").rglob("*batch*"))


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_missing_batch(tmp_path: Path, name: str) -> None:
    """Catches a traceback, or a smaller set, where a file of the set is not there."""
    dataset = small_cifar10(tmp_path / "mine")
    (tmp_path / "mine" / dataset.base_folder / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: missing"):
        write(
            read_cifar10,
            settings("cifar10", tmp_path / "mine", 3, 32),
            tmp_path / "out",
            dataset=dataset,
        )


@pytest.mark.parametrize("packed", [False, True])
def test_cifar10_as_image_files(tmp_path: Path, packed: bool) -> None:
    """Catches image files not found, a split drawn anew, or other numbers of the classes."""
    tree = tmp_path / "tree"
    for i, number in enumerate(CIFAR_LABELS):
        path = tree / ("train" if i < 10 else "test") / THINGS[number] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PLANES[i].transpose(1, 2, 0)).save(path)
    for thing in THINGS:  # every class has an image, for the numbers to be the official ones
        folder = tree / "train" / thing
        folder.mkdir(exist_ok=True)
        Image.fromarray(noise(32, 32, 3, seed=7)).save(folder / "more.png")
    if packed:
        tree = Path(shutil.make_archive(str(tmp_path / "cifar-images"), "gztar", tree))
    data = settings("cifar10", tree, 3, 32)
    prepare.prepare(data, tmp_path / "out")
    images, labels = loaded(tmp_path / "out", data, "test")
    found = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    expected = {PLANES[i].transpose(1, 2, 0).tobytes(): CIFAR_LABELS[i] for i in (10, 11)}
    assert found == expected
    assert len(loaded(tmp_path / "out", data, "train")[0]) == 20


def test_cifar10_without_a_network(tmp_path: Path) -> None:
    """Catches a traceback, and a message that does not say which file to put where."""
    expected = rf"CIFAR-10: cannot be downloaded \(.*no net.*put cifar-10-python.* {MINE}\.root$"
    with pytest.raises(UserError, match=expected):
        prepare.prepare(settings("cifar10", None, 3, 32), tmp_path / "out", key=MINE)


def test_cifar10_is_fetched_once(
    tmp_path: Path, downloads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a download not kept, or kept inside the output that the next run replaces."""
    dataset = small_cifar10(tmp_path / "server")
    asked = []

    class Response(io.BytesIO):
        url, length = dataset.url, None

    def serve(request: urllib.request.Request) -> Response:
        asked.append(request)
        return Response((tmp_path / "server" / dataset.filename).read_bytes())

    monkeypatch.setattr(urllib.request, "urlopen", serve)
    data = settings("cifar10", None, 3, 32)
    write(read_cifar10, data, tmp_path / "first", dataset=dataset)
    check_cifar10(tmp_path / "first")
    assert asked
    assert (downloads / dataset.filename).is_file()
    asked.clear()
    write(read_cifar10, data, tmp_path / "again", dataset=dataset)
    check_cifar10(tmp_path / "again")
    assert not asked


def test_broken_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a download that ended early, unpacked all the same or ending in a traceback."""
    dataset = small_cifar10(tmp_path / "server")

    class Response(io.BytesIO):
        url, length = dataset.url, None

    half = (tmp_path / "server" / dataset.filename).read_bytes()[:1000]
    monkeypatch.setattr(urllib.request, "urlopen", lambda request: Response(half))
    with pytest.raises(UserError, match=r"CIFAR-10: cannot be downloaded \(.*corrupted"):
        write(read_cifar10, settings("cifar10", None, 3, 32), tmp_path / "out", dataset=dataset)


class CIFAR10Partial(datasets.CIFAR10):
    """The first images of each batch, in shared/data (see its README)."""

    train_list = [
        ["data_batch_1", "0e94f50af6f7ef86188ac17e6efe152c"],
        ["data_batch_2", "59ccacc7ec8e9766608c9b98e470f7aa"],
        ["data_batch_3", "ec15e137408bf689f109cb9b5e5e9045"],
        ["data_batch_4", "5389b75b62f359d19b134d220f244d32"],
        ["data_batch_5", "0fd2cedf2bf65f74352f796ff0a60c34"],
    ]
    test_list = [["test_batch", "4ab02c1959fbe4abc4d887ca3c0708c8"]]


def test_real_cifar10(tmp_path: Path) -> None:
    """Catches whatever the small batches do not show: the official order and colours."""
    root = shared("cifar-10-partial")
    data = settings("cifar10", root, 3, 32)
    write(read_cifar10, data, tmp_path / "out", dataset=CIFAR10Partial)
    for split, count in (("train", 8068), ("test", 1017)):
        images, labels = loaded(tmp_path / "out", data, split)
        reference = CIFAR10Partial(str(root), train=split == "train")
        assert (len(images), len(labels)) == (count, count)
        assert labels.tolist() == reference.targets
        for row in (0, count // 2, count - 1):
            np.testing.assert_array_equal(images[row], np.asarray(reference[row][0]))
    assert labels[:4].tolist() == [3, 8, 8, 0]  # a cat, two ships, an airplane


@pytest.mark.slow
def test_real_cifar10_as_jpeg(tmp_path: Path) -> None:
    """Catches images lost, or numbers of classes that are not the official ones, at full size."""
    root = shared("cifar-10-jpeg")
    data = settings("cifar10", root, 3, 32)
    prepare.prepare(data, tmp_path / "out")
    official = np.load(root / "labels.npz")
    for split, count in (("train", 50_000), ("test", 10_000)):
        images, labels = loaded(tmp_path / "out", data, split)
        assert len(images) == count
        assert np.bincount(labels).tolist() == np.bincount(official[split]).tolist()
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert (meta["classes"], meta["skipped"]) == (THINGS, 0)


# CelebA

FACES = noise(7, 218, 178, 3)
PARTS = [0, 2, 0, 1, 0, 2, 1]
TITLES = ["Bald", "Hat", "Smiling"]
SIGNS = np.where(noise(7, 3, seed=2) % 2, 1, -1)


def small_celeba(folder: Path, *, packed: bool) -> dict[str, str]:
    """Write seven faces in CelebA's layout, lossless under their usual names; their sums."""
    faces = folder / "img_align_celeba"
    faces.mkdir(parents=True)
    names = [f"{i:06}.jpg" for i in range(1, 8)]
    for name, face in zip(names, FACES, strict=True):
        Image.fromarray(face).save(faces / name, "PNG")
    lines = [f"{name} {part}" for name, part in zip(names, PARTS, strict=True)]
    (folder / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    lines = ["7", " ".join(TITLES) + " "]
    lines += [
        f"{n} {' '.join(f'{v:2}' for v in row)}" for n, row in zip(names, SIGNS, strict=True)
    ]
    (folder / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
        for path in faces.iterdir():
            archive.write(path, f"img_align_celeba/{path.name}")
    md5 = {path.name: md5_of(path) for path in folder.iterdir() if path.is_file()}
    if packed:
        shutil.rmtree(faces)
    else:
        (folder / "img_align_celeba.zip").unlink()
    return md5


def faces(tmp_path: Path, md5: dict[str, str], size: int = 140) -> DataConfig:
    """Read the small CelebA under ``mine``."""
    data = settings("celeba64", tmp_path / "mine", 3, size)
    write(read_celeba, data, tmp_path / "out", md5=md5)
    return data


@pytest.mark.parametrize("packed", [True, False])
def test_celeba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    """Catches another split or crop than the official one, and attributes of another face."""
    monkeypatch.setattr(celeba, "CHUNK", 2)
    md5 = small_celeba(tmp_path / "mine" / "celeba", packed=packed)
    monkeypatch.setitem(SOURCES, "celeba64", lambda *a: read_celeba(*a, md5=md5))
    data = settings("celeba64", tmp_path / "mine", 3, 140)
    prepare.prepare(data, tmp_path / "out")
    for split, rows in (("train", [0, 2, 4]), ("test", [1, 5])):
        images, labels = loaded(tmp_path / "out", data, split)
        np.testing.assert_array_equal(images, FACES[rows, 39:179, 19:159])
        np.testing.assert_array_equal(labels, SIGNS[rows] > 0)
        assert labels.dtype == np.int64
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta["attributes"] == TITLES
    assert meta["images"] == {"train": 3, "test": 2}
    assert "do not pass images on" in meta["licence"]


def test_celeba_at_64(tmp_path: Path) -> None:
    """Catches the whole face shrunk instead of its centre of 140 pixels."""
    data = faces(tmp_path, small_celeba(tmp_path / "mine", packed=True), 64)
    square = Image.fromarray(FACES[0, 39:179, 19:159])
    expected = square.resize((64, 64), Image.Resampling.BILINEAR)
    images, _ = loaded(tmp_path / "out", data, "train")
    np.testing.assert_array_equal(images[0], np.asarray(expected))


def test_celeba_beyond_its_resolution(tmp_path: Path) -> None:
    """Catches the advice to fetch the set again where the preset asks for too much."""
    md5 = small_celeba(tmp_path / "mine", packed=True)
    with pytest.raises(UserError, match=r"150") as caught:
        faces(tmp_path, md5, 150)
    assert "fetch" not in caught.value.message


@pytest.mark.parametrize("damage", ["damaged", "missing"])
def test_celeba_is_complete(tmp_path: Path, damage: str) -> None:
    """Catches a face left out: the split is official, and every row of it counts."""
    md5 = small_celeba(tmp_path / "mine", packed=False)
    face = tmp_path / "mine" / "img_align_celeba" / "000005.jpg"
    if damage == "damaged":
        face.write_bytes(face.read_bytes()[:500])
    else:
        face.unlink()
    with pytest.raises(UserError, match=r"000005\.jpg: .*img_align_celeba\.zip"):
        faces(tmp_path, md5)


def test_celeba_archive_without_a_face(tmp_path: Path) -> None:
    """Catches zipfile's KeyError."""
    md5 = small_celeba(tmp_path / "mine", packed=True)
    path = tmp_path / "mine" / "img_align_celeba.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("img_align_celeba/000002.jpg", b"")
    with pytest.raises(UserError, match=r"000001\.jpg: .*img_align_celeba\.zip"):
        faces(tmp_path, md5 | {path.name: md5_of(path)})


@pytest.mark.parametrize(
    "name", ["img_align_celeba.zip", "list_eval_partition.txt", "list_attr_celeba.txt"]
)
def test_celeba_altered_or_missing(tmp_path: Path, name: str) -> None:
    """Catches files that are not the official ones, and messages that do not name them."""
    md5 = small_celeba(tmp_path / "mine", packed=True)
    path = tmp_path / "mine" / name
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(UserError, match=rf"{name}: .*{md5_of(path)}.*{md5[name]}"):
        faces(tmp_path, md5)
    path.unlink()
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(UserError, match=rf"mine: .*{name}"):
        faces(tmp_path, md5)


def test_celeba_lists_that_disagree(tmp_path: Path) -> None:
    """Catches a face without attributes ending in a KeyError."""
    md5 = small_celeba(tmp_path / "mine", packed=True)
    path = tmp_path / "mine" / "list_attr_celeba.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    with pytest.raises(UserError, match=r"list_attr_celeba\.txt: .*000006\.jpg"):
        faces(tmp_path, md5 | {path.name: md5_of(path)})


def test_celeba_without_lists(tmp_path: Path) -> None:
    """Catches a traceback where only the images are there."""
    md5 = small_celeba(tmp_path / "mine", packed=True)
    for path in (tmp_path / "mine").glob("*.txt"):
        path.unlink()
    with pytest.raises(UserError, match=r"mine: list_eval_partition\.txt and list_attr_celeba"):
        faces(tmp_path, md5)


def test_celeba_is_fetched_once(tmp_path: Path, downloads: Path) -> None:
    """Catches files of another run that are not found again."""
    md5 = small_celeba(downloads / "celeba", packed=True)
    data = settings("celeba64", None, 3, 140)
    write(read_celeba, data, tmp_path / "out", md5=md5)
    assert len(loaded(tmp_path / "out", data, "train")[0]) == 3


@pytest.mark.parametrize(
    "error", [URLError("denied"), RuntimeError("denied"), FileURLRetrievalError("denied")]
)
def test_celeba_cannot_be_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Catches a traceback when Google Drive refuses, as it does after too many downloads."""

    def download(*args: object, **options: object) -> NoReturn:
        raise error

    monkeypatch.setattr(gdown, "download", download)
    names = "img_align_celeba.zip, list_eval_partition.txt and list_attr_celeba.txt"
    expected = (
        rf"CelebA's list_attr_celeba\.txt: .*denied.*put {re.escape(names)} .* {MINE}\.root$"
    )
    with pytest.raises(UserError, match=expected):
        prepare.prepare(settings("celeba64", None, 3, 64), tmp_path / "out", key=MINE)


# Digits

DIGITS = settings("digits", None, 1, 8)


def digits(out: Path, **changes: Any) -> dict[SplitName, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of both splits."""
    write(read_digits, DIGITS.model_copy(update=changes), out)
    return {split: loaded(out, DIGITS, split) for split in SPLITS}


def test_prepared_digits(tmp_path: Path) -> None:
    """Catches wrong counts or hashes in meta.json, and stray or missing files."""
    out = tmp_path / "digits"
    prepare.prepare(DIGITS, out)
    arrays = [f"{s}_{kind}.npy" for s in ("test", "train") for kind in ("images", "labels")]
    assert sorted(p.name for p in out.iterdir()) == sorted(["meta.json", *arrays])
    meta = json.loads((out / "meta.json").read_text())
    assert meta["sha256"] == {name: sha256(out / name) for name in arrays}
    assert meta["images"] == {s: len(np.load(out / f"{s}_images.npy")) for s in SPLITS}
    assert sum(meta["images"].values()) == 1797
    assert meta["shape"] == [8, 8, 1]
    assert meta["classes"] == list("0123456789")
    assert "CC BY 4.0" in meta["licence"]


def test_digits_are_complete_and_stratified(tmp_path: Path) -> None:
    """Catches images lost, used twice, or parted from their labels, and uneven classes."""
    from sklearn.datasets import load_digits

    parts = digits(tmp_path / "digits")
    bunch = load_digits()
    found = np.concatenate(
        [np.column_stack([images.reshape(-1, 64), labels]) for images, labels in parts.values()]
    )
    expected = np.column_stack([np.round(bunch.images * 255 / 16).reshape(1797, 64), bunch.target])
    assert sorted(map(tuple, found)) == sorted(map(tuple, expected))
    for label in range(10):  # a stratified share differs from the exact one by rounding alone
        share = 0.2 * np.sum(bunch.target == label)
        assert abs(np.sum(parts["test"][1] == label) - share) < 1


def test_digits_use_the_whole_range(tmp_path: Path) -> None:
    """Catches the digits' 0 to 16 stored unscaled, or cut instead of rounded."""
    images, _ = digits(tmp_path / "digits")["train"]
    assert set(np.unique(images)) == {round(i * 255 / 16) for i in range(17)}


def test_digits_follow_from_the_seed(tmp_path: Path) -> None:
    """Catches a split that depends on anything but the settings, or not on the seed."""
    first, again = digits(tmp_path / "first"), digits(tmp_path / "again")
    other = digits(tmp_path / "other", split_seed=1)
    for split in SPLITS:
        np.testing.assert_array_equal(first[split][0], again[split][0])
        assert not np.array_equal(first[split][0], other[split][0])


def test_digits_need_no_root(tmp_path: Path) -> None:
    """Catches a user's folder that is passed over in silence."""
    (tmp_path / "mine").mkdir()
    data = settings("digits", tmp_path / "mine", 1, 8)
    with pytest.raises(UserError, match=rf"^{MINE}\.root: got '.*mine'.* null, or {MINE}\.s"):
        prepare.prepare(data, tmp_path / "out", key=MINE)


# Preparing


def test_every_source_is_known() -> None:
    """Catches a source that params.yaml may name and nothing reads."""
    assert set(SOURCES) == set(get_args(DataConfig.model_fields["source"].annotation))


def test_wrong_shape_writes_nothing(tmp_path: Path) -> None:
    """Catches a half-written data set that the next stage would accept."""
    with pytest.raises(UserError, match=r"^data: .* correct data.image"):
        prepare.prepare(settings("digits", None, 1, 9), tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [UserError("stop"), KeyboardInterrupt("stop"), KeyError("stop")])
def test_failure_leaves_the_former_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Catches a set lost or mixed with half of its successor."""
    prepare.prepare(DIGITS, tmp_path / "digits")
    before = listing(tmp_path / "digits")

    def fail(data: DataConfig, root: Path | None, writer: DatasetWriter) -> NoReturn:
        writer.images("train", iter([noise(5, 8, 8, 1)]))
        raise error

    monkeypatch.setitem(SOURCES, "digits", fail)
    with pytest.raises(type(error), match="stop"):
        prepare.prepare(DIGITS, tmp_path / "digits")
    assert listing(tmp_path / "digits") == before
    assert [p.name for p in tmp_path.iterdir()] == ["digits"]


def test_success_replaces_the_former_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches labels of the former set left beside the images of one that has none."""
    prepare.prepare(DIGITS, tmp_path / "digits")

    def unlabelled(data: DataConfig, root: Path | None, writer: DatasetWriter) -> Origin:
        for split in SPLITS:
            writer.images(split, iter([noise(5, 8, 8, 1)]))
        return Origin("test", "none", {})

    monkeypatch.setitem(SOURCES, "digits", unlabelled)
    prepare.prepare(DIGITS, tmp_path / "digits")
    assert load_split(tmp_path / "digits", "train", DIGITS.image).labels is None
    assert [p.name for p in tmp_path.iterdir()] == ["digits"]


@pytest.mark.parametrize("empty", SPLITS)
def test_empty_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: SplitName) -> None:
    """Catches a set without training or without test images, which fails much later."""

    def half(data: DataConfig, root: Path | None, writer: DatasetWriter) -> Origin:
        for split in SPLITS:
            writer.images(split, iter([noise(0 if split == empty else 5, 8, 8, 1)]))
        return Origin("test", "none", {})

    monkeypatch.setitem(SOURCES, "digits", half)
    with pytest.raises(UserError, match=f"no {empty} images"):
        prepare.prepare(DIGITS, tmp_path / "digits")


def test_full_disk_while_describing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a disk that fills up at the very last file."""

    def full(*args: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(prepare, "_write_meta", full)
    with pytest.raises(UserError, match=r"digits: cannot be written \(No space left .*free some"):
        prepare.prepare(DIGITS, tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []


def test_data_root_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a message without the place that was looked at, and a folder made for nothing."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    data = DIGITS.model_copy(update={"source": "folder", "root": "imags"})
    expected = rf"^{MINE}\.root: 'imags' does not exist \(looked for {tmp_path}/imags\)"
    with pytest.raises(UserError, match=expected):
        prepare.prepare(data, tmp_path / "data" / "out", key=MINE)
    assert list(tmp_path.iterdir()) == []

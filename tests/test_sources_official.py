"""sources: MNIST, CIFAR-10, CelebA and the embedded digits, from their files to a data set."""

import errno
import gzip
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
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn, get_args
from urllib.error import URLError

import gdown
import numpy as np
import pytest
from limits import disk_of
from pictures import encoded, listing, md5_of, meta, noise, settings
from PIL import Image
from torchvision import datasets

from scorevae.config import DataConfig, ImageConfig
from scorevae.data.arrays import SplitName, load_split
from scorevae.data.sources import celeba
from scorevae.data.sources.celeba import read_celeba
from scorevae.data.sources.prepare import SOURCES, prepare
from scorevae.data.sources.torchvision_sets import read_cifar10
from scorevae.data.sources.writer import SPLITS, DatasetWriter, Origin
from scorevae.errors import UserError
from scorevae.runtime.files import sha256

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
MINE = "presets.mine.data"  # where the settings stand, for messages


@pytest.fixture(autouse=True)
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where official files are kept; there is no network."""

    def unreachable(*args: object, **options: object) -> NoReturn:
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setattr(gdown, "download", unreachable)
    return tmp_path / "downloads"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """The user's folder."""
    return tmp_path / "mine"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where the prepared data set goes."""
    return tmp_path / "out"


def shared(name: str) -> Path:
    """Real data beside the repository."""
    if not (SHARED / name).exists():
        pytest.skip(f"needs {SHARED / name}")
    return SHARED / name


def loaded(out: Path, source: str, split: SplitName) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a split."""
    images, labels = load_split(out, split, settings(source).image)
    assert labels is not None
    return images, labels


# MNIST

DIGIT_IMAGES = {"train": noise(4, 28, 28), "test": noise(3, 28, 28, seed=1)}
DIGIT_LABELS = {"train": [3, 0, 9, 1], "test": [7, 7, 2]}


def idx(array: np.ndarray) -> bytes:
    """The format of MNIST's files, packed."""
    sizes = b"".join(struct.pack(">I", n) for n in array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes(), mtime=0)


@pytest.fixture
def mnist(mine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small MNIST in the official format; its sums count as the official ones."""
    folder = mine / "deep"
    folder.mkdir(parents=True)
    for split, name in (("train", "train"), ("test", "t10k")):
        labels = np.array(DIGIT_LABELS[split], dtype=np.uint8)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(idx(DIGIT_IMAGES[split]))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    names = [name for name, _ in datasets.MNIST.resources]
    monkeypatch.setattr(datasets.MNIST, "resources", [(n, md5_of(folder / n)) for n in names])
    return mine


def check_mnist(out: Path) -> dict[str, list[int]]:
    """The prepared folder is the small MNIST; the official rows of each split in its order."""
    orders = {}
    for split in SPLITS:
        images, labels = loaded(out, "mnist", split)
        official = {image.tobytes(): row for row, image in enumerate(DIGIT_IMAGES[split])}
        order = [official[image.tobytes()] for image in images]
        assert sorted(order) == list(range(len(official)))
        assert labels.tolist() == [DIGIT_LABELS[split][row] for row in order]
        orders[split] = order
    return orders


def test_mnist(out: Path, mnist: Path, downloads: Path) -> None:
    """Catches exchanged splits or files, images without their labels, and traces elsewhere."""
    before = listing(mnist)
    prepare(settings("mnist", mnist), out)
    check_mnist(out)
    assert listing(mnist) == before
    assert not listing(downloads)
    assert len(list(out.iterdir())) == 5
    found = meta(out)
    assert found["images"] == {"train": 4, "test": 3}
    assert found["shape"] == [28, 28, 1]
    assert found["classes"] == list("0123456789")
    assert "MNIST" in found["source"]
    assert found["licence"] == "CC BY-SA 3.0"


def test_mnist_in_random_order(tmp_path: Path, mnist: Path) -> None:
    """Catches the official order, whose beginning is no fair sample, and one without a seed."""
    orders = []
    for number, seed in enumerate((0, 0, 1)):
        prepare(settings("mnist", mnist, split_seed=seed), tmp_path / str(number))
        orders.append(check_mnist(tmp_path / str(number)))
    first, again, other = orders
    assert first == again
    for split in SPLITS:
        assert first[split] != sorted(first[split])
        assert first[split] != other[split]


def test_mnist_incomplete_or_altered(out: Path, mnist: Path) -> None:
    """Catches files that are not the official ones, and messages that do not name them."""
    altered = mnist / "deep" / "t10k-images-idx3-ubyte.gz"
    official = md5_of(altered)
    altered.write_bytes(altered.read_bytes() + b"x")
    with pytest.raises(UserError, match=rf"{altered.name}: .*{md5_of(altered)}.*{official}"):
        prepare(settings("mnist", mnist), out)
    for name in ("train-labels-idx1-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        (mnist / "deep" / name).unlink()
    with pytest.raises(UserError, match=r"mine: train-labels-\S*, t10k-labels-\S*\.gz missing"):
        prepare(settings("mnist", mnist), out)
    shutil.rmtree(mnist / "deep")
    with pytest.raises(UserError, match=r"mine: holds none of train-images.*t10k-labels"):
        prepare(settings("mnist", mnist), out)
    assert not out.exists()


@pytest.mark.parametrize("damage", ["cut", "altered"])
def test_mnist_unpacked_earlier(out: Path, mnist: Path, downloads: Path, damage: str) -> None:
    """Catches files fetched again, and trust in unpacked ones: only the packed ones have sums."""
    raw = downloads / "MNIST" / "raw"
    shutil.copytree(mnist / "deep", raw)
    for packed in list(raw.iterdir()):
        (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    last = raw / "t10k-labels-idx1-ubyte"
    content = last.read_bytes()
    last.write_bytes(content[:-1] if damage == "cut" else content[:-1] + b"\x00")
    prepare(settings("mnist"), out)
    check_mnist(out)


def test_mnist_on_a_full_disk(out: Path, mnist: Path) -> None:
    """Catches the advice to fetch files that are there, where unpacking them finds no space."""
    with disk_of(1000), pytest.raises(UserError, match=r"out: .*free some space"):
        prepare(settings("mnist", mnist), out)
    assert not out.exists()


def test_real_mnist(out: Path) -> None:
    """Catches whatever the small files do not show: the counts and means are published facts.

    And a beginning that is no fair sample: of the official test split a linear classifier gets
    80 % of the first half right and 89 % of the second.
    """
    prepare(settings("mnist", shared("mnist")), out)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    images, labels = loaded(out, "mnist", "train")
    assert np.bincount(labels).tolist() == counts
    assert np.mean(images) / 255 == pytest.approx(0.1307, abs=5e-5)
    x, y = pixels(images[:10_000]), np.eye(10)[labels[:10_000]]
    weights = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ y)  # ridge: some pixels are 0
    images, labels = loaded(out, "mnist", "test")
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


# Two processes


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
    data = settings("mnist").model_dump_json()

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


# CIFAR-10

PLANES = noise(12, 3, 32, 32)  # two images of each batch, channels first as in the files
THINGS = ["airplane", "automobile", "bird", "cat", "deer"]
THINGS += ["dog", "frog", "horse", "ship", "truck"]
CIFAR_LABELS = [6, 9, 9, 4, 1, 1, 2, 7, 8, 3, 3, 8]
BATCHES, PACKED = datasets.CIFAR10.base_folder, datasets.CIFAR10.filename


class Evil:
    """Creates a file when its pickle is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def cifar10(mine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CIFAR-10 of two images a batch, packed and not; its sums count as the official ones."""
    batches = mine / BATCHES
    batches.mkdir(parents=True)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for i, name in enumerate(names):
        rows = slice(2 * i, 2 * i + 2)
        content = {"data": PLANES[rows].reshape(2, 3072), "labels": CIFAR_LABELS[rows]}
        (batches / name).write_bytes(pickle.dumps(content))
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": THINGS}))
    pack(batches)
    sums = {path.name: md5_of(path) for path in batches.iterdir()}

    class Small(datasets.CIFAR10):
        tgz_md5 = md5_of(mine / PACKED)
        train_list = [[name, sums[name]] for name in names[:5]]
        test_list = [[name, sums[name]] for name in names[5:]]
        meta = datasets.CIFAR10.meta | {"md5": sums["batches.meta"]}

    monkeypatch.setitem(SOURCES, "cifar10", partial(read_cifar10, dataset=Small))
    return mine


def pack(batches: Path) -> None:
    """Write the official archive beside the folder of batches."""
    with tarfile.open(batches.parent / PACKED, "w:gz") as archive:
        archive.add(batches, batches.name)


def check_cifar10(out: Path) -> None:
    """The prepared folder is the small CIFAR-10."""
    for split, rows in (("train", slice(10)), ("test", slice(10, 12))):
        found, labels = loaded(out, "cifar10", split)
        np.testing.assert_array_equal(found, PLANES[rows].transpose(0, 2, 3, 1))
        assert labels.tolist() == CIFAR_LABELS[rows]
    assert meta(out)["classes"] == THINGS


@pytest.mark.parametrize(
    ("kept", "root"),
    [
        ([BATCHES, PACKED], "."),
        ([BATCHES], "."),
        ([BATCHES], BATCHES),
        ([PACKED], "."),
        ([PACKED], ".."),
        ([PACKED], PACKED),
    ],
    ids=["both", "batches", "the batches' folder", "archive", "deep archive", "the archive"],
)
def test_cifar10(out: Path, cifar10: Path, downloads: Path, kept: list[str], root: str) -> None:
    """Catches a layout that is not found, another order, channels first, and traces elsewhere."""
    if BATCHES not in kept:
        shutil.rmtree(cifar10 / BATCHES)
    if PACKED not in kept:
        (cifar10 / PACKED).unlink()
    before = listing(cifar10)
    prepare(settings("cifar10", cifar10 / root), out)
    check_cifar10(out)
    assert listing(cifar10) == before
    assert not listing(downloads)
    assert not list(out.rglob("*batch*"))


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_missing_or_altered_batch(tmp_path: Path, out: Path, cifar10: Path, name: str) -> None:
    """Catches a pickle opened before its sum is compared: opening one runs what it says.

    And a traceback, or a smaller set, where a file of the set is not there.
    """
    altered, evil = cifar10 / BATCHES / name, tmp_path / "evil"
    altered.write_bytes(pickle.dumps(Evil(evil)))
    with pytest.raises(UserError, match=rf"{name}: .*MD5"):
        prepare(settings("cifar10", cifar10), out)
    assert not evil.exists()
    pickle.loads(altered.read_bytes())
    assert evil.exists()  # it would have been
    altered.unlink()
    with pytest.raises(UserError, match=rf"{name}: missing"):
        prepare(settings("cifar10", cifar10), out)


def test_altered_archive_is_not_opened(
    tmp_path: Path, out: Path, cifar10: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an archive unpacked before its sum is compared."""
    (cifar10 / BATCHES / "test_batch").write_bytes(pickle.dumps(Evil(tmp_path / "evil")))
    pack(cifar10 / BATCHES)
    monkeypatch.setattr(tarfile, "open", lambda *_, **__: pytest.fail("unpacked"))
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz: .*MD5"):
        prepare(settings("cifar10", cifar10 / PACKED), out)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("packed", [False, True])
def test_cifar10_as_image_files(tmp_path: Path, out: Path, packed: bool) -> None:
    """Catches image files not found, a split drawn anew, or other numbers of the classes."""
    tree = tmp_path / "tree"
    for thing in THINGS:  # every class has an image, for the numbers to be the official ones
        for split in SPLITS:
            (tree / split / thing).mkdir(parents=True)
        Image.fromarray(noise(32, 32, 3, seed=7)).save(tree / "train" / thing / "more.png")
    for i, number in enumerate(CIFAR_LABELS):
        folder = tree / ("train" if i < 10 else "test") / THINGS[number]
        Image.fromarray(PLANES[i].transpose(1, 2, 0)).save(folder / f"{i}.png")
    if packed:
        tree = Path(shutil.make_archive(str(tmp_path / "cifar-images"), "gztar", tree))
    prepare(settings("cifar10", tree), out)
    images, labels = loaded(out, "cifar10", "test")
    found = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    expected = {PLANES[i].transpose(1, 2, 0).tobytes(): CIFAR_LABELS[i] for i in (10, 11)}
    assert found == expected
    assert len(loaded(out, "cifar10", "train")[0]) == 20


@pytest.fixture
def served(cifar10: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], list[object]]:
    """Serve the beginning of the archive from now on; the requests that were made."""

    class Response(io.BytesIO):
        url, length = datasets.CIFAR10.url, None

    def serve(size: int | None) -> list[object]:
        asked: list[object] = []

        def answer(request: object) -> Response:
            asked.append(request)
            return Response((cifar10 / PACKED).read_bytes()[:size])

        monkeypatch.setattr(urllib.request, "urlopen", answer)
        return asked

    return serve


def test_cifar10_is_fetched_once(
    tmp_path: Path, downloads: Path, served: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a download not kept, and one fetched again or locked where it may only be read."""
    assert not downloads.exists()
    asked = served(None)
    prepare(settings("cifar10"), tmp_path / "first")
    check_cifar10(tmp_path / "first")
    assert asked
    asked.clear()
    before = listing(downloads)
    assert PACKED in before
    (downloads / ".CIFAR-10.lock").unlink()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != downloads and access(path, mode))
    prepare(settings("cifar10"), tmp_path / "again")
    check_cifar10(tmp_path / "again")
    assert not asked
    assert listing(downloads) == {k: v for k, v in before.items() if k != ".CIFAR-10.lock"}


def test_broken_download(out: Path, served: Callable) -> None:
    """Catches a download that ended early, unpacked all the same or ending in a traceback."""
    served(1000)
    with pytest.raises(UserError, match=r"CIFAR-10: cannot be downloaded \(.*corrupted"):
        prepare(settings("cifar10"), out)


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


def test_real_cifar10(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches whatever the small batches do not show: the official order and colours."""
    root = shared("cifar-10-partial")
    monkeypatch.setitem(SOURCES, "cifar10", partial(read_cifar10, dataset=CIFAR10Partial))
    prepare(settings("cifar10", root), out)
    for split, count in (("train", 8068), ("test", 1017)):
        images, labels = loaded(out, "cifar10", split)
        reference = CIFAR10Partial(str(root), train=split == "train")
        assert (len(images), len(labels)) == (count, count)
        assert labels.tolist() == reference.targets
        for row in (0, count // 2, count - 1):
            np.testing.assert_array_equal(images[row], np.asarray(reference[row][0]))
    assert labels[:4].tolist() == [3, 8, 8, 0]  # a cat, two ships, an airplane


@pytest.mark.faults
def test_real_cifar10_as_jpeg(out: Path) -> None:
    """Catches images lost, or numbers of classes that are not the official ones, at full size."""
    root = shared("cifar-10-jpeg")
    prepare(settings("cifar10", root), out)
    official = np.load(root / "labels.npz")
    for split, count in (("train", 50_000), ("test", 10_000)):
        images, labels = loaded(out, "cifar10", split)
        assert len(images) == count
        assert np.bincount(labels).tolist() == np.bincount(official[split]).tolist()
    assert (meta(out)["classes"], meta(out)["skipped"]) == (THINGS, 0)


# CelebA

FACES = noise(7, 218, 178, 3)
PARTS = [0, 2, 0, 1, 0, 2, 1]
TITLES = ["Bald", "Hat", "Smiling"]
SIGNS = np.where(noise(7, 3, seed=2) % 2, 1, -1)
FOLDER, ZIP = "img_align_celeba", "img_align_celeba.zip"
PARTITION, ATTRIBUTES = "list_eval_partition.txt", "list_attr_celeba.txt"


class CelebA:
    """Seven faces in CelebA's layout, lossless under their usual names, packed and not."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.faces = folder, folder / FOLDER
        self.faces.mkdir(parents=True)
        parts, attributes = [], ["7", " ".join(TITLES) + " "]
        for i, (face, part, signs) in enumerate(zip(FACES, PARTS, SIGNS, strict=True), 1):
            (self.faces / f"{i:06}.jpg").write_bytes(encoded(face))
            parts.append(f"{i:06}.jpg {part}")
            attributes.append(f"{i:06}.jpg {' '.join(f'{sign:2}' for sign in signs)}")
        (folder / PARTITION).write_text("\n".join(parts) + "\n")
        (folder / ATTRIBUTES).write_text("\n".join(attributes) + "\n")
        with zipfile.ZipFile(folder / ZIP, "w") as archive:
            for path in self.faces.iterdir():
                archive.write(path, f"{FOLDER}/{path.name}")
        self.md5 = {name: md5_of(folder / name) for name in (ZIP, PARTITION, ATTRIBUTES)}

    def keep(self, *, packed: bool) -> None:
        """Leave the archive alone, or the folder of faces."""
        if packed:
            shutil.rmtree(self.faces)
        else:
            (self.folder / ZIP).unlink()

    def read(self, name: str) -> bytes:
        """The content of a file."""
        return (self.folder / name).read_bytes()

    def publish(self, name: str, content: bytes) -> None:
        """Make another content the official one."""
        (self.folder / name).write_bytes(content)
        self.md5[name] = md5_of(self.folder / name)


@pytest.fixture
def faces(mine: Path, monkeypatch: pytest.MonkeyPatch) -> CelebA:
    """The small CelebA; its sums count as the official ones."""
    small = CelebA(mine)
    monkeypatch.setitem(SOURCES, "celeba64", partial(read_celeba, md5=small.md5))
    return small


def check_celeba(out: Path) -> None:
    """The prepared folder is the small CelebA."""
    for split, rows in (("train", [0, 2, 4]), ("test", [1, 5])):
        images, labels = loaded(out, "celeba64", split)
        np.testing.assert_array_equal(images, FACES[rows, 39:179, 19:159])
        np.testing.assert_array_equal(labels, SIGNS[rows] > 0)
        assert labels.dtype == np.int64


@pytest.mark.parametrize("packed", [True, False])
def test_celeba(
    tmp_path: Path, out: Path, faces: CelebA, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    """Catches another split or crop than the official one, and attributes of another face."""
    monkeypatch.setattr(celeba, "CHUNK", 2)
    faces.keep(packed=packed)
    prepare(settings("celeba64", tmp_path), out)  # in a folder below the root
    check_celeba(out)
    assert meta(out)["attributes"] == TITLES
    assert meta(out)["images"] == {"train": 3, "test": 2}
    assert "do not pass images on" in meta(out)["licence"]


@pytest.mark.parametrize("outer", ["any", FOLDER])
@pytest.mark.parametrize("root", [".", FOLDER, f"{FOLDER}/{FOLDER}"])
def test_nested_celeba(tmp_path: Path, out: Path, faces: CelebA, outer: str, root: str) -> None:
    """Catches Kaggle's layout, a folder in a folder of the same name, taken for incomplete."""
    faces.keep(packed=False)
    for name in (PARTITION, ATTRIBUTES):
        (faces.folder / name).rename(faces.faces / name)
    (tmp_path / outer).mkdir()
    faces.folder.rename(tmp_path / outer / FOLDER)
    prepare(settings("celeba64", tmp_path / outer / root), out)
    check_celeba(out)


def test_celeba_at_64(out: Path, faces: CelebA) -> None:
    """Catches the whole face shrunk instead of its centre of 140 pixels."""
    image = ImageConfig(channels=3, size=64)
    prepare(settings("celeba64", faces.folder, image=image), out)
    square = Image.fromarray(FACES[0, 39:179, 19:159])
    expected = square.resize((64, 64), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(load_split(out, "train", image).images[0], np.asarray(expected))


def test_celeba_beyond_its_resolution(out: Path, faces: CelebA) -> None:
    """Catches the advice to fetch the set again where the preset asks for too much."""
    image = ImageConfig(channels=3, size=150)
    with pytest.raises(UserError, match=r"150") as caught:
        prepare(settings("celeba64", faces.folder, image=image), out)
    assert "fetch" not in caught.value.message


FIFTH = r"000005\.jpg: .*img_align_celeba\.zip"
EMPTY_ZIP = b"PK\5\6" + bytes(18)
DAMAGES: dict[str, tuple[bool, Callable[[CelebA], object], str]] = {
    "cut face": (False, lambda it: os.truncate(it.faces / "000005.jpg", 500), FIFTH),
    "no face": (False, lambda it: (it.faces / "000005.jpg").unlink(), FIFTH),
    "empty archive": (True, lambda it: it.publish(ZIP, EMPTY_ZIP), FIFTH.replace("5", "1")),
    "no attributes": (
        True,
        lambda it: it.publish(ATTRIBUTES, it.read(ATTRIBUTES)[:-40]),  # of the last two faces
        r"list_attr_celeba\.txt: .*000006\.jpg",
    ),
    "no lists": (
        True,
        lambda it: [path.unlink() for path in it.folder.glob("*.txt")],
        r"mine: list_eval_partition\.txt and list_attr_celeba",
    ),
}


@pytest.mark.parametrize(("packed", "damage", "expected"), DAMAGES.values(), ids=DAMAGES)
def test_celeba_is_complete(
    out: Path, faces: CelebA, packed: bool, damage: Callable, expected: str
) -> None:
    """Catches a face left out of the official split, and a KeyError or zipfile's own."""
    faces.keep(packed=packed)
    damage(faces)
    with pytest.raises(UserError, match=expected):
        prepare(settings("celeba64", faces.folder), out)


@pytest.mark.parametrize("name", [ZIP, PARTITION, ATTRIBUTES])
def test_celeba_altered_or_missing(out: Path, faces: CelebA, name: str) -> None:
    """Catches files that are not the official ones, and messages that do not name them."""
    faces.keep(packed=True)
    path = faces.folder / name
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(UserError, match=rf"{name}: .*{md5_of(path)}.*{faces.md5[name]}"):
        prepare(settings("celeba64", faces.folder), out)
    path.unlink()
    with pytest.raises(UserError, match=rf"mine: .*{name}"):
        prepare(settings("celeba64", faces.folder), out)


def test_celeba_is_fetched_once(out: Path, faces: CelebA, downloads: Path) -> None:
    """Catches files of another run that are not found again."""
    faces.keep(packed=True)
    downloads.mkdir()
    faces.folder.rename(downloads / "celeba")
    prepare(settings("celeba64"), out)
    check_celeba(out)


# Digits


def digits(out: Path, **changes: Any) -> dict[SplitName, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of both splits."""
    prepare(settings("digits", **changes), out)
    return {split: loaded(out, "digits", split) for split in SPLITS}


def test_prepared_digits(out: Path) -> None:
    """Catches wrong counts or hashes in meta.json, and stray or missing files."""
    prepare(settings("digits"), out)
    arrays = [f"{s}_{kind}.npy" for s in ("test", "train") for kind in ("images", "labels")]
    assert sorted(p.name for p in out.iterdir()) == sorted(["meta.json", *arrays])
    found = meta(out)
    assert found["sha256"] == {name: sha256(out / name) for name in arrays}
    assert found["images"] == {s: len(np.load(out / f"{s}_images.npy")) for s in SPLITS}
    assert sum(found["images"].values()) == 1797
    assert found["shape"] == [8, 8, 1]
    assert found["classes"] == list("0123456789")
    assert "CC BY 4.0" in found["licence"]


def test_digits_are_complete_and_stratified(out: Path) -> None:
    """Catches images lost, used twice, unscaled or parted from their labels; uneven classes."""
    from sklearn.datasets import load_digits

    parts = digits(out)
    bunch = load_digits()
    found = np.concatenate(
        [np.column_stack([images.reshape(-1, 64), labels]) for images, labels in parts.values()]
    )
    expected = np.column_stack([np.round(bunch.images * 255 / 16).reshape(1797, 64), bunch.target])
    assert sorted(map(tuple, found)) == sorted(map(tuple, expected))
    for label in range(10):  # a stratified share differs from the exact one by rounding alone
        share = 0.2 * np.sum(bunch.target == label)
        assert abs(np.sum(parts["test"][1] == label) - share) < 1


def test_digits_follow_from_the_seed(tmp_path: Path) -> None:
    """Catches a split that depends on anything but the settings, or not on the seed."""
    first, again = digits(tmp_path / "first"), digits(tmp_path / "again")
    other = digits(tmp_path / "other", split_seed=1)
    for split in SPLITS:
        np.testing.assert_array_equal(first[split][0], again[split][0])
        assert not np.array_equal(first[split][0], other[split][0])


def test_digits_need_no_root(tmp_path: Path, out: Path) -> None:
    """Catches a user's folder that is passed over in silence."""
    with pytest.raises(UserError, match=rf"^{MINE}\.root: got '{tmp_path}'.* null, or {MINE}\.s"):
        prepare(settings("digits", tmp_path), out, key=MINE)


@pytest.mark.parametrize("fraction", [0.0001, 0.005, 0.9945, 0.9999])
def test_digits_of_too_few(out: Path, fraction: float) -> None:
    """Catches scikit-learn's ValueError where a split cannot hold every digit."""
    expected = rf"{MINE}\.test_fraction: got {fraction}; .*from 0\.006 to 0\.994"
    with pytest.raises(UserError, match=expected):
        prepare(settings("digits", test_fraction=fraction), out, key=MINE)


@pytest.mark.parametrize("fraction", [0.006, 0.994])
def test_digits_of_few(out: Path, fraction: float) -> None:
    """Catches a bound that the message names and that does not hold: a digit without an image."""
    for _, labels in digits(out, test_fraction=fraction).values():
        assert set(labels) == set(range(10))


# Preparing


def test_every_source_is_known() -> None:
    """Catches a source that params.yaml may name and nothing reads."""
    assert set(SOURCES) == set(get_args(DataConfig.model_fields["source"].annotation))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("mnist", r"MNIST's train-images.*: cannot be downloaded \(.*no net.*t10k.*"),
        ("cifar10", r"CIFAR-10: cannot be downloaded \(.*no net.*put cifar-10-python.*"),
        ("celeba64", rf"CelebA's {ATTRIBUTES}: .*no net.*{ZIP}, {PARTITION} and {ATTRIBUTES}.*"),
    ],
)
def test_no_network(out: Path, source: str, expected: str) -> None:
    """Catches a traceback, and a message that does not say which files to put where."""
    with pytest.raises(UserError, match=rf"{expected} {MINE}\.root$"):
        prepare(settings(source), out, key=MINE)


def test_wrong_shape_writes_nothing(tmp_path: Path, out: Path) -> None:
    """Catches a half-written data set that the next stage would accept."""
    expected = r"^data: .*\(8, 8, 1\).*\(9, 9, 1\).* correct data\.image"
    with pytest.raises(UserError, match=expected):
        prepare(settings("digits", image=ImageConfig(channels=1, size=9)), out)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def replaced(out: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Prepare the digits, then a set of so many unlabelled images in their place."""

    def prepare_both(train: int, test: int, error: BaseException | None = None) -> None:
        def unlabelled(data: DataConfig, root: Path | None, writer: DatasetWriter) -> Origin:
            writer.images("train", iter([noise(train, 8, 8, 1)]))
            if error:
                raise error
            writer.images("test", iter([noise(test, 8, 8, 1)]))
            return Origin("test", "none", {})

        monkeypatch.setitem(SOURCES, "digits", unlabelled)
        prepare(settings("digits"), out)

    prepare(settings("digits"), out)
    return prepare_both


@pytest.mark.parametrize("error", [UserError("stop"), KeyboardInterrupt("stop"), KeyError("stop")])
def test_failure_leaves_the_former_set(
    tmp_path: Path, out: Path, replaced: Callable, error: BaseException
) -> None:
    """Catches a set lost or mixed with half of its successor."""
    before = listing(out)
    with pytest.raises(type(error), match="stop"):
        replaced(5, 5, error)
    assert listing(out) == before
    assert list(tmp_path.iterdir()) == [out]


def test_success_replaces_the_former_set(tmp_path: Path, out: Path, replaced: Callable) -> None:
    """Catches labels of the former set left beside the images of one that has none."""
    replaced(5, 5)
    assert load_split(out, "train", settings("digits").image).labels is None
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("empty", SPLITS)
def test_empty_split(replaced: Callable, empty: SplitName) -> None:
    """Catches a set without training or without test images, which fails much later."""
    with pytest.raises(UserError, match=f"no {empty} images"):
        replaced(**{split: 0 if split == empty else 5 for split in SPLITS})


def test_full_disk_while_describing(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a disk that fills up at the very last file."""

    def full(*args: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"out: cannot be written \(No space left .*free some"):
        prepare(settings("digits"), out)
    assert list(tmp_path.iterdir()) == []


def test_data_root_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a message without the place that was looked at, and a folder made for nothing."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    expected = rf"^{MINE}\.root: 'imags' does not exist \(looked for {tmp_path}/imags\)"
    with pytest.raises(UserError, match=expected):
        prepare(settings("folder", Path("imags")), tmp_path / "data" / "out", key=MINE)
    assert list(tmp_path.iterdir()) == []

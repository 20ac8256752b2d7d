"""sources: MNIST, CIFAR-10, CelebA and the embedded digits, from their files to a data set."""

import errno
import gzip
import io
import os
import pickle
import re
import shutil
import struct
import tarfile
import urllib.request
import zipfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, NoReturn, get_args
from urllib.error import URLError

import gdown
import numpy as np
import pytest
from limits import disk_of
from pictures import Evil, encoded, listing, md5_of, meta, noise, settings
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


def refused(expected: str, data: DataConfig, out: Path) -> None:
    """The message of the refusal, with the settings where the user has them."""
    with pytest.raises(UserError, match=expected):
        prepare(data, out, key=MINE)


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


def test_mnist(tmp_path: Path, mnist: Path, downloads: Path) -> None:
    """Catches splits, files or labels exchanged, the official order, no seed, and traces left."""
    before, orders = listing(mnist), []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / str(number)
        prepare(settings("mnist", mnist, split_seed=seed), out)
        orders.append(check_mnist(out))
        assert len(list(out.iterdir())) == 5
    assert listing(mnist) == before
    assert not listing(downloads)
    found = meta(out)
    assert found["images"] == {"train": 4, "test": 3}
    assert found["shape"] == [28, 28, 1]
    assert found["classes"] == list("0123456789")
    assert "MNIST" in found["source"]
    assert found["licence"] == "CC BY-SA 3.0"
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
    data = settings("mnist", mnist)
    refused(rf"{altered.name}: .*{md5_of(altered)}.*{official}", data, out)
    for name in ("train-labels-idx1-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        (mnist / "deep" / name).unlink()
    refused(r"mine: train-labels-\S*, t10k-labels-\S*\.gz missing", data, out)
    shutil.rmtree(mnist / "deep")
    refused(r"mine: holds none of train-images.*t10k-labels", data, out)
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
    with disk_of(1000):
        refused(r"out: .*free some space", settings("mnist", mnist), out)
    assert not out.exists()


def test_real_mnist(out: Path) -> None:
    """Catches whatever the small files do not show: the counts and means are published facts.

    And a beginning that is no fair sample: of the official test split a linear classifier gets
    80 % of the first half right and 89 % of the second.
    """

    def pixels(images: np.ndarray) -> np.ndarray:  # in [0, 1], and a one
        return np.column_stack([images.reshape(len(images), -1) / 255, np.ones(len(images))])

    prepare(settings("mnist", shared("mnist")), out)
    images, labels = loaded(out, "mnist", "train")
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
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


# Two processes


class Response(io.BytesIO):
    """A file as urlopen gives it."""

    url = length = None


def test_two_fetch_one_mnist(
    tmp_path: Path, mnist: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Catches a process that begins the download of another anew, or reads the half of it.

    The lock counts per opened file, so that threads stand for processes.
    """
    half_sent, let_go, asked, said = Event(), Event(), Counter[str](), ""

    class Halting(Response):
        def read(self, size: int) -> bytes:
            if self.tell():
                half_sent.set()
                assert let_go.wait(60)
            return super().read(20)

    def answer(request: urllib.request.Request) -> Response:
        name = Path(request.full_url).name
        asked[name] += "Method" not in request.headers  # so torchvision looks for redirections
        return Halting((mnist / "deep" / name).read_bytes())

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    outs = [tmp_path / "first", tmp_path / "second"]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(prepare, settings("mnist"), outs[0])
        assert half_sent.wait(60)
        second = pool.submit(prepare, settings("mnist"), outs[1])
        while not (said.endswith("\n") or second.done()):
            said += capsys.readouterr().out
        let_go.set()
        assert (first.result(), second.result()) == (None, None)
    assert re.match(r"MNIST's train-images.*: another process fetches it .*; waiting", said)
    assert asked == {name: 1 for name, _ in datasets.MNIST.resources}
    for out in outs:
        check_mnist(out)


# CIFAR-10

PLANES = noise(12, 3, 32, 32)  # two images of each batch, channels first as in the files
THINGS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR_LABELS = [6, 9, 9, 4, 1, 1, 2, 7, 8, 3, 3, 8]
BATCHES, PACKED = datasets.CIFAR10.base_folder, datasets.CIFAR10.filename


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
    sums = [[name, md5_of(batches / name)] for name in names]

    class Small(datasets.CIFAR10):
        tgz_md5, train_list, test_list = md5_of(mine / PACKED), sums[:5], sums[5:]
        meta = datasets.CIFAR10.meta | {"md5": md5_of(batches / "batches.meta")}

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


LAYOUTS = {
    "both": ([BATCHES, PACKED], "."),
    "batches": ([BATCHES], "."),
    "the batches' folder": ([BATCHES], BATCHES),
    "archive": ([PACKED], "."),
    "deep archive": ([PACKED], ".."),
    "the archive": ([PACKED], PACKED),
}


@pytest.mark.parametrize(("kept", "root"), LAYOUTS.values(), ids=LAYOUTS)
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
    """Catches a pickle opened, and run, before its sum is compared, and one that is missed."""
    altered, evil = cifar10 / BATCHES / name, tmp_path / "evil"
    altered.write_bytes(pickle.dumps(Evil(evil)))
    refused(rf"{name}: .*MD5", settings("cifar10", cifar10), out)
    assert not evil.exists()
    pickle.loads(altered.read_bytes())
    assert evil.exists()  # it would have been
    altered.unlink()
    refused(rf"{name}: missing", settings("cifar10", cifar10), out)


def test_altered_archive(out: Path, cifar10: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an archive unpacked before its sum is compared."""
    evil = cifar10 / "evil"
    (cifar10 / BATCHES / "test_batch").write_bytes(pickle.dumps(Evil(evil)))
    pack(cifar10 / BATCHES)
    monkeypatch.setattr(tarfile, "open", lambda *_, **__: pytest.fail("unpacked"))
    refused(r"cifar-10-python\.tar\.gz: .*MD5", settings("cifar10", cifar10 / PACKED), out)
    assert not evil.exists()


@pytest.mark.parametrize("packed", [False, True])
def test_cifar10_as_image_files(tmp_path: Path, out: Path, packed: bool) -> None:
    """Catches image files not found, a split drawn anew, or other numbers of the classes."""
    tree = tmp_path / "tree"
    for thing in THINGS:  # every class has an image, for the numbers to be the official ones
        for split in SPLITS:
            (tree / split / thing).mkdir(parents=True)
        Image.fromarray(noise(32, 32, 3, seed=7)).save(tree / "train" / thing / "more.png")
    pictures = PLANES.transpose(0, 2, 3, 1)
    for i, number in enumerate(CIFAR_LABELS):
        folder = tree / ("train" if i < 10 else "test") / THINGS[number]
        Image.fromarray(pictures[i]).save(folder / f"{i}.png")
    if packed:
        tree = Path(shutil.make_archive(str(tmp_path / "cifar-images"), "gztar", tree))
    prepare(settings("cifar10", tree), out)
    images, labels = loaded(out, "cifar10", "test")
    found = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    assert found == {pictures[i].tobytes(): CIFAR_LABELS[i] for i in (10, 11)}
    assert len(loaded(out, "cifar10", "train")[0]) == 20


def serve(monkeypatch: pytest.MonkeyPatch, content: bytes) -> list[object]:
    """Answer every request with this from now on; the requests that were made."""
    asked: list[object] = []

    def answer(request: object) -> Response:
        asked.append(request)
        return Response(content)

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    return asked


def test_cifar10_is_fetched_once(
    out: Path, downloads: Path, cifar10: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a download not kept, and one fetched again or locked where it may only be read.

    And one that ended early, unpacked all the same, ending in a traceback, or in the way later.
    """
    archive = (cifar10 / PACKED).read_bytes()
    assert not downloads.exists()
    serve(monkeypatch, archive[:1000])
    refused(r"CIFAR-10: cannot be downloaded \(.*corrupted", settings("cifar10"), out)
    asked = serve(monkeypatch, archive)
    prepare(settings("cifar10"), out)
    check_cifar10(out)
    assert asked
    asked.clear()
    (downloads / ".CIFAR-10.lock").unlink()
    before, access = listing(downloads), os.access
    assert PACKED in before
    monkeypatch.setattr(os, "access", lambda path, mode: path != downloads and access(path, mode))
    prepare(settings("cifar10"), out)
    check_cifar10(out)
    assert not asked
    assert listing(downloads) == before


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

    def publish(self, name: str, content: bytes) -> None:
        """Make another content the official one."""
        (self.folder / name).write_bytes(content)
        self.md5[name] = md5_of(self.folder / name)


@pytest.fixture
def faces(mine: Path, monkeypatch: pytest.MonkeyPatch) -> CelebA:
    """The small CelebA, read two faces at a time; its sums count as the official ones."""
    monkeypatch.setattr(celeba, "CHUNK", 2)
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
def test_celeba(tmp_path: Path, out: Path, faces: CelebA, packed: bool) -> None:
    """Catches another split or crop than the official one, and attributes of another face."""
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


def test_celeba_at_other_sizes(out: Path, faces: CelebA) -> None:
    """Catches the whole face shrunk, or its 140 pixels enlarged, and advice to fetch it again."""
    small, large = (ImageConfig(channels=3, size=size) for size in (64, 150))
    prepare(settings("celeba64", faces.folder, image=small), out)
    square = Image.fromarray(FACES[0, 39:179, 19:159])
    expected = square.resize((64, 64), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(load_split(out, "train", small).images[0], np.asarray(expected))
    refused("^(?!.*fetch).*150", settings("celeba64", faces.folder, image=large), out)


FIFTH = r"000005\.jpg: .*img_align_celeba\.zip"
EMPTY_ZIP = b"PK\5\6" + bytes(18)
DAMAGES: dict[str, tuple[bool, Callable[[CelebA], object], str]] = {
    "cut face": (False, lambda it: os.truncate(it.faces / "000005.jpg", 500), FIFTH),
    "no face": (False, lambda it: (it.faces / "000005.jpg").unlink(), FIFTH),
    "empty archive": (True, lambda it: it.publish(ZIP, EMPTY_ZIP), FIFTH.replace("5", "1")),
    "no attributes of the last two": (
        True, lambda it: it.publish(ATTRIBUTES, (it.folder / ATTRIBUTES).read_bytes()[:-40]),
        r"list_attr_celeba\.txt: .*000006\.jpg",
    ),
    "no lists": (
        True, lambda it: [path.unlink() for path in it.folder.glob("*.txt")],
        r"mine: list_eval_partition\.txt and list_attr_celeba",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("packed", "damage", "expected"), DAMAGES.values(), ids=DAMAGES)
def test_celeba_is_complete(
    out: Path, faces: CelebA, packed: bool, damage: Callable, expected: str
) -> None:
    """Catches a face left out of the official split, and a KeyError or zipfile's own."""
    faces.keep(packed=packed)
    damage(faces)
    refused(expected, settings("celeba64", faces.folder), out)


@pytest.mark.parametrize("name", [ZIP, PARTITION, ATTRIBUTES])
def test_celeba_altered_or_missing(out: Path, faces: CelebA, name: str) -> None:
    """Catches files that are not the official ones, and messages that do not name them."""
    faces.keep(packed=True)
    path = faces.folder / name
    path.write_bytes(path.read_bytes() + b"\n")
    data = settings("celeba64", faces.folder)
    refused(rf"{name}: .*{md5_of(path)}.*{faces.md5[name]}", data, out)
    path.unlink()
    refused(rf"mine: .*{name}", data, out)


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
    arrays = {f"{split}_{kind}.npy" for split in SPLITS for kind in ("images", "labels")}
    assert {path.name for path in out.iterdir()} == arrays | {"meta.json"}
    found = meta(out)
    assert found["sha256"] == {name: sha256(out / name) for name in arrays}
    assert found["images"] == {s: len(np.load(out / f"{s}_images.npy")) for s in SPLITS}
    assert sum(found["images"].values()) == 1797
    assert found["shape"] == [8, 8, 1]
    assert found["classes"] == list("0123456789")
    assert "CC BY 4.0" in found["licence"]


def test_digits_are_complete_and_stratified(tmp_path: Path) -> None:
    """Catches images lost, doubled or without their labels, uneven classes, no seed."""
    from sklearn.datasets import load_digits

    parts, again = digits(tmp_path / "first"), digits(tmp_path / "again")
    other, bunch = digits(tmp_path / "other", split_seed=1), load_digits()
    found = np.concatenate(
        [np.column_stack([images.reshape(-1, 64), labels]) for images, labels in parts.values()]
    )
    expected = np.column_stack([np.round(bunch.images * 255 / 16).reshape(1797, 64), bunch.target])
    assert sorted(map(tuple, found)) == sorted(map(tuple, expected))
    for label in range(10):  # a stratified share differs from the exact one by rounding alone
        share = 0.2 * np.sum(bunch.target == label)
        assert abs(np.sum(parts["test"][1] == label) - share) < 1
    for split in SPLITS:
        np.testing.assert_array_equal(parts[split][0], again[split][0])
        assert not np.array_equal(parts[split][0], other[split][0])


def test_digits_need_no_root(tmp_path: Path, out: Path) -> None:
    """Catches a user's folder that is passed over in silence."""
    expected = rf"^{MINE}\.root: got '{tmp_path}'.* null, or {MINE}\.s"
    refused(expected, settings("digits", tmp_path), out)


@pytest.mark.parametrize(("bound", "beyond"), [(0.006, (0.005, 1e-4)), (0.994, (0.9945, 0.9999))])
def test_digits_of_few(out: Path, bound: float, beyond: tuple[float, ...]) -> None:
    """Catches scikit-learn's ValueError for too few of a digit, and a bound that does not hold."""
    for _, labels in digits(out, test_fraction=bound).values():
        assert set(labels) == set(range(10))
    for fraction in beyond:
        expected = rf"{MINE}\.test_fraction: got {fraction}; .*from 0\.006 to 0\.994"
        refused(expected, settings("digits", test_fraction=fraction), out)


# Preparing


def test_every_source_is_known() -> None:
    """Catches a source that params.yaml may name and nothing reads."""
    assert set(SOURCES) == set(get_args(DataConfig.model_fields["source"].annotation))


@pytest.mark.parametrize(("source", "expected"), [
    ("mnist", r"MNIST's train-images.*: cannot be downloaded \(.*no net.*t10k.*"),
    ("cifar10", r"CIFAR-10: cannot be downloaded \(.*no net.*put cifar-10-python.*"),
    ("celeba64", rf"CelebA's {ATTRIBUTES}: .*no net.*{ZIP}, {PARTITION} and {ATTRIBUTES}.*"),
])  # fmt: skip
def test_no_network(out: Path, source: str, expected: str) -> None:
    """Catches a traceback, and a message that does not say which files to put where."""
    refused(rf"{expected} {MINE}\.root$", settings(source), out)


def test_wrong_shape_writes_nothing(out: Path) -> None:
    """Catches a half-written data set that the next stage would accept."""
    expected = rf"^{MINE}: .*\(8, 8, 1\).*\(9, 9, 1\).* correct data\.image"
    refused(expected, settings("digits", image=ImageConfig(channels=1, size=9)), out)
    assert list(out.parent.iterdir()) == []


def replace(out: Path, train: int, test: int, error: BaseException | None = None) -> None:
    """Prepare a set of so many unlabelled images, which may fail half way."""

    def unlabelled(data: DataConfig, root: Path | None, writer: DatasetWriter) -> Origin:
        writer.images("train", iter([noise(train, 8, 8, 1)]))
        if error:
            raise error
        writer.images("test", iter([noise(test, 8, 8, 1)]))
        return Origin("test", "none", {})

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOURCES, "digits", unlabelled)
        prepare(settings("digits"), out)


@pytest.mark.parametrize(("train", "test", "error", "expected"), [
    *((5, 5, kind("stop"), kind("stop")) for kind in (UserError, KeyboardInterrupt, KeyError)),
    (0, 5, None, UserError("no train images")),
    (5, 0, None, UserError("no test images")),
])  # fmt: skip
def test_failure_leaves_the_former_set(
    out: Path, train: int, test: int, error: BaseException | None, expected: BaseException
) -> None:
    """Catches a set lost or mixed with half of its successor, and an empty split."""
    prepare(settings("digits"), out)
    before = listing(out)
    with pytest.raises(type(expected), match=str(expected)):
        replace(out, train, test, error)
    assert listing(out) == before
    assert list(out.parent.iterdir()) == [out]


def test_success_replaces_the_former_set(out: Path) -> None:
    """Catches labels of the former set left beside the images of one that has none."""
    prepare(settings("digits"), out)
    replace(out, 5, 5)
    assert load_split(out, "train", settings("digits").image).labels is None
    assert list(out.parent.iterdir()) == [out]


def test_full_disk_while_describing(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a disk that fills up at the very last file."""

    def full(*args: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    refused(r"out: cannot be written \(No space left .*free some", settings("digits"), out)
    assert list(out.parent.iterdir()) == []


def test_data_root_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a message without the place that was looked at, and a folder made for nothing."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    expected = rf"^{MINE}\.root: 'imags' does not exist \(looked for {tmp_path}/imags\)"
    refused(expected, settings("folder", Path("imags")), tmp_path / "data" / "out")
    assert list(tmp_path.iterdir()) == []

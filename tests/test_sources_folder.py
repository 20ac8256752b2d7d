"""sources.folder: labels, splits and order of a user's images; what cannot be read; no space."""

import errno
import io
import json
import os
import shutil
import tracemalloc
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from limits import disk_of
from PIL import Image

from scorevae.config import DataConfig, ImageConfig
from scorevae.data.arrays import SplitName, class_names, load_split
from scorevae.data.sources import folder
from scorevae.data.sources.prepare import prepare
from scorevae.data.sources.writer import SPLITS, ArrayWriter
from scorevae.errors import UserError

GREY = ImageConfig(channels=1, size=8)
PETS = [f"{pet}/{i:02}.png" for pet in ("dog", "cat", "owl") for i in range(10)]


def settings(root: Path | None, **overrides: object) -> DataConfig:
    """The source ``folder``; a quarter of the images is held out."""
    return DataConfig(
        **{
            "source": "folder",
            "root": None if root is None else str(root),
            "image": GREY,
            "test_fraction": 0.25,
            "split_seed": 0,
        }
        | overrides
    )


def numbered(number: int, size: int = 8) -> bytes:
    """A grey PNG that carries its number in its first two pixels."""
    pixels = np.full((size, size), 200, dtype=np.uint8)
    pixels[0, :2] = divmod(number, 256)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def grow(root: Path, names: list[str], size: int = 8) -> Path:
    """A tree of numbered images: the first name is number 0."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(numbered(number, size))
    return root


class Part(NamedTuple):
    """Numbers of the images of a split, and their labels."""

    numbers: list[int]
    labels: list[int] | None


def read(out: Path) -> dict[SplitName, Part]:
    """The two splits of a prepared folder."""
    parts: dict[SplitName, Part] = {}
    for name in SPLITS:
        images, labels = load_split(out, name, GREY)
        numbers = (images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 1, 0]).tolist()
        parts[name] = Part(numbers, None if labels is None else labels.tolist())
    return parts


def prepared(root: Path, out: Path, **overrides: object) -> dict[SplitName, Part]:
    """Prepare a tree of numbered images and read the result."""
    prepare(settings(root, **overrides), out)
    return read(out)


def meta(out: Path) -> dict[str, object]:
    return json.loads((out / "meta.json").read_text())


def listing(out: Path) -> dict[str, bytes]:
    """Everything below a folder."""
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


# Labels and splits


def test_class_folders(tmp_path: Path) -> None:
    """Catches labels parted from their images, and numbers that do not follow the names."""
    parts = prepared(grow(tmp_path / "pets", PETS), tmp_path / "out")
    assert meta(tmp_path / "out")["classes"] == ["cat", "dog", "owl"]
    for part in parts.values():
        expected = [["cat", "dog", "owl"].index(PETS[n].split("/")[0]) for n in part.numbers]
        assert part.labels == expected
    numbers = parts["train"].numbers + parts["test"].numbers
    assert sorted(numbers) == list(range(30))
    assert len(parts["test"].numbers) == 8  # round(0.25 · 30)


@pytest.mark.parametrize(
    "names",
    [
        [f"{i}.png" for i in range(8)],
        [f"only/{i}.png" for i in range(8)],
        ["loose.png", *(f"cat/{i}.png" for i in range(4)), *(f"dog/{i}.png" for i in range(4))],
        [f"{split}/{i}.png" for split in ("train", "test") for i in range(4)],
        [f"{split}/only/{i}.png" for split in ("train", "test") for i in range(4)],
    ],
    ids=["flat", "one folder", "loose file", "split", "split, one folder"],
)
def test_no_classes(tmp_path: Path, names: list[str]) -> None:
    """Catches labels made up where the folders do not give every image one."""
    parts = prepared(grow(tmp_path / "images", names), tmp_path / "out")
    assert [part.labels for part in parts.values()] == [None, None]
    assert not list((tmp_path / "out").glob("*labels*"))
    assert meta(tmp_path / "out")["classes"] == []


@pytest.mark.parametrize("prefix", ["shared", "a/b/c"])
@pytest.mark.parametrize("names", [PETS, [f"train/{n}" for n in PETS] + ["test/cat/9.png"]])
def test_shared_folders_are_ignored(tmp_path: Path, prefix: str, names: list[str]) -> None:
    """Catches one class for all, and a given split that is drawn anew, one folder deeper."""
    direct = prepared(grow(tmp_path / "direct", names), tmp_path / "out")
    deeper = prepared(grow(tmp_path / "deeper" / prefix, names), tmp_path / "out2")
    assert prepared(tmp_path / "deeper", tmp_path / "out2") == direct == deeper
    assert direct["train"].labels is not None


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("train", "val"),
        ("Train", "TEST"),
        ("train", "valid"),
        ("train", "validation"),
    ],
)
def test_given_split_is_kept(tmp_path: Path, train: str, test: str) -> None:
    """Catches test images trained on, in a set that comes split."""
    names = [f"{train}/{n}" for n in PETS] + [f"{test}/dog/{i}.png" for i in range(5)]
    parts = prepared(grow(tmp_path / "set", names), tmp_path / "out")
    assert sorted(parts["train"].numbers) == list(range(30))
    assert sorted(parts["test"].numbers) == list(range(30, 35))
    assert parts["test"].labels == [1] * 5  # a class of the whole set: cat, dog, owl
    assert meta(tmp_path / "out")["images"] == {"train": 30, "test": 5}


def test_archives_named_like_a_split(tmp_path: Path) -> None:
    """Catches train.zip and test.zip mixed and split anew: test images would be trained on."""
    grow(tmp_path / "tree", [f"{part}/{n}" for part in ("train", "test") for n in PETS])
    (tmp_path / "set").mkdir()
    for part in ("train", "test"):
        shutil.make_archive(str(tmp_path / "set" / part), "zip", tmp_path / "tree" / part)
    parts = prepared(tmp_path / "set", tmp_path / "out")
    assert sorted(parts["train"].numbers) == list(range(30))
    assert sorted(parts["test"].numbers) == list(range(30, 60))
    assert meta(tmp_path / "out")["classes"] == ["cat", "dog", "owl"]


def test_test_goes_before_validation(tmp_path: Path) -> None:
    """Catches the validation images held out, or trained on, where there are test images."""
    names = [f"{part}/{i}.png" for part in ("train", "val", "test") for i in range(4)]
    parts = prepared(grow(tmp_path / "set", names), tmp_path / "out")
    assert sorted(parts["train"].numbers) == [0, 1, 2, 3]
    assert sorted(parts["test"].numbers) == [8, 9, 10, 11]


@pytest.mark.parametrize("classes", [["bus", "train"], ["essay", "test"]])
def test_classes_named_like_a_split(tmp_path: Path, classes: list[str]) -> None:
    """Catches a class 'train' (a vehicle) without a 'test' taken for the training set."""
    names = [f"{name}/{i}.png" for name in classes for i in range(8)]
    parts = prepared(grow(tmp_path / "set", names), tmp_path / "out")
    assert meta(tmp_path / "out")["classes"] == classes
    assert sorted(parts["train"].numbers + parts["test"].numbers) == list(range(16))


@pytest.mark.parametrize(("fraction", "count"), [(0.1, 3), (0.25, 8), (0.5, 15), (0.97, 29)])
def test_fraction(tmp_path: Path, fraction: float, count: int) -> None:
    """Catches images lost or in both splits, and a share of the wrong one."""
    root = grow(tmp_path / "pets", PETS)
    parts = prepared(root, tmp_path / "out", test_fraction=fraction)
    assert len(parts["test"].numbers) == count
    assert sorted(parts["train"].numbers + parts["test"].numbers) == list(range(30))


def test_split_follows_from_its_seed(tmp_path: Path) -> None:
    """Catches a split or an order that varies by itself, or that the seed does not reach."""
    root = grow(tmp_path / "pets", PETS)
    first = prepared(root, tmp_path / "first")
    prepared(root, tmp_path / "again")
    assert listing(tmp_path / "first") == listing(tmp_path / "again")
    other = prepared(root, tmp_path / "other", split_seed=1)
    assert set(first["test"].numbers) != set(other["test"].numbers)


def test_order_is_random_and_follows_from_the_seed(tmp_path: Path) -> None:
    """Catches a split in the order of its classes, whose beginning is no fair sample."""
    names = [f"{part}/{n}" for part in ("train", "test") for n in PETS]
    root = grow(tmp_path / "set", names)
    first = prepared(root, tmp_path / "first")
    assert first["train"].numbers != sorted(first["train"].numbers)
    for part in first.values():
        assert set(part.labels[:10]) == {0, 1, 2}  # misses a class by chance: 1 in 50
    assert prepared(root, tmp_path / "again") == first
    other = prepared(root, tmp_path / "other", split_seed=1)
    assert other["train"].numbers != first["train"].numbers
    assert other["test"].numbers != first["test"].numbers


def test_file_system_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a split that differs between machines, or between a folder and its archive."""
    root = grow(tmp_path / "pets", PETS)
    expected = prepared(root, tmp_path / "out")
    for kind in ("zip", "gztar"):
        archive = shutil.make_archive(str(tmp_path / "packed"), kind, root)
        assert prepared(Path(archive), tmp_path / "out") == expected
    files = list(folder.image_files(root, tmp_path))
    monkeypatch.setattr(folder, "image_files", lambda *_: iter(files[::-1]))
    assert prepared(root, tmp_path / "out") == expected


@pytest.mark.parametrize("channels", [1, 3])
def test_colours(tmp_path: Path, channels: int) -> None:
    """Catches images of the other kind refused, or stored with the wrong number of channels."""
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[..., 0] = 255
    (tmp_path / "set").mkdir()
    for i in range(4):
        Image.fromarray(pixels).save(tmp_path / "set" / f"{i}.png")
    image = ImageConfig(channels=channels, size=4)
    prepare(settings(tmp_path / "set", image=image), tmp_path / "out")
    images = load_split(tmp_path / "out", "train", image).images
    expected = [76] if channels == 1 else [255, 0, 0]
    np.testing.assert_array_equal(images, np.broadcast_to(expected, images.shape))
    assert meta(tmp_path / "out")["shape"] == [4, 4, channels]


def test_prepared_folder(tmp_path: Path) -> None:
    """Catches a scratch file left behind, and meta.json without origin, terms or counts."""
    prepared(grow(tmp_path / "pets", PETS), tmp_path / "out")
    arrays = [f"{split}_{kind}.npy" for split in SPLITS for kind in ("images", "labels")]
    assert sorted(listing(tmp_path / "out")) == sorted(["meta.json", *arrays])
    found = meta(tmp_path / "out")
    assert found["source"] == "image files under pets"
    assert found["licence"] == "the user's"
    assert found["skipped"] == 0
    assert sorted(found["sha256"]) == sorted(arrays)


# What cannot be read


def test_class_of_any_name(tmp_path: Path) -> None:
    """Catches a description lost to the name of a folder that is not UTF-8, or another name."""
    cafe = os.fsdecode(b"caf\xe9")
    names = [f"{name}/{i}.png" for name in ("$", cafe) for i in range(4)]
    prepared(grow(tmp_path / "mine", names), tmp_path / "out")
    assert class_names(tmp_path / "out") == {0: "$", 1: cafe}


def test_one_in_a_hundred_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches one bad file that stops everything, or is left out without a word."""
    root = grow(tmp_path / "set", [f"{i:03}.png" for i in range(100)])
    (root / "041.png").write_bytes(numbered(41)[:60])
    parts = prepared(root, tmp_path / "out")
    assert sorted(parts["train"].numbers + parts["test"].numbers) == [
        n for n in range(100) if n != 41
    ]
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith(f"warning: {root / '041.png'}: cannot be decoded (")
    assert first.endswith("; skipped")
    assert last == f"warning: {root}: 1 images skipped"
    assert meta(tmp_path / "out")["skipped"] == 1


def test_more_than_one_in_a_hundred(tmp_path: Path) -> None:
    """Catches a set that shrinks without being noticed."""
    root = grow(tmp_path / "set", [f"{i:03}.png" for i in range(199)])
    for bad in ("041.png", "042.png"):
        (root / bad).write_bytes(b"")
    with pytest.raises(UserError, match=r"set: 2 of 199 images .* 1% .*041\.png: cannot be"):
        prepared(root, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]
    (root / "200.png").write_bytes(numbered(200))  # 2 of 200
    prepared(root, tmp_path / "out")


def test_warnings_do_not_flood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a line for each of thousands of files."""
    monkeypatch.setattr(folder, "MAX_BAD_SHARE", 0.5)
    root = grow(tmp_path / "set", [f"{i}.png" for i in range(20)])
    for i in range(15):
        (root / f"bad{i}.png").write_bytes(b"")
    prepared(root, tmp_path / "out")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[-1].endswith(": 15 images skipped")


@pytest.mark.parametrize("names", [[], ["notes.txt", ".hidden.png"]])
def test_no_images(tmp_path: Path, names: list[str]) -> None:
    """Catches an empty data set."""
    (tmp_path / "set").mkdir()
    grow(tmp_path / "set", names)
    with pytest.raises(UserError, match=r"set: no image in it \(files ending in .*\.png.*root"):
        prepared(tmp_path / "set", tmp_path / "out")


def test_small_images(tmp_path: Path) -> None:
    """Catches enlarged images, and a message without the file or the sizes."""
    root = grow(tmp_path / "set", [f"{i}.png" for i in range(4)], size=7)
    expected = r"4 of 4 images .*0\.png: 7×7 pixels, at least 8 .* smaller data\.image\.size"
    with pytest.raises(UserError, match=expected):
        prepared(root, tmp_path / "out")


def test_no_root(tmp_path: Path) -> None:
    """Catches the current folder read where none is named."""
    with pytest.raises(UserError, match=r"^presets\.mine\.data\.root: null, .*folder"):
        prepare(settings(None), tmp_path / "out", key="presets.mine.data")


@pytest.mark.parametrize(("count", "fraction"), [(1, 0.5), (4, 0.1), (4, 0.9)])
def test_empty_split(tmp_path: Path, count: int, fraction: float) -> None:
    """Catches a split without images, which fails much later."""
    root = grow(tmp_path / "set", [f"{i}.png" for i in range(count)])
    with pytest.raises(UserError, match=rf"data\.test_fraction: {fraction} of {count} images"):
        prepared(root, tmp_path / "out", test_fraction=fraction)


def test_truncated_archive(tmp_path: Path) -> None:
    """Catches a broken download prepared as if it were whole, or ending in a traceback."""
    root = grow(tmp_path / "pets", PETS)
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "gztar", root))
    archive.write_bytes(archive.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"packed\.tar\.gz: damaged or incomplete"):
        prepared(archive, tmp_path / "out")


def test_damaged_member_counts(tmp_path: Path) -> None:
    """Catches an image of a zip whose checksum is wrong lost, or taken as it is."""
    picture = b"P5 8 8 255\n" + bytes(64)  # a format without a checksum of its own
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("0.ppm", picture + bytes(200_000))  # what is read is whole, the end lost
        for i in range(1, 100):
            archive.writestr(f"{i}.ppm", picture)
    data = bytearray((tmp_path / "set.zip").read_bytes())
    data[data.index(b"P5 8 8 255\n") + 20] = 1
    (tmp_path / "set.zip").write_bytes(data)
    prepare(settings(tmp_path / "set.zip"), tmp_path / "out")
    assert meta(tmp_path / "out")["skipped"] == 1
    assert sum(meta(tmp_path / "out")["images"].values()) == 99


# Memory and disk


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
def test_full_disk_is_no_damage(tmp_path: Path, kind: str) -> None:
    """Catches an archive called damaged because there is no space to unpack it."""
    root = grow(tmp_path / "large", ["1.bmp"])
    (root / "1.bmp").write_bytes(np.random.default_rng(0).bytes(100_000))
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), kind, root))
    with disk_of(50_000), pytest.raises(UserError, match=r"out: cannot be written .*free some"):
        prepare(settings(archive), tmp_path / "data" / "out")
    assert list((tmp_path / "data").iterdir()) == []


def test_archive_leaves_nothing_behind(tmp_path: Path) -> None:
    """Catches unpacked files in the prepared data set."""
    root = grow(tmp_path / "pets", PETS)
    prepared(root, tmp_path / "direct")
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", root))
    prepared(archive, tmp_path / "out")
    assert sorted(listing(tmp_path / "out")) == sorted(listing(tmp_path / "direct"))


def test_memory_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a set held as a whole, where memory ends before the disk; and chunks left out."""
    monkeypatch.setattr(folder, "CHUNK", 8)
    image = ImageConfig(channels=1, size=64)
    peaks = []
    for count in (10, 60, 240):  # the first run loads the decoders
        root = grow(tmp_path / str(count), [f"{i}.png" for i in range(count)], size=64)
        tracemalloc.start()
        prepare(settings(root, image=image), tmp_path / "out")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert sum(meta(tmp_path / "out")["images"].values()) == count
    assert peaks[2] - peaks[1] < 0.2 * 180 * 64 * 64


@pytest.mark.parametrize("size", [1_000, 20_000])  # closing fails; writing fails
@pytest.mark.parametrize("former", [True, False])
def test_full_disk(tmp_path: Path, size: int, former: bool) -> None:
    """Catches a traceback, half a data set or scratch files, also where only closing fails."""
    before = {}
    if former:
        prepared(grow(tmp_path / "pets", PETS), tmp_path / "data" / "out")
        before = listing(tmp_path / "data" / "out")
    root = grow(tmp_path / "large", [f"{i}.png" for i in range(10)], size=64)
    image = ImageConfig(channels=1, size=64)
    with (
        disk_of(size),
        pytest.raises(UserError, match=r"data/out: cannot be written \(.*free some space"),
    ):
        prepare(settings(root, image=image), tmp_path / "data" / "out")
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["out"] * former
    assert listing(tmp_path / "data" / "out") == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_has_several_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Catches a quota, which is another error number, and a cause that is not given."""

    def append(self: ArrayWriter, rows: np.ndarray) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(ArrayWriter, "append", append)
    expected = rf"out: cannot be written \({os.strerror(number)}\); free some space"
    with pytest.raises(UserError, match=expected):
        prepared(grow(tmp_path / "pets", PETS), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pets"]


def test_other_failures_are_not_called_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches the advice to free some space where that is not the cause."""

    def append(self: ArrayWriter, rows: np.ndarray) -> None:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(ArrayWriter, "append", append)
    with pytest.raises(OSError, match="I/O error"):
        prepared(grow(tmp_path / "pets", PETS), tmp_path / "out")


def test_failure_leaves_the_former_folder(tmp_path: Path) -> None:
    """Catches a data set lost because its successor could not be read."""
    root = grow(tmp_path / "pets", PETS)
    prepared(root, tmp_path / "out")
    before = listing(tmp_path / "out")
    for name in PETS[25:]:
        (root / name).write_bytes(b"")
    with pytest.raises(UserError, match="5 of 30 images"):
        prepared(root, tmp_path / "out")
    assert listing(tmp_path / "out") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "pets"]

"""sources.folder: labels, splits and order of a user's images; what cannot be read; no space."""

import os
import shutil
import tracemalloc
import zipfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from limits import disk_of
from pictures import GREY, encoded, listing, meta, noise, settings

from scorevae.config import ImageConfig
from scorevae.data.arrays import SplitName, class_names, load_split
from scorevae.data.sources import folder
from scorevae.data.sources.prepare import prepare
from scorevae.data.sources.writer import SPLITS
from scorevae.errors import UserError

PETS = [f"{pet}/{i:02}.png" for pet in ("dog", "cat", "owl") for i in range(10)]
CLASSES = ["cat", "dog", "owl"]
LARGE = ImageConfig(channels=1, size=64)


def numbered(number: int, size: int = 8) -> bytes:
    """A grey PNG that carries its number in its first two pixels."""
    pixels = np.full((size, size), 200, dtype=np.uint8)
    pixels[0, :2] = divmod(number, 256)
    return encoded(pixels)


def grow(root: Path, names: list[str], size: int = 8) -> Path:
    """A tree of numbered images: the first name is number 0."""
    root.mkdir(parents=True)
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(numbered(number, size))
    return root


class Part(NamedTuple):
    """Numbers of the images of a split, and their labels."""

    numbers: list[int]
    labels: list[int] | None


def prepared(root: Path, out: Path, **changes: object) -> dict[SplitName, Part]:
    """Prepare a tree of numbered images and read the result; a quarter of them is held out."""
    prepare(settings("folder", root, **{"test_fraction": 0.25} | changes), out)
    parts: dict[SplitName, Part] = {}
    for name in SPLITS:
        images, labels = load_split(out, name, GREY)
        numbers = (images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 1, 0]).tolist()
        parts[name] = Part(numbers, None if labels is None else labels.tolist())
    return parts


def held(parts: dict[SplitName, Part]) -> tuple[list[int], list[int]]:
    """The sorted numbers in the two splits."""
    return sorted(parts["train"].numbers), sorted(parts["test"].numbers)


def each(*folders: str, count: int = 4) -> list[str]:
    """So many names in each folder."""
    return [f"{folder}/{i}.png" for folder in folders for i in range(count)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The user's folder, to grow a tree in."""
    return tmp_path / "set"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where the prepared data set goes."""
    return tmp_path / "data" / "out"


# Labels and splits


def test_prepared_folder(root: Path, out: Path) -> None:
    """Catches labels parted from their images, scratch files, and a lack in meta.json."""
    parts = prepared(grow(root, PETS), out)
    for part in parts.values():
        assert part.labels == [CLASSES.index(PETS[n].split("/")[0]) for n in part.numbers]
    arrays = {f"{split}_{kind}.npy" for split in SPLITS for kind in ("images", "labels")}
    assert set(listing(out)) == arrays | {"meta.json"}
    found = meta(out)
    assert set(found.pop("sha256")) == arrays
    assert found == {
        "source": "image files under set", "licence": "the user's", "shape": [8, 8, 1],
        "images": {"train": 22, "test": 8}, "classes": CLASSES, "skipped": 0, "split": "drawn",
        "images_by_class": {"train": [7, 9, 6], "test": [3, 1, 4]},
        "left_out": {}, "repeated": 0, "ignored": {},
    }  # fmt: skip


NO_CLASSES = {
    "flat": each(".", count=8),
    "one folder": each("only", count=8),
    "loose file": ["loose.png", *each("cat", "dog")],
    "split": each("train", "test"),
    "split, one folder": each("train/only", "test/only"),
}


@pytest.mark.parametrize("names", NO_CLASSES.values(), ids=NO_CLASSES)
def test_no_classes(root: Path, out: Path, names: list[str]) -> None:
    """Catches labels made up where the folders do not give every image one."""
    parts = prepared(grow(root, names), out)
    assert [part.labels for part in parts.values()] == [None, None]
    assert not list(out.glob("*labels*"))
    assert meta(out)["classes"] == []


@pytest.mark.parametrize("prefix", ["shared", "a/b/c"])
@pytest.mark.parametrize("names", [PETS, [f"train/{n}" for n in PETS] + ["test/cat/9.png"]])
def test_shared_folders_are_ignored(
    tmp_path: Path, out: Path, prefix: str, names: list[str]
) -> None:
    """Catches one class for all, and a given split that is drawn anew, one folder deeper."""
    direct = prepared(grow(tmp_path / "direct", names), out)
    deeper = prepared(grow(tmp_path / "deeper" / prefix, names), out)
    assert prepared(tmp_path / "deeper", out) == direct == deeper
    assert direct["train"].labels is not None


@pytest.mark.parametrize("parts", [
    "train test", "train val", "Train TEST", "train valid", "train validation", "train test val",
])  # fmt: skip
def test_given_split_is_kept(root: Path, out: Path, parts: str) -> None:
    """Catches test images trained on, in a set that comes split; validation goes after test."""
    train, test, *unused = parts.split()
    names = [f"{train}/{n}" for n in PETS] + each(f"{test}/dog", *(f"{n}/dog" for n in unused))
    found = prepared(grow(root, names), out)
    assert held(found) == (list(range(30)), list(range(30, 34)))
    assert found["test"].labels == [1] * 4  # a class of the whole set: cat, dog, owl
    assert meta(out)["images"] == {"train": 30, "test": 4}


def test_archives_named_like_a_split(tmp_path: Path, root: Path, out: Path) -> None:
    """Catches train.zip and test.zip mixed and split anew: test images would be trained on."""
    grow(tmp_path / "tree", [f"{part}/{n}" for part in SPLITS for n in PETS])
    for part in SPLITS:
        shutil.make_archive(str(root / part), "zip", tmp_path / "tree" / part)
    assert held(prepared(root, out)) == (list(range(30)), list(range(30, 60)))
    assert meta(out)["classes"] == CLASSES


@pytest.mark.parametrize(("fraction", "count"), [(0.1, 3), (0.25, 8), (0.5, 15), (0.97, 29)])
def test_fraction(root: Path, out: Path, fraction: float, count: int) -> None:
    """Catches images lost or in both splits, and a share of the wrong one."""
    train, test = held(prepared(grow(root, PETS), out, test_fraction=fraction))
    assert len(test) == count
    assert sorted(train + test) == list(range(30))


@pytest.mark.parametrize("given", [False, True])
def test_split_and_order_follow_from_the_seed(tmp_path: Path, root: Path, given: bool) -> None:
    """Catches a split or order that the seed does not reach, or not alone, or that of classes."""
    grow(root, [f"{part}/{n}" for part in SPLITS for n in PETS] if given else PETS)
    first = prepared(root, tmp_path / "first")
    prepared(root, tmp_path / "again")
    assert listing(tmp_path / "first") == listing(tmp_path / "again")
    other = prepared(root, tmp_path / "other", split_seed=1)
    assert (held(other) == held(first)) is given
    for split, part in first.items():
        assert part.numbers != sorted(part.numbers)
        assert part.numbers != other[split].numbers
        if given:
            assert set(part.labels[:10]) == {0, 1, 2}  # misses a class by chance: 1 in 50


def test_file_system_does_not_matter(
    tmp_path: Path, root: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a split that differs between machines or in an archive, and unpacked files left."""
    expected = prepared(grow(root, PETS), out)
    files = sorted(listing(out))
    for kind in ("zip", "gztar"):
        archive = shutil.make_archive(str(tmp_path / "packed"), kind, root)
        assert prepared(Path(archive), out) == expected
        assert sorted(listing(out)) == files
    images = list(folder.image_files(root, tmp_path, Counter()))
    monkeypatch.setattr(folder, "image_files", lambda *_: iter(images[::-1]))
    assert prepared(root, out) == expected


def test_class_of_any_name(root: Path, out: Path) -> None:
    """Catches a description lost to the name of a folder that is not UTF-8, or another name."""
    cafe = os.fsdecode(b"caf\xe9")
    prepared(grow(root, each("$", cafe)), out)
    assert class_names(out) == {0: "$", 1: cafe}


# What cannot be read


def test_one_in_a_hundred_is_skipped(
    root: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches one bad file that stops everything, or is left out without a word."""
    bad = grow(root, [f"{i:03}.png" for i in range(100)]) / "041.png"
    bad.write_bytes(numbered(41)[:60])
    train, test = held(prepared(root, out))
    assert sorted(train + test) == [n for n in range(100) if n != 41]
    first, last, _ = capsys.readouterr().err.splitlines()
    assert first.startswith(f"warning: {bad}: cannot be decoded (")
    assert first.endswith("; skipped")
    assert last == f"warning: {root}: 1 images skipped"
    assert meta(out)["skipped"] == 1


def test_more_than_one_in_a_hundred(root: Path, out: Path) -> None:
    """Catches a set that shrinks without being noticed."""
    grow(root, [f"{i:03}.png" for i in range(199)])
    for bad in ("041.png", "042.png"):
        (root / bad).write_bytes(b"")
    with pytest.raises(UserError, match=r"set: 2 of 199 images .* 1% .*041\.png: cannot be"):
        prepared(root, out)
    assert list(out.parent.iterdir()) == []
    (root / "200.png").write_bytes(numbered(200))  # 2 of 200
    prepared(root, out)


def test_warnings_do_not_flood(
    root: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a line for each of thousands of files."""
    monkeypatch.setattr(folder, "MAX_BAD_SHARE", 0.5)
    grow(root, each(".", count=20))
    for i in range(15):
        (root / f"bad{i}.png").write_bytes(b"")
    prepared(root, out)
    *lines, _ = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[-1].endswith(": 15 images skipped")


def test_no_root(out: Path) -> None:
    """Catches the current folder read where none is named."""
    with pytest.raises(UserError, match=r"^presets\.mine\.data\.root: null, .*folder"):
        prepare(settings("folder"), out, key="presets.mine.data")


NO_IMAGE = r"set: no image in it \(files ending in .*\.png.*root"
SMALL = r"4 of 4 images .*0\.png: 7×7 pixels, at least 8 .* smaller data\.image\.size"


@pytest.mark.parametrize(("names", "size", "fraction", "expected"), [
    ([], 8, 0.25, NO_IMAGE),
    (["notes.txt", ".hidden.png"], 8, 0.25, NO_IMAGE),
    (each("."), 7, 0.25, SMALL),
    (each(".", count=1), 8, 0.5, r"data\.test_fraction: 0\.5 of 1 images"),
    (each("."), 8, 0.1, r"data\.test_fraction: 0\.1 of 4 images"),
    (each("."), 8, 0.9, r"data\.test_fraction: 0\.9 of 4 images"),
])  # fmt: skip
def test_useless_folder(
    root: Path, out: Path, names: list[str], size: int, fraction: float, expected: str
) -> None:
    """Catches an empty data set or split, enlarged images, and messages without file or sizes."""
    grow(root, names, size)
    with pytest.raises(UserError, match=expected):
        prepared(root, out, test_fraction=fraction)


def test_damaged_member_counts(tmp_path: Path, out: Path) -> None:
    """Catches an image of a zip whose checksum is wrong lost, or taken as it is."""
    path = tmp_path / "set.zip"
    picture = b"P5 8 8 255\n" + bytes(63)  # a format without a checksum of its own
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0.ppm", picture + bytes(200_000))  # what is read is whole, the end lost
        for i in range(1, 100):
            archive.writestr(f"{i}.ppm", picture + bytes([i]))
    path.write_bytes(path.read_bytes().replace(picture, picture[:-1] + b"\1", 1))
    prepare(settings("folder", path), out)
    assert meta(out)["skipped"] == 1
    assert sum(meta(out)["images"].values()) == 99


# Memory and disk


@pytest.mark.parametrize("kind", ["zip", "tar", "gztar"])
def test_full_disk_is_no_damage(tmp_path: Path, root: Path, out: Path, kind: str) -> None:
    """Catches an archive called damaged because there is no space to unpack it."""
    (grow(root, []) / "1.bmp").write_bytes(noise(100_000).tobytes())
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), kind, root))
    with disk_of(50_000), pytest.raises(UserError, match=r"out: cannot be written .*free some"):
        prepare(settings("folder", archive), out)
    assert list(out.parent.iterdir()) == []


def test_memory_does_not_grow(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a set held as a whole, where memory ends before the disk; and chunks left out."""
    monkeypatch.setattr(folder, "CHUNK", 8)
    peaks = []
    for count in (10, 60, 240):  # the first run loads the decoders
        root = grow(tmp_path / str(count), each(".", count=count), size=64)
        tracemalloc.start()
        prepare(settings("folder", root, image=LARGE), out)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert sum(meta(out)["images"].values()) == count
    assert peaks[2] - peaks[1] < 0.2 * 180 * 64 * 64


@pytest.mark.parametrize("size", [1_000, 20_000])  # closing fails; writing fails
@pytest.mark.parametrize("former", [True, False])
def test_full_disk(tmp_path: Path, root: Path, out: Path, size: int, former: bool) -> None:
    """Catches a traceback, half a data set or scratch files, also where only closing fails."""
    if former:
        prepared(grow(tmp_path / "pets", PETS), out)
    before = listing(out)
    data = settings("folder", grow(root, each(".", count=10), size=64), image=LARGE)
    expected = r"data/out: cannot be written \(.*free some space"
    with disk_of(size), pytest.raises(UserError, match=expected):
        prepare(data, out)
    assert list(out.parent.iterdir()) == [out] * former
    assert listing(out) == before

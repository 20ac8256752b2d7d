"""What a user's tree is understood as: splits, classes, repeats, and what is said of it."""

import os
import shutil
import tarfile
from pathlib import Path

import pytest
from pictures import meta, settings
from PIL import Image
from test_sources_folder import PETS, each, grow, held, prepared

from scorevae.data.sources.prepare import prepare
from scorevae.data.sources.splits import ROLES
from scorevae.errors import UserError

PAIR = each("train/cat", "train/dog", "test/cat", "test/dog")  # numbers 0 to 7, 8 to 15
HELD_OUT = [name for role in ("test", "validation") for name in ROLES[role]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The user's folder, to grow a tree in."""
    return tmp_path / "set"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where the prepared data set goes."""
    return tmp_path / "data" / "out"


def refused(root: Path, out: Path, **changes: object) -> str:
    """The message with which a tree is refused."""
    with pytest.raises(UserError) as error:
        prepared(root, out, **changes)
    assert not out.exists()
    return error.value.message


# Splits


def test_split_and_order_of_published_runs(root: Path, out: Path) -> None:
    """Catches another draw, or another order, of the same names and seed: other numbers."""
    found = prepared(grow(root, PETS), out)
    assert found["test"].numbers == [21, 28, 22, 6, 15, 23, 18, 10]
    assert found["train"].numbers[:8] == [8, 13, 2, 1, 25, 11, 27, 9]


@pytest.mark.parametrize("held_out", HELD_OUT)
@pytest.mark.parametrize("train", ROLES["train"])
@pytest.mark.parametrize("change", [str, str.title])
def test_usual_names_are_splits(
    root: Path, out: Path, train: str, held_out: str, change: type[str]
) -> None:
    """Catches given splits taken for classes and drawn anew: test images would be trained on."""
    names = [change(name) for name in (train, held_out)]
    grow(root, each(*(f"{name}/{pet}" for name in names for pet in ("cat", "dog"))))
    assert held(prepared(root, out)) == (list(range(8)), list(range(8, 16)))
    assert (meta(out)["classes"], meta(out)["split"]) == (["cat", "dog"], "given")


BESIDE = ["unlabeled/0.png", "val/0.png", "val/mouse/0.png", "extra/a/b/0.png", "dev/cat/0.png"]


@pytest.mark.parametrize("other", BESIDE)
def test_what_stands_beside_the_splits_is_left_out(
    tmp_path: Path, root: Path, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches all labels lost to one folder without classes, and a class of no image (STL-10)."""
    expected = prepared(grow(tmp_path / "alone", PAIR), tmp_path / "expected")
    assert prepared(grow(root, [*PAIR, other]), tmp_path / "data") == expected
    assert expected["train"].labels is not None
    assert meta(tmp_path / "data")["classes"] == ["cat", "dog"]
    folder = other.split("/")[0]
    assert meta(tmp_path / "data")["left_out"] == {folder: 1}
    assert f"left out, beside the splits: 1 in '{folder}'" in capsys.readouterr().err


def test_splits_below_the_classes(tmp_path: Path, root: Path) -> None:
    """Catches the official split of cat/train and cat/test drawn anew."""
    turned = ["/".join((*name.split("/")[1::-1], name.split("/")[2])) for name in PAIR]
    assert turned[0] == "cat/train/0.png"
    expected = prepared(grow(tmp_path / "usual", PAIR), tmp_path / "expected")
    for part in expected.values():
        part.numbers.sort()  # the order is that of other names
    found = prepared(grow(root, turned), tmp_path / "data")
    assert held(found) == held(expected)
    assert meta(tmp_path / "data")["images_by_class"] == {"train": [4, 4], "test": [4, 4]}


# Names of a tree, why it can be read in two ways, and the number of images in each split with
# `folders`, or why that does not help; PAIR's numbers come first.
AMBIGUOUS = {
    "stray": ([*PAIR, "a.png"], r"1 images \(a\.png\) stand beside 'test', 'train'", (8, 8)),
    "one class called train": (each("train", "bus"), "no folder for testing", "'bus', 'train'"),
    "one class called test": (each("essay", "test"), "no folder for training", "'essay', 'test'"),
    "stray beside train": (["train/0.png", "train/1.png", "a.png"], "for testing", "'train'; n"),
    "two for validation": (each("train", "val", "validation"), "'val', 'validation' mean", (4, 8)),
    "two for training": (each("train", "training", "test"), "'train', 'training' mean", (8, 4)),
    "two cases": (each("train", "Train", "test"), "'Train', 'train' mean", (8, 4)),
    "years": (each("train2017", "val2017"), "'train2017', 'val2017' look like splits", (4, 4)),
    "sets": (each("trainset", "test-images"), "'test-images', 'trainset' look like", (4, 4)),
    "one level down": (
        [*(f"set/{name}" for name in PAIR), "a.png"],
        r"'test', 'train' stand in 'set', .*name that folder in data\.root",
        "no folders for training",
    ),
}


@pytest.mark.parametrize(("names", "reason", "folders"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_can_be_read_in_two_ways(
    tmp_path: Path,
    root: Path,
    out: Path,
    names: list[str],
    reason: str,
    folders: tuple[int, int] | str,
) -> None:
    """Catches a guess; each of the two settings that the message names must decide it."""
    grow(root, names)
    with pytest.raises(UserError, match=f"^mine\\.split: auto, but .*{reason}.*random"):
        prepare(settings("folder", root), out, key="mine")
    message = refused(root, out)
    train, test = held(prepared(root, tmp_path / "random", split="random"))
    assert sorted(train + test) == list(range(len(names)))
    assert meta(tmp_path / "random")["split"] == "drawn"
    assert ("(folders)" in message) == isinstance(folders, tuple)
    if isinstance(folders, tuple):
        train, test = held(prepared(root, out, split="folders"))
        assert (len(train), len(test)) == folders
        assert meta(out)["split"] == "given"
    else:
        assert folders in refused(root, out, split="folders")


def test_folders_that_are_asked_for(root: Path, out: Path) -> None:
    """Catches a split that is drawn although folders are asked for, and a remedy left unsaid."""
    message = refused(grow(root, PETS), out, split="folders")
    assert "among 'cat', 'dog', 'owl'; name them train and test, or choose auto" in message


def test_random_split_of_given_folders(root: Path, out: Path) -> None:
    """Catches classes called train and test that cannot be had."""
    parts = prepared(grow(root, each("train", "test", count=8)), out, split="random")
    assert meta(out)["classes"] == ["test", "train"]
    assert len(parts["test"].numbers) == 4


# Repeated images


def test_no_image_stands_in_both_drawn_splits(
    root: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches one picture by two links, saved anew, or with other metadata, trained and tested."""
    grow(root, each(".", count=20))
    for i in range(20):
        os.link(root / f"{i}.png", root / f"link{i}.png")
        with Image.open(root / f"{i}.png") as picture:
            picture.save(root / f"again{i}.bmp")
    train, test = held(prepared(root, out))
    assert sorted(train + test) == list(range(20))
    assert meta(out)["repeated"] == 40
    said = capsys.readouterr().err
    assert "left out: 40 with the pixels of others ('again0.bmp' those of '0.png')" in said


@pytest.mark.parametrize("kind", ["zip", "tar", "folder"])
def test_no_test_image_is_trained_on(tmp_path: Path, out: Path, kind: str) -> None:
    """Catches one picture in train and in test of a folder or archive; the test keeps its own."""
    root = grow(tmp_path / "tree", PAIR)
    shutil.copy(root / "test/cat/0.png", root / "train/dog/9.png")
    shutil.copy(root / "train/dog/0.png", root / "train/dog/8.png")  # in one split: may stay
    if kind != "folder":
        root = Path(shutil.make_archive(str(tmp_path / "set"), kind, root))
    assert held(prepared(root, out)) == ([*range(5), 4, *range(5, 8)], list(range(8, 16)))
    assert meta(out)["repeated"] == 1


def test_too_few_without_repeats(root: Path, out: Path) -> None:
    """Catches a message that counts one image where the folder has thirty."""
    grow(root, ["0.png"])
    for i in range(1, 30):
        shutil.copy(root / "0.png", root / f"{i}.png")
    assert "0.25 of 1 images (29 more have the same pixels as" in refused(root, out)


@pytest.mark.parametrize("given", [False, True])
def test_one_image_in_two_classes_is_said(
    root: Path, out: Path, given: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches labels that contradict each other without a word."""
    grow(root, PAIR if given else PETS)
    first, second = ("train/cat", "test/dog") if given else ("cat", "owl")
    shutil.copy(root / first / ("0.png" if given else "00.png"), root / second / "x.png")
    prepared(root, out)
    said = capsys.readouterr().err
    assert "the same pixels in two classes, 1 times (" in said
    assert f"{second}/x.png'" in said


# What is said


def test_what_was_understood_is_said(
    root: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches counts that are wrong or missing, where nobody would look before the training."""
    grow(root, [*PAIR, "unlabeled/0.png", "train/cat/9.png"])
    (root / "notes.txt").touch()
    (root / "README").touch()
    prepared(root, out)
    assert capsys.readouterr().err.splitlines() == [
        f"{root}: 9 images to train, 8 to test, as the folders say; "
        "2 classes: 'cat' 5 + 4, 'dog' 4 + 4",
        "left out, beside the splits: 1 in 'unlabeled'",
        "ignored, no pictures: 1 (no ending), 1 .txt files",
    ]
    found = meta(out)
    assert found["images_by_class"] == {"train": [5, 4], "test": [4, 4]}
    assert found["ignored"] == {"(no ending)": 1, ".txt": 1}


def test_many_classes_take_one_line(
    root: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a thousand names, and a rare class that nobody sees."""
    names = [f"{split}/c{i:02}/{k}.png" for split in ("train", "test") for i in range(40)
             for k in range(1 if i == 7 else 3 if i == 9 else 2)]  # fmt: skip
    prepared(grow(root, names), out)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("; 40 classes, the smallest 'c07' 1 + 1, the largest 'c09' 3 + 3")


def test_stray_picture_that_costs_the_classes_is_named(
    root: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches classes of thousands lost to one picture without a word."""
    prepared(grow(root, [*PETS, "dog.png"]), out)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"warning: {root}: no classes, since 1 lie in no folder of one ('dog.png')"


@pytest.mark.parametrize("kind", ["zip", "tar", "folder"])
def test_pictures_that_are_not_read_are_counted(
    tmp_path: Path, out: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a telephone's hundred photographs ignored beside eight drawings."""
    root = grow(tmp_path / "set", each(".", count=8))
    for i in range(100):
        (root / f"IMG_{i}.HEIC").write_bytes(b"ftypheic")
    (root / "raw.NEF").touch()
    (root / "old.zip").touch()
    if kind != "folder":
        root = Path(shutil.make_archive(str(tmp_path / "packed"), kind, root))
    prepared(root, out)
    warning = f"warning: {root}: 100 .heic, 1 .nef files are not read; convert them to PNG or JPEG"
    assert warning in capsys.readouterr().err.splitlines()
    assert meta(out)["ignored"] == {".heic": 100, ".nef": 1, ".zip": 1}


def test_folder_of_nothing_that_is_read(root: Path, out: Path) -> None:
    """Catches an empty folder reported where it is full of photographs."""
    grow(root, [])
    for name in ("a.heic", "b.heic", "c.rar"):
        (root / name).touch()
    assert ", but 2 .heic, 1 .rar files; name another folder in data.root, or conv" in refused(
        root, out
    )


def test_symbolic_links_in_a_tar_are_counted(tmp_path: Path, out: Path) -> None:
    """Catches images that a tar holds as links alone, lost without a word."""
    root = grow(tmp_path / "set", each(".", count=8))
    (root / "link.png").symlink_to("0.png")
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(root, "set")
    prepared(path, out)
    assert meta(out)["ignored"] == {"(symbolic link)": 1}


def test_names_of_any_bytes_are_said(
    root: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a summary that a folder's name which is not UTF-8 ends."""
    prepared(grow(root, each("$", os.fsdecode(b"caf\xe9"))), out)
    capsys.readouterr().err.encode()

"""sources: links, unreadable folders, other layouts and rarer files that were once lost."""

import errno
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scorevae.config import DataConfig, ImageConfig
from scorevae.data.sources import celeba
from scorevae.data.sources.digits import read_digits
from scorevae.data.sources.official import find
from scorevae.data.sources.pixels import BadImage, decode
from scorevae.data.sources.trees import image_files
from scorevae.data.sources.writer import DatasetWriter
from scorevae.errors import UserError

GREY, COLOUR = ImageConfig(channels=1, size=8), ImageConfig(channels=3, size=8)
LEVELS = np.array([0, 1, 100, 127, 128, 200, 254, 255], dtype=np.uint8)


def settings(**changes: Any) -> DataConfig:
    """The embedded digits, or what the changes make of them."""
    plain = {"source": "digits", "root": None, "image": GREY, "test_fraction": 0.2}
    return DataConfig(**plain | {"split_seed": 0} | changes)


def contents(root: Path) -> dict[str, bytes]:
    """Names and contents, each read while it may be."""
    with TemporaryDirectory() as scratch:
        return {file.name: file.read() for file in image_files(root, Path(scratch))}


# Archives


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", link: str = "") -> None:
    """A file, or a hard link to an earlier one."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    if link:
        member.type, member.linkname = tarfile.LNKTYPE, link
    archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("packed", ["", "gz", "xz"])
def test_hard_links_are_images(tmp_path: Path, packed: str) -> None:
    """Catches an image of two names that counts once, and members after it read from its place."""
    path = tmp_path / f"set.tar{packed and '.'}{packed}"
    with tarfile.open(path, f"w:{packed}") as archive:
        add(archive, "./a/1.png", b"1" * 700)
        add(archive, "./store/2", b"2" * 900)
        add(archive, "./b/1.png", link="./a/1.png")
        add(archive, "./b/2.png", link="./store/2")
        add(archive, "./b/again.png", link="./b/2.png")
        add(archive, "./b/3.png", b"3" * 600)
    assert contents(path) == {
        "a/1.png": b"1" * 700,
        "b/1.png": b"1" * 700,
        "b/2.png": b"2" * 900,
        "b/again.png": b"2" * 900,
        "b/3.png": b"3" * 600,
    }


def test_hard_link_to_nothing(tmp_path: Path) -> None:
    """Catches tarfile's KeyError, or an image left out, where a link's target is not there.

    What is no image may miss.
    """
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w") as archive:
        add(archive, "notes.txt", link="gone.txt")
    assert contents(path) == {}
    with tarfile.open(path, "a") as archive:
        add(archive, "1.png", link="gone.png")
    with pytest.raises(UserError, match=r"set\.tar: damaged .*'gone\.png' not found"):
        contents(path)


def test_hard_link_to_the_outside(tmp_path: Path) -> None:
    """Catches a file of this machine among the images because an archive names it."""
    (tmp_path / "secret.png").write_bytes(b"secret")
    for number, target in enumerate(("../../secret.png", str(tmp_path / "secret.png"))):
        path = tmp_path / f"{number}.tar"
        with tarfile.open(path, "w") as archive:
            add(archive, "1.png", link=target)
        with pytest.raises(UserError, match=rf"{number}\.tar: damaged .*"):
            contents(path)


# Folders


def test_find_follows_links(tmp_path: Path) -> None:
    """Catches official files on another disk, linked in, that are not found; and a loop."""
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "disk" / "deep" / "a.gz").write_bytes(b"")
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "loop").symlink_to(root)
    assert find(root, "a.gz") == root / "linked" / "deep" / "a.gz"
    assert find(root, "deep") == root / "linked" / "deep"
    (root / "broken.gz").symlink_to(tmp_path / "nowhere")
    assert find(root, "broken.gz") is None
    assert find(root, "*.gz") is None


def test_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches the images of a folder that may not be read left out without a word."""
    for name in ("open", "closed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"1")
    scandir = os.scandir

    def denied(path: str | Path | int) -> Iterator[os.DirEntry]:
        if Path(str(path)).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    for read in (contents, lambda root: find(root, "no")):
        with pytest.raises(UserError, match=r"closed: .*Permission denied.*; .*readable"):
            read(tmp_path)


# CelebA


@pytest.mark.parametrize("outer", ["mine", "img_align_celeba"])
def test_nested_celeba(tmp_path: Path, outer: str) -> None:
    """Catches Kaggle's layout, a folder in a folder of the same name, taken for incomplete."""
    nested = tmp_path / outer / "img_align_celeba" / "img_align_celeba"
    nested.mkdir(parents=True)
    (nested / "000001.jpg").write_bytes(b"face")
    for root in (tmp_path / outer, nested.parent, nested):
        with celeba._images(root, {}) as read:
            assert read("000001.jpg") == b"face"


# Digits


def digits(folder: Path, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of each digit in the two splits."""
    folder.mkdir()
    read_digits(settings(test_fraction=fraction), None, DatasetWriter(folder, GREY, "digits"))
    train, test = (
        np.bincount(np.load(folder / f"{split}_labels.npy"), minlength=10)
        for split in ("train", "test")
    )
    return train, test


@pytest.mark.parametrize("fraction", [0.0001, 0.005, 0.9945, 0.9999])
def test_digits_of_too_few(tmp_path: Path, fraction: float) -> None:
    """Catches scikit-learn's ValueError where a split cannot hold every digit."""
    expected = rf"digits\.test_fraction: got {fraction}; .*from 0\.006 to 0\.994"
    with pytest.raises(UserError, match=expected):
        digits(tmp_path / "out", fraction)


@pytest.mark.parametrize("fraction", [0.006, 0.994])
def test_digits_of_few(tmp_path: Path, fraction: float) -> None:
    """Catches a bound that the message names and that does not hold: a digit without an image."""
    assert min(part.min() for part in digits(tmp_path / "out", fraction)) > 0


# Pictures


def pgm(kind: str, levels: np.ndarray, largest: int) -> bytes:
    """A portable grey map of 8×8 pixels, binary (P5) or in digits (P2)."""
    rows = np.tile(levels, (8, 1))
    text = " ".join(map(str, rows.ravel())).encode()
    return f"{kind} 8 8 {largest}\n".encode() + (
        rows.astype(">u2").tobytes() if kind == "P5" else text
    )


@pytest.mark.parametrize("image", [GREY, COLOUR])
@pytest.mark.parametrize("kind", ["P5", "P2"])
def test_sixteen_bits_of_grey_maps(kind: str, image: ImageConfig) -> None:
    """Catches a 16-bit PGM refused as one of 32 bits, or scaled otherwise than a 16-bit PNG."""
    file = io.BytesIO()
    Image.fromarray(np.tile(LEVELS.astype(np.uint16) * 257, (8, 1))).save(file, "PNG")
    found = decode(pgm(kind, LEVELS.astype(int) * 257, 65535), image)
    np.testing.assert_array_equal(found, decode(file.getvalue(), image))
    np.testing.assert_array_equal(found, np.broadcast_to(LEVELS[None, :, None], found.shape))


def test_grey_maps_of_other_ranges() -> None:
    """Catches the range that a PGM states ignored: 10 bits of a camera shown nearly black."""
    found = decode(pgm("P5", np.linspace(0, 1023, 8).round().astype(int), 1023), GREY)
    np.testing.assert_allclose(found[0, :, 0], np.linspace(0, 255, 8), atol=1)


def test_floating_grey_maps_are_refused() -> None:
    """Catches a PFM, whose range nobody states, let through with the 16-bit kind of its family."""
    with pytest.raises(BadImage, match="8 bits"):
        decode(b"Pf 8 8 -1.0\n" + np.ones((8, 8), "<f4").tobytes(), GREY)


@pytest.mark.parametrize("data", [b"", b"not an image"])
def test_reason_is_readable(data: bytes) -> None:
    """Catches the address of a Python object in a message to the user."""
    with pytest.raises(BadImage) as caught:
        decode(data, GREY)
    assert str(caught.value) == "cannot be decoded (cannot identify its format)"

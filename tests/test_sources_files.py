"""sources: one picture, trees and archives of them, growing arrays, official files."""

import errno
import io
import os
import re
import shutil
import struct
import tarfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import URLError

import numpy as np
import pytest
from gdown.exceptions import FileURLRetrievalError
from pictures import COLOUR, GREY, encoded, noise
from PIL import Image

from scorevae.config import ImageConfig
from scorevae.data.sources import trees
from scorevae.data.sources.official import find
from scorevae.data.sources.pixels import BadImage, decode
from scorevae.data.sources.trees import image_files
from scorevae.data.sources.writer import DatasetWriter
from scorevae.errors import UserError
from scorevae.runtime.published import downloads_folder, fetch

ORIENTATION = 0x0112  # EXIF's tag
PICTURES = {f"{folder}/{i}.png": f"{folder}{i}".encode() * 50 for folder in "ab" for i in range(3)}
KINDS = ("zip", "tar", "tar.gz", "tgz", "tar.bz2", "tar.xz")
LEVELS = np.array([0, 1, 100, 127, 128, 200, 254, 255])
SIXTEEN = np.tile(LEVELS * 257, (8, 1))  # the same in 16 bits, one in each column


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores for an upright square picture (EXIF 2.3, table of tag 0x0112)."""
    return {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]


def png(width: int, height: int) -> bytes:
    """A PNG whose header claims a size and which holds next to no pixels."""
    data = bytearray(encoded(noise(8, 8, 3)))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def pgm(kind: str, rows: np.ndarray, largest: int) -> bytes:
    """A portable grey map of 8×8 pixels of 16 bits, binary (P5) or in digits (P2)."""
    digits = " ".join(map(str, rows.ravel())).encode()
    pixels = rows.astype(">u2").tobytes() if kind == "P5" else digits
    return f"{kind} 8 8 {largest}\n".encode() + pixels


def write(path: Path, files: dict[str, bytes | str]) -> Path:
    """Files as a folder or as the archive of that ending; in a tar, a string is a hard link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(zipfile.ZipInfo(name), data)
    elif path.name.endswith(KINDS):
        packed = {"tgz": "gz"}.get(path.suffix[1:], path.suffix[1:])
        with tarfile.open(path, "w" if packed == "tar" else f"w:{packed}") as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                if isinstance(data, str):
                    member.type, member.linkname, data = tarfile.LNKTYPE, data, b""
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


def overwrite(path: Path, offset: int, data: bytes) -> None:
    """Damage a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def contents(root: Path) -> list[tuple[str, bytes]]:
    """Names and contents, each read while it may be; nothing of what was unpacked remains."""
    with TemporaryDirectory() as scratch:
        found = [(file.name, file.read()) for file in image_files(root, Path(scratch), Counter())]
        assert os.listdir(scratch) == []
    return found


def refused(expected: str, path: Path) -> None:
    with pytest.raises(UserError, match=expected):
        contents(path)


# One picture


@pytest.mark.parametrize(("pixels", "image", "expected"), [
    (noise(8, 8), GREY, noise(8, 8)[..., None]),
    (noise(8, 8, 3), COLOUR, noise(8, 8, 3)),
    (noise(8, 8), COLOUR, noise(8, 8)[..., None].repeat(3, 2)),
    (noise(8, 20), GREY, noise(8, 20)[:, 6:14, None]),
    (noise(20, 8), GREY, noise(20, 8)[6:14, :, None]),
], ids=["grey", "colour", "grey to colour", "wide", "high"])  # fmt: skip
def test_pixels_are_kept(pixels: np.ndarray, image: ImageConfig, expected: np.ndarray) -> None:
    """Catches resampling, swapped axes or channels, one of three, and a corner for the centre."""
    np.testing.assert_array_equal(decode(encoded(pixels), image), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [("PNG", {}, 0), ("TIFF", {}, 0), ("WEBP", {"lossless": True}, 0), ("JPEG", {}, 1)],
)
def test_picture_is_turned_upright(
    kind: str, options: dict[str, bool], tolerance: int, orientation: int
) -> None:
    """Catches EXIF orientation left out, of some formats alone, or turned the wrong way."""
    upright = np.kron([[0, 80], [160, 255]], np.ones((8, 8))).astype(np.uint8)  # JPEG's blocks
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(stored(upright, orientation), kind, exif=exif, **options)
    found = decode(data, ImageConfig(channels=1, size=16))[..., 0]
    np.testing.assert_allclose(found.astype(int), upright, rtol=0, atol=tolerance)


def transparent(mode: str) -> bytes:
    """Black of three opacities (none, half, full) in columns 0, 1 and 2."""
    black = np.zeros((8, 8), dtype=np.uint8)
    opacity = np.tile(np.array([0, 128] + [255] * 6, dtype=np.uint8), (8, 1))
    if mode == "palette":
        picture = Image.fromarray(np.tile(np.arange(8, dtype=np.uint8), (8, 1))).convert("P")
        picture.putpalette([0, 0, 0] * 8)
        return encoded(picture, transparency=opacity[0].tobytes())
    return encoded(np.dstack([black] * (len(mode) - 1) + [opacity]))


@pytest.mark.parametrize("image", [GREY, COLOUR])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "palette"])
def test_transparency_shows_white(mode: str, image: ImageConfig) -> None:
    """Catches hidden colours that show, black behind transparency, and half opacity rounded."""
    found = decode(transparent(mode), image)
    expected = np.array([255, 127, 0, 0, 0, 0, 0, 0])[None, :, None]
    np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "PNG"), ("RGB", "PNG"), ("P", "PNG"), ("P", "GIF")]
)
def test_transparent_colour_shows_white(mode: str, kind: str) -> None:
    """Catches the one colour that a file declares transparent, in pictures without opacity."""
    grey = np.full((8, 8), 200, dtype=np.uint8)
    grey[:, :4] = 0
    picture = Image.fromarray(grey).convert(mode)
    found = decode(encoded(picture, kind, transparency=picture.getpixel((0, 0))), COLOUR)
    assert (found[:, :4] == 255).all()
    assert (found[:, 4:] == 200).all()


DEEP = {  # and how far the levels may be off
    "PNG": (encoded(SIXTEEN.astype("<u2"), "PNG"), 0),
    "TIFF": (encoded(SIXTEEN.astype("<u2"), "TIFF"), 0),
    "big-endian TIFF": (encoded(SIXTEEN.astype(">u2"), "TIFF"), 0),
    "PGM": (pgm("P5", SIXTEEN, 65535), 0),
    "PGM in digits": (pgm("P2", SIXTEEN, 65535), 0),
    "PGM of a camera's 10 bits": (pgm("P5", SIXTEEN * 1023 // 65535, 1023), 1),
}


@pytest.mark.parametrize("image", [GREY, COLOUR])
@pytest.mark.parametrize(("data", "tolerance"), DEEP.values(), ids=DEEP)
def test_sixteen_bits_become_eight(data: bytes, tolerance: int, image: ImageConfig) -> None:
    """Catches deep grey refused, clipped, cut to a byte, or in another order of bytes or range."""
    off = decode(data, image) - LEVELS[None, :, None]
    assert np.abs(off).max() <= tolerance


@pytest.mark.parametrize(("kind", "tolerance"), [("TIFF", 0), ("JPEG", 3)])
def test_printing_colours(kind: str, tolerance: int) -> None:
    """Catches CMYK refused, inverted, or taken for RGB and opacity."""
    ink = np.zeros((16, 16, 4), dtype=np.uint8)
    ink[:8, :, 1:3] = 255  # magenta and yellow are red; no ink is white
    found = decode(encoded(Image.fromarray(ink, "CMYK"), kind), ImageConfig(channels=3, size=16))
    expected = np.full((16, 16, 3), 255)
    expected[:8, :, 1:] = 0
    assert np.abs(found - expected).max() <= tolerance


def test_colour_to_grey() -> None:
    """Catches the plain mean of the channels, or one of them: weights are ITU-R 601's."""
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    for channel in range(3):
        pixels[:, channel, channel] = 255
    np.testing.assert_allclose(decode(encoded(pixels), GREY)[0, :4, 0], [76, 150, 29, 0], atol=1)


def test_crop_of_a_given_side() -> None:
    """Catches CelebA's crop in another place (rows 39 to 178, columns 19 to 158) or left out."""
    pixels = noise(218, 178, 3)
    square = pixels[39:179, 19:159]
    whole = decode(encoded(pixels), ImageConfig(channels=3, size=140), crop=140)
    np.testing.assert_array_equal(whole, square)
    small = decode(encoded(pixels), ImageConfig(channels=3, size=64), crop=140)
    expected = Image.fromarray(square).resize((64, 64), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(small, np.asarray(expected))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_shrinking_is_antialiased(factor: int) -> None:
    """Catches pixels picked instead of averaged: a fine checkerboard would be black or white."""
    board = (np.indices((8 * factor, 8 * factor)).sum(0) % 2 * 255).astype(np.uint8)
    inside = decode(encoded(board), GREY)[1:-1, 1:-1].astype(int)
    assert np.abs(inside - 127.5).max() < 2


@pytest.mark.parametrize(("shape", "size", "crop", "reason"), [
    ((20, 7), 8, None, "7×20 pixels, at least 8 "),
    ((7, 20), 8, None, "20×7 pixels, at least 8 "),
    ((139, 200), 64, 140, "200×139 pixels, at least 140 "),
    ((218, 178), 150, 140, "150"),  # the square of 140, not the picture, is too small
])  # fmt: skip
def test_pictures_are_not_enlarged(
    shape: tuple[int, int], size: int, crop: int | None, reason: str
) -> None:
    """Catches invented pixels, and a reason that does not say what is too small for what."""
    with pytest.raises(BadImage, match=reason):
        decode(encoded(noise(*shape)), ImageConfig(channels=1, size=size), crop=crop)


UNKNOWN = r"^cannot be decoded \(cannot identify its format\)$"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
USELESS = {
    "empty": (b"", UNKNOWN),
    "text": (b"not an image", UNKNOWN),
    "PNG alone": (b"\x89PNG\r\n\x1a\n", "cannot be decoded"),
    "JPEG alone": (b"\xff\xd8\xff\xe0", "cannot be decoded"),
    "EPS, for Ghostscript": (EPS, UNKNOWN),
    "PCX, little used": (encoded(noise(8, 8), "PCX"), UNKNOWN),
    "int32": (encoded(np.full((8, 8), 1000, dtype=np.int32), "TIFF"), "8 bits"),
    "float32": (encoded(np.full((8, 8), 1000, dtype=np.float32), "TIFF"), "8 bits"),
    "PFM": (b"Pf 8 8 -1.0\n" + np.ones((8, 8), "<f4").tobytes(), "8 bits"),
}
for _kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF"):
    _data = encoded(noise(64, 64), _kind)
    USELESS[f"half a {_kind}"] = (_data[: len(_data) // 2], "cannot be decoded")


@pytest.mark.parametrize(("data", "reason"), USELESS.values(), ids=USELESS)
def test_useless_picture(data: bytes, reason: str) -> None:
    """Catches a decoder's exception, another program, a grey lower half, and a range clipped."""
    with pytest.raises(BadImage, match=reason):
        decode(data, GREY)


@pytest.mark.parametrize("side", [60_000, 10_000])
def test_gigantic_claim(side: int) -> None:
    """Catches memory asked for before the size is looked at (10,000² passes Pillow's limit)."""
    started = time.perf_counter()
    with pytest.raises(BadImage, match="exceeds limit|10000×10000 pixels, over"):
        decode(png(side, side), GREY)
    assert time.perf_counter() - started < 1


# Trees and archives

HIDDEN = (".a.png", ".git/a.png", "b/._a.png", "__MACOSX/._a.png", "__MACOSX/a/0.png")
OTHER = ("a.png.part", "a.txt", "a/notes.txt")


@pytest.mark.parametrize("kind", ["folder", *KINDS])
def test_archive_is_read_like_its_folder(tmp_path: Path, kind: str) -> None:
    """Catches lost, cut or exchanged members, and hidden or other files taken for images.

    And a folder or an upper-case ending that is missed, and names that only look like a way out.
    """
    images = PICTURES | {"C.JPEG": b"C", "a..b/1.png": b"dots", "2024-05-01 12:30.png": b"time"}
    others = dict.fromkeys(HIDDEN + OTHER, b"no")
    path = write(tmp_path / f"set.{kind}", others | images)
    assert sorted(contents(path)) == sorted(images.items())


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_of_windows_lie_in_folders(tmp_path: Path, kind: str) -> None:
    """Catches classes and splits that are lost where a backslash stands between folders."""
    members = {"train\\cat\\0.png": b"0", "test\\cat\\0.png": b"1"}
    path = write(tmp_path / f"set.{kind}", members)
    assert dict(contents(path)) == {
        name.replace("\\", "/"): data for name, data in members.items()
    }


COMMON = ("jpg", "JPG", "jpeg", "png", "gif", "bmp", "webp", "tif", "tiff", "ppm", "pgm", "jp2")


@pytest.mark.parametrize("name", [*COMMON, "avif"])
def test_common_formats(tmp_path: Path, name: str) -> None:
    """Catches a format that is looked for and not decoded, or the other way round."""
    grey = Image.fromarray(np.full((16, 16), 100, dtype=np.uint8))
    try:
        grey.save(tmp_path / f"a.{name}")
    except (KeyError, OSError) as error:
        pytest.skip(f"this Pillow does not write {name}: {error}")
    ((_, data),) = contents(tmp_path)
    assert np.abs(decode(data, GREY).astype(int) - 100).max() <= 2


def test_order_of_a_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches the order of the file system, which differs between machines."""
    root = write(tmp_path / "tree", PICTURES | {"z.png": b"z", "a/b/c.png": b"c"})
    walk = os.walk

    def backwards(*args: object, **options: object) -> Iterator[tuple[str, list, list]]:
        for folder, subfolders, names in walk(*args, **options):
            subfolders.sort(reverse=True)
            names.sort(reverse=True)
            yield folder, subfolders, names

    monkeypatch.setattr(os, "walk", backwards)
    expected = ["z.png", *sorted(n for n in PICTURES if n[0] == "a"), "a/b/c.png"]
    expected += sorted(n for n in PICTURES if n[0] == "b")
    assert [name for name, _ in contents(root)] == expected


def test_links_are_followed_once(tmp_path: Path) -> None:
    """Catches a loop of links that multiplies the images, and linked folders left out."""
    root = write(tmp_path / "tree", {"a/1.png": b"1"})
    (root / "a" / "loop").symlink_to(root)
    (root / "linked").symlink_to(write(tmp_path / "elsewhere", {"2.png": b"2"}))
    assert contents(root) == [("a/1.png", b"1"), ("linked/2.png", b"2")]


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches the system's exception instead of one skipped image, and any size in memory."""
    monkeypatch.setattr(trees, "MAX_FILE_BYTES", 100)
    root = write(tmp_path / "tree", {"fits.png": bytes(100), "large.png": bytes(101)})
    (root / "gone.png").symlink_to(tmp_path / "nowhere")
    fits, gone, large = image_files(root, tmp_path, Counter())
    assert fits.read() == bytes(100)
    with pytest.raises(BadImage, match="No such file"):
        gone.read()
    with pytest.raises(BadImage, match="larger than 100 bytes"):
        large.read()


def test_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches the images of a folder that may not be read left out without a word."""
    write(tmp_path, {"open/1.png": b"1", "closed/1.png": b"1"})
    scandir = os.scandir

    def denied(path: str | Path | int) -> Iterator[os.DirEntry]:
        if Path(str(path)).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    for read in (contents, lambda root: find(root, "no")):
        with pytest.raises(UserError, match=r"closed: .*Permission denied.*; .*readable"):
            read(tmp_path)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archive_made_from_the_folder_itself(tmp_path: Path, kind: str) -> None:
    """Catches names that begin with ./, and the entry of a folder that is taken for an image."""
    root = write(tmp_path / "tree", PICTURES | {"album.png/1.png": b"1"})
    archive = Path(shutil.make_archive(str(tmp_path / "set"), kind, root))
    assert contents(archive) == contents(root)
    assert dict(contents(root)) == PICTURES | {"album.png/1.png": b"1"}


def test_archive_is_what_its_name_says(tmp_path: Path) -> None:
    """Catches a tar taken for the zip that is its last member, and the other members lost."""
    inner = write(tmp_path / "masks.zip", {"mask.png": b"mask"}).read_bytes()
    path = write(tmp_path / "set.tar", PICTURES | {"masks.zip": inner})
    assert dict(contents(path)) == PICTURES


def test_archives_count_where_there_is_no_image(tmp_path: Path) -> None:
    """Catches an archive beside its unpacked content that counts twice, and one never read."""
    root = tmp_path / "tree"
    write(root / "deep" / "set.zip", {"a.png": b"zip"})
    write(root / "set.tar.gz", {"a.png": b"tar"})
    assert sorted(data for _, data in contents(root)) == [b"tar", b"zip"]
    assert all(name.startswith(("deep/set", "set")) for name, _ in contents(root))
    write(root, {"deep/a.png": b"file"})
    assert contents(root) == [("deep/a.png", b"file")]


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz"])
def test_hard_links_are_images(tmp_path: Path, kind: str) -> None:
    """Catches an image of two names that counts once, and members after it read from its place."""
    one, two, three = b"1" * 700, b"2" * 900, b"3" * 600
    files = {
        "./a/1.png": one, "./store/2": two, "./b/1.png": "./a/1.png", "./b/2.png": "./store/2",
        "./b/again.png": "./b/2.png", "./b/3.png": three,
    }  # fmt: skip
    expected = {"a/1.png": one, "b/1.png": one, "b/2.png": two, "b/again.png": two}
    assert dict(contents(write(tmp_path / f"set.{kind}", files))) == expected | {"b/3.png": three}


@pytest.mark.parametrize(("target", "reason"), [
    ("gone.png", r"'gone\.png' not found"),
    ("../../secret.png", "outside"),
    ("{}/secret.png", "absolute path"),
])  # fmt: skip
def test_hard_link_to_nothing(tmp_path: Path, target: str, reason: str) -> None:
    """Catches tarfile's KeyError, an image left out, and a file of this machine taken for one.

    What is no image may miss.
    """
    (tmp_path / "secret.png").write_bytes(b"secret")
    files = {"notes.txt": target.format(tmp_path)}
    assert contents(write(tmp_path / "set.tar", files)) == []
    write(tmp_path / "set.tar", files | {"1.png": target.format(tmp_path)})
    refused(rf"set\.tar: damaged .*{reason}", tmp_path / "set.tar")


OUTSIDE = ["../evil.png", "a/../../evil.png", "/tmp/evil.png", "../evil.txt"]
OUTSIDE += ["..\\evil.png", "\\evil.png", "C:\\evil.png", "c:/evil.png"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_members_stay_inside(tmp_path: Path, kind: str, name: str) -> None:
    """Catches an archive that names a path outside of itself, read or unpacked all the same."""
    path = write(tmp_path / "sub" / f"set.{kind}", {"a.png": b"a", name: b"evil"})
    refused(rf"set\.{kind}: .*{re.escape(repr(name))}.* outside", path)
    assert [p.name for p in tmp_path.rglob("*")] == ["sub", f"set.{kind}"]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_large_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Catches a bomb: kilobytes of archive that unpack to gigabytes."""
    monkeypatch.setattr(trees, "MAX_FILE_BYTES", 100)
    fits = write(tmp_path / f"fits.{kind}", {"a.png": bytes(100), "large.txt": bytes(101)})
    assert contents(fits) == [("a.png", bytes(100))]
    path = write(tmp_path / f"bomb.{kind}", {"a.png": bytes(101)})
    refused(rf"bomb\.{kind}: .*'a\.png' unpacks to 101 bytes.* 100", path)


def patch(path: Path, offset: int, value: bytes) -> None:
    """Overwrite a field of the one member in a zip, in both of its headers.

    The offset counts from the local header; the central one has two more bytes before.
    """
    content = path.read_bytes()
    overwrite(path, content.index(b"PK\x03\x04") + offset, value)
    overwrite(path, content.index(b"PK\x01\x02") + offset + 2, value)


def test_member_larger_than_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a bomb whose header understates what it unpacks to."""
    monkeypatch.setattr(trees, "MAX_FILE_BYTES", 100)
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(10**6))
    patch(path, 22, struct.pack("<I", 50))  # uncompressed size
    assert contents(path) == [("a.png", b"")]


@pytest.mark.parametrize("method", ["STORED", "DEFLATED", "BZIP2", "LZMA"])
def test_damaged_member(tmp_path: Path, method: str) -> None:
    """Catches a decompressor's exception where one image is damaged and the next is whole."""
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", getattr(zipfile, f"ZIP_{method}")) as archive:
        archive.writestr("a.png", noise(5000).tobytes())
        archive.writestr("b.png", b"whole")
    overwrite(path, 60, bytes(1000))
    assert contents(path) == [("a.png", b""), ("b.png", b"whole")]


def test_member_that_cannot_be_unpacked(tmp_path: Path) -> None:
    """Catches zipfile's NotImplementedError, or RuntimeError about a password."""
    path = write(tmp_path / "set.zip", {"a.png": b"packed"})
    patch(path, 8, struct.pack("<H", 97))  # compression method
    assert contents(path) == [("a.png", b"")]
    patch(path, 6, struct.pack("<H", 1))  # flags
    refused(r"set\.zip: 'a\.png' is encrypted", path)


def test_python_without_tarfile_s_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a traceback under Python 3.11.0 to 3.11.3, whose tarfile would write anywhere."""
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    path = write(tmp_path / "set.tar", PICTURES)
    refused(r"set\.tar: Python 3\.11\.4 or newer unpacks it", path)


Damage = Callable[[Path], None]
MEMBER = 512 + 6 * 512  # of a tar: its header, and 3000 bytes in blocks


def cut(share: float) -> Damage:
    return lambda path: os.truncate(path, int(share * path.stat().st_size))


def spoil(path: Path) -> None:
    overwrite(path, path.stat().st_size // 2, bytes(1000))


DAMAGED: dict[str, tuple[str, Damage, str]] = {
    f"{kind} cut at {share}": (kind, cut(share), "")
    for kind in KINDS
    for share in (0.0, 0.02, 0.3, 0.5, 0.9)
}
DAMAGED |= {f"{kind} damaged": (kind, spoil, "damaged or incomplete") for kind in KINDS[2:]}
DAMAGED |= {
    "tar cut between members": ("tar", lambda path: os.truncate(path, 3 * MEMBER), ""),
    "header damaged": ("tar", lambda path: overwrite(path, 2 * MEMBER, bytes(range(100))), ""),
}


@pytest.mark.parametrize(("kind", "damage", "said"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_archive(tmp_path: Path, kind: str, damage: Damage, said: str) -> None:
    """Catches a traceback, and damage taken for the end, as tarfile does in a plain tar."""
    members = {f"{i}.png": row.tobytes() for i, row in enumerate(noise(100, 3000))}
    path = write(tmp_path / f"set.{kind}", members)
    damage(path)
    refused(rf"set\.{re.escape(kind)}: {said}[^\n]*fetch", path)


@pytest.mark.parametrize("name", ["notes.txt", "picture.png", "set.zip", "set.rar"])
def test_neither_folder_nor_archive(tmp_path: Path, name: str) -> None:
    """Catches a root of another kind that ends as 'no images' or in a traceback."""
    (tmp_path / name).write_bytes(b"neither")
    refused(rf"{name}: neither a folder nor a whole archive", tmp_path / name)


# Growing arrays


@pytest.mark.parametrize("count", [0, 1, 12345])
def test_images_of_unknown_number(tmp_path: Path, count: int) -> None:
    """Catches a header that does not match the rows: numpy would misread or refuse the file."""
    rows, path = noise(count, 8, 8, 1), tmp_path / "train_images.npy"
    chunks = (rows[first : first + 1000] for first in range(0, count, 1000))
    DatasetWriter(tmp_path, GREY, "data").images("train", chunks)
    assert path.stat().st_size % 64 == rows.nbytes % 64  # aligned for memory maps
    for mode in (None, "r"):
        np.testing.assert_array_equal(np.load(path, mmap_mode=mode), rows, strict=True)


def test_rows_of_any_layout(tmp_path: Path) -> None:
    """Catches rows written in the order of memory instead of their own."""
    rows = np.asfortranarray(noise(5, 8, 8, 1))
    DatasetWriter(tmp_path, GREY, "data").images("train", [rows, rows[::-1]])
    expected = np.concatenate([rows, rows[::-1]])
    np.testing.assert_array_equal(np.load(tmp_path / "train_images.npy"), expected)


def test_images_of_a_wrong_shape(tmp_path: Path) -> None:
    """Catches an array that the later stages would refuse, or that looks whole and is not."""
    writer = DatasetWriter(tmp_path, COLOUR, "my.data")
    with pytest.raises(UserError, match=r"^my\.data: .*\(8, 8, 1\).*\(8, 8, 3\)"):
        writer.images("train", [noise(50, 8, 8, 3), noise(2, 8, 8, 1)])
    path = tmp_path / "train_images.npy"
    assert path.stat().st_size > 50 * 192
    assert len(np.load(path)) == 0


@pytest.mark.parametrize("shape", [(5000,), (5000, 3)])
def test_labels_of_both_kinds(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Catches attributes flattened, and labels of the size of the machine's integer."""
    labels = noise(*shape) % 2
    DatasetWriter(tmp_path, GREY, "test").labels("test", labels)
    found = np.load(tmp_path / "test_labels.npy")
    np.testing.assert_array_equal(found, labels.astype(np.int64), strict=True)


# Official files


def test_find(tmp_path: Path) -> None:
    """Catches files found at one depth, not through links, or another of two on each machine."""
    root = write(tmp_path / "root", {"deep/er/a": b"", "z/b": b"", "deep/b": b""})
    assert find(root, "a") == root / "deep" / "er" / "a"
    assert find(root / "z" / "b", "b") == root / "z" / "b"
    assert find(root / "z", "z") == root / "z"
    assert find(root, "b") == root / "deep" / "b"
    assert find(root, "c") is None
    assert find(root / "z" / "b", "c") is None
    disk = write(tmp_path / "disk", {"dir/a.gz": b""})
    (root / "linked").symlink_to(disk)
    (disk / "loop").symlink_to(root)
    (root / "broken.gz").symlink_to(tmp_path / "nowhere")
    assert find(root, "a.gz") == root / "linked" / "dir" / "a.gz"
    assert find(root, "dir") == root / "linked" / "dir"
    assert find(root, "broken.gz") is None
    assert find(root, "*.gz") is None


@pytest.mark.parametrize(
    "error", [URLError, TimeoutError, RuntimeError, ValueError, FileURLRetrievalError]
)
def test_failed_download(tmp_path: Path, error: type[Exception]) -> None:
    """Catches a traceback without a network, and a message that does not say what to do."""

    def download() -> None:
        assert (tmp_path / "downloads").is_dir()
        raise error("no route to host")

    expected = r"Faces: cannot be downloaded \(.*no route to host.*put faces\.zip .*my\.data\.root"
    with pytest.raises(UserError, match=expected):
        fetch("Faces", "faces.zip", download, "my.data")


def test_downloads_survive_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches downloads inside the stage's output, or in the copy that an experiment runs in."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "repository"))
    assert downloads_folder() == tmp_path / "downloads"  # SCOREVAE_DOWNLOADS
    monkeypatch.delenv("SCOREVAE_DOWNLOADS")
    assert downloads_folder() == tmp_path / "repository" / ".downloads"

"""sources: one picture, trees and archives of them, growing arrays, official files."""

import hashlib
import io
import os
import re
import shutil
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image

from scorevae.config import ImageConfig
from scorevae.data.sources import trees
from scorevae.data.sources.official import check_md5, find, find_checked
from scorevae.data.sources.pixels import BadImage, decode
from scorevae.data.sources.trees import image_files
from scorevae.data.sources.writer import DatasetWriter, array_writer
from scorevae.errors import UserError
from scorevae.runtime.published import downloads_folder, fetch

GREY, COLOUR = ImageConfig(channels=1, size=8), ImageConfig(channels=3, size=8)
ORIENTATION = 0x0112  # EXIF's tag
PICTURES = {f"{folder}/{i}.png": f"{folder}{i}".encode() * 50 for folder in "ab" for i in range(3)}
KINDS = ("zip", "tar", "tar.gz", "tgz", "tar.bz2", "tar.xz")


def noise(*shape: int) -> np.ndarray:
    """Different pixels everywhere, the same in every run."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def encoded(picture: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """The content of an image file."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


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

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


def write(path: Path, files: dict[str, bytes]) -> Path:
    """Files by name, as a folder or as the archive that the ending of the path says."""
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
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


def contents(root: Path) -> list[tuple[str, bytes]]:
    """Names and contents, each read while it may be; nothing of what was unpacked remains."""
    with TemporaryDirectory() as scratch:
        found = [(file.name, file.read()) for file in image_files(root, Path(scratch))]
        assert os.listdir(scratch) == []
    return found


# One picture


@pytest.mark.parametrize("image", [GREY, COLOUR])
def test_pixels_are_kept(image: ImageConfig) -> None:
    """Catches resampling where none is asked for, and swapped axes or channels."""
    pixels = noise(8, 8, image.channels)
    np.testing.assert_array_equal(decode(encoded(pixels.squeeze()), image), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_picture_is_turned_upright(kind: str, orientation: int) -> None:
    """Catches EXIF orientation left out or turned the wrong way."""
    upright = noise(8, 8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(stored(upright, orientation), kind, exif=exif, **options)
    np.testing.assert_array_equal(decode(data, GREY)[..., 0], upright)


def test_photograph_is_turned_upright() -> None:
    """Catches orientation that is read from the lossless formats alone."""
    upright = np.zeros((16, 16), dtype=np.uint8)
    upright[:4, :8] = 255  # bright in the upper left
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    found = decode(encoded(stored(upright, 6), "JPEG", exif=exif), GREY)[..., 0]
    assert found[0, :4].min() > 200
    assert max(found[4:].max(), found[:, 5:].max()) < 50


def transparent(mode: str) -> tuple[Image.Image, dict[str, object]]:
    """Black of three opacities (none, half, full) in columns 0, 1 and 2, and how to save it."""
    opacity = np.zeros((8, 8), dtype=np.uint8)
    opacity[:, 1], opacity[:, 2:] = 128, 255
    black = np.zeros((8, 8), dtype=np.uint8)
    match mode:
        case "RGBA":
            return Image.fromarray(np.dstack([black, black, black, opacity])), {}
        case "LA":
            return Image.fromarray(np.dstack([black, opacity])), {}
        case "palette":
            picture = Image.fromarray(np.arange(8, dtype=np.uint8)[None].repeat(8, 0)).convert("P")
            picture.putpalette([0, 0, 0] * 8)
            return picture, {"transparency": bytes([0, 128] + [255] * 6)}
    raise AssertionError(mode)


@pytest.mark.parametrize("image", [GREY, COLOUR])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "palette"])
def test_transparency_shows_white(mode: str, image: ImageConfig) -> None:
    """Catches hidden colours that show, black behind transparency, and half opacity rounded."""
    picture, options = transparent(mode)
    expected = np.array([255, 127, 0, 0, 0, 0, 0, 0], dtype=np.uint8)[None, :, None]
    found = decode(encoded(picture, **options), image)
    np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_transparent_colour_shows_white(mode: str, kind: str) -> None:
    """Catches the one colour that a file declares transparent, in pictures without opacity."""
    grey = np.full((8, 8), 200, dtype=np.uint8)
    grey[:, :4] = 0
    picture = Image.fromarray(grey).convert(mode)
    if kind == "GIF":
        picture = Image.fromarray(grey).convert("P")
    number = picture.getpixel((0, 0))
    found = decode(encoded(picture, kind, transparency=number), COLOUR)
    assert (found[:, :4] == 255).all()
    assert (found[:, 4:] == 200).all()


@pytest.mark.parametrize("image", [GREY, COLOUR])
@pytest.mark.parametrize(("kind", "dtype"), [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2")])
def test_sixteen_bits_become_eight(kind: str, dtype: str, image: ImageConfig) -> None:
    """Catches 16-bit grey clipped at 255, cut to its low byte, or read with swapped bytes."""
    levels = np.array([0, 1, 100, 127, 128, 200, 254, 255])
    pixels = np.tile(levels * 257, (8, 1)).astype(dtype)
    found = decode(encoded(Image.fromarray(pixels), kind), image)
    np.testing.assert_array_equal(found, np.broadcast_to(levels[None, :, None], found.shape))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_unscaled_pixels_are_refused(dtype: type[np.generic]) -> None:
    """Catches 32-bit pixels, whose range nobody states, clipped into an all-white picture."""
    with pytest.raises(BadImage, match="8 bits"):
        decode(encoded(np.full((8, 8), 1000, dtype=dtype), "TIFF"), GREY)


@pytest.mark.parametrize(("kind", "tolerance"), [("TIFF", 0), ("JPEG", 3)])
def test_printing_colours(kind: str, tolerance: int) -> None:
    """Catches CMYK refused, inverted, or taken for RGB and opacity."""
    ink = np.zeros((16, 16, 4), dtype=np.uint8)
    ink[:8, :, 1:3] = 255  # magenta and yellow are red; no ink is white
    found = decode(encoded(Image.fromarray(ink, "CMYK"), kind), ImageConfig(channels=3, size=16))
    expected = np.full((16, 16, 3), 255)
    expected[:8, :, 1:] = 0
    assert np.abs(found - expected).max() <= tolerance


def test_grey_to_colour() -> None:
    """Catches grey pictures refused, or put into one channel of three."""
    pixels = noise(8, 8)
    np.testing.assert_array_equal(decode(encoded(pixels), COLOUR), pixels[..., None].repeat(3, 2))


def test_colour_to_grey() -> None:
    """Catches the plain mean of the channels, or one of them: weights are ITU-R 601's."""
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    for channel in range(3):
        pixels[:, channel, channel] = 255
    np.testing.assert_allclose(decode(encoded(pixels), GREY)[0, :4, 0], [76, 150, 29, 0], atol=1)


@pytest.mark.parametrize(("height", "width"), [(8, 20), (20, 8)])
def test_centre_is_cropped(height: int, width: int) -> None:
    """Catches a corner instead of the centre, a squeezed picture, and swapped sides."""
    pixels = noise(height, width)
    top, left = (height - 8) // 2, (width - 8) // 2
    expected = pixels[top : top + 8, left : left + 8, None]
    np.testing.assert_array_equal(decode(encoded(pixels), GREY), expected)


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


@pytest.mark.parametrize(
    ("shape", "size", "crop", "reason"),
    [
        ((20, 7), 8, None, "7×20 pixels, at least 8 "),
        ((7, 20), 8, None, "20×7 pixels, at least 8 "),
        ((139, 200), 64, 140, "200×139 pixels, at least 140 "),
        ((218, 178), 150, 140, "150"),  # the square of 140, not the picture, is too small
    ],
)
def test_pictures_are_not_enlarged(
    shape: tuple[int, int], size: int, crop: int | None, reason: str
) -> None:
    """Catches invented pixels, and a reason that does not say what is too small for what."""
    with pytest.raises(BadImage, match=reason):
        decode(encoded(noise(*shape)), ImageConfig(channels=1, size=size), crop=crop)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF"])
def test_truncated_picture(kind: str) -> None:
    """Catches a grey lower half, or a decoder's own exception."""
    data = encoded(noise(64, 64), kind)
    with pytest.raises(BadImage, match="cannot be decoded"):
        decode(data[: len(data) // 2], GREY)


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0"])
def test_no_picture(data: bytes) -> None:
    """Catches a decoder's own exception on bytes that are no image."""
    with pytest.raises(BadImage, match="cannot be decoded"):
        decode(data, GREY)


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (10_000, 10_000)])
def test_gigantic_claim(width: int, height: int) -> None:
    """Catches memory asked for before the size is looked at (10,000² passes Pillow's limit)."""
    started = time.perf_counter()
    with pytest.raises(BadImage, match="exceeds limit|10000×10000 pixels, over"):
        decode(png(width, height), GREY)
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n",
        encoded(noise(8, 8), "PCX"),
    ],
    ids=["EPS", "PCX"],
)
def test_other_formats_are_refused(data: bytes) -> None:
    """Catches files handed to another program (EPS to Ghostscript), or to a little used reader."""
    with pytest.raises(BadImage, match="cannot identify"):
        decode(data, GREY)


# Trees and archives


def test_tree(tmp_path: Path) -> None:
    """Catches missed folders or upper-case endings, and hidden or other files taken for images."""
    hidden = [".a.png", ".git/a.png", "b/._a.png", "__MACOSX/._a.png", "a.png.part", "a.txt"]
    write(tmp_path / "tree", PICTURES | {"C.JPEG": b"C"} | dict.fromkeys(hidden, b"no"))
    assert dict(contents(tmp_path / "tree")) == PICTURES | {"C.JPEG": b"C"}


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
    elsewhere = write(tmp_path / "elsewhere", {"2.png": b"2"})
    (root / "a" / "loop").symlink_to(root)
    (root / "linked").symlink_to(elsewhere)
    assert contents(root) == [("a/1.png", b"1"), ("linked/2.png", b"2")]


def test_unreadable_file(tmp_path: Path) -> None:
    """Catches the operating system's exception instead of one skipped image."""
    root = write(tmp_path / "tree", {"a.png": b"a"})
    (root / "gone.png").symlink_to(tmp_path / "nowhere")
    first, gone = image_files(root, tmp_path)
    assert first.read() == b"a"
    with pytest.raises(BadImage, match="No such file"):
        gone.read()


def test_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a file of any size read into memory."""
    monkeypatch.setattr(trees, "MAX_FILE_BYTES", 100)
    root = write(tmp_path / "tree", {"fits.png": bytes(100), "large.png": bytes(101)})
    fits, large = image_files(root, tmp_path)
    assert len(fits.read()) == 100
    with pytest.raises(BadImage, match="larger than 100 bytes"):
        large.read()


@pytest.mark.parametrize("kind", KINDS)
def test_archive_is_read_like_its_folder(tmp_path: Path, kind: str) -> None:
    """Catches lost, cut or exchanged members, and hidden or other files taken for images."""
    other = dict.fromkeys(["__MACOSX/a/0.png", "a/._0.png", ".git/0.png", "a/notes.txt"], b"no")
    path = write(tmp_path / f"set.{kind}", other | PICTURES)
    assert dict(contents(path)) == PICTURES
    assert len(contents(path)) == len(PICTURES)


def test_archive_made_from_the_folder_itself(tmp_path: Path) -> None:
    """Catches names that begin with ./ as ``tar -C folder .`` writes them, and folder entries."""
    root = write(tmp_path / "tree", PICTURES)
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(root, ".")
    assert dict(contents(tmp_path / "set.tar")) == PICTURES


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_folder_named_like_an_image(tmp_path: Path, kind: str) -> None:
    """Catches the entry of a folder that is taken for an empty or impossible image."""
    root = write(tmp_path / "tree", {"album.png/1.png": b"1"})
    archive = shutil.make_archive(str(tmp_path / "set"), kind, root)
    for place in (root, Path(archive)):
        assert contents(place) == [("album.png/1.png", b"1")]


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


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize(
    "name",
    [
        "../evil.png",
        "a/../../evil.png",
        "/tmp/evil.png",
        "..\\evil.png",
        "\\evil.png",
        "C:\\evil.png",
        "c:/evil.png",
        "../evil.txt",
    ],
)
def test_members_stay_inside(tmp_path: Path, kind: str, name: str) -> None:
    """Catches an archive that names a path outside of itself, read or unpacked all the same."""
    path = write(tmp_path / "sub" / f"set.{kind}", {"a.png": b"a", name: b"evil"})
    with pytest.raises(UserError, match=rf"set\.{kind}: .*{re.escape(repr(name))}.* outside"):
        contents(path)
    assert [p.name for p in tmp_path.rglob("*")] == ["sub", f"set.{kind}"]


@pytest.mark.parametrize("name", ["a..b/1.png", "2024-05-01 12:30.png"])
def test_harmless_names(tmp_path: Path, name: str) -> None:
    """Catches names that only look like a way out: two dots inside, a time of day."""
    assert contents(write(tmp_path / "set.zip", {name: b"1"})) == [(name, b"1")]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_large_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Catches a bomb: kilobytes of archive that unpack to gigabytes."""
    monkeypatch.setattr(trees, "MAX_FILE_BYTES", 100)
    fits = write(tmp_path / f"fits.{kind}", {"a.png": bytes(100), "large.txt": bytes(101)})
    assert contents(fits) == [("a.png", bytes(100))]
    path = write(tmp_path / f"bomb.{kind}", {"a.png": bytes(101)})
    with pytest.raises(UserError, match=rf"bomb\.{kind}: .*'a\.png' unpacks to 101 bytes.* 100"):
        contents(path)


def patch(path: Path, offset: int, layout: str, value: int) -> None:
    """Overwrite a field of the one member in a zip, in both of its headers.

    The offset counts from the local header; the central one has two more bytes before.
    """
    data = bytearray(path.read_bytes())
    for signature, more in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        struct.pack_into(layout, data, data.index(signature) + offset + more, value)
    path.write_bytes(data)


def test_member_larger_than_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a bomb whose header understates what it unpacks to."""
    monkeypatch.setattr(trees, "MAX_FILE_BYTES", 100)
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(10**6))
    patch(path, 22, "<I", 50)  # uncompressed size
    assert contents(path) == [("a.png", b"")]


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_damaged_member(tmp_path: Path, method: int) -> None:
    """Catches a decompressor's exception where one image is damaged and the next is whole."""
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.png", noise(5000).tobytes())
        archive.writestr("b.png", b"whole")
    data = bytearray(path.read_bytes())
    data[60:1060] = bytes(1000)
    path.write_bytes(data)
    assert contents(path) == [("a.png", b""), ("b.png", b"whole")]


def test_member_of_an_unknown_method(tmp_path: Path) -> None:
    """Catches zipfile's NotImplementedError, or an image that is left out."""
    path = write(tmp_path / "set.zip", {"a.png": b"packed"})
    patch(path, 8, "<H", 97)  # compression method
    assert contents(path) == [("a.png", b"")]


def test_encrypted_archive(tmp_path: Path) -> None:
    """Catches zipfile's RuntimeError about a password."""
    path = write(tmp_path / "set.zip", {"a.png": b"secret"})
    patch(path, 6, "<H", 1)  # flags
    with pytest.raises(UserError, match=r"set\.zip: 'a\.png' is encrypted"):
        contents(path)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("kind", KINDS)
def test_truncated_archive(tmp_path: Path, kind: str, share: float) -> None:
    """Catches a download that broke off, read as if it were whole or with a traceback."""
    members = {f"{i}.png": row.tobytes() for i, row in enumerate(noise(30, 3000))}
    path = write(tmp_path / f"set.{kind}", members)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=rf"set\.{re.escape(kind)}: [^\n]*fetch"):
        contents(path)


def test_archive_cut_between_members(tmp_path: Path) -> None:
    """Catches tarfile's habit to take any end of a plain tar for the end of the set."""
    members = {f"{i}.png": bytes(3000) for i in range(6)}
    path = write(tmp_path / "set.tar", members)
    path.write_bytes(path.read_bytes()[: 3 * 3584])
    with pytest.raises(UserError, match=r"set\.tar: .*fetch"):
        contents(path)


def test_damaged_header(tmp_path: Path) -> None:
    """Catches tarfile's habit to end without a word at a damaged header."""
    members = {f"{i}.png": bytes(3000) for i in range(6)}
    path = write(tmp_path / "set.tar", members)
    data = bytearray(path.read_bytes())
    data[2 * 3584 : 2 * 3584 + 100] = bytes(range(100))  # the third member's
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"set\.tar: .*fetch"):
        contents(path)


@pytest.mark.parametrize("kind", KINDS[2:])
def test_damaged_compression(tmp_path: Path, kind: str) -> None:
    """Catches a decompressor's own exception, and images behind the place lost without a word."""
    members = {f"{i}.png": row.tobytes() for i, row in enumerate(noise(400, 3000))}
    path = write(tmp_path / f"set.{kind}", members)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 1000] = bytes(1000)
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"set\.{re.escape(kind)}: [^\n]*fetch"):
        contents(path)


@pytest.mark.parametrize("name", ["notes.txt", "picture.png", "set.zip", "set.rar"])
def test_neither_folder_nor_archive(tmp_path: Path, name: str) -> None:
    """Catches a root of another kind that ends as 'no images' or in a traceback."""
    (tmp_path / name).write_bytes(b"neither")
    with pytest.raises(UserError, match=rf"{name}: neither a folder nor a whole archive"):
        contents(tmp_path / name)


# Growing arrays


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
@pytest.mark.parametrize("count", [0, 1, 12345])
def test_array_of_unknown_length(tmp_path: Path, count: int, dtype: type[np.generic]) -> None:
    """Catches a header that does not match the rows: numpy would misread or refuse the file."""
    rows = np.arange(count * 6, dtype=dtype).reshape(count, 2, 3)
    path = tmp_path / "a.npy"
    with array_writer(path, dtype, (2, 3)) as writer:
        for first in range(0, count, 1000):
            writer.append(rows[first : first + 1000])
    assert writer.count == count
    assert path.stat().st_size % 64 == rows.nbytes % 64  # aligned for memory maps
    for mode in (None, "r"):
        found = np.load(path, mmap_mode=mode)
        np.testing.assert_array_equal(found, rows, strict=True)


def test_rows_of_any_layout(tmp_path: Path) -> None:
    """Catches rows written in the order of memory instead of their own."""
    rows = np.asfortranarray(noise(5, 2, 3))
    with array_writer(tmp_path / "a.npy", np.uint8, (2, 3)) as writer:
        writer.append(rows)
        writer.append(rows[::-1])
    expected = np.concatenate([rows, rows[::-1]])
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected)


@pytest.mark.parametrize("rows", [np.zeros((1, 2, 4), np.uint8), np.zeros((1, 2, 3), np.int64)])
def test_rows_that_do_not_belong(tmp_path: Path, rows: np.ndarray) -> None:
    """Catches bytes of another shape or type, which would shift every later row."""
    with (
        pytest.raises(AssertionError),
        array_writer(tmp_path / "a.npy", np.uint8, (2, 3)) as writer,
    ):
        writer.append(rows)


def test_unfinished_array(tmp_path: Path) -> None:
    """Catches a file that looks whole although its writer failed half way."""
    path = tmp_path / "a.npy"
    with pytest.raises(ValueError, match="stop"), array_writer(path, np.uint8, (2,)) as writer:  # noqa: PT012
        writer.append(noise(500, 2))
        raise ValueError("stop")
    assert path.stat().st_size > 1000
    assert len(np.load(path)) == 0


def test_images_of_a_wrong_shape(tmp_path: Path) -> None:
    """Catches an array that the later stages would refuse."""
    writer = DatasetWriter(tmp_path, COLOUR, "my.data")
    with pytest.raises(UserError, match=r"^my\.data: .*\(8, 8, 1\).*\(8, 8, 3\)"):
        writer.images("train", iter([noise(2, 8, 8, 3), noise(2, 8, 8, 1)]))


@pytest.mark.parametrize("shape", [(5000,), (5000, 3)])
def test_labels_of_both_kinds(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Catches attributes flattened, and labels of the size of the machine's integer."""
    labels = noise(*shape) % 2
    DatasetWriter(tmp_path, GREY, "test").labels("test", labels)
    found = np.load(tmp_path / "test_labels.npy")
    np.testing.assert_array_equal(found, labels.astype(np.int64), strict=True)


# Official files


def md5_of(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def test_find(tmp_path: Path) -> None:
    """Catches files found only at one depth, or a different one of two on each machine."""
    root = write(tmp_path / "root", {"deep/er/a": b"", "z/b": b"", "deep/b": b""})
    assert find(root, "a") == root / "deep" / "er" / "a"
    assert find(root / "z" / "b", "b") == root / "z" / "b"
    assert find(root / "z", "z") == root / "z"
    assert find(root, "b") == root / "deep" / "b"
    assert find(root, "c") is None
    assert find(root / "z" / "b", "c") is None


def test_md5_is_checked(tmp_path: Path) -> None:
    """Catches an altered file let through, and a message without what was found and expected."""
    path = tmp_path / "a.gz"
    path.write_bytes(b"right")
    assert check_md5(path, md5_of(b"right")) == path
    path.write_bytes(b"wrong")
    expected = rf"a\.gz: .*{md5_of(b'wrong')}.* official .*{md5_of(b'right')}"
    with pytest.raises(UserError, match=expected):
        check_md5(path, md5_of(b"right"))


def test_official_files_belong_together(tmp_path: Path) -> None:
    """Catches a set with a file missing or altered, and none of it taken for some of it."""
    files = {"a.gz": b"a", "b.gz": b"b", "c.gz": b"c"}
    md5 = {name: md5_of(data) for name, data in files.items()}
    root = write(tmp_path / "root", {f"deep/{name}": data for name, data in files.items()})
    assert find_checked(root, md5) == {name: root / "deep" / name for name in files}
    (root / "deep" / "b.gz").write_bytes(b"altered")
    with pytest.raises(UserError, match=r"b\.gz: .*MD5"):
        find_checked(root, md5)
    (root / "deep" / "b.gz").unlink()
    (root / "deep" / "c.gz").unlink()
    with pytest.raises(UserError, match=r"root: b\.gz, c\.gz missing"):
        find_checked(root, md5)
    assert find_checked(tmp_path / "nothing", md5) is None


@pytest.mark.parametrize(
    "error",
    [
        URLError("no route to host"),
        TimeoutError("no route to host"),
        RuntimeError("no route to host"),
        ValueError("no route to host"),
    ],
)
def test_failed_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Catches a traceback without a network, and a message that does not say what to do."""
    monkeypatch.setenv("SCOREVAE_DOWNLOADS", str(tmp_path / "downloads"))

    def download() -> None:
        assert (tmp_path / "downloads").is_dir()
        raise error

    expected = r"Faces: cannot be downloaded \(.*no route to host.*put faces\.zip .*my\.data\.root"
    with pytest.raises(UserError, match=expected):
        fetch("Faces", "faces.zip", download, "my.data")


def test_downloads_survive_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches downloads inside the stage's output, or in the copy that an experiment runs in."""
    monkeypatch.delenv("SCOREVAE_DOWNLOADS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert downloads_folder() == tmp_path / ".downloads"
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "repository"))
    assert downloads_folder() == tmp_path / "repository" / ".downloads"
    monkeypatch.setenv("SCOREVAE_DOWNLOADS", str(tmp_path / "mine"))
    assert downloads_folder() == tmp_path / "mine"

"""Pictures as cameras, scanners and programs write them: every kind, each with its right pixels.

KINDS is a table: how a file of a kind is made from values in [0, 1], what it must show, and what
an independent reader (tifffile; pypng) must find in it, which checks the file.
"""

import io
import re
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import png as pypng
import pytest
import tifffile
from containers import bmp, png, pnm, tiff
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import COLOUR, GREY, encoded, noise
from PIL import Image

from scorevae.config import ImageConfig
from scorevae.data.sources.pixels import BadImage, decode


class Written(NamedTuple):
    """A file, what it shows from 0 to 255, and what it stores where another reader tells."""

    data: bytes
    shows: np.ndarray
    stored: np.ndarray | None = None


Values = np.ndarray  # (8, 8, 4) from 0 to 1: red (or grey), green, blue, opacity
Make = Callable[[Values], Written]

KINDS: dict[str, Make] = {}
WEIGHTS = np.array([0.299, 0.587, 0.114])  # of colours in grey, ITU-R 601
PALETTE = noise(256, 3, seed=3).astype(int)
OPACITIES = noise(256, seed=4).astype(int)


def levels(values: np.ndarray, bits: int) -> np.ndarray:
    """Values as integers of so many bits."""
    return np.round(values * (2**bits - 1)).astype(int)


def of(samples: np.ndarray, bits: int) -> np.ndarray:
    """The brightness from 0 to 255 of integers of so many bits."""
    return samples * 255 / (2**bits - 1)


def over_white(shown: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    """Colours of some opacity (from 0 to 1) before white."""
    opacity = opacity[..., None] if shown.ndim == 3 else opacity
    return shown * opacity + 255 * (1 - opacity)


def kind(name: str) -> Callable[[Make], Make]:
    """Enter a row of the table."""

    def enter(make: Make) -> Make:
        KINDS[name] = make
        return make

    return enter


ORDERS = {"<": "little", ">": "big"}

for _bits in (1, 2, 4, 8, 16):

    @kind(f"PNG grey {_bits}")
    def _(x: Values, bits: int = _bits) -> Written:
        v = levels(x[..., 0], bits)
        return Written(png(v, bits, 0), of(v, bits), v)

    @kind(f"PNG grey {_bits} tRNS")
    def _(x: Values, bits: int = _bits) -> Written:
        v = levels(x[..., 0], bits)
        data = png(v, bits, 0, tRNS=struct.pack(">H", v[4, 4]))
        return Written(data, np.where(v == v[4, 4], 255, of(v, bits)))

    if _bits > 8:
        continue

    @kind(f"PNG palette {_bits}")
    def _(x: Values, bits: int = _bits) -> Written:
        v = levels(x[..., 0], bits)
        data = png(v, bits, 3, PLTE=PALETTE[: 2**bits].astype(np.uint8).tobytes())
        return Written(data, PALETTE[v], PALETTE[v])

    @kind(f"PNG palette {_bits} tRNS")
    def _(x: Values, bits: int = _bits) -> Written:
        v = levels(x[..., 0], bits)
        colours, opacities = (
            table[: 2**bits].astype(np.uint8).tobytes() for table in (PALETTE, OPACITIES)
        )
        data = png(v, bits, 3, PLTE=colours, tRNS=opacities)
        return Written(data, over_white(PALETTE[v], OPACITIES[v] / 255))


for _bits in (8, 16):

    @kind(f"PNG RGB {_bits}")
    def _(x: Values, bits: int = _bits) -> Written:
        v = levels(x[..., :3], bits)
        return Written(png(v, bits, 2), of(v, bits), v)

    @kind(f"PNG RGBA {_bits}")
    def _(x: Values, bits: int = _bits) -> Written:
        v = levels(x, bits)
        shown = over_white(of(v[..., :3], bits), v[..., 3] / (2**bits - 1))
        return Written(png(v, bits, 6), shown, v)

    @kind(f"PNG LA {_bits}")
    def _(x: Values, bits: int = _bits) -> Written:
        v = levels(x[..., [0, 3]], bits)
        return Written(
            png(v, bits, 4), over_white(of(v[..., 0], bits), v[..., 1] / (2**bits - 1)), v
        )


@kind("PNG RGB 8 tRNS")
def _(x: Values) -> Written:
    v = levels(x[..., :3], 8)
    data = png(v, 8, 2, tRNS=struct.pack(">HHH", *v[4, 4]))
    return Written(data, np.where((v == v[4, 4]).all(-1, keepdims=True), 255, v))


TIFF_DEPTHS = {(b, p, o) for b in (1, 2, 4, 8) for p in (0, 1) for o in "<>"}
TIFF_DEPTHS |= {(16, 1, "<"), (16, 1, ">"), (16, 0, "<"), (12, 1, "<")}

for _bits, _photometric, _order in sorted(TIFF_DEPTHS):

    @kind(f"TIFF {ORDERS[_order]} grey {_bits}, {'black' if _photometric else 'white'} is zero")
    def _(x: Values, b: int = _bits, p: int = _photometric, order: str = _order) -> Written:
        v = levels(x[..., 0], b)
        data = tiff(v, b, p, order)
        return Written(data, of(v if p else 2**b - 1 - v, b), v if b in (1, 8, 16) else None)


for _order, _order_name in ORDERS.items():
    for _bits in (8, 16):

        @kind(f"TIFF {_order_name} RGB {_bits}")
        def _(x: Values, bits: int = _bits, order: str = _order) -> Written:
            v = levels(x[..., :3], bits)
            return Written(tiff(v, bits, 2, order), of(v, bits), v)

        @kind(f"TIFF {_order_name} RGBA {_bits}")
        def _(x: Values, bits: int = _bits, order: str = _order) -> Written:
            v = levels(x, bits)
            shown = over_white(of(v[..., :3], bits), v[..., 3] / (2**bits - 1))
            return Written(tiff(v, bits, 2, order, t338=[2]), shown, v)

        @kind(f"TIFF {_order_name} RGBa {_bits}")
        def _(x: Values, bits: int = _bits, order: str = _order) -> Written:
            v = levels(np.append(x[..., :3] * x[..., 3:], x[..., 3:], -1), bits)
            shown = of(v[..., :3], bits) + 255 - of(v[..., 3:], bits)
            return Written(tiff(v, bits, 2, order, t338=[1]), shown, v)

        @kind(f"TIFF {_order_name} RGB and something {_bits}")
        def _(x: Values, bits: int = _bits, order: str = _order) -> Written:
            v = levels(x, bits)
            return Written(tiff(v, bits, 2, order, t338=[0]), of(v[..., :3], bits), v)

        @kind(f"TIFF {_order_name} CMYK {_bits}")
        def _(x: Values, bits: int = _bits, order: str = _order) -> Written:
            v = levels(x, bits)
            light = 1 - v / (2**bits - 1)
            return Written(tiff(v, bits, 5, order), 255 * light[..., :3] * light[..., 3:], v)

    @kind(f"TIFF {_order_name} RGB 8, separate planes")
    def _(x: Values, order: str = _order) -> Written:
        v = levels(x[..., :3], 8)
        return Written(tiff(v, 8, 2, order, separate=True), v, np.moveaxis(v, -1, 0))

    @kind(f"TIFF {_order_name} LA")
    def _(x: Values, order: str = _order) -> Written:
        v = levels(x[..., [0, 3]], 8)
        return Written(tiff(v, 8, 1, order, t338=[2]), over_white(v[..., 0], v[..., 1] / 255), v)

    @kind(f"TIFF {_order_name} La")
    def _(x: Values, order: str = _order) -> Written:
        v = levels(np.stack([x[..., 0] * x[..., 3], x[..., 3]], -1), 8)
        return Written(tiff(v, 8, 1, order, t338=[1]), v[..., 0] + 255 - v[..., 1], v)

    @kind(f"TIFF {_order_name} palette")
    def _(x: Values, order: str = _order) -> Written:
        v = levels(x[..., 0], 8)
        return Written(
            tiff(v, 8, 3, order, t320=(257 * PALETTE.T).ravel().tolist()), PALETTE[v], v
        )


for _bits in (1, 4, 8):

    @kind(f"BMP palette {_bits}")
    def _(x: Values, bits: int = _bits) -> Written:
        v = levels(x[..., 0], bits)
        return Written(bmp(v, bits, PALETTE[: 2**bits]), PALETTE[v])

    @kind(f"BMP negative {_bits}")
    def _(x: Values, bits: int = _bits) -> Written:
        v = levels(x[..., 0], bits)
        grey = np.repeat(np.linspace(255, 0, 2**bits).round()[:, None], 3, 1)
        return Written(bmp(v, bits, grey), 255 - of(v, bits))


@kind("BMP 24")
def _(x: Values) -> Written:
    v = levels(x[..., :3], 8)
    return Written(bmp(v, 24), v)


def joined(x: Values, bits: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Numbers that hold the colours in so many bits each, the colours, and their masks."""
    number, masks, shown, at = np.zeros((8, 8), int), [], [], sum(bits)
    for channel, size in enumerate(bits):
        at -= size
        v = levels(x[..., channel], size)
        number |= v << at
        masks.append((2**size - 1) << at)
        shown.append(of(v, size))
    return number, np.stack(shown, -1), tuple(masks)


@kind("BMP 16, 5+6+5")
def _(x: Values) -> Written:
    number, shown, masks = joined(x, (5, 6, 5))
    return Written(bmp(number, 16, masks=masks), shown)


@kind("BMP 16, 5+5+5")
def _(x: Values) -> Written:
    number, shown, _ = joined(x, (5, 5, 5))
    return Written(bmp(number.astype("<u2").view(">u2"), 16), shown)


@kind("BMP 32")
def _(x: Values) -> Written:
    v = levels(x, 8)
    return Written(bmp(v[..., [3, 0, 1, 2]], 32), v[..., :3])  # the fourth byte means nothing


for _kind, _largest in [
    *(("P2", 255), ("P3", 255), ("P5", 255), ("P6", 255), ("P5", 100)),
    *(("P5", 1000), ("P6", 1000), ("P2", 65535), ("P5", 65535), ("P6", 65535)),
]:

    @kind(f"{_kind} of {_largest}")
    def _(x: Values, name: str = _kind, largest: int = _largest) -> Written:
        v = np.round((x[..., :3] if name in ("P3", "P6") else x[..., 0]) * largest).astype(int)
        return Written(pnm(name, v, largest), v * 255 / largest)


for _kind in ("P1", "P4"):

    @kind(_kind)
    def _(x: Values, name: str = _kind) -> Written:
        v = levels(x[..., 0], 1)
        return Written(pnm(name, v, 1), 255 * (1 - v))


# Formats that are packed by a library: what other tests of sources do not show.
for _kind, _options in [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})]:

    @kind(f"{_kind}, the first of several")
    def _(x: Values, name: str = _kind, options: dict[str, bool] = _options) -> Written:  # type: ignore[assignment]
        first, *others = (Image.fromarray(levels(x[..., i], 8).astype(np.uint8)) for i in range(3))
        data = encoded(first, name, save_all=True, append_images=others, **options)
        return Written(data, levels(x[..., 0], 8))


@kind("TIFF, the first of several")
def _(x: Values) -> Written:
    pages, file = levels(np.moveaxis(x, -1, 0), 16), io.BytesIO()
    options = {"photometric": "minisblack", "compression": "zlib", "predictor": True}
    tifffile.imwrite(file, pages.astype(np.uint16), **options)
    return Written(file.getvalue(), of(pages[0], 16))


@kind("WEBP RGBA")
def _(x: Values) -> Written:
    v = levels(x, 8)
    data = encoded(Image.fromarray(v.astype(np.uint8)), "WEBP", lossless=True, exact=True)
    return Written(data, over_white(v[..., :3], v[..., 3] / 255))


@kind("JPEG 2000 grey 16")
def _(x: Values) -> Written:
    v = levels(x[..., 0], 16)
    return Written(encoded(Image.fromarray(v.astype(np.uint16)), "JPEG2000"), of(v, 16))


# Bytes round twice where opacity or ink multiplies them; Pillow cuts 16 bits and 5 bits off.
ROUNDED = re.compile("RGBA|RGBa|LA|La|CMYK|BMP 16")


def check(name: str, values: Values, image: ImageConfig) -> None:
    """A file of a kind shows what it must, in grey or in colours."""
    written = KINDS[name](values)
    shown = written.shows
    if shown.ndim == 2:
        shown = np.repeat(shown[..., None], 3, 2)
    if image.channels == 1:
        shown = (shown @ WEIGHTS)[..., None]
    within = 3 if ROUNDED.search(name) else 1
    assert np.abs(decode(written.data, image) - shown).max() < within + 1e-9


RAMP = np.linspace(0, 1, 64).reshape(8, 8)  # from black to white
STEADY = np.stack([RAMP, RAMP[::-1], RAMP.T, RAMP.T[::-1]], -1)


@pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_shows_its_pixels(name: str, image: ImageConfig) -> None:
    """Catches a depth, order, negative, palette or opacity that is taken for another one."""
    check(name, STEADY, image)


@settings(max_examples=150, derandomize=True, deadline=None, database=None)
@given(name=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 2**32 - 1))
def test_any_pixels_of_every_kind(name: str, seed: int) -> None:
    """Catches what a ramp does not show: values that share a byte, low bits, no opacity."""
    rng = np.random.default_rng(seed)
    values = rng.random((8, 8, 4)) * rng.choice([0.02, 1.0])
    values[..., 3] = rng.choice([0, 1, values[..., 3].max()], (8, 8))
    check(name, values, COLOUR)


@pytest.mark.parametrize("name", KINDS)
def test_files_are_what_another_reader_finds(name: str) -> None:
    """Catches a mistake in the files by hand, of which the expected pixels know nothing."""
    written = KINDS[name](STEADY)
    if written.stored is None:
        return
    if name.startswith("TIFF"):
        found = tifffile.imread(io.BytesIO(written.data))
    else:
        read = pypng.Reader(bytes=written.data)
        *_, rows, _ = read.asRGB() if "palette" in name else read.read()
        found = np.array(list(map(list, rows))).reshape(written.stored.shape)
    np.testing.assert_array_equal(found, written.stored)


GREYS, COLOURS = levels(STEADY[..., 0], 8), levels(STEADY[..., :3], 8)
DEEP = 257 * COLOURS
SHORT_PALETTE = PALETTE.T.ravel().tolist()  # of 8 bits, where TIFF has 16
REFUSED = {
    "TIFF 10": (tiff(GREYS, 10, 1, "<"), "a TIFF of 10 bits, unsigned, photometric inter"),
    "TIFF 12, white is zero": (tiff(GREYS, 12, 0, "<"), "a TIFF of 12 bits"),
    "TIFF 12, big": (tiff(GREYS, 12, 1, ">"), "a TIFF of 12 bits"),
    "TIFF 16, white is zero, big": (tiff(GREYS, 16, 0, ">"), "a TIFF of 16 bits, .* 0; save"),
    "TIFF 32": (tiff(GREYS, 32, 1, "<"), "32-bit pixels"),
    "TIFF RGB of 4 bits": (tiff(COLOURS // 16, 4, 2, "<"), r"a TIFF of 4\+4\+4 bits"),
    "TIFF LA of 16 bits": (tiff(DEEP[..., :2], 16, 1, "<", t338=[2]), r"a TIFF of 16\+16 bits"),
    "TIFF signed 8": (tiff(GREYS // 2, 8, 1, "<", t339=[2]), "^signed numbers"),
    "TIFF signed 16": (tiff(GREYS, 16, 1, ">", t339=[2]), "^signed numbers"),
    "TIFF float": (tiff(GREYS, 32, 1, "<", t339=[3]), "^floating-point numbers"),
    "TIFF float, big": (tiff(GREYS, 32, 1, ">", t339=[3]), "^floating-point numbers"),
    "TIFF half float": (tiff(GREYS, 16, 1, "<", t339=[3]), "floating-point"),
    "TIFF float RGB": (tiff(DEEP, 32, 2, "<", t339=[3] * 3), r"32\+32\+32 bits, floating"),
    "TIFF RGB 16, separate planes": (tiff(DEEP, 16, 2, "<", separate=True), "separate planes"),
    "TIFF reversed bits": (tiff(257 * GREYS, 16, 1, "<", t266=[2]), "reversed bits"),
    "TIFF Lab": (tiff(COLOURS, 8, 8, "<"), r"L\*a\*b\*"),
    "TIFF palette of 8 bits": (tiff(GREYS, 8, 3, "<", t320=SHORT_PALETTE), "palette of 8 bits"),
    "PNG RGB 16 tRNS": (png(DEEP, 16, 2, tRNS=bytes(6)), "a transparent colour of 16 bits"),
    "PFM in colour": (b"PF 8 8 -1.0\n" + bytes(768), "a PFM, of floating-point"),
    "PAM": (b"P7\nWIDTH 8\nHEIGHT 8\nDEPTH 1\nMAXVAL 255\nENDHDR\n" + bytes(64), "a PAM"),
    "HEIC called JPEG": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), "it is a HEIC"),
    "JPEG XL": (b"\xff\x0a" + bytes(64), "a JPEG XL"),
    "Photoshop": (b"8BPS\0\1" + bytes(64), "Photoshop"),
    "PDF": (b"%PDF-1.7\n", "a PDF"),
    "a page": (b"<!DOCTYPE html><title>403 Forbidden</title>", "a page or drawing in XML or HTML"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "directory cut off": (tiff(GREYS, 10, 1, "<")[:40], "cannot identify its format"),
}


@pytest.mark.parametrize(("data", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_rightly_is_named(data: bytes, reason: str) -> None:
    """Catches pixels that make another picture, and a reason that does not say what it is."""
    with pytest.raises(BadImage, match=reason):
        decode(data, COLOUR)


def test_a_black_palette_is_black() -> None:
    """Catches a picture refused for a palette in which 8 and 16 bits are the same."""
    assert (decode(tiff(GREYS, 8, 3, "<", t320=[0] * 768), GREY) == 0).all()


BLOCKS = np.kron(levels(STEADY[::4, ::4, :3], 8), np.ones((16, 16, 1))).astype(np.uint8)
LOSSY = {
    "YCbCr": ("JPEG", "RGB", {"quality": 100, "subsampling": 0}),
    "RGB": ("JPEG", "RGB", {"quality": 100, "keep_rgb": True}),
    "CMYK": ("JPEG", "CMYK", {"quality": 100}),
    "TIFF of YCbCr": ("TIFF", "RGB", {"quality": 100, "compression": "jpeg"}),
    "AVIF": ("AVIF", "RGB", {"quality": 100, "subsampling": "4:4:4"}),
}


@pytest.mark.parametrize(("container", "mode", "options"), LOSSY.values(), ids=LOSSY)
def test_colours_of_lossy_formats(container: str, mode: str, options: dict[str, object]) -> None:
    """Catches inverted ink, and luminance and chroma taken for red, green and blue."""
    picture = Image.fromarray(BLOCKS)
    if mode == "CMYK":
        picture = Image.fromarray(np.append(255 - BLOCKS, 0 * BLOCKS[..., :1], -1), "CMYK")
    found = decode(encoded(picture, container, **options), ImageConfig(channels=3, size=32))
    assert np.abs(found.astype(int) - BLOCKS).max() <= 3


def test_transparent_grey_of_sixteen_bits_shows_white() -> None:
    """Catches a PNG's transparent value that becomes black, or values that only share its byte."""
    values = 257 * noise(8, 8).astype(np.uint16)
    values[0, :2] = 515, 516
    found = decode(encoded(Image.fromarray(values), transparency=515), GREY)[..., 0]
    expected = np.where(values == 515, 255, np.round(values / 257))
    np.testing.assert_array_equal(found, expected)
    assert found[0, 0] == 255
    assert found[0, 1] == 2


def exif(*entries: tuple[int, int, bytes]) -> bytes:
    """An EXIF block of (tag, type, eight bytes or four) with its data behind the directory."""
    behind, directory = b"", struct.pack("<H", len(entries))
    start = 8 + 2 + 12 * len(entries) + 4
    for tag, kind, content in entries:
        value = content
        if len(content) > 4:
            value, behind = struct.pack("<I", start + len(behind)), behind + content
        directory += struct.pack("<HHI", tag, kind, 1) + value
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory + bytes(4) + behind


ORIENTED = (274, 3, struct.pack("<HH", 6, 0))
INVALID = {
    "negative rational": (282, 5, struct.pack("<ii", -1, 1)),
    "signed for unsigned": (282, 10, struct.pack("<ii", -1, 1)),
    "text for a number": (282, 2, b"72\0\0"),
    "nothing over nothing": (282, 5, bytes(8)),
    "a type that is none": (282, 99, bytes(4)),
}


@pytest.mark.parametrize("invalid", INVALID.values(), ids=INVALID)
def test_invalid_metadata_does_not_keep_a_picture_from_turning(
    invalid: tuple[int, int, bytes],
) -> None:
    """Catches a photograph that is refused, or lies on its side, for its resolution's sake."""
    blocks = np.kron(np.array([[0, 90], [170, 255]], np.uint8), np.ones((8, 8), np.uint8))
    options = {"quality": 95, "exif": exif(ORIENTED, invalid)}
    found = decode(encoded(Image.fromarray(blocks), "JPEG", **options), GREY)[..., 0]
    upright = np.rot90(blocks, -1)[4::8, 4::8]  # orientation 6: clockwise by 90 degrees
    np.testing.assert_allclose(found[2::4, 2::4], upright, atol=6)

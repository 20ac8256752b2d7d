"""Pictures as cameras and scanners write them: files made by hand, each with its right pixels."""

import struct

import numpy as np
import pytest
from pictures import GREY, encoded, noise
from PIL import Image

from scorevae.data.sources.pixels import BadImage, decode

RAMP = np.linspace(0, 1, 64).reshape(8, 8)  # from black to white


def tiff(values: np.ndarray, bits: int, photometric: int, order: str) -> bytes:
    """A TIFF of one strip of 8×8 grey pixels; 12 bits are packed, the first ones first."""
    if bits == 12:
        text = "".join(f"{value:012b}" for value in values.flat)
        strip = bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    else:
        strip = values.astype(f"{order}u{bits // 8}").tobytes()
    tags = [(256, 8), (257, 8), (258, bits), (259, 1), (262, photometric), (277, 1), (278, 8)]
    tags = sorted([*tags, (273, 8 + 2 + 9 * 12 + 4), (279, len(strip))])
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    return head + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + strip


UNREAD = [(12, 0, "<"), (12, 0, ">"), (12, 1, ">"), (16, 0, ">")]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1], ids=["white is zero", "black is zero"])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_grey_tiff_of_any_depth(bits: int, photometric: int, order: str) -> None:
    """Catches 12 bits taken for 16, which is nearly black, and a negative taken for a positive.

    Where Pillow cannot read a combination it is refused by name; nothing is silently wrong.
    """
    values = np.round(RAMP * (2**bits - 1)).astype(np.int64)
    bright = values if photometric else 2**bits - 1 - values
    expected = np.round(bright * 255 / (2**bits - 1))
    if (bits, photometric, order) in UNREAD:
        with pytest.raises(BadImage, match="cannot identify its format"):
            decode(tiff(values, bits, photometric, order), GREY)
        return
    found = decode(tiff(values, bits, photometric, order), GREY)[..., 0]
    np.testing.assert_allclose(found, expected, atol=1)


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

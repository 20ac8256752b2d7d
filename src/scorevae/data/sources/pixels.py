"""One image file to stored pixels."""

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from scorevae.config import ImageConfig
from scorevae.errors import in_a_line

# Larger pictures are refused before they are decoded: a few kilobytes of PNG can claim gigabytes.
MAX_PIXELS = 2**26

# Common formats of photographs and drawings, by their endings. Pillow reads more (and hands some,
# like EPS, to other programs): nothing that a data set is made of.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k"),
    "AVIF": (".avif",),
}
SUFFIXES = {suffix for suffixes in FORMATS.values() for suffix in suffixes}

# Endings of pictures that are not read: of phones, cameras, microscopes and drawing programs.
UNREAD = {
    *(".heic", ".heif", ".hif", ".jxl", ".jxr", ".jpx", ".j2c", ".apng", ".tga", ".pcx", ".ico"),
    *(".dng", ".raw", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".orf", ".rw2", ".raf", ".pef"),
    *(".srw", ".x3f", ".svg", ".svgz", ".psd", ".psb", ".xcf", ".ai", ".eps", ".pdf", ".exr"),
    *(".hdr", ".dds", ".dcm", ".fits", ".czi", ".nd2", ".lsm"),
}

# What lies in files with the ending of a picture, by the bytes at an offset.
NAMED = (
    (4, b"ftyphei", "a HEIC"),
    (4, b"ftyphev", "a HEIC"),
    (4, b"ftypmif1", "a HEIF"),
    (4, b"ftypavi", "an AVIF, which this Pillow does not read"),
    (0, b"\xff\x0a", "a JPEG XL"),
    (4, b"JXL ", "a JPEG XL"),
    (0, b"8BPS", "a file of Photoshop"),
    (0, b"%PDF", "a PDF"),
    (0, b"P7", "a PAM"),
    (0, b"PF", "a PFM, of floating-point numbers"),
    (0, b"<", "a page or drawing in XML or HTML"),
    (0, b"version https://git-lfs", "Git LFS's pointer to a file; fetch it by `git lfs pull`"),
)

# Tags of TIFF, the last one of EXIF too.
BITS_PER_SAMPLE, PHOTOMETRIC, FILL_ORDER, SAMPLES, PLANES = 258, 262, 266, 277, 284
COLOUR_MAP, SAMPLE_FORMAT, ORIENTATION = 320, 339, 274
WHITE_IS_ZERO, PALETTE, LAB = 0, 3, (8, 9, 10)
REVERSED, SEPARATE = 2, 2
NUMBERS = {2: "signed", 3: "floating-point"}
GREY, RGB = 0, 2  # PNG's colour types
GREYS = ("1", "L", "LA", "La", "I", "F")  # Pillow's modes without colour
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

StoredImage = UInt8[np.ndarray, "height width channel"]


class BadImage(Exception):
    """An image file that cannot be used; the message says why."""


def decode(data: bytes, image: ImageConfig, *, crop: int | None = None) -> StoredImage:
    """Decode, turn upright, crop the centre to a square, shrink with antialiasing.

    :func:`read`, then :func:`fitted`.

    Raises:
        BadImage: not an image, truncated, of a kind that has no 8-bit equivalent, or smaller than
            asked (images are never enlarged).
    """
    return fitted(read(data, image.channels), image, crop=crop)


def read(data: bytes, channels: int | None = None) -> Image.Image:
    """Decode a file and turn it upright, in 8 bits: grey (one channel), colour (three) or its own.

    EXIF orientation is applied, transparency is laid over white, grey of 9 to 16 bits is reduced
    to 8, grey images are repeated over three channels, colour images become grey where one
    channel is asked for.

    Raises:
        BadImage: not an image, truncated, or of a kind that has no 8-bit equivalent.
    """
    with _reasons(data):
        Image.init()
        formats = [name for name in FORMATS if name in Image.OPEN]
        with Image.open(io.BytesIO(data), formats=formats) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise BadImage(f"{opened.width}×{opened.height} pixels, over {MAX_PIXELS}")
            _check_tiff(getattr(opened, "tag_v2", {}))
            if opened.format == "PNG":
                _scale_transparent(opened, bits=data[24], colour=data[25])
            return _upright_in_eight_bits(opened, channels)


def converted(opened: Image.Image, channels: int | None = None) -> Image.Image:
    """What :func:`read` makes of a picture that Pillow has opened already.

    Raises:
        BadImage: truncated, or of a kind that has no 8-bit equivalent.
    """
    with _reasons(b""):
        _check_tiff(getattr(opened, "tag_v2", {}))
        return _upright_in_eight_bits(opened, channels)


def fitted(picture: Image.Image, image: ImageConfig, *, crop: int | None = None) -> StoredImage:
    """Crop the centre to a square and shrink it with antialiasing.

    The square has sides of ``crop`` pixels, else it is the largest that fits. Resizing is bilinear
    over the area of each new pixel (Pillow's, which torchvision's ``Resize`` uses).

    Raises:
        BadImage: smaller than asked (images are never enlarged).
    """
    side = crop or min(picture.size)
    if min(picture.size) < side or side < image.size:
        needed = f"at least {max(side, image.size) if crop else image.size} pixels a side"
        raise BadImage(f"{picture.width}×{picture.height} pixels, {needed} are asked for")
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    if side != image.size:
        square = square.resize((image.size, image.size), Image.Resampling.BILINEAR)
    return np.asarray(square, dtype=np.uint8).reshape(image.size, image.size, image.channels)


@contextmanager
def _reasons(data: bytes) -> Iterator[None]:
    """Whatever is wrong with a file, as a BadImage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's notes on odd metadata, and on large images
            yield
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage(f"cannot be decoded ({_name(data)})") from None
    except Exception as error:  # noqa: BLE001 (decoders raise nearly anything on damaged files)
        raise BadImage(f"cannot be decoded ({in_a_line(error, 120)})") from None


def _upright_in_eight_bits(opened: Image.Image, channels: int | None) -> Image.Image:
    opened.load()
    # Pillow scales a PGM of more than 8 bits to 16, in pixels of 32.
    kind = opened.format, opened.mode
    deep = opened.mode.startswith("I;16") or kind == ("PPM", "I")
    picture = _upright(_deep_grey(opened) if deep else opened, opened)
    return _eight_bit(picture, channels or (1 if picture.mode in GREYS else 3))


def _name(data: bytes) -> str:
    """What a file is that Pillow cannot open, as far as its first bytes tell."""
    for offset, mark, name in NAMED:
        if data[offset:].startswith(mark):
            return f"it is {name}"
    if data[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "cannot identify its format"
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:16] if b"+" in data[:4] else data[:8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
    except Exception:  # noqa: BLE001 (a damaged directory names nothing)
        return "cannot identify its format"
    bits = "+".join(map(str, tags.get(BITS_PER_SAMPLE, (1,))))
    numbers = NUMBERS.get(tags.get(SAMPLE_FORMAT, (1,))[0], "unsigned")
    kind = f"photometric interpretation {tags.get(PHOTOMETRIC)}"
    return f"it is a TIFF of {bits} bits, {numbers}, {kind}; save it with 8 bits"


def _check_tiff(tags: Mapping[int, Any]) -> None:
    """Refuse what Pillow would take for something else."""
    deep = max(tags.get(BITS_PER_SAMPLE, (1,))) > 8
    if numbers := NUMBERS.get(tags.get(SAMPLE_FORMAT, (1,))[0]):
        raise BadImage(f"{numbers} numbers; save it with 8 bits")
    if deep and tags.get(PLANES) == SEPARATE and tags.get(SAMPLES, 1) > 1:
        raise BadImage("separate planes of more than 8 bits; save it with 8 bits")
    if deep and tags.get(FILL_ORDER) == REVERSED:
        raise BadImage("reversed bits, more than 8 each; save it with 8 bits")
    if tags.get(PHOTOMETRIC) in LAB:
        raise BadImage("colours as L*a*b*; save it as RGB")
    if tags.get(PHOTOMETRIC) == PALETTE and 0 < max(tags.get(COLOUR_MAP, (0,))) < 256:
        raise BadImage("a palette of 8 bits, where TIFF has 16; save it as RGB")


def _scale_transparent(opened: Image.Image, *, bits: int, colour: int) -> None:
    """A PNG's transparent value in the range of the pixels, which Pillow scales to 8 bits."""
    value = opened.info.get("transparency")
    if value is not None and (colour, bits) == (RGB, 16):
        raise BadImage("a transparent colour of 16 bits; save it with 8 bits")
    if isinstance(value, int) and colour == GREY and bits in (2, 4):
        opened.info["transparency"] = value * 255 // (2**bits - 1)


def _deep_grey(opened: Image.Image) -> Image.Image:
    """Grey of up to 16 bits as 8: the largest value of its depth is 255.

    TIFF states depth and direction, which Pillow leaves as they are; a PNG may name one value that
    is transparent, hence white.
    """
    tags = getattr(opened, "tag_v2", {})
    values = np.asarray(opened)
    largest = 2 ** tags.get(BITS_PER_SAMPLE, (16,))[0] - 1
    grey = np.round(values / (largest / 255))
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = 255 - grey
    if isinstance(transparent := opened.info.get("transparency"), int):
        grey[values == transparent] = 255
    return Image.fromarray(grey.astype(np.uint8))


def _upright(picture: Image.Image, opened: Image.Image) -> Image.Image:
    """Turned by the orientation alone, whatever else in the file's EXIF is invalid.

    Pillow has turned a TIFF, and removed its orientation, when it was loaded.
    """
    try:
        turn = TURNS.get(opened.getexif().get(ORIENTATION, 1))
    except Exception:  # noqa: BLE001 (an EXIF that cannot be read turns nothing)
        return picture
    return picture if turn is None else picture.transpose(turn)


def _eight_bit(picture: Image.Image, channels: int) -> Image.Image:
    """Grey (one channel) or RGB (three), 8 bits, transparency over white."""
    if picture.mode in ("I", "F"):
        raise BadImage(f"32-bit pixels (mode {picture.mode}); save it with 8 bits")
    if picture.mode == "La":  # values times opacity, which convert to nothing else
        picture = picture.convert("LA")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return picture.convert("L" if channels == 1 else "RGB")

"""One image file to stored pixels."""

import io
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from scorevae.config import ImageConfig

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

StoredImage = UInt8[np.ndarray, "height width channel"]


class BadImage(Exception):
    """An image file that cannot be used; the message says why."""


def decode(data: bytes, image: ImageConfig, *, crop: int | None = None) -> StoredImage:
    """Decode, turn upright, crop the centre to a square, shrink with antialiasing.

    The square has sides of ``crop`` pixels, else it is the largest that fits.
    EXIF orientation is applied, transparency is laid over white, 16-bit grey is reduced to 8
    bits, grey images are repeated over three channels, colour images become grey where the
    preset has one channel. Resizing is bilinear over the area of each new pixel (Pillow's, which
    torchvision's ``Resize`` uses).

    Raises:
        BadImage: not an image, truncated, of a kind that has no 8-bit equivalent, or smaller than
            asked (images are never enlarged).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's notes on odd metadata, and on large images
            Image.init()
            formats = [name for name in FORMATS if name in Image.OPEN]
            with Image.open(io.BytesIO(data), formats=formats) as opened:
                if opened.width * opened.height > MAX_PIXELS:
                    raise BadImage(f"{opened.width}×{opened.height} pixels, over {MAX_PIXELS}")
                # Pillow scales a PGM of more than 8 bits to 16, in pixels of 32.
                kind = opened.format, opened.mode
                picture = ImageOps.exif_transpose(opened)
                if opened.mode.startswith("I;16") or kind == ("PPM", "I"):
                    grey = np.round(np.asarray(picture) / 257)  # of 0 to 65535
                    picture = Image.fromarray(grey.astype(np.uint8))
                picture = _eight_bit(picture, image.channels)
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("cannot be decoded (cannot identify its format)") from None
    except Exception as error:  # noqa: BLE001 (decoders raise nearly anything on damaged files)
        raise BadImage(f"cannot be decoded ({' '.join(str(error).split())[:120]})") from None
    side = crop or min(picture.size)
    if min(picture.size) < side or side < image.size:
        needed = f"at least {max(side, image.size) if crop else image.size} pixels a side"
        raise BadImage(f"{picture.width}×{picture.height} pixels, {needed} are asked for")
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    if side != image.size:
        square = square.resize((image.size, image.size), Image.Resampling.BILINEAR)
    return np.asarray(square, dtype=np.uint8).reshape(image.size, image.size, image.channels)


def _eight_bit(picture: Image.Image, channels: int) -> Image.Image:
    """Grey (one channel) or RGB (three), 8 bits, transparency over white."""
    if picture.mode in ("I", "F"):
        raise BadImage(f"32-bit pixels (mode {picture.mode}); save it with 8 bits")
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return picture.convert("L" if channels == 1 else "RGB")

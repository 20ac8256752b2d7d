"""A first look at a folder or archive of images: enough to choose settings, nothing is kept."""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from PIL import Image

from scorevae.config import DataConfig
from scorevae.data.sources.folder import understand
from scorevae.data.sources.pixels import FORMATS, BadImage, read
from scorevae.data.sources.trees import ImageFile, image_files
from scorevae.data.sources.understood import Found, Understood
from scorevae.errors import UserError
from scorevae.runtime.progress import progress

FEWEST = 20  # images from which anything can be learned and tested
LOOKED_AT = 100  # images whose pixels say whether there is colour; of the others, every 50th
COLOURFUL = 4.0  # mean over the pixels of the largest less the smallest of red, green and blue
COLOUR_SHARE = 0.05  # of images that are colourful, from which on all are taken as colour
FEW = 500  # images, of fewer than which a larger share is held out
TOO_SMALL_SHARE = 0.01  # of images that may be smaller than what is chosen: download skips them


class Survey(NamedTuple):
    """What lies in a folder of images."""

    understood: Understood
    side: int  # pixels; nearly all images have at least so many on their shorter side
    colour: bool
    test_fraction: float

    @property
    def images(self) -> int:
        """Those that will be used."""
        return len(self.understood.kept)


def survey(root: Path, settings: DataConfig, key: str) -> Survey:
    """Read every name and size, and the pixels of some, as ``download`` will read them.

    Images of the same pixels are not looked for.

    Raises:
        UserError: nothing there, fewer than FEWEST images, an archive that is damaged, or names
            that can be read in two ways.
    """
    found = Found(root, names=[], digests=[], bad=[], ignored=Counter())
    sides: list[int] = []
    colourful: list[bool] = []
    with TemporaryDirectory() as scratch, progress("images", 0, None) as report:
        for number, file in enumerate(image_files(root, Path(scratch), found.ignored)):
            try:
                sides.append(_shorter_side(file))
                if number < LOOKED_AT or number % 50 == 0:
                    colourful.append(_is_colourful(file))
            except BadImage as reason:
                found.bad.append(f"{root / file.name}: {reason}")
                continue
            found.names.append(file.name)
            found.digests.append(file.name.encode(errors="surrogateescape"))
            report(len(found.names))
    if len(found.names) < FEWEST:
        bad = f" (cannot be used: {found.bad[0]})" if found.bad else ""
        raise UserError(
            f"{root}: {len(found.names)} images in it, {FEWEST} are the least{bad}; name a folder "
            "or an archive with more"
        )
    held_out = 0.2 if len(found.names) < FEW else 0.1
    settings = settings.model_copy(update={"test_fraction": held_out})
    understood = understand(found.ordered(np.argsort(np.array(found.names))), settings, key)
    side = sorted(sides)[int(TOO_SMALL_SHARE * len(sides))]
    return Survey(understood, side, sum(colourful) > COLOUR_SHARE * len(colourful), held_out)


def _shorter_side(file: ImageFile) -> int:
    """From the head of the file alone."""
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        with Image.open(file.path, formats=formats) as opened:
            return min(opened.size)
    except Exception as error:  # noqa: BLE001 (decoders raise nearly anything on damaged files)
        raise BadImage(f"cannot be opened ({type(error).__name__})") from None


def _is_colourful(file: ImageFile) -> bool:
    picture = read(file.read())
    if picture.mode != "RGB":
        return False
    picture.thumbnail((64, 64))
    pixels = np.asarray(picture, dtype=np.int16)
    return float((pixels.max(axis=2) - pixels.min(axis=2)).mean()) > COLOURFUL

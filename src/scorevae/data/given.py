"""What people have → images as a model reads them: paths, pictures, arrays, tensors, batches.

Pictures are read by the functions that ``download`` uses, so that a file here and the same file in
a data set are the same numbers. Nothing is resized, cropped or made grey unless that is asked for.
"""

import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from scorevae.config import ImageConfig
from scorevae.data.arrays import to_tensor, to_unit_range
from scorevae.errors import UserError
from scorevae.randomness import derive_seed
from scorevae.runtime.progress import progress
from scorevae.shapes import Images

if TYPE_CHECKING:
    from PIL import Image

# As strings, since Pillow is imported only where there is a picture.
Picture: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray | Tensor"
Pictures: TypeAlias = "Picture | Sequence[Picture]"
Batches: TypeAlias = "Iterable[Any]"  # of Pictures, or of (tensor or array, labels)
Given: TypeAlias = "Pictures | Batches"

Report = Callable[[int], None]
Result = TypeVar("Result")

PICTURE_CHANNELS = (1, 2, 3, 4)  # grey or colour, without opacity and with


def over(
    given: Given,
    image: ImageConfig,
    run: Callable[[Images, int, Report], Result],
    *,
    name: str,
    seed: int,
    resize: bool,
    shown: bool,
) -> Result | Iterator[Result]:
    """``run(images, seed, report)`` of what is given; of a stream, batch by batch as it comes.

    The first batch of a stream has the seed, each further one a seed that follows from it.
    ``report`` takes the number of images done, which ``shown`` shows under ``name``.

    Raises:
        UserError: as :func:`to_images`; for a stream where the batch is reached.
    """
    if is_stream(given):
        batches: Batches = given  # type: ignore[assignment]
        return _stream(batches, image, run, name=name, seed=seed, resize=resize, shown=shown)
    images = to_images(given, image, resize=resize)
    with reporting(name, len(images), shown) as report:
        return run(images, seed, report)


def _stream(
    batches: Batches,
    image: ImageConfig,
    run: Callable[[Images, int, Report], Result],
    *,
    name: str,
    seed: int,
    resize: bool,
    shown: bool,
) -> Iterator[Result]:
    before = 0
    with reporting(name, None, shown) as report:
        for number, batch in enumerate(batches):
            place = f"batch {number + 1}"
            images = to_images(_unlabelled(batch), image, resize=resize, name=place)
            own = derive_seed(seed, "stream", number) if number else seed
            yield run(images, own, partial(_after, report, before))
            before += len(images)


def _after(report: Report, before: int, done: int) -> None:
    report(before + done)


def reporting(name: str, total: int | None, shown: bool) -> AbstractContextManager[Report]:
    """A function of the number of images done: a progress bar, or nothing."""
    return progress(name, 0, total) if shown else nullcontext(lambda done: None)


def is_stream(given: object) -> bool:
    """Whether it is to be gone through batch by batch: an iterable, but no list of pictures."""
    if isinstance(given, str | os.PathLike | np.ndarray | Tensor) or _is_pil(given):
        return False
    if isinstance(given, list | tuple):
        return bool(given) and (_is_batch(given[0]) or isinstance(given[0], list | tuple))
    return isinstance(given, Iterable)


def _is_pil(given: object) -> bool:
    pillow = sys.modules.get("PIL.Image")  # nobody has a picture of Pillow without it
    return pillow is not None and isinstance(given, pillow.Image)


def _is_batch(item: object) -> bool:
    return isinstance(item, np.ndarray | Tensor) and item.ndim == 4


def _unlabelled(batch: Any) -> Any:  # noqa: ANN401 (whatever an iterable yields)
    """The images of (images, labels), as a DataLoader gives them; all else as it is."""
    pair = isinstance(batch, list | tuple) and bool(batch) and _is_batch(batch[0])
    return batch[0] if pair else batch


def to_images(
    given: object, image: ImageConfig, *, resize: bool = False, name: str = "images"
) -> Images:
    """Images in [0, 1] of the shape of ``image``, on the CPU, in torch's default type.

    Args:
        given: the path of a picture; a picture of Pillow; an array of uint8, H×W, H×W×C or
            N×H×W×C; an array or tensor of floats in [0, 1], or a tensor of uint8, C×H×W or
            N×C×H×W; a list of any of these.
        image: the shape that is wanted.
        resize: crop, shrink and convert what has another one, as ``download`` does. Floats are
            rounded to 8 bits for that.
        name: what messages call it.

    Raises:
        UserError: it is none of these, cannot be read, has another shape, or values beyond
            [0, 1].
    """
    if isinstance(given, list | tuple):
        if not given:
            raise UserError(f"{name}: an empty list; give one picture or more")
        prefix = "" if name == "images" else f"{name}, "
        names = [f"{prefix}picture {number}" for number in range(1, len(given) + 1)]
        parts = zip(given, names, strict=True)
        return torch.cat([to_images(x, image, resize=resize, name=n) for x, n in parts])
    if isinstance(given, np.ndarray | Tensor):
        return _of_numbers(given, image, resize, name)
    if isinstance(given, str | os.PathLike) or _is_pil(given):
        return _of_stored(_of_picture(given, image, resize, name)[None])
    raise UserError(
        f"{name}: got a {type(given).__name__}; give a path, a PIL image, an array, a tensor, a "
        "list of these, or a DataLoader or another iterable of batches"
    )


def _of_stored(stored: np.ndarray) -> Images:
    """Grey values 0–255, the very numbers that the pipeline makes of them."""
    return to_unit_range(to_tensor(stored)).to(torch.get_default_dtype())


def _of_picture(given: Any, image: ImageConfig, resize: bool, name: str) -> np.ndarray:  # noqa: ANN401
    from scorevae.data.sources import pixels

    channels = image.channels if resize else None
    try:
        if _is_pil(given):
            picture = pixels.converted(given, channels)
        else:
            name = str(Path(given))
            picture = pixels.read(_content(Path(given)), channels)
        if resize:
            return pixels.fitted(picture, image)
    except pixels.BadImage as error:
        raise UserError(f"{name}: {error}; give another picture") from None
    found = picture.height, picture.width, len(picture.getbands())
    _check_picture(found, image, name)
    return np.asarray(picture, dtype=np.uint8).reshape(found)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except IsADirectoryError:
        raise UserError(
            f"{path}: a folder; give its pictures, as sorted(Path({str(path)!r}).glob('*.png'))"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason}); correct the path") from None


def _check_picture(found: tuple[int, int, int], image: ImageConfig, name: str) -> None:
    wanted = (image.size, image.size, image.channels)
    if found != wanted:
        raise UserError(
            f"{name}: {_words(found)}, the model's images are {_words(wanted)}; give resize=True "
            "to crop, shrink and convert it as download does"
        )


def _words(shape: tuple[int, int, int]) -> str:
    height, width, channels = shape
    return f"{width}×{height} {'grey' if channels == 1 else 'colour'}"


def _of_numbers(given: np.ndarray | Tensor, image: ImageConfig, resize: bool, name: str) -> Images:
    kind = getattr(
        given.dtype, "name", str(given.dtype).removeprefix("torch.")
    )  # NumPy's, torch's
    if kind == "uint8":
        return _of_bytes(given, image, resize, name)
    if not kind.startswith(("float", "bfloat")):
        raise UserError(
            f"{name}: numbers of type {kind}; give uint8 from 0 to 255, or floats in [0, 1]"
        )
    images = _floats(given)
    images = images[None] if images.ndim == 3 else images
    fits = images.ndim == 4 and len(images) > 0 and images.shape[1:] == image.shape
    if not fits and not (resize and _are_pictures(images, -3)):
        raise _misshapen(given, image, name, first=True)
    _check_values(images, name)
    if fits:
        return images
    stored = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return _of_stored(_fitted(stored, image, name))


def _floats(given: np.ndarray | Tensor) -> Tensor:
    """In torch's default type, which networks are loaded in; another byte order is none of it."""
    dtype = torch.get_default_dtype()
    if isinstance(given, Tensor):
        return given.detach().cpu().to(dtype)
    return torch.from_numpy(np.array(given, dtype=str(dtype).removeprefix("torch.")))


def _of_bytes(given: np.ndarray | Tensor, image: ImageConfig, resize: bool, name: str) -> Images:
    """Arrays have channels last, as pictures, tensors first, as in torchvision."""
    first = isinstance(given, Tensor)
    stored = given.cpu().numpy() if isinstance(given, Tensor) else given
    axis = -3 if first else -1
    stored = np.expand_dims(stored, axis) if stored.ndim == 2 else stored
    stored = stored[None] if stored.ndim == 3 else stored
    fits = stored.ndim == 4 and len(stored) > 0
    last = np.moveaxis(stored, axis, -1) if fits else stored
    if fits and last.shape[1:] == (image.size, image.size, image.channels):
        return _of_stored(last)
    if not (resize and _are_pictures(stored, axis)):
        raise _misshapen(given, image, name, first=first)
    return _of_stored(_fitted(last, image, name))


def _are_pictures(images: np.ndarray | Tensor, axis: int) -> bool:
    """Whether there are any, in a number of channels that pictures have."""
    return images.ndim == 4 and len(images) > 0 and images.shape[axis] in PICTURE_CHANNELS


def _fitted(stored: np.ndarray, image: ImageConfig, name: str) -> np.ndarray:
    """Each picture (H×W×C) cropped, shrunk and converted."""
    from PIL import Image

    rows = [row[..., 0] if row.shape[-1] == 1 else row for row in stored]
    names = [name] if len(rows) == 1 else [f"{name}, number {n}" for n in range(1, len(rows) + 1)]
    pairs = zip(rows, names, strict=True)
    return np.stack([_of_picture(Image.fromarray(row), image, True, n) for row, n in pairs])


def _misshapen(
    given: np.ndarray | Tensor, image: ImageConfig, name: str, *, first: bool
) -> UserError:
    """What is wrong with a shape, where channels are expected first or last, and what to do."""
    shape, (channels, *sides) = tuple(given.shape), image.shape
    wanted, other = (channels, *sides), (*sides, channels)
    if not first:
        wanted, other = other, wanted
    found = f"{name} have" if name == "images" else f"{name}: images have"
    start = f"{found} shape {shape}; give (count, {', '.join(map(str, wanted))})"
    if shape[-3:] == other:
        library = "torch" if isinstance(given, Tensor) else "numpy"
        where, move = ("last", "-1, -3") if first else ("first", "-3, -1")
        return UserError(
            f"{start}: channels are {where}, {library}.moveaxis(x, {move}) moves them"
        )
    if len(shape) in (3, 4) and 0 not in shape and shape[-3 if first else -1] in PICTURE_CHANNELS:
        return UserError(f"{start}, or resize=True to crop and shrink them as download does")
    return UserError(start)


def _check_values(images: Images, name: str) -> None:
    low, high = (end.item() for end in images.aminmax())
    if not math.isfinite(low + high):
        raise UserError(
            f"{name} hold numbers that are NaN or infinite; leave those images out, or give "
            "torch.nan_to_num of them"
        )
    if low >= 0 and high <= 1:
        return
    if high > 2:
        remedy = "divide by 255, or give uint8"
    elif low < -0.2:
        remedy = "(images + 1) / 2 for those in [-1, 1]"
    else:
        remedy = "clamp(0, 1), where they are reconstructions"
    raise UserError(f"{name} have values from {low:.3g} to {high:.3g}; scale to [0, 1]: {remedy}")

"""What people have as images: paths, pictures, arrays, tensors, streams; or one clear line."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import seeded
from pictures import COLOUR, GREY, encoded, noise
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from scorevae.config import ImageConfig
from scorevae.data.arrays import to_tensor, to_unit_range
from scorevae.data.given import is_stream, over, to_images
from scorevae.data.sources.pixels import decode
from scorevae.errors import UserError
from scorevae.shapes import Images

BYTES = noise(2, 8, 8, 3)  # two colour pictures
FLOATS = torch.rand(2, 3, 8, 8, generator=seeded(0))


def stored(values: np.ndarray) -> Tensor:
    """What the pipeline computes with for these stored images."""
    return to_unit_range(to_tensor(values))


GIVEN: dict[str, tuple[Any, np.ndarray]] = {
    "N×H×W×C": (BYTES, BYTES),
    "H×W×C": (BYTES[0], BYTES[:1]),
    "PIL": (Image.fromarray(BYTES[0]), BYTES[:1]),
    "list of PIL": ([Image.fromarray(row) for row in BYTES], BYTES),
    "tuple": (tuple(Image.fromarray(row) for row in BYTES), BYTES),
    "mixed": ([BYTES[1], Image.fromarray(BYTES[0])], BYTES[::-1]),
    "tensor of uint8": (torch.from_numpy(BYTES).permute(0, 3, 1, 2), BYTES),
    "C×H×W of uint8": (torch.from_numpy(BYTES[0]).permute(2, 0, 1), BYTES[:1]),
    "turned": (BYTES[:, ::-1], BYTES[:, ::-1]),
}


@pytest.mark.parametrize("name", GIVEN)
def test_bytes_are_those_of_the_pipeline(name: str) -> None:
    """Catches x/255, which differs in 63 of 256 float32 values, axes mixed up, lost pictures."""
    given, expected = GIVEN[name]
    assert torch.equal(to_images(given, COLOUR), stored(expected))


@pytest.mark.parametrize(
    "given",
    [BYTES[0, ..., 0], BYTES[0, ..., :1], torch.from_numpy(BYTES[0, ..., 0])],
    ids=["H×W", "H×W×1", "tensor H×W"],
)
def test_grey(given: np.ndarray | Tensor) -> None:
    """Catches rows taken for channels, and a picture without channels refused."""
    assert torch.equal(to_images(given, GREY), stored(BYTES[:1, ..., :1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_floats_come_in_the_type_of_networks(dtype: torch.dtype, default: torch.dtype) -> None:
    """Catches float64 arrays, which is what NumPy makes, that a network refuses."""
    torch.set_default_dtype(default)
    x = FLOATS.to(dtype)
    expected = x.to(default)
    for given in (x, x.numpy(), list(x), list(x.numpy()), x.numpy().astype(f">f{x.itemsize}")):
        found = to_images(given, COLOUR)
        assert found.dtype == default
        assert torch.equal(found, expected)
    assert torch.equal(to_images(x[0], COLOUR), expected[:1])
    assert torch.equal(to_images(x.clone().requires_grad_(), COLOUR), expected)


@pytest.mark.parametrize("as_text", [True, False])
def test_paths_are_read_as_download_reads_them(tmp_path: Path, as_text: bool) -> None:
    """Catches a second reader, that knows no EXIF, depth or transparency."""
    turned = Image.Exif()
    turned[274] = 6
    kinds = {
        "jpeg": encoded(noise(8, 8, 3), "JPEG", exif=turned),
        "deep.png": encoded(Image.fromarray(noise(8, 8).astype(np.uint16) * 250)),
        "opacity.png": encoded(noise(8, 8, 4)),
        "palette.gif": encoded(noise(8, 8, 3), "GIF"),
    }
    for name, data in kinds.items():
        path, image = tmp_path / f"{name}.file", GREY if name == "deep.png" else COLOUR
        path.write_bytes(data)
        expected = stored(decode(data, image)[None])
        assert torch.equal(to_images(str(path) if as_text else path, image), expected), name
        with Image.open(path) as opened:
            assert torch.equal(to_images(opened, image), expected), name


def test_resize_is_that_of_download(tmp_path: Path) -> None:
    """Catches another crop, filter or way to grey, and pictures that are changed unasked."""
    data = encoded(noise(31, 20, 3))
    (tmp_path / "a.png").write_bytes(data)
    for image in (COLOUR, GREY):
        expected = stored(decode(data, image)[None])
        array = np.asarray(Image.open(tmp_path / "a.png"))
        tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
        for given in (tmp_path / "a.png", array, tensor, tensor / 255, [array]):
            assert torch.equal(to_images(given, image, resize=True), expected)
    between = (torch.from_numpy(array.copy()).permute(2, 0, 1) - 0.4).clamp(min=0) / 255
    assert torch.equal(to_images(between, image, resize=True), expected)  # rounded, not cut off
    same = to_images(BYTES, COLOUR, resize=True)
    assert torch.equal(same, to_images(BYTES, COLOUR))
    assert torch.equal(to_images(FLOATS, COLOUR, resize=True), FLOATS)  # not rounded to 8 bits
    rgb = np.repeat(BYTES[..., :1], 3, axis=-1)
    assert torch.equal(to_images(BYTES[..., :1], COLOUR, resize=True), stored(rgb))


def picture(folder: Path, *shape: int) -> Path:
    """A file with noise."""
    (folder / "a.png").write_bytes(encoded(noise(*shape)))
    return folder / "a.png"


def text(folder: Path) -> Path:
    (folder / "notes.png").write_text("no picture")
    return folder / "notes.png"


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "size": (
        lambda f: picture(f, 20, 31, 3),
        "a.png: 31×20 colour, the model's images are 8×8 colour; give resize=True to crop, shrink "
        "and convert it as download does",
    ),
    "colour": (lambda f: picture(f, 8, 8), "a.png: 8×8 grey, the model's images are 8×8 colour;"),
    "second of a list": (
        lambda f: [Image.fromarray(BYTES[0]), Image.fromarray(BYTES[0, :5])],
        "picture 2: 8×5 colour, the model's images are 8×8 colour; give resize=True",
    ),
    "no file": (lambda f: f / "b.png", r"b.png: cannot be read \(No such file or directory\);"),
    "folder": (lambda f: f, r": a folder; give its pictures, as sorted\(Path\('.*'\).glob\("),
    "no picture": (text, "notes.png: cannot be decoded .*; give another picture"),
    "zero byte": (lambda f: "a\0b", "cannot be read .*; correct the path"),
    "empty list": (lambda f: [], "images: an empty list; give one picture or more"),
    "nothing": (lambda f: None, "images: got a NoneType; give a path, a PIL image, an array, "),
    "label": (lambda f: [BYTES[0], 7], "picture 2: got a int; give a path"),
    "empty array": (lambda f: FLOATS[:0], r"images have shape \(0, 3, 8, 8\); give \(count, 3, 8"),
    "array size": (
        lambda f: BYTES[:, :4],
        r"images have shape \(2, 4, 8, 3\); give \(count, 8, 8, 3\), or resize=True to crop",
    ),
    "tensor size": (
        lambda f: FLOATS[:, :, :4],
        r"images have shape \(2, 3, 4, 8\); give \(count, 3, 8, 8\), or resize=True",
    ),
    "floats with channels last": (
        lambda f: FLOATS.permute(0, 2, 3, 1),
        r"\(2, 8, 8, 3\); give \(count, 3, 8, 8\): channels are last, torch.moveaxis\(x, -1, -3\)",
    ),
    "bytes with channels first": (
        lambda f: np.moveaxis(BYTES, -1, 1),
        r"\(2, 3, 8, 8\); give \(count, 8, 8, 3\): channels are first, numpy.moveaxis\(x, -3,",
    ),
    "stack without channels": (lambda f: BYTES[..., 0], r"\(2, 8, 8\); give \(count, 8, 8, 3\)$"),
    "integers": (
        lambda f: BYTES.astype(int),
        r"images: numbers of type int64; give uint8 from 0 to 255, or floats in \[0, 1\]",
    ),
    "objects": (lambda f: np.array([None]), "images: numbers of type object;"),
    "0 to 255": (
        lambda f: FLOATS / FLOATS.max() * 255,
        r"images have values from .* to 255; scale to \[0, 1\]: divide by 255, or give uint8",
    ),
    "-1 to 1": (
        lambda f: 2 * FLOATS - 1,
        r"images have values from -.* to .*; scale to \[0, 1\]: \(images \+ 1\) / 2 for those",
    ),
    "reconstructions": (lambda f: FLOATS - 0.01, r"from -.*; scale to \[0, 1\]: clamp\(0, 1\)"),
    "NaN": (
        lambda f: torch.where(FLOATS > 0.9, torch.nan, FLOATS),
        "images hold numbers that are NaN or infinite; leave those images out, or give",
    ),
    "infinite": (lambda f: FLOATS / 0, "images hold numbers that are NaN or infinite"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, name: str) -> None:
    """Catches a traceback, a picture that is cropped or made grey unasked, and a vague message."""
    make, expected = WRONG[name]
    with pytest.raises(UserError) as caught:
        to_images(make(tmp_path), COLOUR)
    assert re.search(expected, caught.value.message), caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (BYTES[:, :5, :5], "images, number 1: 5×5 pixels, at least 8 pixels a side are asked for"),
        ([BYTES[0], BYTES[1, :5]], "picture 2: 8×5 pixels, at least 8 pixels a side are asked"),
        (np.zeros((2, 9, 9, 7), np.uint8), r"images have shape \(2, 9, 9, 7\); give \(count, 8"),
        (torch.full((1, 3, 9, 9), 3.0), "images have values from 3 to 3; scale"),
    ],
    ids=["small", "small in a list", "channels", "values"],
)
def test_what_cannot_be_resized_is_one_line(given: Any, expected: str) -> None:
    """Catches pictures that are enlarged, and arrays of which no picture can be made."""
    with pytest.raises(UserError, match=expected):
        to_images(given, COLOUR, resize=True)


def batches() -> Iterator[Tensor]:
    """A generator."""
    yield FLOATS
    yield FLOATS[:1]


STREAMS: dict[str, Callable[[], Any]] = {
    "generator": batches,
    "list of batches": lambda: [FLOATS, FLOATS[:1]],
    "labels": lambda: ((x, torch.zeros(len(x))) for x in batches()),
    "list of pairs": lambda: [(x.numpy(), [0]) for x in batches()],
    "DataLoader": lambda: DataLoader(TensorDataset(torch.cat([*batches()])), 2),
    "DataLoader of pairs": lambda: DataLoader(
        TensorDataset(torch.cat([*batches()]), torch.arange(3)), 2
    ),
    "lists of pictures": lambda: ([*x] for x in batches()),
}


def collected(given: Any, **changes: Any) -> Any:
    """Sums and seeds of everything that is given."""

    def run(x: Images, seed: int, report: Callable[[int], None]) -> tuple[Tensor, int]:
        report(len(x))
        return x, seed

    options = {"name": "encode", "seed": 3, "resize": False, "shown": False} | changes
    return over(given, COLOUR, run, **options)


@pytest.mark.parametrize("name", STREAMS)
def test_streams(name: str) -> None:
    """Catches batches taken for pictures, labels for images, and two batches of equal noise."""
    assert is_stream(STREAMS[name]())
    (first, seed), (second, other) = collected(STREAMS[name]())
    assert torch.equal(first, FLOATS)
    assert torch.equal(second, FLOATS[:1])
    assert seed == 3 != other


def test_streams_are_read_as_they_come() -> None:
    """Catches a stream that is collected, or checked, before the first result is there."""
    taken = []

    def endless() -> Iterator[Tensor]:
        while True:
            taken.append(None)
            yield FLOATS

    found = collected(endless())
    assert not taken
    next(found)
    next(found)
    assert len(taken) == 2
    stream = collected([FLOATS, FLOATS + 1])
    next(stream)
    with pytest.raises(UserError, match="batch 2 have values from"):
        next(stream)


@pytest.mark.parametrize("given", [BYTES, FLOATS, [*FLOATS], ["a"], "a", Path("a"), []])
def test_pictures_are_no_stream(given: Any) -> None:
    """Catches an array gone through image by image, and a path letter by letter."""
    assert not is_stream(given)


def test_progress_counts_images(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a count of batches, a count that starts anew in each, and lines unasked."""
    collected(FLOATS)
    assert capsys.readouterr().out == ""
    collected(FLOATS, shown=True)
    assert capsys.readouterr().out == "encode: 2/2\n"
    many = torch.zeros(1, 3, 8, 8).expand(6000, -1, -1, -1)
    assert len([*collected(iter([many, many]), shown=True)]) == 2
    assert capsys.readouterr().out == "encode: 12000\n"


def test_another_size_of_model() -> None:
    """Catches a size or a number of channels that is assumed."""
    image = ImageConfig(channels=1, size=5)
    assert to_images(BYTES, image, resize=True).shape == (2, 1, 5, 5)

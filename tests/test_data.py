"""data: what is stored, how it is split, and which images a step sees."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from scorevae import data
from scorevae.config import DataConfig, ImageConfig
from scorevae.data import (
    Source,
    Split,
    batches,
    load_split,
    prepare,
    read_digits,
    to_tensor,
    to_unit_range,
)
from scorevae.errors import UserError
from scorevae.files import sha256

IMAGE = ImageConfig(channels=1, size=8)
DIGITS = DataConfig(source="digits", image=IMAGE, test_fraction=0.2, split_seed=0)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as the stage download writes them."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    prepare(DIGITS, folder)
    return folder


def numbered(count: int) -> np.ndarray:
    """Images of one pixel; image i has the value i."""
    return np.arange(count, dtype=np.uint8)[:, None, None, None]


def numbers(images: torch.Tensor) -> list[int]:
    """Which of the numbered images these are."""
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_prepared_folder(prepared: Path) -> None:
    """Catches wrong counts or hashes in meta.json, and stray or missing files."""
    arrays = [f"{s}_{kind}.npy" for s in ("test", "train") for kind in ("images", "labels")]
    assert sorted(p.name for p in prepared.iterdir()) == sorted(["meta.json", *arrays])
    meta = json.loads((prepared / "meta.json").read_text())
    assert meta["sha256"] == {name: sha256(prepared / name) for name in arrays}
    counts = {s: len(np.load(prepared / f"{s}_images.npy")) for s in ("train", "test")}
    assert meta["images"] == counts
    assert sum(meta["images"].values()) == 1797
    assert meta["shape"] == [8, 8, 1]
    assert "CC BY 4.0" in meta["licence"]


def test_load_split(prepared: Path) -> None:
    """Catches images and labels that lose their order or their type on the way through files."""
    source = read_digits(DIGITS)
    for name, split in (("train", source.train), ("test", source.test)):
        loaded = load_split(prepared, name, IMAGE)
        assert loaded.images.dtype == np.uint8
        np.testing.assert_array_equal(loaded.images, split.images)
        np.testing.assert_array_equal(loaded.labels, split.labels)


def test_split_is_complete_and_stratified() -> None:
    """Catches images lost, used twice, or parted from their labels, and uneven classes."""
    from sklearn.datasets import load_digits

    train, test, *_ = read_digits(DIGITS)
    bunch = load_digits()
    pixels = np.concatenate([train.images, test.images]).reshape(1797, 64)
    labels = np.concatenate([train.labels, test.labels])
    expected = np.column_stack([np.round(bunch.images * 255 / 16).reshape(1797, 64), bunch.target])
    found = np.column_stack([pixels, labels])
    np.testing.assert_array_equal(np.sort(found.view(), axis=0), np.sort(expected, axis=0))
    assert sorted(map(tuple, found)) == sorted(map(tuple, expected))
    for label in range(10):  # a stratified share differs from the exact one by rounding alone
        share = 0.2 * np.sum(bunch.target == label)
        assert abs(np.sum(test.labels == label) - share) < 1


def test_split_follows_from_its_seed() -> None:
    """Catches a split that depends on anything but the settings, or not on the seed."""
    first, again = read_digits(DIGITS), read_digits(DIGITS)
    other = read_digits(DIGITS.model_copy(update={"split_seed": 1}))
    np.testing.assert_array_equal(first.test.images, again.test.images)
    assert not np.array_equal(first.test.images, other.test.images)


def test_grey_values_use_the_whole_range() -> None:
    """Catches the digits' 0 to 16 stored unscaled."""
    images = read_digits(DIGITS).train.images
    assert (images.min(), images.max()) == (0, 255)
    assert set(np.unique(images)) <= {round(i * 255 / 16) for i in range(17)}


def test_to_tensor_is_exact_at_the_ends() -> None:
    """Catches [0, 1] or 127/128 scaling and channels left last."""
    stored = np.arange(256, dtype=np.uint8).reshape(2, 8, 16, 1).repeat(3, axis=3)
    x = to_tensor(stored)
    assert (x.shape, x.dtype) == ((2, 3, 8, 16), torch.float32)
    assert (x.min(), x.max()) == (-1, 1)
    # One rounding each in the division, the subtraction and the reference: 3 of 2^-24 below 2.
    expected = torch.arange(256, dtype=torch.float64).reshape(2, 1, 8, 16).expand(-1, 3, -1, -1)
    assert ((x - (expected / 127.5 - 1)).abs() <= 3 * 2**-23).all()
    assert (to_unit_range(x) * 255).round().int().tolist() == expected.int().tolist()


def test_to_unit_range_keeps_what_is_outside() -> None:
    """Catches clamping, which would make errors look smaller than they are."""
    x = torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.0]).reshape(1, 1, 1, 5)
    assert to_unit_range(x).flatten().tolist() == [-1, 0, 0.5, 1, 1.5]


def test_an_epoch_holds_every_image_once() -> None:
    """Catches drawing with replacement, and an off-by-one at the end of an epoch."""
    rows = batches(numbered(12), 4, seed=3)
    for epoch in range(3):
        seen = [n for step in range(3 * epoch, 3 * epoch + 3) for n in numbers(rows(step))]
        assert sorted(seen) == list(range(12))


def test_the_remainder_is_left_out_anew_each_epoch() -> None:
    """Catches a short last batch, and images that no epoch ever shows."""
    rows = batches(numbered(10), 4, seed=3)
    assert all(len(rows(step)) == 4 for step in range(8))
    assert {n for step in range(40) for n in numbers(rows(step))} == set(range(10))


def test_batches_are_a_function_of_the_step() -> None:
    """Catches state kept between calls: a resumed run would see other images."""
    rows, again = (batches(numbered(12), 4, seed=3) for _ in range(2))
    forwards = [numbers(rows(step)) for step in range(9)]
    backwards = [numbers(again(step)) for step in reversed(range(9))]
    assert forwards == backwards[::-1]


def test_epochs_and_seeds_differ() -> None:
    """Catches one order for all epochs or for all seeds (equal by chance: 1 in 12!)."""
    rows, other = batches(numbered(12), 12, seed=3), batches(numbered(12), 12, seed=4)
    assert numbers(rows(0)) != numbers(rows(1))
    assert numbers(rows(0)) != numbers(other(0))


@pytest.mark.parametrize("size", [4, 5])
def test_shares_partition_the_batch(size: int) -> None:
    """Catches processes that train on the same images, or drop some."""
    whole = batches(numbered(12), size, seed=3)
    shares = [batches(numbered(12), size, seed=3, share=(rank, 2)) for rank in range(2)]
    for step in range(6):
        parts = [numbers(rows(step)) for rows in shares]
        assert sorted(parts[0] + parts[1]) == sorted(numbers(whole(step)))


@pytest.mark.parametrize(("size", "processes"), [(13, 1), (1, 2)])
def test_batch_that_does_not_fit(size: int, processes: int) -> None:
    """Catches a division by zero, or a process without images, instead of an explanation."""
    expected = rf"training.batch: got {size}; choose .* {processes} \(processes\) to 12 "
    with pytest.raises(UserError, match=expected):
        batches(numbered(12), size, seed=0, share=(0, processes))


def test_wrong_shape_is_named(prepared: Path) -> None:
    """Catches data of another preset that would fail inside a network."""
    with pytest.raises(UserError, match=r"test_images.npy: .*\(8, 8, 1\).*\(16, 16, 3\)"):
        load_split(prepared, "test", ImageConfig(channels=3, size=16))


def test_prepare_writes_nothing_on_a_wrong_shape(tmp_path: Path) -> None:
    """Catches a half-written data set that the next stage would accept."""
    settings = DIGITS.model_copy(update={"image": ImageConfig(channels=1, size=9)})
    with pytest.raises(UserError, match=r"data source 'digits': .* correct data.image"):
        prepare(settings, tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["absent", "truncated", "text"])
def test_damaged_array(tmp_path: Path, damage: str) -> None:
    """Catches numpy's traceback where a file is missing or cut off."""
    path = tmp_path / "train_images.npy"
    np.save(path, np.zeros((5, 8, 8, 1), dtype=np.uint8))
    match damage:
        case "absent":
            path.unlink()
        case "truncated":
            path.write_bytes(path.read_bytes()[:200])
        case "text":
            path.write_text("not an array")
    with pytest.raises(UserError, match=r"train_images.npy: cannot be read .* run the stage down"):
        load_split(tmp_path, "train", IMAGE)


def test_source_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches the assumption that every data set has labels."""
    split = Split(np.zeros((3, 8, 8, 1), dtype=np.uint8), None)
    monkeypatch.setitem(data.SOURCES, "digits", lambda s: Source(split, split, "test", "none"))
    prepare(DIGITS, tmp_path / "out")
    assert load_split(tmp_path / "out", "train", IMAGE).labels is None

"""data: what is stored, how it is read, and which images a step sees."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import GREY, noise

from scorevae.config import ImageConfig
from scorevae.data import batches as reading
from scorevae.data.arrays import class_names, load_split, to_tensor, to_unit_range
from scorevae.data.batches import batches, default_workers
from scorevae.errors import UserError


def numbered(count: int) -> np.ndarray:
    """Images of one pixel; image i has the value i."""
    return np.arange(count, dtype=np.uint8)[:, None, None, None]


def numbers(images: torch.Tensor) -> list[int]:
    """Which of the numbered images these are."""
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def lopsided(count: int) -> np.ndarray:
    """Images of two pixels side by side, i and 255: mirrored ones have 255 on the left."""
    right = np.full_like(numbered(count), 255)
    return np.concatenate([numbered(count), right], axis=2)


def sides(images: torch.Tensor) -> tuple[list[int], list[bool]]:
    """Which of the lopsided images these are, and which of them are mirrored."""
    mirrored = images[:, 0, 0, 0] == 1
    return numbers(images.amin(dim=3, keepdim=True)), mirrored.tolist()


def write_split(folder: Path, count: int = 20, labels: np.ndarray | None = None) -> np.ndarray:
    """Random training images of 8×8 pixels as a prepared data set; they are returned."""
    images = noise(count, 8, 8, 1)
    np.save(folder / "train_images.npy", images)
    if labels is not None:
        np.save(folder / "train_labels.npy", labels)
    return images


# --- stored arrays ---------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 7, 20, 100])
@pytest.mark.parametrize("attributes", [None, (), (3,)])
def test_load_split(tmp_path: Path, limit: int | None, attributes: tuple[int, ...] | None) -> None:
    """Catches images or labels cut differently or flattened, and a data set read as a whole."""
    labels = None if attributes is None else noise(20, *attributes, seed=1) % 2
    images = write_split(tmp_path, labels=labels)
    loaded = load_split(tmp_path, "train", GREY, limit)
    assert isinstance(loaded.images, np.memmap)
    assert loaded.images.dtype == np.uint8
    np.testing.assert_array_equal(loaded.images, images[:limit])
    np.testing.assert_array_equal(loaded.labels, None if labels is None else labels[:limit])


def test_wrong_shape_is_named(tmp_path: Path) -> None:
    """Catches data of another preset that would fail inside a network."""
    write_split(tmp_path)
    with pytest.raises(UserError, match=r"train_images.npy: .*\(8, 8, 1\).*\(16, 16, 3\)"):
        load_split(tmp_path, "train", ImageConfig(channels=3, size=16))


@pytest.mark.parametrize("damage", [
    Path.unlink, lambda path: os.truncate(path, 200), lambda path: path.write_text("no array"),
], ids=["absent", "truncated", "text"])  # fmt: skip
def test_damaged_array(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    """Catches numpy's traceback where a file is missing or cut off."""
    write_split(tmp_path)
    damage(tmp_path / "train_images.npy")
    with pytest.raises(UserError, match=r"train_images.npy: cannot be read .* run the stage down"):
        load_split(tmp_path, "train", GREY)


# --- tensors ---------------------------------------------------------------------------------


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


def test_arrays_and_tensors_are_scaled_alike() -> None:
    """Catches batches from workers or from the GPU on another scale than arrays."""
    stored = noise(4, 5, 6, 3)
    assert torch.equal(to_tensor(torch.from_numpy(stored)), to_tensor(stored))


def test_to_unit_range_keeps_what_is_outside() -> None:
    """Catches clamping, which would make errors look smaller than they are."""
    x = torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.0]).reshape(1, 1, 1, 5)
    assert to_unit_range(x).flatten().tolist() == [-1, 0, 0.5, 1, 1.5]


# --- order -----------------------------------------------------------------------------------


def test_an_epoch_holds_every_image_once() -> None:
    """Catches drawing with replacement, an off-by-one at its end, and one order for all.

    Epochs and seeds are in one order by chance: 1 in 12!.
    """
    rows, other = (batches(numbered(12), 4, seed=seed, flip=False) for seed in (3, 4))
    epochs = [
        [n for step in range(first, first + 3) for n in numbers(draw(step))]
        for draw in (rows, other)
        for first in (0, 3, 6)
    ]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 6


def test_the_remainder_is_left_out_anew_each_epoch() -> None:
    """Catches a short last batch, and images that no epoch ever shows."""
    rows = batches(numbered(10), 4, seed=3, flip=False)
    assert all(len(rows(step)) == 4 for step in range(8))
    assert {n for step in range(40) for n in numbers(rows(step))} == set(range(10))


def test_batches_are_a_function_of_the_step() -> None:
    """Catches state kept between calls: a resumed run would see other images or mirrorings."""
    rows, again = (batches(lopsided(12), 4, seed=3, flip=True) for _ in range(2))
    forwards = [sides(rows(step)) for step in range(9)]
    backwards = [sides(again(step)) for step in reversed(range(9))]
    assert forwards == backwards[::-1]


@pytest.mark.parametrize("size", [4, 5])
def test_shares_make_up_the_batch(size: int) -> None:
    """Catches processes that train on the same images, drop some, or mirror others."""
    whole = batches(lopsided(12), size, seed=3, flip=True)
    shares = [batches(lopsided(12), size, seed=3, flip=True, share=(rank, 2)) for rank in range(2)]
    for step in range(6):
        parts = [image for share in shares for image in zip(*sides(share(step)), strict=True)]
        assert sorted(parts) == sorted(zip(*sides(whole(step)), strict=True))


@pytest.mark.parametrize(("size", "processes"), [(13, 1), (1, 2)])
def test_batch_that_does_not_fit(size: int, processes: int) -> None:
    """Catches a division by zero, or a process without images, instead of an explanation."""
    expected = rf"training.batch: got {size}; choose .* {processes} \(processes\) to 12 "
    with pytest.raises(UserError, match=expected):
        batches(numbered(12), size, seed=0, flip=False, share=(0, processes))


# --- mirroring -------------------------------------------------------------------------------


def test_half_of_the_images_are_mirrored() -> None:
    """Catches another probability, one coin for a whole batch, and a fixed coin for each image.

    Every batch is all 64 images, so that 100 steps give each image 100 coins. Counts of n fair
    coins have the standard deviation √n/2; allowed are five of it over all, and six, which 164
    counts exceed with probability 3e-7, for each batch and each image. No coin without flip.
    """
    rows, plain = (batches(lopsided(64), 64, seed=0, flip=flip) for flip in (True, False))
    mirrored = np.zeros((100, 64))
    for step in range(100):
        order, coins = sides(rows(step))
        mirrored[step, order] = coins
        assert not any(sides(plain(step))[1])
    assert abs(mirrored.sum() - 3200) <= 5 * 6400**0.5 / 2
    assert np.abs(mirrored.sum(axis=1) - 32).max() <= 6 * 64**0.5 / 2
    assert np.abs(mirrored.sum(axis=0) - 50).max() <= 6 * 100**0.5 / 2


def test_mirroring_is_left_to_right() -> None:
    """Catches rows exchanged with columns or channels, and images mirrored one for another."""
    stored = noise(6, 3, 5, 2)
    plain, flipped = (batches(stored, 6, seed=0, flip=flip)(0) for flip in (False, True))
    turned = np.array([not torch.equal(a, b) for a, b in zip(plain, flipped, strict=True)])
    assert 0 < turned.sum() < 6  # else the seed shows nothing
    for before, after, was in zip(plain.numpy(), flipped.numpy(), turned, strict=True):
        np.testing.assert_array_equal(after, before[:, :, ::-1] if was else before)


def test_mirroring_follows_from_seed_and_step() -> None:
    """Catches coins that depend on the data, and the same coins in every step or seed."""

    def coins(count: int, seed: int) -> list[list[bool]]:
        rows = batches(lopsided(count), 12, seed=seed, flip=True)
        return [sides(rows(step))[1] for step in range(5)]

    assert coins(12, seed=3) == coins(200, seed=3)
    assert len({tuple(step) for step in coins(12, seed=3)}) == 5  # by chance equal: 10 in 2^12
    assert coins(12, seed=3) != coins(12, seed=4)


# --- reading ahead ---------------------------------------------------------------------------


@pytest.mark.parametrize("mapped", [False, True])
def test_workers_change_no_number(tmp_path: Path, mapped: bool) -> None:
    """Catches steps out of order or from the start after a jump, and workers that mix batches.

    The jumps are those of training that goes on from a saved state, and of validation. And a
    loader that seeds its workers from the generator that dropout draws from.
    """
    images = write_split(tmp_path, count=50)
    if mapped:
        images = load_split(tmp_path, "train", GREY).images
    before = torch.get_rng_state()
    plain, ahead = (
        batches(images, 8, seed=1, flip=True, share=(1, 2), workers=workers) for workers in (0, 2)
    )
    for step in (*range(5), *range(40, 45), 2, 3, 3):
        assert torch.equal(ahead(step), plain(step)), step
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("limit", [None, 40])
def test_images_travel_to_a_worker(tmp_path: Path, limit: int | None, mapped: bool) -> None:
    """Catches a copy of a map for each worker that is not forked, and an array sought on disk."""
    images = write_split(tmp_path, count=1000)[:limit]
    if mapped:
        images = load_split(tmp_path, "train", GREY, limit).images
    stored = reading._Stored(images, reading.Draw(len(images), 8, 3, slice(None)))
    sent = pickle.dumps(stored)
    assert (len(sent) < 1000) == mapped  # 40 images are 2,560 bytes
    received = pickle.loads(sent)
    for step in range(12):
        assert torch.equal(received[step], stored[step])


@pytest.mark.parametrize(("device", "cores", "chosen", "expected"), [
    ("cpu", 8, "", 0), ("cuda", 8, "", 4), ("cuda", 2, "", 2), ("cuda", None, "", 1),
    ("cpu", 8, "3", 3), ("cuda", 2, "0", 0), ("cuda", 2, "12", 12),
])  # fmt: skip
def test_default_workers(
    monkeypatch: pytest.MonkeyPatch, device: str, cores: int | None, chosen: str, expected: int
) -> None:
    """Catches processes on a CPU that has better things to do, and a choice that is ignored."""
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    if chosen:
        monkeypatch.setenv("SCOREVAE_WORKERS", chosen)
    assert default_workers(torch.device(device)) == expected


@pytest.mark.parametrize("chosen", ["-1", "two", "1.5", "", "²"])
def test_wrong_number_of_workers(monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    """Catches Python's error for a variable that is no number."""
    monkeypatch.setenv("SCOREVAE_WORKERS", chosen)
    expected = f"^SCOREVAE_WORKERS: got {chosen!r}; give a whole number from 0$"
    with pytest.raises(UserError, match=expected):
        batches(numbered(12), 4, seed=0, flip=False)


@pytest.mark.parametrize(("argument", "expected"), [(None, [2]), (3, [3]), (0, [])])
def test_choice_of_workers_is_used(
    monkeypatch: pytest.MonkeyPatch, argument: int | None, expected: list[int]
) -> None:
    """Catches a variable that is read and ignored, or one that overrides the argument."""
    seen: list[int] = []
    monkeypatch.setattr(reading, "_ReadAhead", lambda images, draw, workers: seen.append(workers))
    monkeypatch.setenv("SCOREVAE_WORKERS", "2")
    batches(numbered(12), 4, seed=0, flip=False, workers=argument)
    assert seen == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("free", [None, 0])
def test_gpu_gets_the_same_numbers(monkeypatch: pytest.MonkeyPatch, free: int | None) -> None:
    """Catches a copy on the GPU, or pinned memory read too soon, that gives other images."""
    if free is not None:
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free, free))
    stored = noise(50, 8, 8, 3)
    here = batches(stored, 8, seed=1, flip=True, share=(1, 2))
    there = batches(stored, 8, seed=1, flip=True, share=(1, 2), device="cuda", workers=2)
    for step in (*range(20), 40, 41):
        images = there(step)
        assert images.device.type == "cuda"
        # Division by 127.5 may be a multiplication there: one unit in the last place below 2.
        assert (images.cpu() - here(step)).abs().max() <= 2**-23


@pytest.mark.parametrize(("meta", "expected"), [
    ('{"classes": ["cat", "dog"]}', {0: "cat", 1: "dog"}),
    ("{}", {}),  # CelebA's attributes
    ("{", {}),
    (None, {}),
])  # fmt: skip
def test_class_names(tmp_path: Path, meta: str | None, expected: dict[int, str]) -> None:
    """Catches an evaluation that fails for want of a legend."""
    if meta is not None:
        (tmp_path / "meta.json").write_text(meta)
    assert class_names(tmp_path) == expected

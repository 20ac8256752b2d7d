"""state: one training, one name, one holder; a damaged state is not fatal."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Timer

import pytest
import torch
import yaml
from filelock import FileLock
from limits import disk_of
from tiny import tiny_config

from scorevae.errors import UserError
from scorevae.runtime.interruption import Interrupted
from scorevae.runtime.state import (
    BatchFolder,
    StateFile,
    StateFolder,
    code_of,
    resumable,
    state_key,
    state_root,
)


def test_key_follows_from_settings_and_inputs(tmp_path: Path) -> None:
    """Catches resuming a training with other settings, seed or prior, or not from another folder.

    `dvc exp run --temp` works in a folder of its own.
    """
    for name, text in (("prior", "weights"), ("elsewhere", "weights"), ("other", "others")):
        (tmp_path / name).write_text(text)
    prior, moved, other = ([tmp_path / name] for name in ("prior", "elsewhere", "other"))
    sde = tiny_config().sde
    key = state_key([0, sde, "phase"], prior)
    assert state_key([0, tiny_config().sde, "phase"], moved) == key
    others = {
        state_key([1, sde, "phase"], prior),
        state_key([0, sde.model_copy(update={"t_min": 2e-3}), "phase"], prior),
        state_key([0, sde, "other"], prior),
        state_key([0, sde, "phase"], []),
        state_key([0, sde, "phase"], other),
    }
    assert len({key} | others) == 6


def test_code_is_an_input_of_every_stage_with_states() -> None:
    """Catches a training that is begun by one code and finished by another."""
    for stage in (
        "train_prior",
        "train_vae_baseline",
        "train_encoder",
        "train_variants",
        "reconstruct",
    ):
        files = code_of(stage)
        assert {f"{stage}.py", "randomness.py"} <= {path.name for path in files}
        assert all(path.is_file() and path.suffix == ".py" for path in files)
    # whole packages file by file
    assert "loop.py" in {path.name for path in code_of("train_prior")}


@contextmanager
def interrupted(stage: str, key: str) -> Iterator[StateFolder]:
    """Hold a computation that does not come to its end."""
    with suppress(KeyboardInterrupt), resumable(stage, key) as folder:
        yield folder
        raise KeyboardInterrupt


def test_state_survives_the_process() -> None:
    """Catches a state that is not found under the same stage and key, or found under others."""
    state = {"step": 3, "module": {"weight": torch.arange(3.0)}, "rows": [(1, {"loss": 0.5})]}
    with interrupted("stage", "key") as folder:
        assert folder.file("phase").load() is None
        folder.file("phase").save(state)
        assert folder.file("other").load() is None
    with resumable("stage", "key") as folder:
        loaded = folder.file("phase").load()
    torch.testing.assert_close(loaded, state, rtol=0, atol=0)
    with resumable("stage", "another") as folder:
        assert folder.file("phase").load() is None


PHASES = ("warm_start", "objective")
NOTHING, KEPT = [None, None], [{"step": 2}, {"step": 2}]


def compute(key: str = "key") -> list[dict | None]:
    """A computation of two phases that succeeds; the states that it found."""
    with resumable("stage", key) as folder:
        found = [folder.file(name).load() for name in PHASES]
        for name in PHASES:
            folder.file(name).save({"step": 1})
            folder.file(name).save({"step": 2})
    return found


def test_without_dvc_nothing_is_kept() -> None:
    """Catches a finished training that the next one would take for its own."""
    assert compute() == compute() == NOTHING


@pytest.fixture
def under_dvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of DVC that runs the stage; its root."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "stage")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def test_finished_states_serve_until_dvc_has_recorded(
    under_dvc: Path, capsys: pytest.CaptureFixture
) -> None:
    """Catches a result lost when DVC could not record it, and one used after it could."""
    lock = under_dvc / "dvc.lock"
    for entry in ({}, {"outs": [{"md5": "1"}]}, {"outs": [{"md5": "2"}]}):
        lock.write_text(yaml.safe_dump({"schema": "2.0", "stages": {"stage": entry}}))
        assert compute() == NOTHING
        assert "not recorded" not in capsys.readouterr().out
        assert compute() == compute() == KEPT
        assert "finished before, not recorded by DVC; used now" in capsys.readouterr().out
    lock.unlink()
    assert [compute(), compute()] == [NOTHING, KEPT]


def test_damaged_record_is_named(under_dvc: Path) -> None:
    """Catches a traceback at what a merge left of dvc.lock, or a training begun beside it."""
    (under_dvc / "dvc.lock").write_text("schema: '2.0'\n<<<<<<< HEAD\nstages: {}\n")
    with pytest.raises(UserError, match=r"dvc\.lock: not valid YAML: line 3: "):
        compute()


def test_equal_outputs_are_told_by_the_time_of_recording(under_dvc: Path) -> None:
    """Catches a --force that computes nothing because the recorded bytes are the same."""
    lock = under_dvc / "dvc.lock"
    lock.write_text("stages: {}")
    for seconds in (1, 2):
        os.utime(lock, (seconds, seconds))
        for found in (None, torch.arange(2.0)):
            with resumable("reconstruct", "key", repeats=True) as folder:
                kept = folder.batches().load(slice(0, 2))
                assert kept is None if found is None else torch.equal(kept, found)
                folder.batches().save(slice(0, 2), torch.arange(2.0))


def test_full_disk_at_the_end_loses_nothing(under_dvc: Path) -> None:
    """Catches a mark that is begun and not written, and then taken for another record."""
    with resumable("stage", "key") as folder:
        folder.file("objective").save({"step": 2})
        stack = ExitStack()
        stack.enter_context(disk_of(0))
    stack.close()
    assert {path.name for path in folder.folder.iterdir()} == {"objective.pt", "lock", "owner"}
    assert compute() == [None, {"step": 2}]


def test_finished_states_are_kept_once_and_swept_after_days(under_dvc: Path) -> None:
    """Catches twice the disk, a result of long ago, a sweep of what is unfinished or in use."""
    for key in ("old", "recent", "held", "unfinished"):
        compute(key)
    folders = {path.name: path for path in (state_root() / "stage").iterdir()}
    kept = {"warm_start.pt", "objective.pt", "finished", "lock", "owner"}
    assert all({path.name for path in folder.iterdir()} == kept for folder in folders.values())
    for key in ("old", "held"):
        os.utime(folders[key] / "finished", (0, 0))
    (folders["unfinished"] / "finished").unlink()
    with FileLock(folders["held"] / "lock"):
        compute("new")
    there = {key for key, folder in folders.items() if list(folder.glob("*.pt"))}
    assert there == {"recent", "held", "unfinished"}
    os.utime(folders["recent"] / "finished", (0, 0))
    assert compute("recent") == NOTHING


@pytest.fixture
def in_a_copy(under_dvc: Path, monkeypatch: pytest.MonkeyPatch) -> FileLock:
    """DVC runs the stage in a copy of a repository, where it has finished; the held lock."""
    compute()
    monkeypatch.setenv("SCOREVAE_STATE", str(state_root()))
    monkeypatch.setenv("DVC_ROOT", str(under_dvc.parent))
    lock = FileLock(state_root() / "stage" / "key" / "lock", thread_local=False)
    lock.acquire()
    return lock


def test_copy_of_the_repository_waits(
    under_dvc: Path, in_a_copy: FileLock, capsys: pytest.CaptureFixture
) -> None:
    """Catches queued experiments that fail because another one trains the prior they share."""
    (under_dvc / "dvc.lock").write_text("stages: {stage: {}}")  # of another baseline
    Timer(0.2, in_a_copy.release).start()
    assert compute() == KEPT
    waiting = rf"waiting for process {os.getpid()}, which is at exactly this"
    assert waiting in capsys.readouterr().out


def test_waiting_can_be_stopped(in_a_copy: FileLock) -> None:
    """Catches an experiment that cannot be stopped while it waits, or takes the lock with it."""
    Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(Interrupted, match="stopped by SIGTERM while waiting"):
        compute()
    in_a_copy.release()
    assert compute() == KEPT


def test_second_holder_is_refused() -> None:
    """Catches two processes on one state, and a message that does not say which to stop.

    The lock is the operating system's and counts per opened file, so that a second opening in
    this process stands for another process.
    """
    with resumable("stage", "key") as folder:
        owner = folder.folder / "owner"
        assert owner.read_text() == str(os.getpid())
        holder = rf"process {os.getpid()} .* \(kill {os.getpid()}\)"
        with pytest.raises(UserError, match=holder), resumable("stage", "key"):
            pass
        with resumable("stage", "another"):
            pass
        owner.unlink()  # as in the moment between locking and writing the pid
        with pytest.raises(UserError, match="process unknown"), resumable("stage", "key"):
            pass
    with pytest.raises(ValueError, match="stop"), resumable("stage", "key"):  # free again
        raise ValueError("stop")
    with resumable("stage", "key"):  # although it failed
        pass


def saved(folder: Path, *steps: int, key: str = "key") -> StateFile:
    """A state file that was saved once for each step."""
    state = StateFile(folder / "phase.pt", key)
    for step in steps:
        state.save({"step": step, "weight": torch.arange(1000.0) + step})
    return state


def test_state_before_the_last_is_kept(tmp_path: Path) -> None:
    """Catches a single state, more than two, which fill the disk, and a damaged one that is kept.

    The first save after a restart would put it in place of the good one.
    """
    state = saved(tmp_path, 1, 2, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["phase.previous.pt", "phase.pt"]
    state.path.unlink()  # as between the two renames of a save
    assert state.load()["step"] == 2
    state.path.write_bytes(b"damaged")
    assert state.load()["step"] == 2
    state.save({"step": 4})
    state.path.unlink()
    assert state.load()["step"] == 2


def test_state_truncated_at_any_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a length at which torch returns something, or fails in its own way."""
    state = saved(tmp_path, 1, 2)
    whole, before = state.path.read_bytes(), state.previous.read_bytes()
    for length in (*range(0, len(whole), 37), *range(len(whole) - 40, len(whole))):
        state.path.write_bytes(whole[:length])
        assert state.load()["step"] == 1
        message = capsys.readouterr().out
        assert f"{state.path}: state ignored (" in message
        assert message.endswith("the one saved before it is used\n")
        assert not state.path.exists()
        assert state.previous.read_bytes() == before
    state.path.write_bytes(whole)
    assert state.load()["step"] == 2


def test_changed_byte_is_no_other_weight(tmp_path: Path) -> None:
    """Catches a flipped bit of a bad disk that goes into the weights unnoticed."""
    whole = saved(tmp_path, 1, 2).path.read_bytes()
    for byte in range(0, len(whole), 400):
        state = saved(tmp_path, 1, 2)
        state.path.write_bytes(whole[:byte] + bytes([whole[byte] ^ 0x10]) + whole[byte + 1 :])
        loaded = state.load()
        assert torch.equal(loaded["weight"], torch.arange(1000.0) + loaded["step"]), byte


@pytest.mark.parametrize(("damage", "reason"), [
    (lambda path: path.write_text("no state at all"), ""),
    (lambda path: torch.save({"path": path}, path), ""),
    (lambda path: torch.save({"step": 3}, path), ""),
    (lambda path: torch.save([1, 2], path), ""),
    (lambda path: saved(path.parent, 3, key="theirs"), "of the training theirs, not of key"),
], ids=["text", "pickle", "foreign", "list", "other parameters"])  # fmt: skip
def test_what_is_no_state_is_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture, damage: Callable[[Path], object], reason: str
) -> None:
    """Catches a restart that fails for ever, code out of a pickle, weights of another training."""
    state = StateFile(tmp_path / "phase.pt", "key")
    damage(state.path)
    assert state.load() is None
    message = capsys.readouterr().out
    assert f"{state.path}: state ignored ({reason}" in message
    assert message.endswith("starting from step 0\n")
    state.save({"step": 4})
    assert not state.previous.exists()


@pytest.mark.parametrize("size", [0, 100, 3000])
def test_full_disk_leaves_both_states(tmp_path: Path, size: int) -> None:
    """Catches a traceback of torch's writer, and a good state lost to half a new one."""
    state = saved(tmp_path, 1, 2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    message = rf"{state.path}: cannot be written \(.*\); free some space"
    with disk_of(size), pytest.raises(UserError, match=message):
        state.save({"step": 3, "weight": torch.arange(1000.0)})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert state.load()["step"] == 2


def test_batches_are_kept_until_the_end() -> None:
    """Catches a batch under the rows of another, and batches that a second run would reuse."""
    images = torch.arange(6.0).reshape(3, 2)
    with interrupted("reconstruct", "key") as folder:
        kept = folder.batches()
        assert kept.load(slice(0, 3)) is None
        kept.save(slice(0, 3), images)
        assert kept.load(slice(0, 2)) is None
        kept.save(slice(3, 5), images[:2])
        assert kept.rows() == 5
    with resumable("reconstruct", "key") as folder:
        assert torch.equal(folder.batches().load(slice(0, 3)), images)
    with resumable("reconstruct", "key") as folder:
        assert folder.batches().load(slice(0, 3)) is None


def test_truncated_batch_is_drawn_again(tmp_path: Path) -> None:
    """Catches half a batch taken for images, and a restart that fails for ever."""
    kept = BatchFolder(tmp_path)
    kept.save(slice(0, 3), torch.arange(6.0))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert kept.load(slice(0, 3)) is None

"""state: one training, one name, one holder; a damaged state is not fatal."""

import os
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from tiny import tiny_config

from scorevae.errors import UserError
from scorevae.state import StateFile, resumable, state_key, state_root


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """An input of a training."""
    path = tmp_path / "prior.safetensors"
    path.write_text("weights")
    return path


def test_key_follows_from_settings_and_inputs(weights: Path) -> None:
    """Catches resuming a training with other settings, another seed, or another prior."""
    config = tiny_config()
    key = state_key([0, config.sde, "phase"], [weights])
    assert state_key([0, tiny_config().sde, "phase"], [weights]) == key
    other_sde = config.sde.model_copy(update={"t_min": 2e-3})
    others = [
        state_key([1, config.sde, "phase"], [weights]),
        state_key([0, other_sde, "phase"], [weights]),
        state_key([0, config.sde, "other"], [weights]),
        state_key([0, config.sde, "phase"], []),
    ]
    weights.write_text("others")
    others.append(state_key([0, config.sde, "phase"], [weights]))
    assert len({key, *others}) == 6


def test_key_ignores_where_an_input_lies(weights: Path) -> None:
    """Catches a state lost because `dvc exp run --temp` works in another folder."""
    moved = weights.parent / "elsewhere"
    moved.write_text(weights.read_text())
    assert state_key([0], [moved]) == state_key([0], [weights])


def test_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches another order than SCOREVAE_STATE, DVC_ROOT, current folder."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "dvc"))
    assert state_root() == tmp_path / "state"
    monkeypatch.delenv("SCOREVAE_STATE")
    assert state_root() == tmp_path / "dvc" / ".state"
    monkeypatch.delenv("DVC_ROOT")
    monkeypatch.chdir(tmp_path)
    assert state_root() == tmp_path / ".state"


def test_state_survives_the_process() -> None:
    """Catches a state that is not found under the same stage and key, or found under others."""
    state = {"step": 3, "module": {"weight": torch.arange(3.0)}, "rows": [(1, {"loss": 0.5})]}
    with resumable("stage", "key") as folder:
        assert folder.file("phase").load() is None
        folder.file("phase").save(state)
        assert folder.file("other").load() is None
    with resumable("stage", "key") as folder:
        loaded = folder.file("phase").load()
    torch.testing.assert_close(loaded, state, rtol=0, atol=0)
    with resumable("stage", "another") as folder:
        assert folder.file("phase").load() is None


def test_discard_forgets_every_phase() -> None:
    """Catches a finished training that the next one would take for its own."""
    with resumable("stage", "key") as folder:
        for name in ("warm_start", "encoder"):
            folder.file(name).save({"step": 1})
        folder.discard()
        folder.discard()  # nothing left: no error
        assert [folder.file(n).load() for n in ("warm_start", "encoder")] == [None, None]


def test_second_holder_is_refused() -> None:
    """Catches two processes on one state, and a message that does not say which to stop.

    The lock is the operating system's and counts per opened file, so that a second opening in
    this process stands for another process.
    """
    with resumable("stage", "key") as folder:
        holder = rf"process {os.getpid()} .* \(kill {os.getpid()}\)"
        with pytest.raises(UserError, match=holder), resumable("stage", "key"):
            pass
        assert (folder.folder / "owner").read_text() == str(os.getpid())
        with resumable("stage", "another"):
            pass
    with resumable("stage", "key"):  # free again
        pass


def test_unknown_holder_is_refused() -> None:
    """Catches a crash in the moment between locking and writing the pid."""
    folder = state_root() / "stage" / "key"
    folder.mkdir(parents=True)
    lock = FileLock(folder / "lock")
    with lock, pytest.raises(UserError, match="process unknown"), resumable("stage", "key"):
        pass


def test_lock_is_freed_by_an_exception() -> None:
    """Catches a failed training that blocks its own restart."""
    with pytest.raises(ValueError, match="stop"), resumable("stage", "key"):
        raise ValueError("stop")
    with resumable("stage", "key"):
        pass


@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "pickle"])
def test_damaged_state_is_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    """Catches a restart that fails for ever, and loading code out of a pickle."""
    state = StateFile(tmp_path / "phase.pt")
    state.save({"step": 3, "weight": torch.zeros(1000)})
    match damage:
        case "empty":
            state.path.write_bytes(b"")
        case "truncated":
            state.path.write_bytes(state.path.read_bytes()[:2000])
        case "text":
            state.path.write_text("no state at all")
        case "pickle":
            torch.save({"path": tmp_path}, state.path)
    assert state.load() is None
    message = capsys.readouterr().out
    assert f"{state.path}: damaged state ignored" in message
    assert message.endswith("starting from step 0\n")

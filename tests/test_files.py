"""files: whole or absent; fingerprints."""

import errno
import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from pictures import listing

from scorevae.errors import UserError
from scorevae.runtime.files import lasting_folder, own_path, replacing, sha256


def test_file_and_folder_are_replaced(tmp_path: Path) -> None:
    """Catches a block whose file never reaches its name, and partial or former files left over."""
    path = tmp_path / "new" / "a.txt"
    for text in ("first", "second"):
        with replacing(path) as temporary:
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        with replacing(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / text).touch()
        assert listing(tmp_path) == {"new/a.txt": text.encode(), f"folder/{text}": b""}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("name", ["a.txt", "folder/a.txt"])
def test_failure_leaves_what_was_there(
    tmp_path: Path, name: str, error: type[BaseException]
) -> None:
    """Catches half of it under the final name, and an old folder removed too early."""
    top, *below = Path(name).parts
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("old")
    with pytest.raises(error), replacing(tmp_path / top) as temporary:  # noqa: PT012
        if below:
            temporary.mkdir()
        temporary.joinpath(*below).write_text("half")
        raise error
    assert listing(tmp_path) == {name: b"old"}


def dead_pid() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    """Catches a disk that fills with halves, and the half of a process that is still at it."""
    path = tmp_path / "a.txt"
    dead, alive = (tmp_path / f".a.txt.{pid}.partial" for pid in (dead_pid(), os.getppid()))
    other = tmp_path / f".b.txt.{dead_pid()}.partial"
    for leftover in (dead, alive, other):
        leftover.write_text("half")
    with replacing(path) as temporary:
        temporary.write_text("whole")
    assert [leftover.exists() for leftover in (dead, alive, other)] == [False, True, True]


def test_folder_of_a_process_killed_between_two_renames_is_put_back(tmp_path: Path) -> None:
    """Catches a data set lost by a kill at the worst moment."""
    aside = tmp_path / f".folder.{dead_pid()}.old.partial"
    aside.mkdir()
    (aside / "a").write_text("old")
    with pytest.raises(ValueError, match="stop"), replacing(tmp_path / "folder"):
        raise ValueError("stop")
    assert listing(tmp_path) == {"folder/a": b"old"}


@pytest.mark.parametrize("error", [  # the last one is NumPy's
    (errno.ENOSPC, "No space"), (errno.EDQUOT, "Quota"), ("100 requested and 16 written",),
])  # fmt: skip
def test_full_disk_names_the_file_and_the_remedy(tmp_path: Path, error: tuple) -> None:
    """Catches a traceback for a full disk, a cause that is not given, and the old file lost."""
    path = tmp_path / "a.txt"
    path.write_text("old")
    message = rf"{path}: cannot be written \({error[-1]}\); free some space"
    with pytest.raises(UserError, match=message), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise OSError(*error)
    assert listing(tmp_path) == {"a.txt": b"old"}


def test_other_failures_are_not_called_a_full_disk(tmp_path: Path) -> None:
    """Catches the advice to free some space where that is not the cause."""
    with pytest.raises(OSError, match="I/O error"), replacing(tmp_path / "a"):
        raise OSError(errno.EIO, "I/O error")


def test_sha256(tmp_path: Path) -> None:
    """Catches a fingerprint blind to content, names or folders, or a file's unlike sha256sum's."""

    def fingerprint(number: int, files: dict[str, str]) -> str:
        for name, text in files.items():
            path = tmp_path / str(number) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return sha256(tmp_path / str(number))

    folders = [
        {"a": "1", "b": "2"},
        {"b": "2", "a": "1"},  # the same
        {"a": "1", "b": "3"},
        {"a": "2", "b": "1"},
        {"a": "1", "c": "2"},
        {"a": "1", "sub/b": "2"},
        {"a": "1"},
    ]
    first, same, *others = [fingerprint(*folder) for folder in enumerate(folders)]
    assert first == same
    assert len({first, *others}) == 6
    assert sha256(tmp_path / "0/a") == hashlib.sha256(b"1").hexdigest()


def test_own_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a path sought in the copy of the repository that an experiment runs in."""
    for place in ("repository", "elsewhere", "home"):
        (tmp_path / place / "images").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert own_path("images", "key").resolve() == tmp_path / "elsewhere" / "images"
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "repository"))
    assert own_path("images", "key") == tmp_path / "repository" / "images"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert own_path("~/images", "key") == tmp_path / "home" / "images"
    absolute = tmp_path / "elsewhere"
    assert own_path(str(absolute), "key") == absolute
    with pytest.raises(UserError, match=r"key: 'imags' .*\(looked for .*/repository/imags\)"):
        own_path("imags", "key")


@pytest.mark.parametrize("name", ["~nobody_of_this_name/images", "x" * 5000, "a/" * 5000])
def test_impossible_path(name: str) -> None:
    """Catches the operating system's exception on a name that no file can have."""
    with pytest.raises(UserError, match=r"some\.key: .* is no path \(.*\); correct it"):
        own_path(name, "some.key")


def test_lasting_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches what must outlive a run put into the copy that `dvc exp run --temp` removes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("LASTING", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert lasting_folder("LASTING", ".state") == tmp_path / ".state"
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "dvc"))
    expected = {"": "dvc/.state", "state": "dvc/state", "~/state": "home/state"}
    expected[str(tmp_path / "a" / ".." / "b")] = "b"
    for value, folder in expected.items():
        monkeypatch.setenv("LASTING", value)
        assert lasting_folder("LASTING", ".state") == tmp_path / folder

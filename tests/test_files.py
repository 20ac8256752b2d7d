"""files: whole or absent; fingerprints."""

import hashlib
from pathlib import Path

import pytest

from scorevae.files import replacing, sha256


def content(folder: Path) -> dict[str, str]:
    """Every file below a folder with its text."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_file_is_replaced(tmp_path: Path) -> None:
    """Catches a block whose file never reaches its name, or leaves the partial one behind."""
    path = tmp_path / "new" / "a.txt"
    for text in ("first", "second"):
        with replacing(path) as temporary:
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert content(tmp_path) == {"new/a.txt": text}


def test_folder_is_replaced(tmp_path: Path) -> None:
    """Catches a folder that keeps files of its predecessor."""
    path = tmp_path / "folder"
    for name in ("old", "new"):
        with replacing(path) as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
        assert content(tmp_path) == {f"folder/{name}": name}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    """Catches half a file under the final name after an exception or Ctrl-C."""
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert content(tmp_path) == {"a.txt": "old"}


def test_failure_leaves_the_old_folder(tmp_path: Path) -> None:
    """Catches an old folder removed before its successor is complete."""
    path = tmp_path / "folder"
    path.mkdir()
    (path / "a").write_text("old")
    with pytest.raises(ValueError, match="stop"), replacing(path) as temporary:  # noqa: PT012
        temporary.mkdir()
        (temporary / "a").write_text("half")
        raise ValueError("stop")
    assert content(tmp_path) == {"folder/a": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_sha256_of_a_file(tmp_path: Path) -> None:
    """Catches a fingerprint that other tools (sha256sum) would not reproduce."""
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert sha256(path) == hashlib.sha256(b"abc").hexdigest()


def test_sha256_of_a_folder(tmp_path: Path) -> None:
    """Catches a fingerprint blind to content, to names, or to the folder a file is in."""

    def folder(name: str, **files: str) -> str:
        for file, text in files.items():
            path = tmp_path / name / file.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return sha256(tmp_path / name)

    first = folder("first", a="1", b="2")
    assert folder("same", b="2", a="1") == first
    others = [
        folder("content", a="1", b="3"),
        folder("swapped", a="2", b="1"),
        folder("name", a="1", c="2"),
        folder("moved", a="1", sub__b="2"),
        folder("fewer", a="1"),
    ]
    assert len({first, *others}) == 6

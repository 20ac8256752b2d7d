"""Stages under a Python without the packages, and the check of it."""

import subprocess
import sys

import pytest
from pipeline import CHECK, ROOT, STAGES

from scorevae.runtime import environment
from scorevae.runtime.environment import check_environment

REMEDY = "(`source .venv/bin/activate`) and type the command again, or run `make repro`"


@pytest.mark.parametrize("stage", [CHECK, *STAGES])
def test_bare_python_is_told_what_to_do(stage: str) -> None:
    """Catches an import of a package above the check, which ends in a traceback."""
    command = [sys.executable, "-I", "-S", str(ROOT / f"stages/{stage}.py")]  # no site-packages
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: {sys.executable} lacks click, pydantic, yaml, torch: ")
    assert line.endswith(REMEDY)


def test_only_what_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a complaint where all is there, and silence before a Python that is too old."""
    check_environment()
    monkeypatch.setattr(environment, "OLDEST", (99, 0))
    with pytest.raises(SystemExit, match=r"lacks version 99\.0 or newer, nobody: activate"):
        check_environment(("sys", "nobody"))

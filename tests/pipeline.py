"""The seven stages on tiny settings: in this process, as a finished folder, and under DVC."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tiny import tiny_params, write_params

from scorevae.config import read_tree

ROOT = Path(__file__).resolve().parents[1]
GRAPH = read_tree(ROOT / "dvc.yaml")
STAGES = ["download", "train_prior", "train_vae_baseline", "train_encoder", "train_variants"]
STAGES += ["reconstruct", "evaluate"]
CHECK = "check"  # of params.yaml, before all of them
OUTPUTS = ("data", "models", "results")  # the folders that stages write into
# What DVC and the workflows' scripts work with.
TRACKED = (
    ".dvc/.gitignore", ".dvc/config", ".dvcignore", ".github", ".gitignore", "Makefile",
    "dvc.yaml", "pyproject.toml", "requirements.lock", "results/.gitignore", "src", "stages",
)  # fmt: skip
NOT_INHERITED = ("DVC", "GIT", "SCOREVAE")


def imports(path: Path) -> set[str]:
    """Full names of everything imported anywhere in a file, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def command(stage: str, preset: str = "digits") -> list[str]:
    """The stage's command line as dvc.yaml states it, for this checkout's script."""
    script, *arguments = GRAPH["stages"][stage]["cmd"].replace("${preset}", preset).split()[1:]
    return [sys.executable, str(ROOT / script), *arguments]


def run(stage: str, preset: str = "digits") -> Result:
    """Run a stage in this process, in the current folder."""
    main = importlib.import_module(f"stages.{stage}").main
    return CliRunner().invoke(main, command(stage, preset)[2:])


def set_params(**overrides: Any) -> None:  # noqa: ANN401 (any value of the file)
    """Give the current folder tiny settings, with other values by their dotted names."""
    write_params(Path("params.yaml"), tiny_params(**overrides))


def finish(preset: str = "digits", **overrides: Any) -> Result:  # noqa: ANN401
    """Run all seven stages in the current folder; the last one's result."""
    set_params(preset=preset, **overrides)
    for stage in (CHECK, *STAGES):
        result = run(stage, preset)
        assert result.exit_code == 0, f"{stage}: {result.output}{result.exception!r}"
    return result


def contents(folder: Path) -> dict[str, bytes]:
    """Every output file, to see that nothing was touched."""
    files = (p for name in OUTPUTS for p in (folder / name).rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


class Clone:
    """A clone of the working tree in which DVC runs tiny settings for real."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        here = Path(sys.executable).parent
        environment = {k: v for k, v in os.environ.items() if not k.startswith(NOT_INHERITED)}
        self.environment = environment | {
            "PATH": f"{here}{os.pathsep}{os.environ['PATH']}",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        }
        for name in ("AUTHOR", "COMMITTER"):
            self.environment[f"GIT_{name}_NAME"] = "test"
            self.environment[f"GIT_{name}_EMAIL"] = "test@example.invalid"

    def run(self, *command: str, fails: bool = False) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        failed = done.returncode != 0
        assert failed == fails, f"{command}:\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def set(self, **overrides: Any) -> None:  # noqa: ANN401 (any value of the file)
        """Give it tiny settings, with other values by their dotted names, and commit all."""
        write_params(self.folder / "params.yaml", tiny_params(**overrides))
        self.commit()

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", "--message", "tiny")

    def copy(self, folder: Path) -> "Clone":
        """The same, with everything that DVC knows and keeps, at another place."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Clone(folder)


def stages_run(output: str) -> list[str]:
    """The stages whose commands DVC started, in order."""
    return re.findall(r"Running stage '(\w+)'", output)


def make_clone(folder: Path, database: Path, **overrides: Any) -> Clone:  # noqa: ANN401
    """The working tree with tiny settings, committed, nothing run.

    Its MLflow begins with a copy of ``database``, which saves the seconds of creating one.
    """
    if shutil.which("git") is None:
        pytest.skip("needs Git: DVC's experiments are commits")
    for name in TRACKED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, folder / name)
    shutil.copy(database, folder / "mlflow.db")
    clone = Clone(folder)
    clone.run("git", "init", "--quiet", "--initial-branch", "main")
    clone.set(**overrides)
    return clone

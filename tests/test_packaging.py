"""What goes to others: wheel and sdist, the container, the site, the notebook."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import uv_build
import yaml
from pipeline import ROOT

from scorevae import __version__

TOUR = json.loads((ROOT / "docs/tour.ipynb").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


# --- wheel and sdist ---------------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The wheel that comes of the sdist, so that what the sdist lacks shows."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)  # of the builder's program
    monkeypatch.chdir(source)
    sdist = uv_build.build_sdist(str(tmp_path))
    with tarfile.open(tmp_path / sdist) as archive:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # it is our own
        archive.extractall(tmp_path / "unpacked", **safely)
    monkeypatch.chdir(next((tmp_path / "unpacked").iterdir()))
    return tmp_path / uv_build.build_wheel(str(tmp_path))


@pytest.mark.slow
def test_the_wheel_is_installed_and_speaks(wheel: Path, tmp_path: Path) -> None:
    """Catches a module or a template that the wheel lacks, and a command that it does not make."""
    fresh = tmp_path / "fresh"
    venv.create(fresh, with_pip=False)
    python = fresh / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install"]
    quiet = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, *quiet, str(wheel)], check=True)
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    # Its dependencies are those of this environment; the package itself comes first from its own.
    Path(own, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for command, said in (
        ([fresh / "bin/scorevae", "--version"], f"scorevae, version {__version__}"),
        (
            [python, "-c", "import scorevae; print(scorevae.__file__)"],
            f"{own}/scorevae/__init__.py",
        ),
    ):
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, env=without_paths()
        )
        assert done.stdout.strip() == said, done.stderr
    inside = {p.relative_to(own).as_posix() for p in Path(own, "scorevae").rglob("*")}
    there = {p.relative_to(ROOT / "src").as_posix() for p in (ROOT / "src/scorevae").rglob("*")}
    assert {name for name in there - inside if "__pycache__" not in name} == set()


def without_paths() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


# --- the notebook ------------------------------------------------------------------------------


def test_the_tour_goes_through(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a cell that the interface has left behind."""
    shown: list[int] = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(len(plt.gcf().axes)))
    (workspace / "docs").mkdir()
    monkeypatch.chdir(workspace / "docs")
    scope: dict[str, Any] = {}
    for number, cell in enumerate(TOUR["cells"]):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), scope)
            plt.close("all")
    assert len(shown) == 5
    assert all(shown)


def test_the_tour_is_stored_without_what_it_printed() -> None:
    """Catches pictures in Git, which change at each run."""
    for cell in TOUR["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


# --- the container -----------------------------------------------------------------------------


def test_the_image_is_built_from_what_is_there() -> None:
    """Catches a file that was renamed, or that .dockerignore keeps out, and a moving base."""
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [
        name for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.M) for name in line.split()
    ]
    assert "requirements.lock" in copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in kept, name
    (base,) = re.findall(r"^FROM (\S+)$", DOCKERFILE, re.M)
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu\d\d\.04", base)
    # The wheels' CUDA runs on the drivers that the base asks for.
    locked = re.search(
        r"^nvidia-cuda-runtime==(\d+)\.", (ROOT / "requirements.lock").read_text(), re.M
    )
    assert locked is not None
    assert base.split(":")[1].startswith(f"{locked[1]}.")
    targets = re.findall(r"^RUN make (\S+)$", DOCKERFILE, re.M)
    assert targets == [".venv/installed"]


def test_editors_open_the_same_image() -> None:
    """Catches a place that only one of both knows."""
    settings = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
    assert (
        ROOT / ".devcontainer" / settings["build"]["dockerfile"]
    ).resolve() == ROOT / "Dockerfile"
    assert f"WORKDIR {settings['workspaceFolder']}\n" in DOCKERFILE
    python = settings["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert f"ENV PATH={Path(python).parent}:$PATH" in DOCKERFILE


# --- the site ----------------------------------------------------------------------------------


def pages(nav: Any) -> list[str]:  # noqa: ANN401 (mkdocs nests as one likes)
    if isinstance(nav, str):
        return [nav]
    return [
        page
        for entry in nav
        for page in pages(list(entry.values())[0] if isinstance(entry, dict) else entry)
    ]


def test_every_page_is_in_the_contents() -> None:
    """Catches a page that nobody finds."""
    contents = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    there = [path.name for path in (ROOT / "docs").glob("*.md")]
    assert sorted(pages(contents)) == sorted([*there, "index.md"])


@pytest.mark.parametrize(
    ("target", "leads_to"),
    [
        ("docs/data.md#presets", "data.md#presets"),
        ("docs/digits/samples.png", "digits/samples.png"),
        ("params.yaml", "https://forge/own/name/blob/main/params.yaml"),
        ("https://example.invalid/a", "https://example.invalid/a"),
    ],
)
def test_links_of_the_first_page(
    target: str, leads_to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches links that leave the site for nowhere."""
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://forge")
    monkeypatch.setenv("GITHUB_REPOSITORY", "own/name")
    hooks = runpy.run_path(str(ROOT / ".ci/site.py"))
    seen = hooks["LINK"].sub(lambda link: f"]({hooks['_from_docs'](link[1])})", f"[x]({target})")
    assert hooks["on_page_markdown"](seen) == f"[x]({leads_to})"

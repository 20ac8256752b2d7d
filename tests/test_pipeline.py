"""The graph in dvc.yaml: what it states, and what DVC makes of it in a real clone."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny import tiny_params, write_params

from scorevae.config import Config, Section, load_config, parse

ROOT = Path(__file__).resolve().parents[1]
GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = [
    "download",
    "train_prior",
    "train_vae_baseline",
    "train_encoder",
    "reconstruct",
    "evaluate",
]

# These change no number; the values that config reads are tracked as params.
NO_DEPENDENCY = re.compile(r"src/scorevae/(runtime/|commands/|config\.py|errors\.py|shapes\.py)")


def imported(path: Path) -> set[Path]:
    """The package's modules that one file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    places = (ROOT / "src" / name.replace(".", "/") for name in names)
    files = (file for p in places for file in (p.with_suffix(".py"), p / "__init__.py"))
    return {file for file in files if file.exists() and "import " in file.read_text()}


def closure(path: Path) -> set[str]:
    """Everything that a stage imports and that may change a number, as paths from the root."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        fresh = imported(waiting.pop()) - found
        found |= fresh
        waiting += fresh
    names = {file.relative_to(ROOT).as_posix() for file in found}
    return {name for name in names if not NO_DEPENDENCY.match(name)}


def code_deps(stage: str) -> list[str]:
    """The code among the deps of a stage: files and whole packages."""
    return [dep for dep in GRAPH["stages"][stage]["deps"] if dep.startswith(("src/", "stages/"))]


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_code_that_the_stage_imports(stage: str) -> None:
    """Catches an edit that would retrain needlessly, or would not retrain although it must."""
    listed, needed = code_deps(stage), closure(ROOT / f"stages/{stage}.py")
    needed.add(f"stages/{stage}.py")
    covers = {dep: {n for n in needed if n == dep or n.startswith(f"{dep}/")} for dep in listed}
    assert set().union(*covers.values()) == needed
    assert {dep for dep, covered in covers.items() if not covered} == set()
    assert sum(len(covered) for covered in covers.values()) == len(needed)  # none listed twice


def test_the_graph_is_short() -> None:
    """Catches lists that grow file by file where a package is the boundary."""
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 200
    assert sum(len(code_deps(stage)) for stage in STAGES) <= 60 + len(STAGES)


def tracked(config: Config, key: str) -> object:
    """The value of one dotted key of the configuration."""
    value: object = config
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


def params_of(stage: str, config: Config) -> list[str]:
    """The keys that a stage tracks, with ``${…}`` replaced by its value as DVC does."""

    def value(match: re.Match) -> str:
        return str(tracked(config, match[1]))

    return [re.sub(r"\$\{([\w.]+)\}", value, key) for key in GRAPH["stages"][stage]["params"]]


@pytest.mark.parametrize("stage", STAGES)
def test_tracked_params_exist_and_cover_the_selector(stage: str) -> None:
    """Catches a key of dvc.yaml that params.yaml does not have."""
    config = load_config(ROOT / "params.yaml")
    keys = params_of(stage, config)
    assert "preset" in keys
    for key in keys:
        assert isinstance(tracked(config, key), Section | int | float | str | None)


@pytest.mark.parametrize("protocol", ["default", "paper"])
def test_stages_that_draw_track_the_chosen_protocol(protocol: str) -> None:
    """Catches a sampler whose change would run nothing, and one that is not used but runs all."""
    config = parse(Config, tiny_params(**{"reconstruct.protocol": protocol}), "tiny")
    for stage in STAGES:
        keys = [key for key in params_of(stage, config) if key.startswith("protocols")]
        drawing = stage in ("reconstruct", "evaluate")
        assert keys == ([f"protocols.{protocol}"] if drawing else [])


def test_every_parameter_is_tracked_by_some_stage() -> None:
    """Catches a parameter whose change would run nothing.

    Of the presets and of the protocols, those that are chosen count.
    """
    config = load_config(ROOT / "params.yaml")
    keys = {key for stage in STAGES for key in params_of(stage, config)}

    def leaves(value: object, prefix: str) -> list[str]:
        if isinstance(value, Section):
            names = type(value).model_fields
            return [x for n in names for x in leaves(getattr(value, n), f"{prefix}{n}.")]
        return [prefix.rstrip(".")]

    chosen = {"presets": config.preset, "protocols": config.reconstruct.protocol}
    prefixes = [
        f"{name}.{chosen[name]}" if name in chosen else name for name in Config.model_fields
    ]
    names = [n for prefix in prefixes for n in leaves(tracked(config, prefix), f"{prefix}.")]
    untracked = {n for n in names if not any(n == k or n.startswith(f"{k}.") for k in keys)}
    assert untracked == set()


def test_every_output_is_declared_once_and_named_in_its_command() -> None:
    """Catches two stages that write one file, and a path that the command does not know."""
    outputs: list[str] = []
    for stage in GRAPH["stages"].values():
        outs = stage["outs"] + stage.get("metrics", [])  # each a name, or a name with options
        declared = [name for out in outs for name in ([out] if isinstance(out, str) else out)]
        assert all(name in stage["cmd"] for name in declared)
        outputs += declared
    assert len(outputs) == len(set(outputs))


def test_stages_take_paths_only_and_are_short() -> None:
    """Catches a hyper-parameter that DVC would not see, and code that belongs in the library."""
    for stage in STAGES:
        source = (ROOT / f"stages/{stage}.py").read_text()
        options = re.findall(r"@click\.option\([^\n]*", source)
        assert options
        assert all("type=PATH" in line or "path_type=Path" in line for line in options)


NOT_INHERITED = ("DVC", "GIT", "SCOREVAE")


class Clone:
    """A clone of the working tree in which DVC runs tiny settings for real."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        python = Path(sys.executable).parent
        environment = {k: v for k, v in os.environ.items() if not k.startswith(NOT_INHERITED)}
        self.environment = environment | {
            "PATH": f"{python}{os.pathsep}{os.environ['PATH']}",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
            "OMP_NUM_THREADS": "1",
        }
        for name in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"):
            self.environment[name] = "test"
        for name in ("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"):
            self.environment[name] = "test@example.invalid"

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", "tiny")


def stages_run(output: str) -> list[str]:
    """The stages whose commands DVC started, in order."""
    return re.findall(r"Running stage '(\w+)'", output)


def make_clone(folder: Path, database: Path | None = None) -> Clone:
    """The tracked files of the working tree, with tiny settings, committed, nothing cached.

    Its MLflow begins with a copy of ``database``, which saves the seconds of creating one.
    """
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs Git and a Git checkout: dvc exp run works on commits")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    write_params(folder / "params.yaml", tiny_params())
    if database is not None:
        shutil.copy(database, folder / "mlflow.db")
    clone = Clone(folder)
    clone.run("git", "init", "--quiet", "--initial-branch", "main")
    clone.commit()
    return clone


@pytest.fixture
def clone(tmp_path: Path, empty_database: Path) -> Clone:
    """A clone of the test's own."""
    return make_clone(tmp_path, empty_database)


@pytest.mark.slow
def test_dvc_runs_what_changed_and_nothing_else(clone: Clone) -> None:
    """Catches deps or params that rerun too much or too little, in a real clone."""
    assert stages_run(clone.run("dvc", "repro")) == STAGES
    clone.commit()
    assert stages_run(clone.run("dvc", "repro")) == []
    sweep = clone.run("dvc", "exp", "run", "--name", "swept", "-S", "beta=0.02")
    assert stages_run(sweep) == ["train_vae_baseline", "train_encoder", "reconstruct", "evaluate"]
    shown = clone.run("dvc", "exp", "show", "--csv")
    assert "swept" in shown
    assert "scorevae.l2" in shown
    # MLflow holds one parent for each execution, with parameters and headline metrics.
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=clone.environment["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("scorevae")
    runs = client.search_runs([experiment.experiment_id])
    parents = {r.data.params["beta"]: r for r in runs if "beta" in r.data.params}
    assert set(parents) == {"0.01", "0.02"}
    for parent in parents.values():
        assert parent.info.status == "FINISHED"
        assert "scorevae.l2" in parent.data.metrics
    assert parents["0.02"].info.run_name == "swept"
    swept = parents["0.02"].info.run_id
    children = [r.info.run_name for r in runs if r.data.tags.get("mlflow.parentRunId") == swept]
    assert sorted(children) == sorted(stages_run(sweep))
    # An edit of a plot retrains nothing.
    figures = clone.folder / "src/scorevae/evaluation/figures.py"
    figures.write_text(figures.read_text() + "\n# edited\n")
    assert stages_run(clone.run("dvc", "repro")) == ["evaluate"]


@pytest.mark.slow
def test_going_back_to_a_preset_trains_nothing(
    clone: Clone, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Catches outputs that DVC does not look up in its run cache (those marked persist)."""
    pictures = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(40):
        pixels = rng.integers(0, 256, (64, 64), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    trained = clone.run("dvc", "repro", "train_prior")
    assert stages_run(trained) == ["download", "train_prior"]
    clone.commit()
    root = f"presets.faces_small.data.root={pictures}"
    other = clone.run("dvc", "exp", "run", "-S", "preset=faces_small", "-S", root, "train_prior")
    assert stages_run(other) == ["download", "train_prior"]
    back = clone.run("dvc", "exp", "run", "-S", "preset=digits", "train_prior")
    assert stages_run(back) == []

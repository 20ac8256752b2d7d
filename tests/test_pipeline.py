"""The graph in dvc.yaml: what it states. tests/test_experiments.py: what DVC makes of it."""

import re
from pathlib import Path

import pytest
from pipeline import GRAPH, ROOT, STAGES, imports
from tiny import tiny_config

from scorevae.config import Config, Section, load_config

# These change no number; the values that config reads are tracked as params.
ROOT_MODULES = r"(config|quick|errors|shapes)\.py"
NO_DEPENDENCY = re.compile(rf"src/scorevae/(runtime/|commands/|{ROOT_MODULES})")


def imported(path: Path) -> set[Path]:
    """The package's modules that one file imports; empty packages import nothing."""
    places = (ROOT / "src" / name.replace(".", "/") for name in imports(path))
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
    """Catches lists that grow file by file where a package is the boundary.

    Titles of axes and the names of artifacts take 30 of the lines.
    """
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 242
    assert sum(len(code_deps(stage)) for stage in STAGES) <= 69 + len(STAGES)


def tracked(config: Config, key: str) -> object:
    """The value of one dotted key of the configuration."""
    value: object = config
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


def params_of(stage: str, config: Config) -> list[str]:
    """The keys that a stage tracks, with ``${…}`` replaced by its value as DVC does."""
    keys = "\n".join(GRAPH["stages"][stage]["params"])
    return re.sub(r"\$\{([\w.]+)\}", lambda it: str(tracked(config, it[1])), keys).split("\n")


@pytest.mark.parametrize("stage", STAGES)
def test_tracked_params_exist_and_cover_the_selector(stage: str) -> None:
    """Catches a key of dvc.yaml that params.yaml does not have."""
    config = load_config(ROOT / "params.yaml")
    keys = params_of(stage, config)
    assert "preset" in keys
    for key in keys:
        assert isinstance(tracked(config, key), Section | list | int | float | str | None)


@pytest.mark.parametrize("protocol", ["default", "paper"])
def test_stages_that_draw_track_the_chosen_protocol(protocol: str) -> None:
    """Catches a sampler whose change would run nothing, and one that is not used but runs all."""
    config = tiny_config(**{"reconstruct.protocol": protocol})
    for stage in STAGES:
        keys = [key for key in params_of(stage, config) if key.startswith("protocols")]
        drawing = stage in ("reconstruct", "evaluate")
        assert keys == ([f"protocols.{protocol}"] if drawing else [])


def test_every_parameter_is_tracked_by_some_stage() -> None:
    """Catches a parameter of the chosen preset or protocol whose change would run nothing."""
    config = load_config(ROOT / "params.yaml")
    keys = {key for stage in STAGES for key in params_of(stage, config)}
    tree = config.model_dump()
    for section, name in (("presets", config.preset), ("protocols", config.reconstruct.protocol)):
        tree[section] = {name: tree[section][name]}

    def leaves(value: object, prefix: str = "") -> list[str]:
        if isinstance(value, dict):
            return [x for key in value for x in leaves(value[key], f"{prefix}{key}.")]
        return [prefix.rstrip(".")]

    untracked = {n for n in leaves(tree) if not any(f"{n}.".startswith(f"{k}.") for k in keys)}
    assert untracked == set()


def test_all_stages_come_after_the_check() -> None:
    """Catches a stage that DVC could start, and clear, beside a value that is refused."""
    stages = GRAPH["stages"]
    writers = {str(out): name for name in stages for out in stages[name]["outs"]}
    after = {"check"}
    for stage in STAGES:  # in the order of the graph
        assert after & {writers[dep] for dep in stages[stage]["deps"] if dep in writers}, stage
        after.add(stage)
    assert not stages["check"].get("params")  # of the whole file one hash, and no lock of values


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

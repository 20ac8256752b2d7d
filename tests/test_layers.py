"""Imports go downwards only: packages have an order, and none of them has a circle inside."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "scorevae"

# Packages and the modules at the root, from bottom to top: each imports from rows below its own.
ROWS = [
    {"errors", "shapes", "randomness"},
    {"config"},
    {"runtime", "gaussian", "sde"},
    {"networks", "score"},
    {"data", "objectives", "sampling"},
    {"training", "autoencoders"},
    {"reconstructions"},
    {"evaluation"},
    {"commands"},
    {"stages"},
]

# What a lower row would permit and the design does not: module -> what it never imports.
NEVER = {
    "training.loop": {"objectives", "sde", "score", "gaussian", "networks", "runtime.tracking"},
    "objectives": {"networks"},
    "sampling": {"networks", "objectives"},
    "score": {"networks", "config"},
    "data": {"networks", "sde", "score"},
    "data.arrays": {"data.sources", "data.batches"},
    "runtime": {"sde", "gaussian"},
    "autoencoders": {"training", "objectives", "runtime"},
}


def modules() -> dict[str, Path]:
    """Every module of the package by its name below scorevae, and the stages."""
    found = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "__init__.py"
    }
    return found | {f"stages.{path.stem}": path for path in (ROOT / "stages").glob("*.py")}


MODULES = modules()


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


def own_imports(module: str) -> set[str]:
    """The modules of this package that one of them imports; packages by themselves hold none."""
    names = {name.removeprefix("scorevae.") for name in imports(MODULES[module])}
    names = (names & MODULES.keys()) - {module}
    return {name for name in names if "." in name or name not in PACKAGES}


PACKAGES = {"runtime", "networks", "data", "training", "evaluation", "commands"}


def top(module: str) -> str:
    """The package of a module, or the module itself at the root."""
    return module.partition(".")[0]


def row(module: str) -> int:
    """The row of a module's package."""
    (index,) = [i for i, names in enumerate(ROWS) if top(module) in names]
    return index


def test_everything_has_one_place() -> None:
    """Catches a new package or a new module at the root, and a removed one still in the table."""
    placed = [name for names in ROWS for name in names]
    assert sorted(placed) == sorted({top(module) for module in MODULES})


def test_the_root_is_small() -> None:
    """Catches a module beside the packages instead of in one."""
    assert len(list(PACKAGE.glob("*.py"))) <= 12


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_downwards(module: str) -> None:
    """Catches a lower package that knows a higher one, or its neighbour."""
    others = {other for other in own_imports(module) if top(other) != top(module)}
    assert {other for other in others if row(other) >= row(module)} == set()


def test_no_circles() -> None:
    """Catches two modules of one package that need each other."""
    TopologicalSorter({module: own_imports(module) for module in MODULES}).prepare()


@pytest.mark.parametrize("module", sorted(NEVER))
def test_separate_concerns(module: str) -> None:
    """Catches a loop that knows SDEs, or mathematics that knows networks."""

    def within(name: str, place: str) -> bool:
        return name == place or name.startswith(f"{place}.")

    imported = {o for m in MODULES if within(m, module) for o in own_imports(m)}
    assert {o for o in imported if any(within(o, place) for place in NEVER[module])} == set()


@pytest.mark.parametrize(("library", "users"), [
    ("mlflow", {"runtime.runs", "commands"}),
    ("diffusers", {"networks.prior"}),
    ("accelerate", {"training"}),
    ("matplotlib", {"evaluation"}),
    ("lpips", {"evaluation.lpips"}),
    ("torchmetrics", {"evaluation"}),
])  # fmt: skip
def test_libraries_stay_in_their_places(library: str, users: set[str]) -> None:
    """Catches a library that spreads beyond the module or the package that wraps it."""
    found = {
        module
        for module, path in MODULES.items()
        if any(name.split(".")[0] == library for name in imports(path))
    }
    assert found
    assert {module for module in found if not {module, top(module)} & users} == set()

"""Imports go downwards only: packages have an order, and none of them has a circle inside."""

from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from pipeline import ROOT, imports

PACKAGE = ROOT / "src" / "scorevae"

# Packages and the modules at the root, from bottom to top: each imports from rows below its own.
ROWS = [
    {"errors", "shapes", "randomness", "quick"},
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
    "training.step": {"objectives", "sde", "score", "gaussian", "networks", "runtime.tracking"},
    "objectives": {"networks"},
    "sampling": {"networks", "objectives"},
    "score": {"networks", "config"},
    "data": {"networks", "sde", "score"},
    "data.arrays": {"data.sources", "data.batches"},
    "runtime": {"sde", "gaussian"},
    # Progress bars, files and the hub serve a caller in Python too; a run's state does not.
    "autoencoders": {
        "training",
        "objectives",
        *(f"runtime.{name}" for name in ("state", "tracking", "runs", "interruption", "memory")),
    },
}


def modules() -> dict[str, Path]:
    """Every module of the package by its name below scorevae, and the stages."""
    paths = {path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"}
    places = {path: path.relative_to(PACKAGE).with_suffix("") for path in paths}
    found = {".".join(p.parts).removesuffix(".__init__"): path for path, p in places.items()}
    return found | {f"stages.{path.stem}": path for path in (ROOT / "stages").glob("*.py")}


MODULES = modules()
PACKAGES = {
    "runtime", "networks", "data", "training", "autoencoders", "evaluation", "commands",
}  # fmt: skip


def own_imports(module: str) -> set[str]:
    """The modules of this package that one of them imports; packages by themselves hold none."""
    names = {name.removeprefix("scorevae.") for name in imports(MODULES[module])}
    names = (names & MODULES.keys()) - {module}
    return {name for name in names if "." in name or name not in PACKAGES}


def top(module: str) -> str:
    """The package of a module, or the module itself at the root."""
    return module.partition(".")[0]


def row(module: str) -> int:
    (index,) = [i for i, names in enumerate(ROWS) if top(module) in names]
    return index


def test_everything_has_one_place() -> None:
    """Catches a new package or a new module at the root, and a removed one still in the table."""
    placed = [name for names in ROWS for name in names]
    assert sorted(placed) == sorted({top(module) for module in MODULES})


def test_the_root_is_small() -> None:
    """Catches a module beside the packages instead of in one."""
    assert len(list(PACKAGE.glob("*.py"))) <= 12


def test_imports_go_downwards() -> None:
    """Catches a lower package that knows a higher one, or its neighbour."""
    pairs = {(m, other) for m in MODULES for other in own_imports(m) if top(other) != top(m)}
    assert {(m, other) for m, other in pairs if row(other) >= row(m)} == set()


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


PLACES = {
    "mlflow": {"runtime.runs", "commands"},
    "diffusers": {
        "networks.prior",
        "networks.pretrained.adapter",
        "networks.pretrained.diffusers",
        "networks.pretrained.export",
    },
    "accelerate": {"training"},
    "matplotlib": {"evaluation"},
    "huggingface_hub": {"runtime.hub", "networks.pretrained.diffusers"},
    "lpips": {"evaluation.lpips"},
    "torchmetrics": {"evaluation"},
}


@pytest.mark.parametrize("library", PLACES)
def test_libraries_stay_in_their_places(library: str) -> None:
    """Catches a library that spreads beyond the module or the package that wraps it."""
    found = {m for m, path in MODULES.items() if library in map(top, imports(path))}
    assert found
    assert {m for m in found if not {m, top(m)} & PLACES[library]} == set()

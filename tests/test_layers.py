"""Imports go downwards only, and every module has its place."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "scorevae"

# From bottom to top; a module imports from lower rows, and within its row only what ALLOWED says.
LAYERS = [
    {"errors", "randomness", "progress"},
    {"files", "interruption", "memory", "yaml_file"},
    {"pretrained"},
    {"config"},
    {"dvc_lock", "gaussian", "sde", "state"},
    {"checkpoint", "score"},
    {"networks.time"},
    {"networks.encoder", "networks.prior", "networks.vae"},
    {
        "objectives",
        "sampling",
        "training",
        "data",
        "tracking",
        "reconstructions",
        "report.page",
        "figures",
        "likelihood",
        "perceptual",
        "sources.origin",
        "sources.pixels",
    },
    {
        "likelihood_figures",
        "metrics",
        "ode_likelihood",
        "report.provenance",
        "report.tables",
        "report.training",
        "sources.arrays",
        "sources.trees",
    },
    {"report.comparison", "report.findings", "sources.downloads"},
    {"latents", "quality", "report.assembly", "sources.digits", "sources.folder"},
    {"latent_figures", "sources.celeba", "sources.official"},
    {"sources.prepare"},
    {"model"},
    {"reconstruct", "study"},
    {"analysis"},
    {"sections"},
    {"evaluation", "experiment"},
    {"rate_distortion", "sync"},
    {"stages"},
]
PACKAGES = ("scorevae", "scorevae.networks", "scorevae.report", "scorevae.sources")
ALLOWED = {("networks.vae", "networks.encoder")}  # the decoder mirrors the encoder

# What a lower row would permit and the design does not: module -> prefixes.
NEVER = {
    "training": {"objectives", "sde", "score", "gaussian", "tracking", "networks", "checkpoint"},
    "objectives": {"networks", "checkpoint"},
    "sampling": {"networks", "checkpoint", "objectives"},
    "score": {"networks", "checkpoint", "config"},
    "data": {"networks", "sde", "score", "sources"},
    "tracking": {"networks", "sde", "score", "state"},
    "model": {"training", "objectives", "tracking", "state"},
}


def modules() -> dict[str, Path]:
    """Every module of the package by its name below scorevae, and the stages."""
    found = {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
        if path.stem != "__init__"
    }
    return found | {f"stages.{path.stem}": path for path in (ROOT / "stages").glob("*.py")}


def imports(path: Path) -> set[str]:
    """Full names of everything imported anywhere in a file, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            if node.module in PACKAGES:
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_imports(path: Path) -> set[str]:
    """The modules of this package that a file imports."""
    names = {name.removeprefix("scorevae.") for name in imports(path)}
    return names & modules().keys()


def row(module: str) -> int:
    """The layer of a module; all stages are in one."""
    name = "stages" if module.startswith("stages.") else module
    (index,) = [i for i, layer in enumerate(LAYERS) if name in layer]
    return index


def test_every_module_has_one_place() -> None:
    """Catches a new module outside the table, and a removed one still in it."""
    placed = [name for layer in LAYERS for name in layer]
    existing = {"stages" if name.startswith("stages.") else name for name in modules()}
    assert sorted(placed) == sorted(existing)


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_go_downwards(module: str) -> None:
    """Catches a cycle, or a lower layer that knows a higher one."""
    upwards = {
        other
        for other in own_imports(modules()[module])
        if row(other) >= row(module) and (module, other) not in ALLOWED
    }
    assert upwards == set()


@pytest.mark.parametrize("module", sorted(NEVER))
def test_separate_concerns(module: str) -> None:
    """Catches a loop that knows SDEs, or mathematics that knows networks."""
    imported = own_imports(modules()[module])
    assert {o for o in imported if o.split(".")[0] in NEVER[module]} == set()


@pytest.mark.parametrize(
    ("library", "users"),
    [
        ("mlflow", {"sync", "tracking"}),
        ("diffusers", {"networks.prior"}),
        ("accelerate", {"training", "experiment"}),
        ("matplotlib", {"figures", "latent_figures", "likelihood_figures"}),
        ("lpips", {"perceptual"}),
        ("torchmetrics", {"metrics", "quality"}),
    ],
)
def test_libraries_have_one_user(library: str, users: set[str]) -> None:
    """Catches a library that spreads beyond the module that wraps it."""
    found = {
        module
        for module, path in modules().items()
        if any(name.split(".")[0] == library for name in imports(path))
    }
    assert found == users


def test_config_imports_no_torch() -> None:
    """Catches torch in what only reads YAML."""
    libraries = {name.split(".")[0] for name in imports(modules()["config"])}
    assert not libraries & {"torch", "numpy", "jaxtyping", "diffusers"}

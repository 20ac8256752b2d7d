"""config: every fault is one line that names file, key, value and remedy."""

import subprocess
import sys
from collections.abc import Iterator
from functools import reduce
from math import inf, nan
from operator import attrgetter, getitem
from pathlib import Path
from typing import Any, get_args

import pytest
from tiny import SHIPPED, tiny_params, write_params

from scorevae.config import Config, Section, load_config, read_tree
from scorevae.errors import UserError

SHIPPED_TREE: Any = read_tree(SHIPPED)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The parameter file."""
    return tmp_path / "p.yaml"


def load(path: Path, **changes: Any) -> Config:
    """Tiny parameters with other values by their dotted names, read from the file."""
    return load_config(write_params(path, tiny_params(**changes)))


def faults(path: Path) -> list[str]:
    """What is refused in the file: the lines, without its name, which begins each of them."""
    with pytest.raises(UserError) as error:
        load_config(path)
    lines = error.value.message.splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


def fault(path: Path, **changes: Any) -> str:
    """The only fault of tiny parameters with other values."""
    (line,) = faults(write_params(path, tiny_params(**changes)))
    return line


@pytest.mark.parametrize("preset", SHIPPED_TREE["presets"])
def test_tiny_parameters_load(path: Path, preset: str) -> None:
    """Catches a test configuration that stages would refuse, and a preset that is not used."""
    config = load(path, **{"beta": 0.02, "preset": preset, f"presets.{preset}.latent": 3})
    assert (config.beta, config.selected.latent, config.sampling.steps) == (0.02, 3, 3)
    assert config.selected is config.presets[preset]


@pytest.mark.parametrize("name", SHIPPED_TREE["protocols"])
def test_selected_protocol_is_the_named_one(path: Path, name: str) -> None:
    """Catches a protocol that is chosen and not used."""
    config = load(path, **{"reconstruct.protocol": name})
    assert config.sampling is config.protocols[name]


@pytest.mark.parametrize("changes", [
    {"data.root": "~/images", "flip": True, "test_images": 500, "lpips.trunk": "a.pth",
     "lpips.net": "squeeze", "encoder.network.attention": [4, 8]},
    {"data.root": None, "test_images": None},
    # widths that the groups do not divide, where there is no group norm
    {"encoder.network.kind": "conv", "encoder.network.channels": [6]},
], ids=["values", "null", "conv"])  # fmt: skip
def test_values_of_a_preset_arrive(path: Path, changes: dict[str, object]) -> None:
    """Catches a value that is refused although it is allowed, or read into another field."""
    preset = load(path, **{f"presets.digits.{key}": v for key, v in changes.items()}).selected
    assert {key: attrgetter(key)(preset) for key in changes} == changes


WRONG_VALUES: dict[str, list[object]] = {
    "beta": ["0.01", True, inf, nan, -0.1, None], "seed": [1.5, True, -1],
    "sde.kind": ["vesde"], "sde.t_min": [1.0], "reconstruct.protocol": [None],
    "protocols.default.sampler": ["euler"], "protocols.default.steps": [0, "20"],
    "protocols.paper.z": ["mode"], "protocols.paper.clip": ["no"],
    "evaluate.likelihood.repeats": [1], "evaluate.likelihood.draws": [0],
    "evaluate.draws.count": [1], "evaluate.interpolations.steps": [1],
}  # fmt: skip
WRONG_IN_A_PRESET = {
    "prior.training.steps": [10.0, -1], "prior.training.ema": [1.0],
    "prior.training.precision": ["no", False],  # its former name, and what YAML 1.1 makes of it
    "prior.network.output": ["score"], "data.test_fraction": [0], "data.source": ["celeba"],
    "data.split": ["given"], "data.root": [3], "flip": [1, "yes"], "test_images": [0, 10.0],
    "latent": [0], "lpips.net": ["vgg16"], "lpips.trunk": [False], "lpips.required": [None],
    "encoder.network.attention": [None], "encoder.network.patch": [0],
    "encoder.network.linear": [0],
}  # fmt: skip
WRONG_VALUES |= {f"presets.digits.{key}": values for key, values in WRONG_IN_A_PRESET.items()}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in WRONG_VALUES.items() for v in vs])
def test_wrong_value(path: Path, key: str, value: object) -> None:
    """Catches coercion (a string or bool read as a number) and a range that is not checked."""
    assert fault(path, **{key: value}).startswith(f"{key}: got {value!r}; input should be ")


@pytest.mark.parametrize(
    "key", ["betta", "sde.beta", "presets.digits.encoder.depht", "protocols.paper.guidance"]
)
def test_unknown_key(path: Path, key: str) -> None:
    """Catches a misspelled key that is silently kept."""
    assert fault(path, **{key: 1}) == f"{key}: unexpected key; remove it or correct its spelling"


@pytest.mark.parametrize("key", [
    "beta", "sde.t_min", "protocols.paper.z", "protocols", "presets.digits.prior.training.steps",
    "presets.digits.data.root", "presets.digits.flip", "presets.digits.test_images",
    "presets.digits.lpips",
])  # fmt: skip
def test_missing_key(path: Path, key: str) -> None:
    """Catches a default hidden in the code."""
    tree = tiny_params()
    *parents, last = key.split(".")
    del reduce(getitem, parents, tree)[last]
    assert faults(write_params(path, tree))[0].startswith(f"{key}: missing; add it ")


NAMES = ["my faces", "faces.v2", "x;touch HACKED", "100%", "a,b", "dpm++ (20)", "", "-rf", "_x",
         "été", "a\n", "a/b", "..", "${seed}", "'", "a" * 61]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("under", ["presets", "protocols"])
def test_names_that_others_cannot_take(path: Path, under: str, name: str) -> None:
    """Catches a name that breaks DVC's interpolation or MLflow's records, or reaches a shell.

    Where it is selected, that it is unknown or does something else would come second.
    """
    tree = tiny_params(
        **{"preset": name} if under == "presets" else {"reconstruct.protocol": name}
    )
    tree[under][name] = next(iter(tree[under].values()))
    (line,) = faults(write_params(path, tree))
    assert line.startswith(f"{under}: got the name {name!r}; rename it: at most 60 letters a to z")


ENCODER, PRIOR = "presets.digits.encoder.network", "presets.digits.prior.network"


@pytest.mark.parametrize(("changes", "expected"), [
    ({"preset": "cifar"}, f"top level: preset 'cifar' is not under presets; choose one of: "
     f"{', '.join(sorted(SHIPPED_TREE['presets']))}"),
    ({"reconstruct.protocol": "fast"}, "top level: reconstruct.protocol 'fast' is not under "
     f"protocols; choose one of: {', '.join(sorted(SHIPPED_TREE['protocols']))}"),
    ({"sde.beta_min": 30.0}, "sde: beta_min 30.0 is above beta_max 20.0"),
    ({"sde.sigma_min": 50.0}, "sde: sigma_min 50.0 is not below sigma_max 50.0"),
    ({"evaluate.probes.times": [0.0, 5e-4]}, "top level: evaluate.probes.times: got 0.0005; "
     "choose 0, or sde.t_min (0.001) to sde.t_max (1.0)"),
    (
        {"presets.digits.vae.training.accumulate": 3},
        "presets.digits.vae.training: accumulate: got 3, which does not divide batch (16)",
    ),
    (
        {f"presets.digits.encoder.{part}training.steps": 0 for part in ("", "warm_start.")},
        "presets.digits.encoder: training.steps and warm_start.training.steps are both 0, which",
    ),
    ({f"{ENCODER}.groups": 5}, f"{ENCODER}: channels 8 is not a multiple of groups 5"),
    ({f"{ENCODER}.kind": "conv", f"{ENCODER}.channels": [7, 8]},
     f"{ENCODER}: channels: got 7 first; conv needs an even number"),
    ({f"{PRIOR}.attention": [4, 0]}, f"{PRIOR}.attention.1: got 0; input should be greater than"),
    ({f"{ENCODER}.attention": [0]}, f"{ENCODER}.attention.0: got 0; input should be greater than"),
])  # fmt: skip
def test_values_that_do_not_fit(path: Path, changes: dict[str, object], expected: str) -> None:
    """Catches a missing check between two values, which would fail much later."""
    assert fault(path, **changes).startswith(expected)


def test_every_fault_is_reported(path: Path) -> None:
    """Catches a report that stops at the first of several faults."""
    lines = faults(write_params(path, tiny_params(**{"beta": -1.0, "sde.kind": "x"})))
    assert [line.split(": ")[0] for line in lines] == ["beta", "sde.kind"]


@pytest.mark.parametrize(("text", "value"), [
    *((text, 1e-5) for text in ["1e-05", "1e-5", "1E-5", "+1e-5", ".1e-4", "1.e-5", "0.00001"]),
    ("'1e-5'", "1e-5"), ('"0.1"', "0.1"), ("no", "no"), ('"no"', "no"), ("true", True),
])  # fmt: skip
def test_scalars_as_dvc_writes_them(path: Path, text: str, value: object) -> None:
    """Catches YAML 1.1, where 1e-05 and no are text and false, and quotes that make no string."""
    path.write_text(f"beta: {text}\n")
    found: Any = read_tree(path)
    assert (found["beta"], type(found["beta"])) == (value, type(value))


@pytest.mark.parametrize(("content", "expected"), [
    (b"beta: 0.01\nbeta: 0.02\n", "not valid YAML: line 2: key 'beta' is given twice; correct"),
    (b"sde:\n  kind: vp\n  kind: ve\n", "not valid YAML: line 3: key 'kind' is given twice; "),
    (b"beta: [1\n", "not valid YAML: line "),
    (b"beta: \xff\xfe\n", "not valid YAML: line 1: not UTF-8; correct it there"),
    (b"", "top level: got "), (b"3", "top level: got "), (b"[1, 2]", "top level: got "),
])  # fmt: skip
def test_what_is_no_parameter_file(path: Path, content: bytes, expected: str) -> None:
    """Catches a duplicate key of which the last one wins, and a traceback from the parser."""
    path.write_bytes(content)
    (line,) = faults(path)
    assert line.startswith(expected)
    assert line.startswith("top level") or line.endswith("; correct it there")


def test_absent_file(path: Path) -> None:
    """Catches a traceback where the file's name is wrong."""
    assert faults(path) == ["No such file or directory; name the parameter file with --params"]


def test_config_is_frozen() -> None:
    """Catches a section that a stage could change, and a params.yaml that does not load."""
    config = load_config(SHIPPED)
    with pytest.raises(ValueError, match="frozen"):
        config.beta = 1.0


def test_config_imports_no_torch() -> None:
    """Catches an import, of whatever module, that makes reading parameters take seconds."""
    slow = {"torch", "numpy", "jaxtyping", "diffusers"}
    code = f"import sys, scorevae.config; sys.exit(bool({slow} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_config_holds_no_values() -> None:
    """Catches a default: a hyper-parameter that DVC does not see."""
    sections = set(sections_within(Config))
    assert len(sections) > 10
    fields = [field for section in sections for field in section.model_fields.values()]
    assert all(field.is_required() for field in fields)


def sections_within(hint: object) -> Iterator[type[Section]]:
    """A section and all sections that its fields, of whatever form, hold."""
    if isinstance(hint, type) and issubclass(hint, Section):
        yield hint
        for field in hint.model_fields.values():
            yield from sections_within(field.annotation)
    for part in get_args(hint):
        yield from sections_within(part)

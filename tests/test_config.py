"""config: every fault is one line that names file, key, value and remedy."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml
from tiny import SHIPPED, put, tiny_params, write_params

from scorevae.config import Config, PresetConfig, Section, load_config, read_tree
from scorevae.errors import UserError

SHIPPED_TREE = read_tree(SHIPPED)
STEPS = "presets.digits.prior.training.steps"
WRONG_VALUES = [
    ("beta", "0.01"),  # a string for a number
    ("beta", True),
    ("beta", float("inf")),
    ("beta", float("nan")),
    ("beta", -0.1),
    ("beta", None),
    ("seed", 1.5),
    ("seed", True),  # a bool for an int
    ("seed", -1),
    ("sde.kind", "vesde"),  # not one of the literals
    ("sde.t_min", 1.0),
    ("reconstruct.protocol", None),
    ("protocols.default.sampler", "euler"),
    ("protocols.default.steps", 0),
    ("protocols.default.steps", "20"),
    ("protocols.paper.z", "mode"),
    ("protocols.paper.clip", "no"),
    ("evaluate.likelihood.repeats", 1),
    ("evaluate.likelihood.draws", 0),
    ("evaluate.draws.count", 1),
    ("evaluate.interpolations.steps", 1),
    (STEPS, 10.0),
    (STEPS, -1),
    ("presets.digits.prior.training.ema", 1.0),
    ("presets.digits.prior.training.precision", False),  # what an unquoted `no` is
    ("presets.digits.data.test_fraction", 0),
    ("presets.digits.data.source", "celeba"),
    ("presets.digits.data.root", 3),
    ("presets.digits.flip", 1),
    ("presets.digits.flip", "yes"),
    ("presets.digits.test_images", 0),
    ("presets.digits.test_images", 10.0),
    ("presets.digits.lpips.net", "vgg16"),
    ("presets.digits.lpips.trunk", False),
    ("presets.digits.lpips.required", None),
    ("presets.digits.encoder.network.attention", None),
    ("presets.digits.encoder.network.patch", 0),
    ("presets.digits.encoder.network.linear", 0),
    ("presets.digits.prior.network.output", "score"),
    ("presets.digits.latent", 0),
]


def fault(path: Path) -> str:
    """The message of the error that loading the file raises."""
    with pytest.raises(UserError) as error:
        load_config(path)
    return error.value.message


def test_shipped_parameters_load() -> None:
    """Catches a params.yaml that has drifted from the config classes."""
    config = load_config(SHIPPED)
    assert config.selected is config.presets[config.preset]


@pytest.mark.parametrize("preset", SHIPPED_TREE["presets"])
def test_tiny_parameters_load(tmp_path: Path, preset: str) -> None:
    """Catches a test configuration that the entry points would refuse."""
    tree = tiny_params(**{"beta": 0.02, "preset": preset, f"presets.{preset}.latent": 3})
    config = load_config(write_params(tmp_path / "p.yaml", tree))
    assert (config.beta, config.selected.latent) == (0.02, 3)
    assert config.selected is config.presets[preset]
    assert config.sampling.steps == 3


@pytest.mark.parametrize("name", SHIPPED_TREE["protocols"])
def test_selected_protocol_is_the_named_one(tmp_path: Path, name: str) -> None:
    """Catches a protocol that is chosen and not used."""
    path = write_params(tmp_path / "p.yaml", tiny_params(**{"reconstruct.protocol": name}))
    config = load_config(path)
    assert config.sampling is config.protocols[name]


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("data.root", "~/images", lambda preset: preset.data.root),
        ("data.root", None, lambda preset: preset.data.root),
        ("flip", True, lambda preset: preset.flip),
        ("test_images", 500, lambda preset: preset.test_images),
        ("test_images", None, lambda preset: preset.test_images),
        ("lpips.trunk", "a.pth", lambda preset: preset.lpips.trunk),
        ("lpips.net", "squeeze", lambda preset: preset.lpips.net),
        ("encoder.network.attention", [4, 8], lambda preset: preset.encoder.network.attention),
    ],
)
def test_values_of_a_preset_arrive(
    tmp_path: Path, key: str, value: object, read: Callable[[PresetConfig], object]
) -> None:
    """Catches a value that is refused although it is allowed, or read into another field."""
    tree = tiny_params(**{f"presets.digits.{key}": value, "preset": "digits"})
    assert read(load_config(write_params(tmp_path / "p.yaml", tree)).selected) == value


@pytest.mark.parametrize(("key", "value"), WRONG_VALUES)
def test_wrong_value(tmp_path: Path, key: str, value: object) -> None:
    """Catches coercion (a string or bool read as a number) and a range that is not checked."""
    path = write_params(tmp_path / "p.yaml", tiny_params(**{key: value}))
    message = fault(path)
    assert message.startswith(f"{path}: {key}: got {value!r}; input should be ")
    assert "\n" not in message


def test_probed_times_are_those_of_the_process(tmp_path: Path) -> None:
    """Catches an evaluation that ends, after all training, at a time below t_min."""
    times = {"evaluate.probes.times": [0.0, 5e-4]}
    message = fault(write_params(tmp_path / "p.yaml", tiny_params(**times)))
    assert "evaluate.probes.times: got 0.0005; choose 0, or sde.t_min (0.001) to 1" in message


@pytest.mark.parametrize(
    "key", ["betta", "sde.beta", "presets.digits.encoder.depht", "protocols.paper.guidance"]
)
def test_unknown_key(tmp_path: Path, key: str) -> None:
    """Catches a misspelled key that is silently kept."""
    path = write_params(tmp_path / "p.yaml", tiny_params(**{key: 1}))
    assert fault(path) == f"{path}: {key}: unexpected key; remove it or correct its spelling"


@pytest.mark.parametrize(
    "key",
    ["beta", "sde.t_min", STEPS, "protocols.paper.z", "protocols", "presets.digits.data.root",
     "presets.digits.flip", "presets.digits.test_images", "presets.digits.lpips"],
)  # fmt: skip
def test_missing_key(tmp_path: Path, key: str) -> None:
    """Catches a default hidden in the code."""
    tree = tiny_params()
    *parents, last = key.split(".")
    inner = tree
    for parent in parents:
        inner = inner[parent]
    del inner[last]
    path = write_params(tmp_path / "p.yaml", tree)
    assert fault(path).startswith(f"{path}: {key}: missing; add it ")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"preset": "cifar"},
            "top level: preset 'cifar' is not under presets; choose one of: "
            + ", ".join(sorted(SHIPPED_TREE["presets"])),
        ),
        (
            {"reconstruct.protocol": "fast"},
            "top level: reconstruct.protocol 'fast' is not under protocols; choose one of: "
            + ", ".join(sorted(SHIPPED_TREE["protocols"])),
        ),
        ({"sde.beta_min": 30.0}, "sde: beta_min 30.0 is above beta_max 20.0"),
        ({"sde.sigma_min": 50.0}, "sde: sigma_min 50.0 is not below sigma_max 50.0"),
        (
            {"presets.digits.encoder.network.groups": 5},
            "presets.digits.encoder.network: channels 8 is not a multiple of groups 5",
        ),
        (
            {"presets.digits.prior.network.attention": [4, 0]},
            "presets.digits.prior.network.attention.1: got 0; input should be greater than 0",
        ),
        (
            {"presets.digits.encoder.network.attention": [0]},
            "presets.digits.encoder.network.attention.0: got 0; input should be greater than 0",
        ),
    ],
)
def test_values_that_do_not_fit(tmp_path: Path, changes: dict, expected: str) -> None:
    """Catches a missing check between two values, which would fail much later."""
    path = write_params(tmp_path / "p.yaml", tiny_params(**changes))
    assert fault(path).startswith(f"{path}: {expected}")


def test_conv_encoder_needs_no_groups(tmp_path: Path) -> None:
    """Catches a check of the group norm's widths where there is no group norm."""
    tree = tiny_params()
    network = tree["presets"]["digits"]["encoder"]["network"]
    network |= {"kind": "conv", "channels": [6]}
    load_config(write_params(tmp_path / "p.yaml", tree))
    network["channels"] = [7, 8]  # the embedding of time, pairs of sine and cosine, has no half
    message = fault(write_params(tmp_path / "p.yaml", tree))
    assert "encoder.network: channels: got 7 first; conv needs an even number" in message


def test_every_fault_is_reported(tmp_path: Path) -> None:
    """Catches a report that stops at the first of several faults."""
    path = write_params(tmp_path / "p.yaml", tiny_params(**{"beta": -1.0, "sde.kind": "x"}))
    lines = fault(path).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["beta", "sde.kind"]


@pytest.mark.parametrize("number", ["1e-05", "1e-5", "1E-5", "+1e-5", ".1e-4", "1.e-5", "0.00001"])
def test_numbers_as_dvc_writes_them(tmp_path: Path, number: str) -> None:
    """Catches YAML 1.1, in which `1e-05`, written by `dvc exp run -S beta=1e-5`, is a string."""
    assert load_config(with_beta(tmp_path, number)).beta == 1e-5


@pytest.mark.parametrize("text", ["'1e-5'", '"0.1"'])
def test_quoted_numbers_are_strings(tmp_path: Path, text: str) -> None:
    """Catches a resolver so eager that quoting no longer makes a string."""
    path = with_beta(tmp_path, text)
    value = text.strip("'\"")
    assert fault(path).startswith(f"{path}: beta: got {value!r}; ")


def with_beta(folder: Path, text: str) -> Path:
    """The shipped parameter file with another text after `beta:`."""
    tree = tiny_params()
    del tree["beta"]
    path = folder / "p.yaml"
    path.write_text(f"beta: {text}\n{yaml.safe_dump(tree)}", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"beta: 0.01\nbeta: 0.02\n", "key 'beta' is given twice"),
        (b"sde:\n  kind: vp\n  kind: ve\n", "key 'kind' is given twice"),
        (b"beta: [1\n", "not valid YAML"),
        (b"beta: \xff\xfe\n", "not valid YAML"),
    ],
)
def test_text_that_is_not_yaml(tmp_path: Path, content: bytes, expected: str) -> None:
    """Catches a duplicate key of which the last one wins, and a traceback from the parser."""
    path = tmp_path / "p.yaml"
    path.write_bytes(content)
    message = fault(path)
    assert message.startswith(f"{path}: not valid YAML: ")
    assert expected in message
    assert message.endswith("; correct it there")
    assert "\n" not in message


@pytest.mark.parametrize("content", ["", "3", "[1, 2]"])
def test_yaml_that_is_no_mapping(tmp_path: Path, content: str) -> None:
    """Catches a crash on an empty file or a bare value."""
    path = tmp_path / "p.yaml"
    path.write_text(content)
    assert fault(path).startswith(f"{path}: top level: got ")


def test_absent_file(tmp_path: Path) -> None:
    """Catches a traceback where the file's name is wrong."""
    path = tmp_path / "none.yaml"
    expected = f"{path}: No such file or directory; name the parameter file with --params"
    assert fault(path) == expected


def test_config_is_frozen() -> None:
    """Catches a section that a stage could change under another one."""
    with pytest.raises(ValueError, match="frozen"):
        load_config(SHIPPED).beta = 1.0


def test_config_imports_no_torch() -> None:
    """Catches an import that makes reading parameters take seconds."""
    code = "import sys, scorevae.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_config_holds_no_values() -> None:
    """Catches a default: a hyper-parameter that DVC does not see."""
    sections = set(sections_within(Config))
    assert len(sections) > 10
    found = [
        f"{section.__name__}.{name}"
        for section in sections
        for name, field in section.model_fields.items()
        if not field.is_required()
    ]
    assert found == []


def sections_within(hint: object) -> Iterator[type[Section]]:
    """A section and all sections that its fields, of whatever form, hold."""
    if isinstance(hint, type) and issubclass(hint, Section):
        yield hint
        for field in hint.model_fields.values():
            yield from sections_within(field.annotation)
    for part in get_args(hint):
        yield from sections_within(part)


def test_put_reaches_nested_keys() -> None:
    """Catches a test helper that changes nothing."""
    tree = {"a": {"b": 1}}
    put(tree, "a.b", 2)
    assert tree == {"a": {"b": 2}}


@pytest.mark.parametrize("written", ['"no"', "no"])
def test_no_is_a_word(tmp_path: Path, written: str) -> None:
    """Catches YAML 1.1, where the unquoted no that dvc exp run -S leaves behind is false."""
    text = SHIPPED.read_text(encoding="utf-8")
    assert 'precision: "no"' in text
    path = tmp_path / "params.yaml"
    path.write_text(text.replace('precision: "no"', f"precision: {written}"), encoding="utf-8")
    assert load_config(path) == load_config(SHIPPED)


def test_true_is_no_number(tmp_path: Path) -> None:
    """Catches true taken for 1."""
    path = tmp_path / "params.yaml"
    text = SHIPPED.read_text(encoding="utf-8").replace("seed: 0 ", "seed: true ")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="seed: got True"):
        load_config(path)

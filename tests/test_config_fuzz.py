"""config, fuzzed: a changed params.yaml means what DVC reads in it, or is refused in plain words.

No case may end in another library's exception, a hang, or a message that floods the terminal.
"""

import copy
import re
import string
from collections.abc import Iterator
from functools import reduce
from itertools import pairwise
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import parse_yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import committed_params

from scorevae.config import MAX_DEPTH, MAX_FAULTS, Config, load_config
from scorevae.errors import UserError

# Everything up to the second preset: one of each kind of section, and ten times faster to read.
TEXT = committed_params().split("\n\n  # 70,000")[0] + "\n"
TREE = yaml.safe_load(TEXT)

Key = tuple[str | int, ...]


def repeatable(examples: int) -> settings:
    """The same examples in every run, however slow the machine."""
    slow = [HealthCheck.too_slow]
    return settings(max_examples=examples, derandomize=True, deadline=None,
                    database=None, suppress_health_check=slow)  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One parameter file, written anew by every example."""
    return tmp_path_factory.mktemp("fuzz") / "params.yaml"


class Quoting(yaml.SafeDumper):
    """PyYAML leaves a text bare that YAML 1.2 reads as a number, such as 0E0."""


Quoting.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


def outcome(path: Path, content: str | bytes) -> Config | str:
    """The configuration, or the message of the refusal, which must be short and well formed."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        return load_config(path)
    except UserError as error:
        lines = error.message.splitlines()
        assert 0 < len(lines) <= MAX_FAULTS + 1
        for line in lines:
            assert line.startswith(f"{path}: ")
            assert len(line) - len(str(path)) < 800
            assert line.isprintable()
        return error.message


def places(tree: object, key: Key = ()) -> Iterator[Key]:
    """Every key, of values and of mappings."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield (*key, name)
            yield from places(value, (*key, name))


def at(tree: Any, key: Key) -> Any:
    """The value or mapping under a key."""
    return reduce(getitem, key, tree)


def changed(changes: dict[Key, object]) -> Any:
    """The shipped tree with other values."""
    tree = copy.deepcopy(TREE)
    for key, new in changes.items():
        at(tree, key[:-1])[key[-1]] = new
    return tree


PLACES = list(places(TREE))
SMALL = ("quick",)  # true changes what others say, by design (tests/test_quick.py)
LEAVES = [key for key in PLACES if not isinstance(at(TREE, key), dict) and key != SMALL]


def alike(ours: object, theirs: object) -> bool:
    """Equal, and of one type but for an integer that stands for a float.

    Where we read text, DVC may have made a number or a date of it; the text is what is used.
    """
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(alike(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(alike, ours, theirs))
    if isinstance(ours, str) and not isinstance(theirs, str):
        return theirs is not None and not isinstance(theirs, bool | dict | list)
    if isinstance(ours, float) and type(theirs) is int:
        return ours == float(theirs)
    return type(ours) is type(theirs) and ours == theirs


def written(config: Config) -> dict[str, Any]:
    """Its values under the keys of the file; headers of weights leave t_max out where it is 1."""
    tree = config.model_dump()
    tree["sde"] = {"t_max": 1.0, **tree["sde"]}
    return tree


# Text

SCRAPS = [
    "\t", "  ", "\n", ": ", "- ", "#", "'", '"', "[", "]", "{", "}", "&a ", "*a", "<<: *a", "? ",
    "|", ">", "---\n", "...\n", "!!python/object:os.system ", "!!int x", "!!float ", "!!bool no",
    "!!timestamp x", "!!set {a}", "!!binary x", "%YAML 1.1\n", "%YAML 9" + "9" * 5000 + ".1\n",
    "2001-01-01", "2001-13-45", "1:30", "010", "0o10", "0x1F", "1_000", ".inf", "-.INF", ".nan",
    "~", "null", "no", "yes", "=", "1e-05", "1e400", "9" * 5000, "0x" + "f" * 5000, "-0", "\ufeff",
    "\u2028", "\x85", "\u0661", "\U0001f600", "\x00", "\x7f", "é", '"\\ud800"', '"\\UFFFFFFFF"',
    '"\\x00"', "[" * 2000, "{a: " * 2000, "- " * 2000, "a" * 5000,
]  # fmt: skip
PIECES = st.one_of(
    st.sampled_from(SCRAPS), st.sampled_from(TEXT.splitlines(keepends=True)), st.text(max_size=6)
)
JOINTS = [match.start() for match in re.finditer(r"^| *$|(?<=: )|\b", TEXT, re.MULTILINE)]


@st.composite
def texts(draw: st.DrawFn) -> str:
    """The shipped text with other pieces in one to three places that begin and end at joints."""
    text, end = "", 0
    for joint in sorted(draw(st.lists(st.integers(0, len(JOINTS) - 1), min_size=1, max_size=3))):
        start = max(end, JOINTS[joint])
        text += TEXT[end:start] + draw(PIECES)
        end = max(end, JOINTS[min(joint + draw(st.integers(0, 8)), len(JOINTS) - 1)])
    return (text + TEXT[end:]).encode(errors="replace").decode()


def check_meaning(path: Path, content: str | bytes) -> None:
    """Refused, or what DVC reads in the same file."""
    found = outcome(path, content)
    if isinstance(found, Config):
        assert alike(written(found), parse_yaml(path.read_text(encoding="utf-8"), path))
    elif "not valid YAML" in found:
        assert "not valid YAML: line " in found


@repeatable(120)
@given(text=texts())
def test_mutated_text(path: Path, text: str) -> None:
    """Catches a value that DVC tracks and the stages read differently, and foreign exceptions."""
    check_meaning(path, text)


@repeatable(60)
@given(start=st.integers(0, len(TEXT)), data=st.binary(min_size=1, max_size=4))
def test_mutated_bytes(path: Path, start: int, data: bytes) -> None:
    """Catches a file that is no UTF-8, or holds what YAML forbids, ending in a traceback."""
    raw = TEXT.encode()
    check_meaning(path, raw[:start] + data + raw[start + len(data) :])


@repeatable(80)
@given(
    scalar=st.one_of(
        st.sampled_from([scrap for scrap in SCRAPS if scrap.strip() and "\n" not in scrap]),
        st.text(string.digits + "+-._eExobaf:", min_size=1, max_size=8),
        st.floats().map(repr),
        st.integers().map(str),
    ),
    key=st.sampled_from(["beta", "seed"]),
)
def test_scalars_are_those_of_dvc(path: Path, scalar: str, key: str) -> None:
    """Catches octal, sexagesimal and binary numbers of YAML 1.1, which DVC reads differently."""
    old = {"beta": "beta: 0.01\n", "seed": "seed: 0 "}[key]
    assert TEXT.count(old) == 1
    check_meaning(path, TEXT.replace(old, f"{key}: {scalar}{old[-1]}"))


# Trees

NUMBERS = [2**31, 2**63 - 1, 2**63, 2**64, 10**400, -(10**400)]
WORDS = ["vp", "ve", "no", "bf16", "cosine", "conv", "1e-05", "1e5", "x" * 9000]
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-3, 70), st.integers(), st.sampled_from(NUMBERS),
        st.floats(), st.floats(0, 1), st.text(max_size=8), st.dates(), st.binary(max_size=4),
        st.sampled_from(WORDS),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=6,
)  # fmt: skip
LINE = "not valid YAML: line "  # all that names a date, bytes, or a key that is no string


def read(path: Path, tree: object) -> Config | str:
    """What is found in a tree, written as YAML."""
    return outcome(path, yaml.dump(tree, Dumper=Quoting, sort_keys=False))


@repeatable(120)
@given(key=st.sampled_from(LEAVES), new=VALUES)
def test_replaced_value(path: Path, key: Key, new: object) -> None:
    """Catches a value taken for another one, one that changes a second key, and one not named."""
    tree = changed({key: new})
    found = read(path, tree)
    if isinstance(found, Config):
        assert alike(written(found), tree)
    else:  # a fault between values is reported by what holds both, and names the last part
        assert LINE in found or str(key[-1]) in found


@repeatable(50)
@given(
    key=st.sampled_from(PLACES),
    name=st.one_of(st.none(), st.text(max_size=5), st.integers(), st.booleans(), st.floats()),
)
def test_removed_and_renamed_keys(path: Path, key: Key, name: object) -> None:
    """Catches a misspelled, missing or non-string key that goes unnoticed or ends in a traceback.

    Only presets and protocols have free names, plain ones, and one of each is in use.
    """
    tree = copy.deepcopy(TREE)
    holder = at(tree, key[:-1])
    content = holder.pop(key[-1])
    if name is not None:
        holder[name] = content
    found = read(path, tree)
    if tree == TREE:
        assert isinstance(found, Config)
    elif key[0] == "protocols" and len(key) == 2 and key[1] != "default":
        plain = name is None or re.fullmatch("[A-Za-z0-9][A-Za-z0-9_-]*", str(name)) is not None
        assert isinstance(found, Config) == plain or LINE in found
    else:
        assert isinstance(found, str)
        assert str(key[-1]) in found or LINE in found


@repeatable(60)
@given(key=st.sampled_from(PLACES), name=st.text(max_size=8), new=VALUES)
def test_added_keys(path: Path, key: Key, name: str, new: object) -> None:
    """Catches an unknown key that is silently kept, and a name that breaks the message."""
    tree = copy.deepcopy(TREE)
    holder = at(tree, key[:-1])
    known = name in holder
    holder.setdefault(name, new)
    assert isinstance(read(path, tree), Config) == known


# What DVC writes


@repeatable(40)
@given(
    beta=st.floats(0, 1e300, allow_subnormal=False),
    steps=st.integers(0, 2**63 - 1),
    rate=st.floats(1e-30, 1e30),
    precision=st.sampled_from(["float32", "bf16"]),
    clip=st.booleans(),
)
def test_what_exp_run_writes(
    path: Path, beta: float, steps: int, rate: float, precision: str, clip: bool
) -> None:
    """Catches a value in the form of ``dvc exp run -S`` (Hydra, then YAML 1.2) read as another."""
    training = {"steps": steps, "learning_rate": rate, "precision": precision}
    changes = {f"presets.digits.prior.training.{key}": new for key, new in training.items()}
    changes |= {"beta": beta, "protocols.paper.clip": clip}
    path.write_text(TEXT, encoding="utf-8")
    apply_overrides(path, [f"{name}={value}" for name, value in changes.items()])
    tree = changed({tuple(name.split(".")): new for name, new in changes.items()})
    assert alike(written(load_config(path)), tree)


# Single cases


def laughs(levels: int) -> str:
    """Lists of nine of the list before: 9^levels values in a few lines."""
    names = string.ascii_lowercase[:levels]
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in pairwise(names)]
    return "\n".join([*lines, f"seed: *{names[-1]}\n"])


BOMBS = {
    "laughs": laughs(20),
    "loop": TEXT.replace("seed: 0 ", "seed: &a [*a] "),
    "loop of maps": TEXT.replace("    data:", "    data: &d\n      again: *d"),
    "lists": TEXT + "x: " + "[" * 100_000,
    "maps": TEXT + "x: " + "{a: " * 100_000,
    "blocks": TEXT + "x:\n" + "".join(" " * i + "- a:\n" for i in range(2, 2000, 2)),
    "keys": "".join(f"key{i}: 1\n" for i in range(20_000)),
    "values": TEXT.replace("seed: 0 ", "seed: [" + "x," * 20_000 + "] "),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_bombs(path: Path, text: str) -> None:
    """Catches a recursion error, a hang, and a message of megabytes."""
    assert isinstance(outcome(path, text), str)


@pytest.mark.parametrize("depth", [MAX_DEPTH - 1, MAX_DEPTH])
def test_depth(path: Path, depth: int) -> None:
    """Catches a limit that is off by one, and a refusal without the line."""
    found = outcome(path, f"\nbeta: {'[' * depth}{']' * depth}\n")
    refused = f"{path}: not valid YAML: line 2: nested more than {MAX_DEPTH} deep"
    assert str(found).startswith(refused) == (depth == MAX_DEPTH)


@pytest.mark.parametrize(("old", "new", "expected"), [
    ("seed: 0 ", "seed: 2001-13-45 ", "seed: got '2001-13-45'; "),
    ("seed: 0 ", f"seed: {'9' * 5000} ", "seed: got inf; "),
    ("seed: 0 ", f"seed: 0x{'f' * 5000} ", "seed: got an integer of 20000 bits; "),
    ("seed: 0 ", "seed: 1:30 ", "seed: got '1:30'; "),
    ("seed: 0 ", "seed: !!bool maybe ", "not valid YAML: line LINE: 'maybe' is no bool;"),
    ("seed: 0 ", "seed: !!int x ", "not valid YAML: line LINE: 'x' is no int;"),
    ("seed: 0 ", "seed: !!timestamp x ", "not valid YAML: line LINE: the tag 'tag:"),
    ("seed: 0 ", 'seed: "\\UFFFFFFFF" ', "not valid YAML: line LINE: "),
    ("seed: 0 ", "0: 0 ", "not valid YAML: line LINE: a key is no string; put it in quotes"),
    ("seed: 0 ", "? [a]\n: 0 ", "not valid YAML: line LINE: a key is no string"),
    ("seed: 0 ", "se\0ed: 0 ", "not valid YAML: line LINE: unprintable character #x0000;"),
    ("  kind: vp ", "  <<: {a: b}\n  kind: vp ", "not valid YAML: line LINE: merge keys (<<)"),
    ("  digits:\n", '  "\\ud800":\n', "not valid YAML: line LINE: '\\ud800' is no str;"),
    ("root:        ", 'root: "a\\0b" ', "not valid YAML: line LINE: 'a\\x00b' is no str;"),
    ("root:        ", 'root: "" ', "presets.digits.data.root: got ''; string should have at "),
    ("split_seed: 0", "split_seed: 4294967296", "presets.digits.data.split_seed: got 42949"),
    ("steps: 1400", "steps: 9223372036854775808", "presets.digits.prior.training.steps: got "),
    ("channels: 1, size: 8", "channels: 2, size: 8",
     "presets.digits.data: image.channels: got 2; choose 1 (grey) or 3 (colour)"),
    ("size: 8}", "size: 9}", "presets.digits: prior.network.channels: so many levels need an "
     "image.size that 2 divides, not 9; give fewer"),
    ("patch: 1 ", "patch: 3 ", "presets.digits: encoder.network.channels: so many levels need "
     "an image.size that 6 divides, not 8; give fewer channels (levels), or another size or"),
    ("kind: resnet ", "kind: conv # ", None),
    ("attention: []       # sides", "attention: [5] # sides",
     "presets.digits: prior.network.attention: got 5; the sides of its feature maps are 8, 4"),
    ("attention: []       # resnet", "attention: [2] # resnet",
     "presets.digits: encoder.network.attention: got 2; the sides of its feature maps are 8,"),
])  # fmt: skip
def test_faults_that_were_found(path: Path, old: str, new: str, expected: str | None) -> None:
    """Catches what ended in a traceback or passed, and a fault that only a network noticed."""
    assert old in TEXT
    found = outcome(path, TEXT.replace(old, new, 1))
    if expected is None:
        assert isinstance(found, Config)
    else:  # LINE: where the fault was put
        line = TEXT[: TEXT.index(old)].count("\n") + 1
        assert str(found).startswith(f"{path}: {expected.replace('LINE', str(line))}")


@pytest.mark.parametrize(
    ("widths", "attention", "fits"),
    [([4, 8], [4], True), ([4, 8], [8], False), ([8, 4], [8], False), ([4, 4], [], True)],
)
def test_narrow_levels_cannot_attend(
    path: Path, widths: list[int], attention: list[int], fits: bool
) -> None:
    """Catches diffusers' division by no heads, in the middle of the network too."""
    network = {"channels": widths, "attention": attention, "groups": 4}
    place = ("presets", "digits", "prior", "network")
    found = read(path, changed({(*place, key): new for key, new in network.items()}))
    assert isinstance(found, Config) == fits
    if not fits:
        assert "presets.digits: prior.network.channels: got 4 where the network attends" in found


def test_shared_values_are_read(path: Path) -> None:
    """Catches aliases refused together with their misuse: one training for two networks."""
    tree = copy.deepcopy(TREE)
    preset = tree["presets"]["digits"]
    preset["vae"]["training"] = preset["prior"]["training"]
    text = yaml.safe_dump(tree)
    assert "*id001" in text
    found = outcome(path, text)
    assert isinstance(found, Config)
    assert found.selected.vae.training == found.selected.prior.training


def test_faults_are_counted(path: Path) -> None:
    """Catches a flood of faults, and one cut off without a word."""
    found = outcome(path, TEXT + "".join(f"key{i}: 1\n" for i in range(MAX_FAULTS + 5)))
    assert str(found).splitlines()[-1] == f"{path}: 5 more such lines; correct these first"

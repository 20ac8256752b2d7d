"""Parameter files as trees of plain values: YAML 1.2 as DVC writes it, and no more of YAML.

PyYAML follows YAML 1.1, where 1e-05 is a string, no is false, 010 is eight and 1:30 is ninety. DVC
follows YAML 1.2, and ``dvc exp run -S`` writes the file anew: ``beta: 1e-05``, and
``precision: no`` without its quotes. Hence the core schema of YAML 1.2.2, §10.3.2, and no other
tags.
"""

import re
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from scorevae.errors import UserError

MAX_DEPTH = 32  # of a parameter file; the deepest value lies at 7


class _Clipped(reprlib.Repr):
    """``repr`` of at most a line, whatever the file holds: PyYAML's aliases grow exponentially."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 2, 100, 100

    def repr_int(self, x: int, level: int) -> str:
        """Python does not write integers beyond 4300 digits."""
        if x.bit_length() > 128:
            return f"an integer of {x.bit_length()} bits"
        return super().repr_int(x, level)


shown = _Clipped().repr  # a value as a message quotes it


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the core schema of YAML 1.2; every key a string and given once."""

    _depth = 0

    # PyYAML's stubs say less than is passed: index may be a node, index and anchor None.
    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401
        """Compose what comes next, to a bounded depth: PyYAML recurses."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            mark = self.peek_event().start_mark
            raise _unreadable(f"nested more than {MAX_DEPTH} deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # noqa: ANN401
        """Compose a mapping and check its keys, of which PyYAML would take the last of two."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != _TAG + "str":
                raise _unreadable("a key is no string; put it in quotes", key.start_mark)
            if key.value in seen:
                raise _unreadable(f"key {shown(key.value)} is given twice", key.start_mark)
            if key.value == "<<":
                raise _unreadable("merge keys (<<) are not read; write all keys", key.start_mark)
            seen.add(key.value)
        return node


def _unreadable(problem: str, mark: Any) -> yaml.constructor.ConstructorError:  # noqa: ANN401
    return yaml.constructor.ConstructorError(None, None, problem, mark)


def _integer(text: str) -> int | float:
    """An integer; as the float inf, which every key refuses, beyond what Python reads."""
    if text.startswith(("0o", "0x")):
        return int(text, 0)
    return int(text) if len(text) < 4300 else float(text)


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


# Name, first characters (the empty text counts as one), form, reader.
_TAG = "tag:yaml.org,2002:"
_SCALARS: tuple[tuple[str, tuple[str, ...], str, Callable[[str], object]], ...] = (
    ("null", ("", *"~nN"), r"null|Null|NULL|~|", lambda text: None),
    ("bool", (*"tTfF",), r"true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
    ("int", (*"+-0123456789",), r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", _integer),
    (
        "float",
        (*"+-.0123456789",),
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        _float,
    ),
    # Escapes can write halves of characters, and the zero that ends a file name.
    ("str", (), r"[^\0\ud800-\udfff]*", str),
)


def _constructor(
    name: str, pattern: re.Pattern[str], read: Callable[[str], object]
) -> Callable[[_Loader, yaml.ScalarNode], object]:
    """What reads a scalar; an explicit tag, as in ``!!int x``, may promise what is not so."""

    def construct(loader: _Loader, node: yaml.ScalarNode) -> object:
        text = loader.construct_scalar(node)
        if not pattern.fullmatch(text):
            raise _unreadable(f"{shown(text)} is no {name}", node.start_mark)
        return read(text)

    return construct


def _unknown_tag(loader: _Loader, node: yaml.Node) -> NoReturn:
    del loader
    raise _unreadable(f"the tag {shown(node.tag)} is not read; remove it", node.start_mark)


_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = {
    tag: yaml.SafeLoader.yaml_constructors[tag] for tag in (_TAG + "seq", _TAG + "map")
}
_Loader.add_constructor(None, _unknown_tag)
for _name, _first, _form, _read in _SCALARS:
    if _first:
        _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_form})\Z"), list(_first))
    _Loader.add_constructor(_TAG + _name, _constructor(_name, re.compile(_form), _read))


def read_tree(path: Path) -> object:
    """The file's values as Python's.

    Raises:
        UserError: file absent, not YAML, or not the part of it that parameters need; names the
            line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise _not_yaml(path, line, "not UTF-8") from None
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; name the parameter file with --params"
        ) from None
    return _load(text, path)


def _load(text: str, path: Path) -> object:
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise _not_yaml(path, line, f"unprintable character #x{error.character:04x}") from None
    try:
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = loader.line if mark is None else mark.line
        raise _not_yaml(path, line + 1, str(error.problem or error.context)) from None
    except (ValueError, OverflowError) as error:  # an escape or a version that is no number
        raise _not_yaml(path, loader.line + 1, str(error)) from None


def _not_yaml(path: Path, line: int, reason: str) -> UserError:
    reason = " ".join(reason.split())[:200]
    return UserError(f"{path}: not valid YAML: line {line}: {reason}; correct it there")

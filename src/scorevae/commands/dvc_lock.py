"""What dvc.lock tells of the results: with which parameters their stages were run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from scorevae.config import Section, parse, read_tree, shown
from scorevae.errors import UserError

PARAMS = "params.yaml"  # the name under which dvc.yaml tracks parameters
NAMED = 5  # parameters in one message


class _Part(Section):
    """Of a file that is DVC's: it says more than is read here, and leaves out what is empty."""

    model_config = ConfigDict(extra="ignore")


class _File(_Part):
    path: str


class _Stage(_Part):
    deps: list[_File] = []
    outs: list[_File] = []
    params: dict[str, dict[str, Any]] = {}


class _Lock(_Part):
    stages: dict[str, _Stage] = {}


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


def check_parameters(results: Path, params: Path) -> None:
    """Refuse parameters other than those with which DVC made what is in a folder of results.

    The stages upstream count too: `evaluate` does not read β, the weights that it measures depend
    on it. Where there is no dvc.lock beside the folder, or it does not know the files, all pass.

    Raises:
        UserError: names the parameters and both of their values.
    """
    lock = results.absolute().parent / "dvc.lock"
    if not lock.exists():
        return
    stages = parse(_Lock, read_tree(lock), str(lock)).stages
    tree = read_tree(params)
    other = {
        difference: None  # once: several stages read the same parameter
        for stage in _makers(stages, results.absolute())
        for key, value in stage.params.get(PARAMS, {}).items()
        for difference in _differences(key, value, _value(tree, key))
    }
    if other:
        more = f"; {len(other) - NAMED} more" if len(other) > NAMED else ""
        raise UserError(
            f"{params}: not the parameters that made {results} "
            f"({'; '.join(list(other)[:NAMED])}{more}); run `dvc repro`, or restore {params}"
        )


def _makers(stages: dict[str, _Stage], results: Path) -> list[_Stage]:
    """The stages that wrote what is there of the results, and all stages upstream of them."""
    writers = {out.path: name for name, stage in stages.items() for out in stage.outs}
    paths = ((path, results.parent / path) for path in writers)
    waiting = [path for path, at in paths if at.is_relative_to(results) and at.exists()]
    found = set()
    while waiting:
        name = writers.get(waiting.pop())
        if name is not None and name not in found:
            found.add(name)
            waiting += [dep.path for dep in stages[name].deps]
    return [stage for name, stage in stages.items() if name in found]


def _value(tree: object, key: str) -> object:
    """What a tree of parameters has under a dotted name."""
    for name in key.split("."):
        tree = tree.get(name, ABSENT) if isinstance(tree, dict) else ABSENT
    return tree


def _differences(key: str, made: object, now: object) -> Iterator[str]:
    """The parameters at and below a key whose values differ; 0.01 and 1e-2 are the same number."""
    if isinstance(made, dict) and isinstance(now, dict):
        for name in made | now:
            yield from _differences(f"{key}.{name}", made.get(name, ABSENT), now.get(name, ABSENT))
    elif made != now:
        yield f"{key}: {shown(made)} in dvc.lock, now {shown(now)}"

"""Which split and which class an image file belongs to: read from the names of all files alone."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from scorevae.data.arrays import SplitName
from scorevae.errors import UserError

# Names of folders, in any case; the validation set goes where there is no test set.
ROLES: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("val", "valid", "validation", "eval", "evaluation", "dev"),
}
# What may stand behind them where `folders` is asked for, as in COCO's train2017 and val2017.
LOOSE = r"([ _.-]*(\d+|set|images?|imgs?|data|split))*"

Split = Literal["auto", "folders", "random"]
Path = tuple[str, ...]
Roles = dict[str, list[str]]


class Place(NamedTuple):
    """Where one file goes."""

    split: SplitName | None  # None: to be drawn
    path: Path  # its folders below those of the split, and its name

    @property
    def label(self) -> str | None:
        """The first folder, its class."""
        return self.path[0] if len(self.path) > 1 else None


class Arrangement(NamedTuple):
    """Where all files go, by their place in the list of names; and the others, by folder."""

    places: dict[int, Place]
    left_out: dict[str, int]


def arrange(names: list[str], split: Split, key: str) -> Arrangement:
    """Find splits and classes; leading folders that all files share are ignored.

    Folders named after a role (ROLES) at the top, or below every class, are the splits where one
    trains and one is held out. What stands beside them is left out. Else the split is to be drawn.
    ``split`` says whether to decide so (auto), to insist on it (folders), or to draw in any case.

    Raises:
        UserError: the names can be read in two ways, and ``split`` is auto; or they hold no
            splits, and it is folders. ``key`` is where params.yaml has it.
    """
    paths = _without_shared([PurePosixPath(name).parts for name in names])
    if split == "random":
        return _drawn(paths)
    found = _roles(paths, _exactly)
    if not _is_pair(found) and _inside(paths):
        paths = [(path[1], path[0], *path[2:]) for path in paths]
        found = _roles(paths, _exactly)
    if split == "folders":
        found = found if _is_pair(found) else _roles(paths, _loosely)
        if not _is_pair(found):
            raise UserError(
                f"{key}.split: folders, but no folders for training and for testing among "
                f"{_some(_heads(paths))}; name them train and test, or choose auto or random"
            )
    elif reason := _ambiguous(paths, found):
        raise UserError(f"{key}.split: auto, but {reason}; choose one")
    return _given(paths, found) if _is_pair(found) else _drawn(paths)


def without_repeats(
    places: dict[int, Place], digests: list[bytes]
) -> tuple[dict[int, Place], dict[int, int]]:
    """No two of one digest in both splits; what is dropped, and the place that it repeats.

    Of what is to be drawn, the first stays. Of what is given, a test image stays, and whatever
    repeats it in training is dropped; repeats within a split change no comparison.
    """
    kept: dict[int, Place] = {}
    repeated: dict[int, int] = {}
    first: dict[bytes, int] = {}
    for place in sorted(places, key=lambda place: (places[place].split == "train", place)):
        other = first.setdefault(digests[place], place)
        drawn, train = places[place].split is None, places[place].split == "train"
        if other != place and (drawn or (train and places[other].split == "test")):
            repeated[place] = other
        else:
            kept[place] = places[place]
    return kept, repeated


def class_numbers(kept: dict[int, Place]) -> tuple[list[str], dict[int, int]]:
    """The classes, and the number of each file's; none unless all have one and there are two."""
    labels = {place: where.label for place, where in kept.items()}
    classes = sorted({label for label in labels.values() if label is not None})
    if len(classes) < 2 or None in labels.values():
        return [], {}
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, {place: numbers[label] for place, label in labels.items() if label is not None}


def _without_shared(paths: list[Path]) -> list[Path]:
    while all(len(path) > 1 for path in paths) and len({path[0] for path in paths}) == 1:
        paths = [path[1:] for path in paths]
    return paths


def _exactly(name: str, role: str) -> bool:
    return name.lower() in ROLES[role]


def _loosely(name: str, role: str) -> bool:
    return re.fullmatch(f"({'|'.join(ROLES[role])}){LOOSE}", name.lower()) is not None


def _heads(paths: list[Path]) -> Counter[str]:
    """The folders at the top, and how many images each holds."""
    return Counter(path[0] for path in paths if len(path) > 1)


def _roles(paths: list[Path], fits: Callable[[str, str], bool]) -> Roles:
    heads = sorted(_heads(paths))
    return {role: [name for name in heads if fits(name, role)] for role in ROLES}


def _is_pair(found: Roles) -> bool:
    return bool(found["train"] and _held_out(found))


def _held_out(found: Roles) -> list[str]:
    return found["test"] or found["validation"]


def _inside(paths: list[Path]) -> bool:
    """Whether every file lies in a class's own folder for training or testing: cat/train/0.png."""
    split = [len(path) > 2 and any(_exactly(path[1], role) for role in ROLES) for path in paths]
    return all(split) and _is_pair(_roles([path[1:] for path in paths], _exactly))


def _ambiguous(paths: list[Path], found: Roles) -> str:
    """The two ways in which names can be read, with their settings; empty where there is one."""
    reason = _with_a_pair(paths, found) if _is_pair(found) else _without_a_pair(paths, found)
    return reason and f"{reason}, or every folder is a class and the split is drawn (random)"


def _with_a_pair(paths: list[Path], found: Roles) -> str:
    if strays := [path[0] for path in paths if len(path) == 1]:
        names = _some([*found["train"], *_held_out(found)])
        what = f"{len(strays)} images ({strays[0]}) stand beside {names}"
        return f"{what}: either they are left out (folders)"
    for same in (found["train"], _held_out(found)):
        if len(same) > 1:
            return f"{_some(same)} mean the same: either they are taken together (folders)"
    return ""


def _without_a_pair(paths: list[Path], found: Roles) -> str:
    if named := [name for role in found.values() for name in role]:
        missing = "testing" if found["train"] else "training"
        what = f"beside {_some(named)} there is no folder for {missing}"
        return f"{what}: either it is missing (add it, and remove what belongs to neither)"
    if _is_pair(loose := _roles(paths, _loosely)):
        names = _some([name for role in loose.values() for name in role])
        return f"{names} look like splits: either they are (folders)"
    for head in _heads(paths):
        below = _roles([path[1:] for path in paths if path[0] == head], _exactly)
        if _is_pair(below):
            names = _some([*below["train"], *_held_out(below)])
            what = f"{names} stand in {head!r}, beside which there are other images"
            return f"{what}: either they are all (name that folder in data.root)"
    return ""


def _drawn(paths: list[Path]) -> Arrangement:
    return Arrangement({i: Place(None, path) for i, path in enumerate(paths)}, {})


def _given(paths: list[Path], found: Roles) -> Arrangement:
    split: dict[str, SplitName] = dict.fromkeys(found["train"], "train")
    split |= dict.fromkeys(_held_out(found), "test")
    places, others = {}, Counter[str]()
    for i, path in enumerate(paths):
        if len(path) > 1 and path[0] in split:
            places[i] = Place(split[path[0]], path[1:])
        else:
            others[path[0] if len(path) > 1 else "no folder"] += 1
    return Arrangement(places, dict(others))


def _some(names: "list[str] | Counter[str]", most: int = 6) -> str:
    shown = ", ".join(repr(name) for name in sorted(names)[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")

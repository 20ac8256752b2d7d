"""What was understood of a tree of images, in words and for meta.json."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scorevae.data.arrays import SplitName
from scorevae.data.sources.pixels import UNREAD
from scorevae.data.sources.splits import Arrangement, Place

MOST_CLASSES = 12  # named one by one in a line
MOST_ENDINGS = 20  # kept apart; beyond, file names only look as if they had endings


class Found(NamedTuple):
    """What lies under a root: images and their digests, what is none, and what is not read."""

    root: Path
    names: list[str]
    digests: list[bytes]
    bad: list[str]
    ignored: Counter[str]  # by ending

    def ordered(self, order: np.ndarray) -> "Found":
        """The same with its images in another order."""
        names, digests = ([of[row] for row in order] for of in (self.names, self.digests))
        return self._replace(names=names, digests=digests)


@dataclass(frozen=True)
class Understood:
    """Splits and classes as they will be used; places are those in ``found``."""

    found: Found
    arrangement: Arrangement
    kept: dict[int, Place]
    repeated: dict[int, int]
    splits: dict[SplitName, np.ndarray]
    classes: list[str]

    @cached_property
    def by_class(self) -> dict[SplitName, dict[str, int]]:
        """How many images of each class each split has."""
        counts = {
            split: Counter(self.kept[place].label for place in places)
            for split, places in self.splits.items()
        }
        return {s: {name: counts[s][name] for name in self.classes} for s in counts}

    @property
    def drawn(self) -> bool:
        """Whether the split was drawn, and not given by folders."""
        return any(place.split is None for place in self.kept.values())

    def details(self) -> dict[str, Any]:
        """For meta.json."""
        return {
            "classes": self.classes,
            "images_by_class": {s: list(counts.values()) for s, counts in self.by_class.items()},
            "split": "drawn" if self.drawn else "given",
            "left_out": self.arrangement.left_out,
            "repeated": len(self.repeated),
            "skipped": len(self.found.bad),
            "ignored": dict(self.found.ignored.most_common(MOST_ENDINGS)),
        }

    def lines(self) -> list[str]:
        """For whoever waits for it: counts, what is left out and why, what is to be looked at."""
        train, test = (len(self.splits[split]) for split in ("train", "test"))
        how = "drawn by test_fraction" if self.drawn else "as the folders say"
        said = f"{self.found.root}: {train} images to train, {test} to test, {how}; "
        return [said + self._of_classes(), *self._left_out(), *self._warnings()]

    def _of_classes(self) -> str:
        if not self.classes:
            return "no classes"
        counts = {
            name: (self.by_class["train"][name], self.by_class["test"][name])
            for name in self.classes
        }
        if len(counts) <= MOST_CLASSES:
            named = (f"{name!r} {train} + {test}" for name, (train, test) in counts.items())
            return f"{len(counts)} classes: {', '.join(named)}"
        ordered = sorted(counts, key=lambda name: sum(counts[name]))
        least, most = (f"{n!r} {counts[n][0]} + {counts[n][1]}" for n in (ordered[0], ordered[-1]))
        return f"{len(counts)} classes, the smallest {least}, the largest {most}"

    def _left_out(self) -> list[str]:
        lines = []
        if others := self.arrangement.left_out:
            named = ", ".join(f"{count} in {name!r}" for name, count in others.items())
            lines.append(f"left out, beside the splits: {named}")
        if self.repeated:
            place, other = next(iter(self.repeated.items()))
            example = f"{self.found.names[place]!r} those of {self.found.names[other]!r}"
            lines.append(f"left out: {len(self.repeated)} with the pixels of others ({example})")
        if rest := {end: n for end, n in self.found.ignored.items() if end not in UNREAD}:
            lines.append(f"ignored, no pictures: {listed(Counter(rest))}")
        return lines

    def _warnings(self) -> list[str]:
        lines = []
        if pictures := {end: n for end, n in self.found.ignored.items() if end in UNREAD}:
            lines.append(f"{listed(Counter(pictures))} are not read; convert them to PNG or JPEG")
        without = [place for place in self.kept if self.kept[place].label is None]
        if 0 < len(without) < len(self.kept):
            first = self.found.names[without[0]]
            lines.append(f"no classes, since {len(without)} lie in no folder of one ({first!r})")
        if pairs := self._contradictions():
            names = " and ".join(repr(self.found.names[place]) for place in pairs[0])
            lines.append(f"the same pixels in two classes, {len(pairs)} times ({names})")
        return [f"warning: {self.found.root}: {line}" for line in lines]

    def _contradictions(self) -> list[tuple[int, int]]:
        """Places of the same pixels in two classes."""
        if not self.classes:
            return []
        places, digests = self.arrangement.places, self.found.digests
        first: dict[bytes, int] = {}
        others = ((first.setdefault(digests[p], p), p) for p in sorted(places))
        return [(a, b) for a, b in others if places[a].label != places[b].label]


def listed(ignored: Counter[str], most: int = 6) -> str:
    """Numbers of files by their endings."""
    named = ", ".join(f"{count} {ending}" for ending, count in ignored.most_common(most))
    rest = sum(ignored.values()) - sum(count for _, count in ignored.most_common(most))
    return f"{named} files" + (f" and {rest} others" if rest else "")

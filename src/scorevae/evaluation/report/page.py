"""The contract of the page, text, numbers and picture files, and its rendering as HTML.

It knows nothing of the pipeline. The page is self-contained and without scripts. A number that
could not be had is None: the page shows "–" with the reason beside it.
"""

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal, NamedTuple

import jinja2
from markupsafe import Markup
from PIL import Image

from scorevae.errors import UserError
from scorevae.runtime.files import replacing

Value = float | int | None
Values = Mapping[str, Value]


class Number(NamedTuple):
    """A number of the page; None, inf and NaN are shown as "–" with the reason."""

    value: Value
    digits: int = 4  # decimals; an int has none
    reason: str = ""  # why there is no value
    best: bool = False  # emphasised

    @property
    def missing(self) -> bool:
        """Whether there is nothing to show."""
        return self.value is None or not math.isfinite(self.value)

    @property
    def why(self) -> str:
        """Why there is nothing to show; empty if there is."""
        if not self.missing:
            return ""
        return self.reason or ("no reason was given" if self.value is None else "not finite")

    @property
    def text(self) -> str:
        """The number as printed; one that its decimals would round to zero in powers of ten."""
        if self.value is None or not math.isfinite(self.value):
            return "–"
        if isinstance(self.value, int):
            return f"{self.value:d}"
        number = f"{self.value:.{self.digits}f}"
        return f"{self.value:.1e}" if self.value != 0 and float(number) == 0 else number


class Label(NamedTuple):
    """The head of a row, with an explanation in small print."""

    text: str
    detail: str = ""


Cell = str | Number | Label


class Card(NamedTuple):
    """A headline number."""

    label: str
    number: Number
    detail: str = ""


class Table(NamedTuple):
    """Rows under named columns; the first cell of a row is its head."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


class FigureFile(NamedTuple):
    """A picture file (PNG, JPEG, WebP or GIF) that is embedded."""

    path: Path
    caption: str
    alt: str  # what it shows, for those who do not see it


class Section(NamedTuple):
    """A part of the page. Paragraphs of ``text`` are parted by empty lines."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    figures: Sequence[FigureFile] = ()
    notes: Sequence[str] = ()


class Provenance(NamedTuple):
    """Where the numbers come from and how to get them again."""

    commit: str  # "unknown" outside Git
    dirty: bool  # code differs from the commit
    hardware: Mapping[str, str]
    commands: Sequence[str]
    notes: Sequence[str] = ()
    date: str = ""  # of the evaluation
    name: str = ""  # of the experiment, where DVC gave it one


class Report(NamedTuple):
    """The whole page."""

    title: str
    summary: str
    headline: Sequence[Card]
    sections: Sequence[Section]
    parameters: Mapping[str, str]  # dotted name -> value
    provenance: Provenance
    lead: FigureFile | None = None  # what is to be seen before all numbers
    cautions: Sequence[str] = ()  # what must be known to read the headline numbers


# An absolute path tells of the machine, not of the run: only its last part is shown.
ABSOLUTE_PATH = re.compile(r"(?<![^\s'\"(=\[])/(?:[^\s/'\"():,;]+/)+([^\s/'\"():,;]*)")


def write(path: Path, report: Report) -> None:
    """Write the page, atomically."""
    page = render(report)
    with replacing(path) as temporary:
        # Of a path that is not UTF-8, what has no encoding becomes a question mark.
        temporary.write_text(page, encoding="utf-8", errors="replace")


def render(report: Report) -> str:
    """The page as HTML: the same for the same report, and asking for nothing from elsewhere.

    Raises:
        UserError: a figure cannot be read.
    """
    return _template().render(report=report, groups=_groups(report.parameters))


def without_paths(text: str) -> str:
    """The text with absolute paths cut to their last part."""
    return ABSOLUTE_PATH.sub(r"…/\1", text)


@cache
def _template() -> jinja2.Template:
    source = (files("scorevae.evaluation.report") / "page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # Whatever text comes from elsewhere, reasons of failures above all, passes through here.
        finalize=lambda value: without_paths(value) if type(value) is str else value,
    )
    environment.filters |= {"csp_hash": _csp_hash, "marks": _marks, "open": _open}
    environment.filters["kind"] = lambda cell: type(cell).__name__
    return environment.from_string(source)


def _csp_hash(style: str) -> Markup:
    """The source expression that allows this one style sheet (Content Security Policy 3, §2.3)."""
    digest = hashlib.sha256(style.encode()).digest()
    return Markup(f"'sha256-{base64.b64encode(digest).decode()}'")


def _marks(table: Table) -> dict[str, int]:
    """The reasons for missing numbers of a table, numbered in order of appearance."""
    cells = [cell for row in table.rows for cell in row if isinstance(cell, Number)]
    reasons = dict.fromkeys(cell.why for cell in cells if cell.missing)
    return {reason: index for index, reason in enumerate(reasons, start=1)}


Shape = Literal["wide", "broad", "plain"]  # how far a phone may shrink a picture


class _Picture(NamedTuple):
    """An embedded file, as the template wants it."""

    source: Markup
    width: int
    height: int
    shape: Shape


def _open(figure: FigureFile) -> _Picture:
    try:
        with Image.open(figure.path, formats=("PNG", "JPEG", "WEBP", "GIF")) as image:
            (width, height), kind = image.size, image.get_format_mimetype()
        content = base64.b64encode(figure.path.read_bytes()).decode()
    except OSError as error:
        raise UserError(
            f"{figure.path}: no picture ({error.strerror or 'not PNG, JPEG, WebP or GIF'}); run "
            "the stage that draws it again"
        ) from None
    return _Picture(Markup(f"data:{kind};base64,{content}"), width, height, _shape(width, height))


def _shape(width: int, height: int) -> Shape:
    return "wide" if width > 2.8 * height else "broad" if width > 1.8 * height else "plain"


def _groups(parameters: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Parameters by the first part of their name; those without parts under "general"."""
    groups: dict[str, dict[str, str]] = {}
    for name, value in parameters.items():
        first, dot, _ = name.partition(".")
        groups.setdefault(first if dot else "general", {})[name] = value
    return groups

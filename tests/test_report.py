"""report: what the page says, that it needs nothing else, and that it says it to everyone."""

import base64
import hashlib
import json
import math
import os
import re
import shlex
import subprocess
import sys
import zipfile
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from matplotlib.figure import Figure
from PIL import Image
from tiny import put, tiny_config, tiny_params, write_params

from scorevae.autoencoders.table import SYSTEMS
from scorevae.config import Config, load_config, parse
from scorevae.errors import Unavailable, UserError
from scorevae.evaluation.part import Caption, Columns, Found, Numbers, Part
from scorevae.evaluation.parts import PARTS, comparison, training
from scorevae.evaluation.parts.comparison import unequal_rates
from scorevae.evaluation.parts.training import duration, read_curve
from scorevae.evaluation.report.assembly import assemble, cards_of, section
from scorevae.evaluation.report.page import (
    Card,
    FigureFile,
    Label,
    Number,
    Provenance,
    Report,
    Section,
    Table,
    render,
    without_paths,
    write,
)
from scorevae.evaluation.report.provenance import hardware, parameters, provenance
from scorevae.evaluation.report.tables import Metric, systems_table

ROOT = Path(__file__).resolve().parents[1]
VOID = {"meta", "link", "img", "br", "hr", "input"}
DRAWN = Figure()  # stands for a figure: the page embeds its file
ORIGIN = Provenance("abc123", False, {"Processor": "none"}, ["dvc repro"])
BARE = Report("Title", "Summary", [], [], {}, ORIGIN)
METRICS = {
    "scorevae": {"l2": 0.25, "mse": 0.00125, "psnr": 30.5, "sharpness": 1.25, "lpips": None},
    "vae": {"l2": 0.5, "mse": 0.00251, "psnr": 27.25, "sharpness": 0.5, "lpips": None},
}


class Page(HTMLParser):
    """The page taken apart: elements, tables as rows of text, and what lies where."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.texts: list[tuple[str, str]] = []  # (path of open tags, text)
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        self.texts.append((" ".join(self._open), data))
        if "small" in self._open:
            return
        if "td" in self._open or "th" in self._open:
            self._rows[-1][-1] += data
        elif "caption" in self._open:
            self._caption += data

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of every element of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, within: str = "") -> str:
        """All text, or that inside one kind of element."""
        parts = (text for path, text in self.texts if within in path.split() or not within)
        return " ".join("".join(parts).split())

    def rows(self, caption: str) -> dict[str, list[str]]:
        """A table's cells by the head of the row, without arrows."""
        return {r[0].split("\u00a0")[0]: r[1:] for r in self.tables[caption][1:]}


def page(**changes) -> Page:
    """A page with these parts and no others."""
    return Page(render(BARE._replace(**changes)))


def table_page(rows: list) -> Page:
    """A page with one table named T."""
    table = Table("T", ["head", *"abc"[: len(rows[0]) - 1]], rows)
    return page(sections=[Section("S", tables=[table])])


def nothing(subject: object) -> Found:
    """Stands for a part's computation, which the page does not call."""
    raise AssertionError


def part(name: str, **declared) -> Part:
    """A part that declares little."""
    return Part(name=name, title=name.capitalize(), text="", compute=nothing, **declared)


@pytest.fixture
def figures(tmp_path: Path) -> Path:
    """Pictures of different sizes, one of which no part declares."""
    folder = tmp_path / "figures"
    folder.mkdir()
    sizes = {"comparison": (90, 30), "samples": (40, 41), "training_curves": (80, 20)}
    for name, size in (sizes | {"of_mine": (7, 5)}).items():
        Image.new("RGBA", size, (10, 20, 30, 255)).save(folder / f"{name}.png")
    return folder


def assembled(figures: Path, numbers: Numbers = METRICS, **reasons: str) -> Report:
    """The page of a run of three parts; it reads the files of their figures."""
    found = {
        "comparison": Found(numbers, figures={"comparison": DRAWN}, reasons=reasons),
        "samples": Found(figures={"samples": DRAWN}),
        "training": Found(figures={"training_curves": DRAWN}, page=[training.table([])]),
    }
    parts = [(part, found[part.name]) for part in PARTS if part.name in found]
    seconds, config = dict.fromkeys(found, 1.5), tiny_config()
    return assemble(config, parts, {}, seconds, figures=figures, provenance=ORIGIN, images=360)


@pytest.fixture
def whole(figures: Path) -> Page:
    """The same, taken apart."""
    return Page(render(assembled(figures)))


def test_every_number_of_the_recorded_run(figures: Path) -> None:
    """Catches a metric that is left out, rounded further than stated, or in the wrong column."""
    recorded = json.loads((ROOT / "docs/digits/metrics.json").read_text())
    recorded = {s: {name: recorded[s].get(name) for name in comparison.METRICS} for s in METRICS}
    shown = Page(render(assembled(figures, recorded)))
    assert shown.tables["Comparison in numbers"][0][1:] == ["ScoreVAE", "VAE"]
    rows = shown.rows("Comparison in numbers").values()
    for metric, cells in zip(comparison.METRICS, rows, strict=True):
        digits = comparison.METRICS[metric].digits
        for system, cell in zip(METRICS, cells, strict=True):
            value = recorded[system][metric]
            if value is None:
                assert re.fullmatch(r"–\d", cell)
            else:
                assert cell == (str(value) if isinstance(value, int) else f"{value:.{digits}f}")


def test_sections_and_figures_are_those_of_the_parts(figures: Path, whole: Page) -> None:
    """Catches a section or figure lost or moved, and a figure of another's size or altered."""
    titles = [s.title for s in assembled(figures).sections]
    assert titles == ["Comparison", "Samples", "Training", "Costs"]
    expected = [figures / f"{n}.png" for n in ("comparison", "samples", "training_curves")]
    for image, path in zip(whole.all("img"), expected, strict=True):
        content = base64.b64encode(path.read_bytes()).decode()
        assert image["src"] == f"data:image/png;base64,{content}"
        with Image.open(path) as picture:
            assert (int(image["width"]), int(image["height"])) == picture.size
        assert image["alt"]


def test_nothing_from_elsewhere(whole: Page) -> None:
    """Catches a link, script, font or picture outside the page, and a style that CSP blocks."""
    assert not {"script", "iframe", "object", "base", "form"} & {tag for tag, _ in whole.elements}
    for _, attributes in whole.elements:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        for name in ("src", "href", "srcset", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:"))
    assert not re.search("https?:", whole.html)
    (style,) = re.findall(r"<style>(.*?)</style>", whole.html, re.DOTALL)
    assert not re.search(r"url\(|@import", style)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    allowed = ["default-src 'none'", "img-src data:", f"style-src 'sha256-{digest}'"]
    (policy,) = [m["content"] for m in whole.all("meta") if "http-equiv" in m]
    assert policy.split("; ")[:3] == allowed


def test_same_input_same_bytes(tmp_path: Path, figures: Path) -> None:
    """Catches a clock or an unordered set in the page, and one lost to a name without encoding."""
    numbers = {name: values | {"lpips": None} for name, values in METRICS.items()}
    pages = [tmp_path / "a.html", tmp_path / "b.html"]
    for path in pages:
        write(path, assembled(figures, numbers, lpips=os.fsdecode(b"caf\xe9.pth: another file")))
    assert pages[0].read_bytes() == pages[1].read_bytes()
    assert "caf?.pth: another file" in pages[0].read_text(encoding="utf-8")


def test_page_is_accessible(whole: Page) -> None:
    """Catches cells without scope, tables without caption, doubled ids and links to nowhere."""
    assert whole.all("html") == [{"lang": "en"}]
    kinds = Counter(tag for tag, _ in whole.elements)
    assert [kinds[tag] for tag in ("header", "nav", "main", "footer", "h1")] == [1] * 5
    assert all(th.get("scope") in ("col", "row") for th in whole.all("th"))
    assert kinds["table"] == kinds["caption"] == kinds["thead"] > 0
    assert kinds["figure"] == kinds["figcaption"] == 3
    boxes = [d for d in whole.all("div") if d.get("class") == "scroll"]
    assert len(boxes) == kinds["table"] + kinds["figure"]
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in boxes)
    ids = [a["id"] for _, a in whole.elements if "id" in a]
    assert len(set(ids)) == len(ids)
    targets = {a["href"][1:] for a in whole.all("a")}
    targets |= {s["aria-labelledby"] for s in whole.all("section")}
    assert targets <= set(ids)


def test_text_is_escaped(figures: Path) -> None:
    """Catches markup from a parameter, a caption or a reason that the browser would run."""
    given: list[str] = []

    def new() -> str:
        given.append(f"<script>alert('{len(given)}')</script> & \"<b>")
        return given[-1]

    rows = [[Label(new(), new()), Number(None, reason=new())], [new(), new()]]
    table = Table(new(), [new(), new()], rows, new())
    figure = FigureFile(figures / "samples.png", new(), new())
    shown = page(
        title=new(), summary=new(),
        headline=[Card(new(), Number(None, reason=new()), new())],
        sections=[Section(new(), new(), [table], [figure], [new()])],
        parameters={new(): new(), f"{new()}.name": new()},
        provenance=Provenance(new(), True, {new(): new()}, [new()], [new()]),
    )  # fmt: skip
    assert not {"script", "b"} & {tag for tag, _ in shown.elements}
    everything = shown.text() + shown.all("img")[0]["alt"]
    assert [text for text in given if text not in everything] == []


def test_template_is_packaged(tmp_path: Path) -> None:
    """Catches a wheel in which the page has no template."""
    code = f"import uv_build; uv_build.build_wheel({str(tmp_path)!r})"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # uv-build
    environment, command = os.environ | {"PATH": path}, [sys.executable, "-c", code]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert "scorevae/evaluation/report/page.html.j2" in zipfile.ZipFile(wheel).namelist()


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.12345678, 4, "0.1235"), (0.12345678, 2, "0.12"), (-2.0, 1, "-2.0"), (40, 4, "40"),
        (0.0, 4, "0.0000"), (0.00004, 4, "4.0e-05"), (0.00006, 4, "0.0001"), (None, 4, "–"),
        (math.inf, 2, "–"), (math.nan, 4, "–"),
    ],
)  # fmt: skip
def test_number_as_text(value: float | None, digits: int, text: str) -> None:
    """Catches wrong decimals, an integer with some, small numbers as zero, a printed nan."""
    assert Number(value, digits).text == text


def test_null_has_its_reason() -> None:
    """Catches a dash without reason, one reason listed twice, and marks that point elsewhere."""
    small = Number(None, reason="too small")
    rows = [
        ["x", small, Number(1.5)],
        ["y", Number(None, reason="no labels"), small],
        ["z", Number(math.inf), Number(None)],
    ]
    shown = table_page(rows)
    assert shown.rows("T") == {"x": ["–1", "1.5000"], "y": ["–2", "–1"], "z": ["–3", "–4"]}
    reasons = [text for path, text in shown.texts if path.endswith("ol li")]
    assert reasons == ["too small", "no labels", "not finite", "no reason was given"]
    marks = [a["href"] for a in shown.all("a") if a["href"].startswith("#s1t1")]
    assert marks == [f"#s1t1r{i}" for i in (1, 2, 1, 3, 4)]
    assert [li["id"] for li in shown.all("li") if "id" in li] == [f"s1t1r{i}" for i in range(1, 5)]


@pytest.mark.parametrize("reason", ["why", "a long story " * 9 + "ends"])
def test_card_without_number_has_its_reason(reason: str) -> None:
    """Catches a headline dash that says nothing, and a reason where there is a number."""
    cards = [Card("A", Number(None, reason=reason), "VAE 2"), Card("B", Number(1, reason=reason))]
    said = "".join(text for path, text in page(headline=cards).texts if "dd" in path.split())
    assert said.split("dvc")[0].removeprefix("–").replace("Why", "").startswith(f"{reason}VAE 21")


def test_reasons_by_name() -> None:
    """Catches a general reason that hides the particular one, and none where none is meant."""
    reasons = {"vae.a": "both", "a": "metric", "vae": "system"}
    numbers = {"scorevae": {"a": None, "b": None}, "vae": {"a": None}, "prior": {"a": None}}
    table = systems_table("T", numbers, {}, {}, reasons)
    found = [[cell.reason for cell in row[1:]] for row in table.rows]
    assert found == [["metric", "both", "metric"], ["", "system", "not applicable"]]


def test_a_metric_says_what_its_absence_means() -> None:
    """Catches a dash of which nobody knows whether something failed."""
    meant = Metric("A", absent="not applicable: a constant")
    numbers = {"scorevae": {"a": None}, "vae": {"a": None}}
    table = systems_table("T", numbers, {"a": meant}, {}, {"vae": "system"})
    assert [cell.reason for cell in table.rows[0][1:]] == [meant.absent, "system"]


@pytest.mark.parametrize(
    ("metric", "first", "second", "best"),
    [
        ("l2", 2.0, 1.0, 1), ("psnr", 2.0, 1.0, 0), ("sharpness", 1.3, 0.8, 1),
        ("l2", 1.0, 1.0, None), ("l2", 1.0, None, None), ("psnr", math.inf, 1.0, None),
        ("rate_nats", 2.0, 1.0, None), ("unheard_of", 2.0, 1.0, None),
    ],
)  # fmt: skip
def test_the_better_one_stands_out(
    metric: str, first: float, second: float | None, best: int | None
) -> None:
    """Catches a direction exchanged, and emphasis where nothing was compared."""
    numbers = {"scorevae": {metric: first}, "vae": {metric: second}}
    (row,) = systems_table("T", numbers, comparison.METRICS, {}).rows
    assert [cell.best for cell in row[1:]] == [best == 0, best == 1]
    assert len(table_page([row]).all("strong")) == (best is not None)


PAPER = {  # METHOD.md, section 5
    "cifar10": ["2.634", "3.410", "0.125", "0.269", "0.77"],
    "cifar10_resnet": ["2.634", "3.410", "0.125", "0.269", "0.77"],
    "celeba64": ["7.322", "6.97", "0.158", "0.217", "1.05"],
    "cifar10_small": ["0.77"],
}


@pytest.mark.parametrize("preset", [*PAPER, "digits", "mnist", "faces_small"])
def test_the_papers_numbers_where_they_apply(preset: str) -> None:
    """Catches numbers of another data set, in another order, or where nothing is comparable."""
    numbers = {"scorevae": {"l2": 3.0, "paper_lpips": 0.1}, "vae": {"l2": 4.0, "paper_lpips": 0.2}}
    data = comparison.PUBLISHED.get(preset)
    assert (data is not None) == (preset in PAPER)
    if data is not None:
        beside = comparison.paper_table(tiny_config(preset=preset), numbers, data, {})
        ours = ["3.0000", "4.0000", "0.1000", "0.2000", "0.75"][-len(PAPER[preset]) :]
        shown = [(row[1].text, row[-1]) for row in beside.rows]
        assert shown == list(zip(ours, PAPER[preset], strict=True))
    comparable = preset in ("cifar10", "cifar10_resnet", "celeba64")
    notes = comparison.notes(preset)
    assert (comparison.NOT_COMPARABLE in notes) == (not comparable)
    assert any("stretched" in note for note in notes) == (preset == "celeba64")


def test_ratio_needs_both() -> None:
    """Catches a division by what is not there."""
    one = {"l2": 1.0}
    for numbers in ({"scorevae": one}, {"scorevae": {"l2": None}, "vae": one}, {}):
        assert comparison.ratio_card(numbers).number.why == "needs both L2"
    assert comparison.ratio_card({"scorevae": one, "vae": {"l2": 8.0}}).number.value == 0.125


def test_cards_are_the_headline_metrics() -> None:
    """Catches a card of another system, one without the others beside it, and a lost reason."""
    metrics = {"a": Metric("A", better="lower", headline=1), "b": Metric("B")}
    metrics["c"] = Metric("C", headline=2)
    numbers = {
        "vae": {"a": 2.0},
        "scorevae": {"a": 1.0, "b": 3.0, "c": None},
        "pixels": {"a": 4.0},
    }
    found = Found(numbers, reasons={"c": "why"}, cards=[Card("Own", Number(1))])
    cards = cards_of(part("p", metrics=metrics), found)
    expected = [("Own", "1", ""), ("A\u00a0↓", "1.0", "VAE 2.0, Pixels 4.0"), ("C", "–", "")]
    assert [(card.label, card.number.text, card.detail) for card in cards] == expected
    assert cards[-1].number.why == "why"


CURVES = {
    "prior": "",
    "vae": "vae,50,2.5,10.0,\nvae,100,1.5,20.0,\nvae,100,,20.5,1.75,1.25\n",
    "encoder": "warm_start,10,9.5,4.0,\nobjective,300,3.25,60.0,\nobjective,300,,61.5,3.5\n",
}


def test_training_table(tmp_path: Path) -> None:
    """Catches seconds of another phase, and a sum that forgets one."""
    path, phases = tmp_path / "curve.csv", []
    for rows in CURVES.values():
        path.write_text(f"phase,step,loss,seconds,test_loss,falling\n{rows}")
        phases += read_curve(path)
    shown = page(sections=[Section("S", tables=[training.table(phases)])])
    assert shown.rows("Trainings") == {
        "VAE": ["100", "20.5", "205.0", "1.5000", "1.7500", "1.2"],
        "Encoder, warm start": ["10", "4.0", "400.0", "9.5000", "–1", "–2"],
        "Encoder, objective": ["300", "61.5", "205.0", "3.2500", "3.5000", "–2"],
    }
    assert "1 min 26 s of training in all" in shown.text("p")


@pytest.mark.parametrize(("steps", "last"), [(300, "objective"), (0, "warm_start")])
def test_the_encoders_last_training_decides(steps: int, last: str) -> None:
    """Catches an encoder of the warm start alone that passes for finished, unseen."""
    config = tiny_config(**{"presets.digits.encoder.training.steps": steps})
    found = {name: comparison.decisive(system, config) for name, system in SYSTEMS.items()}
    assert found["scorevae"] == ["prior", last]
    assert found["scorevae_plus"] == ["prior", last, "corrector"]
    assert found["vae"] == ["vae"]


@pytest.mark.parametrize(
    "content",
    [None, "a,b\n1,2\n", "phase,step,loss,seconds\nvae,x,1,2\n", "phase,step,seconds\nvae,1\n"],
)
def test_missing_or_broken_curve_is_named(tmp_path: Path, content: str | None) -> None:
    """Catches a finished evaluation that is lost to a curve file, by a traceback."""
    if content is not None:
        (tmp_path / "vae.csv").write_text(content)
    with pytest.raises(Unavailable, match=r"vae\.csv: not a training curve"):
        read_curve(tmp_path / "vae.csv")


def test_duration() -> None:
    """Catches "60 s", and minutes above 59."""
    said = [duration(seconds) for seconds in (0.4, 59.6, 315, 3599.7, 7500)]
    assert said == ["0 s", "1 min 0 s", "5 min 15 s", "1 h 0 min", "2 h 5 min"]


def test_section_of_a_part(figures: Path) -> None:
    """Catches a section that drops reasons, tables, figures, notes, or shows what has no form."""
    shown_as = Columns(("sampler", "l2"), "Trials", lambda row: {"setting": row["sampler"], **row})
    metrics = {"some_measure": Metric("Some measure", digits=1)}
    mine = part(
        "mine", metrics=metrics, tables={"trials": shown_as, "hidden": Columns(("t",))},
        figures={"of_mine": Caption("Of mine.", "Mine"), "not_drawn": Caption("", "")},
    )  # fmt: skip
    found = Found(
        {"scorevae": {"some_measure": 1.5}, "vae": {"some_measure": None}},
        {"trials": [{"sampler": "ddim", "l2": 0.5}], "hidden": [{"t": 0.0}]},
        {"of_mine": DRAWN}, ["Note"], {"vae": "none"},
    )  # fmt: skip
    shown = page(sections=[section(mine, found, "", metrics, figures)])
    assert shown.tables == {
        "Mine in numbers": [["Metric", "ScoreVAE", "VAE"], ["Some measure", "1.5", "–1"]],
        "Trials": [["Setting", "Sampler", "L2"], ["ddim", "ddim", "0.5000"]],
    }
    assert (shown.text("ol"), shown.text("figcaption")) == ("none", "Of mine.")
    assert [text for path, text in shown.texts if path.endswith("section ul li")] == ["Note"]


def test_part_that_found_nothing_says_why(figures: Path) -> None:
    """Catches an empty section, a null without its reason, and a part that was switched off."""
    asked = part("asked", metrics={"fid": Metric("FID")}, rows={"scorevae": None, "prior": None})
    parts, why, usual = [(asked, None), (part("off"), None)], {"asked": "too small"}, tiny_config()
    report = assemble(usual, parts, why, {}, figures=figures, provenance=ORIGIN, images=1)
    shown = page(sections=report.sections)
    assert shown.rows("Asked in numbers") == {"FID": ["–1", "–1"]}
    assert shown.text("ol") == "too small"
    assert [s.title for s in report.sections] == ["Asked", "Costs"]
    assert report.sections[-1].notes == ["Switched off in params.yaml: Off."]


@pytest.mark.parametrize("content", [None, b"", b"no picture", b"GIF89a"])
def test_unreadable_figure_is_named(tmp_path: Path, content: bytes | None) -> None:
    """Catches a traceback of the picture library, and a page with a hole."""
    path = tmp_path / "broken.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.png: no picture .*; run the stage"):
        page(sections=[Section("S", figures=[FigureFile(path, "c", "a")])])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("not under /opt/cache/torch/x.pth, sorry", "not under …/x.pth, sorry"),
        ("'/a/b/c' and (/d/e)", "'…/c' and (…/e)"),
        ("key=/home/someone/data/", "key=…/"),
        ("/a/b", "…/b"),
        *[(kept, kept) for kept in ("data/digits/x.npy", "g²/σ² in nats/dim, 1 / 2 or 3/4")],
    ],
)
def test_paths_of_the_machine_are_cut(text: str, shown: str) -> None:
    """Catches a home folder in a published page, and a fraction taken for a path."""
    assert without_paths(text) == shown
    assert page(summary=text, sections=[Section("S", notes=[text])]).text().count(shown) == 2


def test_parameters_are_those_that_count() -> None:
    """Catches other presets on the page, Python's spelling, and a path of this machine."""
    names = {"presets.digits.data.root": "/home/someone", "presets.digits.lpips.trunk": "x.pth"}
    shown = parameters(tiny_config(**names))
    sections = {tuple(name.split(".")[:2]) for name in shown if name.startswith("pr")}
    assert sections == {("preset",), ("presets", "digits"), ("protocols", "default")}
    assert [shown[name] for name in names] == ["PATH", "PATH"]
    assert shown["presets.digits.test_images"] == "null"
    assert shown["presets.digits.flip"] == "false"
    assert parameters(tiny_config())["presets.digits.data.root"] == "null"


def git(folder: Path, *arguments: str) -> str:
    """Run git and return what it prints."""
    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, *arguments]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A commit of params.yaml and of one source file."""
    root = tmp_path / "repository"
    (root / "src").mkdir(parents=True)
    (root / "src/code.py").write_text("x = 1\n")
    write_params(root / "params.yaml", tiny_params())
    for command in ("init -q", "add .", "commit -q -m first"):
        git(root, *command.split())
    return root


def origin_of(folder: Path, tree: dict | None = None) -> Provenance:
    """What the page says of a run with these parameters in a folder, or with those there."""
    path = folder / "params.yaml"
    if tree is not None:
        write_params(path, tree)
    return provenance(load_config(path), path)


CHANGES = {
    "preset": "cifar10", "beta": 1e-5, "seed": 3, "objective.weighting": "simple",
    "reconstruct.protocol": "ode", "protocols.ode.clip": False,
    "presets.cifar10.data.root": "/home/someone/cifar",
    "presets.cifar10.prior.network.channels": [8, 16, 16],
    "presets.cifar10.test_images": 12,
    "presets.cifar10.prior.training.precision": "float32",  # as committed: need not be named
    "presets.digits.latent": 3,  # of another preset: changes nothing
}  # fmt: skip


def test_commands_give_the_same_run(repository: Path) -> None:
    """Catches a setting that the command forgets, cannot be read back, or need not name."""
    origin = origin_of(repository, tiny_params(**CHANGES))
    assert origin.commit == git(repository, "rev-parse", "HEAD")
    assert origin.dirty is False  # the parameters are in the command
    assert origin.notes == ["PATH stands for files of your own."]
    assert origin.commands[0] == f"git checkout {origin.commit}"
    words = shlex.split(origin.commands[-1])
    assert words[:3] == ["dvc", "exp", "run"]
    settings = dict(word.split("=", 1) for word in words[4::2])
    committed = {"presets.digits.latent", "presets.cifar10.prior.training.precision"}
    assert settings.keys() == CHANGES.keys() - committed
    assert settings["presets.cifar10.data.root"] == "PATH"
    tree = tiny_params()
    for name, value in settings.items():
        put(tree, name, 1e-5 if name == "beta" else yaml.safe_load(value))
    expected = tiny_config(**(CHANGES | {"presets.cifar10.data.root": "PATH"}))
    found = parse(Config, tree, "commands")
    assert (found.selected, found.sampling) == (expected.selected, expected.sampling)
    assert found.model_dump(exclude={"presets"}) == expected.model_dump(exclude={"presets"})


def test_local_changes_of_the_code(repository: Path) -> None:
    """Catches a commit that stands for code which it does not hold, new files included."""
    (repository / "results.txt").write_text("written by the run itself")
    assert origin_of(repository).dirty is False
    (repository / "src/new.py").touch()
    origin = origin_of(repository)
    assert origin.dirty is True
    assert origin.notes == ["The code had local changes: the commit alone may give other numbers."]
    assert f"{origin.commit} with local changes" in page(provenance=origin).text("dd")


def test_preset_that_the_commit_lacks(repository: Path) -> None:
    """Catches a command that DVC refuses because the key is new."""
    tree = tiny_params(preset="mine")
    tree["presets"]["mine"] = tree["presets"]["digits"]
    origin = origin_of(repository, tree)
    lacking = "The commit lacks some of the parameters below: add them to params.yaml."
    assert origin.notes == [lacking]
    assert origin.commands[-1] == "dvc exp run -S preset=mine -S beta=0.01 -S seed=0"


def test_outside_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a page that needs a repository, or takes that of a folder above."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    origin = origin_of(tmp_path, tiny_params())
    assert (origin.commit, origin.dirty) == ("unknown", False)
    assert origin.notes == ["The run was not in a Git repository: no commit is known."]
    assert not any("checkout" in line for line in origin.commands)


def test_hardware_names_the_machine_and_not_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a GPU left out, memory in the wrong unit, and the name of the host."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=2**33))
    found = hardware()
    assert list(found)[:4] == ["Processor", "Cores", "Memory", "GPU"]
    assert (found["Memory"], found["GPU"]) == ("8 GiB", "GPU 0, GPU 1")
    assert found["Python"] == ".".join(map(str, sys.version_info[:3]))
    assert all(found.values())


def test_the_head_says_what_is_needed_to_read_the_headline() -> None:
    """Catches a caution, the pictures or the run's name that come after the numbers."""
    picture = FigureFile(ROOT / "docs/cifar10_pair/comparison.png", "Reconstructions.", "Rows.")
    origin = ORIGIN._replace(date="2026-11-27 08:00 UTC", name="brave-owl", dirty=True)
    ratio = Card("L2 ratio", Number(0.32, 2))
    section = Section("Comparison", notes=["a note"])
    page = render(
        Report("T", "S", [ratio], [section], {}, origin, picture, ["The rates are unequal."])
    )
    order = [
        page.index(text)
        for text in (
            "2026-11-27 08:00 UTC · experiment brave-owl · commit <code>abc123</code> with local",
            "data:image/png", "L2 ratio", "The rates are unequal.", "a note",
        )
    ]  # fmt: skip
    assert order == sorted(order)
    assert page.count("data:image/png") == 1


@pytest.mark.parametrize(
    ("values", "bold"),
    [
        ((0.25, 0.5, 0.75), (True, False, False)),
        ((-0.015, 0.1, 0.2), (True, False, False)),
        ((-0.015, 0.0, 0.2), (True, True, False)),
        ((-0.015, -0.01, -0.02), (False, False, False)),
        ((0.5, 0.5, 0.5), (False, False, False)),
    ],
)
def test_no_distance_is_better_than_none(values: tuple, bold: tuple) -> None:
    """Catches the noise of an estimator, −0.015, that is bold beside −0.01."""
    numbers = {name: {"kd": value} for name, value in zip("abc", values, strict=True)}
    table = systems_table("T", numbers, {"kd": Metric("Distance", better="lower")}, {})
    assert tuple(cell.best for cell in table.rows[0][1:]) == bold


def test_unequal_rates_are_named() -> None:
    """Catches a ratio of distances without the word that one code tells far more."""
    numbers = {"scorevae": {"rate_nats": 225.3}, "vae": {"rate_nats": 48.14}}
    (caution,) = unequal_rates(numbers)
    assert "tells 225.3 nats of an image, VAE's 48.1" in caution
    numbers["vae"]["rate_nats"] = 210.0
    assert unequal_rates(numbers) == []
    assert unequal_rates({"scorevae": {"rate_nats": None}, "vae": {}}) == []

"""The promises of README.md and docs/ that a machine can keep. Only committed files are read."""

import re
import runpy
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import encoded, noise
from tiny import save_tiny_models

from scorevae.config import read_tree
from scorevae.runtime.files import replacing

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src/scorevae"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}


def named(pattern: str) -> Iterator[tuple[Path, str]]:
    """Every page with what it names in a certain way."""
    for page, text in TEXTS.items():
        yield from ((page, name) for name in re.findall(pattern, text, re.MULTILINE))


def test_readme_is_one_page() -> None:
    """Catches a README that has grown back into a manual."""
    assert len(README.splitlines()) <= 150


def test_python_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a snippet that the interface has left behind."""
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    save_tiny_models(tmp_path / "models/digits")
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    with replacing(tmp_path / "data/digits") as folder:
        folder.mkdir()
        np.save(folder / "test_images.npy", images)
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(compile(snippet, "README.md", "exec"), scope)
    assert scope["reconstructed"].shape == (8, 1, 8, 8)


def test_python_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a page of snippets that the interface has left behind."""
    save_tiny_models(tmp_path / "models/digits")
    for folder in ("pictures", "results/digits", "data/digits"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "pictures/a.png").write_bytes(encoded(noise(20, 30, 3)))
    (tmp_path / "results/digits/metrics.json").write_text("{}")
    (tmp_path / "data/digits/meta.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    for snippet in re.findall(r"```python\n(.*?)```", TEXTS[ROOT / "docs/python.md"], re.DOTALL):
        exec(compile(snippet, "python.md", "exec"), scope)
    assert scope["nats"].shape == (1,)
    assert scope["model"].guidance == 1.5


def anchors(text: str) -> set[str]:
    """Where links into a page may lead, as GitHub names its headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    """Catches a link or figure to a file or heading that is not there."""
    targets = list(named(r"\]\((?!http)([^)]+)\)"))
    assert len(targets) > 50
    for page, target in targets:
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(TEXTS[path]), f"{page.name}: {target}"


def test_named_files_exist() -> None:
    """Catches a script, module, test or page that text or command names and nobody has."""
    folders = ("", "src/scorevae", "tests", "docs", "benchmarks", ".github/workflows")
    where = [ROOT / folder for folder in folders]
    files = list(named(r"(?<![\w/.*-])((?:\w[\w.-]*/|\.\w+/)*[\w-]+\.(?:py|md|sh|yaml|yml))\b"))
    assert len(files) > 100
    for page, name in files:
        assert any((base / name).exists() for base in where), f"{page.name}: {name}"
    modules = list(named(r"\bscorevae((?:\.\w+)+)"))
    assert modules
    for page, name in modules:
        path = PACKAGE / name[1:].replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").exists(), f"{page.name}: {name}"


def test_named_commands_and_settings_exist() -> None:
    """Catches a target of make, or a key after -S, that a reader would type in vain."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    makes = list(named(r"(?:^|`)make ([\w-]+)"))
    assert len(makes) > 5
    for page, target in makes:
        assert target in targets, f"{page.name}: make {target}"
    tree = read_tree(ROOT / "params.yaml")
    keys = list(named(r"-S ([\w.]+)="))
    assert len(keys) > 5
    for page, key in keys:
        node: Any = tree  # its keys only: the values are those of the user's last run
        for name in key.split("."):
            assert name in node, f"{page.name}: -S {key}"
            node = node[name]


def test_every_package_and_module_is_on_a_map() -> None:
    """Catches a package that the README's map lacks, or a module that development.md's lacks."""
    files = {p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py")}
    modules = {name for name in files if not name.endswith("__init__.py")}
    packages = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    assert len(packages) == 7
    ours = set(re.findall(r"`([\w/]+(?:\.py|/))`", README.split("## How it is built")[1]))
    assert packages | {name for name in modules if "/" not in name} <= ours
    development = (ROOT / "docs/development.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w/]+\.py)` \|", development, re.MULTILINE)
    assert sorted(rows) == sorted(modules)


RECORD = runpy.run_path(str(ROOT / "benchmarks/record.py"))


def test_tables_are_the_recorded_runs() -> None:
    """Catches numbers in the README or in docs/results.md that no recorded run gave."""
    for name, marked in RECORD["tables"](RECORD["recorded"]()).items():
        text = (ROOT / name).read_text(encoding="utf-8")
        shown = dict(re.findall(r"<!-- table: ([\w ]+) -->\n((?:\|.*\n)+)", text))
        assert shown == {mark: f"{table}\n" for mark, table in marked.items()}, name


def test_recorded_numbers_keep_their_place() -> None:
    """Catches a table with a system's numbers under the other, or rounded to another value."""
    ours = {name: 0.123456 for name in RECORD["README"]} | {"mse": 0.00045678, "active_units": 7}
    theirs = {name: 1234.56 for name in RECORD["README"]} | {"mse": None, "active_units": 8}
    prior = {"bits_per_dim": 2.34567, "bits_per_dim_error": 0.00123}
    run = {"scorevae": ours, "vae": theirs, "prior": prior, "pixels": {"linear_probe": 0.5}}
    tables = RECORD["tables"]({"digits": run, "other": run})
    readme, results = tables["README.md"]["digits"], tables["docs/results.md"]
    assert "| `l2` | 0.1235 | 1235 | " in readme
    assert "| `mse` | 0.0004568 | null |\n| `active_units` | 7 | 8 |" in results["digits"]
    assert "`l2`" not in results["digits"]  # the README has it
    assert "| `l2` | 0.1235 | 1235 |" in results["other"]
    assert "| bound |  | 2.346 ± 0.001 |  | 2.346 ± 0.001 |" in results["likelihood"]
    assert "| linear probe on pixels | 0.5000 | 0.5000 |" in results["one system"]


def numbers(text: str) -> list[str]:
    """The decimals of three significant digits or more, but for versions, links and papers."""
    text = re.sub(r"\]\([^)]*\)|arXiv \d+\.\d+|Py\w+ (?:≥ )?[\d.]+(?: to [\d.]+)?", "", text)
    found = re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)", text)
    return [n for n in found if len(n.replace(".", "").lstrip("0")) >= 3]


def prose(text: str) -> str:
    """A page without its tables and blocks of code."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.sub(r"^\|.*$", "", text, flags=re.MULTILINE)


def test_no_number_stands_twice() -> None:
    """Catches a measured number in two places, of which one will be forgotten at the next change.

    Those of the README against all of docs/, those in prose against every page; the sampler
    study, whose 108 rows are data, is left out.
    """
    texts = {p.name: text for p, text in TEXTS.items() if p.name != "sampler_steps.md"}
    counts = {name: Counter(numbers(text)) for name, text in texts.items()}
    everywhere = sum(counts.values(), Counter())
    twice = {n for n, count in counts["README.md"].items() if everywhere[n] > count}
    told = {n for text in texts.values() for n in numbers(prose(text))}
    twice |= {n for n in told if everywhere[n] > 1}
    assert len(told) > 20
    assert not twice


def test_faults_name_tests_that_exist() -> None:
    """Catches a row whose test was renamed or removed."""
    named = 0
    for line in (ROOT / "docs/faults.md").read_text().splitlines():
        if not line.startswith("| ") or line.startswith("| fault"):
            continue
        cell = line.rstrip(" |").rpartition(" | ")[2]
        file = None
        for name, test in re.findall(r"(test_\w+\.py)?(?:::(test_\w+))?", cell):
            file = name or file
            if file and test:
                assert f"def {test}(" in (ROOT / "tests" / file).read_text(), test
                named += 1
            elif name:
                assert (ROOT / "tests" / name).exists(), name
    assert named > 20

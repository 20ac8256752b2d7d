"""report: what a browser makes of the page, on a phone and on a desk.

Needs Chromium (Debian's package `chromium`); skipped without it.
"""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from servers import refusing_all
from tiny import tiny_config

from scorevae.evaluation.part import Caption, Found, Part
from scorevae.evaluation.parts import PARTS
from scorevae.evaluation.report import page as report
from scorevae.evaluation.report.assembly import assemble

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH; Debian: apt-get install chromium"
)
WIDTHS = (360, 390, 1280)
SIZES = {"comparison": (1100, 350), "samples": (300, 280), "wide": (1500, 300)}
LONG = "averyveryverylongwordwithoutanyplacetobreakit" * 3
PATIENCE = 60.0  # seconds for one start of the browser, which takes one or two on an idle machine

# Measures the page inside frames of each width. The page itself stays as it is, its policy too.
MEASURE = """
const found = {};
for (const frame of document.querySelectorAll("iframe")) {
  const page = frame.contentDocument, view = frame.contentWindow;
  const inBox = e => e.closest(".scroll") !== null;
  const name = e => `${e.tagName} ${e.textContent.slice(0, 40)}`;
  const all = [...page.body.querySelectorAll("*")].filter(e => e.getClientRects().length);
  const root = page.scrollingElement;
  found[frame.width] = {
    inner: view.innerWidth,
    scroll: root.scrollWidth,
    outside: all.filter(e => !inBox(e) && !e.matches(".skip"))
      .filter(e => e.getBoundingClientRect().right > view.innerWidth + 0.5).map(name),
    spilled: all.filter(e => !inBox(e) && view.getComputedStyle(e).display !== "inline")
      .filter(e => e.scrollWidth > e.clientWidth + 1).map(name),
    images: [...page.images].map(i => ({
      complete: i.complete, natural: [i.naturalWidth, i.naturalHeight],
      shown: [i.getBoundingClientRect().width, i.getBoundingClientRect().height],
    })),
    background: view.getComputedStyle(page.body).backgroundColor,
    color: view.getComputedStyle(page.body).color,
    smallest: Math.min(...all.filter(e => e.childNodes.length && e.innerText)
      .map(e => parseFloat(view.getComputedStyle(e).fontSize))),
  };
}
document.body.innerHTML = "<pre id=found></pre>";
document.getElementById("found").textContent = JSON.stringify(found);
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with everything that could be too wide: words, tables, figures, commands."""
    folder = tmp_path_factory.mktemp("page")
    for name, size in SIZES.items():
        picture = Image.new("RGB", size, "white")
        ImageDraw.Draw(picture).rectangle((10, 10, 60, 60), fill="black")
        picture.save(folder / f"{name}.png")
    metrics = {"l2": 0.25, "psnr": 34.37, "sharpness": 0.9, "lpips": None, "rate_nats": 12345.678}
    columns = [f"column {i}" for i in range(14)]
    table = report.Table("Wide", columns, [["row", *map(report.Number, range(13))]], note=LONG)
    study = Part("study", "Study", LONG, pytest.fail, figures={"wide": Caption(LONG, "wide")})
    card = report.Card(LONG, report.Number(1234567.8901, 4), LONG)
    drawn, note = Figure(), f"note {LONG}"
    why = {"lpips": "images of 8 pixels are under the 32 that its trunk needs"}
    both = {"scorevae": metrics, "vae": metrics}
    found = {
        "comparison": Found(both, figures={"comparison": drawn}, reasons=why),
        "samples": Found(figures={"samples": drawn}),
        "study": Found(figures={"wide": drawn}, notes=[note], cards=[card], page=[table]),
    }
    parts = [(part, found[part.name]) for part in (*PARTS, study) if part.name in found]
    commands, seconds = [f"dvc exp run -S {LONG}"], dict.fromkeys(found, 1.5)
    origin = report.Provenance("0" * 40, True, {"GPU": LONG}, commands, ["a note"])
    given = {"figures": folder, "provenance": origin, "images": 360}
    built = assemble(tiny_config(), parts, {}, seconds, **given)
    return report.render(built).replace("<details>", "<details open>")


def browse(folder: Path, address: str, *options: str) -> str:
    """Load an address in headless Chromium; the document as it then is."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--disable-default-apps", f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=3000", *options, "--dump-dom", address,
    ]  # fmt: skip
    given = {"timeout": PATIENCE, "env": os.environ | {"HOME": str(folder)}}
    return subprocess.run(command, capture_output=True, text=True, check=True, **given).stdout


def measure(folder: Path, page: str, scheme: int) -> dict:
    """What MEASURE finds at every width, in a dark (0) or light (1) scheme."""
    frames = "".join(
        f'<iframe width="{width}" height="800" srcdoc="{html.escape(page)}"></iframe>'
        for width in WIDTHS
    )
    script = f"<script>addEventListener('load', () => {{{MEASURE}}})</script>"
    path = folder / "frames.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><body>{frames}{script}</body>")
    dom = browse(folder, path.as_uri(), f"--blink-settings=preferredColorScheme={scheme}")
    (found,) = re.findall(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    return json.loads(html.unescape(found))


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory, page: str) -> dict:
    """The measurements with a light scheme."""
    return measure(tmp_path_factory.mktemp("light"), page, 1)


@pytest.mark.parametrize("width", WIDTHS)
def test_page_fits_the_screen_and_is_shown(light: dict, width: int) -> None:
    """Catches a table, figure, command or word that makes the page scroll sideways.

    And what the page's own policy blocks, pictures distorted or shrunk, or print below 11 pixels.
    """
    found = light[str(width)]
    assert found["inner"] == width >= found["scroll"]
    assert (found["outside"], found["spilled"]) == ([], [])
    assert found["background"] == "rgb(247, 247, 245)"
    assert found["smallest"] >= 11
    assert [tuple(image["natural"]) for image in found["images"]] == list(SIZES.values())
    for image in found["images"]:
        assert image["complete"]
        (w, h), (natural_w, natural_h) = image["shown"], image["natural"]
        assert w >= min(natural_w, 0.7 * width)
        assert w / h == pytest.approx(natural_w / natural_h, rel=0.02)


def luminance(colour: str) -> float:
    """Relative luminance of an rgb() colour (WCAG 2.2)."""
    channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_dark_where_the_reader_wants_it(tmp_path: Path, page: str, light: dict) -> None:
    """Catches one scheme for all, and text that does not stand out (WCAG 2.2 AAA: 7 to 1)."""
    dark = measure(tmp_path, page, 0)
    for found, is_dark in ((light["390"], False), (dark["390"], True)):
        paper, ink = luminance(found["background"]), luminance(found["color"])
        assert (paper < ink) == is_dark
        assert (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) >= 7


def test_nothing_is_requested(tmp_path: Path, page: str) -> None:
    """Catches a request of the page, which has no policy here that would hide it.

    The second page asks for a picture, to see that the proxy notices; its policy forbids it in
    the third.
    """
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    assert len(policy.findall(page)) == 1
    picture = "http://elsewhere.test/x.png"
    foreign = page.replace("</main>", f'<img src="{picture}"></main>')
    pages = ((policy.sub("", page), []), (policy.sub("", foreign), [picture]), (foreign, []))
    path = tmp_path / "page.html"
    with refusing_all(404) as (address, asked):
        for content, expected in pages:
            asked.clear()
            path.write_text(content)
            dom = browse(tmp_path, path.as_uri(), f"--proxy-server={address}")
            assert "How to reproduce" in dom
            # Chromium's own requests come if its switches change.
            assert [url for url in asked if "google" not in url] == expected

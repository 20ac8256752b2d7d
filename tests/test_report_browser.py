"""report: what a browser makes of the page, on a phone and on a desk.

Needs Chromium (Debian's package `chromium`); skipped without it.
"""

import html
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image, ImageDraw
from tiny import tiny_config

from scorevae.evaluation.report.assembly import assemble
from scorevae.evaluation.report.page import (
    Card,
    FigureFile,
    Number,
    Provenance,
    Section,
    Table,
    render,
)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH; Debian: apt-get install chromium"
)
WIDTHS = (360, 390, 1280)
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
    (folder / "curves").mkdir()
    for name, size in {
        "comparison": (1100, 350),
        "samples": (300, 280),
        "wide": (1500, 300),
    }.items():
        picture = Image.new("RGB", size, "white")
        ImageDraw.Draw(picture).rectangle((10, 10, 60, 60), fill="black")
        picture.save(folder / f"{name}.png")
    metrics = {"l2": 0.25, "psnr": 34.37, "sharpness": 0.9, "lpips": None, "rate_nats": 12345.678}
    columns = [f"column {i}" for i in range(14)]
    table = Table("Wide", columns, [["row", *map(Number, range(13))]], note=LONG)
    section = Section(
        "Study", LONG, [table], [FigureFile(folder / "wide.png", LONG, "wide")], [f"note {LONG}"]
    )
    origin = Provenance("0" * 40, True, {"GPU": LONG}, [f"dvc exp run -S {LONG}"], ["a note"])
    built = assemble(
        tiny_config(),
        {"scorevae": metrics, "vae": metrics},
        figures=folder,
        curves=folder / "curves",
        provenance=origin,
        reasons={"lpips": "images of 8 pixels are under the 32 that its trunk needs"},
        cards=[Card(LONG, Number(1234567.8901, 4), LONG)],
        sections=[section],
    )
    return render(built).replace("<details>", "<details open>")


def browse(folder: Path, address: str, *options: str) -> str:
    """Load an address in headless Chromium; the document as it then is."""
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-default-apps",
        f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=3000",
        *options,
        "--dump-dom",
        address,
    ]
    environment = os.environ | {"HOME": str(folder)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=PATIENCE, env=environment
    )
    return done.stdout


def measure(folder: Path, page: str, *options: str) -> dict:
    """What MEASURE finds at every width."""
    frames = "".join(
        f'<iframe width="{width}" height="800" srcdoc="{html.escape(page)}"></iframe>'
        for width in WIDTHS
    )
    script = f"<script>addEventListener('load', () => {{{MEASURE}}})</script>"
    path = folder / "frames.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><body>{frames}{script}</body>")
    dom = browse(folder, path.as_uri(), *options)
    (found,) = re.findall(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    return json.loads(html.unescape(found))


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory, page: str) -> dict:
    """The measurements with a light scheme."""
    return measure(
        tmp_path_factory.mktemp("light"), page, "--blink-settings=preferredColorScheme=1"
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(light: dict, width: int) -> None:
    """Catches a table, figure, command or word that makes the page scroll sideways."""
    found = light[str(width)]
    assert found["inner"] == width
    assert found["scroll"] <= width
    assert found["outside"] == []
    assert found["spilled"] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_images_have_their_size(light: dict, width: int) -> None:
    """Catches a picture that the policy blocks, is broken, distorted or shrunk to nothing."""
    images = light[str(width)]["images"]
    assert [i["natural"] for i in images] == [[1100, 350], [300, 280], [1500, 300]]
    for image in images:
        assert image["complete"]
        (w, h), (natural_w, natural_h) = image["shown"], image["natural"]
        assert w >= min(natural_w, 0.7 * width)
        assert w / h == pytest.approx(natural_w / natural_h, rel=0.02)


@pytest.mark.parametrize("width", WIDTHS)
def test_style_is_applied_and_legible(light: dict, width: int) -> None:
    """Catches a style sheet that its own policy refuses, and print smaller than 11 pixels."""
    found = light[str(width)]
    assert found["background"] == "rgb(247, 247, 245)"
    assert found["smallest"] >= 11


def luminance(colour: str) -> float:
    """Relative luminance of an rgb() colour (WCAG 2.2)."""
    channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_dark_where_the_reader_wants_it(tmp_path: Path, page: str, light: dict) -> None:
    """Catches one scheme for all, and text that does not stand out (WCAG 2.2 AAA: 7 to 1)."""
    dark = measure(tmp_path, page, "--blink-settings=preferredColorScheme=0")
    for found, is_dark in ((light["390"], False), (dark["390"], True)):
        paper, ink = luminance(found["background"]), luminance(found["color"])
        assert (paper < ink) == is_dark
        assert (max(paper, ink) + 0.05) / (min(paper, ink) + 0.05) >= 7


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[str]]]:
    """A proxy that answers nothing and notes the addresses it is asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_CONNECT = do_POST = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_nothing_is_requested(tmp_path: Path, page: str, proxy: tuple[str, list[str]]) -> None:
    """Catches a request of the page, which has no policy here that would hide it.

    The second page asks for a picture, to see that the proxy notices; its policy forbids it in
    the third.
    """
    address, asked = proxy
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    assert len(policy.findall(page)) == 1
    foreign = page.replace("</main>", '<img src="http://elsewhere.test/x.png"></main>')
    for content, expected in (
        (policy.sub("", page), []),
        (policy.sub("", foreign), ["http://elsewhere.test/x.png"]),
        (foreign, []),
    ):
        asked.clear()
        path = tmp_path / "page.html"
        path.write_text(content)
        dom = browse(tmp_path, path.as_uri(), f"--proxy-server={address}")
        assert "How to reproduce" in dom
        ours = [a for a in asked if "google" not in a]  # Chromium's own, if its switches change
        assert ours == expected

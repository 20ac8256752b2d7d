"""progress: a few lines where there is no terminal, a bar where there is one."""

import io
import sys
from collections.abc import Iterable

import pytest

from scorevae.runtime.progress import progress


@pytest.mark.parametrize(
    ("first", "total", "reported", "printed"),
    [
        # tenths are rounded down: two steps; not a line for each, and the last one
        (0, 25, range(1, 26), [f"{done}/25" for done in (*range(2, 25, 2), 25)]),
        # what is done counts, not the calls: batches are reported at their end
        (0, 360, (250, 360), ["250/360", "360/360"]),
        # no tenth a second time
        (95, 100, range(96, 101), ["resuming at 95 of 100", "100/100"]),
        # no division by zero with `steps: 0`
        (0, 0, (), []),
        # a total that is not known
        (0, None, range(1000, 25_001, 1000), ["10000", "20000"]),
        (12_000, None, (19_999, 20_001), ["resuming at 12000", "20001"]),
    ],
)
def test_lines_without_a_terminal(
    capsys: pytest.CaptureFixture,
    first: int,
    total: int | None,
    reported: Iterable[int],
    printed: list[str],
) -> None:
    """Catches a line for each step, one that is missing, and None printed as the total."""
    with progress("train", first, total) as report:
        for done in reported:
            report(done)
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"train: {line}" for line in printed]
    assert err == ""  # which stages keep for warnings


def test_numbers_follow_the_count(capsys: pytest.CaptureFixture) -> None:
    """Catches losses that are left out, or drown the line in digits."""
    with progress("train", 0, 1) as report:
        report(1, {"loss": 0.123456, "rate": 2.0})
    assert capsys.readouterr().out == "train: 1/1  loss 0.1235  rate 2\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("total", "shown"), [(40, "30/40"), (None, "30it")], ids=["known", "unknown"]
)
def test_terminal_has_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, total: int | None, shown: str
) -> None:
    """Catches lines beside the bar, and what is done added up once more with every report."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("images", 10, total) as report:
        for done in (20, 30):
            report(done, {"loss": 0.5})
    last = terminal.getvalue().replace("\n", "").split("\r")[-1]
    assert last.startswith("images: ")
    assert shown in last
    assert "loss=0.5" in last
    assert capsys.readouterr().out == ""

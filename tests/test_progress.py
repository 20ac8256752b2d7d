"""progress: a few lines where there is no terminal, a bar where there is one."""

import io
import sys

import pytest

from scorevae.runtime.progress import progress


def lines(capsys: pytest.CaptureFixture) -> list[str]:
    """What was printed; nothing may go to stderr, which stages keep for warnings."""
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def test_about_ten_lines(capsys: pytest.CaptureFixture) -> None:
    """Catches a line for each step, counts that are not those done, and no last line."""
    with progress("train", 0, 25) as report:
        for done in range(1, 26):
            report(done, {"loss": 0.123456, "rate": 2.0})
    expected = [*range(2, 25, 2), 25]  # tenths are rounded down: two steps
    assert lines(capsys) == [f"train: {done}/25  loss 0.1235  rate 2" for done in expected]


def test_long_jumps_print_once(capsys: pytest.CaptureFixture) -> None:
    """Catches a count of calls in place of what is done: batches are reported at their end."""
    with progress("reconstruct", 0, 360) as report:
        for done in (250, 360):
            report(done)
    assert lines(capsys) == ["reconstruct: 250/360", "reconstruct: 360/360"]


def test_resumed_count_goes_on(capsys: pytest.CaptureFixture) -> None:
    """Catches tenths that are printed a second time."""
    with progress("train", 95, 100) as report:
        for done in range(96, 101):
            report(done)
    assert lines(capsys) == ["train: resuming at 95 of 100", "train: 100/100"]


def test_nothing_to_do(capsys: pytest.CaptureFixture) -> None:
    """Catches a division by zero with `steps: 0`."""
    with progress("train", 0, 0):
        pass
    assert lines(capsys) == []


def test_unknown_total(capsys: pytest.CaptureFixture) -> None:
    """Catches a crash, a line for each image, or None printed as the total."""
    with progress("images", 0, None) as report:
        for done in range(1000, 25_001, 1000):
            report(done)
    assert lines(capsys) == ["images: 10000", "images: 20000"]


def test_resumed_count_of_an_unknown_total(capsys: pytest.CaptureFixture) -> None:
    """Catches None printed as the total."""
    with progress("images", 12_000, None) as report:
        report(19_999)
        report(20_001)
    assert lines(capsys) == ["images: resuming at 12000", "images: 20001"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("total", "shown"), [(40, "30/40"), (None, "30it")], ids=["known", "unknown"]
)
def test_terminal_has_a_bar(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    total: int | None,
    shown: str,
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

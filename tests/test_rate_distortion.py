"""rate_distortion: which experiments are compared, and what is drawn of them."""

import csv
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from click.testing import CliRunner
from tiny import tiny_params, write_params

from scorevae.commands.rate_distortion import figure, main, points, write
from scorevae.errors import UserError


def row(beta: float, rev: str = "abc", name: str | None = None, **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """A row as dvc.api.exp_show gives it."""
    values = {
        "Experiment": name, "rev": rev, "typ": "branch_base", "beta": beta,
        "preset": "digits", "seed": 0, "sde.kind": "vp", "presets.digits.latent": 40,
        "presets.mnist.latent": 64, "evaluate.figure_images": 10,
    }  # fmt: skip
    for index, system in enumerate(("scorevae", "vae")):
        values |= {
            f"{system}.rate_nats": 100 / beta + index, f"{system}.l2": beta + index,
            f"{system}.psnr": 30 - beta, f"{system}.sharpness": 1 - beta,
        }  # fmt: skip
    return values | changes


WORKSPACE = row(0.01, "workspace")


def test_points_are_those_of_the_rows() -> None:
    """Catches systems or numbers exchanged, and an order that draws a zigzag."""
    found = points([WORKSPACE, row(0.1, name="dear"), row(0.001, name="cheap")])
    assert [(p.system, p.beta) for p in found] == [
        ("scorevae", 0.001), ("scorevae", 0.01), ("scorevae", 0.1),
        ("vae", 0.001), ("vae", 0.01), ("vae", 0.1),
    ]  # fmt: skip
    assert found[2]._asdict() == {
        "experiment": "dear", "system": "scorevae", "beta": 0.1, "rate_nats": 1000.0, "l2": 0.1,
        "psnr": 29.9, "sharpness": 0.9,
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"sde.kind": "ve"},
        {"presets.digits.latent": 8},
        {"preset": "mnist"},
        {"scorevae.l2": None, "vae.l2": "!"},
        {"State": "Running"},
        {"State": "Queued"},
        {"State": "Failed"},
    ],
)
def test_other_experiments_are_left_out(changes: dict[str, Any]) -> None:
    """Catches a curve through runs that differ in more than β, or that never ended."""
    usual = [WORKSPACE, row(0.1)]
    assert points([*usual, row(0.5, **changes)]) == points(usual)


@pytest.mark.parametrize("changes", [{"presets.mnist.latent": 8}, {"evaluate.figure_images": 1}])
def test_what_changes_no_number_is_no_difference(changes: dict[str, Any]) -> None:
    """Catches experiments lost because another preset was edited since."""
    assert len(points([WORKSPACE, row(0.1, **changes)])) == 4


def test_one_beta_is_one_point() -> None:
    """Catches the commit's own row drawn beside the workspace's."""
    found = points([WORKSPACE, row(0.01, "main"), row(0.1)])
    assert [p.experiment for p in found] == ["workspace", "abc"] * 2


@pytest.mark.parametrize("rows", [[WORKSPACE], [WORKSPACE, row(0.1, seed=3)]])
def test_a_single_beta_says_what_to_run(rows: list[dict[str, Any]]) -> None:
    """Catches an empty picture in place of the command that is missing."""
    with pytest.raises(UserError, match="one β only; run others.* dvc exp run --queue -S beta="):
        points(rows)


def test_figure_and_table(tmp_path: Path) -> None:
    """Catches axes or systems exchanged, and rows lost."""
    found = points([WORKSPACE, row(0.1)])
    drawn = figure(found)
    for axis, name in zip(drawn.axes, ("l2", "psnr", "sharpness"), strict=True):
        curves = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
        assert curves["VAE"] == [[p.rate_nats, getattr(p, name)] for p in found[2:]]
    plt.close(drawn)
    write(tmp_path, found)
    with (tmp_path / "rate_distortion.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{k: str(v) for k, v in p._asdict().items()} for p in found]
    assert (tmp_path / "rate_distortion.png").stat().st_size > 0


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an output elsewhere, and a table that leaves a system out."""
    monkeypatch.setattr("dvc.api.exp_show", lambda num: [WORKSPACE, row(0.1)])
    params = write_params(tmp_path / "params.yaml", tiny_params())
    done = CliRunner().invoke(main, ["--params", str(params), "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert len(done.output.splitlines()) == 4
    assert (tmp_path / "rate_distortion.png").exists()
    assert {line.split()[0] for line in done.output.splitlines()} == {"scorevae", "vae"}

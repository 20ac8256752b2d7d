"""rate_distortion: which experiments are compared, and what is drawn of them."""

import csv
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from click.testing import CliRunner
from tiny import tiny_params, write_params

from scorevae.commands.rate_distortion import (
    Point,
    at_one_rate,
    at_rate,
    figure,
    main,
    points,
    shared_rate,
    write,
)
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


AXES = (("rate_nats", "l2"), ("rate_nats", "sharpness"), ("l2", "reconstruction_fd"))
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
        "psnr": 29.9, "sharpness": 0.9, "l2_of_one_draw": None, "l2_of_mean": None,
        "reconstruction_fd": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1}, {"sde.kind": "ve"}, {"presets.digits.latent": 8}, {"preset": "mnist"},
        {"scorevae.l2": None, "vae.l2": "!"}, {"State": "Running"}, {"State": "Queued"},
        {"State": "Failed"},
    ],
)  # fmt: skip
def test_other_experiments_are_left_out(changes: dict[str, Any]) -> None:
    """Catches a curve through runs that differ in more than β, or that never ended."""
    usual = [WORKSPACE, row(0.1)]
    assert points([*usual, row(0.5, **changes)]) == points(usual)


def test_what_changes_no_number_is_no_difference() -> None:
    """Catches experiments lost because another preset was edited since.

    And the commit's own row drawn beside the workspace's.
    """
    for changes in ({"presets.mnist.latent": 8}, {"evaluate.figure_images": 1}):
        assert len(points([WORKSPACE, row(0.1, **changes)])) == 4
    found = points([WORKSPACE, row(0.01, "main"), row(0.1)])
    assert [p.experiment for p in found] == ["workspace", "abc"] * 2


@pytest.mark.parametrize("rows", [[WORKSPACE], [WORKSPACE, row(0.1, seed=3)]])
def test_a_single_beta_says_what_to_run(rows: list[dict[str, Any]]) -> None:
    """Catches an empty picture in place of the command that is missing."""
    with pytest.raises(UserError, match="one β only; run others.* dvc exp run --queue -S beta="):
        points(rows)


def varied(l2: float) -> Point:
    """A point of the model at 10 nats."""
    return Point("x", "scorevae", 0.1, 10.0, l2, 30.0, 1.0)


def test_one_rate_is_between_the_points() -> None:
    """Catches interpolation in the wrong variable, and a value made up beyond the points.

    With L2 = 1/rate a line in logarithms is exact.
    """
    own = [varied(1 / rate)._replace(rate_nats=rate) for rate in (1.0, 10.0, 100.0)]
    assert at_rate(own, "l2", 30.0) == pytest.approx(1 / 30)
    assert at_rate(own[::-1], "l2", 5.0) == pytest.approx(1 / 5)
    assert at_rate(own, "l2", 101.0) is None
    assert at_rate(own, "l2_of_mean", 5.0) is None


def test_systems_are_compared_at_a_rate_that_both_have() -> None:
    """Catches a comparison of points of one β, and one beyond either curve."""
    model = [varied(1 / rate)._replace(rate_nats=rate) for rate in (4.0, 400.0)]
    baseline = [p._replace(system="vae", rate_nats=p.rate_nats / 4, l2=2 * p.l2) for p in model]
    rate = shared_rate([*model, *baseline])
    assert rate == pytest.approx(20)  # 4 to 100
    ours, theirs = at_rate(model, "l2", rate), at_rate(baseline, "l2", rate)
    (line,) = [row for row in at_one_rate([*model, *baseline], rate) if "ScoreVAE " in row]
    assert f"L2 {ours:.4f} ({ours / theirs:.2f} times the baseline's)" in line


def test_samples_are_compared_with_samples() -> None:
    """Catches draws of a sample of z beside a baseline that decoded the mean, which tells more."""
    own = [varied(1.0)._replace(rate_nats=r, l2_of_one_draw=0.6, l2_of_mean=0.5) for r in (5, 20)]
    theirs = [p._replace(system="vae", l2=0.5, l2_of_one_draw=2.0, l2_of_mean=9.0) for p in own]
    _, model, baseline = at_one_rate([*own, *theirs], 10.0)
    shown = "L2 {}  sharpness 1.000  of a sample of z {}  mean of its draws {}".format(
        *(
            f"{value} times the baseline's)"
            for value in ("1.0000 (2.00", "0.6000 (0.30", "0.5000 (0.25")
        )
    )
    assert model.split(maxsplit=1)[1] == shown
    assert "mean of" not in baseline
    drawn = figure([*own, *theirs], np.ones(64), 40)
    levels = {line.get_label(): set(line.get_ydata()) for line in drawn.axes[0].lines}
    plt.close(drawn)
    assert levels["VAE, of a sample of z"] == {2.0}
    assert levels["ScoreVAE, mean of its draws"] == {0.5}
    assert not [label for label in levels if label.startswith("VAE, mean")]


def test_rates_apart_say_what_to_run() -> None:
    """Catches a comparison at no rate at all."""
    apart = [varied(1.0), varied(1.0)._replace(system="vae", rate_nats=1.0)]
    with pytest.raises(UserError, match="10.0 to 10.0 nats and VAE 1.0 to 1.0.*higher beta"):
        shared_rate(apart)


def test_figure_and_table(tmp_path: Path) -> None:
    """Catches axes or systems exchanged, a missing metric drawn as zero, and rows lost."""
    found = points([WORKSPACE, row(0.1, **{"vae.reconstruction_fd": 0.5})])
    drawn = figure(found, np.ones(64), 40)
    for axis, (x, y) in zip(drawn.axes, AXES, strict=True):
        curves = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
        (label,) = [label for label in curves if label.startswith("VAE")]
        known = [p for p in found[2:] if getattr(p, y) is not None]
        assert curves[label] == [[getattr(p, x), getattr(p, y)] for p in known]
    assert len(known) == 1
    plt.close(drawn)
    write(tmp_path, found, np.ones(64), 40)
    with (tmp_path / "rate_distortion.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [{k: "" if v is None else str(v) for k, v in p._asdict().items()} for p in found]
    assert rows == expected
    assert (tmp_path / "rate_distortion.png").stat().st_size > 0


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an output elsewhere, and a table that leaves a system out."""
    monkeypatch.setattr("dvc.api.exp_show", lambda num: [WORKSPACE, row(0.1)])
    params = write_params(tmp_path / "params.yaml", tiny_params())
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), np.uint8)
    np.save(tmp_path / "train_images.npy", images)
    folders = ["--data", str(tmp_path), "--output", str(tmp_path)]
    done = CliRunner().invoke(main, ["--params", str(params), *folders])
    assert done.exit_code == 0, done.output
    *table, _, model, baseline = done.output.splitlines()
    assert len(table) == 4
    assert ["ScoreVAE" in model, "VAE " in baseline] == [True, True]
    assert (tmp_path / "rate_distortion.png").exists()
    assert {line.split()[0] for line in table} == {"scorevae", "vae"}

"""evaluation: which judges there are, and what is written down."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_config
from torch import nn

from scorevae.data.arrays import Split
from scorevae.errors import Unavailable
from scorevae.evaluation import lpips, stage
from scorevae.evaluation.part import Subject
from scorevae.evaluation.parts import comparison
from scorevae.gaussian import DiagonalGaussian
from scorevae.reconstructions import Reconstructions, save

POSTERIOR = DiagonalGaussian(torch.zeros(3, 2), torch.zeros(3, 2))


def subject(folder: Path, labels: np.ndarray | None, count: int = 4, **overrides: Any) -> Subject:  # noqa: ANN401
    """Random images in a folder without models."""
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    split = Split(images, labels)
    return Subject(tiny_config(**overrides), folder, folder, split, split, folder)


class Net(nn.Module):
    """Stands for an LPIPS network."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


@pytest.mark.parametrize("missing", [set(), {"squeeze"}, {"vgg"}, {"squeeze", "vgg"}])
def test_judges_are_the_presets_and_the_papers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    missing: set[str],
) -> None:
    """Catches nets exchanged, one that takes the other with it, and a silent null."""

    def load(folder: Path, net: str) -> nn.Module:
        assert folder == tmp_path / "lpips"
        if net in missing:
            raise Unavailable(f"{net} is not here")
        return Net(net)

    monkeypatch.setattr(lpips, "load_lpips", load)
    net = {"presets.digits.lpips.net": "squeeze"}
    judges, reasons = comparison.open_judges(subject(tmp_path, np.array([0, 1, 0, 1]), **net))
    for judge, name in zip(judges[:2], ("squeeze", "vgg"), strict=True):
        assert judge is None if name in missing else judge.name == name
    assert judges.classifier is not None
    metrics = {"squeeze": "lpips", "vgg": "paper_lpips"}
    assert reasons == {metrics[net]: f"{net} is not here" for net in missing}
    warnings = capsys.readouterr().err.splitlines()
    assert sorted(warnings) == [
        f"warning: {net} is not here; reported as null" for net in sorted(missing)
    ]


def test_data_without_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Catches an evaluation that ends where there is nothing to classify."""
    monkeypatch.setattr(lpips, "load_lpips", lambda folder, net: Net(net))
    judges, reasons = comparison.open_judges(subject(tmp_path, None))
    assert judges.classifier is None
    assert reasons == {"class_agreement": "class_agreement: the data have no labels"}
    expected = "warning: class_agreement: the data have no labels; reported as null\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("labels", "cells"),
    [
        (np.array([5, 0, 7]), ["5", "0", "7"]),
        (np.array([[1, 0], [0, 1], [1, 1]]), ["", "", ""]),  # attributes are no class
        (None, ["", "", ""]),
    ],
    ids=["classes", "attributes", "none"],
)
def test_errors_of_each_image(tmp_path: Path, labels: np.ndarray | None, cells: list[str]) -> None:
    """Catches rows exchanged, the systems' columns exchanged, and attributes taken for a class."""
    evaluated = subject(tmp_path, labels, count=3)
    away = torch.tensor([1.0, 2.0, 3.0])[:, None, None, None]  # 8·away is the L2 of 64 pixels
    save(tmp_path, "scorevae", Reconstructions(evaluated.originals + away, POSTERIOR))
    save(tmp_path, "vae", Reconstructions(evaluated.originals - 10 * away, POSTERIOR))
    stage.write_errors(tmp_path / "errors.csv", evaluated)
    with (tmp_path / "errors.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", "label", "scorevae_l2", "vae_l2"]
    assert rows == [
        [str(i), cells[i], f"{8 * (i + 1):.6f}", f"{80 * (i + 1):.6f}"] for i in range(3)
    ]


def test_numbers_that_are_not_there(tmp_path: Path) -> None:
    """Catches inf in JSON, and nulls sent to tracking as numbers."""
    numbers = {"scorevae": {"psnr": float("inf"), "lpips": None, "active_units": 3, "l2": 0.5}}
    stage.write_metrics(tmp_path / "metrics.json", numbers)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        "scorevae": {"psnr": None, "lpips": None, "active_units": 3, "l2": 0.5}
    }
    assert stage.headline(numbers) == {"scorevae.active_units": 3.0, "scorevae.l2": 0.5}
    rows = [line.split() for line in stage.table(numbers).splitlines()]
    assert rows[0] == ["metric", "ScoreVAE"]
    assert [row[0] for row in rows[1:]] == list(comparison.METRICS)
    printed = dict(rows[1:])
    assert {name: printed[name] for name in numbers["scorevae"]} == {
        "psnr": "inf",
        "lpips": "null",
        "active_units": "3",
        "l2": "0.5000",
    }


def test_reasons_with_any_name(tmp_path: Path) -> None:
    """Catches reasons lost to the name of a file that is not UTF-8."""
    stage.write_json(tmp_path / "reasons.json", {"fid": "γ of " + os.fsdecode(b"caf\xe9")})
    reasons = json.loads((tmp_path / "reasons.json").read_text(encoding="utf-8"))
    assert reasons == {"fid": "γ of caf?"}

"""evaluation: which judges there are, and what is written down."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_config
from torch import nn

from scorevae.data.arrays import Split
from scorevae.evaluation import stage as evaluation
from scorevae.evaluation.lpips import LPIPSUnavailable
from scorevae.gaussian import DiagonalGaussian
from scorevae.reconstructions import Reconstructions

POSTERIOR = DiagonalGaussian(torch.zeros(3, 2), torch.zeros(3, 2))


def split(labels: np.ndarray | None) -> Split:
    """Four random images."""
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    return Split(images, labels)


class Net(nn.Module):
    """Stands for an LPIPS network."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


@pytest.mark.parametrize("missing", [set(), {"squeeze"}, {"vgg"}, {"squeeze", "vgg"}])
def test_judges_are_the_presets_and_the_papers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, missing: set[str]
) -> None:
    """Catches nets exchanged, one that takes the other with it, and a silent null."""

    def load(folder: Path, net: str) -> nn.Module:
        assert folder == Path("lpips")
        if net in missing:
            raise LPIPSUnavailable(f"{net} is not here")
        return Net(net)

    monkeypatch.setattr(evaluation, "load_lpips", load)
    config = tiny_config(**{"presets.digits.lpips.net": "squeeze"})
    judges, reasons = evaluation.open_judges(config, split(np.array([0, 1, 0, 1])), Path("lpips"))
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
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Catches an evaluation that ends where there is nothing to classify."""
    monkeypatch.setattr(evaluation, "load_lpips", lambda folder, net: Net(net))
    judges, reasons = evaluation.open_judges(tiny_config(), split(None), Path("lpips"))
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
    x = torch.zeros(3, 1, 2, 2)
    away = torch.tensor([1.0, 2.0, 3.0])[:, None, None, None]  # 2·away is the L2 of four pixels
    systems = {
        "scorevae": Reconstructions(x + away, POSTERIOR),
        "vae": Reconstructions(x - 10 * away, POSTERIOR),
    }
    evaluation.write_errors(tmp_path / "errors.csv", x, systems, labels)
    with (tmp_path / "errors.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", "label", "scorevae_l2", "vae_l2"]
    assert rows == [
        [str(i), cells[i], f"{2 * (i + 1):.6f}", f"{20 * (i + 1):.6f}"] for i in range(3)
    ]


def test_numbers_that_are_not_there(tmp_path: Path) -> None:
    """Catches inf in JSON, and nulls sent to tracking as numbers."""
    numbers = {"scorevae": {"psnr": float("inf"), "lpips": None, "active_units": 3, "l2": 0.5}}
    evaluation.write_metrics(tmp_path / "metrics.json", numbers)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {
        "scorevae": {"psnr": None, "lpips": None, "active_units": 3, "l2": 0.5}
    }
    assert evaluation.headline(numbers) == {"scorevae.active_units": 3.0, "scorevae.l2": 0.5}
    rows = [line.split() for line in evaluation.table(numbers).splitlines()]
    assert rows[0] == ["metric", "ScoreVAE"]
    assert rows[1:] == [
        ["psnr", "inf"],
        ["lpips", "null"],
        ["active_units", "3"],
        ["l2", "0.5000"],
    ]


def test_reasons_with_any_name(tmp_path: Path) -> None:
    """Catches reasons lost to the name of a file that is not UTF-8."""
    evaluation.write_reasons(tmp_path / "reasons.json", {"fid": "γ of " + os.fsdecode(b"caf\xe9")})
    reasons = json.loads((tmp_path / "reasons.json").read_text(encoding="utf-8"))
    assert reasons == {"fid": "γ of caf?"}

"""evaluation: which judges there are, and what is written down."""

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


@pytest.mark.parametrize(
    "missing",
    [set(), {"squeeze"}, {"vgg"}, {"squeeze", "vgg"}, {"class_agreement"}],
    ids=lambda missing: " ".join(sorted(missing)) or "none",
)
def test_judges_are_the_presets_and_the_papers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, missing: set
) -> None:
    """Catches nets exchanged, a judge that takes another with it, and a silent null."""

    def load(folder: Path, net: str) -> nn.Module:
        assert folder == tmp_path / "lpips"
        if net in missing:
            raise Unavailable(said[net])
        return {"squeeze": squeeze, "vgg": vgg}[net]

    squeeze, vgg = nn.Identity(), nn.Identity()
    said = {net: f"{net} is not here" for net in ("squeeze", "vgg")}
    said["class_agreement"] = "class_agreement: the data have no labels"
    monkeypatch.setattr(lpips, "load_lpips", load)
    labels = None if "class_agreement" in missing else np.array([0, 1, 0, 1])
    net = {"presets.digits.lpips.net": "squeeze"}
    judges, reasons = comparison.open_judges(subject(tmp_path, labels, **net))
    for judge, name, loaded in ((judges[0], "squeeze", squeeze), (judges[1], "vgg", vgg)):
        assert judge is (None if name in missing else loaded)
    assert (judges.classifier is None) == ("class_agreement" in missing)
    metrics = {"squeeze": "lpips", "vgg": "paper_lpips"}
    assert reasons == {metrics.get(name, name): said[name] for name in missing}
    warnings = capsys.readouterr().err.splitlines()
    expected = [f"warning: {said[name]}; reported as null" for name in sorted(missing)]
    assert sorted(warnings) == expected


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
    for system, factor in (("scorevae", 1), ("vae", -10)):
        save(tmp_path, system, Reconstructions(evaluated.originals + factor * away, POSTERIOR))
    stage.write_errors(tmp_path / "errors.csv", evaluated)
    assert (tmp_path / "errors.csv").read_text().splitlines() == [
        "image,label,scorevae_l2,vae_l2",
        f"0,{cells[0]},8.000000,80.000000",
        f"1,{cells[1]},16.000000,160.000000",
        f"2,{cells[2]},24.000000,240.000000",
    ]


def test_numbers_that_are_not_there(tmp_path: Path) -> None:
    """Catches inf in JSON, and nulls sent to tracking as numbers."""
    values = {"psnr": float("inf"), "lpips": None, "active_units": 3, "l2": 0.5}
    stage.write_metrics(tmp_path / "metrics.json", {"scorevae": values})
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written == {"scorevae": values | {"psnr": None}}
    sent = stage.headline({"scorevae": values})
    assert sent == {"scorevae.active_units": 3.0, "scorevae.l2": 0.5}
    rows = [line.split() for line in stage.table({"scorevae": values}).splitlines()]
    assert rows[0] == ["metric", "ScoreVAE"]
    assert [row[0] for row in rows[1:]] == list(comparison.METRICS)
    printed = {"psnr": "inf", "lpips": "null", "active_units": "3", "l2": "0.5000"}
    assert {name: dict(rows[1:])[name] for name in values} == printed


def test_reasons_with_any_name(tmp_path: Path) -> None:
    """Catches reasons lost to the name of a file that is not UTF-8."""
    stage.write_json(tmp_path / "reasons.json", {"fid": "γ of " + os.fsdecode(b"caf\xe9")})
    reasons = json.loads((tmp_path / "reasons.json").read_text(encoding="utf-8"))
    assert reasons == {"fid": "γ of caf?"}

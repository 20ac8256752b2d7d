"""The seven stages through their command lines, on tiny settings, and what they refuse."""

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import safetensors.torch
import torch
from pipeline import STAGES, contents, run, set_params
from tiny import NO_PARTS

from scorevae.evaluation import figures
from scorevae.evaluation.parts import comparison
from scorevae.networks.weights import FORMAT

VAE = "models/digits/vae.safetensors"


# --- what a finished run leaves behind -------------------------------------------------------


@pytest.fixture
def numbers(finished: Path) -> dict[str, dict]:
    return json.loads((finished / "results/digits/metrics.json").read_text())


def test_metrics_hold_every_number_for_both_systems(finished: Path, numbers: dict) -> None:
    """Catches a metric dropped, renamed or not finite, and a table that prints other numbers."""
    assert list(numbers) == ["scorevae", "vae", "prior", "pixels", "train_images"]
    for name in ("scorevae", "vae"):
        assert list(numbers[name])[:10] == [
            "l2", "mse", "psnr", "ssim", "sharpness", "lpips", "paper_lpips", "rate_nats",
            "active_units", "class_agreement",
        ]  # fmt: skip
    found = [item for values in numbers.values() for item in values.items()]
    missing = {name for name, value in found if value is None}
    # 8 pixels are too few; a VAE's draws do not differ
    assert missing == {"lpips", "paper_lpips", "fid", "kid", "calibration"}
    assert all(np.isfinite(value) for _, value in found if value is not None)
    reasons = json.loads((finished / "results/digits/reasons.json").read_text())
    assert set(reasons) == {"lpips", "paper_lpips", "inception_distances"}
    lines = (finished / "table.txt").read_text().splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert rows["l2"] == [f"{numbers[name]['l2']:.4f}" for name in ("scorevae", "vae")]
    assert rows["lpips"] == ["null", "null"]


def test_reported_l2_is_the_distance_of_the_written_images(finished: Path, numbers: dict) -> None:
    """Catches images of another order, range or protocol than section 5's L2."""
    originals = np.load(finished / "data/digits/test_images.npy").astype(np.float64) / 255
    for name in ("scorevae", "vae"):
        written = np.load(finished / f"results/digits/reconstructions/{name}_images.npy")
        difference = written.transpose(0, 2, 3, 1).astype(np.float64) - originals
        distances = np.sqrt((difference**2).sum(axis=(1, 2, 3)))
        # float32 against float64 arithmetic: a few units in the seventh digit.
        assert numbers[name]["l2"] == pytest.approx(distances.mean(), rel=1e-5)


def test_files_of_a_run(finished: Path) -> None:
    """Catches a file or a curve missing, and a state left that the next run would return."""
    names = {path.stem for path in (finished / "results/digits/figures").glob("*.png")}
    assert names == {
        "comparison", "prior_samples", "samples", "interpolations", "training_curves",
        "latent_costs", "integrand", "samplers", "guidance", "embedding", "probe_over_time",
        "edits", "draws", "shuffled_z", "spectrum", "trade",
    }  # fmt: skip
    rows = (finished / "results/digits/errors.csv").read_text().splitlines()
    assert rows[0] == "image,label,scorevae_l2,vae_l2"
    assert len(rows) == 1 + 360
    lines = (finished / "results/digits/curves/encoder.csv").read_text().splitlines()
    assert {line.split(",")[0] for line in lines[1:]} == {"warm_start", "objective"}
    assert "test_loss" in lines[0]
    status = json.loads((finished / "models/digits/lpips/lpips.json").read_text())
    assert set(status) == {"alex", "vgg"}
    assert all("images of 8 pixels are under the 32" in reason for reason in status.values())
    assert not list((finished / "state").rglob("*.pt"))


# --- what follows from the parameters --------------------------------------------------------


@pytest.mark.slow
def test_same_parameters_give_the_same_weights_and_metrics(workspace: Path) -> None:
    """Catches any number that does not follow from (seed, step)."""
    before = contents(workspace)
    for stage in STAGES:
        assert run(stage).exit_code == 0
    after = contents(workspace)
    assert set(after) == set(before)
    timed = re.compile("curves/|report|samplers|guidance|costs")
    assert [n for n in before if after[n] != before[n] and not timed.search(n)] == []


@pytest.mark.parametrize(("change", "workers", "same"), [
    ({"seed": 1}, "0", False), ({"presets.digits.flip": True}, "0", False), ({}, "1", True),
], ids=["seed", "mirroring", "worker"])  # fmt: skip
def test_what_the_weights_depend_on(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, change: dict, workers: str, same: bool
) -> None:
    """Catches a seed or a flip that is ignored, and images that change on their way."""
    before = (workspace / VAE).read_bytes()
    set_params(**change)
    monkeypatch.setenv("SCOREVAE_WORKERS", workers)
    assert run("train_vae_baseline").exit_code == 0
    assert ((workspace / VAE).read_bytes() == before) is same


def test_fewer_test_images(workspace: Path) -> None:
    """Catches a limit that one of the two stages ignores, and other images than the first."""
    whole = np.load(workspace / "results/digits/reconstructions/vae_images.npy")
    errors = (workspace / "results/digits/errors.csv").read_text().splitlines()
    set_params(**NO_PARTS | {"presets.digits.test_images": 20})
    for stage in ("reconstruct", "evaluate"):
        assert run(stage).exit_code == 0
    for system in ("scorevae", "vae"):
        images = np.load(workspace / f"results/digits/reconstructions/{system}_images.npy")
        assert images.shape == (20, 1, 8, 8)
    # The VAE draws nothing: float32 convolutions of another batch size.
    np.testing.assert_allclose(images, whole[:20], atol=1e-5)
    fewer = (workspace / "results/digits/errors.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in fewer] == [row.split(",")[:2] for row in errors[:21]]


def test_protocol_is_the_chosen_one(workspace: Path) -> None:
    """Catches a protocol whose sampler, or whose z, is ignored."""

    def images(protocol: str, **change: str) -> np.ndarray:
        chosen = {"reconstruct.protocol": protocol, "presets.digits.test_images": 10}
        set_params(**chosen, **change)
        assert run("reconstruct").exit_code == 0
        return np.load(workspace / "results/digits/reconstructions/scorevae_images.npy")

    assert not np.allclose(images("default"), images("ode"))
    assert not np.allclose(images("paper"), images("paper", **{"protocols.paper.z": "mean"}))


# --- faults ----------------------------------------------------------------------------------

Damage = Callable[[], object]


def wrong(**overrides: object) -> Damage:
    """Parameters with other values, by their dotted names."""
    return lambda: set_params(**overrides)


def exchanged(path: Path) -> None:
    other = "vae" if path.stem == "prior" else "prior"
    shutil.copy(path.with_name(f"{other}.safetensors"), path)


def coloured() -> None:
    for split in ("train", "test"):
        np.save(f"data/digits/{split}_images.npy", np.zeros((40, 8, 8, 3), np.uint8))


WEIGHTS = {  # what is damaged how, and what is said of it
    "no such file; run the stage that writes it": Path.unlink,
    "carries no ScoreVAE header": partial(safetensors.torch.save_file, {"weight": torch.zeros(2)}),
    f"weights of format {FORMAT}; give": exchanged,
    "not a safetensors file": partial(torch.save, {"weight": torch.zeros(2)}),
}
READ = [("train_encoder", "prior"), ("train_encoder", "vae"), ("reconstruct", "encoder")]
PARAMETERS = {
    "betta: unexpected key": wrong(betta=0.1),
    "beta: got 'large'": wrong(beta="large"),
    "preset 'imagenet' is not under presets; choose one of: ": wrong(preset="imagenet"),
}
FAULTS: list[tuple[str, Damage, tuple[str, ...]]] = [
    *((stage, damage, ("Error: params.yaml: ", message))
      for message, damage in PARAMETERS.items() for stage in STAGES),
    *((stage, partial(damage, Path(path)), (path, message))
      for message, damage in WEIGHTS.items() for stage, name in READ
      for path in [f"models/digits/{name}.safetensors"]),
    *((stage, coloured, ("images are uint8 of shape (8, 8, 3)",))
      for stage in ("train_prior", "train_vae_baseline", "reconstruct", "evaluate")),
    ("train_encoder", wrong(**{"sde.beta_max": 10.0}),
     ("models/digits/prior.safetensors: its sde is",)),
    ("download", wrong(**{"presets.digits.lpips.required": True}),
     ("This preset requires LPIPS",)),
]  # fmt: skip
FAULT_IDS = [f"{stage}: {messages[-1]}" for stage, _, messages in FAULTS]


@pytest.mark.parametrize(("stage", "damage", "messages"), FAULTS, ids=FAULT_IDS)
def test_fault_is_named_and_nothing_touched(
    workspace: Path, stage: str, damage: Damage, messages: tuple[str, ...]
) -> None:
    """Catches a stage that works before it has looked, a traceback, and outputs half replaced.

    Wrong parameters, also such as the stage does not read; weights that are not what they should
    be, or of another forward process; images of another shape; no LPIPS where it is required.
    """
    damage()
    before = contents(workspace)
    result = run(stage)
    assert result.exit_code == 1
    (line,) = result.output.strip().splitlines()
    assert line.startswith("Error: ")
    assert all(message in line for message in messages)
    assert contents(workspace) == before


BATCH = "lower reconstruct.batch (250) or "
WHOLE = "presets.digits.test_images or evaluate.classifier_images (5000) or "
WHOLE += "evaluate.figure_images (3)"


@pytest.mark.parametrize(("step", "function", "keys"), [
    ("comparison", (comparison, "draw"), WHOLE),
    ("figures and report", (figures, "save"), WHOLE),
])  # fmt: skip
def test_evaluation_without_memory_names_its_keys(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, step: str, function: tuple, keys: str
) -> None:
    """Catches a traceback, advice for another part, and outputs of a run that failed."""
    reason = "CUDA out of memory. Tried to allocate 2.00 GiB"

    def fail(*args: object) -> None:
        raise torch.OutOfMemoryError(reason)

    monkeypatch.setattr(*function, fail)
    set_params(**NO_PARTS | {"evaluate.quality.images": 6})
    before = contents(workspace)
    result = run("evaluate")
    plt.close("all")  # those of the parts before; a stage that fails ends its process
    assert result.exit_code == 1
    expected = f"Error: out of memory ({reason}); in {step}, {BATCH}{keys}"
    assert result.output.splitlines()[-1] == expected
    assert contents(workspace) == before

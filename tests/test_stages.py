"""The six stages through their command lines, on tiny settings, and what they refuse."""

import json
import re
import shutil
from pathlib import Path

import click
import matplotlib.pyplot as plt
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from click.testing import CliRunner, Result
from tiny import tiny_params, write_params

from scorevae.evaluation import stage as evaluation
from scorevae.evaluation.part import PARTS
from scorevae.networks.weights import FORMAT
from stages import download, evaluate, reconstruct, train_encoder, train_prior, train_vae_baseline

ROOT = Path(__file__).resolve().parents[1]
STAGES = {
    "download": download.main,
    "train_prior": train_prior.main,
    "train_vae_baseline": train_vae_baseline.main,
    "train_encoder": train_encoder.main,
    "reconstruct": reconstruct.main,
    "evaluate": evaluate.main,
}


def arguments(stage: str, preset: str = "digits") -> list[str]:
    """The stage's command line as dvc.yaml states it."""
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    command = graph["stages"][stage]["cmd"].replace("${preset}", preset)
    return command.split()[2:]


def run(stage: str) -> Result:
    return CliRunner().invoke(STAGES[stage], arguments(stage))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all six stages have run."""
    folder = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.setenv("SCOREVAE_STATE", str(folder / "state"))
        write_params(folder / "params.yaml", tiny_params())
        for stage in STAGES:
            result = run(stage)
            assert result.exit_code == 0, f"{stage}: {result.output}{result.exception!r}"
            if stage == "evaluate":
                (folder / "table.txt").write_text(result.output)
    return folder


@pytest.fixture
def workspace(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private copy of the finished folder, as the current directory."""
    shutil.copytree(finished, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def contents(folder: Path) -> dict[str, bytes]:
    """Every output file, to see that nothing was touched."""
    parts = ("data", "models", "results")
    files = (p for part in parts for p in (folder / part).rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_metrics_hold_every_number_for_both_systems(finished: Path) -> None:
    """Catches a metric that is dropped, renamed, or not finite."""
    numbers = json.loads((finished / "results/metrics.json").read_text())
    assert list(numbers) == ["scorevae", "vae", "prior", "pixels", "train_images"]
    for name in ("scorevae", "vae"):
        assert list(numbers[name])[:10] == [
            "l2", "mse", "psnr", "ssim", "sharpness", "lpips", "paper_lpips", "rate_nats",
            "active_units", "class_agreement",
        ]  # fmt: skip
    missing = {name for values in numbers.values() for name, v in values.items() if v is None}
    assert missing == {"lpips", "paper_lpips", "fid", "kid"}  # 8 pixels are too few
    reasons = json.loads((finished / "results/reasons.json").read_text())
    assert set(reasons) == {"lpips", "paper_lpips", "inception_distances"}
    found = (v for values in numbers.values() for v in values.values() if v is not None)
    assert all(np.isfinite(value) for value in found)


def test_the_printed_table_shows_the_metrics(finished: Path) -> None:
    """Catches a table that prints other numbers than the file holds."""
    numbers = json.loads((finished / "results/metrics.json").read_text())
    lines = (finished / "table.txt").read_text().splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert rows["l2"] == [f"{numbers[name]['l2']:.4f}" for name in ("scorevae", "vae")]
    assert rows["lpips"] == ["null", "null"]


def test_reported_l2_is_the_distance_of_the_written_images(finished: Path) -> None:
    """Catches images of another order, range or protocol than section 5's L2."""
    numbers = json.loads((finished / "results/metrics.json").read_text())
    originals = np.load(finished / "data/digits/test_images.npy").astype(np.float64) / 255
    for name in ("scorevae", "vae"):
        written = np.load(finished / f"results/reconstructions/{name}_images.npy")
        difference = written.transpose(0, 2, 3, 1).astype(np.float64) - originals
        distances = np.sqrt((difference**2).sum(axis=(1, 2, 3)))
        # float32 against float64 arithmetic: a few units in the seventh digit.
        assert numbers[name]["l2"] == pytest.approx(distances.mean(), rel=1e-5)


def test_figures_and_errors_are_written(finished: Path) -> None:
    """Catches a figure or the per-image errors missing."""
    names = {path.stem for path in (finished / "results/figures").glob("*.png")}
    assert names == {
        "comparison", "prior_samples", "samples", "interpolations", "training_curves",
        "latent_costs", "integrand", "samplers", "guidance", "embedding", "probe_over_time",
        "edits", "draws", "shuffled_z",
    }  # fmt: skip
    rows = (finished / "results/errors.csv").read_text().splitlines()
    assert rows[0] == "image,label,scorevae_l2,vae_l2"
    assert len(rows) == 1 + 360


def test_curves_hold_both_phases_of_the_encoder(finished: Path) -> None:
    """Catches a phase whose numbers are lost."""
    lines = (finished / "results/curves/encoder.csv").read_text().splitlines()
    assert {line.split(",")[0] for line in lines[1:]} == {"warm_start", "objective"}
    assert "test_loss" in lines[0]


def test_state_is_forgotten_once_the_output_is_written(finished: Path) -> None:
    """Catches a state that would make the next run return the old weights as new."""
    assert not list((finished / "state").rglob("*.pt"))


def test_same_parameters_give_the_same_weights_and_metrics(workspace: Path) -> None:
    """Catches any number that does not follow from (seed, step)."""
    before = contents(workspace)
    for stage in STAGES:
        assert run(stage).exit_code == 0
    after = contents(workspace)
    timed = [name for name in before if re.search("curves/|report|samplers|guidance|costs", name)]
    assert {n: c for n, c in after.items() if n not in timed} == {
        n: c for n, c in before.items() if n not in timed
    }


def test_another_seed_gives_other_weights(workspace: Path) -> None:
    """Catches a seed that is ignored."""
    before = (workspace / "models/digits/vae.safetensors").read_bytes()
    write_params(workspace / "params.yaml", tiny_params(seed=1))
    assert run("train_vae_baseline").exit_code == 0
    assert (workspace / "models/digits/vae.safetensors").read_bytes() != before


def test_lpips_folder_says_why_it_is_empty(finished: Path) -> None:
    """Catches a null in the metrics whose reason is lost."""
    status = json.loads((finished / "models/digits/lpips/lpips.json").read_text())
    assert set(status) == {"alex", "vgg"}
    assert all("images of 8 pixels are under the 32" in reason for reason in status.values())


def test_required_lpips_stops_the_download(workspace: Path) -> None:
    """Catches a preset that trains for days and then cannot be compared with the paper."""
    write_params(workspace / "params.yaml", tiny_params(**{"presets.digits.lpips.required": True}))
    before = contents(workspace)
    result = run("download")
    assert result.exit_code == 1
    assert "This preset requires LPIPS" in result.output
    assert contents(workspace) == before


def test_mirroring_reaches_the_training(workspace: Path) -> None:
    """Catches a preset's flip that is read and ignored."""
    before = (workspace / "models/digits/vae.safetensors").read_bytes()
    write_params(workspace / "params.yaml", tiny_params(**{"presets.digits.flip": True}))
    assert run("train_vae_baseline").exit_code == 0
    assert (workspace / "models/digits/vae.safetensors").read_bytes() != before


def test_workers_change_no_weight(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a way for images to travel that changes what a stage learns."""
    before = (workspace / "models/digits/vae.safetensors").read_bytes()
    monkeypatch.setenv("SCOREVAE_WORKERS", "1")
    assert run("train_vae_baseline").exit_code == 0
    assert (workspace / "models/digits/vae.safetensors").read_bytes() == before


def test_fewer_test_images(workspace: Path) -> None:
    """Catches a limit that one of the two stages ignores, and other images than the first."""
    whole = np.load(workspace / "results/reconstructions/vae_images.npy")
    errors = (workspace / "results/errors.csv").read_text().splitlines()
    write_params(workspace / "params.yaml", tiny_params(**{"presets.digits.test_images": 20}))
    for stage in ("reconstruct", "evaluate"):
        assert run(stage).exit_code == 0
    for system in ("scorevae", "vae"):
        images = np.load(workspace / f"results/reconstructions/{system}_images.npy")
        assert images.shape == (20, 1, 8, 8)
    # The VAE draws nothing: float32 convolutions of another batch size.
    np.testing.assert_allclose(images, whole[:20], atol=1e-5)
    fewer = (workspace / "results/errors.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in fewer] == [row.split(",")[:2] for row in errors[:21]]


def test_protocol_is_the_chosen_one(workspace: Path) -> None:
    """Catches a protocol whose sampler, or whose z, is ignored."""
    seen = {}
    for name in ("default", "ode", "paper"):
        overrides = {"reconstruct.protocol": name, "presets.digits.test_images": 10}
        write_params(workspace / "params.yaml", tiny_params(**overrides))
        assert run("reconstruct").exit_code == 0
        seen[name] = np.load(workspace / "results/reconstructions/scorevae_images.npy")
    assert not np.allclose(seen["default"], seen["ode"])
    overrides |= {"protocols.paper.z": "mean"}
    write_params(workspace / "params.yaml", tiny_params(**overrides))
    assert run("reconstruct").exit_code == 0
    of_the_mean = np.load(workspace / "results/reconstructions/scorevae_images.npy")
    assert not np.allclose(seen["paper"], of_the_mean)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"betta": 0.1}, "betta: unexpected key"),
        ({"beta": "large"}, "beta: got 'large'"),
        ({"preset": "imagenet"}, "preset 'imagenet' is not under presets; choose one of: "),
    ],
)
def test_wrong_parameters_stop_every_stage_before_it_starts(
    workspace: Path, stage: str, overrides: dict[str, object], message: str
) -> None:
    """Catches a stage that works before it has validated the whole file."""
    write_params(workspace / "params.yaml", tiny_params(**overrides))
    before = contents(workspace)
    result = run(stage)
    assert result.exit_code == 1
    assert result.output.startswith("Error: params.yaml: ")
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert contents(workspace) == before


def damage_missing(path: Path) -> None:
    path.unlink()


def damage_foreign(path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.zeros(2)}, path)


def damage_kind(path: Path) -> None:
    other = "vae" if path.stem == "prior" else "prior"
    shutil.copy(path.with_name(f"{other}.safetensors"), path)


def damage_pickle(path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_missing, "no such file; run the stage that writes it"),
        (damage_foreign, "carries no ScoreVAE header"),
        (damage_kind, f"weights of format {FORMAT}; give"),
        (damage_pickle, "not a safetensors file"),
    ],
)
@pytest.mark.parametrize(
    ("stage", "weights"),
    [("train_encoder", "prior"), ("train_encoder", "vae"), ("reconstruct", "encoder")],
)
def test_wrong_checkpoints_are_refused_by_name(
    workspace: Path, stage: str, weights: str, damage: click.Command, message: str
) -> None:
    """Catches weights that are taken for what they are not, or fail with a traceback."""
    path = workspace / f"models/digits/{weights}.safetensors"
    damage(path)
    before = contents(workspace)
    result = run(stage)
    assert result.exit_code == 1
    assert f"models/digits/{weights}.safetensors" in result.output
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert contents(workspace) == before


def test_a_prior_of_another_process_is_refused(workspace: Path) -> None:
    """Catches Bayes' rule applied across two different forward processes."""
    write_params(workspace / "params.yaml", tiny_params(**{"sde.beta_max": 10.0}))
    before = contents(workspace)
    result = run("train_encoder")
    assert result.exit_code == 1
    assert "models/digits/prior.safetensors: its sde is" in result.output
    assert contents(workspace) == before


@pytest.mark.parametrize(
    ("step", "keys"),
    [
        ("comparison", r"presets.digits.test_images or evaluate.classifier_images (5000)"),
        (
            "classifier_distances",
            r"reconstruct.batch (250) or evaluate.quality.images (6) or "
            r"evaluate.quality.train_images (60)",
        ),
        ("figures", r"reconstruct.batch (250) or evaluate.figure_images (3)"),
    ],
)
def test_evaluation_without_memory_names_its_keys(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, step: str, keys: str
) -> None:
    """Catches a traceback, advice for another part, and outputs of a run that failed."""

    def fail(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    if step in PARTS:
        monkeypatch.setitem(PARTS, step, (fail, PARTS[step][1]))
    else:
        functions = {"comparison": "compare", "figures": "draw_figures"}
        monkeypatch.setattr(evaluation, functions[step], fail)
    before = contents(workspace)
    result = run("evaluate")
    plt.close("all")  # those of the parts before; a stage that fails ends its process
    assert result.exit_code == 1
    error = "Error: out of memory (CUDA out of memory. Tried to allocate 2.00 GiB); "
    assert result.output.splitlines()[-1] == f"{error}in {step}, lower {keys}"
    assert contents(workspace) == before


@pytest.mark.parametrize("stage", ["train_prior", "train_vae_baseline", "reconstruct", "evaluate"])
def test_images_of_the_wrong_shape_are_refused(workspace: Path, stage: str) -> None:
    """Catches data that fail somewhere inside a network."""
    for split in ("train", "test"):
        images = np.zeros((40, 8, 8, 3), np.uint8)
        np.save(workspace / f"data/digits/{split}_images.npy", images)
    before = contents(workspace)
    result = run(stage)
    assert result.exit_code == 1
    assert "images are uint8 of shape (8, 8, 3)" in result.output
    assert contents(workspace) == before

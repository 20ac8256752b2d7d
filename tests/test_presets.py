"""Every shipped preset: its networks are the stated ones, and its six stages run."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from test_stages import ROOT, STAGES, arguments
from tiny import EVALUATE, write_params

from scorevae.config import load_config
from scorevae.networks.encoder import build_encoder
from scorevae.networks.prior import PriorUNet
from scorevae.networks.vae import build_decoder
from scorevae.sde import build_sde

CONFIG = load_config(ROOT / "params.yaml")

# Prior, time-dependent encoder, VAE encoder, VAE decoder; counted once by hand-checkable layers
# (test_convolutional_encoder_by_hand) and pinned, so that an architecture cannot drift.
PARAMETERS = {
    "digits": (634_273, 188_848, 168_048, 183_361),
    "mnist": (6_469_889, 1_193_632, 1_156_192, 1_037_569),
    "cifar10": (58_687_747, 2_038_848, 1_981_376, 1_196_099),
    "cifar10_resnet": (58_687_747, 6_589_952, 6_292_736, 5_829_443),
    "celeba64": (52_439_555, 26_529_664, 24_819_072, 24_038_147),
    "cifar10_small": (2_470_883, 3_197_056, 3_109_696, 2_601_196),
    "faces_small": (2_422_385, 2_525_952, 2_455_232, 2_209_136),
}


def test_every_preset_is_here() -> None:
    """Catches a preset that no test builds."""
    assert set(CONFIG.presets) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters(name: str) -> None:
    """Catches a change of an architecture; no memory is spent on the weights."""
    preset, sde = CONFIG.presets[name], build_sde(CONFIG.sde)
    image, settings, latent = preset.data.image, preset.encoder.network, preset.latent
    with torch.device("meta"):
        networks = (
            PriorUNet(image, preset.prior.network, sde),
            build_encoder(settings, image, latent, sde),
            build_encoder(settings, image, latent, None),
            build_decoder(settings, image, latent),
        )
    counts = tuple(sum(p.numel() for p in network.parameters()) for network in networks)
    assert counts == PARAMETERS[name]


def test_convolutional_encoder_by_hand() -> None:
    """Catches an encoder that is not the paper's: 3→64→64→128→128→128, then 4·4·128 to 2·384."""

    def convolution(before: int, after: int) -> int:
        return before * after * 9 + after

    pairs = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 128)]
    trunk = sum(convolution(*pair) for pair in pairs)
    head = 2 * (128 * 16 * 384 + 384)
    assert PARAMETERS["cifar10"][2] == trunk + head
    time = 2 * (64 * 64 + 64) + 2 * 64 * 384  # the embedding's two layers; its rows of the head
    assert PARAMETERS["cifar10"][1] == trunk + head + time


@pytest.mark.parametrize("name", ["cifar10", "cifar10_resnet", "celeba64"])
def test_settings_of_the_paper(name: str) -> None:
    """Catches a paper preset that is no longer the paper's (appendix B; METHOD section 4)."""
    preset, rate = CONFIG.presets[name], 1e-4 if name == "celeba64" else 2e-4
    assert preset.latent == (512 if name == "celeba64" else 384)
    assert preset.prior.network.attention == [16]
    assert preset.prior.network.dropout == (0 if name == "celeba64" else 0.1)
    assert preset.encoder.warm_start.training.steps == 0
    steps = (300_000, 600_000) if name == "celeba64" else (1_400_000, 11_000_000)
    assert (preset.encoder.training.steps, preset.vae.training.steps) == steps
    for part in (preset.prior, preset.vae, preset.encoder):
        training = part.training
        assert (training.learning_rate, training.warmup, training.ema) == (rate, 5000, 0.999)
        assert (training.batch, training.clip, training.schedule) == (128, 1.0, "constant")


def handful(name: str, images: Path) -> dict[str, Any]:
    """The shipped parameters with full networks, few steps and the given images."""
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["preset"] = name
    preset = tree["presets"][name]
    if name != "digits":
        preset["data"] |= {"source": "folder", "root": str(images)}
    preset["lpips"]["required"] = False
    preset["test_images"] = 2
    warm_start = preset["encoder"]["warm_start"]
    warm_start["training"]["steps"] = 2
    for part in (preset["prior"], preset["vae"], preset["encoder"], warm_start):
        steps = {"steps": 2, "batch": 2, "warmup": 1, "log_every": 1, "validate_every": 2}
        part["training"] |= steps
    tree["protocols"]["default"]["steps"] = 2
    tree["evaluate"]["figure_images"] = 1
    for part in EVALUATE:  # tests/test_analysis.py has them
        tree["evaluate"][part]["images"] = 0
    return tree


def write_images(folder: Path, size: int, channels: int, count: int) -> None:
    """Random pictures of two classes, split already."""
    rng = np.random.default_rng(0)
    shape = (size, size) if channels == 1 else (size, size, channels)
    for split in ("train", "test"):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{number}.png")


ELSEWHERE = ("celeba64", "cifar10_resnet")  # the largest; another preset has their image size


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.faults) if n in ELSEWHERE else n for n in PARAMETERS],
)
def test_six_stages(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a preset whose networks do not fit its images, or that a stage cannot run."""
    image = CONFIG.presets[name].data.image
    write_images(tmp_path / "images", image.size, image.channels, count=2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("SCOREVAE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    write_params(tmp_path / "params.yaml", handful(name, tmp_path / "images"))
    for stage, command in STAGES.items():
        result = CliRunner().invoke(command, arguments(stage, name))
        assert result.exit_code == 0, f"{stage}: {result.output}{result.exception!r}"
    numbers = json.loads(Path("results/metrics.json").read_text())
    for system in ("scorevae", "vae"):
        assert all(np.isfinite(numbers[system][key]) for key in ("l2", "rate_nats", "sharpness"))
    shutil.rmtree(tmp_path / "models")  # half a gigabyte for a preset of the paper
    shutil.rmtree(tmp_path / "state", ignore_errors=True)

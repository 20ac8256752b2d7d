"""The shipped params.yaml: networks that fit their images, and the paper's settings.

What DVC or you have written into it since changes no other test: tests/tiny.py.
"""

import json
import shutil
import subprocess
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from dvc.utils.hydra import apply_overrides
from pictures import encoded, noise
from pipeline import ROOT, finish
from tiny import NO_PARTS, SHIPPED, tiny_config, tiny_params
from torch import nn

from scorevae.config import PresetConfig, load_config
from scorevae.networks.encoder import build_encoder
from scorevae.networks.prior import PriorUNet
from scorevae.networks.vae import build_decoder
from scorevae.sde import build_sde

CONFIG = load_config(SHIPPED)

# Prior, time-dependent encoder, VAE encoder, VAE decoder; counted once by hand-checkable layers
# (test_convolutional_encoder_by_hand) and pinned, so that an architecture cannot drift.
PARAMETERS = {
    "cifar10": (58_687_747, 2_038_848, 1_981_376, 1_196_099),
    "cifar10_resnet": (58_687_747, 6_589_952, 6_292_736, 5_829_443),
    "celeba64": (52_439_555, 26_529_664, 24_819_072, 24_038_147),
}


def edited() -> bool:
    """Whether params.yaml is other than committed; False where no Git can say."""
    diff = ["git", "-C", str(ROOT), "diff", "--quiet", "HEAD", "--", "params.yaml"]
    return bool(shutil.which("git")) and subprocess.run(diff, capture_output=True).returncode == 1


of_the_paper = pytest.mark.skipif(
    edited(), reason="params.yaml has changes that are not committed: it need not be the paper's"
)


def networks(preset: PresetConfig) -> tuple[nn.Module, ...]:
    """In the order of PARAMETERS; no memory is spent on the weights."""
    image, settings, latent = preset.data.image, preset.encoder.network, preset.latent
    sde = build_sde(tiny_config().sde)
    with torch.device("meta"):
        return (
            PriorUNet(image, preset.prior.network, sde),
            build_encoder(settings, image, latent, sde),
            build_encoder(settings, image, latent, None),
            build_decoder(settings, image, latent),
        )


def counts(preset: PresetConfig) -> tuple[int, ...]:
    """Parameters of each of the networks."""
    return tuple(sum(p.numel() for p in network.parameters()) for network in networks(preset))


@pytest.mark.parametrize("name", CONFIG.presets)
def test_networks_fit_the_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a preset whose networks cannot be built, or do not take its images or its z."""
    preset = CONFIG.presets[name]
    prior, encoder, vae_encoder, decoder = networks(preset)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # none without data
    images, z = (torch.empty(2, *shape) for shape in (preset.data.image.shape, [preset.latent]))
    images, times, z = (x.to("meta") for x in (images, torch.empty(2), z))
    assert prior(images, times).shape == decoder(z).shape == images.shape
    for network in (encoder, vae_encoder):
        assert network(images, times).mean.shape == z.shape


def test_number_of_parameters_with_patches_and_a_linear_path() -> None:
    """Catches a change of what the paper's networks do not have."""
    trunk = {"channels": [32, 64, 128], "groups": 8}
    network = trunk | {"patch": 2, "linear": True}
    changes = {"prior.network": trunk | {"output": "velocity"}, "encoder.network": network}
    flat = {f"{part}.{key}": v for part, values in changes.items() for key, v in values.items()}
    flat |= {"data.image": {"channels": 3, "size": 32}, "latent": 384}
    config = tiny_config(**{f"presets.digits.{key}": value for key, value in flat.items()})
    assert counts(config.selected) == (2_470_883, 3_197_056, 3_109_696, 2_601_196)


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


@of_the_paper
@pytest.mark.parametrize("name", PARAMETERS)
def test_settings_of_the_paper(name: str) -> None:
    """Catches a paper preset that is no longer the paper's (appendix B; METHOD section 4)."""
    preset, faces = CONFIG.presets[name], name == "celeba64"
    assert counts(preset) == PARAMETERS[name]
    assert preset.latent == (512 if faces else 384)
    assert preset.prior.network.attention == [16]
    assert preset.prior.network.dropout == (0 if faces else 0.1)
    assert preset.encoder.warm_start.training.steps == 0
    steps = (300_000, 600_000) if faces else (1_400_000, 11_000_000)
    assert (preset.encoder.training.steps, preset.vae.training.steps) == steps
    for part in (preset.prior, preset.vae, preset.encoder):
        training, rate = part.training, 1e-4 if faces else 2e-4
        assert (training.learning_rate, training.warmup, training.ema) == (rate, 5000, 0.999)
        assert (training.batch, training.clip, training.schedule) == (128, 1.0, "constant")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "faces_small"])
def test_six_stages(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path
) -> None:
    """Catches a stage unfit for colour, conv, folders, patches, linear paths or velocities."""
    image = {"channels": CONFIG.presets[name].data.image.channels, "size": 16}  # LPIPS needs 32
    for seed, part in enumerate(("train/a", "train/b", "test/a", "test/b")):
        (tmp_path / "images" / part).mkdir(parents=True)
        for number, pixels in enumerate(noise(8, 16, 16, image["channels"], seed=seed)):
            content = encoded(pixels.squeeze())
            (tmp_path / f"images/{part}/{number}.png").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_database, tmp_path)
    data = {"source": "folder", "root": "images", "image": image}
    finish(name, **{f"presets.{name}.data.{key}": v for key, v in data.items()}, **NO_PARTS)
    numbers = json.loads(Path(f"results/{name}/metrics.json").read_text())
    for system in ("scorevae", "vae"):
        assert all(np.isfinite(numbers[system][key]) for key in ("l2", "rate_nats", "sharpness"))


@pytest.mark.slow
def test_smallest_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path
) -> None:
    """Catches a size that params.yaml may have, and that fails when everything is trained."""
    for number, pixels in enumerate(noise(80, 1, 1)):
        split = "test" if number % 4 == 0 else "train"
        folder = tmp_path / "images" / split / str(number // 4 % 2)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").write_bytes(encoded(pixels))
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_database, tmp_path)
    image = {"channels": 1, "size": 1}
    changes = {"data.source": "folder", "data.root": "images", "data.image": image}
    networks = ("prior", "corrector", "encoder")
    changes |= {f"{network}.network.channels": [8] for network in networks}
    finish(**{f"presets.digits.{key}": value for key, value in changes.items()})
    reasons = json.loads(Path("results/digits/reasons.json").read_text())
    assert set(reasons) == {
        *("lpips", "paper_lpips", "inception_distances"),  # which have sizes of their own
        *("sharpness", "spectrum_db", "samplers", "guidance", "trade"),
    }
    assert all("pixels" in reason for reason in reasons.values())
    numbers = json.loads(Path("results/digits/metrics.json").read_text())["scorevae"]
    assert all(np.isfinite(numbers[key]) for key in ("l2", "psnr", "rate_nats"))


# --- the parameters of tests -----------------------------------------------------------------

SWEPT = """
    preset=mnist beta=1e-05 seed=3 sde.kind=ve objective.weighting=simple
    reconstruct.protocol=paper protocols.default.sampler=heun protocols.default.steps=50
    evaluate.active_threshold=0.1 evaluate.quality.images=0 presets.digits.latent=16
    presets.digits.data.image.size=16 presets.digits.encoder.network.kind=conv
    presets.digits.prior.network.channels=[16] presets.digits.prior.network.output=velocity
    presets.digits.vae.training.learning_rate=0.1 presets.mnist.encoder.training.steps=7
"""


def test_no_sweep_reaches_a_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches tests that fail after `dvc exp run -S`: DVC writes the whole file anew."""
    expected = tiny_params()
    path = Path(shutil.copy(SHIPPED, tmp_path))
    apply_overrides(path, SWEPT.split())
    assert path.read_text() != SHIPPED.read_text()
    monkeypatch.setattr(tiny, "SHIPPED", path)
    assert tiny_params() == expected

"""Checkpoints of score_sde: what noise they give, and what is refused."""

import hashlib
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import normal, vector
from scipy.optimize import brentq
from song_files import (
    IMAGE,
    OURS,
    Malicious,
    NCSNpp,
    T,
    Weights,
    prior_of,
    refused,
    save_score_sde,
)

from scorevae.config import ImageConfig, ScoreSDEPriorConfig
from scorevae.networks.pretrained import score_sde

DDPMPP_NAMES: dict[str, Any] = dict(
    nf=8,
    ch_mult=[1, 2],
    num_res_blocks=1,
    attn_resolutions=[4],
    resamp_with_conv=True,
    fir=False,
    skip_rescale=True,
    progressive="none",
    progressive_input="none",
    progressive_combine="sum",
    embedding_type="positional",
    scale_by_sigma=False,
)
NCSNPP_NAMES = DDPMPP_NAMES | dict(
    fir=True, progressive_input="residual", embedding_type="fourier", scale_by_sigma=True
)
SKIP_NAMES = NCSNPP_NAMES | dict(progressive="output_skip", progressive_input="input_skip")
KINDS = {
    "vp": (DDPMPP_NAMES, 0.1, 20.0),
    "vp_fir": (DDPMPP_NAMES | dict(fir=True, progressive_input="residual"), 0.1, 20.0),
    "vp_plain": (DDPMPP_NAMES | dict(skip_rescale=False), 0.1, 20.0),
    "subvp": (DDPMPP_NAMES, 0.1, 20.0),
    "ve": (NCSNPP_NAMES, 0.01, 50.0),
    "ve_skip": (SKIP_NAMES, 0.01, 348.0),
}


def settings_of(path: Path, kind: str = "vp", **changes: Any) -> ScoreSDEPriorConfig:
    """What the parameters say of a checkpoint."""
    network, low, high = KINDS[kind]
    tree = dict(
        format="score_sde",
        path=str(path),
        sha256=None,
        network=network,
        process=kind.partition("_")[0],
        low=low,
        high=high,
        data_range="[-1, 1]",
    )
    return ScoreSDEPriorConfig.model_validate(tree | changes)


def checkpoint(settings: ScoreSDEPriorConfig, image: ImageConfig = IMAGE) -> NCSNpp:
    """Write one; gives the network with the averages, which are not its weights."""
    centered = settings.data_range == "[-1, 1]"
    raw, average = Weights(11), Weights(12)
    network = NCSNpp(raw, settings.network, centered)
    save_score_sde(Path(settings.path), network, average, image.channels, image.size)
    return NCSNpp(average, settings.network, centered)


def native(process: str, low: float, high: float, ratio: float) -> tuple[float, float, float]:
    """α', σ' and label of score_sde's process where σ'/α' is this; t by bisection."""

    def marginal(t: float) -> tuple[float, float]:
        decay = math.exp(-(low * t + (high - low) * t * t / 2))
        if process == "ve":
            return 1.0, low * (high / low) ** t
        return math.sqrt(decay), math.sqrt(1 - decay) if process == "vp" else 1 - decay

    def excess(t: float) -> float:
        alpha, sigma = marginal(t)
        return math.log(sigma / alpha) - math.log(ratio)

    t = brentq(excess, 1e-6, 1.5, xtol=1e-15, rtol=1e-14)
    alpha, sigma = marginal(t)
    return alpha, sigma, sigma if process == "ve" else 999 * t


@pytest.mark.parametrize("data_range", ["[-1, 1]", "[0, 1]"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_gives_its_noise(kind: str, data_range: str, tmp_path: Path) -> None:
    """Catches raw weights for averages, a wrong order or layout, 1000 t, a lost 2x − 1, and −ε.

    Also a time taken from t and not from the noise: sub-VP and VE are not our process.
    """
    settings = settings_of(tmp_path / "checkpoint.pth", kind, data_range=data_range)
    network = checkpoint(settings)
    found = score_sde.read(settings, IMAGE)
    x_t = normal((3, 2, 8, 8), 13)
    noise = prior_of(found, OURS)(x_t, T)
    scale = 1.0 if data_range == "[-1, 1]" else 0.5
    for index, t in enumerate(T.tolist()):
        decay = math.exp(-(0.1 * t + 19.9 * t * t / 2))
        ours, ratio = math.sqrt(decay), scale * math.sqrt((1 - decay) / decay)
        alpha, sigma, label = native(settings.process, settings.low, settings.high, ratio)
        x = alpha * (scale * x_t[index : index + 1] / ours + (1 - scale))
        output = network(x, vector(label))
        expected = -sigma * output if settings.process == "ve" else output
        torch.testing.assert_close(noise[index : index + 1], expected, rtol=1e-6, atol=1e-6)


def test_the_range_of_a_checkpoint(tmp_path: Path) -> None:
    """Catches another end of training than 1e-5, and a range that is not of our images."""

    def ends(kind: str, **changes: Any) -> list[float]:
        settings = settings_of(tmp_path / f"{kind}.pth", kind, **changes)
        checkpoint(settings)
        return list(score_sde.read(settings, IMAGE).settings.log_snr_range())

    def integral(t: float) -> float:
        return 0.1 * t + 19.9 * t * t / 2

    vp = [-math.log(math.expm1(integral(t))) for t in (1e-5, 1.0)]
    subvp = [-integral(t) - 2 * math.log(-math.expm1(-integral(t))) for t in (1e-5, 1.0)]
    ve = [-2 * math.log(0.01 * 5000**t) for t in (1e-5, 1.0)]
    assert ends("vp") == pytest.approx(vp, rel=1e-9)
    assert ends("subvp") == pytest.approx(subvp, rel=1e-9)
    assert ends("ve") == pytest.approx(ve, rel=1e-9)
    halved = [value + 2 * math.log(0.5) for value in ve]  # ours are twice as wide, their σ too
    assert ends("ve", data_range="[0, 1]") == pytest.approx(halved, rel=1e-9)


def test_who_read_it_is_recorded(tmp_path: Path) -> None:
    """Catches a digest of something else, and one that is not compared."""
    settings = settings_of(tmp_path / "checkpoint.pth")
    checkpoint(settings)
    digest = hashlib.sha256(Path(settings.path).read_bytes()).hexdigest()
    read = score_sde.read(settings_of(tmp_path / "checkpoint.pth", sha256=digest), IMAGE)
    assert (read.settings.sha256, read.settings.origin) == (digest, "score_sde checkpoint.pth")


def alter(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Write a checkpoint again with something changed in it."""
    tree = torch.load(path, weights_only=False)
    torch.save(change(tree) or tree, path)


def without_last(tree: dict[str, Any]) -> None:
    tree["ema"]["shadow_params"].pop()


def swapped(tree: dict[str, Any]) -> None:
    shadow = tree["ema"]["shadow_params"]
    shadow[0], shadow[1] = shadow[1], shadow[0]


def surplus(tree: dict[str, Any]) -> None:
    tree["model"]["module.all_modules.99.weight"] = torch.ones(2)
    tree["ema"]["shadow_params"].append(torch.ones(2))


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: path.unlink(), "does not exist"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "is no file"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:2000]), "truncated"),
    "empty": (lambda path: path.write_bytes(b""), "truncated"),
    "text": (lambda path: path.write_text("weights"), "no checkpoint of PyTorch"),
    "list": (partial(alter, change=lambda tree: [tree]), "no checkpoint of score_sde"),
    "no average": (partial(alter, change=lambda tree: {"model": tree["model"]}), "model and ema"),
    "no tensors": (partial(alter, change=lambda tree: {**tree, "model": "x"}), "model and ema"),
    "short average": (partial(alter, change=without_last), r"shadow_params has \d+ entries"),
    "swapped average": (partial(alter, change=swapped), r"shadow_params has \(32,\) where model"),
    "more": (partial(alter, change=surplus), "all_modules.99.weight is in no network"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused(damage: str, tmp_path: Path) -> None:
    """Catches a traceback, or weights in the wrong places."""
    settings = settings_of(tmp_path / "checkpoint.pth")
    checkpoint(settings)
    apply, message = DAMAGES[damage]
    apply(Path(settings.path))
    refused(message, lambda: score_sde.read(settings, IMAGE))


WRONG: dict[str, tuple[dict[str, Any], ImageConfig, str]] = {
    "sha256": ({"sha256": "0" * 64}, IMAGE, "its SHA-256 is"),
    "channels": ({}, ImageConfig(channels=3, size=8), r"shape \(8, 2, 3, 3\), the parameters ask"),
    "size": ({}, ImageConfig(channels=2, size=16), "all_modules"),
    "odd size": ({}, ImageConfig(channels=2, size=9), "2 levels need a size that 2 divides"),
    "width": ({"network": DDPMPP_NAMES | dict(nf=16)}, IMAGE, "all_modules.0.weight has shape"),
    "groups": ({"network": DDPMPP_NAMES | dict(nf=18)}, IMAGE, "network.nf: got 18"),
    "deeper": ({"network": DDPMPP_NAMES | dict(num_res_blocks=2)}, IMAGE, "all_modules"),
    "fourier": ({"network": DDPMPP_NAMES | dict(embedding_type="fourier")}, IMAGE, "all_modules"),
    "counted": ({"process": "ve"}, IMAGE, "embedding_type: got positional"),
    "unfiltered": (
        {"network": NCSNPP_NAMES | dict(fir=False)},
        IMAGE,
        "progressive_input: got residual without fir",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_checkpoint_of_another_network_is_refused(what: str, tmp_path: Path) -> None:
    """Catches parameters that the file does not bear out."""
    checkpoint(settings_of(tmp_path / "checkpoint.pth"))
    changes, image, message = WRONG[what]
    settings = settings_of(tmp_path / "checkpoint.pth", **changes)
    refused(message, lambda: score_sde.read(settings, image))


def test_a_checkpoint_runs_nothing(tmp_path: Path) -> None:
    """Catches free unpickling."""
    path, trace = tmp_path / "checkpoint.pth", tmp_path / "trace"
    for malicious in (Malicious(os.system, f"touch {trace}"), Malicious(trace.touch)):
        torch.save({"model": malicious, "ema": {}}, path)
        refused("which may run code", lambda: score_sde.read(settings_of(path), IMAGE))
    assert not trace.exists()

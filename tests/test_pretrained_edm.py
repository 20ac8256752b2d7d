"""Pickles of EDM: what they denoise, that nothing in them runs, and what is refused."""

import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracles import normal, randomise
from song_files import (
    IMAGE,
    NCSNPP,
    OURS,
    SONG,
    Malicious,
    T,
    edm_modules,
    prior_of,
    refused,
    save_edm,
)
from torch import Tensor, nn

from scorevae.config import EDMPriorConfig, ImageConfig
from scorevae.networks.pretrained import edm
from scorevae.networks.pretrained.edm_pickle import unpickled
from scorevae.networks.pretrained.song_unet import SongUNetConfig
from scorevae.sde import over

SOURCE = "raise AssertionError('the source in the file has run')"
ARGUMENTS: dict[str, Any] = dict(
    img_resolution=8,
    in_channels=2,
    out_channels=2,
    label_dim=0,
    model_channels=8,
    channel_mult=(1, 2),
    num_blocks=1,
    attn_resolutions=[4],
    dropout=0.0,
    augment_dim=9,
)
FOURIER = dict(
    embedding_type="fourier",
    channel_mult_noise=2,
    encoder_type="residual",
    resample_filter=[1, 3, 3, 1],
)
VP_CONSTANTS = dict(beta_d=19.9, beta_min=0.1, M=1000, epsilon_t=1e-5)
VE_CONSTANTS = dict(sigma_min=0.02, sigma_max=100)


def edm_denoiser(model: nn.Module, x: Tensor, sigma: Tensor) -> Tensor:
    """D(x; σ) of Karras et al. 2022, table 1, last column."""
    total = sigma**2 + 0.5**2
    output = model(x / total.sqrt(), sigma.flatten().log() / 4)
    return 0.25 / total * x + sigma * 0.5 / total.sqrt() * output


def vp_denoiser(model: nn.Module, x: Tensor, sigma: Tensor) -> Tensor:
    """The first column: t from σ² = e^{19.9 t²/2 + 0.1 t} − 1."""
    t = (torch.sqrt(0.01 + 2 * 19.9 * torch.log(1 + sigma**2)) - 0.1) / 19.9
    return x - sigma * model(x / torch.sqrt(sigma**2 + 1), 999 * t.flatten())


def ve_denoiser(model: nn.Module, x: Tensor, sigma: Tensor) -> Tensor:
    """The second column."""
    return x + sigma * model(x, (sigma.flatten() / 2).log())


EDMS: dict[str, tuple[dict[str, Any], Callable[..., Tensor], tuple[float, float]]] = {
    "EDMPrecond": (dict(sigma_data=0.5, sigma_min=0, sigma_max=math.inf), edm_denoiser, (0, 0)),
    "VPPrecond": (VP_CONSTANTS, vp_denoiser, (0, 0)),
    "VEPrecond": (VE_CONSTANTS, ve_denoiser, (0, 0)),
}


def pickled(
    path: Path, precond: str = "EDMPrecond", *, channels: int = 2, **changes: Any
) -> nn.Module:
    """Write a pickle of EDM; gives the network in it."""
    fourier, sides = precond == "VEPrecond", dict(in_channels=channels, out_channels=channels)
    network = SongUNetConfig(**SONG | sides | (NCSNPP if fourier else {})).build()
    randomise(network, 21)
    arguments = ARGUMENTS | sides | (FOURIER if fourier else {}) | changes.pop("arguments", {})
    constants = EDMS[precond][0] if precond in EDMS else {}
    given = dict(precond=precond, constants=constants, arguments=arguments) | changes
    save_edm(path, network, SOURCE, **given)
    return network.double()


def edm_settings(path: Path, sha256: str | None = None) -> EDMPriorConfig:
    return EDMPriorConfig(format="edm", path=str(path), sha256=sha256)


@pytest.mark.parametrize("precond", EDMS)
def test_a_pickle_gives_its_denoiser(precond: str, tmp_path: Path) -> None:
    """Catches a wrong scale, label or sign of any preconditioning: x̂_0 = D(x_t/α; σ_t/α)."""
    network = pickled(tmp_path / "network.pkl", precond)
    edm.convert(tmp_path / "network.pkl", tmp_path / "network.safetensors")
    prior = prior_of(edm.read(edm_settings(tmp_path / "network.safetensors"), IMAGE), OURS)
    x_t = normal((3, 2, 8, 8), 22)
    alpha, sigma = (over(part, x_t) for part in OURS.marginal(T))
    denoised = (x_t - sigma * prior(x_t, T)) / alpha
    expected = EDMS[precond][1](network, x_t / alpha, sigma / alpha)
    torch.testing.assert_close(denoised, expected, rtol=1e-6, atol=1e-6)


def test_the_range_of_a_pickle(tmp_path: Path) -> None:
    """Catches the σ of another preconditioning."""

    def ends(precond: str) -> list[float]:
        pickled(tmp_path / "network.pkl", precond)
        edm.convert(tmp_path / "network.pkl", tmp_path / "network.safetensors")
        read = edm.read(edm_settings(tmp_path / "network.safetensors"), IMAGE)
        assert read.settings.data_range == "[-1, 1]"
        return list(read.settings.log_snr_range())

    assert ends("EDMPrecond") == pytest.approx([-2 * math.log(s) for s in (0.002, 80)])
    assert ends("VEPrecond") == pytest.approx([-2 * math.log(s) for s in (0.02, 100)])
    integrals = [19.9 * t * t / 2 + 0.1 * t for t in (1e-5, 1.0)]
    assert ends("VPPrecond") == pytest.approx([-math.log(math.expm1(b)) for b in integrals])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "classes": (dict(arguments=dict(label_dim=10)), r"conditioned on classes \(label_dim 10\)"),
    "dhariwal": (dict(model="DhariwalUNet"), "a DhariwalUNet, which is not read"),
    "iddpm": (dict(precond="iDDPMPrecond"), "under iDDPMPrecond, which is not read"),
    "sigma_data": (dict(constants=dict(sigma_data=1.0)), "sigma_data is 1.0, not 0.5"),
    "steps": (
        dict(precond="VPPrecond", constants=VP_CONSTANTS | dict(M=500)),
        "M is 500.0, not 1000.0",
    ),
    "constants": (dict(constants={}), "no network of EDM"),
    "argument": (dict(arguments=dict(channels_per_head=64)), "channels_per_head"),
    "blocks": (dict(arguments=dict(num_blocks=2)), "8x8_block1.norm0.weight is missing"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_other_networks_are_refused(what: str, tmp_path: Path) -> None:
    """Catches a network that is converted and then says something else."""
    changes, message = REFUSED[what]
    pickled(tmp_path / "network.pkl", **changes)
    output = tmp_path / "network.safetensors"
    refused(message, lambda: edm.convert(tmp_path / "network.pkl", output))
    assert not output.exists()


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_no_pickle_runs_anything(protocol: int, tmp_path: Path) -> None:
    """Catches a name that should not be on the list, and a loader that runs the source."""
    path, trace = tmp_path / "network.pkl", tmp_path / "trace"
    inner = pickle.dumps(Malicious(os.system, f"touch {trace}"))
    attempts = {
        "posix.system": Malicious(os.system, f"touch {trace}"),
        "eval": Malicious(eval, f"open({str(trace)!r}, 'w')"),
        "getattr": Malicious(getattr, trace, "touch"),
        "numpy": Malicious(np.load, str(trace)),
        "truncated, or no pickle": Malicious(torch.storage._load_from_bytes, inner),
    }
    for message, malicious in attempts.items():
        path.write_bytes(pickle.dumps({"ema": malicious}, protocol=protocol))
        refused(message, lambda: edm.convert(path, tmp_path / "out"))
    assert not trace.exists()


def test_the_source_in_a_pickle_does_not_run(tmp_path: Path) -> None:
    """Catches EDM's own way of loading: the meta of every object has code in it."""
    path, trace = tmp_path / "network.pkl", tmp_path / "trace"
    save_edm(path, nn.Module(), f"open({str(trace)!r}, 'w')", arguments=ARGUMENTS)
    assert b"open(" in path.read_bytes()
    with edm_modules():  # EDM's own, which would raise
        tree = unpickled(path)
    assert tree["ema"].name == "EDMPrecond"
    assert not trace.exists()


PICKLES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: path.unlink(), "No such file"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-3000]), "truncated"),
    "empty": (lambda path: path.write_bytes(b""), "truncated"),
    "text": (lambda path: path.write_text("weights"), "no pickle"),
    "number": (lambda path: path.write_bytes(pickle.dumps(3)), "no network of EDM"),
    "other": (lambda path: path.write_bytes(pickle.dumps({"ema": {}})), "no network of EDM"),
}


@pytest.mark.parametrize("damage", PICKLES)
def test_a_damaged_pickle_is_refused(damage: str, tmp_path: Path) -> None:
    """Catches a traceback."""
    path = tmp_path / "network.pkl"
    pickled(path)
    PICKLES[damage][0](path)
    refused(PICKLES[damage][1], lambda: edm.convert(path, tmp_path / "network.safetensors"))


CONVERTED: dict[str, tuple[Callable[[Path], Any], ImageConfig, str]] = {
    "missing": (lambda path: path.unlink(), IMAGE, "does not exist"),
    "truncated": (
        lambda path: path.write_bytes(path.read_bytes()[:-10]),
        IMAGE,
        "or truncated; convert its pickle",
    ),
    "a pickle": (lambda path: pickled(path), IMAGE, "convert its pickle"),
    "channels": (lambda path: None, ImageConfig(channels=1, size=8), "have channels 2"),
    "size": (lambda path: None, ImageConfig(channels=2, size=16), "have size 8"),
}


@pytest.mark.parametrize("what", CONVERTED)
def test_a_converted_file_that_does_not_fit_is_refused(what: str, tmp_path: Path) -> None:
    """Catches images that the network does not know, and a pickle where weights belong."""
    path = tmp_path / "network.safetensors"
    pickled(tmp_path / "network.pkl")
    edm.convert(tmp_path / "network.pkl", path)
    change, image, message = CONVERTED[what]
    change(path)
    refused(message, lambda: edm.read(edm_settings(path), image))


def test_another_converted_file_is_refused(tmp_path: Path) -> None:
    """Catches a digest that is not compared."""
    pickled(tmp_path / "network.pkl")
    edm.convert(tmp_path / "network.pkl", path := tmp_path / "network.safetensors")
    refused("its SHA-256 is", lambda: edm.read(edm_settings(path, "0" * 64), IMAGE))

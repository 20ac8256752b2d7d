"""Parameters of trainings that take a few steps, whatever params.yaml says; random weights."""

import subprocess
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from scorevae.config import Config, parse, read_tree
from scorevae.networks.conditional import DiffusionDecoderHeader
from scorevae.networks.corrector import CorrectorHeader
from scorevae.networks.encoder import EncoderHeader, build_encoder
from scorevae.networks.prior import PriorHeader, PriorUNet
from scorevae.networks.vae import VAE, VAEHeader
from scorevae.networks.weights import save_weights
from scorevae.runtime.files import sha256
from scorevae.sde import build_sde

SHIPPED = Path(__file__).resolve().parents[1] / "params.yaml"
EVALUATE: dict[str, dict[str, Any]] = {
    "likelihood": {"images": 3, "repeats": 2, "draws": 2, "ode_images": 2},
    "samplers": {"images": 2, "evaluations": [3], "grids": ["log_snr"]},
    "guidance": {"images": 2, "weights": [0.0, 1.0]},
    "trade": {"images": 2, "noise_scales": [0.0, 1.0], "guidance": [1.0], "means": [1, 2]},
    "perception": {"images": 6},
    "probes": {"images": 60, "train_images": 60, "neighbours": 3, "times": [0.0, 0.5]},
    "embedding": {"images": 12},
    "interpolations": {"images": 1, "steps": 3},
    "edits": {"images": 4, "strengths": [0.0, 1.0]},
    "draws": {"images": 2, "count": 2},
    "shuffled": {"images": 3},
    "quality": {"images": 6, "train_images": 60, "steps": 3, "inception": None},
}
NO_PARTS = {f"evaluate.{part}.images": 0 for part in EVALUATE}


def protocol(sampler: str, grid: str, z: str, *, clip: bool) -> dict[str, Any]:
    """A way to reconstruct, in three steps."""
    steps = {"steps": 3, "corrector_snr": 0.16, "noise_scale": 1.0}
    return {"sampler": sampler, "grid": grid, "clip": clip, "z": z} | steps


# What tests count on, for the whole file and for each preset in it.
STATED: dict[str, Any] = {
    "preset": "digits",
    "quick": False,
    "beta": 0.01,
    "variants": [],
    "seed": 0,
    "sde": {
        "kind": "vp", "beta_min": 0.1, "beta_max": 20.0, "sigma_min": 0.01, "sigma_max": 50.0,
        "t_min": 1e-3, "t_max": 1.0,
    },
    "objective": {"weighting": "likelihood", "time": "log_snr", "log_determinant": "full"},
    "reconstruct": {"protocol": "default", "prior": None, "guidance": 1.0, "batch": 250,
                    "precision": "float32"},
    "protocols": {
        "default": protocol("sde_dpm_solver_pp", "log_snr", "mean", clip=True),
        "ode": protocol("dpm_solver_pp", "log_snr", "mean", clip=True),
        "paper": protocol("euler_maruyama", "uniform", "sample", clip=False),
    },
    "evaluate": {"classifier_images": 5000, "active_threshold": 0.01, "figure_images": 3}
    | EVALUATE,
    "presets": {
        "digits": {
            "data": {"source": "digits", "image": {"channels": 1, "size": 8}},
            "lpips": {"net": "alex"},
            "prior": {"network": {"channels": [32, 64], "attention": [], "output": "noise"}},
            "encoder": {"network": {"kind": "resnet", "channels": [32, 64], "attention": [],
                                    "patch": 1, "linear": False}},
            "corrector": {"network": {"channels": [32, 64], "attention": [], "output": "noise"}},
        },
    },
}  # fmt: skip
TRAINING = {
    "batch": 16, "accumulate": 1, "steps": 4, "learning_rate": 2e-3, "schedule": "cosine",
    "warmup": 1, "clip": 10.0, "ema": 0.99, "precision": "float32", "log_every": 2,
    "validate_every": 2,
}  # fmt: skip
PRESET: dict[str, Any] = {
    "data": {"root": None, "images": None, "test_fraction": 0.2, "split": "auto", "split_seed": 0},
    "flip": False,
    "test_images": None,
    "lpips": {"trunk": None, "required": False},
    "latent": 4,
    "prior": {
        "source": "train",
        "pretrained": None,
        "network": {"blocks": 1, "groups": 4, "dropout": 0.0},
        "time": "log_snr",
        "training": TRAINING,
    },
    "vae": {"error": "squared", "training": TRAINING},
    "encoder": {
        "network": {"blocks": 1, "groups": 4},
        "warm_start": {"clean_share": 0.1, "variance_scale": 0.01, "training": TRAINING},
        "training": TRAINING,
    },
    "corrector": {"network": {"blocks": 1, "groups": 4, "dropout": 0.0}, "training": TRAINING},
    "diffusion_decoder": {"conditioning": "concatenate", "training": TRAINING},
}


def committed_params() -> str:
    """params.yaml as committed, whatever an experiment has made of it; as it is without Git."""
    show = ["git", "-C", str(SHIPPED.parent), "show", "HEAD:./params.yaml"]
    try:
        return subprocess.run(show, capture_output=True, check=True).stdout.decode()
    except (OSError, subprocess.CalledProcessError):
        return SHIPPED.read_text(encoding="utf-8")


def tiny_params(**overrides: Any) -> dict[str, Any]:  # noqa: ANN401 (any value of the file)
    """``params.yaml`` made small; overrides have dotted names, given by ``**{}``.

    No sweep or edit of the file reaches a test: it gives the names of presets and protocols, the
    images of all presets but digits and the kinds of their networks, and keys that are new.
    """
    tree = deepcopy(shipped(SHIPPED))
    lay_over(tree, STATED)
    for preset in tree["presets"].values():
        lay_over(preset, PRESET)
        shrink(preset)
    for settings in tree["protocols"].values():
        settings["steps"] = 3
    for name, value in overrides.items():
        put(tree, name, value)
    return tree


@cache
def shipped(path: Path) -> Any:  # noqa: ANN401 (any value of the file)
    """What the file holds, which takes half a second to read."""
    return read_tree(path)


def lay_over(tree: dict[str, Any], values: dict[str, Any]) -> None:
    """Set what is stated, section by section, and leave the rest."""
    for key, value in values.items():
        if isinstance(value, dict):
            lay_over(tree.setdefault(key, {}), value)
        else:
            tree[key] = deepcopy(value)


def shrink(preset: dict[str, Any]) -> None:
    """Few channels, on no more levels than there are; what attends does so on the last."""
    size = preset["data"]["image"]["size"]
    for part in ("prior", "encoder", "corrector"):
        network = preset[part]["network"]
        levels = min(len(network["channels"]), 2 if size < 32 else 3)
        network["channels"] = [8] * (levels - 1) + [16]
        if network["attention"]:
            side = size // network.get("patch", 1)
            network["attention"] = [side // 2 ** (levels - 1)]


def put(tree: dict[str, Any], name: str, value: object) -> None:
    """Set one value by its dotted name."""
    *parents, last = name.split(".")
    for parent in parents:
        tree = tree[parent]
    tree[last] = value


def write_params(path: Path, tree: dict[str, Any]) -> Path:
    """Write a tree as a parameter file and return its path."""
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path


def tiny_config(**overrides: Any) -> Config:  # noqa: ANN401 (any value of the file)
    """The validated :func:`tiny_params`."""
    return parse(Config, tiny_params(**overrides), "tiny")


def scramble(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give every weight a random value, also those that start at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    return network


def write_prior(path: Path, config: Config) -> PriorUNet:
    """A prior with random weights as a file; the same network to compare with."""
    image, settings = config.selected.data.image, config.selected.prior.network
    network = scramble(PriorUNet(image, settings, build_sde(config.sde)))
    save_weights(path, network, PriorHeader(image=image, sde=config.sde, network=settings))
    return network.eval()


def write_encoder(path: Path, config: Config) -> nn.Module:
    """An encoder with random weights as a file; the same network to compare with."""
    preset = config.selected
    image, settings, latent = preset.data.image, preset.encoder.network, preset.latent
    network = scramble(build_encoder(settings, image, latent, build_sde(config.sde)))
    header = EncoderHeader(
        image=image, sde=config.sde, latent=latent, network=settings,
        log_determinant=config.objective.log_determinant,
    )  # fmt: skip
    save_weights(path, network, header)
    return network.eval()


def write_vae(path: Path, config: Config) -> VAE:
    """A VAE with random weights as a file; the same network to compare with."""
    preset = config.selected
    image, settings, latent = preset.data.image, preset.encoder.network, preset.latent
    network = scramble(VAE(settings, image, latent))
    save_weights(path, network, VAEHeader(image=image, latent=latent, network=settings))
    return network.eval()


def header_of_variant(config: Config) -> dict[str, Any]:
    """What the headers of both variants say of image, process, z and encoder."""
    preset = config.selected
    image, encoder = preset.data.image, preset.encoder.network
    return {"image": image, "sde": config.sde, "latent": preset.latent, "encoder": encoder}


def write_corrector(folder: Path, config: Config, *, trained: bool = True) -> nn.Module:
    """A corrector of the folder's prior and encoder, untrained or with random weights."""
    header = CorrectorHeader(
        **header_of_variant(config), network=config.selected.corrector.network,
        prior_sha256=sha256(folder / "prior.safetensors"),
        encoder_sha256=sha256(folder / "encoder.safetensors"),
    )  # fmt: skip
    network = scramble(header.build()) if trained else header.build()
    save_weights(folder / "variants/corrector.safetensors", network, header)
    return network.eval()


def write_diffusion_decoder(folder: Path, config: Config) -> nn.Module:
    """A diffusion decoder with random weights; the same networks to compare with."""
    header = DiffusionDecoderHeader(
        **header_of_variant(config), network=config.selected.prior.network,
        conditioning=config.selected.diffusion_decoder.conditioning,
    )  # fmt: skip
    network = scramble(header.build())
    save_weights(folder / "variants/diffusion_decoder.safetensors", network, header)
    return network.eval()


def save_tiny_models(folder: Path) -> None:
    """Prior and encoder with random weights in a folder, as the training stages name them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_prior(folder / "prior.safetensors", tiny_config())
    write_encoder(folder / "encoder.safetensors", tiny_config())

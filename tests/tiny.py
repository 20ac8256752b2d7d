"""The shipped parameters, shrunk until every training takes a few steps, and random weights."""

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from scorevae.config import Config, parse, read_tree
from scorevae.networks.encoder import EncoderHeader, build_encoder
from scorevae.networks.prior import PriorHeader, PriorUNet
from scorevae.networks.vae import VAE, VAEHeader
from scorevae.networks.weights import save_weights
from scorevae.sde import build_sde

SHIPPED = Path(__file__).resolve().parents[1] / "params.yaml"
TRAINING = {
    "batch": 16,
    "steps": 4,
    "warmup": 1,
    "log_every": 2,
    "validate_every": 2,
}
EVALUATE: dict[str, dict[str, Any]] = {
    "likelihood": {"images": 3, "repeats": 2, "draws": 2, "ode_images": 2},
    "samplers": {"images": 2, "evaluations": [3], "grids": ["log_snr"]},
    "guidance": {"images": 2, "weights": [0.0, 1.0]},
    "probes": {"images": 60, "train_images": 60, "neighbours": 3, "times": [0.0, 0.5]},
    "embedding": {"images": 12},
    "interpolations": {"images": 1, "steps": 3},
    "edits": {"images": 4, "strengths": [0.0, 1.0]},
    "draws": {"images": 2, "count": 2},
    "shuffled": {"images": 3},
    "quality": {"images": 6, "train_images": 60, "steps": 3},
}


def tiny_params(**overrides: Any) -> dict[str, Any]:  # noqa: ANN401 (any value of the file)
    """The shipped ``params.yaml`` made small; overrides have dotted names, given by ``**{}``."""
    tree: Any = read_tree(SHIPPED)
    for preset in tree["presets"].values():
        preset["latent"] = 4
        preset["lpips"] |= {"trunk": None, "required": False}
        size = preset["data"]["image"]["size"]
        channels = [8, 16] if size < 32 else [8, 8, 16]
        for network in (preset["prior"]["network"], preset["encoder"]["network"]):
            network |= {"channels": channels, "blocks": 1, "groups": 4}
            if network["attention"]:
                side = size // network.get("patch", 1)
                network["attention"] = [side // 2 ** (len(channels) - 1)]
        warm_start = preset["encoder"]["warm_start"]
        for part in (preset["prior"], preset["vae"], preset["encoder"], warm_start):
            part["training"] |= TRAINING
    for protocol in tree["protocols"].values():
        protocol["steps"] = 3
    put(tree, "evaluate.figure_images", 3)
    for part, changes in EVALUATE.items():
        tree["evaluate"][part] |= changes
    for name, value in overrides.items():
        put(tree, name, value)
    return tree


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
        image=image,
        sde=config.sde,
        latent=latent,
        network=settings,
        log_determinant=config.objective.log_determinant,
    )
    save_weights(path, network, header)
    return network.eval()


def write_vae(path: Path, config: Config) -> VAE:
    """A VAE with random weights as a file; the same network to compare with."""
    preset = config.selected
    image, settings, latent = preset.data.image, preset.encoder.network, preset.latent
    network = scramble(VAE(settings, image, latent))
    save_weights(path, network, VAEHeader(image=image, latent=latent, network=settings))
    return network.eval()


def save_tiny_models(folder: Path) -> None:
    """Prior and encoder with random weights in a folder, as the training stages name them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_prior(folder / "prior.safetensors", tiny_config())
    write_encoder(folder / "encoder.safetensors", tiny_config())

"""Compiled steps against the same as written, in a process without the checks of shapes.

    python tests/compiled_steps.py BACKEND STEPS OBJECTIVE|decode ...

Those checks wrap every function of the package while tests run, which no compiler reads through.
Prints for each objective the relative difference of the averaged weights and the largest of the
losses, and how many graphs were compiled.
"""

import json
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "src"), str(Path(__file__).parent)]
warnings.simplefilter("error")

import torch
from accelerate import Accelerator
from tiny import scramble, tiny_config
from torch import Tensor, nn

from scorevae.autoencoders.score_vae import ScoreVAE
from scorevae.config import Config
from scorevae.networks.conditional import DiffusionDecoderHeader
from scorevae.networks.corrector import CorrectorHeader
from scorevae.networks.encoder import EncoderHeader, TrainedEncoder, build_encoder
from scorevae.networks.prior import Prior, PriorHeader, PriorUNet
from scorevae.networks.vae import VAE
from scorevae.objectives import (
    CorrectorObjective,
    DiffusionDecoderObjective,
    EncoderObjective,
    PriorObjective,
    VAEObjective,
    WarmStartObjective,
)
from scorevae.runtime import compiled
from scorevae.score import Posterior, prior_score
from scorevae.sde import build_sde
from scorevae.training.loop import fit

TINY = {
    f"presets.digits.{part}.network.channels": [8] for part in ("prior", "encoder", "corrector")
}


CHOSEN = os.environ.get("SCOREVAE_COMPILE", "1")  # of the compiled ones


class NoState:
    def load(self) -> None:
        return None

    def save(self, state: dict[str, Any]) -> None:
        del state


def systems(config: Config) -> dict[str, tuple[nn.Module, Any]]:
    """Each network that is trained, and its objective."""
    preset, sde, latent = config.selected, build_sde(config.sde), config.selected.latent
    image, network, weighting = preset.data.image, preset.encoder.network, config.objective
    prior = scramble(PriorUNet(image, preset.prior.network, sde)).eval().requires_grad_(False)
    encoder = scramble(build_encoder(network, image, latent, sde))
    vae = scramble(VAE(network, image, latent))
    score = prior_score(prior, sde)
    known = {"image": image, "sde": config.sde, "latent": latent, "encoder": network}
    corrector = CorrectorHeader(
        **known, network=preset.corrector.network, prior_sha256="", encoder_sha256=""
    )
    conditional = DiffusionDecoderHeader(
        **known, network=preset.prior.network, conditioning="concatenate"
    )
    frozen = build_encoder(network, image, latent, sde).requires_grad_(False)
    return {
        "prior": (prior, PriorObjective(sde=sde, time="log_snr")),
        "vae": (vae, VAEObjective(latent=latent, beta=0.01, error="squared")),
        "warm_start": (
            encoder, WarmStartObjective(preset.encoder.warm_start, sde=sde, teacher=vae.encoder)
        ),
        "objective": (
            encoder,
            EncoderObjective(weighting, sde=sde, prior=score, beta=0.01, latent=latent),
        ),
        "corrector": (
            corrector.build(),
            CorrectorObjective(
                weighting, sde=sde, latent=latent, posterior=Posterior(score, frozen)
            ),
        ),
        "diffusion_decoder": (
            conditional.build(),
            DiffusionDecoderObjective(weighting, sde=sde, latent=latent, beta=0.01),
        ),
    }  # fmt: skip


def train(name: str, steps: int, *, compile_: bool) -> tuple[Tensor, Tensor]:
    """The averaged weights, and the loss of every step."""
    os.environ["SCOREVAE_COMPILE"] = CHOSEN if compile_ else "0"
    torch.manual_seed(0)
    module, objective = systems(tiny_config(**TINY))[name]
    settings = tiny_config().selected.prior.training
    changes = {"steps": steps, "log_every": 1, "warmup": 10, "learning_rate": 1e-4, "batch": 4}
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    losses: list[float] = []

    def record(step: int, row: dict[str, float]) -> None:
        losses.extend([row["loss"]] if "loss" in row else [])

    result = fit(
        module, objective, lambda step: images, settings.model_copy(update=changes),
        seed=0, name=name, record=record, validate=lambda averaged: {}, state=NoState(),
        accelerator=Accelerator(cpu=True),
    )  # fmt: skip
    return torch.cat([p.flatten() for p in result.parameters()]), torch.tensor(losses)


def decoded(*, compile_: bool) -> tuple[Tensor, Tensor]:
    """Images for some z, three batches of which the last is smaller; their rows' means."""
    os.environ["SCOREVAE_COMPILE"] = CHOSEN if compile_ else "0"
    torch.manual_seed(0)
    config = tiny_config(**TINY)
    preset, sde = config.selected, build_sde(config.sde)
    image, latent, network = preset.data.image, preset.latent, preset.encoder.network
    prior = scramble(PriorUNet(image, preset.prior.network, sde)).eval().requires_grad_(False)
    encoder = scramble(build_encoder(network, image, latent, sde)).eval().requires_grad_(False)
    prior_header = PriorHeader(image=image, sde=config.sde, network=preset.prior.network)
    header = EncoderHeader(
        image=image, sde=config.sde, latent=latent, network=network, log_determinant="full"
    )
    model = ScoreVAE(
        Prior(prior, prior_header), TrainedEncoder(encoder, header), device="cpu",
        sampling=config.sampling, batch=4,
    )  # fmt: skip
    images = model.with_precision("float32").decode(torch.randn(10, latent))
    return images.flatten(), images.flatten(1).mean(dim=1)


def main() -> None:
    compiled.BACKEND, steps = sys.argv[1], int(sys.argv[2])
    counted = torch._dynamo.utils.counters
    for name in sys.argv[3:]:
        counted.clear()
        run = decoded if name == "decode" else partial(train, name, steps)
        (weights, losses), (ours, seen) = (run(compile_=c) for c in (False, True))
        result = {
            "objective": name,
            "weights": ((ours - weights).norm() / weights.norm()).item(),
            "losses": ((seen - losses).abs() / losses.abs()).max().item(),
            "graphs": counted["stats"]["unique_graphs"],
            "breaks": sum(counted["graph_break"].values()),
        }
        print("result", json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

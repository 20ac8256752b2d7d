"""How long a preset takes on this machine, from a few steps of each of its trainings."""

import time
from typing import NamedTuple

import torch
from torch import nn

from scorevae.autoencoders.devices import default_device
from scorevae.config import Config, EvaluateConfig, TrainingConfig
from scorevae.evaluation.part import looked_at, studied
from scorevae.networks.encoder import EncoderHeader
from scorevae.networks.prior import PriorHeader
from scorevae.networks.vae import VAEHeader
from scorevae.objectives import (
    EncoderObjective,
    Objective,
    PriorObjective,
    VAEObjective,
    WarmStartObjective,
)
from scorevae.runtime.arithmetic import chosen_precision
from scorevae.score import prior_score
from scorevae.sde import build_sde
from scorevae.training.step import LossModule

MEASURED = 2  # steps, after one that is not counted
STARTING = 90.0  # seconds that the stages spend on their imports
ODE_EVALUATIONS = 150  # of the prior, about, for one image's likelihood


class Times(NamedTuple):
    """Seconds of one step of each training, and of one image at one step of a sampler."""

    prior: float
    vae: float
    warm_start: float
    encoder: float
    drawing: float


def measure(config: Config) -> Times:
    """Run a few steps on noise; the networks are thrown away."""
    preset, sde, device = config.selected, build_sde(config.sde), default_device()
    image, latent, network = preset.data.image, preset.latent, preset.encoder.network
    form = config.objective.log_determinant
    prior = PriorHeader(image=image, sde=config.sde, network=preset.prior.network).build()
    vae = VAEHeader(image=image, latent=latent, network=network).build()
    encoder = EncoderHeader(
        image=image, sde=config.sde, latent=latent, network=network, log_determinant=form
    ).build()
    for module in (prior, vae, encoder):
        module.to(device)

    def seconds(module: nn.Module, objective: Objective, settings: TrainingConfig) -> float:
        return _step(module, objective, settings, (settings.batch, *image.shape), device)

    phases = preset.prior, preset.vae, preset.encoder.warm_start, preset.encoder
    first = seconds(prior, PriorObjective(sde=sde, time=preset.prior.time), phases[0].training)
    own = VAEObjective(latent=latent, beta=config.beta, error=preset.vae.error)
    second = seconds(vae, own, phases[1].training)
    teacher: nn.Module = vae.encoder
    warm = WarmStartObjective(preset.encoder.warm_start, sde=sde, teacher=teacher)
    third = seconds(encoder, warm, phases[2].training)
    score = prior_score(prior.requires_grad_(False), sde)
    whole = EncoderObjective(
        config.objective, sde=sde, prior=score, beta=config.beta, latent=latent
    )
    fourth = seconds(encoder, whole, phases[3].training)
    # Drawing evaluates the same networks, but differentiates the encoder once instead of twice.
    return Times(first, second, third, fourth, 0.5 * fourth / phases[3].training.batch)


def _step(
    module: nn.Module,
    objective: Objective,
    settings: TrainingConfig,
    shape: tuple[int, ...],
    device: torch.device,
) -> float:
    bf16 = chosen_precision(settings.precision, device) == "bf16"
    loss = LossModule(module, objective, bf16=bf16, compiled=False)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-5)
    generator = torch.Generator(device).manual_seed(0)
    started = 0.0
    for step in range(MEASURED + 1):
        if step == 1:
            started = time.perf_counter()
        images = torch.rand(shape, device=device) * 2 - 1
        optimizer.zero_grad()
        loss(images, objective.draw(images, generator))["loss"].backward()
        optimizer.step()
        next(module.parameters()).sum().item()  # waits for the device
    return (time.perf_counter() - started) / MEASURED


def training_seconds(config: Config, times: Times) -> float:
    """Of all trainings of the preset, variants apart."""
    preset = config.selected
    steps = (
        preset.prior.training.steps,
        preset.vae.training.steps,
        preset.encoder.warm_start.training.steps,
        preset.encoder.training.steps,
    )
    return sum(count * each for count, each in zip(steps, times, strict=False))


def evaluation_seconds(config: Config, images: int, times: Times) -> float:
    """Of reconstruct and evaluate: what they draw of so many test images, counted."""
    evaluate, steps = config.evaluate, config.sampling.steps
    images = min(images, config.selected.test_images or images)
    drawn = steps * (images + _drawn(evaluate, images)) + _tried(evaluate, images)
    return drawn * times.drawing


def _drawn(evaluate: EvaluateConfig, images: int) -> int:
    """Images that the parts draw with the sampler of the run."""
    guidance, trade = (
        studied(evaluate.guidance.images, images),
        studied(evaluate.trade.images, images),
    )
    ways = len(evaluate.trade.guidance) + 1  # and the ODE
    return (
        guidance * len(evaluate.guidance.weights)
        + trade * (ways * len(evaluate.trade.noise_scales) + max(evaluate.trade.means))
        + 2 * looked_at(evaluate.interpolations.images, images) * evaluate.interpolations.steps
        + looked_at(evaluate.edits.images, images, 2) * len(evaluate.edits.strengths)
        + looked_at(evaluate.draws.images, images) * evaluate.draws.count
        + 2 * min(images, evaluate.shuffled.images)
        + (2 * evaluate.quality.images if images >= evaluate.quality.images else 0)  # null then
        + 2 * min(images, evaluate.figure_images * min(evaluate.figure_images, 8))
    )


def _tried(evaluate: EvaluateConfig, images: int) -> int:
    """Evaluations of the networks beside: the study of samplers, and the bounds."""
    samplers, likelihood = evaluate.samplers, evaluate.likelihood
    settings = len(samplers.grids) * 6 * sum(samplers.evaluations)
    tried = settings * studied(samplers.images, images)
    bounded = min(images, likelihood.images) * likelihood.repeats * likelihood.draws
    return tried + bounded + ODE_EVALUATIONS * looked_at(likelihood.ode_images, images)

"""A prior of ours as a folder of diffusers' ``DDPMPipeline``, so that others can use it."""

import copy
import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from scorevae.errors import UserError
from scorevae.networks.pretrained.adapter import DiffusersUNet, ForeignNetwork, PretrainedPrior
from scorevae.networks.pretrained.noise import IndexedNoise
from scorevae.networks.prior import Prior, PriorUNet
from scorevae.runtime.files import replacing
from scorevae.sde import log_snr_range

# The noise levels of :func:`scorevae.networks.time.NoiseLevel` at t_min and t_max.
FIRST, LAST = 50, 1000
Parts = tuple[nn.Module, Tensor, str]  # a U-Net told an index, λ of each, what it predicts
PREDICTION = {"noise": "epsilon", "velocity": "v_prediction", "sample": "sample"}


def export_pipeline(prior: Prior, folder: Path) -> None:
    """Write ``model_index.json``, ``unet/`` and ``scheduler/``, whole or not at all.

    Our U-Net is told the noise level 50 + 950 (λ(t_min) − λ)/(λ(t_min) − λ(t_max)), a grid of 951
    indices from 0 if 50 is taken off: index i has the log-SNR at which that is i + 50. Its inputs
    are at unit scale, so that ᾱ_i = sigmoid(λ_i) whatever the process is. An embedding of
    i + 50 is one of i, turned: sin(w(i + 50)) = sin(wi) cos(50w) + cos(wi) sin(50w) and so on, a
    linear map that goes into the first layer of the time embedding.

    Raises:
        UserError: diffusers has no such network or scheduler; the disk is full.
    """
    from diffusers import DDPMPipeline, DDPMScheduler

    unet, log_snr, output = _parts(prior)
    alphas = torch.sigmoid(log_snr)
    before = torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])
    scheduler = DDPMScheduler(
        num_train_timesteps=len(log_snr),
        trained_betas=(1 - alphas / before).tolist(),
        prediction_type=PREDICTION[output],
        clip_sample=True,
    )
    with replacing(folder) as temporary:
        DDPMPipeline(unet, scheduler).save_pretrained(temporary)


def _parts(prior: Prior) -> Parts:
    network = prior.network
    if isinstance(network, PriorUNet):
        largest, smallest = log_snr_range(network.sde)
        levels = torch.linspace(largest, smallest, LAST - FIRST + 1, dtype=torch.float64)
        return _turned(network, FIRST), levels, network.output
    return _foreign(network, network.settings)


def _foreign(network: PretrainedPrior, settings: ForeignNetwork) -> Parts:
    unet, noise = settings.network, settings.noise
    known = isinstance(unet, DiffusersUNet) and unet.heads is None
    if not (
        known
        and isinstance(noise, IndexedNoise)
        and noise.label_scale == 1
        and settings.prediction in PREDICTION
    ):
        raise UserError(
            f"prior: {settings.origin} is no network of diffusers with a scheduler of indices; it "
            "cannot be written as a DDPMPipeline: use the files that it was imported from"
        )
    levels = torch.tensor(noise.log_snr, dtype=torch.float64)
    return cast(nn.Module, network.network.unet), levels, settings.prediction


def _turned(network: PriorUNet, shift: int) -> nn.Module:
    """The same U-Net, told i where it was told i + shift."""
    unet: Any = copy.deepcopy(network.unet).cpu()
    first = unet.time_embedding.linear_1
    half = first.in_features // 2
    rates = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float64) / half)
    cosine, sine = torch.cos(shift * rates), torch.sin(shift * rates)
    with torch.no_grad():  # diffusers' default: cosines first
        of_cos, of_sin = first.weight.double().split(half, dim=1)
        turned = torch.cat([of_cos * cosine + of_sin * sine, of_sin * cosine - of_cos * sine], 1)
        first.weight.copy_(turned)
    return unet

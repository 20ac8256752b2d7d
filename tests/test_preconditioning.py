"""Velocity output, the linear path of the encoder, and the clamp of x̂_0."""

import math
from typing import Any

import pytest
import torch
from tiny import tiny_config
from torch import Tensor, nn

from scorevae.config import ImageConfig, SDEConfig
from scorevae.networks.encoder import build_encoder, copy_trunk
from scorevae.networks.prior import PriorUNet
from scorevae.networks.time import signal_share
from scorevae.networks.vae import VAE
from scorevae.sampling import clipped, generate
from scorevae.score import denoised_to_score, score_to_denoised
from scorevae.sde import SDE, build_sde, over, perturb

IMAGE = ImageConfig(channels=1, size=8)
KINDS = ("vp", "subvp", "ve")


def process(kind: str) -> SDE:
    tree = tiny_config().sde.model_dump() | {"kind": kind}
    return build_sde(SDEConfig(**tree))


class Velocity(nn.Module):
    """In place of the U-Net: the true v = α' ε − σ' x_0 at unit scale."""

    def __init__(self, sde: SDE, x_0: Tensor, noise: Tensor, t: Tensor) -> None:
        super().__init__()
        alpha, sigma = (over(part, x_0) for part in sde.marginal(t))
        self.v = (alpha * noise - sigma * x_0) / torch.sqrt(alpha**2 + sigma**2)

    def forward(self, x: Tensor, level: Tensor, return_dict: bool) -> tuple[Tensor]:  # noqa: FBT001
        del x, level, return_dict
        return (self.v,)


@pytest.mark.parametrize("kind", KINDS)
def test_velocity_gives_the_noise(kind: str) -> None:
    """Catches a sign or a scale in ε = σ x + α v: exact to rounding for the true v."""
    sde = process(kind)
    settings = tiny_config().selected.prior.network.model_copy(update={"output": "velocity"})
    x_0, noise = torch.randn(4, 1, 8, 8).double(), torch.randn(4, 1, 8, 8).double()
    t = torch.tensor([1e-3, 0.2, 0.7, 1.0]).double()
    network = PriorUNet(IMAGE, settings, sde)
    network.unet = Velocity(sde, x_0, noise, t)
    predicted = network(perturb(sde, x_0, t, noise), t)
    torch.testing.assert_close(predicted, noise, rtol=1e-9, atol=1e-9)


def linear_settings(**changes: Any) -> Any:  # noqa: ANN401
    tree = {"linear": True, "patch": 2, "kind": "resnet", **changes}
    return tiny_config().selected.encoder.network.model_copy(update=tree)


@pytest.mark.parametrize("kind", KINDS)
def test_signal_share(kind: str) -> None:
    """Catches a share that is not 1 for a clean image, α/√(α² + σ²) in between."""
    sde = process(kind)
    t = torch.linspace(0, 1, 7).double()
    share = signal_share(sde, t)
    alpha, sigma = sde.marginal(t)
    torch.testing.assert_close(share, torch.cos(torch.atan2(sigma, alpha)))
    if kind != "ve":  # whose noise at t = 0 is σ_min
        assert share[0] == 1


def test_trunk_of_the_vae_holds_at_time_zero() -> None:
    """Catches a gain, a share or a patch that changes the VAE's mean at t = 0."""
    settings = linear_settings()
    vae = VAE(settings, IMAGE, 4)
    encoder = build_encoder(settings, IMAGE, 4, process("vp"))
    copy_trunk(vae.encoder, encoder)
    x, zeros = torch.randn(3, 1, 8, 8), torch.zeros(3)
    torch.testing.assert_close(encoder(x, zeros).mean, vae.encoder(x, zeros).mean)


def test_mean_is_small_where_there_is_noise_only() -> None:
    """Catches a mean that does not shrink with the signal: c(1) is 1/152 for the paper's VP."""
    sde = process("vp")
    encoder = build_encoder(linear_settings(), IMAGE, 4, sde)
    x = torch.randn(3, 1, 8, 8)
    raw = encoder.linear
    encoder.linear = None
    network = encoder(x, torch.ones(3)).mean
    encoder.linear = raw
    c = signal_share(sde, torch.ones(1)).item()
    assert c == pytest.approx(1 / 152, rel=0.01)
    expected = c * (network + raw.map(x.flatten(1)))
    torch.testing.assert_close(encoder(x, torch.ones(3)).mean, expected)


def test_linear_path_is_the_wiener_filter() -> None:
    """Catches a path that cannot hold the exact posterior of Gaussian data.

    x_0 ~ N(0, λ I), z = x_0[:4]/√λ: E[z|x_t] = α √λ/(α² λ + σ²) x_t[:4], which needs the gain
    √λ/(α² λ + σ²) · √(α² + σ²) on W = first four pixels.
    """
    sde, variance, t = process("vp"), 0.3, torch.tensor([0.4])
    encoder = build_encoder(linear_settings(), IMAGE, 4, sde)
    with torch.no_grad():
        for head in (encoder.head.mean, encoder.head.log_variance):
            head.weight.zero_()
            head.bias.zero_()
        encoder.linear.map.weight.copy_(torch.eye(4, 64))
        alpha, sigma = sde.marginal(t)
        gain = math.sqrt(variance) / (alpha**2 * variance + sigma**2)
        bias = encoder.linear.modulation.bias
        bias[:4] = gain * torch.sqrt(alpha**2 + sigma**2) - 1
    x_t = torch.randn(2, 1, 8, 8)
    expected = alpha * gain * x_t.flatten(1)[:, :4]
    torch.testing.assert_close(encoder(x_t, t.expand(2)).mean, expected)


def test_decoder_adds_the_linear_map() -> None:
    """Catches a decoder that leaves its linear path out, or reshapes it wrongly."""
    vae = VAE(linear_settings(), IMAGE, 4)
    z = torch.randn(2, 4)
    whole = vae.decoder(z)
    linear, vae.decoder.linear = vae.decoder.linear, None
    expected = (z @ linear[0].weight.T).reshape(2, 1, 8, 8)
    torch.testing.assert_close(whole - vae.decoder(z), expected, rtol=1e-4, atol=1e-5)


def test_means_stay_float32_under_autocast() -> None:
    """Catches μ rounded to bfloat16, whose steps are wider than the standard deviations of z."""
    encoder = build_encoder(linear_settings(), IMAGE, 4, process("vp"))
    with torch.autocast("cpu", torch.bfloat16):
        posterior = encoder(torch.randn(2, 1, 8, 8), torch.full((2,), 0.5))
    assert posterior.mean.dtype == posterior.log_variance.dtype == torch.float32


def outside(x_t: Tensor, t: Tensor) -> Tensor:
    """The score of a point mass at 1.7, outside of what an image can be."""
    return denoised_to_score(process("vp"), torch.full_like(x_t, 1.7), x_t, t)


def test_clipped_score_denoises_into_the_range() -> None:
    """Catches a clamp of the score, or of x_t, in place of x̂_0."""
    sde, x_t, t = process("vp"), torch.randn(3, 1, 8, 8).double(), torch.tensor(0.3).double()
    denoised = score_to_denoised(sde, clipped(outside, sde)(x_t, t), x_t, t)
    torch.testing.assert_close(denoised, torch.ones_like(x_t), rtol=0, atol=1e-12)


@pytest.mark.parametrize("clip", [True, False])
def test_generate_clips_when_asked(clip: bool) -> None:  # noqa: FBT001
    """Catches a protocol's ``clip`` that nobody reads."""
    sampling = tiny_config().sampling.model_copy(update={"clip": clip})
    x = generate(outside, process("vp"), torch.randn(2, 1, 8, 8), sampling)
    torch.testing.assert_close(x, torch.full_like(x, 1.0 if clip else 1.7), rtol=1e-5, atol=1e-5)

"""Encoders, decoders and the prior's U-Net: shapes, time, and that every weight takes part."""

import math

import pytest
import torch
from oracles import normal, randomise, scalar, vector
from torch import Tensor, nn

from scorevae.config import EncoderNetworkConfig, ImageConfig, UNetConfig
from scorevae.errors import UserError
from scorevae.networks.encoder import (
    LOG_VARIANCE_RANGE,
    ConvEncoder,
    build_encoder,
    copy_trunk,
    soft_bound,
)
from scorevae.networks.prior import PriorUNet
from scorevae.networks.time import TimeEmbedding, noise_level, unit_scale
from scorevae.networks.vae import VAE, build_decoder
from scorevae.sde import SDE, VPSDE, LinearRate, perturb

KINDS = ("conv", "resnet")
IMAGE = ImageConfig(channels=2, size=8)
LATENT = 3
VP = VPSDE(LinearRate(0.1, 20.0), t_min=1e-3)


def settings_of(kind: str, channels: list[int] | None = None) -> EncoderNetworkConfig:
    return EncoderNetworkConfig(kind=kind, channels=channels or [4, 8], blocks=1, groups=2)


def encoder_of(kind: str, sde: SDE | None) -> nn.Module:
    """A float64 encoder without a weight that is zero."""
    return randomise(build_encoder(settings_of(kind), IMAGE, LATENT, sde).double(), 0)


def unet(sde: SDE, size: int = 8) -> PriorUNet:
    settings = UNetConfig(channels=[8, 16], blocks=1, attention=[4], groups=4, dropout=0.0)
    return PriorUNet(ImageConfig(channels=2, size=size), settings, sde).eval()


def assert_gradients_everywhere(network: nn.Module) -> None:
    for name, weight in network.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


# --- encoders --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_encoders_have_the_shapes_they_promise(sde: SDE, kind: str) -> None:
    """A latent of the wrong width, or one row for a scalar time."""
    for process in (None, sde):
        encoder = encoder_of(kind, process)
        for t in (scalar(0.5), vector(0.1, 0.2, 0.3, 0.4, 0.5)):
            posterior = encoder(normal((5, 2, 8, 8), 0), t)
            assert posterior.mean.shape == (5, LATENT)
            assert posterior.log_variance.shape == (5, LATENT)


@pytest.mark.parametrize("kind", KINDS)
def test_scalar_and_batched_times_agree(sde: SDE, kind: str) -> None:
    """Times broadcast over the wrong axis."""
    encoder, x_t = encoder_of(kind, sde), normal((5, 2, 8, 8), 0)
    single = encoder(x_t, scalar(0.3))
    batched = encoder(x_t, torch.full((5,), 0.3, dtype=torch.float64))
    torch.testing.assert_close(single, batched, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_each_image_has_its_own_time(sde: SDE, kind: str) -> None:
    """The first image's time used for all, or a time that is ignored."""
    encoder, x_t, t = encoder_of(kind, sde), normal((3, 2, 8, 8), 0), vector(0.0, 0.3, 0.9)
    together = encoder(x_t, t)
    for i in range(3):
        alone = encoder(x_t[i : i + 1], t[i])
        torch.testing.assert_close(together.mean[i], alone.mean[0], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(together.mean, encoder(x_t, scalar(0.3)).mean)


@pytest.mark.parametrize("kind", KINDS)
def test_clean_images_are_an_input_of_their_own(sde: SDE, kind: str) -> None:
    """λ = ∞ at t = 0 reaching the network as inf or nan, or t = 0 taken for t_min.

    Taken for one, q(z|x_0, 0) could be no more certain than q(z|x_t, t_min).
    """
    encoder = encoder_of(kind, sde)
    x_0 = normal((2, 2, 8, 8), 0).requires_grad_()
    clean, early = encoder(x_0, scalar(0.0)), encoder(x_0, scalar(sde.t_min))
    (gradient,) = torch.autograd.grad(clean.mean.sum() + clean.log_variance.sum(), x_0)
    for tensor in (*clean, gradient):
        assert torch.all(tensor.isfinite())
    assert not torch.allclose(clean.mean, early.mean)
    assert not torch.allclose(clean.log_variance, early.log_variance)


@pytest.mark.parametrize("kind", KINDS)
def test_encoders_without_a_process_ignore_time(kind: str) -> None:
    """A VAE whose latents depend on a time it does not have."""
    encoder, x_0 = encoder_of(kind, None), normal((2, 2, 8, 8), 0)
    early, late = (encoder(x_0, scalar(t)) for t in (0.0, 0.9))
    assert torch.equal(early.mean, late.mean)
    assert torch.equal(early.log_variance, late.log_variance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("timed", [True, False])
def test_gradients_reach_every_weight_of_the_encoder(sde: SDE, kind: str, timed: bool) -> None:
    """A layer that is built and not called."""
    encoder = encoder_of(kind, sde if timed else None)
    t = vector(0.1, 0.4, 0.8)
    posterior = encoder(normal((3, 2, 8, 8), 0), t)
    (posterior.mean.square().sum() + posterior.log_variance.square().sum()).backward()
    assert_gradients_everywhere(encoder)


@pytest.mark.parametrize("kind", KINDS)
def test_untrained_encoders_start_at_unit_variance(sde: SDE, kind: str) -> None:
    """A first step at variances so small that the score of q is astronomic."""
    encoder = build_encoder(settings_of(kind), IMAGE, LATENT, sde).double()
    log_variance = encoder(normal((4, 2, 8, 8), 0), scalar(0.5)).log_variance
    low, high = LOG_VARIANCE_RANGE
    allowed = math.exp(low) + 1.1 * math.exp(-high)
    assert log_variance.abs().max() <= allowed  # soft_bound of zero, see below


def test_soft_bound_stays_inside_and_is_the_identity_in_the_middle() -> None:
    """A bound that leaks, or one that bends values it should leave alone.

    softplus(u) = u + δ with 0 < δ < e^{−u}: twice this leaves x within e^{−(x − low)} above and
    e^{δ − (high − x)} below. At −∞ the result is low − e^{−(high − low)}, 2e-9 here.
    """
    low, high = -12.0, 8.0
    x = torch.linspace(-60, 60, 4801, dtype=torch.float64)
    bounded = soft_bound(x, low, high)
    assert bounded.min() >= low - 1.01 * math.exp(low - high)
    assert bounded.max() <= high
    assert torch.all(bounded.diff() >= 0)
    middle = (x > low + 2) & (x < high - 2)
    inside, moved = x[middle], (bounded - x)[middle]
    rounding = 3e-9  # torch's softplus is the identity beyond 20, where δ < 2.1e-9
    delta = torch.exp(low - inside)
    assert torch.all(moved <= delta + rounding)
    assert torch.all(moved >= -torch.exp(delta + inside - high) - rounding)


def test_soft_bound_is_smooth() -> None:
    """A hard clamp: no gradient returns a variance that has run away."""
    x = torch.linspace(-13, 5, 50, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(soft_bound(x, -10.0, 3.0).sum(), x)
    assert torch.all((slope > 0) & (slope < 1))


def test_copied_trunk_gives_the_vaes_means_at_every_time() -> None:
    """Time that disturbs the copied weights from the start, or a layer not copied."""
    source = encoder_of("resnet", None)
    target = build_encoder(settings_of("resnet"), IMAGE, LATENT, VP).double()
    copy_trunk(source, target)
    x = normal((4, 2, 8, 8), 1)
    expected = source(x, scalar(0.0)).mean
    for t in (0.0, 0.01, 0.5, 1.0):
        torch.testing.assert_close(target(x, scalar(t)).mean, expected, rtol=1e-10, atol=1e-10)
    assert torch.all(target(x, scalar(0.5)).log_variance.abs() < 0.1)  # its own, near one


def test_copied_trunk_of_the_convolutional_encoder() -> None:
    """The heads differ in width, so the trunk alone is shared; and it must be."""
    source = encoder_of("conv", None)
    target = build_encoder(settings_of("conv"), IMAGE, LATENT, VP).double()
    head = {k: v.clone() for k, v in target.head.state_dict().items()}
    copy_trunk(source, target)
    assert isinstance(target, ConvEncoder)
    x = normal((4, 2, 8, 8), 1)
    torch.testing.assert_close(target.trunk(x), source.trunk(x), rtol=0, atol=0)
    for name, weight in target.head.state_dict().items():
        assert torch.equal(weight, head[name]), name


# --- decoders --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [[4], [4, 8], [4, 4, 8]])
def test_decoders_mirror_the_encoders(kind: str, channels: list[int]) -> None:
    """An upsampling too many or too few: images of another size than those encoded."""
    vae = VAE(settings_of(kind, channels), IMAGE, LATENT)
    x = normal((2, 2, 8, 8), 0).float()
    z = vae.encoder(x, torch.zeros(2)).mean
    assert vae.decoder(z).shape == x.shape


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_weight_of_the_decoder(kind: str) -> None:
    """A layer that is built and not called."""
    decoder = randomise(build_decoder(settings_of(kind), IMAGE, LATENT).double(), 0)
    decoder(normal((3, LATENT), 0)).square().sum().backward()
    assert_gradients_everywhere(decoder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", [lambda s, i: build_encoder(s, i, LATENT, None), None])
def test_images_that_cannot_be_halved_are_refused(kind: str, build) -> None:
    """A crash deep inside a layer in place of a message that names the key."""
    build = build or (lambda settings, image: build_decoder(settings, image, LATENT))
    with pytest.raises(UserError, match="channels"):
        build(settings_of(kind, [4, 4, 4]), ImageConfig(channels=1, size=10))


# --- time ------------------------------------------------------------------------------------


def test_noise_level_runs_from_zero_to_a_thousand(sde: SDE) -> None:
    """A level reversed, unbounded at t = 0, or not linear in λ where training samples."""
    t = torch.linspace(sde.t_min, 1, 300, dtype=torch.float64)
    level = noise_level(sde, t)
    slope = level.diff() / sde.log_snr(t).diff()
    assert torch.all(slope < 0)
    # Levels of 1000 are rounded to 1e-13, their gaps are of order one.
    torch.testing.assert_close(slope, slope.mean().expand(299), rtol=1e-9, atol=0)
    ends = noise_level(sde, vector(0.0, sde.t_min, 1.0))
    torch.testing.assert_close(ends, vector(0, 50, 1000), rtol=1e-12, atol=1e-10)
    below = torch.linspace(0, sde.t_min, 20, dtype=torch.float64)
    assert torch.all(noise_level(sde, below).diff() > 0)
    single = noise_level(sde, torch.tensor([0.0, sde.t_min, 1.0]))
    assert torch.all((single >= 0) & (single <= 1000))


def test_unit_scale(sde: SDE) -> None:
    """VE images of size 50 fed to the network as they are."""
    t, n = vector(0.0, 0.5, 1.0), 20_000
    noise, x_0 = normal((3, n), 0), normal((3, n), 1)
    scaled = unit_scale(sde, perturb(sde, x_0, t, noise), t)
    variance = scaled.square().mean(1)
    # Of χ²_n/n: standard deviation √(2/n).
    assert torch.all((variance - 1).abs() <= 5 * (2 / n) ** 0.5)
    if isinstance(sde, VPSDE):
        torch.testing.assert_close(unit_scale(sde, x_0, t), x_0, rtol=1e-12, atol=0)


def test_embedding_tells_times_apart(sde: SDE) -> None:
    """Raw t in [0, 1] into slow sinusoids: an embedding that hardly changes with time."""
    embedding = TimeEmbedding(sde, 16).double()
    seen: list[Tensor] = []
    embedding.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    t = torch.linspace(sde.t_min, 1, 20, dtype=torch.float64)
    assert embedding(t).shape == (20, 16)
    distances = torch.cdist(seen[0], seen[0]) + 2 * torch.eye(20)
    # The fastest pair turns by more than half a radian between neighbours unless it happens to
    # come round, where the slower ones do not.
    assert distances.min() > 0.1


# --- prior -----------------------------------------------------------------------------------


def test_prior_network_predicts_an_image(sde: SDE) -> None:
    """Times of shape () and (batch,) answered differently, or another shape returned."""
    network, x_t = unet(sde), normal((3, 2, 8, 8), 0).float()
    with torch.no_grad():
        single, batched = network(x_t, torch.tensor(0.4)), network(x_t, torch.full((3,), 0.4))
        later, clean = network(x_t, torch.tensor(0.9)), network(x_t, torch.tensor(0.0))
    assert single.shape == x_t.shape
    # One batch, the same float32 operations.
    torch.testing.assert_close(single, batched)
    assert not torch.allclose(single, later)
    assert torch.all(clean.isfinite())


def test_gradients_reach_every_weight_of_the_prior(sde: SDE) -> None:
    """A block that is built and not called."""
    network = unet(sde)
    network(
        normal((3, 2, 8, 8), 0).float(), torch.tensor([0.1, 0.5, 0.9])
    ).square().sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())


def test_prior_refuses_images_that_cannot_be_halved(sde: SDE) -> None:
    """A crash in a skip connection in place of a message that names the key."""
    with pytest.raises(UserError, match="prior.network.channels"):
        unet(sde, size=7)

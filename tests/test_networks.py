"""Encoders, decoders and the prior's U-Net: shapes, time, and that every weight takes part."""

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from oracles import normal, randomise, scalar, seeded, vector
from tiny import SHIPPED, tiny_config
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import linear, scaled_dot_product_attention

from scorevae.config import EncoderNetworkConfig, ImageConfig, UNetConfig, load_config
from scorevae.errors import UserError
from scorevae.networks.encoder import (
    LOG_VARIANCE_RANGE,
    ConvEncoder,
    GaussianHead,
    ResBlock,
    SelfAttention,
    build_encoder,
    copy_trunk,
    middle,
    soft_bound,
)
from scorevae.networks.prior import PriorUNet
from scorevae.networks.time import NoiseLevel, TimeEmbedding, signal_share, unit_scale
from scorevae.networks.vae import VAE, build_decoder
from scorevae.sde import SDE, VESDE, VPSDE, LinearRate, build_sde, over, perturb

# What distinguishes the networks under test; sides of feature maps are those of 8×8 images.
KINDS = {
    "conv": {"kind": "conv"},
    "resnet": {"kind": "resnet"},
    "attention": {"kind": "resnet", "attention": [8]},
    "patch": {"kind": "resnet", "patch": 2},
    "linear": {"kind": "resnet", "linear": True},
}
IMAGE = ImageConfig(channels=2, size=8)
LATENT = 3
ROUNDING = {"rtol": 1e-12, "atol": 1e-12}  # float64, sums of tens of terms of order one
VP = VPSDE(LinearRate(0.1, 20.0), t_min=1e-3)


def settings_of(kind: str, **changes: object) -> EncoderNetworkConfig:
    plain = {"channels": [4, 8], "blocks": 1, "groups": 2}
    plain |= {"attention": [], "patch": 1, "linear": False}
    return EncoderNetworkConfig.model_validate(plain | KINDS[kind] | changes)


def encoder_of(kind: str, sde: SDE | None) -> nn.Module:
    """A float64 encoder without a weight that is zero."""
    return randomise(build_encoder(settings_of(kind), IMAGE, LATENT, sde).double(), 0)


def unet(sde: SDE, size: int = 8, output: str = "noise") -> PriorUNet:
    plain = {"channels": [8, 16], "blocks": 1, "attention": [4], "groups": 4, "dropout": 0.0}
    settings = UNetConfig(**plain, output=output)
    return PriorUNet(ImageConfig(channels=2, size=size), settings, sde).eval()


def assert_gradients_everywhere(network: nn.Module, *outputs: Tensor) -> None:
    """Every weight takes part in the outputs."""
    sum(output.square().sum() for output in outputs).backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_each_image_has_its_own_time(sde: SDE, kind: str) -> None:
    """Catches a latent of the wrong width, times over the wrong axis, one time for all or none.

    And a layer that is built and not called.
    """
    encoder, x_t, t = encoder_of(kind, sde), normal((4, 2, 8, 8), 0), vector(0.0, 0.3, 0.9, 0.5)
    together, single = encoder(x_t, t), encoder(x_t, scalar(0.3))
    for posterior in (together, single):
        assert posterior.mean.shape == posterior.log_variance.shape == (4, LATENT)
    torch.testing.assert_close(single, encoder(x_t, vector(*[0.3] * 4)), **ROUNDING)
    alone = torch.cat([encoder(x_t[i : i + 1], t[i]).mean for i in range(4)])
    torch.testing.assert_close(together.mean, alone, **ROUNDING)
    assert not torch.allclose(together.mean, single.mean)
    assert_gradients_everywhere(encoder, *together)


@pytest.mark.parametrize("kind", KINDS)
def test_clean_images_are_an_input_of_their_own(sde: SDE, kind: str) -> None:
    """Catches λ = ∞ at t = 0 reaching the network as inf or nan, or t = 0 taken for t_min.

    Taken for one, q(z|x_0, 0) could be no more certain than q(z|x_t, t_min).
    """
    encoder, x_0 = encoder_of(kind, sde), normal((2, 2, 8, 8), 0).requires_grad_()
    clean, early = encoder(x_0, scalar(0.0)), encoder(x_0, scalar(sde.t_min))
    (gradient,) = torch.autograd.grad(clean.mean.sum() + clean.log_variance.sum(), x_0)
    assert all(torch.all(tensor.isfinite()) for tensor in (*clean, gradient))
    assert not torch.allclose(clean.mean, early.mean)
    assert not torch.allclose(clean.log_variance, early.log_variance)


@pytest.mark.parametrize("kind", KINDS)
def test_encoders_without_a_process_ignore_time(kind: str) -> None:
    """Catches a VAE whose latents depend on a time it does not have, or are of the wrong width.

    And a layer that is built and not called.
    """
    encoder, x_0 = encoder_of(kind, None), normal((2, 2, 8, 8), 0)
    expected = encoder(x_0, scalar(0.0))
    for t in (scalar(0.9), vector(0.1, 0.9)):
        for ours, theirs in zip(encoder(x_0, t), expected, strict=True):
            assert ours.shape == (2, LATENT)
            assert torch.equal(ours, theirs)
    assert_gradients_everywhere(encoder, *expected)


@pytest.mark.parametrize("kind", KINDS)
def test_untrained_encoders_start_at_unit_variance(sde: SDE, kind: str) -> None:
    """Catches a first step at variances so small that the score of q is astronomic."""
    encoder = build_encoder(settings_of(kind), IMAGE, LATENT, sde).double()
    log_variance = encoder(normal((4, 2, 8, 8), 0), scalar(0.5)).log_variance
    low, high = LOG_VARIANCE_RANGE
    allowed = math.exp(low) + 1.1 * math.exp(-high)  # soft_bound of zero, see below
    assert log_variance.abs().max() <= (2 if kind == "linear" else 1) * allowed  # bound twice


def test_soft_bound_stays_inside_and_is_the_identity_in_the_middle() -> None:
    """Catches a bound that leaks, one that bends values it should leave alone, or a hard clamp.

    softplus(u) = u + δ with 0 < δ < e^{−u}: twice this leaves x within e^{−(x − low)} above and
    e^{δ − (high − x)} below. At −∞ the result is low − e^{−(high − low)}, 2e-9 here. Without a
    slope no gradient would return a variance that has run away.
    """
    low, high = -12.0, 8.0
    x = torch.linspace(-60, 60, 4801, dtype=torch.float64).requires_grad_()
    bounded = soft_bound(x, low, high)
    (slope,) = torch.autograd.grad(bounded.sum(), x)
    x, bounded = x.detach(), bounded.detach()
    near = (x > low - 3) & (x < high + 2)
    assert torch.all((slope[near] > 0) & (slope[near] < 1))
    assert bounded.min() >= low - 1.01 * math.exp(low - high)
    assert bounded.max() <= high
    assert torch.all(bounded.diff() >= 0)
    middle = (x > low + 2) & (x < high - 2)
    inside, moved = x[middle], (bounded - x)[middle]
    rounding = 3e-9  # torch's softplus is the identity beyond 20, where δ < 2.1e-9
    delta = torch.exp(low - inside)
    assert torch.all(moved <= delta + rounding)
    assert torch.all(moved >= -torch.exp(delta + inside - high) - rounding)


def vae_and_copy(kind: str) -> tuple[nn.Module, nn.Module]:
    """A VAE's encoder, and one with time that its trunk was copied to."""
    source = encoder_of(kind, None)
    target = build_encoder(settings_of(kind), IMAGE, LATENT, VP).double()
    copy_trunk(source, target)
    return source, target


@pytest.mark.parametrize("kind", ["resnet", "attention", "patch", "linear"])
def test_copied_trunk_gives_the_vaes_means_at_every_time(kind: str) -> None:
    """Catches time that disturbs the copied weights from the start, or a layer not copied."""
    (source, target), x = vae_and_copy(kind), normal((4, 2, 8, 8), 1)
    expected = source(x, scalar(0.0)).mean
    # The linear path's share of the signal is one at t = 0 only.
    for t in (0.0,) if kind == "linear" else (0.0, 0.01, 0.5, 1.0):
        torch.testing.assert_close(target(x, scalar(t)).mean, expected, rtol=1e-10, atol=1e-10)
    assert torch.all(target(x, scalar(0.5)).log_variance.abs() < 0.1)  # its own, near one


def test_copied_trunk_of_the_convolutional_encoder() -> None:
    """Catches a trunk not shared, or heads that are, although they differ in width."""
    source = encoder_of("conv", None)
    target = build_encoder(settings_of("conv"), IMAGE, LATENT, VP).double()
    head = copy.deepcopy(target.head.state_dict())
    copy_trunk(source, target)
    assert isinstance(target, ConvEncoder)
    x = normal((4, 2, 8, 8), 1)
    torch.testing.assert_close(target.trunk(x), source.trunk(x), rtol=0, atol=0)
    torch.testing.assert_close(target.head.state_dict(), head, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["resnet", "attention", "patch", "linear"])
def test_only_time_and_variance_are_not_copied(kind: str) -> None:
    """Catches a layer that starts at random, which the means above do not read or hardly show."""
    copied, target = (network.state_dict() for network in vae_and_copy(kind))
    left = {n for n, w in target.items() if not torch.equal(w, copied.get(n, w[:0]))}
    own = ("time.", "head.log_variance.")
    assert {n for n in left if not n.startswith(own) and ".modulation." not in n} == set()
    assert {n for n in copied if n.startswith("head.log_variance.")} <= left


def test_convolutional_networks_are_the_published_ones() -> None:
    """Catches levels that halve twice or not at all, and a second convolution in the last one.

    The published code: 3×3 with stride 2, then 3×3, in all levels but the last; the decoder
    mirrors it. A transposed convolution's weight has the shape of the one it turns around.
    """
    vae = VAE(settings_of("conv", channels=[4, 6, 10]), IMAGE, LATENT)
    trunk, layers = vae.encoder.trunk, vae.decoder.layers
    found = [(layer.weight.shape, layer.stride) for layer in trunk if isinstance(layer, nn.Conv2d)]
    expected = [(4, 2, 2), (4, 4, 1), (6, 4, 2), (6, 6, 1), (10, 6, 2)]  # out, in, stride
    assert found == [((out, into, 3, 3), (s, s)) for out, into, s in expected]
    assert [type(layer) for layer in trunk] == [nn.Conv2d, nn.GELU] * 5 + [nn.Flatten]
    assert trunk(torch.zeros(1, 2, 8, 8)).shape == (1, 10)
    mirrored = [(m.weight.shape, m.stride) for m in layers if isinstance(m, nn.ConvTranspose2d)]
    assert mirrored == found[::-1]
    kinds = [nn.Linear, nn.Unflatten, *[nn.GELU, nn.ConvTranspose2d] * 5]
    assert [type(layer) for layer in layers] == kinds


def test_time_enters_the_convolutional_encoder_before_its_last_layer_only() -> None:
    """Catches time in the trunk, which the VAE's copied weights do not know (appendix B.1)."""
    encoder, x = encoder_of("conv", VP), normal((1, 2, 8, 8), 0)
    seen: list[Tensor] = []
    encoder.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for t in (0.1, 0.9):
        encoder(x, scalar(t))
    width = 8 * 2 * 2  # channels and pixels of the smallest feature map
    assert torch.equal(seen[0][:, :width], seen[1][:, :width])
    assert not torch.any(seen[0][:, width:] == seen[1][:, width:])


def linear_encoder() -> nn.Module:
    """Patches and a linear path, as that of celeba64."""
    return build_encoder(settings_of("linear", patch=2), IMAGE, LATENT, VP).double()


def test_mean_is_small_where_there_is_noise_only() -> None:
    """Catches a mean that does not shrink with the signal: c(1) is 1/152 for the paper's VP."""
    encoder, x, t = linear_encoder(), normal((3, 2, 8, 8), 0), scalar(1.0)
    whole = encoder(x, t).mean
    path, encoder.linear = encoder.linear, None
    c = signal_share(VP, t)
    assert c.item() == pytest.approx(1 / 152, rel=0.01)
    torch.testing.assert_close(whole, c * (encoder(x, t).mean + path.map(x.flatten(1))))


def test_linear_path_is_the_wiener_filter() -> None:
    """Catches a path that cannot hold the exact posterior of Gaussian data.

    x_0 ~ N(0, λ I), z = x_0[:3]/√λ: E[z|x_t] = α √λ/(α² λ + σ²) x_t[:3], which needs the gain
    √λ/(α² λ + σ²) · √(α² + σ²) on W = first three pixels.
    """
    encoder, variance, t = linear_encoder(), 0.3, scalar(0.4)
    alpha, sigma = VP.marginal(t)
    gain = math.sqrt(variance) / (alpha**2 * variance + sigma**2)
    with torch.no_grad():
        for weight in encoder.head.parameters():
            weight.zero_()
        encoder.linear.map.weight.copy_(torch.eye(LATENT, 128))
        encoder.linear.modulation.bias[:LATENT] = gain * torch.sqrt(alpha**2 + sigma**2) - 1
    x_t = normal((2, 2, 8, 8), 0)
    torch.testing.assert_close(encoder(x_t, t).mean, alpha * gain * x_t.flatten(1)[:, :LATENT])


def test_decoder_adds_the_linear_map() -> None:
    """Catches a decoder that leaves its linear path out, or reshapes it wrongly."""
    decoder = build_decoder(settings_of("linear", patch=2), IMAGE, LATENT).double()
    z = normal((2, LATENT), 0)
    whole = decoder(z)
    path, decoder.linear = decoder.linear, None
    expected = (z @ path[0].weight.T).reshape(2, 2, 8, 8)
    torch.testing.assert_close(whole - decoder(z), expected)


class Velocity(nn.Module):
    """In place of the U-Net: the true v = α' ε − σ' x_0 at unit scale."""

    def __init__(self, sde: SDE, x_0: Tensor, noise: Tensor, t: Tensor) -> None:
        super().__init__()
        alpha, sigma = (over(part, x_0) for part in sde.marginal(t))
        self.v = (alpha * noise - sigma * x_0) / torch.sqrt(alpha**2 + sigma**2)

    def forward(self, x: Tensor, level: Tensor, return_dict: bool) -> tuple[Tensor]:
        """The velocity, whatever is asked."""
        return (self.v,)


def test_velocity_gives_the_noise(sde: SDE) -> None:
    """Catches a sign or a scale in ε = σ x + α v: exact to rounding for the true v."""
    x_0, noise, t = normal((4, 2, 8, 8), 0), normal((4, 2, 8, 8), 1), vector(1e-3, 0.2, 0.7, 1.0)
    network = unet(sde, output="velocity")
    network.unet = Velocity(sde, x_0, noise, t)
    predicted = network(perturb(sde, x_0, t, noise), t)
    torch.testing.assert_close(predicted, noise, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_become_channels(patch: int) -> None:
    """Catches pixels lost on the way, patches torn apart, or feature maps of another size.

    The first layer is a 3×3 convolution of patches: the corner of a feature map reads its own
    patch and those to the right and below.
    """
    encoder = build_encoder(settings_of("patch", patch=patch, channels=[4]), IMAGE, LATENT, None)
    x = normal((1, 2, 8, 8), 0).float().requires_grad_()
    maps = encoder.stem(x)
    assert maps.shape == (1, 4, 8 // patch, 8 // patch)
    (gradient,) = torch.autograd.grad(maps[0, 0, 0, 0], x, retain_graph=True)
    near = 2 * patch
    assert torch.all(gradient[0, :, :near, :near] != 0)
    assert torch.count_nonzero(gradient) == 2 * near**2


def test_head_stays_in_single_precision_under_autocast() -> None:
    """Catches μ rounded to bfloat16, by more than the deviations that z − μ is divided by."""
    head, features = randomise(GaussianHead(64, LATENT), 0), normal((5, 64), 1).float()
    with torch.autocast("cpu", torch.bfloat16):
        halved = linear(features, head.mean.weight)
        posterior = head(features)
        of_halved = head(halved.repeat(1, 22)[:, :64])
    assert halved.dtype == torch.bfloat16  # the cast was on
    assert {tensor.dtype for tensor in (*posterior, *of_halved)} == {torch.float32}
    assert all(map(torch.equal, posterior, head(features)))


@pytest.mark.parametrize("kind", KINDS)
def test_posteriors_are_single_precision_under_autocast(sde: SDE, kind: str) -> None:
    """Catches a trunk in bfloat16 whose dtype reaches the loss, or crashes the head."""
    encoder, x_t = encoder_of(kind, sde).float(), normal((3, 2, 8, 8), 0).float()
    t = torch.tensor([0.0, 0.3, 0.9])
    with torch.autocast("cpu", torch.bfloat16):
        posterior = encoder(x_t, t)
    for tensor, exact in zip(posterior, encoder(x_t, t), strict=True):
        assert tensor.dtype == torch.float32
        assert torch.all(tensor.isfinite())
        assert not torch.equal(tensor, exact)  # the trunk did run in bfloat16


def attention_of(channels: int, groups: int) -> SelfAttention:
    return randomise(SelfAttention(channels, groups).double(), 0)


def test_attention_is_pytorchs() -> None:
    """Catches softmax over the wrong axis, a wrong scale, another pixel's values, no residual.

    And an order of the pixels that matters, such as height exchanged with width on the way.
    """
    attention, x = attention_of(6, 3), normal((3, 6, 4, 5), 0)
    parts = attention.query_key_value(attention.norm(x)).unflatten(1, (3, 6)).flatten(3)
    query, key, value = parts.transpose(2, 3).unbind(1)  # (batch, pixels, channels)
    mixed = scaled_dot_product_attention(query, key, value)
    expected = x + attention.out(mixed.transpose(1, 2).unflatten(2, (4, 5)))
    # float64: sums of 20 terms of order one, in another order
    torch.testing.assert_close(attention(x), expected, **ROUNDING)
    assert (attention(x) - x).abs().max() > 0.1
    order = torch.randperm(20, generator=seeded(1))

    def permuted(x: Tensor) -> Tensor:
        return x.flatten(2)[:, :, order].unflatten(2, (4, 5))

    torch.testing.assert_close(attention(permuted(x)), permuted(attention(x)), **ROUNDING)


def test_attention_has_second_derivatives() -> None:
    """Catches a fused kernel, which the encoder's objective cannot differentiate."""
    attention, x = attention_of(2, 1), normal((2, 2, 2, 3), 0).requires_grad_()
    assert gradcheck(attention, x)
    assert gradgradcheck(attention, x)


def sides_attended(network: nn.Module, *inputs: Tensor) -> list[int]:
    """Sides of the feature maps that attend to themselves, in the order in which they do."""
    seen: list[int] = []
    for module in network.modules():
        if isinstance(module, SelfAttention):
            module.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[-1]))
    network(*inputs)
    return seen


@pytest.mark.parametrize(
    ("attention", "patch", "expected"),
    [
        ([], 1, []),
        ([8], 1, [8, 8, 4]),
        ([4], 1, [4, 4, 4]),
        ([8, 4], 1, [8, 8, 4, 4, 4]),
        ([4], 2, [4, 4, 2]),
    ],
)
def test_attention_is_where_it_was_asked_for(
    attention: list[int], patch: int, expected: list[int]
) -> None:
    """Catches sides counted after a halving too many, one block left out, or no middle."""
    settings = settings_of("resnet", blocks=2, attention=attention, patch=patch)
    encoder = build_encoder(settings, IMAGE, LATENT, VP)
    assert sides_attended(encoder, torch.zeros(1, 2, 8, 8), torch.tensor(0.5)) == expected
    decoder = build_decoder(settings, IMAGE, LATENT)
    assert sides_attended(decoder, torch.zeros(1, LATENT)) == expected[::-1]


def test_middle_is_that_of_a_ddpm_u_net() -> None:
    """Catches a middle of another width, blocks in another order, or without time."""
    first, attention, last = middle(settings_of("attention"), time_width=6)
    assert isinstance(attention, SelfAttention)
    for block in (first, last):
        assert isinstance(block, ResBlock)
        assert (block.modulation.in_features, block.modulation.out_features) == (6, 2 * 8)
    assert attention.out.in_channels == 8
    assert all(block.modulation is None for block in middle(settings_of("attention"), None)[::2])
    assert middle(settings_of("resnet"), time_width=6) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [[4], [4, 8], [8, 4, 8]])
def test_decoders_mirror_the_encoders(kind: str, channels: list[int]) -> None:
    """Catches an upsampling too many or too few, and a layer that is built and not called."""
    vae = randomise(VAE(settings_of(kind, channels=channels), IMAGE, LATENT).double(), 0)
    x = normal((3, 2, 8, 8), 0)
    decoded = vae.decoder(vae.encoder(x, vector(0, 0, 0)).mean)
    assert decoded.shape == x.shape
    assert_gradients_everywhere(vae.decoder, decoded)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [10, 30])
@pytest.mark.parametrize("build", [partial(build_encoder, sde=None), build_decoder])
def test_images_that_cannot_be_halved_are_refused(
    kind: str, size: int, build: Callable[..., nn.Module]
) -> None:
    """Catches a crash deep inside a layer in place of a message that names the key."""
    settings, image = settings_of(kind, channels=[4, 4, 4]), ImageConfig(channels=1, size=size)
    with pytest.raises(UserError, match="encoder.network: patch .* channels"):
        build(settings, image, LATENT)


@pytest.mark.parametrize("preset", load_config(SHIPPED).presets)
def test_every_preset_can_be_made_small(preset: str) -> None:
    """Catches small parameters that no network accepts, or that drop a preset's attention."""
    config = tiny_config()
    chosen, sde = config.presets[preset], build_sde(config.sde)
    image, settings = chosen.data.image, chosen.encoder.network
    PriorUNet(image, chosen.prior.network, sde)
    VAE(settings, image, chosen.latent)
    modules = build_encoder(settings, image, chosen.latent, sde).modules()
    shipped = load_config(SHIPPED).presets[preset].encoder.network
    expected = 2 if shipped.attention else 0  # its side and the middle
    assert sum(isinstance(module, SelfAttention) for module in modules) == expected


def test_noise_level_runs_from_zero_to_a_thousand(sde: SDE) -> None:
    """Catches a level reversed, unbounded at t = 0, or not linear in λ where training samples."""
    t = torch.linspace(sde.t_min, 1, 300, dtype=torch.float64)
    level = NoiseLevel(sde)(t)
    slope = level.diff() / sde.log_snr(t).diff()
    assert torch.all(slope < 0)
    # Levels of 1000 are rounded to 1e-13, their gaps are of order one.
    torch.testing.assert_close(slope, slope.mean().expand(299), rtol=1e-9, atol=0)
    ends = NoiseLevel(sde)(vector(0.0, sde.t_min, 1.0))
    torch.testing.assert_close(ends, vector(0, 50, 1000), rtol=1e-12, atol=1e-10)
    below = torch.linspace(0, sde.t_min, 20, dtype=torch.float64)
    assert torch.all(NoiseLevel(sde)(below).diff() > 0)
    single = NoiseLevel(sde)(torch.tensor([0.0, sde.t_min, 1.0]))
    assert torch.all((single >= 0) & (single <= 1000))


def test_unit_scale(sde: SDE) -> None:
    """Catches VE images of size 50 fed to the network as they are, or another share of signal."""
    t, n = vector(0.0, 0.5, 1.0), 20_000
    noise, x_0 = normal((3, n), 0), normal((3, n), 1)
    scaled = unit_scale(sde, perturb(sde, x_0, t, noise), t)
    variance = scaled.square().mean(1)
    # Of χ²_n/n: standard deviation √(2/n).
    assert torch.all((variance - 1).abs() <= 5 * (2 / n) ** 0.5)
    if isinstance(sde, VPSDE):
        torch.testing.assert_close(unit_scale(sde, x_0, t), x_0, rtol=1e-12, atol=0)
    alpha, sigma = sde.marginal(t)
    share = signal_share(sde, t)
    torch.testing.assert_close(share, torch.cos(torch.atan2(sigma, alpha)))
    assert isinstance(sde, VESDE) or share[0] == 1  # VE's noise at t = 0 is σ_min


def test_embedding_tells_times_apart(sde: SDE) -> None:
    """Catches raw t in [0, 1] into slow sinusoids: an embedding that hardly changes with time."""
    embedding = TimeEmbedding(sde, 16).double()
    seen: list[Tensor] = []
    embedding.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    t = torch.linspace(sde.t_min, 1, 20, dtype=torch.float64)
    assert embedding(t).shape == (20, 16)
    distances = torch.cdist(seen[0], seen[0]) + 2 * torch.eye(20)
    # The fastest pair turns by more than half a radian between neighbours unless it happens to
    # come round, where the slower ones do not.
    assert distances.min() > 0.1


def test_prior_network_predicts_an_image(sde: SDE) -> None:
    """Catches times of shape () and (batch,) answered differently, or another shape returned.

    And a block that is built and not called.
    """
    network, x_t = unet(sde), normal((3, 2, 8, 8), 0).float()
    with torch.no_grad():
        single, batched = network(x_t, torch.tensor(0.4)), network(x_t, torch.full((3,), 0.4))
        later, clean = network(x_t, torch.tensor(0.9)), network(x_t, torch.tensor(0.0))
    assert single.shape == x_t.shape
    # One batch, the same float32 operations.
    torch.testing.assert_close(single, batched)
    assert not torch.allclose(single, later)
    assert torch.all(clean.isfinite())
    network(x_t, torch.tensor([0.1, 0.5, 0.9])).square().sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())


def test_prior_refuses_images_that_cannot_be_halved(sde: SDE) -> None:
    """Catches a crash in a skip connection in place of a message that names the key."""
    with pytest.raises(UserError, match="prior.network.channels"):
        unet(sde, size=7)


FRESH = """
import sys
import torch
from scorevae.config import ImageConfig, UNetConfig
from scorevae.networks.prior import PriorUNet
from scorevae.sde import VESDE

assert "diffusers" not in sys.modules
settings = UNetConfig(
    channels=[8], blocks=1, attention=[], groups=4, dropout=0.0, output="noise"
)
weights = []
for _ in range(2):
    torch.manual_seed(0)
    network = PriorUNet(ImageConfig(channels=1, size=4), settings, VESDE(0.01, 50.0, 1e-3))
    weights.append(torch.cat([weight.flatten() for weight in network.parameters()]))
assert torch.equal(*weights)
"""


def test_diffusers_is_imported_with_the_first_prior_and_draws_nothing() -> None:
    """Catches seconds of imports for who builds no prior, and an import that moves the seed."""
    subprocess.run([sys.executable, "-c", FRESH], check=True)

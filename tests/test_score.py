"""Scores and Bayes' rule for scores, against the linear-Gaussian oracle."""

import pytest
import torch
from oracles import Network, five_errors, normal, randomise, scalar, seeded, skewed, vector
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from scorevae.config import EncoderNetworkConfig, ImageConfig, SamplingConfig
from scorevae.gaussian import DiagonalGaussian
from scorevae.networks.encoder import ConvEncoder, ResNetEncoder
from scorevae.sampling import SAMPLERS, generate
from scorevae.score import (
    Posterior,
    denoised_to_score,
    latent_score,
    noise_to_score,
    prior_score,
    score_to_denoised,
    score_to_noise,
)
from scorevae.sde import SDE, VPSDE, LinearRate, perturb

VP = VPSDE(LinearRate(0.1, 20.0), t_min=1e-3)


def conv_encoder() -> torch.nn.Module:
    network = ConvEncoder(ImageConfig(channels=1, size=4), 2, [2], VP).double()
    return randomise(network, 0)


def resnet_encoder(**changes: object) -> torch.nn.Module:
    plain = {"channels": [2, 4], "blocks": 1, "groups": 1}
    plain |= {"attention": [], "patch": 1, "linear": False}
    settings = EncoderNetworkConfig.model_validate({"kind": "resnet"} | plain | changes)
    network = ResNetEncoder(ImageConfig(channels=1, size=4), 2, settings, VP).double()
    return randomise(network, 0)


def full_encoder() -> torch.nn.Module:
    return resnet_encoder(attention=[2], patch=2, linear=True)


@pytest.fixture(params=[conv_encoder, resnet_encoder, full_encoder])
def encoder(request) -> torch.nn.Module:
    """A tiny float64 network with weights that are nowhere zero."""
    return request.param()


def images(count: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    t = torch.linspace(0.2, 0.7, count, dtype=torch.float64)
    return normal((count, 1, 4, 4), 1), t, normal((count, 2), 2)


@pytest.mark.parametrize("t", [scalar(0.3), vector(0.01, 0.2, 0.5, 1.0)])
def test_score_noise_and_denoised_are_one_another(sde: SDE, t: torch.Tensor) -> None:
    """A sign or a power of σ that is not undone by the conversion back."""
    score, x_t = normal((4, 3), 0), normal((4, 3), 1)
    tolerance = {"rtol": 1e-10, "atol": 1e-10}
    through_noise = noise_to_score(sde, score_to_noise(sde, score, t), t)
    denoised = score_to_denoised(sde, score, x_t, t)
    torch.testing.assert_close(through_noise, score, **tolerance)
    torch.testing.assert_close(denoised_to_score(sde, denoised, x_t, t), score, **tolerance)


def test_conversions_recover_the_noise_and_the_image(sde: SDE) -> None:
    """Conversions that undo each other but share a wrong sign or scale."""
    x_0, noise, t = normal((4, 3), 0), normal((4, 3), 1), vector(0.01, 0.2, 0.5, 1.0)
    x_t = perturb(sde, x_0, t, noise)
    alpha, sigma = (column[:, None] for column in sde.marginal(t))
    score = -(x_t - alpha * x_0) / sigma**2  # ∇ ln p(x_t|x_0)
    tolerance = {"rtol": 1e-8, "atol": 1e-8}  # VP divides by α_1 = 0.007
    torch.testing.assert_close(score_to_noise(sde, score, t), noise, **tolerance)
    torch.testing.assert_close(score_to_denoised(sde, score, x_t, t), x_0, **tolerance)


@pytest.mark.parametrize("t", [1e-3, 0.05, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("batched", [False, True])
def test_bayes_rule_gives_the_conditional_score(sde: SDE, t: float, batched: bool) -> None:
    """Any error in the sign, scale, time or normaliser of prior + ∇ ln q(z|x_t)."""
    oracle = skewed(sde)
    x_0, z = oracle.sample_data(6, seeded(0)), normal((6, 3), 1)
    time = torch.full((6,), t, dtype=torch.float64) if batched else scalar(t)
    x_t = perturb(sde, x_0, time, normal((6, 3), 2))
    score = oracle.posterior.score(z)
    expected = oracle.conditional_score(x_t, time, z)
    torch.testing.assert_close(score(x_t, time), expected, rtol=1e-9, atol=1e-9)


def test_guidance_scales_the_correction(sde: SDE) -> None:
    """Guidance applied to the prior, or squared."""
    oracle = skewed(sde)
    x_t, z, t = normal((6, 3), 0), normal((6, 3), 1), scalar(0.4)
    prior = oracle.prior_score(x_t, t)
    correction = latent_score(oracle.encode, x_t, t, z)
    for guidance in (0.5, 1.0, 2.5):
        score = oracle.posterior.score(z, guidance=guidance)
        torch.testing.assert_close(
            score(x_t, t), prior + guidance * correction, rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_guidance_is_the_prior_bit_for_bit(sde: SDE, sampler: str) -> None:
    """An encoder that is called after all: 0 · inf is nan, and its time is spent for nothing."""
    oracle = skewed(sde)
    settings = SamplingConfig(
        sampler=sampler, grid="log_snr", steps=6, corrector_snr=0.1, noise_scale=1, clip=False
    )
    x_1 = sde.terminal_std * normal((4, 3), 0)

    def draw(score) -> torch.Tensor:
        source = seeded(1)
        return generate(
            score,
            sde,
            x_1,
            settings,
            noise=lambda x: torch.randn(x.shape, generator=source, dtype=x.dtype),
        )

    def infinite(x_t: torch.Tensor, t: torch.Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(x_t / 0.0, torch.zeros_like(x_t))

    posterior = Posterior(oracle.prior_score, infinite)
    guided = posterior.score(normal((4, 3), 2), guidance=0.0)
    assert torch.equal(draw(guided), draw(oracle.prior_score))


def wavy(x_t: torch.Tensor, t: torch.Tensor) -> DiagonalGaussian:
    """An encoder whose variance depends on x_t: ln Σ = sin(2 x)."""
    return DiagonalGaussian(0.5 * x_t, torch.sin(2 * x_t))


def test_the_normaliser_keeps_the_mean_correction_at_zero() -> None:
    """A dropped ln Σ(x_t): the correction then has the mean ½ ∇ ln Σ over z ~ q(z|x_t)."""
    x_t, t = vector(0.3, -0.7).expand(100_000, 2), scalar(0.5)
    z = wavy(x_t, t).sample(seeded(0))
    full = latent_score(wavy, x_t, t, z)
    dropped = latent_score(wavy, x_t, t, z, log_determinant=False)
    bias = torch.cos(2 * x_t[0])  # ½ d sin(2x)/dx
    assert torch.all(full.mean(0).abs() <= five_errors(full))
    assert torch.all(dropped.mean(0).abs() > five_errors(dropped))
    assert torch.all((dropped.mean(0) - bias).abs() <= five_errors(dropped))


@pytest.mark.parametrize("option", [True, False])
def test_the_posterior_has_the_parity_option(option: bool) -> None:
    """An option that is accepted and ignored, by the correction or by the score."""
    x_t, z, t = normal((3, 2), 0), normal((3, 2), 1), scalar(0.5)
    posterior = Posterior(lambda x, t: torch.zeros_like(x), wavy, log_determinant=option)
    expected = latent_score(wavy, x_t, t, z, log_determinant=option)
    assert torch.equal(posterior.correction(z)(x_t, t), expected)
    assert torch.equal(posterior.score(z)(x_t, t), expected)
    assert not torch.allclose(expected, latent_score(wavy, x_t, t, z, log_determinant=not option))


def test_latent_score_is_the_gradient_of_the_log_density(encoder: torch.nn.Module) -> None:
    """A derivative of a mean over the batch, or one that misses the path through Σ or t."""
    x_t, t, z = images()
    x_t.requires_grad_()
    (expected,) = torch.autograd.grad(encoder(x_t, t).log_prob(z).sum(), x_t)
    torch.testing.assert_close(latent_score(encoder, x_t, t, z), expected, rtol=1e-10, atol=1e-12)


def test_latent_score_can_be_differentiated_twice(encoder: torch.nn.Module) -> None:
    """A detached inner gradient, or an activation without a second derivative."""
    x_t, t, z = images()
    x_t.requires_grad_()
    z.requires_grad_()

    def function(x_t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return latent_score(encoder, x_t, t, z)

    assert gradcheck(function, (x_t, z))
    assert gradgradcheck(function, (x_t, z))


def test_weights_are_trained_through_latent_score(encoder: torch.nn.Module) -> None:
    """A gradient that reaches the weights, but not the right one: compared with differences."""
    x_t, t, z = images()
    names = ["head.mean.weight", "head.log_variance.weight", "time.layers.0.weight"]
    weights = tuple(dict(encoder.named_parameters())[name] for name in names)

    def function(*weights: torch.Tensor) -> torch.Tensor:
        def call(x: torch.Tensor, t: torch.Tensor) -> DiagonalGaussian:
            return functional_call(encoder, dict(zip(names, weights, strict=True)), (x, t))

        return latent_score(call, x_t, t, z)

    # fast_mode compares one random projection: all weights at the price of a few evaluations.
    assert gradcheck(function, weights, fast_mode=True)


def test_samples_do_not_influence_one_another(encoder: torch.nn.Module) -> None:
    """Batch normalisation or any mean over the batch inside the encoder."""
    x_t, t, z = images(4)
    before = latent_score(encoder, x_t, t, z)
    x_t[2], z[2], t[2] = 3.0, -2.0, 0.95
    after = latent_score(encoder, x_t, t, z)
    others = [0, 1, 3]
    torch.testing.assert_close(after[others], before[others], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(after[2], before[2])


@pytest.mark.parametrize("grad_mode", [True, False])
def test_latent_score_leaves_the_callers_state_alone(
    encoder: torch.nn.Module, grad_mode: bool
) -> None:
    """Inputs marked for gradients or changed in place, or gradient mode left switched."""
    x_t, t, z = images()
    copies = [tensor.clone() for tensor in (x_t, t, z)]
    with torch.set_grad_enabled(grad_mode):
        score = latent_score(encoder, x_t, t, z)
        assert torch.is_grad_enabled() is grad_mode
    assert score.requires_grad is grad_mode
    for tensor, copy in zip((x_t, t, z), copies, strict=True):
        assert torch.equal(tensor, copy)
        assert not tensor.requires_grad
        assert tensor.grad is None
    assert all(weight.grad is None for weight in encoder.parameters())


def test_latent_score_carries_a_gradient_to_every_weight(encoder: torch.nn.Module) -> None:
    """A graph cut somewhere: part of the encoder would keep its initial weights."""
    x_t, t, z = images()
    latent_score(encoder, x_t, t, z).square().sum().backward()
    for name, weight in encoder.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


def test_sampling_score_builds_no_graph(encoder: torch.nn.Module) -> None:
    """Graphs kept over hundreds of sampling steps: memory grows until the run dies."""
    x_t, t, z = images()
    score = Posterior(lambda x, t: torch.zeros_like(x), encoder).score(z)
    assert not score(x_t, t).requires_grad


def test_prior_score_divides_by_sigma_and_builds_no_graph(sde: SDE) -> None:
    """A lost sign, a lost σ, or the frozen prior taking part in the gradient."""
    weight = torch.nn.Parameter(scalar(2.0))
    seen = []

    def network(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(t)
        return weight * x_t

    x_t, t = normal((3, 2), 0).requires_grad_(), vector(0.1, 0.5, 1.0)
    score = prior_score(Network(network), sde)(x_t, t)
    assert not score.requires_grad
    assert torch.is_grad_enabled()
    assert torch.equal(seen[0], t)
    expected = -2 * x_t.detach() / sde.marginal(t).sigma[:, None]
    torch.testing.assert_close(score, expected, rtol=1e-12, atol=0)


def test_double_times_reach_single_precision_networks_as_single(sde: SDE) -> None:
    """The samplers' float64 times promoting a float32 network's input."""
    seen = []

    def network(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(t.dtype)
        return x_t

    def single(x_t: torch.Tensor, t: torch.Tensor) -> DiagonalGaussian:
        seen.append(t.dtype)
        return DiagonalGaussian(x_t, torch.zeros_like(x_t))

    x_t = normal((3, 2), 0).float()
    posterior = Posterior(prior_score(Network(network), sde), single)
    score = posterior.score(x_t)(x_t, scalar(0.5))
    assert score.dtype == torch.float32
    assert set(seen) == {torch.float32}

"""Scores and Bayes' rule for scores, against the linear-Gaussian oracle."""

from dataclasses import replace

import pytest
import torch
from oracles import Network, five_errors, normal, randomise, scalar, seeded, skewed, vector
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from scorevae.config import EncoderNetworkConfig, ImageConfig, SamplingConfig
from scorevae.gaussian import DiagonalGaussian
from scorevae.networks.encoder import ConvEncoder, ResNetEncoder
from scorevae.sampling import SAMPLERS, generate
from scorevae.score import (
    Posterior,
    ScoreFn,
    denoised_to_score,
    latent_score,
    noise_to_score,
    of_coarser_code,
    prior_score,
    score_to_denoised,
    score_to_noise,
)
from scorevae.sde import SDE, VPSDE, LinearRate, perturb

VP = VPSDE(LinearRate(0.1, 20.0), t_min=1e-3)


def conv_encoder() -> nn.Module:
    return randomise(ConvEncoder(ImageConfig(channels=1, size=4), 2, [2], VP).double(), 0)


def resnet_encoder(**changes: object) -> nn.Module:
    plain = {"kind": "resnet", "channels": [2, 4], "blocks": 1, "groups": 1}
    plain |= {"attention": [], "patch": 1, "linear": False}
    settings = EncoderNetworkConfig.model_validate(plain | changes)
    return randomise(ResNetEncoder(ImageConfig(channels=1, size=4), 2, settings, VP).double(), 0)


def full_encoder() -> nn.Module:
    return resnet_encoder(attention=[2], patch=2, linear=True)


@pytest.fixture(params=[conv_encoder, resnet_encoder, full_encoder])
def encoder(request) -> nn.Module:
    """A tiny float64 network with weights that are nowhere zero."""
    return request.param()


def images(count: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    t = torch.linspace(0.2, 0.7, count, dtype=torch.float64)
    return normal((count, 1, 4, 4), 1), t, normal((count, 2), 2)


@pytest.mark.parametrize("t", [scalar(0.3), vector(0.01, 0.2, 0.5, 1.0)])
def test_score_noise_and_denoised_are_one_another(sde: SDE, t: Tensor) -> None:
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
    oracle, x_t, z, t = skewed(sde), normal((6, 3), 0), normal((6, 3), 1), scalar(0.4)
    prior, correction = oracle.prior_score(x_t, t), latent_score(oracle.encode, x_t, t, z)
    for guidance in (0.5, 1.0, 2.5):
        found = oracle.posterior.score(z, guidance=guidance)(x_t, t)
        torch.testing.assert_close(found, prior + guidance * correction, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_guidance_is_the_prior_bit_for_bit(sde: SDE, sampler: str) -> None:
    """An encoder that is called after all: 0 · inf is nan, and its time is spent for nothing."""
    oracle, x_1 = skewed(sde), sde.terminal_std * normal((4, 3), 0)
    settings = {"sampler": sampler, "grid": "log_snr", "steps": 6, "corrector_snr": 0.1}

    def draw(score: ScoreFn) -> Tensor:
        source = seeded(1)

        def noise(x: Tensor) -> Tensor:
            return torch.randn(x.shape, generator=source, dtype=x.dtype)

        return generate(
            score, sde, x_1, SamplingConfig(**settings, noise_scale=1, clip=False), noise=noise
        )

    def infinite(x_t: Tensor, t: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(x_t / 0.0, torch.zeros_like(x_t))

    guided = Posterior(oracle.prior_score, infinite).score(normal((4, 3), 2), guidance=0.0)
    assert torch.equal(draw(guided), draw(oracle.prior_score))


def wavy(x_t: Tensor, t: Tensor) -> DiagonalGaussian:
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


def test_latent_score_is_the_gradient_of_the_log_density(encoder: nn.Module) -> None:
    """A derivative of a mean over the batch, or one that misses the path through Σ or t.

    And a graph cut somewhere: part of the encoder would keep its initial weights.
    """
    x_t, t, z = images()
    found = latent_score(encoder, x_t, t, z)
    x_t.requires_grad_()
    (expected,) = torch.autograd.grad(encoder(x_t, t).log_prob(z).sum(), x_t)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    found.square().sum().backward()
    for name, weight in encoder.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


def test_latent_score_can_be_differentiated_twice(encoder: nn.Module) -> None:
    """A detached inner gradient, or an activation without a second derivative."""
    x_t, t, z = images()

    def function(x_t: Tensor, z: Tensor) -> Tensor:
        return latent_score(encoder, x_t, t, z)

    inputs = x_t.requires_grad_(), z.requires_grad_()
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


def test_weights_are_trained_through_latent_score(encoder: nn.Module) -> None:
    """A gradient that reaches the weights, but not the right one: compared with differences."""
    x_t, t, z = images()
    names = ["head.mean.weight", "head.log_variance.weight", "time.layers.0.weight"]
    weights = tuple(dict(encoder.named_parameters())[name] for name in names)

    def function(*weights: Tensor) -> Tensor:
        def call(x: Tensor, t: Tensor) -> DiagonalGaussian:
            return functional_call(encoder, dict(zip(names, weights, strict=True)), (x, t))

        return latent_score(call, x_t, t, z)

    # fast_mode compares one random projection: all weights at the price of a few evaluations.
    assert gradcheck(function, weights, fast_mode=True)


def test_samples_do_not_influence_one_another(encoder: nn.Module) -> None:
    """Batch normalisation or any mean over the batch inside the encoder."""
    x_t, t, z = images(4)
    before = latent_score(encoder, x_t, t, z)
    x_t[2], z[2], t[2] = 3.0, -2.0, 0.95
    after = latent_score(encoder, x_t, t, z)
    others = [0, 1, 3]
    torch.testing.assert_close(after[others], before[others], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(after[2], before[2])


@pytest.mark.parametrize("grad", [True, False])
def test_latent_score_leaves_the_callers_state_alone(encoder: nn.Module, grad: bool) -> None:
    """Inputs marked for gradients or changed in place, or gradient mode left switched.

    And graphs of a posterior, kept over hundreds of sampling steps: the run dies of its memory.
    """
    x_t, t, z = images()
    copies = [tensor.clone() for tensor in (x_t, t, z)]
    sampling = Posterior(lambda x, t: torch.zeros_like(x), encoder).score(z)
    with torch.set_grad_enabled(grad):
        assert latent_score(encoder, x_t, t, z).requires_grad is grad
        assert not sampling(x_t, t).requires_grad
        assert torch.is_grad_enabled() is grad
    for tensor, copy in zip((x_t, t, z), copies, strict=True):
        assert torch.equal(tensor, copy)
        assert not tensor.requires_grad
        assert tensor.grad is None
    assert all(weight.grad is None for weight in encoder.parameters())


def test_prior_score_divides_by_sigma_and_builds_no_graph(sde: SDE) -> None:
    """A lost sign, a lost σ, or the frozen prior taking part in the gradient."""
    weight, seen = nn.Parameter(scalar(2.0)), []

    def network(x_t: Tensor, t: Tensor) -> Tensor:
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
    seen, x_t = [], normal((3, 2), 0).float()

    def network(x_t: Tensor, t: Tensor) -> Tensor:
        seen.append(t.dtype)
        return x_t

    def encoder(x_t: Tensor, t: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(network(x_t, t), torch.zeros_like(x_t))

    posterior = Posterior(prior_score(Network(network), sde), encoder)
    assert posterior.score(x_t)(x_t, scalar(0.5)).dtype == torch.float32
    assert seen == [torch.float32] * 2


def test_a_coarser_code_is_that_of_a_noisier_encoder(sde: SDE) -> None:
    """s² added to the deviation, or to a wrong time's variance; a score that forgets it.

    z + s ε of z = A x_0 + N(0, Γ) is A x_0 + N(0, Γ + s²): the oracle of that Γ.
    """
    oracle, s = skewed(sde), 0.7
    noisier = replace(oracle, Γ=oracle.Γ + s**2)
    coarser = of_coarser_code(oracle.encode, s)
    x_t, z, t = normal((4, 3), 0), normal((4, 3), 1), vector(0.0, 0.01, 0.4, 1.0)
    for found, expected in zip(coarser(x_t, t), noisier.encode(x_t, t), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    score = replace(oracle.posterior, encoder=coarser).score(z[1:])(x_t[1:], t[1:])
    expected = noisier.conditional_score(x_t[1:], t[1:], z[1:])
    torch.testing.assert_close(score, expected, rtol=1e-8, atol=1e-8)

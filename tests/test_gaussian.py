"""DiagonalGaussian against torch.distributions."""

import torch
from oracles import normal, seeded
from torch.distributions import Normal, kl_divergence

from scorevae.gaussian import DiagonalGaussian


def pair() -> tuple[DiagonalGaussian, DiagonalGaussian, torch.Tensor]:
    first = DiagonalGaussian(normal((7, 3), 0), normal((7, 3), 1))
    return first, DiagonalGaussian(normal((7, 3), 2), normal((7, 3), 3)), normal((7, 3), 4)


def reference(gaussian: DiagonalGaussian) -> Normal:
    return Normal(gaussian.mean, torch.exp(0.5 * gaussian.log_variance))


def test_log_prob_is_the_normalised_density() -> None:
    """A lost ½, ln 2π or ln Σ, or a mean over latents in place of the sum.

    And the parity option keeping, or losing, more than the quadratic term.
    """
    q, _, z = pair()
    torch.testing.assert_close(q.log_prob(z), reference(q).log_prob(z).sum(1), rtol=1e-12, atol=0)
    quadratic = -0.5 * ((z - q.mean) ** 2 / q.log_variance.exp()).sum(1)
    torch.testing.assert_close(q.log_prob(z, log_determinant=False), quadratic, rtol=1e-12, atol=0)


def test_kl_divergence() -> None:
    """A wrong sign or ½, variance and log-variance exchanged, a mean over latents.

    And the two Gaussians exchanged: KL is not symmetric.
    """
    q, p, _ = pair()
    # The two cancel different terms: absolute rounding of a few 1e-16 per latent.
    tolerance = {"rtol": 1e-12, "atol": 1e-14}
    expected = kl_divergence(reference(q), Normal(torch.zeros(7, 3), torch.ones(7, 3)))
    torch.testing.assert_close(q.kl_per_latent(), expected, **tolerance)
    torch.testing.assert_close(q.kl_to_standard_normal(), expected.sum(1), **tolerance)
    expected = kl_divergence(reference(q), reference(p)).sum(1)
    torch.testing.assert_close(q.kl_to(p), expected, **tolerance)
    torch.testing.assert_close(q.kl_to(q), torch.zeros(7).double(), rtol=0, atol=0)


def test_kl_keeps_small_values_in_float32() -> None:
    """exp(v) − 1 − v in float32 loses a log-variance of 1e-3 to rounding; expm1 keeps it."""
    q = DiagonalGaussian(torch.zeros(1, 1), torch.full((1, 1), 1e-3))
    exact = 0.25e-6 * (1 + 1e-3 / 3)  # ½ (v²/2 + v³/6)
    # expm1(v) and v agree to 5e-4 of v, so rounding 1.2e-7 grows to 2.4e-4 of the difference.
    torch.testing.assert_close(q.kl_per_latent().item(), exact, rtol=3e-4, atol=0)


def test_samples_carry_gradients_to_both_parameters() -> None:
    """A detached sample: the encoder would learn nothing through z."""
    mean = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    log_variance = normal((4, 2), 0).requires_grad_()
    z = DiagonalGaussian(mean, log_variance).sample(seeded(1))
    to_mean, to_log_variance = torch.autograd.grad(z.sum(), (mean, log_variance))
    torch.testing.assert_close(to_mean, torch.ones_like(mean), rtol=0, atol=0)
    torch.testing.assert_close(to_log_variance, 0.5 * (z - mean), rtol=1e-12, atol=1e-15)


def test_a_sample_is_the_gaussian_at_its_noise() -> None:
    """Standard deviation taken for e^{log-variance}, or noise drawn from the global state.

    Or noise of another shape or dtype, or drawn where none was asked for.
    """
    q, _, noise = pair()
    assert torch.equal(q.at(noise), q.mean + torch.exp(0.5 * q.log_variance) * noise)
    drawn = torch.randn(7, 3, generator=seeded(3), dtype=torch.float64)
    assert torch.equal(q.sample(seeded(3)), q.at(drawn))

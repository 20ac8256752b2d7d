"""DiagonalGaussian against torch.distributions."""

import torch
from oracles import five_errors, normal, seeded
from torch.distributions import Normal, kl_divergence

from scorevae.gaussian import DiagonalGaussian


def pair() -> tuple[DiagonalGaussian, DiagonalGaussian, torch.Tensor]:
    first = DiagonalGaussian(normal((7, 3), 0), normal((7, 3), 1))
    return first, DiagonalGaussian(normal((7, 3), 2), normal((7, 3), 3)), normal((7, 3), 4)


def reference(gaussian: DiagonalGaussian) -> Normal:
    return Normal(gaussian.mean, torch.exp(0.5 * gaussian.log_variance))


def test_log_prob_is_the_normalised_density() -> None:
    """A lost ½, ln 2π or ln Σ, or a mean over latents in place of the sum."""
    q, _, z = pair()
    torch.testing.assert_close(q.log_prob(z), reference(q).log_prob(z).sum(1), rtol=1e-12, atol=0)


def test_without_log_determinant_only_the_quadratic_term_is_left() -> None:
    """The parity option keeping, or losing, more than it says."""
    q, _, z = pair()
    quadratic = -0.5 * ((z - q.mean) ** 2 / q.log_variance.exp()).sum(1)
    torch.testing.assert_close(q.log_prob(z, log_determinant=False), quadratic, rtol=1e-12, atol=0)


def test_kl_to_standard_normal() -> None:
    """A wrong sign or ½, variance and log-variance exchanged, a mean over latents."""
    q, _, _ = pair()
    expected = kl_divergence(reference(q), Normal(torch.zeros(7, 3), torch.ones(7, 3)))
    # The two cancel different terms: absolute rounding of a few 1e-16 per latent.
    torch.testing.assert_close(q.kl_per_latent(), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(q.kl_to_standard_normal(), expected.sum(1), rtol=1e-12, atol=1e-14)


def test_kl_to_another() -> None:
    """The two Gaussians exchanged: KL is not symmetric."""
    q, p, _ = pair()
    expected = kl_divergence(reference(q), reference(p)).sum(1)
    torch.testing.assert_close(q.kl_to(p), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(q.kl_to(q), torch.zeros(7).double(), rtol=0, atol=0)


def test_kl_keeps_small_values_in_float32() -> None:
    """exp(v) − 1 − v in float32 loses a log-variance of 1e-3 to rounding; expm1 keeps it."""
    log_variance = torch.full((1, 1), 1e-3)
    q = DiagonalGaussian(torch.zeros(1, 1), log_variance)
    exact = 0.25e-6 * (1 + 1e-3 / 3)  # ½ (v²/2 + v³/6)
    # expm1(v) and v agree to 5e-4 of v, so rounding 1.2e-7 grows to 2.4e-4 of the difference.
    torch.testing.assert_close(q.kl_per_latent().item(), exact, rtol=3e-4, atol=0)


def test_samples_have_the_stated_moments() -> None:
    """Standard deviation taken for e^{log-variance}, or the mean not added."""
    mean, log_variance = torch.tensor([[1.0, -2.0]]).double(), torch.tensor([[1.5, -1.0]]).double()
    n = 100_000
    q = DiagonalGaussian(mean.expand(n, -1), log_variance.expand(n, -1))
    z = q.sample(seeded(0))
    squared = (z - mean) ** 2
    assert torch.all((z.mean(0) - mean).abs() <= five_errors(z))
    assert torch.all((squared.mean(0) - log_variance.exp()).abs() <= five_errors(squared))


def test_samples_carry_gradients_to_both_parameters() -> None:
    """A detached sample: the encoder would learn nothing through z."""
    mean = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    log_variance = normal((4, 2), 0).requires_grad_()
    z = DiagonalGaussian(mean, log_variance).sample(seeded(1))
    to_mean, to_log_variance = torch.autograd.grad(z.sum(), (mean, log_variance))
    torch.testing.assert_close(to_mean, torch.ones_like(mean), rtol=0, atol=0)
    torch.testing.assert_close(to_log_variance, 0.5 * (z - mean), rtol=1e-12, atol=1e-15)


def test_the_generator_decides_the_sample() -> None:
    """Noise drawn from the global state: runs would not repeat."""
    q, _, _ = pair()
    torch.testing.assert_close(q.sample(seeded(3)), q.sample(seeded(3)), rtol=0, atol=0)
    assert not torch.equal(q.sample(seeded(3)), q.sample(seeded(4)))


def test_a_sample_is_the_gaussian_at_its_noise() -> None:
    """Noise of another shape or dtype, or drawn where none was asked for."""
    q, _, noise = pair()
    assert torch.equal(q.at(noise), q.mean + torch.exp(0.5 * q.log_variance) * noise)
    drawn = torch.randn(7, 3, generator=seeded(3), dtype=torch.float64)
    assert torch.equal(q.sample(seeded(3)), q.at(drawn))

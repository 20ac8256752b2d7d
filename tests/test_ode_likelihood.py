"""The ODE's likelihood against known densities; both likelihoods with trained networks' shapes."""

import math

import pytest
import torch
from oracles import GaussianMixture, five_errors, mainly, normal, scalar, seeded, vector
from tiny import save_tiny_models, tiny_config, write_prior
from torch import Tensor

from scorevae.autoencoders.score_vae import ScoreVAE
from scorevae.errors import UserError
from scorevae.evaluation.bound import likelihood_bound
from scorevae.evaluation.ode import (
    _score_and_divergence,
    flow_to_noise,
    ode_log_density,
    ode_log_likelihood,
    unit_vectors,
)
from scorevae.score import prior_score
from scorevae.sde import SDE, log_snr_range, over
from scorevae.shapes import Data, Times


def mixture(sde: SDE) -> GaussianMixture:
    """Two components of unlike weight and width, whose score has a full Jacobian."""
    means = torch.stack([vector(0.5, -0.3), vector(-0.8, 0.6)])
    return GaussianMixture(sde, vector(0.7, 0.3), means, vector(0.05, 0.2))


def mixture_flow(world: GaussianMixture, x: Tensor, probes: list[Tensor], tolerance: float):
    settings = {"sde": world.sde, "score": world.score, "start": log_snr_range(world.sde)[0]}
    return flow_to_noise(x, probes=probes, tolerance=tolerance, **settings)


@mainly("vp")
def test_the_flow_gives_the_density_of_a_mixture(sde: SDE) -> None:
    """Catches a lost ½, a divergence of the wrong sign or a flow against time.

    ln p_ε(x_ε) = ln p_1(x_1) + the change of volume, point by point. Each of the solver's steps
    (six evaluations) errs by the tolerance, relative to states below 100 of root mean square, and
    the contracting flow does not amplify the sum.
    """
    world, tolerance = mixture(sde), 1e-7
    x = 0.5 * normal((12, 2), 0)
    flow = mixture_flow(world, x, unit_vectors(x), tolerance)
    start = world.log_density(x, scalar(sde.t_min))
    end = world.log_density(flow.x_1, scalar(1.0))
    steps = flow.evaluations / 6
    assert steps * 100 * tolerance < 1e-3
    torch.testing.assert_close(flow.log_volume, start - end, rtol=0, atol=steps * 100 * tolerance)
    assert flow.log_volume.std() > 0.1


@mainly("ve")
def test_random_signs_estimate_the_divergence_without_bias(sde: SDE) -> None:
    """Catches probes of another variance, or a dot product over the whole batch."""
    world = mixture(sde)
    x = vector(0.1, 0.2).expand(1000, 2)
    signs = torch.where(torch.rand(x.shape, generator=seeded(0)) < 0.5, -1.0, 1.0).double()
    exact = mixture_flow(world, x[:1], unit_vectors(x[:1]), 1e-6).log_volume
    drawn = mixture_flow(world, x, [signs], 1e-6).log_volume
    # The tolerance: about 100 steps of 1e-6 relative to states of order 10.
    assert (drawn.mean() - exact).abs() <= five_errors(drawn) + 1e-3
    assert drawn.std() > 0.01


@mainly("ve")
@pytest.mark.parametrize("noise", [0.05, 1.0])
def test_the_ode_density_is_normalised(sde: SDE, noise: float) -> None:
    """Catches a wrong π (its deviation under VE), or the lost volume of x_ε = α_ε x.

    ∫ p dx = 1 whatever the score. Trapezoids on 801 points of a smooth density that is 1e-8 at
    the ends leave only the solver's error, 100 steps of 1e-6.
    """
    world = GaussianMixture(sde, vector(0.6, 0.4), vector(0.5, -0.8)[:, None], vector(0.1, 0.2))
    edge = 6 if noise < 0.5 else 15
    x = torch.linspace(-edge, edge, 801, dtype=torch.float64)[:, None]
    log_density, _ = ode_log_density(
        x, sde=sde, score=world.score, probes=unit_vectors(x), tolerance=1e-6, smallest_noise=noise
    )
    assert torch.trapezoid(log_density.exp(), x[:, 0]).item() == pytest.approx(1, abs=1e-3)


@mainly("subvp")
def test_probabilities_of_grey_values_add_up_to_one(sde: SDE) -> None:
    """Catches bits that belong to another bin width, and data that are not dequantised.

    One pixel, all 256 values. The density has standard deviation 0.2: E_u ln p errs by up to
    0.0078 · 0.7/0.2² · √(1/12/4) = 0.02 for one value, 0.002 for the sum of independent ones.
    """
    world = GaussianMixture(sde, vector(1.0), vector(0.1)[:, None], vector(0.04))
    x_0 = torch.linspace(-1, 1, 256, dtype=torch.float64).reshape(256, 1, 1, 1)

    def score(x_t: Tensor, t: Tensor) -> Tensor:
        return world.score(x_t.flatten(1), t).reshape(x_t.shape)

    settings = {"sde": sde, "prior": score, "repeats": 4, "seed": 0, "tolerance": 1e-4}
    result = ode_log_likelihood(x_0, batch=256, **settings)
    assert result.dimensions == 1
    assert torch.exp(-result.per_image).sum().item() == pytest.approx(1, abs=0.01)
    assert result.total.mean == pytest.approx(result.per_image.mean().item())
    assert result.bits_per_dimension().mean == pytest.approx(result.total.mean / math.log(2))
    expected = result.per_image.std().item() / 16
    assert result.total.image_error == pytest.approx(expected)
    parts = ode_log_likelihood(x_0, batch=100, **settings)
    # Other steps of the solver, each within its tolerance.
    torch.testing.assert_close(parts.per_image, result.per_image, rtol=0, atol=0.02)


def test_the_ode_of_one_repeat_has_no_monte_carlo_error(sde: SDE) -> None:
    """Catches the deviation of a single value (not a number, with a warning)."""
    x_0 = torch.ones(2, 1, 1, 1).double()

    def score(x_t: Data, t: Times) -> Data:  # of standard normal data
        alpha, sigma = sde.marginal(t)
        return -x_t / over(alpha**2 + sigma**2, x_t)

    settings = {"sde": sde, "prior": score, "batch": 2, "seed": 0, "tolerance": 1e-3}
    total = ode_log_likelihood(x_0, repeats=1, **settings).total
    assert total.monte_carlo_error is None
    assert total.scaled(2.0).monte_carlo_error is None
    assert total.image_error > 0
    assert ode_log_likelihood(x_0[:1], repeats=2, **settings).total.image_error is None


@pytest.mark.parametrize(("images", "repeats"), [(0, 1), (1, 0)])
def test_an_ode_of_nothing_is_refused(sde: SDE, images: int, repeats: int) -> None:
    """Catches an empty concatenation."""
    with pytest.raises(UserError, match="give at least one of each"):
        ode_log_likelihood(
            torch.zeros(images, 1, 2, 2), sde=sde, prior=lambda x_t, t: -x_t, repeats=repeats,
            batch=2, seed=0, tolerance=1e-3,
        )  # fmt: skip


# --- trained networks ------------------------------------------------------------------------


def test_a_loaded_model_has_a_bound_and_a_likelihood(tmp_path) -> None:
    """Catches what oracles do not: float32, images, time embeddings, networks without a graph."""
    save_tiny_models(tmp_path)
    model = ScoreVAE.load(tmp_path, device="cpu")
    grey = torch.randint(0, 256, (3, 1, 8, 8), generator=seeded(0))
    x_0 = grey.float() / 127.5 - 1
    bounds = likelihood_bound(
        x_0, sde=model.sde, posterior=model.posterior, repeats=2, draws=1, batch=2, seed=0
    )
    ode = ode_log_likelihood(
        x_0, sde=model.sde, prior=model.posterior.prior, repeats=1, batch=2, seed=0, tolerance=1e-2
    )
    costs = (bounds.prior.per_image, bounds.posterior.per_image, ode.per_image)
    for nats in costs:
        assert nats.shape == (3,)
        assert nats.dtype == torch.float64
        assert nats.isfinite().all()
        assert not nats.requires_grad
    assert bounds.prior.dimensions == ode.dimensions == 64


def test_the_divergence_goes_through_attention_and_no_grad(tmp_path) -> None:
    """Catches fused attention, which has no forward derivative, and a derivative of zero.

    One probe against a central difference of the network in float64: errors of h² = 1e-8.
    """
    config = tiny_config(preset="mnist")
    network = write_prior(tmp_path / "prior.safetensors", config).double()
    assert config.selected.prior.network.attention
    score = prior_score(network, network.sde)
    x, e = normal((2, 1, 28, 28), 0), torch.sign(normal((2, 1, 28, 28), 1))
    t, h = torch.full((2,), 0.5).double(), 1e-4
    _, divergence = _score_and_divergence(score, x, t, [e])
    slope = (score(x + h * e, t) - score(x - h * e, t)) / (2 * h)
    difference = (e * slope).flatten(1).sum(1)
    torch.testing.assert_close(divergence, difference, rtol=1e-4, atol=0)
    assert difference.abs().min() > 1

"""ScoreVAE+: nothing before training, the oracle's minimum at best, and only for its own pair."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracles import LinearGaussian, Network, normal, scalar, seeded, skewed
from test_objectives import COUNT, DISTRIBUTIONS, Skewed, encoder_losses
from tiny import (
    save_tiny_models,
    scramble,
    tiny_config,
    write_corrector,
    write_encoder,
    write_prior,
)
from torch import Tensor, nn

from scorevae.autoencoders.score_vae import ScoreVAE, ScoreVAEPlus
from scorevae.config import ObjectiveConfig
from scorevae.errors import UserError
from scorevae.networks.corrector import CorrectorHeader, TrainedCorrector, load_corrector
from scorevae.networks.encoder import EncoderHeader, load_encoder
from scorevae.networks.prior import PriorHeader, load_prior
from scorevae.networks.weights import read_header, save_weights
from scorevae.objectives import CorrectorObjective, TimeSample
from scorevae.randomness import global_seed
from scorevae.score import Posterior, conditional_score, prior_score
from scorevae.sde import SDE, build_sde


def wrong_pair(oracle: LinearGaussian) -> Posterior:
    """The exact prior and an encoder that is wrong beyond t = 0, by mean and variance."""
    return Posterior(oracle.prior_score, Skewed(oracle, shift=0.3, log_factor=0.5))


def exact_net(oracle: LinearGaussian, posterior: Posterior) -> Network:
    """σ (s_p + ∇ln q − ∇ln p_t(x_t|z)): with it ε̂ is exact."""

    def net(x_t: Tensor, z: Tensor, t: Tensor) -> Tensor:
        sigma = oracle.sde.marginal(t).sigma.reshape(-1, 1)
        return sigma * (posterior.score(z)(x_t, t) - oracle.conditional_score(x_t, t, z))

    return Network(net)


def nothing() -> Network:
    """The corrector before training."""
    return Network(lambda x_t, z, t: torch.zeros_like(x_t))


def objective_of(posterior: Posterior, sde: SDE, **changes: str) -> CorrectorObjective:
    """The corrector's objective of three latents."""
    settings = {"weighting": "likelihood", "time": "log_snr", "log_determinant": "full"}
    return CorrectorObjective(
        ObjectiveConfig(**settings | changes), sde=sde, latent=3, posterior=posterior
    )


def losses_of(oracle: LinearGaussian, posterior: Posterior, net: nn.Module, **changes) -> Tensor:
    """Losses on the images and the draw of ``encoder_losses``."""
    objective = objective_of(posterior, oracle.sde, **changes)
    x_0 = oracle.sample_data(COUNT, seeded(0))
    losses = objective.loss(net, x_0, objective.draw(x_0, seeded(1)))
    assert set(losses) == {"loss"}
    return losses["loss"]


# --- the objective ---------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["likelihood", "simple"])
@pytest.mark.parametrize("time", DISTRIBUTIONS)
def test_without_correction_it_is_the_integral_of_the_pair(
    sde: SDE, weighting: str, time: str
) -> None:
    """A weighting, a draw or a z of its own: the encoder's objective measures the same pair."""
    oracle = skewed(sde)
    pair, settings = wrong_pair(oracle), {"weighting": weighting, "time": time}
    expected = encoder_losses(oracle, pair.encoder, **settings)["diffusion"]
    # The same float64 operations in another order.
    found = losses_of(oracle, pair, nothing(), **settings)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("weighting", ["likelihood", "simple"])
def test_the_exact_correction_reaches_the_oracles_minimum(sde: SDE, weighting: str) -> None:
    """A sign or a σ of c: with the exact one every loss is that of the exact posterior.

    The identity s_p + ∇ln q + c = ∇ln p_t(x_t|z) holds for each draw, not on average only. Where
    terms of 1e5 cancel (VE, σ = 50 and below), float64 leaves 1e-9 of them.
    """
    oracle = skewed(sde)
    pair = wrong_pair(oracle)
    exact = encoder_losses(oracle, weighting=weighting)["diffusion"]
    found = losses_of(oracle, pair, exact_net(oracle, pair), weighting=weighting)
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-7)
    assert found.mean() < losses_of(oracle, pair, nothing(), weighting=weighting).mean()


def test_gradient_is_that_of_regression_on_what_the_pair_leaves(sde: SDE) -> None:
    """A gradient through the frozen pair, or a weight lost: ∂loss/∂net is −w/(σ² p) (r − net)."""
    oracle, x_0 = skewed(sde), skewed(sde).sample_data(50, seeded(0))
    pair = wrong_pair(oracle)
    objective = objective_of(pair, sde)
    draw = times, noise, z_noise = objective.draw(x_0, seeded(1))
    given = normal((50, 3), 2).requires_grad_()
    loss = objective.loss(Network(lambda x_t, z, t: given), x_0, draw)["loss"]
    (gradient,) = torch.autograd.grad(loss.sum(), given)
    alpha, sigma = (part[:, None] for part in sde.marginal(times.t))
    x_t, z = alpha * x_0 + sigma * noise, oracle.encode(x_0, 0 * times.t).at(z_noise)
    residual = noise + sigma * pair.score(z)(x_t, times.t)
    weight = (sde.diffusion(times.t)[:, None] / sigma) ** 2 * times.inverse_density[:, None]
    torch.testing.assert_close(gradient, -weight * (residual - given.detach()))


@pytest.mark.parametrize("log_snr", [3.0, 1.0, -1.0])
def test_the_best_affine_corrector_restores_a_wrong_encoder(sde: SDE, log_snr: float) -> None:
    """A target that is not what is missing: its least squares would be another map of (x_t, z).

    For Gaussian data the exact net is affine at each t: seven coefficients for each of three
    outputs, found by one Newton step, for the loss is quadratic in them. The mean square error of
    fitted values is 7/n times the variance of the residuals, which are the loss itself: 25 times
    that is five standard deviations.
    """
    oracle = skewed(sde)
    pair, n = wrong_pair(oracle), COUNT
    objective = objective_of(pair, sde, weighting="simple")
    one, t = torch.ones(n, dtype=torch.float64), sde.time_of_log_snr(scalar(log_snr))
    x_0 = oracle.sample_data(n, seeded(0))
    draw = TimeSample(t * one, one), normal((n, 3), 1), normal((n, 3), 2)

    def affine(weights: Tensor) -> Network:
        return Network(lambda x_t, z, t: torch.cat([x_t, z, one[: len(z), None]], dim=1) @ weights)

    def loss(weights: Tensor) -> Tensor:
        return objective.loss(affine(weights), x_0, draw)["loss"].mean()

    zero = torch.zeros(7, 3, dtype=torch.float64)
    gradient = torch.autograd.functional.jacobian(loss, zero).flatten()
    hessian = torch.autograd.functional.hessian(loss, zero).reshape(21, 21)
    best = -torch.linalg.solve(hessian, gradient).reshape(7, 3)
    x_t, z, times = normal((1000, 3), 3), normal((1000, 3), 4), t * one[:1000]
    alpha, sigma = (part[:, None] for part in sde.marginal(times))
    fresh = oracle.sample_data(1000, seeded(5))
    x_t, z = alpha * fresh + sigma * x_t, oracle.encode(fresh, 0 * times).at(z)
    difference = affine(best)(x_t, z, times) - exact_net(oracle, pair)(x_t, z, times)
    allowed = 25 * 7 / n * 2 * loss(best)
    missing = exact_net(oracle, pair)(x_t, z, times).square().sum(dim=1).mean()
    assert difference.square().sum(dim=1).mean() <= allowed < missing / 4


def test_prior_and_encoder_are_frozen(tmp_path: Path) -> None:
    """A gradient that reaches the pair, or none that reaches the corrector."""
    config = tiny_config()
    save_tiny_models(tmp_path)
    prior = write_prior(tmp_path / "prior.safetensors", config)
    encoder = write_encoder(tmp_path / "encoder.safetensors", config)
    network, sde = write_corrector(tmp_path, config), build_sde(config.sde)
    pair = Posterior(prior_score(prior, sde), encoder)
    x_0 = torch.randn(4, 1, 8, 8, generator=seeded(0))
    objective = CorrectorObjective(config.objective, sde=sde, latent=4, posterior=pair)
    objective(network, x_0, seeded(1))["loss"].mean().backward()
    assert all(w.requires_grad for part in (prior, encoder) for w in part.parameters())
    assert all(w.grad is None for part in (prior, encoder) for w in part.parameters())
    assert all(w.grad is not None and w.grad.any() for w in network.parameters())


# --- the system ------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["noise", "velocity"])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 1.7])
def test_untrained_corrector_is_scorevae_bit_for_bit(
    tmp_path: Path, output: str, guidance: float
) -> None:
    """Catches a last convolution that is not zero at first: training begins at ScoreVAE."""
    save_tiny_models(tmp_path)
    config = tiny_config(**{"presets.digits.corrector.network.output": output})
    network = write_corrector(tmp_path, config, trained=False)
    assert sum(not w.any() for w in network.conditioned.unet.conv_out.parameters()) == 2
    z = torch.randn(5, 4, generator=seeded(0))
    plain, plus = ScoreVAE.load(tmp_path, device="cpu"), ScoreVAEPlus.load(tmp_path, device="cpu")
    expected = plain.decode(z, guidance=guidance)
    assert torch.equal(plus.decode(z, guidance=guidance), expected)
    assert torch.equal(
        plus.encode(expected.clamp(0, 1)).mean, plain.encode(expected.clamp(0, 1)).mean
    )
    write_corrector(tmp_path, config)
    trained = ScoreVAEPlus.load(tmp_path, device="cpu").decode(z, guidance=guidance)
    assert torch.equal(trained, expected) is (guidance == 0)
    with pytest.raises(UserError, match="corrects for z as it is"):
        plus.with_coarser_code(0.1)


def test_guidance_multiplies_all_that_z_adds(sde: SDE) -> None:
    """γ on ∇ln q alone, or a corrector that is left out of `correction` and so of the bound."""
    oracle = skewed(sde)
    pair = wrong_pair(oracle)
    net, t = exact_net(oracle, pair), torch.full((5,), 0.4, dtype=torch.float64)
    plus = replace(pair, corrector=conditional_score(net, sde))
    x_t, z = normal((5, 3), 0), normal((5, 3), 1)
    prior, exact = oracle.prior_score(x_t, t), oracle.conditional_score(x_t, t, z)
    torch.testing.assert_close(plus.correction(z)(x_t, t), exact - prior)
    torch.testing.assert_close(plus.score(z)(x_t, t), exact)
    guided = plus.score(z, guidance=1.5)(x_t, t)
    torch.testing.assert_close(guided, prior + 1.5 * (exact - prior))


def test_velocity_corrects_v(sde: SDE) -> None:
    """Catches ε̂ corrected by more than α v, or by σ x_t once more: x̂_0 would be off at t = 1."""
    header, x_t, z = corrector_header("velocity"), normal((3, 1, 8, 8), 0), normal((3, 4), 1)
    torch.set_default_dtype(torch.float64)
    velocity = scramble(header.build()).eval()
    noise = scramble(corrector_header("noise").build()).eval()
    t = torch.tensor([1e-3, 0.4, 1.0])
    share = torch.exp(velocity.sde.log_snr(t) / 2)
    share = share / torch.sqrt(1 + share**2)  # α/√(α² + σ²)
    expected = share[:, None, None, None] * noise(x_t, z, t)
    torch.testing.assert_close(velocity(x_t, z, t), expected)


def corrector_header(output: str = "noise") -> CorrectorHeader:
    """Of a tiny corrector, made for files that are not there."""
    config = tiny_config(**{"presets.digits.corrector.network.output": output})
    preset = config.selected
    return CorrectorHeader(
        image=preset.data.image, sde=config.sde, latent=preset.latent,
        encoder=preset.encoder.network, network=preset.corrector.network,
        prior_sha256="0" * 64, encoder_sha256="1" * 64,
    )  # fmt: skip


# --- the file --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["resnet", "conv"])
def test_corrector_survives(tmp_path: Path, kind: str) -> None:
    """Catches weights, settings or fingerprints that are not those that were saved."""
    config = tiny_config(**{"presets.digits.encoder.network.kind": kind})
    paths = [tmp_path / f"{name}.safetensors" for name in ("prior", "encoder")]
    write_prior(paths[0], config)
    write_encoder(paths[1], config)
    network = write_corrector(tmp_path, config)
    path = tmp_path / "variants/corrector.safetensors"
    loaded = load_corrector(path, *paths)
    x_t, z = torch.randn(3, 1, 8, 8), torch.randn(3, 4)
    arguments = x_t, z, torch.tensor([0.0, 0.3, 1.0])
    assert torch.equal(loaded.network(*arguments), network(*arguments))
    assert not torch.equal(loaded.network(x_t, -z, arguments[2]), network(*arguments))  # z is used
    assert not any(w.requires_grad for w in loaded.network.parameters())
    header = read_header(path, CorrectorHeader)
    assert header == loaded.header
    with global_seed(1, "weights"):
        first = header.build().state_dict()
    with global_seed(1, "weights"):
        again = header.build().state_dict()
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert list(first) == list(loaded.network.state_dict())


@pytest.mark.parametrize("role", ["prior", "encoder"])
def test_corrector_of_another_pair_is_refused(tmp_path: Path, role: str) -> None:
    """Catches a correction of other scores taken for one of these: no shape would tell."""
    save_tiny_models(tmp_path)
    write_corrector(tmp_path, tiny_config())
    path = tmp_path / f"{role}.safetensors"
    write, header = {
        "prior": (write_prior, PriorHeader),
        "encoder": (write_encoder, EncoderHeader),
    }[role]
    other = scramble(write(path, tiny_config()), seed=1)
    save_weights(path, other, read_header(path, header))
    expected = (
        rf"^{tmp_path}/variants/corrector.safetensors: a corrector of another {role} "
        rf"\(SHA-256 \w{{12}}…, {path} has \w{{12}}…\); train it again for this one"
    )
    with pytest.raises(UserError, match=expected) as error:
        ScoreVAEPlus.load(tmp_path, device="cpu")
    assert "\n" not in error.value.message


def test_corrector_of_another_process_is_refused(tmp_path: Path) -> None:
    """Catches scores under two processes added up."""
    save_tiny_models(tmp_path)
    header = corrector_header()
    header = header.model_copy(update={"sde": header.sde.model_copy(update={"beta_max": 10.0})})
    pair = (
        load_prior(tmp_path / "prior.safetensors"),
        load_encoder(tmp_path / "encoder.safetensors"),
    )
    with pytest.raises(UserError, match="the corrector's sde is .* train the corrector with"):
        ScoreVAEPlus(*pair, TrainedCorrector(header.build(), header), device="cpu")

"""The diffusion decoder: its objective on the oracle, how z enters, its score beside a prior's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import LinearGaussian, Network, normal, seeded, skewed
from test_objectives import COUNT, DISTRIBUTIONS, assert_lower, encoder_losses
from tiny import scramble, tiny_config, write_diffusion_decoder, write_prior
from torch import Tensor, nn

from scorevae.autoencoders.diffusion_decoder import DiffusionDecoder
from scorevae.config import Config, ObjectiveConfig
from scorevae.errors import UserError
from scorevae.evaluation.bound import likelihood_bound
from scorevae.gaussian import DiagonalGaussian
from scorevae.networks.conditional import (
    ConditionalUNet,
    DiffusionDecoderHeader,
    TrainedDiffusionDecoder,
    load_diffusion_decoder,
)
from scorevae.networks.prior import PriorUNet, load_prior
from scorevae.networks.weights import read_header
from scorevae.objectives import DiffusionDecoderObjective
from scorevae.randomness import global_seed
from scorevae.score import LearnedScore, conditional_score
from scorevae.sde import SDE, build_sde

KEY = "presets.digits.diffusion_decoder.conditioning"
WAYS = ("concatenate", "scale")


def config_of(conditioning: str, **changes: Any) -> Config:
    """Tiny settings with one way of conditioning."""
    return tiny_config(**{KEY: conditioning, **changes})


class Pair(nn.Module):
    """An encoder of (x_0, t) and a noise prediction of (x_t, z, t), two functions."""

    def __init__(self, encoder: Any, decoder: Any) -> None:
        super().__init__()
        self.encoder = Network(encoder)
        self.decoder = decoder


def exact_noise(oracle: LinearGaussian, factor: float = 1.0) -> Any:
    """ε̂ = −σ ∇ln p_t(x_t|z), times a factor."""

    def noise(x_t: Tensor, z: Tensor, t: Tensor) -> Tensor:
        sigma = oracle.sde.marginal(t).sigma.reshape(-1, 1)
        return -factor * sigma * oracle.conditional_score(x_t, t, z)

    return noise


def objective_of(sde: SDE, latent: int = 3, beta: float = 1.0, **changes: str) -> Any:
    """The decoder's objective."""
    settings = {"weighting": "likelihood", "time": "log_snr", "log_determinant": "full"}
    config = ObjectiveConfig(**settings | changes)
    return DiffusionDecoderObjective(config, sde=sde, latent=latent, beta=beta)


def losses_of(oracle: LinearGaussian, decoder: Any, **changes: Any) -> dict[str, Tensor]:
    """Losses beside the exact encoder, on the images and the draw of ``encoder_losses``."""
    objective, x_0 = objective_of(oracle.sde, **changes), oracle.sample_data(COUNT, seeded(0))
    return objective.loss(Pair(oracle.encode, decoder), x_0, objective.draw(x_0, seeded(1)))


# --- the objective ---------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["likelihood", "simple"])
@pytest.mark.parametrize("time", DISTRIBUTIONS)
def test_the_exact_score_has_the_losses_of_the_exact_posterior(
    sde: SDE, weighting: str, time: str
) -> None:
    """A ½, a weight, a z or a β of its own: by Bayes' rule both have one score for every draw.

    The exact posterior's losses are tested against their closed form in test_objectives.py.
    """
    oracle, settings = skewed(sde), {"weighting": weighting, "time": time}
    expected = encoder_losses(oracle, beta=0.3, **settings)
    found = losses_of(oracle, exact_noise(oracle), beta=0.3, **settings)
    # The same float64 numbers by other operations, with σ up to 50.
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_the_exact_score_minimises_the_diffusion_term(sde: SDE, factor: float) -> None:
    """A target that is not the noise: the minimiser would be no score."""
    oracle = skewed(sde)
    best = losses_of(oracle, exact_noise(oracle))["diffusion"]
    assert_lower(best, losses_of(oracle, exact_noise(oracle, factor))["diffusion"])


def test_gradient_of_the_encoder_by_hand(sde: SDE) -> None:
    """A detached z, a z that is the mean, or a rate without gradient or without β.

    With ε̂ = z the gradient by the mean is −w (ε − z) + β μ, by the log-variance
    −½ w (ε − z) std noise + ½ β (Σ − 1), where w = (g/σ)²/p is the weight of the squared error.
    """
    objective, x_0 = objective_of(sde, beta=0.3), normal((6, 3), 0)
    mean, log_variance = (normal((6, 3), n).requires_grad_() for n in (1, 2))
    draw = times, noise, z_noise = objective.draw(x_0, seeded(3))
    pair = Pair(lambda x, t: DiagonalGaussian(mean, log_variance), lambda x_t, z, t: z)
    losses = objective.loss(pair, x_0, draw)
    found = torch.autograd.grad(losses["loss"].sum(), (mean, log_variance))
    weight = (sde.diffusion(times.t) / sde.marginal(times.t).sigma) ** 2 * times.inverse_density
    std = torch.exp(0.5 * log_variance)
    pull = -weight[:, None] * (noise - mean - std * z_noise)
    by_mean = pull + 0.3 * mean
    by_log_variance = 0.5 * pull * std * z_noise + 0.15 * (std**2 - 1)
    torch.testing.assert_close(found, (by_mean.detach(), by_log_variance.detach()))


@pytest.mark.parametrize("conditioning", WAYS)
def test_gradient_reaches_every_weight(conditioning: str) -> None:
    """A part of the networks that is not connected: the encoder, the map of z, a block."""
    config = config_of(conditioning)
    network = scramble(header_of(config).build())
    objective = DiffusionDecoderObjective(
        config.objective, sde=build_sde(config.sde), latent=4, beta=0.0
    )
    x_0 = torch.randn(4, 1, 8, 8, generator=seeded(0))
    objective(network, x_0, seeded(1))["loss"].mean().backward()
    assert [n for n, w in network.named_parameters() if w.grad is None or not w.grad.any()] == []


# --- the networks ----------------------------------------------------------------------------


def header_of(config: Config) -> DiffusionDecoderHeader:
    """Of the decoder that the parameters ask for."""
    preset = config.selected
    return DiffusionDecoderHeader(
        image=preset.data.image, sde=config.sde, latent=preset.latent,
        encoder=preset.encoder.network, network=preset.prior.network,
        conditioning=preset.diffusion_decoder.conditioning,
    )  # fmt: skip


@pytest.mark.parametrize("output", ["noise", "velocity"])
@pytest.mark.parametrize("conditioning", WAYS)
@pytest.mark.parametrize("channels", [1, 3])
def test_both_ways_use_z(conditioning: str, output: str, channels: int) -> None:
    """Catches a z that is dropped, mixed up between rows, or wrong shapes; t may be a scalar."""
    torch.set_default_dtype(torch.float64)
    changes = {"data.image.channels": channels, "prior.network.output": output}
    config = config_of(conditioning, **{f"presets.digits.{k}": v for k, v in changes.items()})
    network = scramble(header_of(config).build()).eval().decoder
    x_t, z = normal((3, channels, 8, 8), 0), normal((3, 4), 1)
    t = torch.tensor([1e-3, 0.4, 1.0])
    found = network(x_t, z, t)
    assert found.shape == x_t.shape
    for row in range(3):
        alone = network(x_t[row : row + 1], z[row : row + 1], t[row])
        # Batches of another size sum in another order: float64 rounding, a thousand operations.
        torch.testing.assert_close(alone[0], found[row], rtol=1e-10, atol=1e-10)
    other = z.clone()
    other[1] += 1
    moved = (network(x_t, other, t) - found).flatten(1).abs().amax(dim=1)
    assert (moved > 1e-3).tolist() == [False, True, False]


@pytest.mark.parametrize("conditioning", WAYS)
def test_velocity_is_read_as_the_priors(conditioning: str) -> None:
    """Catches an output taken for noise: ε̂ = σ x_t + α v at unit scale (VP is at it)."""
    torch.set_default_dtype(torch.float64)
    velocity, noise = (
        scramble(header_of(config_of(conditioning, **{
            "presets.digits.prior.network.output": output})).build()).eval().decoder
        for output in ("velocity", "noise")
    )  # fmt: skip
    x_t, z, t = normal((3, 1, 8, 8), 0), normal((3, 4), 1), torch.tensor([1e-3, 0.4, 1.0])
    alpha, sigma = (part[:, None, None, None] for part in velocity.sde.marginal(t))
    expected = sigma * x_t + alpha * noise(x_t, z, t)
    torch.testing.assert_close(velocity(x_t, z, t), expected)


@pytest.mark.parametrize("conditioning", WAYS)
def test_the_unet_has_the_priors_size(conditioning: str) -> None:
    """Catches settings that do not arrive: but for the inputs of z, layers are the prior's."""
    config = config_of(conditioning, **{"presets.digits.prior.network.attention": [4]})
    prior = PriorUNet(
        config.selected.data.image, config.selected.prior.network, build_sde(config.sde)
    )
    decoder = header_of(config).build().decoder
    assert isinstance(decoder, ConditionalUNet)
    shapes = {n: tuple(w.shape) for n, w in decoder.conditioned.unet.named_parameters()}
    expected = {n: tuple(w.shape) for n, w in prior.unet.named_parameters()}
    different = {n for n in expected | shapes if expected.get(n) != shapes.get(n)}
    if conditioning == "concatenate":
        assert different == {"conv_in.weight"}
        assert shapes["conv_in.weight"][1] == 2 * expected["conv_in.weight"][1]
    else:  # each block has a scale beside its shift; attention in the middle has no group norm
        assert all("time_emb_proj" in n or "group_norm" in n for n in different)
        doubled = [n for n in expected if "time_emb_proj" in n]
        assert doubled
        assert all(shapes[n][0] == 2 * expected[n][0] for n in doubled)


# --- the score and the system ----------------------------------------------------------------


def test_guidance_mixes_with_the_prior(sde: SDE) -> None:
    """γ on s_θ in place of s_θ − s_p, or γ = 1 that asks the prior and rounds."""
    oracle = skewed(sde)
    learned = LearnedScore(
        oracle.prior_score, oracle.encode, conditional_score(Network(exact_noise(oracle)), sde)
    )
    x_t, z, t = normal((5, 3), 0), normal((5, 3), 1), torch.full((5,), 0.4, dtype=torch.float64)
    prior, exact = oracle.prior_score(x_t, t), oracle.conditional_score(x_t, t, z)
    torch.testing.assert_close(learned.score(z)(x_t, t), exact)
    torch.testing.assert_close(learned.correction(z)(x_t, t), exact - prior)
    torch.testing.assert_close(
        learned.score(z, guidance=1.5)(x_t, t), prior + 1.5 * (exact - prior)
    )
    assert learned.score(z, guidance=0) is learned.prior
    asked = LearnedScore(unasked, oracle.encode, learned.conditional)
    assert torch.equal(asked.score(z)(x_t, t), learned.score(z)(x_t, t))


def unasked(x_t: Tensor, t: Tensor) -> Tensor:
    """A prior that nobody may ask."""
    raise AssertionError


def test_its_bound_is_that_of_its_score(sde: SDE) -> None:
    """A bound that leaves the prior in, or takes other times or noise than Bayes' rule does."""
    oracle = skewed(sde)
    learned = LearnedScore(
        oracle.prior_score, oracle.encode, conditional_score(Network(exact_noise(oracle)), sde)
    )
    x_0 = oracle.sample_data(20, seeded(0))
    settings = {"repeats": 2, "draws": 3, "batch": 7, "seed": 0, "decoder": no_decoder}
    expected, found = (
        likelihood_bound(x_0, sde=sde, posterior=posterior, **settings).posterior
        for posterior in (oracle.posterior, learned)
    )
    torch.testing.assert_close(found.per_image, expected.per_image, rtol=1e-7, atol=1e-7)


def no_decoder(x_0: Tensor, noise: float) -> Tensor:
    """The data of the oracle have no grey values."""
    return torch.zeros(len(x_0), dtype=torch.float64)


@pytest.mark.parametrize("conditioning", WAYS)
@pytest.mark.parametrize("kind", ["resnet", "conv"])
def test_decoder_survives(tmp_path: Path, conditioning: str, kind: str) -> None:
    """Catches weights, a conditioning or settings that are not those that were saved."""
    config = config_of(conditioning, **{"presets.digits.encoder.network.kind": kind})
    network = write_diffusion_decoder(tmp_path, config)
    path = tmp_path / "variants/diffusion_decoder.safetensors"
    loaded = load_diffusion_decoder(path)
    x_t, z, t = torch.randn(3, 1, 8, 8), torch.randn(3, 4), torch.tensor([0.0, 0.3, 1.0])
    assert torch.equal(loaded.network.decoder(x_t, z, t), network.decoder(x_t, z, t))
    assert torch.equal(loaded.network.encoder(x_t, t).mean, network.encoder(x_t, t).mean)
    assert not any(w.requires_grad for w in loaded.network.parameters())
    assert loaded.header == header_of(config) == read_header(path, DiffusionDecoderHeader)
    with global_seed(1, "weights"):
        first = loaded.header.build().state_dict()
    with global_seed(1, "weights"):
        torch.testing.assert_close(loaded.header.build().state_dict(), first, rtol=0, atol=0)


@pytest.mark.parametrize("conditioning", WAYS)
def test_decoding_is_the_networks_score(tmp_path: Path, conditioning: str) -> None:
    """Catches another z, a prior that is mixed in at γ = 1, or a γ that is lost."""
    config = config_of(conditioning)
    write_prior(tmp_path / "prior.safetensors", config)
    write_diffusion_decoder(tmp_path, config)
    system = DiffusionDecoder.load(tmp_path, device="cpu", sampling=config.protocols["ode"])
    z, x_1 = torch.randn(3, 4, generator=seeded(0)), torch.randn(3, 1, 8, 8, generator=seeded(1))
    plain, zero, double = (system.decode(z, x_1=x_1, guidance=g) for g in (1.0, 0.0, 2.0))
    assert not torch.allclose(plain, system.decode(z.flip(0), x_1=x_1))
    assert not torch.allclose(plain, double)
    assert torch.equal(zero, system.decode(z.flip(0), x_1=x_1, guidance=0.0))
    assert not torch.allclose(plain, zero)


def test_prior_of_another_process_is_refused(tmp_path: Path) -> None:
    """Catches two processes under one sampler."""
    config = config_of("scale")
    write_prior(tmp_path / "prior.safetensors", config)
    header = header_of(config)
    header = header.model_copy(update={"sde": header.sde.model_copy(update={"beta_max": 10.0})})
    prior = load_prior(tmp_path / "prior.safetensors")
    with pytest.raises(UserError, match="the diffusion decoder's sde is .* train the diffusion"):
        DiffusionDecoder(prior, TrainedDiffusionDecoder(header.build(), header), device="cpu")

"""autoencoders: the trained networks as one object, with random weights and a few steps."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracles import seeded
from tiny import (
    committed_params,
    tiny_config,
    write_corrector,
    write_diffusion_decoder,
    write_encoder,
    write_prior,
    write_vae,
)
from torch import Tensor

from scorevae.autoencoders import DEFAULT_SAMPLING, MODEL, SYSTEMS, VAE, ScoreVAE
from scorevae.config import SamplingConfig, load_config
from scorevae.errors import UserError
from scorevae.evaluation.parts.interpolations import line
from scorevae.gaussian import DiagonalGaussian
from scorevae.sampling import generate

STEPS = 3
SAMPLERS = [
    "euler_maruyama", "ddim", "heun", "dpm_solver_pp", "sde_dpm_solver_pp", "predictor_corrector",
]  # fmt: skip
DETERMINISTIC = ["ddim", "heun", "dpm_solver_pp"]
# Batches of another size may sum in another order: float64 rounding (2^-53) with room for a
# thousand operations in sequence, each a hundredfold amplified by the four evaluations.
ROUNDING = {"rtol": 1e-10, "atol": 1e-10}
ONES = torch.ones(2, 1, 8, 8)
PACKAGE = Path(__file__).resolve().parents[1] / "src/scorevae"


def sampling(sampler: str = "ddim") -> SamplingConfig:
    """A few steps."""
    changes = {"sampler": sampler, "grid": "log_snr", "steps": STEPS, "clip": False}
    return DEFAULT_SAMPLING.model_copy(update={"noise_scale": 1.0} | changes)


def save_models(folder: Path, **changes: object) -> Path:
    """Prior and encoder with random weights in float64, as the training stages name them."""
    torch.set_default_dtype(torch.float64)
    write_prior(folder / "prior.safetensors", tiny_config(**changes))
    write_encoder(folder / "encoder.safetensors", tiny_config(**changes))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Those of the usual process."""
    return save_models(tmp_path)


def load(folder: Path, sampler: str = "ddim", batch: int = 500) -> ScoreVAE:
    """The model on the CPU."""
    return ScoreVAE.load(folder, device="cpu", sampling=sampling(sampler), batch=batch)


def images(count: int = 5, seed: int = 0) -> Tensor:
    """Random images in [0, 1]."""
    return torch.rand(count, 1, 8, 8, generator=seeded(seed))


def latents(count: int = 5) -> Tensor:
    """Random latents."""
    return torch.randn(count, 4, generator=seeded(1))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_shapes(folder: Path, sampler: str) -> None:
    """Catches a sampler, or a last incomplete batch, that the model cannot run."""
    model, x = load(folder, sampler, batch=2), images()
    q = model.encode(x)
    assert q.mean.shape == q.log_variance.shape == (5, 4)
    for y in (model.decode(q.mean), model.reconstruct(x), model.sample(5), model.sample_prior(5)):
        assert y.shape == x.shape
        assert torch.isfinite(y).all()
        assert not y.requires_grad
    assert model.interpolate(x[:2], images(2, seed=1), 3).shape == (2, 3, 1, 8, 8)


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_batch_size_changes_nothing(folder: Path, sampler: str) -> None:
    """Catches noise or latents that are given to the wrong image of a later batch.

    And a progress bar that counts batches or overshoots.
    """
    whole, parts, z, done = load(folder, sampler), load(folder, sampler, batch=2), latents(), []
    torch.testing.assert_close(parts.encode(images()), whole.encode(images()), **ROUNDING)
    torch.testing.assert_close(parts.decode(z, report=done.append), whole.decode(z), **ROUNDING)
    torch.testing.assert_close(parts.sample_prior(5), whole.sample_prior(5), **ROUNDING)
    assert done == [2, 4, 5]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_seed_determines_the_result(folder: Path, sampler: str) -> None:
    """Catches noise of the global generator, and a seed without effect.

    And another x_1, or a latent that still acts, where guidance is zero.
    """
    model = load(folder, sampler, batch=2)
    for draw in (model.sample, model.sample_prior):
        first = draw(3, seed=1)
        torch.manual_seed(99)
        assert torch.equal(draw(3, seed=1), first)
        assert not torch.equal(draw(3, seed=2), first)
    assert torch.equal(model.decode(latents(), guidance=0, seed=7), model.sample_prior(5, seed=7))


def test_decode_is_the_posterior_score(folder: Path) -> None:
    """Catches Bayes' rule, the scale of x_1 or the range of images lost on the way."""
    model, z, x_1 = load(folder), latents(), images() - 0.5
    score = model.posterior.score(z, guidance=2.0)
    expected = (generate(score, model.sde, x_1, sampling()) + 1) / 2
    torch.testing.assert_close(model.decode(z, guidance=2.0, x_1=x_1), expected, **ROUNDING)
    assert not torch.allclose(model.decode(z, x_1=x_1), expected)


def test_variance_exploding_starts_at_its_width(tmp_path: Path) -> None:
    """Catches standard normal noise as the start where the process ends at σ_max."""
    model, starts = load(save_models(tmp_path, **{"sde.kind": "ve"})), []

    def score(x: Tensor, t: Tensor) -> Tensor:
        starts.append(x)
        return -x

    model.posterior = replace(model.posterior, prior=score)
    model.decode(latents(), guidance=0.0, x_1=images())
    torch.testing.assert_close(starts[0], 50 * images())


def test_reconstruct_decodes_the_mean(folder: Path) -> None:
    """Catches a sampled z, or a seed or guidance that is not handed on."""
    model, given = load(folder), {"guidance": 2.0, "seed": 3}
    expected = model.decode(model.encode(images()).mean, **given)
    assert torch.equal(model.reconstruct(images(), **given), expected)


def test_encode_is_the_encoder_at_time_zero(folder: Path) -> None:
    """Catches images in [0, 1], another time, and noise at t = 0, where VE has some."""
    model, x = load(folder), images()
    q = model.encode(x)
    torch.testing.assert_close(q, model.posterior.encoder(2 * x - 1, torch.zeros(5)), **ROUNDING)
    assert torch.equal(model.encode_at(x, 0.0).mean, q.mean)
    assert not torch.allclose(model.encode_at(x, 1e-3).mean, q.mean, rtol=1e-6)


def test_encode_at(folder: Path) -> None:
    """Catches images noised in [0, 1], another noise in a later batch, and time lost."""
    model, x, seen = load(folder, batch=4), images(), []
    encoder = model.posterior.encoder

    def watched(x_t: Tensor, t: Tensor) -> DiagonalGaussian:
        seen.append(x_t)
        return encoder(x_t, t)

    def encoded(t: float) -> tuple[DiagonalGaussian, Tensor, Tensor]:
        """What it is at this time, the noised images it is of, and their noise."""
        seen.clear()
        q, x_t = model.encode_at(x, t, seed=1), torch.cat(seen)
        alpha, sigma = model.sde.marginal(torch.tensor(t))
        return q, x_t, (x_t - alpha * (2 * x - 1)) / sigma

    model.posterior = replace(model.posterior, encoder=watched)
    q, x_t, noise = encoded(0.3)
    expected = encoder(x_t, torch.full((5,), 0.3)).mean.detach()
    torch.testing.assert_close(q.mean, expected, rtol=1e-12, atol=1e-12)
    # Five standard errors of mean and variance of 320 normal numbers.
    assert abs(noise.mean()) < 5 / math.sqrt(320)
    assert abs(noise.var() - 1) < 5 * math.sqrt(2 / 319)
    assert len(noise.unique()) == 320
    # divided by σ of 0.3: 0.78
    torch.testing.assert_close(encoded(0.6)[2], noise, rtol=0, atol=1e-10)


def test_interpolation_is_a_line_between_the_images(folder: Path) -> None:
    """Catches a line in the wrong direction, pairs mixed up, or noise that changes along it."""
    model, first, second = load(folder), images(2), images(2, seed=1)
    lines = model.interpolate(first, second, 3, seed=5)
    # reconstruct draws the same x_1 for the first two images
    middle = model.decode((model.encode(first).mean + model.encode(second).mean) / 2, seed=5)
    ends = [model.reconstruct(x, seed=5) for x in (first, second)]
    expected = torch.stack([ends[0], middle, ends[1]], dim=1)
    torch.testing.assert_close(lines, expected, **ROUNDING)


def test_interpolation_is_a_group(folder: Path) -> None:
    """Catches two versions of the straight line, and a guidance that is not handed on."""
    model, first, second = load(folder, "euler_maruyama", 4), images(2), images(2, seed=1)
    z = line(model.encode(first).mean, model.encode(second).mean, 3)
    ours = model.interpolate(first, second, 3, guidance=2.0, seed=1)
    expected = model.decode_groups(z, guidance=2.0, seed=1)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sampler", ["euler_maruyama", "ddim", "sde_dpm_solver_pp"])
def test_groups_share_their_noise(folder: Path, sampler: str) -> None:
    """Catches members of a group from noise of their own, and groups from the same."""
    model = load(folder, sampler, batch=4)
    z = latents(1).expand(2, 3, 4)
    x = model.decode_groups(z, seed=1)
    assert x.shape == (2, 3, 1, 8, 8)
    # float64, a few hundred operations
    torch.testing.assert_close(x, x[:, :1].expand_as(x), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(x[0, 0], x[1, 0])
    other = model.decode_groups(latents(6).reshape(2, 3, 4), seed=1)
    assert not torch.allclose(other[:, 0], other[:, 1])


def test_noise_scale_is_for_decoding_alone(folder: Path) -> None:
    """Catches samples and draws that are less varied than the model, and a τ without effect."""
    model = ScoreVAE.load(folder, device="cpu")
    half, z = model.with_noise_scale(0.5), torch.randn(2, model.latent, generator=seeded(0))
    assert model.sampling.noise_scale != 0.5  # a copy
    assert not torch.equal(half.decode(z), model.decode(z))
    assert torch.equal(half.sample(2), model.sample(2))
    assert torch.equal(half.sample_prior(2), model.sample_prior(2))
    assert torch.equal(half.decode_draws(z, 2), model.decode_draws(z, 2))
    with pytest.raises(UserError, match="draws: got 0; give 1 or more"):
        model.decode_draws(z, 0)


def test_draws_have_noise_of_their_own(folder: Path) -> None:
    """Catches noise that is repeated in draws or batches, and draws given to the wrong latent."""
    model, z = load(folder, "euler_maruyama", batch=4), latents(2)
    x = model.decode_draws(z, 3, seed=1)
    assert x.shape == (2, 3, 1, 8, 8)
    assert len({image.sum().item() for image in x.flatten(0, 1)}) == 6
    assert torch.equal(x[1, 0], model.decode(z.repeat_interleave(3, dim=0), seed=1)[3])
    model = load(folder, "euler_maruyama", batch=1)
    first, second = model.decode(z[:1].expand(2, -1), x_1=torch.zeros(2, 1, 8, 8))
    assert not torch.allclose(first, second)


def test_log_determinant_follows_the_encoder(folder: Path) -> None:
    """Catches a score that is not the one the encoder was trained to give."""
    full = load(folder).decode(latents())
    save_models(folder, **{"objective.log_determinant": "dropped"})
    assert not torch.allclose(load(folder).decode(latents()), full)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"sde.t_min": 5e-4}, "sde"),
        ({"sde.kind": "ve"}, "sde"),
        ({"presets.digits.data.image.size": 16}, "image"),
    ],
)
def test_networks_that_do_not_fit(folder: Path, changes: dict, name: str) -> None:
    """Catches Bayes' rule applied to scores of two processes or image spaces."""
    write_encoder(folder / "encoder.safetensors", tiny_config(**changes))
    expected = (
        rf"the encoder's {name} is \(.*\),.* the prior's \(.*\);.* train the encoder with this"
    )
    with pytest.raises(UserError, match=expected):
        load(folder)


def test_missing_file(folder: Path) -> None:
    """Catches a folder without an encoder that fails with a traceback."""
    (folder / "encoder.safetensors").unlink()
    with pytest.raises(UserError, match=r"encoder.safetensors: no such file"):
        load(folder)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda m: m.encode(torch.zeros(2, 1, 8, 9)), r"images have shape \(2, 1, 8, 9\); give"),
        (lambda m: m.encode(torch.zeros(2, 3, 8, 8)), r"\(2, 3, 8, 8\); give \(count, 1, 8, 8\)"),
        (lambda m: m.encode(-0.5 * ONES), r"values from -0.5 to -0.5; scale to \[0, 1\]"),
        (lambda m: m.encode(255 * ONES), r"values from 255 to 255; scale to \[0, 1\]"),
        (lambda m: m.decode(torch.zeros(5, 3)), r"z has shape \(5, 3\); give \(count, 4\)"),
        (
            lambda m: m.decode(latents(2), x_1=ONES[:, :, 1:]),
            r"x_1 .* 7, 8\); give \(2, 1, 8, 8\)",
        ),
        *[
            (lambda m, t=t: m.encode_at(ONES, t), "give 0, or a time from 0.001 to 1")
            for t in (-0.1, 1e-5, 1.1, float("nan"))  # the encoder was not trained there
        ],
    ],
    ids=["size", "channels", "below", "above", "latents", "noise", "-0.1", "1e-5", "1.1", "nan"],
)
def test_wrong_arguments(folder: Path, call: Callable[[ScoreVAE], object], expected: str) -> None:
    """Catches images of another data set or range, other latents, and noise that is broadcast."""
    with pytest.raises(UserError, match=expected):
        call(load(folder))


def test_default_sampling_is_the_shipped_one(tmp_path: Path) -> None:
    """Catches a library that draws otherwise than the stage reconstruct."""
    (tmp_path / "params.yaml").write_text(committed_params(), encoding="utf-8")
    shipped = load_config(tmp_path / "params.yaml").protocols["default"]
    names = SamplingConfig.model_fields
    assert DEFAULT_SAMPLING.model_dump() == {name: getattr(shipped, name) for name in names}


@pytest.mark.parametrize("kind", ["resnet", "conv"])
def test_vae(tmp_path: Path, kind: str) -> None:
    """Catches a sampled z, ranges mixed up, batches out of order, or lost images."""
    torch.set_default_dtype(torch.float64)
    config = tiny_config(**{"presets.digits.encoder.network.kind": kind})
    network = write_vae(tmp_path / "vae.safetensors", config)
    vae = VAE.load(tmp_path, device="cpu", batch=2)
    with torch.no_grad():
        expected = network.encoder(2 * images() - 1, torch.zeros(5))
        decoded = (network.decoder(expected.mean) + 1) / 2
    torch.testing.assert_close(vae.encode(images()), expected, **ROUNDING)
    torch.testing.assert_close(vae.reconstruct(images()), decoded, **ROUNDING)
    assert torch.equal(vae.decode(expected.mean, seed=1), vae.decode(expected.mean, seed=2))


@pytest.mark.parametrize("name", SYSTEMS)
def test_systems_answer_to_the_same_verbs(folder: Path, name: str) -> None:
    """Catches a system whose verbs differ: one loop serves all rows of SYSTEMS."""
    write_vae(folder / "vae.safetensors", tiny_config())
    write_corrector(folder, tiny_config())
    write_diffusion_decoder(folder, tiny_config())
    assert all((folder / file).is_file() for file in SYSTEMS[name].weights)
    system, x = SYSTEMS[name].load(folder, tiny_config(**{"reconstruct.batch": 2})), images()
    posterior = system.encode(x)
    assert torch.equal(system.rate(x), posterior.kl_to_standard_normal())
    decoded = system.decode(posterior.mean, seed=3)
    assert decoded.shape == x.shape
    assert torch.equal(system.reconstruct(x, seed=3), decoded)
    for wrong, message in ((x[:, :, :4], "images have shape"), (x + 1, "images have values from")):
        with pytest.raises(UserError, match=message):
            system.encode(wrong)
    with pytest.raises(UserError, match="z has shape"):
        system.decode(posterior.mean[:, :-1])


def test_names_of_systems_stand_in_one_table() -> None:
    """Catches code beyond SYSTEMS that knows the model by its name."""
    # MLflow's experiment and the header of weights files bear the project's name.
    allowed = {"autoencoders.py", "runtime/runs.py", "networks/weights.py"}
    tell = {p for p in PACKAGE.rglob("*.py") if f'"{MODEL}"' in p.read_text(encoding="utf-8")}
    assert {p.relative_to(PACKAGE).as_posix() for p in tell} <= allowed


def test_the_package_is_lazy() -> None:
    """Catches an import of the package alone that loads PyTorch, and names that it lacks."""
    code = (
        "import sys, scorevae; assert 'torch' not in sys.modules\n"
        "from scorevae import VAE, ScoreVAE; assert ScoreVAE.__module__ == VAE.__module__\n"
        "assert not hasattr(scorevae, 'Unknown')"
    )
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)

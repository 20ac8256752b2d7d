"""autoencoders: the trained networks as one object, with random weights and a few steps."""

import copy
import inspect
import math
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import seeded
from pictures import noise
from PIL import Image
from pipeline import run, set_params
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

import scorevae
from scorevae.autoencoders.decoding import decoding_of, write_decoding
from scorevae.autoencoders.devices import chosen_device
from scorevae.autoencoders.diffusion_decoder import DiffusionDecoder
from scorevae.autoencoders.manner import DEFAULT_SAMPLING
from scorevae.autoencoders.score_vae import ScoreVAE, ScoreVAEPlus
from scorevae.autoencoders.table import MODEL, SYSTEMS
from scorevae.autoencoders.vae import VAE
from scorevae.config import DecodingConfig, SamplingConfig, load_config
from scorevae.data.arrays import to_tensor, to_unit_range
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
    # MLflow's experiment, the header of weights and the command bear the project's name.
    allowed = {
        "autoencoders/names.py", "autoencoders/table.py", "runtime/runs.py",
        "networks/weights.py", "commands/main.py",
    }  # fmt: skip
    tell = {p for p in PACKAGE.rglob("*.py") if f'"{MODEL}"' in p.read_text(encoding="utf-8")}
    assert {p.relative_to(PACKAGE).as_posix() for p in tell} <= allowed


def test_the_package_is_lazy() -> None:
    """Catches an import of the package alone that loads PyTorch, and names that it lacks.

    And Pillow or huggingface_hub loaded for a model that reads tensors from a folder.
    """
    code = (
        "import sys, scorevae; assert 'torch' not in sys.modules\n"
        "from scorevae import VAE, ScoreVAE; assert hasattr(VAE, 'load') and ScoreVAE.load\n"
        "assert not {'PIL', 'huggingface_hub', 'mlflow'} & set(sys.modules)\n"
        "assert not hasattr(scorevae, 'Unknown')"
    )
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_version() -> None:
    """Catches a version that was raised in one of its two places."""
    pyproject = tomllib.loads((PACKAGE.parents[1] / "pyproject.toml").read_text("utf-8"))
    assert scorevae.__version__ == pyproject["project"]["version"]


@pytest.mark.slow
@pytest.mark.parametrize(("z", "guidance"), [("mean", 1.0), ("sample", 2.0)])
def test_python_reconstructs_as_the_pipeline(workspace: Path, z: str, guidance: float) -> None:
    """Catches a protocol, γ or z of Python's own: to the last bit what reconstruct wrote.

    The protocol differs from the shipped default in its steps, its noise and here in its sampler.
    """
    changes = {"protocols.default.z": z, "protocols.default.sampler": "euler_maruyama"}
    set_params(**{"reconstruct.guidance": guidance, "seed": 5, "reconstruct.batch": 20}, **changes)
    assert run("reconstruct").exit_code == 0
    stored = np.load("data/digits/test_images.npy")
    model = ScoreVAE.load("models/digits", batch=20)
    written = np.load("results/digits/reconstructions/scorevae_images.npy")
    assert np.array_equal(model.reconstruct(stored, seed=5).numpy(), written)
    assert model.beta == 0.01
    vae = np.load("results/digits/reconstructions/vae_images.npy")
    assert np.array_equal(VAE.load("models/digits", batch=20).reconstruct(stored).numpy(), vae)


def test_pipeline_does_not_read_decoding(workspace: Path) -> None:
    """Catches a file that no stage has among its deps, and a system that decodes by its γ."""
    Path("models/digits/decoding.json").write_text("no JSON")
    config = tiny_config(**{"reconstruct.guidance": 2.0})
    model = SYSTEMS[MODEL].load(Path("models/digits"), config)
    assert (model.guidance, model.sampling) == (1.0, config.sampling)


def write_run(folder: Path, **changes: object) -> DecodingConfig:
    """What a run with these parameters leaves beside its weights."""
    decoding = decoding_of(tiny_config(**changes))
    write_decoding(folder / "decoding.json", decoding)
    return decoding


def test_what_is_said_wins_over_the_run(folder: Path) -> None:
    """Catches arguments without effect, and a default that hides what the run did."""
    bare = ScoreVAE.load(folder, device="cpu")
    assert (bare.sampling, bare.guidance, bare.z) == (DEFAULT_SAMPLING, 1.0, "mean")
    paper = {"reconstruct.protocol": "paper", "reconstruct.guidance": 1.5, "beta": 0.02}
    protocol = write_run(folder, **paper).protocol
    model = ScoreVAE.load(folder, device="cpu")
    assert (model.sampling, model.guidance, model.z) == (protocol, 1.5, "sample")
    model = ScoreVAE.load(folder, device="cpu", sampling=sampling("heun"))
    assert (model.sampling.sampler, model.guidance, model.z) == ("heun", 1.5, "mean")
    model = ScoreVAE.load(folder, device="cpu", guidance=0.0)
    assert (model.sampling, model.guidance) == (protocol, 0.0)
    assert torch.equal(model.decode(latents(), seed=7), load_paper(folder, guidance=0.0))


def load_paper(folder: Path, guidance: float) -> Tensor:
    """Images of a model whose γ is given to the call."""
    return ScoreVAE.load(folder, device="cpu").decode(latents(), guidance=guidance, seed=7)


def test_draws_from_the_model_do_not_go_by_the_run(folder: Path) -> None:
    """Catches samples of a sharpened p(x|z) where the model's own distribution is asked for."""
    model, other, z = load(folder), load(folder), latents(2)
    other.guidance = 2.0
    assert torch.equal(model.sample(2), other.sample(2))
    assert torch.equal(model.decode_draws(z, 2), other.decode_draws(z, 2))
    assert not torch.equal(model.decode(z), other.decode(z))
    assert not torch.equal(
        model.interpolate(*[images(2)] * 2, 2), other.interpolate(*[images(2)] * 2, 2)
    )


def test_a_run_that_decodes_with_another_prior(folder: Path, tmp_path: Path) -> None:
    """Catches the folder's own prior in its place, and a prior that was moved unnoticed."""
    write_prior(tmp_path / "other.safetensors", tiny_config())
    write_run(folder, **{"reconstruct.prior": str(tmp_path / "other.safetensors")})
    (folder / "prior.safetensors").rename(folder / "unused")
    ScoreVAE.load(folder, device="cpu")
    (tmp_path / "other.safetensors").unlink()
    with pytest.raises(UserError, match="reconstruct.prior: '.*other.safetensors' does not exist"):
        ScoreVAE.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "decoding.json: not JSON .*; run the stage reconstruct again"),
        ("{}", "decoding.json: format: missing"),
        ("[]", "decoding.json: top level: got"),
    ],
)
def test_a_damaged_decoding_is_named(folder: Path, text: str, expected: str) -> None:
    """Catches a traceback, and a model that decodes by the default as if nothing were there."""
    (folder / "decoding.json").write_text(text)
    with pytest.raises(UserError, match=expected):
        ScoreVAE.load(folder, device="cpu")


@pytest.mark.parametrize("verb", ["encode", "reconstruct", "rate", "encode_at"])
def test_verbs_take_what_people_have(folder: Path, verb: str) -> None:
    """Catches a verb that knows tensors alone, and a stream whose batches are others."""
    model, stored = load(folder, batch=2), noise(3, 8, 8, 1)
    call = partial(model.encode_at, t=0.3) if verb == "encode_at" else getattr(model, verb)
    x = to_unit_range(to_tensor(stored)).double()
    expected = call(x)
    torch.testing.assert_close(call(stored), expected, rtol=0, atol=0)
    torch.testing.assert_close(
        call([Image.fromarray(row[..., 0]) for row in stored]), expected, rtol=0, atol=0
    )
    stream = call(iter([x, x]))
    assert isinstance(stream, Iterator)
    first, second = stream
    torch.testing.assert_close(first, expected, rtol=0, atol=0)
    assert not stream.gi_frame  # at its end
    noisy = verb in ("reconstruct", "encode_at")
    same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert same == (not noisy)
    big = Image.fromarray(noise(20, 30))
    with pytest.raises(UserError, match="picture 1: 30×20 grey, the model's images are 8×8 grey"):
        call([big])
    assert len(torch.atleast_2d(*call(big, resize=True))) >= 1


def test_interpolate_takes_pictures_pair_by_pair(folder: Path) -> None:
    """Catches pairs of which one is lost, and streams that end in a traceback."""
    model, stored = load(folder), noise(2, 8, 8, 1)
    x = to_unit_range(to_tensor(stored)).double()
    assert torch.equal(
        model.interpolate(stored, stored[::-1], 2), model.interpolate(x, x.flip(0), 2)
    )
    with pytest.raises(UserError, match="interpolate: 2 first, 1 second; give as many"):
        model.interpolate(x, x[:1], 2)
    with pytest.raises(UserError, match="interpolate: got an iterable of batches; give images"):
        model.interpolate(iter([x]), x, 2)


def test_progress(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a verb without progress, or one that shows it unasked."""
    model, z = load(folder, batch=2), latents(4)
    model.sample(2)
    assert capsys.readouterr().out == ""
    for call, shown in (
        (lambda: model.encode(images(4), progress=True), "encode: 2/4\nencode: 4/4\n"),
        (lambda: model.rate(images(4), progress=True), "rate: 2/4\nrate: 4/4\n"),
        (lambda: model.encode_at(images(4), 0.5, progress=True), "encode: 2/4\nencode: 4/4\n"),
        (
            lambda: model.reconstruct(images(4), progress=True),
            "reconstruct: 2/4\nreconstruct: 4/4\n",
        ),
        (lambda: model.decode(z, progress=True), "decode: 2/4\ndecode: 4/4\n"),
        (lambda: model.sample(4, progress=True), "decode: 2/4\ndecode: 4/4\n"),
    ):
        call()
        assert capsys.readouterr().out == shown


def test_no_samples(folder: Path) -> None:
    """Catches a list of no batches that cannot be joined."""
    model = load(folder)
    for empty in (model.sample(0), model.sample_prior(0), model.decode(latents(0))):
        assert empty.shape == (0, 1, 8, 8)
    for draw in (model.sample, model.sample_prior):
        with pytest.raises(UserError, match="count: got -1; give 0 or more"):
            draw(-1)
    with pytest.raises(UserError, match="batch: got 0; give 1 or more"):
        load(folder, batch=0)


@pytest.mark.parametrize("name", ["cuda", "cuda:7", "gpu", "mps", "meta", "cpu:3"])
def test_a_device_that_is_not_there(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches torch's tracebacks, also for a second GPU where there is one."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    message = f"device: got '{name}'; there is cpu: choose one"
    with pytest.raises(UserError, match=message):
        ScoreVAE.load(folder, device=name)
    with pytest.raises(UserError, match=message):
        load(folder).to(name)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert chosen_device("cuda") == torch.device("cuda")
    assert chosen_device("cuda:1") == chosen_device(torch.device("cuda", 1))
    with pytest.raises(UserError, match="device: got 'cuda:2'; there is cpu, cuda:0, cuda:1: ch"):
        chosen_device("cuda:2")


@pytest.mark.parametrize("name", SYSTEMS)
def test_to_moves_every_network(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a network left behind, a copy that is thought to be elsewhere, and no result."""
    write_vae(folder / "vae.safetensors", tiny_config())
    write_corrector(folder, tiny_config())
    write_diffusion_decoder(folder, tiny_config())
    model = SYSTEMS[name].load(folder, tiny_config())
    assert set(model.weights) == set(SYSTEMS[name].weights)
    other = copy.copy(model)
    monkeypatch.setattr("scorevae.autoencoders.system.chosen_device", torch.device)
    assert model.to("meta") is model
    assert model.device == other.device == torch.device("meta")
    networks = [network for network, _ in model.weights.values()]
    assert {w.device.type for n in networks for w in n.parameters()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_to_cuda(folder: Path) -> None:
    """Catches scores that keep the networks they were made of."""
    model = load(folder)
    expected = model.reconstruct(images())
    moved = model.to("cuda").reconstruct(images())
    assert moved.device.type == "cpu"
    torch.testing.assert_close(moved, expected, rtol=1e-6, atol=1e-6)


def test_repr(folder: Path) -> None:
    """Catches an address in memory where a person looks for what the model is."""
    start = "ScoreVAE(images 1×8×8, 4 latents, "
    assert repr(load(folder)) == f"{start}ddim in 3 steps, guidance 1, cpu)"
    write_run(folder, beta=0.02)
    write_vae(folder / "vae.safetensors", tiny_config())
    expected = f"{start}β = 0.02, sde_dpm_solver_pp in 3 steps, guidance 1, cpu)"
    assert repr(ScoreVAE.load(folder, device="cpu")) == expected
    assert repr(VAE.load(folder, device="cpu")) == "VAE(images 1×8×8, 4 latents, cpu)"


def test_a_coarser_code(folder: Path, tmp_path: Path) -> None:
    """Catches a model that is changed itself, one that decodes as before, and a second s lost."""
    model, s = load(folder), 0.3
    coarser, fine = model.with_coarser_code(s), model.encode(images())
    found, log_variance = coarser.encode(images()), fine.log_variance
    assert torch.equal(found.mean, fine.mean)
    torch.testing.assert_close(found.log_variance.exp(), log_variance.exp() + s**2)
    twice = coarser.with_coarser_code(s).encode(images()).log_variance
    torch.testing.assert_close(twice.exp(), log_variance.exp() + 2 * s**2)
    assert torch.equal(model.encode(images()).log_variance, log_variance)
    assert not torch.equal(coarser.decode(fine.mean), model.decode(fine.mean))
    with pytest.raises(UserError, match="a coarser code is not saved"):
        coarser.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("noise", [0.0, -1.0, math.inf, math.nan])
def test_noise_that_no_code_has(folder: Path, noise: float) -> None:
    """Catches log(0), and a number that is none."""
    with pytest.raises(UserError, match=f"noise: got {noise}; give a number above 0"):
        load(folder).with_coarser_code(noise)


@pytest.mark.parametrize("kind", [ScoreVAE, VAE, ScoreVAEPlus, DiffusionDecoder])
def test_help_says_what_arguments_are(kind: type) -> None:
    """Catches a public method whose arguments the reader has to guess."""
    methods = inspect.getmembers(kind, inspect.isroutine)
    public = [(n, m) for n, m in methods if not n.startswith("_") or n == "__init__"]
    assert len(public) > 6
    for name, method in public:
        names = [n for n in inspect.signature(method).parameters if n not in ("self", "cls")]
        described = re.findall(r"^ {4,}\**(\w+): ", inspect.getdoc(method) or "", re.MULTILINE)
        assert set(names) <= set(described), (kind.__name__, name)

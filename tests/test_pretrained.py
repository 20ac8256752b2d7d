"""Networks of other libraries as priors: the same ε as in their own library, at their indices."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import normal, seeded
from tiny import scramble, tiny_config, write_prior
from torch import Tensor, nn

from scorevae.config import (
    DiffusersPriorConfig,
    GuidedPriorConfig,
    GuidedUNetConfig,
    ImageConfig,
    SDEConfig,
)
from scorevae.errors import UserError
from scorevae.networks.pretrained.export import export_pipeline
from scorevae.networks.pretrained.importing import import_prior
from scorevae.networks.pretrained.noise import ContinuousNoise, IndexedNoise, SigmaNoise
from scorevae.networks.prior import Prior, load_prior
from scorevae.sampling import heun, integrate, log_snr_grid
from scorevae.score import prior_score
from scorevae.sde import build_sde, perturb

diffusers = pytest.importorskip("diffusers")

IMAGE = ImageConfig(channels=3, size=8)
VP = SDEConfig(
    kind="vp", beta_min=0.1, beta_max=20.0, sigma_min=0.01, sigma_max=50.0, t_min=1e-3, t_max=1.0
)
SHORT = VP.model_copy(update={"t_min": 0.05, "t_max": 0.6})  # which every schedule here covers
UNET = dict(
    sample_size=8, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"), attention_head_dim=None,
    up_block_types=("AttnUpBlock2D", "UpBlock2D"), norm_num_groups=4,
)  # fmt: skip
# As google/ddpm-cifar10-32 was trained, which is not how UNet2DModel is by default.
HO = dict(freq_shift=1, flip_sin_to_cos=False, downsample_padding=0, norm_eps=1e-6)


def write_pipeline(folder: Path, scheduler: dict, **unet) -> nn.Module:
    """A pipeline with random weights in diffusers' usual layout; its U-Net in float64."""
    network = scramble(diffusers.UNet2DModel(**UNET | unet)).eval()
    network.save_pretrained(folder / "unet")
    diffusers.DDPMScheduler(**scheduler).save_pretrained(folder / "scheduler")
    index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return network.double()


def imported(folder: Path, sde: SDEConfig = SHORT, **changes) -> Prior:
    """The pipeline as a prior, in float64."""
    settings = {"format": "diffusers", "path": str(folder), "revision": None, "sha256": None}
    prior = import_prior(DiffusersPriorConfig(**settings | changes), IMAGE, sde)
    prior.network.double()
    return prior


def log_snr(alphas: Tensor) -> Tensor:
    """λ of each ᾱ, written apart from the package."""
    return torch.log(alphas.double() / (1 - alphas.double()))


def times_of(prior: Prior, indices: list[int], alphas: Tensor) -> Tensor:
    """The times of our process at which a network is told these indices."""
    return build_sde(prior.header.sde).time_of_log_snr(log_snr(alphas)[indices])


SCHEDULES = {
    "linear": {},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.001, "beta_end": 0.02},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "short": {"num_train_timesteps": 200, "beta_start": 5e-4, "beta_end": 0.1},
    "trained": {
        "trained_betas": np.linspace(2e-4, 0.03, 600).tolist(),
        "num_train_timesteps": 600,
    },
    "zero_snr": {"rescale_betas_zero_snr": True},
}


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noise_is_that_of_the_library_at_its_indices(
    tmp_path: Path, schedule: str, prediction: str
) -> None:
    """Catches 1000 t for the index, a wrong conversion, another schedule, an offset of one.

    What the library predicts is read by its own scheduler, as x̂_0, and compared as ε.
    """
    settings = SCHEDULES[schedule] | {"prediction_type": prediction, "clip_sample": False}
    network = write_pipeline(tmp_path, settings, **HO)
    prior = imported(tmp_path)
    scheduler = diffusers.DDPMScheduler.from_pretrained(tmp_path / "scheduler")
    alphas = scheduler.alphas_cumprod
    known = [i for i, level in enumerate(log_snr(alphas)) if -4 < level < 4]
    indices = [known[0], known[len(known) // 3], known[-1]]
    x_0, noise = normal((3, 3, 8, 8), 0), normal((3, 3, 8, 8), 1)
    for row, (index, t) in enumerate(zip(indices, times_of(prior, indices, alphas), strict=True)):
        x, n = x_0[row : row + 1], noise[row : row + 1]
        noisy = scheduler.add_noise(x, n, torch.tensor([index]))
        torch.testing.assert_close(perturb(prior.sde, x, t, n), noisy, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            output = network(noisy, index).sample
            found = prior.network(noisy, t)
        clean = scheduler.step(output, index, noisy).pred_original_sample
        a = alphas[index].double()
        expected = (noisy - a.sqrt() * clean) / (1 - a).sqrt()
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


# --- guided-diffusion and improved-diffusion ---------------------------------------------------

GUIDED = dict(
    channels=32, multipliers=[1, 2], blocks=1, attention=[4], heads=2, head_channels=None,
    scale_shift=True, resblock_updown=True, new_attention_order=False,
)  # fmt: skip


def write_guided(
    path: Path, settings: dict, *, learned: bool = False, channels: int = 3, **further
) -> nn.Module:
    """A state dict of the original network, as azula ships it, with random weights."""
    unet = pytest.importorskip("azula.plugins.adm._src.unet", reason="azula is not installed")
    network = unet.UNetModel(
        image_size=8,
        in_channels=channels,
        model_channels=settings["channels"],
        out_channels=channels * (1 + learned),
        num_res_blocks=settings["blocks"],
        attention_resolutions=[8 // side for side in settings["attention"]],
        channel_mult=settings["multipliers"],
        num_heads=settings["heads"] or 1,
        num_head_channels=settings["head_channels"] or -1,
        use_scale_shift_norm=settings["scale_shift"],
        resblock_updown=settings["resblock_updown"],
        use_new_attention_order=settings["new_attention_order"],
        **further,
    )
    torch.save(scramble(network).state_dict(), path)
    return network.eval()


def guided_config(path: Path, network: dict, **changes) -> GuidedPriorConfig:
    """The settings of such a file."""
    settings = dict(
        format="guided_diffusion", path=str(path), sha256=None, schedule="linear", timesteps=1000,
        rescale_timesteps=False, learned_variance=False, network=GuidedUNetConfig(**network),
    )  # fmt: skip
    return GuidedPriorConfig(**settings | changes)


@pytest.mark.parametrize(
    ("network", "changes"),
    [
        ({}, {}),
        ({"new_attention_order": True}, {"learned_variance": True, "schedule": "cosine"}),
        ({"heads": None, "head_channels": 16}, {"learned_variance": True}),
        ({"scale_shift": False, "resblock_updown": False, "heads": 4, "attention": [8, 4]},
         {"format": "improved_diffusion", "timesteps": 4000, "schedule": "cosine",
          "rescale_timesteps": True}),
        ({"multipliers": [1, 1, 2], "blocks": 2, "attention": [2]}, {"timesteps": 250}),
    ],
)  # fmt: skip
def test_guided_networks_are_the_originals(tmp_path: Path, network: dict, changes: dict) -> None:
    """Catches a block in another's place, heads or their order, the schedule, i for 1000 i/T.

    The original network at its own index, told what it is told there; it normalises in float32.
    Outputs are of order one, after some fifty layers of sums of up to 600 products.
    """
    learned, path = changes.get("learned_variance", False), tmp_path / "model.pt"
    original = write_guided(path, GUIDED | network, learned=learned)
    settings = guided_config(path, GUIDED | network, **changes)
    prior = import_prior(settings, IMAGE, SHORT)
    steps = settings.timesteps
    if settings.schedule == "linear":
        betas = np.linspace(0.1 / steps, 20 / steps, steps)
        alphas = torch.from_numpy(np.cumprod(1 - betas))
    else:
        f = [np.cos((i / steps + 0.008) / 1.008 * np.pi / 2) ** 2 for i in range(steps + 1)]
        betas = [min(1 - f[i + 1] / f[i], 0.999) for i in range(steps)]
        alphas = torch.from_numpy(np.cumprod(1 - np.array(betas)))
    indices, x_t = [steps // 4, steps // 2], normal((1, 3, 8, 8), 0).float()
    for index, t in zip(indices, times_of(prior, indices, alphas), strict=True):
        told = index * 1000 / steps if settings.rescale_timesteps else index
        with torch.no_grad():
            expected = original(x_t, torch.tensor([float(told)]))[:, :3]
            found = prior.network(x_t, t)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_wrong_order_of_attention_is_another_network(tmp_path: Path) -> None:
    """Catches a setting that is read and not used: shapes alone would not tell."""
    write_guided(tmp_path / "model.pt", GUIDED)
    x_t, t = normal((1, 3, 8, 8), 0).float(), torch.tensor(0.3)
    found = []
    for new in (False, True):
        settings = guided_config(tmp_path / "model.pt", GUIDED | {"new_attention_order": new})
        found.append(import_prior(settings, IMAGE, SHORT).network(x_t, t))
    assert not torch.allclose(*found, rtol=1e-3, atol=1e-3)


# --- what diffusers' folders hold --------------------------------------------------------------


def flatten_layout(folder: Path) -> None:
    """All files side by side, as google/ddpm-cifar10-32 has them."""
    for part in ("unet", "scheduler"):
        for file in (folder / part).iterdir():
            file.rename(folder / file.name)
        (folder / part).rmdir()


def edit(path: Path, **changes) -> None:
    """Change a JSON file; None removes a key."""
    tree = json.loads(path.read_text()) | changes
    gone = {name for name, value in changes.items() if value is None}
    path.write_text(json.dumps({k: v for k, v in tree.items() if k not in gone}))


def as_of_2022(folder: Path) -> None:
    """Names of classes, settings and attention weights before diffusers 0.12, in a pickle."""
    unet = folder / "unet"
    edit(unet / "config.json", _class_name="UNetModel")
    edit(
        folder / "scheduler/scheduler_config.json",
        _class_name="GaussianDDPMScheduler",
        num_train_timesteps=None,
        timesteps=1000,
        trained_betas=None,
        prediction_type=None,
    )
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = diffusers.UNet2DModel.from_pretrained(unet).state_dict()
    for new, name in old.items():
        weights = {k.replace(f".{new}.", f".{name}."): v for k, v in weights.items()}
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(weights, unet / "diffusion_pytorch_model.bin")


@pytest.mark.parametrize("change", [flatten_layout, as_of_2022])
def test_other_layouts_are_the_same_prior(tmp_path: Path, change) -> None:
    """Catches a layout that is refused, and weights of old names that are left as initialised."""
    write_pipeline(tmp_path, {}, **HO)
    x_t, t = normal((2, 3, 8, 8), 0), torch.tensor(0.3, dtype=torch.float64)
    expected = imported(tmp_path).network(x_t, t)
    change(tmp_path)
    torch.testing.assert_close(imported(tmp_path).network(x_t, t), expected)


def test_an_ncsn_of_diffusers_gives_the_score(tmp_path: Path) -> None:
    """Catches σ of images in [−1, 1] told to a network of [0, 1], and a score taken for noise."""
    sigma, n = torch.tensor([2.0]).double(), normal((1, 3, 8, 8), 1)
    unet = dict(
        block_out_channels=(32, 32), norm_num_groups=None, time_embedding_type="fourier",
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"), norm_eps=1e-6,
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"), attention_head_dim=None,
    )  # fmt: skip
    network = write_pipeline(tmp_path, {}, **unet)
    scheduler = diffusers.ScoreSdeVeScheduler(sigma_min=0.01, sigma_max=50.0)
    scheduler.save_pretrained(tmp_path / "scheduler")
    ve = VP.model_copy(update={"kind": "ve", "sigma_min": 0.1, "sigma_max": 40.0})
    prior = imported(tmp_path, ve)
    x_0 = normal((1, 3, 8, 8), 0)
    t = prior.sde.time_of_log_snr(-2 * torch.log(2 * sigma))  # σ of ours is twice theirs
    with torch.no_grad():
        expected = -sigma * network((x_0 + 1) / 2 + sigma * n, sigma).sample
        found = prior.network(x_0 + 2 * sigma * n, t)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


REFUSED = {
    "no scheduler": (lambda f: (f / "scheduler/scheduler_config.json").unlink(), "no such file"),
    "no weights": (
        lambda f: (f / "unet/diffusion_pytorch_model.safetensors").unlink(), "no diffusion_pytorch"
    ),
    "half the weights": (
        lambda f: truncate(f / "unet/diffusion_pytorch_model.safetensors"), "cannot be read"
    ),
    "half a config": (lambda f: truncate(f / "unet/config.json"), "config.json: not JSON"),
    "text": (
        lambda f: edit(f / "unet/config.json", _class_name="UNet2DConditionModel"),
        "the network is a UNet2DConditionModel",
    ),
    "latent": (
        lambda f: edit(f / "model_index.json", vqvae=["diffusers", "VQModel"]),
        "a DDPMPipeline with a vqvae",
    ),
    "classes": (lambda f: edit(f / "unet/config.json", num_class_embeds=10), "class_embeds is 10"),
    "size": (lambda f: edit(f / "unet/config.json", sample_size=16), "sample_size is 16"),
    "channels": (
        lambda f: edit(f / "unet/config.json", in_channels=1, out_channels=1), "1 channels in"
    ),
    "variance": (lambda f: edit(f / "unet/config.json", out_channels=6), "3 channels in and 6"),
    "other weights": (
        lambda f: edit(f / "unet/config.json", layers_per_block=2), "size mismatch"
    ),
    "other settings": (lambda f: edit(f / "unet/config.json", colour="red"), "colour: no set"),
    "no betas": (
        lambda f: (f / "scheduler/scheduler_config.json").write_text('{"_class_name": "EDMX"}'),
        "a EDMX without betas",
    ),
    "betas": (
        lambda f: edit(f / "scheduler/scheduler_config.json", beta_schedule="cubic"), "cubic"
    ),
    "prediction": (
        lambda f: edit(f / "scheduler/scheduler_config.json", prediction_type="flow"),
        "prediction_type 'flow'",
    ),
}  # fmt: skip


def truncate(path: Path) -> None:
    """Leave the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_prior_is_refused_in_a_line(tmp_path: Path, name: str) -> None:
    """Catches a traceback, and weights that are imported although they mean something else."""
    damage, expected = REFUSED[name]
    write_pipeline(tmp_path, {})
    damage(tmp_path)
    with pytest.raises(UserError, match=expected) as caught:
        imported(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sha256": "0" * 64}, "its SHA-256 is"),
        ({"path": "nowhere"}, "prior.pretrained.path: 'nowhere' does not exist"),
        ({"path": "some/model"}, r"prior.pretrained.revision: null, but some/model on the hub"),
        (
            {"path": "some/model", "revision": "a" * 40},
            "some/model cannot be fetched .* hf download",
        ),
    ],
)
def test_other_sources_are_refused_in_a_line(
    tmp_path: Path, monkeypatch, changes: dict, expected: str
) -> None:
    """Catches a hub's model that is taken without its commit, and a failure without a way out."""
    monkeypatch.setenv("SCOREVAE_DOWNLOADS", str(tmp_path / "downloads"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write_pipeline(tmp_path, {})
    with pytest.raises(UserError, match=expected) as caught:
        imported(tmp_path, **changes)
    assert "\n" not in str(caught.value)


class Evil:
    """Runs a command where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["diffusers", "guided"])
def test_pickles_run_nothing(tmp_path: Path, form: str) -> None:
    """Catches weights whose reading runs what they hold."""
    ran, path = tmp_path / "ran", tmp_path / "unet/diffusion_pytorch_model.bin"
    write_pipeline(tmp_path, {})
    (tmp_path / "unet/diffusion_pytorch_model.safetensors").unlink()
    torch.save({"time_embed.0.weight": Evil(ran)}, path)
    read = {
        "diffusers": lambda: imported(tmp_path),
        "guided": lambda: import_prior(guided_config(path, GUIDED), IMAGE, SHORT),
    }
    with pytest.raises(UserError, match="cannot be read|which may run code"):
        read[form]()
    assert not ran.exists()


# --- noise ranges ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noise", "largest", "smallest"),
    [
        (IndexedNoise(log_snr=[3.0, 1.0, -2.0], label_scale=1.0), 3.0, -2.0),
        (SigmaNoise(sigma_min=0.002, sigma_max=80.0, label="quarter_log"), 12.429216, -8.764053),
        (ContinuousNoise(process="ve", low=0.01, high=50.0, t_min=1e-5), 9.210170, -7.824046),
        (ContinuousNoise(process="vp", low=0.1, high=20.0, t_min=1e-5), 13.814516, -10.049957),
    ],
)
def test_ranges_are_those_that_networks_were_trained_on(noise, largest, smallest) -> None:
    """Catches ends exchanged, and the σ of VE at t_min taken for σ_min.

    By hand: −2 ln σ, for VE of 0.01 · 5000^1e-5; B(1) = 10.05 and B(1e-5) = 1.000995e-6 for VP,
    λ = −ln(e^B − 1).
    """
    assert noise.range() == pytest.approx((largest, smallest), abs=2e-6)


def test_an_index_is_linear_in_the_log_snr_between_two() -> None:
    """Catches an index rounded to the next, and one counted from the other end."""
    noise = IndexedNoise(log_snr=[3.0, 1.0, -2.0], label_scale=0.25)
    levels = torch.tensor([3.0, 2.5, 1.0, -0.5, -2.0], dtype=torch.float64)
    native = noise.at(levels)
    torch.testing.assert_close(native.label, torch.tensor([0, 0.25, 1, 1.5, 2]).double() / 4)
    torch.testing.assert_close(native.alpha**2, torch.sigmoid(levels))
    torch.testing.assert_close(native.sigma**2, torch.sigmoid(-levels))


@pytest.mark.parametrize("wrong", [("t_min", "t_max"), ("t_min",), ("t_max",)])
def test_noise_that_a_prior_does_not_know_is_refused(tmp_path: Path, wrong: tuple) -> None:
    """Catches a network asked beyond its range; with what the message says it is accepted.

    β from 0.002 to 0.02 in 600 steps. t from λ here by B = ln(1 + e^−λ), the root of
    ½ (β_max − β_min) t² + β_min t = B.
    """
    betas = np.linspace(0.002, 0.02, 600)
    write_pipeline(tmp_path, {"trained_betas": betas.tolist(), "num_train_timesteps": 600})
    ends = np.cumprod(1 - betas)[[0, -1]]
    log_snr = np.log(ends / (1 - ends))
    integral = np.log1p(np.exp(-log_snr))
    first, last = (np.sqrt(0.01 + 2 * 19.9 * integral) - 0.1) / 19.9
    within = {"t_min": np.ceil(first * 1e5) / 1e5, "t_max": np.floor(last * 1e4) / 1e4}
    beyond = {"t_min": 0.9 * first, "t_max": min(1.0, 1.1 * last)}
    words = {"t_min": f"sde.t_min to {within['t_min']:g} or more",
             "t_max": f"sde.t_max to {within['t_max']:g} or less"}  # fmt: skip
    expected = f"set {' and '.join(words[end] for end in wrong)}$"
    with pytest.raises(UserError, match=expected):
        imported(tmp_path, VP.model_copy(update=within | {end: beyond[end] for end in wrong}))
    imported(tmp_path, VP.model_copy(update=within))


# --- other wrappers and samplers -------------------------------------------------------------


def test_azulas_wrapper_agrees(tmp_path: Path) -> None:
    """Catches a conversion that both of ours share: azula's denoiser around the same network.

    azula takes the first index whose σ, in float32, is no smaller; just below an index's own σ
    that is this index. Its schedule has α² + σ² = 1 + σ_min².
    """
    adm = pytest.importorskip("azula.plugins.adm", reason="azula is not installed")
    from azula.noise import VPSchedule

    network = write_guided(tmp_path / "model.pt", GUIDED)
    prior = import_prior(guided_config(tmp_path / "model.pt", GUIDED), IMAGE, SHORT)
    theirs = adm.AblatedDenoiser(network, schedule=VPSchedule()).eval()
    unit, (first, last) = normal((1, 3, 8, 8), 0).float(), (300, 600)
    grid = torch.linspace(0, 1, 2_000_001, dtype=torch.float64)
    alpha, sigma = theirs.schedule(grid)
    for index in (first, last):
        own = theirs.sigmas[index].double()
        place = torch.searchsorted(sigma / torch.sqrt(alpha**2 + sigma**2), own) - 1
        a, s = alpha[place], sigma[place]
        scale = torch.sqrt(a**2 + s**2)
        with torch.no_grad():
            mean = theirs(unit * scale.float(), grid[place]).mean
            found = prior.network(unit, prior.sde.time_of_log_snr(2 * torch.log(a / s)))
        expected = (unit * scale - a * mean) / s
        # The grid moves σ by 1e-6, the table of σ is rounded to 6e-8.
        torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)


def test_k_diffusions_wrapper_agrees(tmp_path: Path) -> None:
    """Catches another index between two whole ones: linear in ln σ̄ there, in λ here, the same."""
    external = pytest.importorskip("k_diffusion.external", reason="k-diffusion is not installed")
    network = write_pipeline(tmp_path, {}, **HO)
    prior = imported(tmp_path)
    alphas = diffusers.DDPMScheduler().alphas_cumprod.double()
    theirs = external.DiscreteEpsDDPMDenoiser(
        lambda x, t: network(x, t).sample, alphas, quantize=False
    )
    x = normal((3, 3, 8, 8), 0)
    for t in (0.1, 0.3337, 0.55):
        time = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = prior.sde.marginal(time)
        ratio = (sigma / alpha).expand(3)
        with torch.no_grad():
            clean = theirs(x / alpha, ratio)
            found = prior.network(x, time)
        expected = (x - alpha * clean) / sigma
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


# --- sampling, and the way out -----------------------------------------------------------------


def test_our_ode_and_ddim_go_the_same_way(tmp_path: Path) -> None:
    """Catches a step of the noise's grid, or a wrong sign: from one x_T both reach one image.

    DDIM on N of 1000 indices and ours on N points of the same ODE differ by what each leaves of
    it, of first order in 1/N: over three doublings of N the difference halves each time, to
    within a third, and ours in 400 steps stands for the limit.
    """
    network = write_pipeline(tmp_path, {"clip_sample": False}, **HO)
    prior = imported(tmp_path, VP)
    scheduler = diffusers.DDIMScheduler.from_pretrained(
        tmp_path / "scheduler", timestep_spacing="trailing", set_alpha_to_one=True
    )
    x_T = normal((2, 3, 8, 8), 0)
    score = prior_score(prior.network, prior.sde)
    alphas = scheduler.alphas_cumprod
    start = prior.sde.time_of_log_snr(log_snr(alphas)[-1])

    def theirs(steps: int) -> Tensor:
        scheduler.set_timesteps(steps)
        x = x_T
        for index in scheduler.timesteps:
            with torch.no_grad():
                x = scheduler.step(network(x, index).sample, index, x).prev_sample
        return x

    grid = log_snr_grid(replace(prior.sde, t_max=start.item(), t_min=1e-3), 400)
    limit = integrate(score, prior.sde, x_T, grid, step=heun, noise=torch.zeros_like)
    gaps = [(theirs(steps) - limit).norm().item() for steps in (50, 100, 200)]
    ratios = [gaps[0] / gaps[1], gaps[1] / gaps[2]]
    assert ratios == pytest.approx([2.0, 2.0], rel=1 / 3)
    assert gaps[2] < 0.05 * limit.norm().item()


@pytest.mark.parametrize("output", ["noise", "velocity"])
@pytest.mark.parametrize("kind", ["vp", "ve"])
def test_a_prior_of_ours_goes_out_and_comes_back(tmp_path: Path, kind: str, output: str) -> None:
    """Catches a turned embedding of the wrong sign, an index off by one, and VE at its own scale.

    diffusers keeps ᾱ in float32: of 1 − ᾱ that leaves 4 digits at the least noise, and index
    and λ of ours by as much.
    """
    changes = {"sde.kind": kind, "presets.digits.prior.network.output": output}
    config = tiny_config(**changes)
    write_prior(tmp_path / "prior.safetensors", config)
    prior = load_prior(tmp_path / "prior.safetensors")
    export_pipeline(prior, tmp_path / "out")
    settings = DiffusersPriorConfig(
        format="diffusers", path=str(tmp_path / "out"), revision=None, sha256=None
    )
    back = import_prior(settings, prior.header.image, config.sde.model_copy(
        update={"t_min": 2e-3}))  # fmt: skip
    x = normal((4, *prior.header.image.shape), 0).float()
    for t in (0.01, 0.3, 0.9):
        x_t = x * prior.sde.marginal(torch.tensor(t)).sigma.clamp(min=1)
        times = torch.full((4,), t)
        with torch.no_grad():
            expected, found = prior.network(x_t, times), back.network(x_t, times)
        torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)


def test_the_pipeline_runs_by_itself(tmp_path: Path) -> None:
    """Catches a folder that diffusers cannot load, or a grid that its sampler cannot step."""
    write_prior(tmp_path / "prior.safetensors", tiny_config())
    export_pipeline(load_prior(tmp_path / "prior.safetensors"), tmp_path / "out")
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        batch_size=2, generator=seeded(0), num_inference_steps=20, output_type="np"
    ).images
    assert images.shape == (2, 8, 8, 1)
    assert np.isfinite(images).all()


def test_networks_of_other_kinds_do_not_go_out(tmp_path: Path) -> None:
    """Catches a pipeline written with a scheduler that does not know its network's noise."""
    write_guided(tmp_path / "model.pt", GUIDED)
    prior = import_prior(guided_config(tmp_path / "model.pt", GUIDED), IMAGE, SHORT)
    with pytest.raises(UserError, match="cannot be written as a DDPMPipeline"):
        export_pipeline(prior, tmp_path / "out")
    assert not (tmp_path / "out").exists()

"""samplers, guidance: what trials say, and that the choice among them is the stated one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import save_tiny_models

from scorevae.autoencoders.manner import DEFAULT_SAMPLING
from scorevae.autoencoders.score_vae import ScoreVAE
from scorevae.evaluation import figures
from scorevae.evaluation.metrics import l2_distances, sharpness, structural_similarity
from scorevae.evaluation.parts import guidance, samplers
from scorevae.evaluation.parts.samplers import Trial, pareto, recommended, sampler_settings
from scorevae.sampling import network_evaluations


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ScoreVAE:
    """Random weights."""
    folder = tmp_path_factory.mktemp("models")
    save_tiny_models(folder)
    return ScoreVAE.load(folder, sampling=DEFAULT_SAMPLING.model_copy(update={"steps": 3}))


@pytest.fixture
def originals() -> torch.Tensor:
    """Images in [0, 1]."""
    return torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def trial(evaluations: int, l2: float, sampler: str = "ddim") -> Trial:
    return Trial(sampler, "log_snr", evaluations, 1.0, l2, 0.5, 1.0, 2.0, (l2, l2))


def test_settings_have_the_evaluations_asked_for() -> None:
    """Catches samplers at twice the cost, a sampler or grid left out, and settings twice."""
    settings = sampler_settings([5, 20], ["log_snr", "karras"], DEFAULT_SAMPLING)
    assert len(settings) == len(set(map(str, settings))) == 6 * 2 * 2
    for setting in settings:
        odd = setting.sampler in ("heun", "predictor_corrector")
        assert network_evaluations(setting) in ((5, 19) if odd else (5, 20))
        assert setting.clip == DEFAULT_SAMPLING.clip
    # Two-stage samplers round both of these to the same number of steps.
    settings = sampler_settings([5, 6], ["log_snr"], DEFAULT_SAMPLING)
    assert [s.steps for s in settings if s.sampler == "heun"] == [3]


def test_trials_are_those_of_the_model(model: ScoreVAE, originals: torch.Tensor) -> None:
    """Catches numbers of other images, another sampler, other noise or another guidance."""
    z, done = model.encode(originals).mean, []
    settings = sampler_settings([3], ["karras"], DEFAULT_SAMPLING)
    trials = samplers.try_samplers(
        model, originals, z, settings, guidance=0.5, seed=3, report=done.append
    )
    assert done == list(range(1, len(settings) + 1))
    for setting, found in zip(settings, trials, strict=True):
        images = model.with_sampling(setting).decode(z, guidance=0.5, seed=3)
        distances = l2_distances(originals, images)
        assert replace(found, seconds=0.0) == Trial(
            setting.sampler, "karras", 3, 0.5, distances.mean().item(),
            structural_similarity(originals, images), sharpness(originals, images), 0.0,
            tuple(distances.tolist()),
        )  # fmt: skip
    assert model.sampling.steps == 3
    assert len({found.l2 for found in trials}) == len(trials)


def test_no_guidance_is_the_prior(model: ScoreVAE, originals: torch.Tensor) -> None:
    """Catches a γ that leaves a part of the encoder's score, or that scales the prior's."""
    z, model = model.encode(originals).mean, model.with_noise_scale(1.0)
    nothing, whole = (samplers.attempt(model, originals, z, gamma, 3) for gamma in (0.0, 1.0))
    prior = model.sample_prior(len(originals), seed=3)
    assert nothing.l2 == l2_distances(originals, prior).mean().item()
    assert whole.l2 != nothing.l2


def test_recommended_is_the_cheapest_within_two_percent() -> None:
    """Catches the best L2 at any price, and a cheap one that is worse, or fails on one image."""
    trials = [trial(5, 1.03), trial(10, 1.019, "heun"), trial(10, 1.01), trial(50, 1.0)]
    assert recommended(trials) == trials[2]
    assert recommended(trials[:1]) == trials[0]
    # By an image on which a sampler diverges its standard error grows as well.
    best = replace(trial(50, 1.0), distances=(1.0,) * 100)
    failing = replace(trial(5, 1.2), distances=(1.0,) * 99 + (21.0,))
    assert recommended([failing, best]) == best


@pytest.mark.parametrize(("shift", "evaluations"), [(0.29, 5), (0.31, 50)])
def test_recommended_is_no_worse_beyond_the_noise(shift: float, evaluations: int) -> None:
    """Catches a choice that other noise of the sampler would have made otherwise.

    The differences over 100 images alternate around ``shift`` by 1.5·0.99^½: their standard
    deviation is 1.5, the standard error of their mean 0.15, and twice that 0.30.
    """
    noise = torch.tensor([1.0, -1.0] * 50) * 1.5 * 0.99**0.5
    cheap, best = (
        replace(trial(count, l2), distances=tuple((l2 + sign * noise / 2).tolist()))
        for count, l2, sign in ((5, 10 + shift, 1), (50, 10.0, -1))
    )
    assert recommended([cheap, best]).evaluations == evaluations


def test_pareto_is_what_nothing_beats() -> None:
    """Catches a point that another one beats in both, and equal ones twice."""
    trials = [trial(20, 2.0), trial(5, 3.0), trial(10, 3.5), trial(50, 1.0), trial(20, 2.5)]
    assert pareto(trials) == [trials[1], trials[0], trials[3]]
    assert pareto([trial(5, 1.0), trial(5, 1.0)]) == [trial(5, 1.0)]


def test_figures_draw_every_trial(tmp_path: Path) -> None:
    """Catches a curve left out, a figure that cannot be saved, and a column that is lacking."""
    trials = [trial(5, 3.0), trial(10, 2.0), trial(5, 2.5, "heun")]
    figure = samplers.draw(trials)
    drawn = {line.get_label(): line.get_xdata().tolist() for line in figure.axes[0].lines}
    assert drawn == {"ddim": [5, 10], "heun": [5], "not beaten": [5, 10]}
    figures.save(figure, tmp_path / "a.png")
    second = guidance.draw([trial(5, 3.0), trial(5, 2.0)])
    assert [len(axis.lines) for axis in second.axes] == [1, 1]
    figures.save(second, tmp_path / "b.png")
    assert trials[0].record() == {
        "sampler": "ddim", "grid": "log_snr", "evaluations": 5, "guidance": 1.0, "l2": 3.0,
        "ssim": 0.5, "sharpness": 1.0, "seconds": 2.0,
    }  # fmt: skip

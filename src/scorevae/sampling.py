"""Time grids, one-step solvers, and the loop that integrates a score in either direction.

A grid is a float64 tensor of times; a step takes x at time t to time s and is the only thing
that differs between samplers; :func:`integrate` is the loop. Times stay float64 scalars on the
CPU: coefficients are exact to double precision and mix freely with tensors of any device.

Reverse SDE: dx = [f − g² s] dt + g dw̄ (Song 2020, arXiv 2011.13456, eq. 6; eq. 5 of arXiv
2304.12141). Probability-flow ODE: dx/dt = f − ½ g² s (ibid. eq. 13), which in x̄ = x/α and
σ̄ = σ/α reads dx̄/dσ̄ = ε̂(x, t) for every process here.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol, TypeVar

import torch
from jaxtyping import Float64
from torch import Tensor

from scorevae.config import SamplingConfig
from scorevae.gaussian import normal_like
from scorevae.randomness import make_generator
from scorevae.score import ScoreFn, denoised_to_score, score_to_denoised, score_to_noise
from scorevae.sde import SDE, log_snr_range
from scorevae.shapes import Data, Times

NoiseFn = Callable[[Tensor], Tensor]
Report = Callable[[int], None]
Step = Callable[[ScoreFn, SDE, Data, Times, Times, NoiseFn], Data]
Item = TypeVar("Item")
Result = TypeVar("Result")
Grid = Float64[Tensor, " points"]
TimeGrid = Callable[[SDE, int], Grid]  # steps -> steps + 1 decreasing times from t_max to t_min


def uniform_grid(sde: SDE, steps: int) -> Grid:
    """Equal steps in t."""
    return torch.linspace(sde.t_max, sde.t_min, steps + 1, dtype=torch.float64)


def log_snr_grid(sde: SDE, steps: int) -> Grid:
    """Equal steps in λ = ln(α²/σ²)."""
    largest, smallest = log_snr_range(sde)
    levels = torch.linspace(smallest, largest, steps + 1, dtype=torch.float64)
    return _pinned(sde, sde.time_of_log_snr(levels))


def karras_grid(sde: SDE, steps: int, rho: float = 7.0) -> Grid:
    """Equal steps in (σ/α)^{1/ρ}; Karras et al. 2022, arXiv 2206.00364, eq. 5, ρ = 7."""
    largest, smallest = log_snr_range(sde)
    ends = torch.tensor([smallest, largest], dtype=torch.float64).mul(-0.5).exp() ** (1 / rho)
    ratios = torch.linspace(ends[0].item(), ends[1].item(), steps + 1, dtype=torch.float64) ** rho
    return _pinned(sde, sde.time_of_log_snr(-2 * ratios.log()))


def _pinned(sde: SDE, times: Grid) -> Grid:
    """Replace the ends, which the inverse of λ returns up to rounding, by t_max and t_min."""
    times[0], times[-1] = sde.t_max, sde.t_min
    return times


GRIDS: dict[str, TimeGrid] = {
    "uniform": uniform_grid,
    "log_snr": log_snr_grid,
    "karras": karras_grid,
}


def euler_maruyama(score: ScoreFn, sde: SDE, x: Data, t: Times, s: Times, noise: NoiseFn) -> Data:
    """Reverse SDE: x_s = x + (f − g² s_θ)(s − t) + g √(t − s) noise, for s < t."""
    diffusion = sde.diffusion(t)
    drift = sde.drift_rate(t) * x - diffusion**2 * score(x, t)
    return x + (s - t) * drift + diffusion * torch.sqrt(t - s) * noise(x)


def ddim(score: ScoreFn, sde: SDE, x: Data, t: Times, s: Times, noise: NoiseFn) -> Data:
    """x_s = α_s x̂_0 + σ_s ε̂ (Song et al. 2020, arXiv 2010.02502, eq. 12, η = 0).

    The Euler step of dx̄/dσ̄ = ε̂; exact where ε̂ does not change between t and s.
    """
    return _transfer(sde, x, score_to_noise(sde, score(x, t), t), t, s)


def heun(score: ScoreFn, sde: SDE, x: Data, t: Times, s: Times, noise: NoiseFn) -> Data:
    """Trapezoidal rule for dx̄/dσ̄ = ε̂ (Karras et al. 2022, algorithm 1); two evaluations."""
    slope = score_to_noise(sde, score(x, t), t)
    predicted = _transfer(sde, x, slope, t, s)
    corrected = score_to_noise(sde, score(predicted, s), s)
    return _transfer(sde, x, 0.5 * (slope + corrected), t, s)


def _transfer(sde: SDE, x: Data, noise: Data, t: Times, s: Times) -> Data:
    """Solve dx̄/dσ̄ = noise (constant) from t to s: (α_s/α_t) x + (σ_s − σ_t α_s/α_t) noise."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = sde.marginal(t), sde.marginal(s)
    ratio = alpha_s / alpha_t
    return ratio * x + (sigma_s - sigma_t * ratio) * noise


class DPMSolverPP2M:
    """DPM-Solver++(2M) and its SDE form, Lu et al. 2022, arXiv 2211.01095, algorithm 2 and §4.3.

    A multistep method with one evaluation a step: it remembers x̂_0 of the step before, so each
    trajectory needs its own instance. With ℓ = ln(α/σ), h = ℓ_s − ℓ_t, the prime marking the step
    before, and D = (1 + h/(2h')) x̂_0 − h/(2h') x̂_0' (the first step takes D = x̂_0):

    ODE: x_s = (σ_s/σ_t) x + α_s (1 − e^{−h}) D
    SDE: x_s = (σ_s/σ_t) e^{−h} x + α_s (1 − e^{−2h}) D + σ_s √(1 − e^{−2h}) noise
    """

    def __init__(self, *, stochastic: bool) -> None:
        self._stochastic = stochastic
        self._before: tuple[Data, Times] | None = None

    def __call__(
        self, score: ScoreFn, sde: SDE, x: Data, t: Times, s: Times, noise: NoiseFn
    ) -> Data:
        """One step from t to s."""
        width = 0.5 * (sde.log_snr(s) - sde.log_snr(t))
        denoised = score_to_denoised(sde, score(x, t), x, t)
        estimate = denoised
        if self._before is not None:
            denoised_before, width_before = self._before
            weight = width / (2 * width_before)
            estimate = (1 + weight) * denoised - weight * denoised_before
        self._before = denoised, width
        (_, sigma_t), (alpha_s, sigma_s) = sde.marginal(t), sde.marginal(s)
        if not self._stochastic:
            return (sigma_s / sigma_t) * x - alpha_s * torch.expm1(-width) * estimate
        gain = -torch.expm1(-2 * width)
        kept = (sigma_s / sigma_t) * torch.exp(-width) * x
        return kept + alpha_s * gain * estimate + sigma_s * torch.sqrt(gain) * noise(x)


def scaled(step: Step, noise_scale: float) -> Step:
    """The same step with its noise multiplied by τ."""

    def scaled_step(score: ScoreFn, sde: SDE, x: Data, t: Times, s: Times, noise: NoiseFn) -> Data:
        return step(score, sde, x, t, s, lambda x: noise_scale * noise(x))

    return scaled_step


def predictor_corrector(snr: float, noise_scale: float) -> Step:
    """Euler–Maruyama, then one Langevin step at the new time; two evaluations a step.

    Song 2020, algorithms 4 and 5: x ← x + η s + √(2η) noise with
    η = 2 α² (snr ‖noise‖/‖s‖)², norms averaged over the batch, α² taken as 1 (it is their α_i).
    """
    predict = scaled(euler_maruyama, noise_scale)

    def step(score: ScoreFn, sde: SDE, x: Data, t: Times, s: Times, noise: NoiseFn) -> Data:
        x = predict(score, sde, x, t, s, noise)
        return langevin(score, x, s, noise, snr=snr, noise_scale=noise_scale)

    return step


def langevin(
    score: ScoreFn, x: Data, t: Times, noise: NoiseFn, *, snr: float, noise_scale: float = 1.0
) -> Data:
    """One Langevin step towards p_t; its size follows from the signal-to-noise ratio ``snr``.

    τ scales the noise that is added, not that which gives the step its size.
    """
    gradient, fresh = score(x, t), noise(x)
    ratio = fresh.flatten(1).norm(dim=1).mean() / gradient.flatten(1).norm(dim=1).mean()
    size = 2 * (snr * ratio) ** 2
    return x + size * gradient + torch.sqrt(2 * size) * (noise_scale * fresh)


class Sampler(NamedTuple):
    """How a solver is made for one trajectory, and the evaluations of the score in its step."""

    make: Callable[[SamplingConfig], Step]
    evaluations: int


SAMPLERS = {
    "euler_maruyama": Sampler(lambda settings: scaled(euler_maruyama, settings.noise_scale), 1),
    "ddim": Sampler(lambda settings: ddim, 1),
    "heun": Sampler(lambda settings: heun, 2),
    "dpm_solver_pp": Sampler(lambda settings: DPMSolverPP2M(stochastic=False), 1),
    "sde_dpm_solver_pp": Sampler(
        lambda settings: scaled(DPMSolverPP2M(stochastic=True), settings.noise_scale), 1
    ),
    "predictor_corrector": Sampler(
        lambda settings: predictor_corrector(settings.corrector_snr, settings.noise_scale), 2
    ),
}


def make_step(settings: SamplingConfig) -> Step:
    """A fresh solver for one trajectory."""
    return SAMPLERS[settings.sampler].make(settings)


def network_evaluations(settings: SamplingConfig) -> int:
    """Evaluations of the score that :func:`generate` makes with these settings."""
    return SAMPLERS[settings.sampler].evaluations * (settings.steps - 1) + 1


def steps_within(sampler: str, evaluations: int) -> int:
    """The most ``steps``, at least one, that make no more evaluations than these."""
    return max(1, (evaluations - 1) // SAMPLERS[sampler].evaluations + 1)


def clipped(score: ScoreFn, sde: SDE) -> ScoreFn:
    """The score whose x̂_0 is that of ``score`` clamped to [−1, 1], where images are.

    To be applied to the combined score: a clamped prior plus ∇ ln q would be no density's score.
    """

    def clipped_score(x_t: Data, t: Times) -> Data:
        denoised = score_to_denoised(sde, score(x_t, t), x_t, t).clamp(-1, 1)
        return denoised_to_score(sde, denoised, x_t, t)

    return clipped_score


@torch.no_grad()
def integrate(
    score: ScoreFn, sde: SDE, x: Data, times: Grid, *, step: Step, noise: NoiseFn
) -> Data:
    """Carry x along the grid; increasing times run an ODE solver forwards (encoding to x_1)."""
    for t, s in pairwise(times):
        x = step(score, sde, x, t, s, noise)
    return x


@torch.no_grad()
def generate(
    score: ScoreFn,
    sde: SDE,
    x_1: Data,
    settings: SamplingConfig,
    *,
    noise: NoiseFn = torch.randn_like,
) -> Data:
    """Draw x_0 from x_1 ~ N(0, terminal_std² I): ``steps`` − 1 steps to t_min, then Tweedie.

    x_1 is the noise at t_max, which is 1 but for priors that know less noise.

    The last evaluation returns E[x_0|x_{t_min}] of the (combined) score, without noise, for
    every sampler alike.

    τ = ``noise_scale`` multiplies x_1 and the noise of every step (variance-scaled reverse
    diffusion, arXiv 2503.20297). τ = 1 is the model; where p(x_0|z) is Gaussian, τ leaves the mean
    of what is drawn and multiplies its covariance by τ². τ = 0 is one deterministic image.
    """
    if settings.clip:
        score = clipped(score, sde)
    x, t = settings.noise_scale * x_1, torch.tensor(sde.t_max, dtype=torch.float64)
    if settings.steps > 1:
        times = GRIDS[settings.grid](sde, settings.steps - 1)
        x, t = integrate(score, sde, x, times, step=make_step(settings), noise=noise), times[-1]
    return score_to_denoised(sde, score(x, t), x, t)


class Share(Protocol):
    """How a loop over independent items is gone through: as by :func:`map`, or by many."""

    def __call__(
        self, function: Callable[[Item], Result], items: Sequence[Item], /
    ) -> Iterator[Result]:
        """The result of every item, in their order."""


class KeptBatches(Protocol):
    """Where the finished batches of a long call are kept."""

    def load(self, rows: slice) -> Tensor | None:
        """The x_0 of these rows, or None."""

    def save(self, rows: slice, values: Tensor) -> None:
        """Keep the x_0 of these rows."""


def draw_in_batches(
    score: Callable[[slice], ScoreFn],
    sde: SDE,
    x_1: Data,
    settings: SamplingConfig,
    *,
    device: torch.device,
    batch: int,
    seed: int,
    shared: int = 1,
    report: Report = lambda done: None,
    kept: KeptBatches | None = None,
    share: Share = map,
) -> Data:
    """:func:`generate` for any number of images, some at a time; results are on the CPU.

    ``score`` gives the score of some rows, on ``device``; x_1 is standard normal. At most
    ``batch`` images are drawn together, in whole groups of ``shared`` consecutive ones that see
    the same noise of the sampler; it follows from the seed and the first row of the batch.
    ``report`` is called with the number of images done. ``kept`` holds the batches that an
    interrupted call finished; those of this call are added. ``share`` goes through the batches.
    """
    size = max(1, batch // shared) * shared
    batches = [slice(first, min(first + size, len(x_1))) for first in range(0, len(x_1), size)]

    def draw(rows: slice) -> Data:
        x_0 = kept.load(rows) if kept is not None else None
        if x_0 is None:
            noise = _noise(make_generator(device, seed, "sampler", rows.start), shared)
            start = x_1[rows].to(device) * sde.terminal_std
            x_0 = generate(score(rows), sde, start, settings, noise=noise).cpu()
            if kept is not None:
                kept.save(rows, x_0)
        return x_0

    parts = []
    for rows, x_0 in zip(batches, share(draw, batches), strict=True):
        parts.append(x_0)
        report(rows.stop)
    return torch.cat(parts)


def _noise(generator: torch.Generator, shared: int) -> NoiseFn:
    """Standard normal noise like its argument, the same for ``shared`` consecutive rows."""
    return lambda x: normal_like(x[::shared], generator).repeat_interleave(shared, dim=0)

"""The prior's likelihood by the probability-flow ODE, the reference for its bound.

dx/dt = f − ½ g² s, and ln p_ε(x_ε) = ln π(x_1) + ∫_ε^1 ∇·(f − ½ g² s) dt (Song et al. 2020,
arXiv 2011.13456, eq. 13 and 39), with the divergence of s by Skilling–Hutchinson: E eᵀ(∂s/∂x)e for
random signs e (ibid. eq. 40). Integrated over λ = ln(α²/σ²), in which solutions are smooth:
dt = −(σ²/g²) dλ.
"""

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from scorevae.errors import UserError
from scorevae.evaluation.bound import (
    GREY_STEP,
    SMALLEST_NOISE,
    Estimate,
    Nats,
    Repeats,
    estimate,
    extended,
)
from scorevae.randomness import make_generator
from scorevae.sampling import Share
from scorevae.score import ScoreFn
from scorevae.sde import SDE, log_snr_range
from scorevae.shapes import Data

State = Float64[np.ndarray, " _"]


class Flow(NamedTuple):
    """Where the ODE carries x_ε, and what that does to volumes."""

    x_1: Data  # float64, on the CPU
    log_volume: Nats  # ln p_ε(x_ε) − ln p_1(x_1)
    evaluations: int  # of the score and its divergence


class ODELikelihood(NamedTuple):
    """−ln p(x_0) of 8-bit images under the ODE: mean over images in nats."""

    dimensions: int
    total: Estimate
    per_image: Nats
    evaluations: float  # of the score with its divergence, mean over the chunks of images

    def bits_per_dimension(self) -> Estimate:
        """The estimate divided by d ln 2."""
        return self.total.scaled(1 / (self.dimensions * math.log(2)))


@torch.no_grad()
def ode_log_likelihood(
    x_0: Data,
    *,
    sde: SDE,
    prior: ScoreFn,
    repeats: int,
    batch: int,
    seed: int,
    tolerance: float,
    smallest_noise: float = SMALLEST_NOISE,
    share: Share = map,
) -> ODELikelihood:
    """−ln p(x_0) of 8-bit images in [−1, 1], uniformly dequantised; results are on the CPU.

    A density p gives a grey value the probability ∫ p over its step of 2/255, of which
    d ln(2/255) + E_u ln p(x_0 + u · 2/255), u uniform on [−½, ½], is a lower bound (Theis et al.
    2015, arXiv 1511.01844, §3.1). Signs and u depend on the seed and an image's row.

    ``prior`` is differentiated forwards, which its ``torch.no_grad`` does not prevent. The
    Monte-Carlo error needs two ``repeats`` of u and signs for each image; ``batch`` images share
    the solver's steps, whose ``tolerance`` is relative and absolute, 1e-5 in Song et al. 2020. The
    ODE starts at x_ε = α_ε x_0 with σ_ε/α_ε = ``smallest_noise``. ``share`` goes through the
    batches.

    Raises:
        UserError: no images, or no repeats.
    """
    if len(x_0) == 0 or repeats < 1:
        raise UserError(
            f"likelihood: got {len(x_0)} images and {repeats} repeats; give at least one of each"
        )

    def solve(first: int) -> tuple[Repeats, list[int]]:
        chunk = x_0[first : first + batch]
        drawn, evaluations = [], []
        for repeat in range(repeats):
            u, signs = _dequantisation_and_signs(chunk, first, repeat, seed)
            nats, count = ode_log_density(
                chunk + GREY_STEP * u,
                sde=sde,
                score=prior,
                probes=[signs],
                tolerance=tolerance,
                smallest_noise=smallest_noise,
            )
            drawn.append(-nats - x_0[0].numel() * math.log(GREY_STEP))
            evaluations.append(count)
        return torch.stack(drawn, dim=1), evaluations

    costs, counts = zip(*share(solve, range(0, len(x_0), batch)), strict=True)
    values, evaluations = torch.cat(costs), [count for chunk in counts for count in chunk]
    return ODELikelihood(
        dimensions=x_0[0].numel(),
        total=estimate(values),
        per_image=values.mean(dim=1),
        evaluations=sum(evaluations) / len(evaluations),
    )


def _dequantisation_and_signs(like: Data, first: int, repeat: int, seed: int) -> tuple[Data, Data]:
    """u on [−½, ½] and e in {−1, 1}, both from one generator for each image."""
    rows, shape = range(first, first + len(like)), (2, *like.shape[1:])
    generators = (make_generator("cpu", seed, "ode_likelihood", row, repeat) for row in rows)
    uniform = [torch.rand(shape, generator=own, dtype=like.dtype) for own in generators]
    u, signs = torch.stack(uniform).to(like).unbind(1)
    return u - 0.5, torch.where(signs < 0.5, -1.0, 1.0).to(like)


def ode_log_density(
    x: Data,
    *,
    sde: SDE,
    score: ScoreFn,
    probes: Sequence[Data],
    tolerance: float,
    smallest_noise: float = SMALLEST_NOISE,
) -> tuple[Nats, int]:
    """ln p(x) = ln p_ε(α_ε x) + d ln α_ε in nats, and the evaluations of the score.

    ``probes`` are e with Σ E[e eᵀ] = I: :func:`unit_vectors`, or one draw of random signs.
    """
    largest = -2 * math.log(smallest_noise)
    alpha = sde.marginal(sde.time_of_log_snr(torch.tensor(largest, dtype=torch.float64))).alpha
    flow = flow_to_noise(
        alpha.to(x) * x, sde=sde, score=score, probes=probes, tolerance=tolerance, start=largest
    )
    d, std = x[0].numel(), sde.terminal_std
    normalised = (flow.x_1 / std).flatten(1).square().sum(dim=1)
    log_pi = -0.5 * normalised - d * math.log(std * math.sqrt(2 * math.pi))
    return log_pi + flow.log_volume + d * torch.log(alpha), flow.evaluations


def flow_to_noise(
    x: Data, *, sde: SDE, score: ScoreFn, probes: Sequence[Data], tolerance: float, start: float
) -> Flow:
    """Carry x from λ = ``start`` to λ(t_max) by adaptive RK45 (Dormand–Prince, scipy).

    The error of a step is the root mean square over all images, pixels and log-volumes. The
    network runs in the dtype of x, the solver in float64.
    """
    pixels = x.numel()

    def slope(log_snr: float, state: State) -> State:
        x_t = torch.from_numpy(state[:pixels]).reshape(x.shape).to(x)
        dx, divergence = _velocity(sde, score, x_t, log_snr, probes)
        return torch.cat([dx.flatten().double().cpu(), divergence.double().cpu()]).numpy()

    end = log_snr_range(sde)[1]
    state = np.concatenate([x.flatten().double().cpu().numpy(), np.zeros(len(x))])
    accuracy = {"rtol": tolerance, "atol": tolerance}
    solution = solve_ivp(slope, (start, end), state, method="RK45", t_eval=[end], **accuracy)
    if not solution.success:
        raise ArithmeticError(f"the probability-flow ODE was not solved: {solution.message}")
    last = torch.from_numpy(solution.y[:, -1].copy())
    return Flow(last[:pixels].reshape(x.shape), last[pixels:], solution.nfev)


def _velocity(
    sde: SDE, score: ScoreFn, x_t: Data, log_snr: float, probes: Sequence[Data]
) -> tuple[Data, Tensor]:
    """dx/dλ = −(σ²/g²) a x + ½ σ² s and its divergence, one number for each image."""
    t = sde.time_of_log_snr(torch.tensor(log_snr, dtype=torch.float64))
    sigma = sde.marginal(t).sigma
    linear = (-((sigma / sde.diffusion(t)) ** 2) * sde.drift_rate(t)).item()
    factor = (0.5 * sigma**2).item()
    times = t.to(x_t).expand(len(x_t))
    value, divergence = _score_and_divergence(extended(score, sde), x_t, times, probes)
    return linear * x_t + factor * value, linear * x_t[0].numel() + factor * divergence


def _score_and_divergence(
    score: ScoreFn, x: Data, t: Tensor, probes: Sequence[Data]
) -> tuple[Data, Tensor]:
    """s and Σ_e eᵀ (∂s/∂x) e, by forward differentiation; attention without fused kernels."""
    divergence = torch.zeros(len(x)).to(x)
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        # The first forward derivative loads rules that torch still writes in TorchScript.
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
        for e in probes:
            result = torch.func.jvp(lambda y: score(y, t), (x,), (e,))
            value, derivative = result[0], result[1]
            divergence = divergence + (e * derivative).flatten(1).sum(dim=1)
    return value, divergence


def unit_vectors(x: Data) -> list[Data]:
    """The d unit vectors as probes: the divergence is then exact, for small d."""
    vectors = torch.eye(x[0].numel()).to(x).reshape(-1, 1, *x.shape[1:])
    return [vector.expand_as(x) for vector in vectors]

"""The one training loop. It knows modules, objectives and numbers; not SDEs, priors or MLflow."""

import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from scorevae.config import TrainingConfig
from scorevae.errors import UserError
from scorevae.randomness import derive_seed, make_generator
from scorevae.runtime.interruption import Interrupted, stop_requests
from scorevae.runtime.progress import progress

Objective = Callable[[nn.Module, Tensor, torch.Generator], dict[str, Tensor]]
Batches = Callable[[int], Tensor]
Record = Callable[[int, dict[str, float]], None]
Validate = Callable[[nn.Module], dict[str, float]]

SAVE_SECONDS = "300"  # the default of the environment variable SCOREVAE_SAVE_SECONDS
MAX_SKIPPED = 20


class State(Protocol):
    """Where a run that may be interrupted keeps what it needs to go on."""

    def load(self) -> dict[str, Any] | None:
        """The last saved state, or None at the start."""

    def save(self, state: dict[str, Any]) -> None:
        """Replace the saved state atomically."""


def save_interval() -> float:
    """Seconds between two savings of the state: ``SCOREVAE_SAVE_SECONDS``, or 300.

    Raises:
        UserError: the variable is no number of seconds.
    """
    text = os.environ.get("SCOREVAE_SAVE_SECONDS", SAVE_SECONDS)
    with suppress(ValueError):
        if (seconds := float(text)) >= 0:  # which NaN is not
            return seconds
    raise UserError(f"SCOREVAE_SAVE_SECONDS={text}: give a number of seconds, 0 or more")


class LossModule(nn.Module):
    """Module and objective in one ``forward``, so that DDP sees the whole loss."""

    def __init__(self, module: nn.Module, objective: Objective, *, bf16: bool) -> None:
        super().__init__()
        self.module = module
        self.objective = objective
        self.bf16 = bf16

    def forward(self, x_0: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean of every loss over the batch; ``loss`` is the one to minimise."""
        with torch.autocast(x_0.device.type, torch.bfloat16, enabled=self.bf16):
            losses = self.objective(self.module, x_0, generator)
        return {name: values.float().mean() for name, values in losses.items()}


def learning_rate(settings: TrainingConfig, step: int) -> float:
    """Linear warm-up over ``warmup`` steps, then constant or half a cosine down to zero."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.5 * settings.learning_rate * (1 + math.cos(math.pi * done))


def falling(points: Sequence[tuple[int, float]]) -> float | None:
    """How fast a loss still falls: percent for each doubling of the steps.

    A least-squares line through (log₂ step, loss) of the last fifth of the steps, or of the last
    two points where that holds fewer, its slope over |last loss|. Positive while the loss falls.
    None for fewer than two points, and where the last loss is zero.
    """
    late = [point for point in points if point[0] >= 0.8 * points[-1][0]]
    steps, losses = np.array(late if len(late) > 1 else points[-2:]).reshape(-1, 2).T
    if len(steps) < 2 or losses[-1] == 0:
        return None
    slope = np.polyfit(np.log2(steps), losses, 1)[0]
    return float(-100 * slope / abs(losses[-1]))


def average(module: nn.Module, ema: float) -> AveragedModel:
    """Exponential moving average with decay min(ema, (1 + n)/(10 + n)) at its n-th update.

    The growing decay forgets the initial weights, which a constant one would keep for 1/(1 − ema)
    steps.
    """

    def update(averaged: Any, current: Any, count: Any) -> None:  # noqa: ANN401 (torch's signature)
        decay = min(ema, (1 + count.item()) / (10 + count.item()))
        get_ema_multi_avg_fn(decay)(averaged, current, count)

    return AveragedModel(module, multi_avg_fn=update)


def fit(
    module: nn.Module,
    objective: Objective,
    batches: Batches,
    settings: TrainingConfig,
    *,
    seed: int,
    name: str,
    record: Record,
    validate: Validate,
    state: State,
    accelerator: Accelerator,
) -> nn.Module:
    """Minimise the objective for ``settings.steps`` steps and return the averaged weights.

    Adam, warm-up, gradient clipping, EMA. Every number follows from (seed, name, step): a run
    that is killed and started again continues from the last saved state and ends, on a CPU, with
    the same bits as one that was not interrupted.

    SIGTERM, SIGINT and the end of the DVC that started it save the state first; a SIGKILL loses at
    most the ``SCOREVAE_SAVE_SECONDS`` (300) between two savings.

    ``module`` is modified. The objective gives named losses of shape (batch,), ``batches`` this
    process's share of a step's images, ``validate`` numbers for the averaged weights, asked for
    every ``validate_every`` steps and at the end; of their ``test_loss`` the last record says by
    ``falling`` whether it still does. ``record`` receives (step, numbers); on
    resuming, earlier ones once more, in order.

    Raises:
        UserError: loss or gradient were not finite in MAX_SKIPPED steps in a row, or the state
            cannot be saved; the last good state is kept.
        Interrupted: stopped from outside; the state is saved.
    """
    interval = save_interval()
    loss_module = LossModule(module, objective, bf16=settings.precision == "bf16")
    optimizer = torch.optim.Adam(module.parameters(), lr=settings.learning_rate, fused=True)
    prepared, optimizer = accelerator.prepare(loss_module, optimizer)
    averaged = average(module, settings.ema)
    log = _Log(record, settings.log_every)
    kept = {"module": module, "optimizer": optimizer, "averaged": averaged, "log": log}
    first, skipped = _restore(state, kept), 0
    module.requires_grad_(True).train()
    with stop_requests() as stopping, progress(name, first, settings.steps) as bar:
        saved_at = time.monotonic()
        for step in range(first, settings.steps):
            rate = learning_rate(settings, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            rank = accelerator.process_index
            torch.manual_seed(derive_seed(seed, name, "network", step, rank))  # dropout
            generator = make_generator(accelerator.device, seed, name, "loss", step, rank)
            losses = prepared(batches(step).to(accelerator.device), generator)
            optimizer.zero_grad()
            accelerator.backward(losses["loss"])
            norm = accelerator.clip_grad_norm_(module.parameters(), settings.clip)
            shown = {**losses, "gradient_norm": norm}
            # of all processes, so that they skip together
            loss = accelerator.reduce(losses["loss"].detach(), "mean")
            if torch.stack([norm, loss]).isfinite().all():  # the step's one wait for the device
                optimizer.step()
                averaged.update_parameters(module)
                skipped = 0
            else:
                skipped += 1
                if skipped == MAX_SKIPPED:
                    raise _not_finite(name, step, shown, rate)
            log.add(step + 1, shown)
            last = step + 1 == settings.steps
            if last or (step + 1) % settings.validate_every == 0:
                averaged.module.eval()
                log.validated(step + 1, validate(averaged.module), last=last)
                averaged.module.train()
            bar(step + 1, log.latest)
            reason = stopping()
            if last or reason or time.monotonic() - saved_at > interval:
                if accelerator.is_main_process:
                    parts = {part: saved.state_dict() for part, saved in kept.items()}
                    state.save({"step": step + 1, **parts})
                saved_at = time.monotonic()
            if reason:
                raise Interrupted(
                    f"{name}: stopped by {reason}; the state after step {step + 1} of "
                    f"{settings.steps} is saved, and the same command goes on from there"
                )
    return averaged.module.eval().requires_grad_(False)


def _restore(state: State, kept: dict[str, Any]) -> int:
    """Load the last state, if there is one, into what it was taken of; return its step."""
    saved = state.load()
    if saved is None:
        return 0
    for name, part in kept.items():
        part.load_state_dict(saved[name])
    return int(saved["step"])


def _not_finite(name: str, step: int, values: dict[str, Tensor], rate: float) -> UserError:
    terms = ", ".join(f"{term} {value.item():.4g}" for term, value in values.items())
    return UserError(
        f"{name}: step {step}: loss or gradient were not finite in {MAX_SKIPPED} steps in a row "
        f"({terms}, learning rate {rate:.3g}); lower learning_rate, raise warmup, lower clip, or "
        "set precision to float32. The last good state is kept"
    )


class _Log:
    """Means of the losses between two records, summed on the device, and what was recorded."""

    def __init__(self, record: Record, every: int) -> None:
        self._record = record
        self._every = every
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._rows: list[tuple[int, dict[str, float]]] = []
        self._seconds_before = 0.0
        self._started = time.monotonic()
        self.latest: dict[str, float] = {}

    def add(self, step: int, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach()
        self._count += 1
        if step % self._every == 0:
            self.latest = {n: v.item() / self._count for n, v in self._sums.items()}
            self._sums, self._count = {}, 0
            self.write(step, self.latest)

    def validated(self, step: int, numbers: dict[str, float], *, last: bool) -> None:
        """Write what validation gave; at the end, how fast the test loss still falls."""
        if last and "test_loss" in numbers:
            before = [(s, row["test_loss"]) for s, row in self._rows if "test_loss" in row]
            slope = falling([*before, (step, numbers["test_loss"])])
            numbers = numbers if slope is None else {**numbers, "falling": slope}
        self.write(step, numbers)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        # milliseconds since 1970: by it MLflow knows a point again, also after resuming
        row = {**numbers, "seconds": self._seconds(), "timestamp": int(1000 * time.time())}
        self._rows.append((step, row))
        self._record(step, row)

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        return {
            "sums": self._sums,
            "count": self._count,
            "rows": self._rows,
            "seconds": self._seconds(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self._sums, self._count = saved["sums"], saved["count"]
        self._rows, self._seconds_before = saved["rows"], saved["seconds"]
        for step, numbers in self._rows:
            self._record(step, numbers)

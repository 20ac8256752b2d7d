"""training: the loop resumes bit for bit, averages, clips, and survives bad steps."""

import copy
import inspect
import math
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode

from scorevae.config import TrainingConfig
from scorevae.data import batches as data
from scorevae.errors import UserError
from scorevae.randomness import global_seed
from scorevae.runtime import compiled
from scorevae.runtime.interruption import Interrupted
from scorevae.training import step as training
from scorevae.training.loop import fit, save_interval
from scorevae.training.step import Average, learning_rate

STEPS = 7
Rows = list[tuple[int, dict[str, float]]]
Loss = Callable[[nn.Module, Tensor, torch.Generator], dict[str, Tensor]]


class Drawing:
    """An objective that is one function, which draws itself."""

    def __init__(self, function: Loss) -> None:
        self.function = function

    def draw(self, x: Tensor, generator: torch.Generator) -> torch.Generator:
        return generator

    def frozen(self, x: Tensor, draw: torch.Generator) -> None:
        return None

    def trained(
        self, module: nn.Module, x: Tensor, draw: torch.Generator, frozen: None
    ) -> dict[str, Tensor]:
        return self.function(module, x, draw)


class Memory:
    """A State that keeps copies, as files would."""

    def __init__(self) -> None:
        self.saved: dict[str, Any] | None = None

    def load(self) -> dict[str, Any] | None:
        return copy.deepcopy(self.saved)

    def save(self, state: dict[str, Any]) -> None:
        self.saved = copy.deepcopy(state)


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    """On the CPU, where results are the same to the bit."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def settings(**changes: Any) -> TrainingConfig:  # noqa: ANN401 (any value)
    """A few steps of everything that the loop does."""
    values = {
        "batch": 8, "accumulate": 1, "steps": STEPS, "learning_rate": 0.05, "schedule": "cosine",
        "warmup": 2, "clip": 1.0, "ema": 0.5, "precision": "float32", "log_every": 2,
        "validate_every": 3,
    }  # fmt: skip
    return TrainingConfig(**values | changes)


def network() -> nn.Module:
    """Dropout included, to see where its randomness comes from; the same weights every time."""
    with global_seed(0, "weights"):
        return nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Dropout(0.5), nn.Linear(8, 1))


def batches(step: int) -> Tensor:
    """Eight rows that follow from the step."""
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(step))


def noisy_square(module: nn.Module, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Regression of the row's sum from a noisy row: uses both sources of randomness."""
    noise = torch.randn(x.shape, generator=generator)
    error = (module(x + 0.1 * noise)[:, 0] - x.sum(dim=1)) ** 2
    return {"loss": error, "size": error.detach().sqrt()}


def plain_square(module: nn.Module, x: Tensor, generator: object) -> dict[str, Tensor]:
    """The same without noise, as a compiler wants it: nothing is drawn but by dropout."""
    return {"loss": (module(x)[:, 0] - x.sum(dim=1)) ** 2}


class Run:
    """Everything observable of one call of fit."""

    def __init__(self, accelerator: Accelerator, **given: Any) -> None:  # noqa: ANN401
        self.module = given.get("module") or network()
        self.state = given.get("state") or Memory()
        self.rows: Rows = []
        self.arguments = {
            "objective": Drawing(given.get("objective", noisy_square)),
            "batches": given.get("batches", batches),
            "settings": settings(**given.get("changes", {})),
            "seed": given.get("seed", 1),
            "name": "test/run",
            "record": lambda step, numbers: self.rows.append((step, numbers)),
            "validate": given.get("validate", lambda module: {"test_loss": 1.0}),
            "state": self.state,
            "accelerator": accelerator,
        }

    def go(self) -> nn.Module:
        return fit(self.module, **self.arguments)

    def numbers(self) -> Rows:
        """What was recorded, but for the time it took."""
        times = ("seconds", "timestamp")
        return [(s, {k: v for k, v in row.items() if k not in times}) for s, row in self.rows]


def assert_same(first: object, second: object) -> None:
    """Equality to the bit, tensors included."""
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


def usual(
    before: Callable[..., object] = lambda call, module, x, generator: None,
    factor: Callable[[int], float] = lambda call: 1.0,
) -> Loss:
    """The usual objective: ``before`` sees what each call is given, ``factor`` scales its loss."""
    calls = count()

    def objective(module: nn.Module, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        call = next(calls)
        before(call, module, x, generator)
        losses = noisy_square(module, x, generator)
        return losses | {"loss": factor(call) * losses["loss"]}

    return objective


def stopping_at(step: int, stop: Callable[[], None]) -> Loss:
    """The usual objective, which calls ``stop`` at its ``step``-th evaluation."""
    return usual(before=lambda call, *given: stop() if call == step else None)


def failing(from_: int, until: int) -> Loss:
    """The usual objective with a gradient that is not a number from one evaluation to another."""
    return usual(factor=lambda call: math.nan if from_ <= call < until else 1.0)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_overfits_a_batch(accelerator: Accelerator) -> None:
    """Catches a wrong sign, a lost optimizer step, or an average of the initial weights.

    The problem is convex and solved exactly by the weights (1, 1, 1), so any descent that works
    ends orders of magnitude under the loss of the initial weights.
    """

    def squares(module: nn.Module, x: Tensor, generator: object = None) -> dict[str, Tensor]:
        return {"loss": (module(x)[:, 0] - x.sum(dim=1)) ** 2}

    linear = nn.Linear(3, 1)
    before = squares(linear, batches(0))["loss"].mean().item()
    changes = {"steps": 400, "warmup": 10, "clip": 100.0, "ema": 0.9, "log_every": 400}
    given = {"module": linear, "batches": lambda step: batches(0), "objective": squares}
    result = Run(accelerator, changes=changes, **given).go()
    assert squares(result, batches(0))["loss"].mean().item() < 1e-3 * before


@pytest.mark.parametrize("step", range(STEPS))
def test_resumed_equals_uninterrupted(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Catches anything not restored: weights, Adam, EMA, step, sums of the log, randomness."""
    monkeypatch.setenv("SCOREVAE_SAVE_SECONDS", "0")  # after every step
    whole = Run(accelerator)
    expected = whole.go()
    cut = Run(accelerator, objective=stopping_at(step, interrupt))
    with pytest.raises(KeyboardInterrupt):
        cut.go()
    again = Run(accelerator, state=cut.state)
    assert_same(again.go().state_dict(), expected.state_dict())
    assert_same(again.module.state_dict(), whole.module.state_dict())
    for part in ("optimizer", "averaged"):
        assert_same(again.state.saved[part], whole.state.saved[part])
    assert_same(again.numbers(), whole.numbers())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_all_processes_saves_and_stops(
    accelerator: Accelerator, number: signal.Signals
) -> None:
    """Catches a run that dies unsaved, of its workers too, goes on, or keeps the handlers.

    Ctrl-C, systemd and Slurm signal every process of a run, workers that read ahead included. A
    worker makes a difference between its parent's signals and others: hence the shell.
    """
    images = np.random.default_rng(0).integers(0, 256, (50, 1, 3, 1), dtype=np.uint8)
    others = {child.pid for child in multiprocessing.active_children()}
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]

    def run(**given: Any) -> Run:  # noqa: ANN401
        """With a loader that has a worker."""
        read = data.batches(images, 8, seed=0, flip=False, workers=1)
        return Run(accelerator, batches=lambda step: read(step).flatten(1), **given)

    def to_all() -> None:
        children = {child.pid for child in multiprocessing.active_children()}
        workers = sorted(children - others)
        assert len(workers) == 1
        pids = " ".join(map(str, [os.getpid(), *workers]))
        subprocess.run(["sh", "-c", f"kill -{number} {pids}"], check=True)
        time.sleep(0.5)  # until a dead worker would have been noticed

    cut = run(objective=stopping_at(3, to_all))
    with pytest.raises(Interrupted, match=f"{number.name}; the state after step 4 of {STEPS}"):
        cut.go()
    assert cut.state.saved["step"] == 4
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    whole, again = run(), run(state=cut.state)
    assert_same(again.go().state_dict(), whole.go().state_dict())
    assert_same(again.numbers(), whole.numbers())


def test_finished_state_only_returns_the_result(accelerator: Accelerator) -> None:
    """Catches a step too many when a stage is killed between training and writing.

    And a row recorded once more at another time, or one without its time.
    """
    run, before = Run(accelerator), int(1000 * time.time())
    expected = run.go()
    times = [row["timestamp"] for _, row in run.rows]
    assert times == sorted(times)
    assert before <= times[0] <= times[-1] <= 1000 * time.time()
    again = Run(accelerator, state=run.state, objective=stopping_at(0, interrupt))
    assert_same(again.go().state_dict(), expected.state_dict())
    assert again.numbers() == run.numbers()
    assert [row["timestamp"] for _, row in again.rows] == times


def test_seconds_go_on_after_resuming(accelerator: Accelerator) -> None:
    """Catches a clock that starts at zero again in every session."""
    run = Run(accelerator)
    run.go()
    run.state.saved |= {"step": STEPS - 1, "log": run.state.saved["log"] | {"seconds": 1000.0}}
    again = Run(accelerator, state=run.state)
    again.go()
    assert again.rows[-1][1]["seconds"] >= 1000


def test_recorded_rows(accelerator: Accelerator) -> None:
    """Catches a log of one step in place of the mean, and records at the wrong steps."""
    every, run = Run(accelerator, changes={"log_every": 1}), Run(accelerator)
    every.go()
    run.go()
    losses = {step: row["loss"] for step, row in every.numbers() if "loss" in row}
    assert [s for s, row in run.rows if "test_loss" in row] == [3, 6, 7]
    logged = {step: row for step, row in run.numbers() if "loss" in row}
    assert list(logged) == [2, 4, 6]
    for step, row in logged.items():
        assert set(row) == {"loss", "size", "gradient_norm"}
        # a sum of two float32 numbers: one rounding
        mean = (losses[step - 1] + losses[step]) / 2
        assert row["loss"] == pytest.approx(mean, rel=2**-23)


def test_validation_sees_the_average_in_evaluation_mode(accelerator: Accelerator) -> None:
    """Catches validation of the raw weights, or dropout in it, in the result, or not in training.

    The result collects no gradients either.
    """
    seen, modes = [], []

    def validate(module: nn.Module) -> dict[str, float]:
        seen.append((copy.deepcopy(module.state_dict()), module.training))
        return {}

    objective = usual(before=lambda call, module, *given: modes.append(module.training))
    run = Run(accelerator, validate=validate, objective=objective)
    result = run.go()
    assert modes == [True] * STEPS
    assert [training for _, training in seen] == [False] * 3
    assert not result.training
    assert not any(p.requires_grad for p in result.parameters())
    assert_same(seen[-1][0], result.state_dict())
    assert not torch.equal(seen[-1][0]["0.weight"], run.module.state_dict()["0.weight"])


def test_average_is_its_closed_form() -> None:
    """Catches another decay, one applied an update late, or the initial weights in the mean.

    E_1 = w_1, then E_{n+1} = d_n E_n + (1 − d_n) w_{n+1} with d_n = min(0.3, (1 + n)/(10 + n)),
    so that both branches of the minimum are used (n = 1, 2 grow; from 3 on constant).
    """
    values = torch.randn(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    module = nn.Linear(1, 1, bias=False).double()
    averaged, good = Average(module, 0.3), torch.zeros(())
    expected = values[0]
    for n, value in enumerate(values):
        nn.init.constant_(module.weight, value.item())
        averaged.update(good)
        if n > 0:
            decay = min(0.3, (1 + n) / (10 + n))
            expected = decay * expected + (1 - decay) * value
        # float64, at most four roundings of numbers below 4 in each of eight updates
        assert abs(averaged.module.weight.item() - expected.item()) < 8 * 4 * 4 * 2**-53


def test_no_average_returns_the_trained_weights(accelerator: Accelerator) -> None:
    """Catches an average that is not updated at every step (ema 0 is the last weights)."""
    run = Run(accelerator, changes={"ema": 0.0})
    assert_same(run.go().state_dict(), run.module.state_dict())


def test_learning_rate() -> None:
    """Catches a warm-up that starts at zero or overshoots, and a cosine that ends elsewhere."""
    s = settings(steps=10, warmup=4, learning_rate=1.0)
    rates = [learning_rate(s, step) for step in range(11)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    cosine = [0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(7)]
    assert rates[4:] == pytest.approx(cosine, abs=1e-15)  # values in [0, 1], float64
    assert rates[10] == pytest.approx(0, abs=1e-15)
    constant = settings(steps=10, warmup=4, learning_rate=1.0, schedule="constant")
    assert [learning_rate(constant, step) for step in range(3, 11)] == [1.0] * 8
    assert learning_rate(settings(steps=2, warmup=0, learning_rate=1.0), 0) == 1.0


def test_learning_rate_is_used(accelerator: Accelerator) -> None:
    """Catches a schedule that never reaches the optimizer.

    Adam's first step moves every weight by the learning rate, up to eps over the gradient.
    """
    linear = nn.Linear(3, 1, bias=False)
    before = linear.weight.detach().clone()
    changes = {"steps": 1, "warmup": 5, "learning_rate": 0.5, "clip": 10.0}

    def objective(module: nn.Module, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"loss": module(torch.ones_like(x))[:, 0]}  # gradient 1

    Run(accelerator, module=linear, objective=objective, changes=changes).go()
    moved = before - linear.weight.detach()
    # eps is 1e-8 beside a gradient of 1; rounding of weights below 1 to 2^-24
    torch.testing.assert_close(moved, torch.full_like(moved, 0.1), rtol=1e-6, atol=2**-22)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_clipping(accelerator: Accelerator, scale: float) -> None:
    """Catches clipping by value, not at all, or of gradients that are small enough.

    Adam's first moment after one step is a tenth of the gradient that it was given.
    """
    direction, module = torch.tensor([[3.0, 4.0]]), nn.Linear(2, 1, bias=False)
    run = Run(
        accelerator, module=module, batches=lambda step: direction,
        objective=lambda m, x, g: {"loss": scale * m(x)[:, 0]},
        changes={"steps": 1, "clip": 2.0, "log_every": 1},
    )  # fmt: skip
    run.go()
    given = 10 * run.state.saved["optimizer"]["state"][0]["exp_avg"]
    # torch divides by norm + 1e-6; the rest is float32 rounding
    expected = min(5 * scale, 2.0) * direction / 5
    torch.testing.assert_close(given, expected, rtol=1e-6, atol=0)
    assert run.rows[0][1]["gradient_norm"] == pytest.approx(5 * scale, rel=1e-6)


def test_bad_step_is_skipped(accelerator: Accelerator) -> None:
    """Catches a NaN that enters the weights, Adam or the average, or ends the run at once.

    A skipped step is one that leaves no trace: runs ending before and with it are equal.
    """
    constant = {"schedule": "constant"}
    short = Run(accelerator, changes=constant | {"steps": 4})
    long = Run(accelerator, changes=constant | {"steps": 5}, objective=failing(4, 5))
    assert_same(long.go().state_dict(), short.go().state_dict())
    for part in ("module", "optimizer", "averaged"):
        assert_same(long.state.saved[part], short.state.saved[part])
    on = Run(accelerator, objective=failing(2, 4)).go()
    assert all(torch.isfinite(p).all() for p in on.parameters())


def test_many_bad_steps_end_the_run(accelerator: Accelerator) -> None:
    """Catches an endless run of skipped steps, and a message that does not help."""
    changes = {"steps": 100, "schedule": "constant"}
    run = Run(accelerator, changes=changes, objective=failing(2, 1000))
    limit = training.MAX_SKIPPED
    expected = (
        rf"test/run: step {2 + limit - 1}: .* {limit} steps in a row \(loss nan, size \d.*, "
        r"gradient_norm nan, learning rate 0.05\); lower learning_rate.* good state is kept"
    )
    with pytest.raises(UserError, match=expected):
        run.go()
    assert all(torch.isfinite(p).all() for p in run.module.parameters())


def test_bad_steps_must_be_in_a_row(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a counter that is never set back."""
    monkeypatch.setattr(training, "MAX_SKIPPED", 2)
    Run(accelerator, objective=usual(factor=lambda call: math.nan if call % 2 else 1.0)).go()


def test_infinite_loss_with_a_finite_gradient_is_a_bad_step(accelerator: Accelerator) -> None:
    """Catches a loss that overflows by a constant term, which its gradient does not show."""

    def objective(module: nn.Module, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"loss": noisy_square(module, x, generator)["loss"] + math.inf}

    result = Run(accelerator, objective=objective).go()
    assert_same(result.state_dict(), network().state_dict())


def test_bad_steps_are_noticed_at_the_next_record(accelerator: Accelerator) -> None:
    """Catches a message of another step than the one that reached the limit, or of its values."""
    limit = training.MAX_SKIPPED
    changes = {"steps": 100, "schedule": "constant", "log_every": limit + 5}
    run = Run(accelerator, changes=changes, objective=failing(2, 2 + limit))
    with pytest.raises(UserError, match=rf"step {2 + limit - 1}: .* \(loss nan, size \d"):
        run.go()
    assert run.rows == [(s, row) for s, row in run.rows if s <= limit + 5]


class Reads(TorchDispatchMode):
    """Notes when a number was read from a tensor, for which the host waits for a device."""

    WAITING = ("_local_scalar_dense", "equal", "nonzero", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []
        self.step = -1

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if function.overloadpacket.__name__ in self.WAITING:
            self.steps.append(self.step)
        return function(*args, **kwargs or {})


def test_no_step_waits_for_the_device(accelerator: Accelerator) -> None:
    """Catches an ``item()`` or an ``if`` on a tensor in a step, for which a GPU would stand still.

    On a CPU nothing waits; that a number is read from a tensor shows there as well.
    """
    reads = Reads()

    def watched(step: int) -> Tensor:
        reads.step = step
        return batches(step)

    changes = {"steps": 6, "log_every": 3, "validate_every": 6}
    run = Run(accelerator, changes=changes, batches=watched)
    with reads:
        run.go()
    assert set(reads.steps) <= {2, 5}
    assert 2 in reads.steps


@pytest.mark.parametrize("text", ["soon", "nan", "-1", ""])
def test_save_interval(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Catches more work at stake than is promised, and a message without the variable."""
    monkeypatch.delenv("SCOREVAE_SAVE_SECONDS", raising=False)
    assert save_interval() == 300
    monkeypatch.setenv("SCOREVAE_SAVE_SECONDS", text)
    with pytest.raises(UserError, match=f"SCOREVAE_SAVE_SECONDS={text}: give a number"):
        save_interval()


def test_frozen_module_stays_as_it_was(accelerator: Accelerator) -> None:
    """Catches training of the prior or the teacher that an objective uses."""
    frozen = network().eval().requires_grad_(False)
    before = copy.deepcopy(frozen.state_dict())

    def objective(module: nn.Module, x: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"loss": ((module(x) - frozen(x)) ** 2).flatten()}

    run = Run(accelerator, objective=objective)
    run.go()
    assert_same(frozen.state_dict(), before)
    assert not frozen.training
    assert all(p.grad is None and not p.requires_grad for p in frozen.parameters())
    assert not torch.equal(run.module[0].weight, network()[0].weight)


def test_randomness_follows_from_the_seed(accelerator: Accelerator) -> None:
    """Catches dropout or noise drawn from the global state, and a seed without effect."""
    results = []
    for seed, disturbance in ((1, 10), (1, 11), (2, 10)):
        torch.manual_seed(disturbance)
        results.append(Run(accelerator, seed=seed).go().state_dict())
    assert_same(results[0], results[1])
    assert not torch.equal(results[0]["0.weight"], results[2]["0.weight"])


def test_global_randomness_is_left_alone(accelerator: Accelerator) -> None:
    """Catches a training stage that changes what the caller draws afterwards."""
    before = torch.get_rng_state()
    with global_seed(1, "test"):
        Run(accelerator).go()
    assert torch.equal(torch.get_rng_state(), before)


def test_every_step_has_its_own_randomness(accelerator: Accelerator) -> None:
    """Catches the same units dropped, or the same noise and times drawn, in every step."""
    drawn = set()

    def draw(call: int, module: nn.Module, x: Tensor, generator: torch.Generator) -> None:
        drawn.update((torch.rand(()).item(), torch.rand((), generator=generator).item()))

    Run(accelerator, objective=usual(before=draw)).go()
    assert len(drawn) == 2 * STEPS


def test_bf16(accelerator: Accelerator) -> None:
    """Catches a precision without effect, and weights or losses kept in bfloat16."""
    seen = set()
    objective = usual(before=lambda call, module, x, generator: seen.add(module(x).dtype))
    run = Run(accelerator, changes={"precision": "bf16"}, objective=objective)
    result = run.go()
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in result.parameters()} == {torch.float32}
    assert all(math.isfinite(value) for _, row in run.rows for value in row.values())


class Regression:
    """A noisy row to its sum; the loss uses rows of what was drawn for the whole batch."""

    def __init__(self) -> None:
        self.drawn: list[Tensor] = []

    def draw(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        rank = torch.arange(len(x)) / len(x)  # strata: another part, another mean
        self.drawn.append(torch.randn(x.shape, generator=generator, dtype=x.dtype))
        return rank, {"noise": self.drawn[-1]}

    def frozen(self, x: Tensor, draw: Any) -> Tensor:  # noqa: ANN401
        return (x + draw[1]["noise"]).sum(dim=1)

    def trained(
        self,
        module: nn.Module,
        x: Tensor,
        draw: Any,
        frozen: Tensor,  # noqa: ANN401
    ) -> dict[str, Tensor]:
        error = (module(x)[:, 0] - frozen - draw[0]) ** 2
        return {"loss": error, "size": error.sqrt()}


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulated_gradient_is_that_of_the_batch(accelerator: Accelerator, parts: int) -> None:
    """Catches a sum for a mean, other draws, a part left out, and a step after each part.

    In float64, where only the order of sums of eight numbers differs.
    """
    results = []
    for accumulate in (1, parts):
        module, objective = network()[:2].append(nn.Linear(8, 1)).double(), Regression()
        nn.init.constant_(module[2].weight, 0.1)
        nn.init.zeros_(module[2].bias)
        run = Run(
            accelerator, module=module, changes={"accumulate": accumulate},
            batches=lambda step: batches(step).double(),
        )  # fmt: skip
        run.arguments["objective"] = objective
        results.append((run.go().state_dict(), run.numbers(), torch.stack(objective.drawn)))
    for (whole, expected, noise), (weights, numbers, same) in [results]:
        assert torch.equal(noise, same)
        for name, value in whole.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-11, atol=1e-11)
        for (step, row), (_, other) in zip(expected, numbers, strict=True):
            # the losses are means in float32
            assert row == pytest.approx(other, rel=1e-6), step


def test_parts_that_do_not_divide_a_share_are_refused(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches rows that no part takes: with two processes a batch of 8 has shares of 4."""
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(UserError, match=r"accumulate: got 8, .* 2 processes in a batch of 8"):
        Run(accelerator, changes={"accumulate": 8}).go()


def refusing(*parts: str) -> Any:  # noqa: ANN401 (what torch takes for a compiler)
    """A compiler that cannot do those parts of a step."""

    def compiler(part: str) -> Callable[..., Any]:
        def compile_graph(graph: Any, inputs: Any) -> object:  # noqa: ANN401
            if part in parts:
                raise RuntimeError(f"cannot compile the {part}")
            return make_boxed_func(graph.forward)

        return compile_graph

    return aot_autograd(fw_compiler=compiler("loss"), bw_compiler=compiler("gradient"))


@pytest.mark.parametrize("parts", [(), ("loss",), ("gradient",)])
def test_compiler_that_fails_changes_no_bit(
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    parts: tuple[str, ...],
) -> None:
    """Catches a run that dies of it, a trace left by the attempt, and an attempt unannounced.

    The gradient is compiled after the loss, when its error is out of the loss's reach.
    """
    expected = Run(accelerator, objective=plain_square).go().state_dict()
    monkeypatch.setenv("SCOREVAE_COMPILE", "1")
    monkeypatch.setattr(compiled, "BACKEND", refusing(*parts))
    monkeypatch.setattr(compiled, "_told", set())
    # No compiler reads through the checks of shapes.
    monkeypatch.setattr(training.LossModule, "_means", inspect.unwrap(training.LossModule._means))
    capsys.readouterr()
    assert_same(Run(accelerator, objective=plain_square).go().state_dict(), expected)
    beginning, *lines = capsys.readouterr().out.splitlines()
    assert beginning == "test/run: compiling"
    told = [line for line in lines if "uncompiled" in line]
    assert all(
        f"cannot compile the {part}" in line for part, line in zip(parts, told, strict=True)
    )


def test_no_steps_return_the_initial_weights(accelerator: Accelerator) -> None:
    """Catches a crash with `steps: 0`, which skips the warm start."""
    run = Run(accelerator, changes={"steps": 0})
    assert_same(run.go().state_dict(), network().state_dict())
    assert run.rows == []

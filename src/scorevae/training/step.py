"""One step of a training, all of it on the device: loss, gradient, descent, average.

What can be compiled is: the frozen networks by themselves, and the loss of what is trained.
"""

import copy
import math
import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from scorevae.config import TrainingConfig
from scorevae.errors import UserError
from scorevae.runtime.compiled import Compiled, replaying

MAX_SKIPPED = 20


class Objective(Protocol):
    """What is minimised, as :class:`scorevae.objectives.Objective` divides it."""

    def draw(self, x_0: Tensor, generator: torch.Generator) -> Any:  # noqa: ANN401
        """Everything random: tensors with a row for each image."""

    def frozen(self, x_0: Tensor, draw: Any) -> Any:  # noqa: ANN401
        """What needs no gradient."""

    def trained(
        self,
        module: nn.Module,
        x_0: Tensor,
        draw: Any,  # noqa: ANN401
        frozen: Any,  # noqa: ANN401
    ) -> dict[str, Tensor]:
        """Named losses of shape (batch,), a pure function of its arguments."""
        ...


class LossModule(nn.Module):
    """Module and objective in one ``forward``, so that DDP sees the whole loss."""

    def __init__(
        self, module: nn.Module, objective: Objective, *, bf16: bool, compiled: bool
    ) -> None:
        super().__init__()
        self.module = module
        self.objective = objective
        self.bf16 = bf16
        self._frozen, self._trained = objective.frozen, self._means
        self._compiled: list[Compiled[Any, Any]] = []
        self.graphs = compiled and replaying()
        if compiled:
            frozen = Compiled(  # those of others may break
                objective.frozen, "frozen networks", whole=False, graphs=self.graphs
            )
            trained = Compiled(self._means, "loss", graphs=self.graphs)
            self._frozen, self._trained = frozen, trained
            self._compiled = [frozen, trained]

    @property
    def compiled(self) -> bool:
        """Whether the loss of what is trained is compiled."""
        return bool(self._compiled) and self._compiled[-1].active

    def give_up(self, error: Exception) -> None:
        """Compile the loss no more."""
        self._compiled[-1].give_up(error)

    def forward(self, x_0: Tensor, draw: Any) -> dict[str, Tensor]:  # noqa: ANN401
        """Mean of every loss over the batch; ``loss`` is the one to minimise."""
        with torch.autocast(x_0.device.type, torch.bfloat16, enabled=self.bf16):
            return self._trained(x_0, draw, self._frozen(x_0, draw))

    def _means(self, x_0: Tensor, draw: Any, frozen: Any) -> dict[str, Tensor]:  # noqa: ANN401
        losses = self.objective.trained(self.module, x_0, draw, frozen)
        return {name: values.float().mean() for name, values in losses.items()}


def learning_rate(settings: TrainingConfig, step: int) -> float:
    """Linear warm-up over ``warmup`` steps, then constant or half a cosine down to zero."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.5 * settings.learning_rate * (1 + math.cos(math.pi * done))


class Average(nn.Module):
    """Exponential moving average with decay min(ema, (1 + n)/(10 + n)) at its n-th update.

    The growing decay forgets the initial weights, which a constant one would keep for 1/(1 − ema)
    steps. The 0-th update takes the weights as they are. Everything happens on the device, so
    that nobody waits for n.
    """

    n: Tensor

    def __init__(self, module: nn.Module, ema: float) -> None:
        super().__init__()
        self.module = copy.deepcopy(module)
        self.ema = ema
        # Once, for a walk through a U-Net takes a millisecond.
        self._weights = _lists(self.module.parameters(), module.parameters())
        self._fixed = _lists(self.module.buffers(), module.buffers())
        device = self._weights[0][0].device
        self.register_buffer("n", torch.zeros((), dtype=torch.int64, device=device))

    @torch.no_grad()
    def update(self, bad: Tensor) -> None:
        """Take the module's weights in; not where ``bad``, of shape (), is 1."""
        averages, weights = self._weights
        n = self.n.to(torch.float32 if self.n.device.type == "mps" else torch.float64)
        share = 1 - ((1 + n) / (10 + n)).clamp(max=self.ema)
        share = (share.masked_fill(self.n == 0, 1.0) * (1 - bad)).to(averages[0].dtype)
        if share.device.type == "cpu":
            shares: list[Any] = [share] * len(averages)  # which may be tensors
            torch._foreach_lerp_(averages, weights, shares)
        else:  # lerp has no kernel for many tensors and a share on the device
            ways: Any = torch._foreach_sub(weights, averages)
            torch._foreach_mul_(ways, share)
            torch._foreach_add_(averages, ways)
        for ours, theirs in zip(*self._fixed, strict=True):
            ours.copy_(theirs)
        self.n += (1 - bad).to(torch.int64)


def _lists(*tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    return [list(some) for some in tensors]


def _rows(tree: Any, rows: slice) -> Any:  # noqa: ANN401 (what an objective draws)
    """Those rows of every tensor."""
    return pytree.tree_map(lambda x: x[rows] if isinstance(x, Tensor) else x, tree)


class BadSteps:
    """The steps whose loss or gradient is not finite, counted on the device.

    A bad step is one that leaves no trace in weights, moments and average. That needs no look at
    the device; :meth:`check` does look.
    """

    def __init__(self, device: torch.device) -> None:
        self._row = torch.zeros((), dtype=torch.int64, device=device)
        self._step = torch.full((), -1, dtype=torch.int64, device=device)
        self._values: Tensor | None = None

    def add(self, step: int, loss: Tensor, norm: Tensor, values: Tensor) -> Tensor:
        """1.0 where the step is bad, 0.0 where it is good, of shape ()."""
        bad = ~(loss.isfinite() & norm.isfinite())
        self._row = (self._row + 1) * bad
        reached = (self._row == MAX_SKIPPED) & (self._step < 0)
        self._step.masked_fill_(reached, step)
        before = values if self._values is None else self._values
        self._values = torch.where(reached, values, before)
        return bad.to(torch.float32)

    def check(self, name: str, terms: Sequence[str], settings: TrainingConfig) -> None:
        """Raise UserError if MAX_SKIPPED of them came in a row."""
        if (step := int(self._step.item())) < 0 or self._values is None:
            return
        told = zip(terms, self._values.tolist(), strict=True)
        listed = ", ".join(f"{term} {value:.4g}" for term, value in told)
        raise UserError(
            f"{name}: step {step}: loss or gradient were not finite in {MAX_SKIPPED} steps in a "
            f"row ({listed}, learning rate {learning_rate(settings, step):.3g}); lower "
            "learning_rate, raise warmup, lower clip, or set precision to float32. The last good "
            "state is kept"
        )


class Stepper:
    """One step after the other, without a look at the device, which the host runs ahead of."""

    def __init__(
        self,
        module: nn.Module,
        objective: Objective,
        settings: TrainingConfig,
        accelerator: Accelerator,
        *,
        compiled: bool,
    ) -> None:
        self.optimizer = torch.optim.Adam(
            module.parameters(), lr=settings.learning_rate, fused=True
        )
        self.averaged = Average(module, settings.ema)
        self.bad = BadSteps(accelerator.device)
        self.terms: list[str] = []  # what a step's values are
        self._parameters = list(module.parameters())
        self._objective, self._clip = objective, settings.clip
        self._accumulate = settings.accumulate
        self._accelerator = accelerator
        bf16 = settings.precision == "bf16"
        self._loss = LossModule(module, objective, bf16=bf16, compiled=compiled)
        if accelerator.num_processes > 1:  # of images with one channel; it says itself: no error
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view")
        self._prepared = accelerator.prepare(self._loss)
        self._rehearsed = not self.compiled

    @property
    def compiled(self) -> bool:
        """Whether the first step takes the time to compile."""
        return self._loss.compiled

    @property
    def _device(self) -> torch.device:
        return self._accelerator.device

    def __call__(self, step: int, x_0: Tensor, generator: torch.Generator, rate: float) -> Tensor:
        """Change the weights; the means of all losses, and the gradient's norm, as one tensor."""
        draw = self._objective.draw(x_0, generator)
        if not self._rehearsed:
            self._rehearse(x_0, draw)
        losses = self._gradient(x_0, draw)
        norm = nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self.terms = [*losses, "gradient_norm"]
        values = torch.stack([*losses.values(), norm])
        # of all processes, so that they skip together
        values = self._accelerator.reduce(values, "mean")
        bad = self.bad.add(step, values[self.terms.index("loss")], values[-1], values)
        self._descend(rate, bad)
        return values

    def _gradient(self, x_0: Tensor, draw: Any) -> dict[str, Tensor]:  # noqa: ANN401
        """Of the mean over the batch, part by part; the mean losses.

        The parts are rows of what was drawn for the whole batch, whose strata of times they are.
        """
        self.optimizer.zero_grad()
        if self._loss.graphs:  # which write the gradients where they were; it imports the compiler
            torch.compiler.cudagraph_mark_step_begin()
        means: dict[str, Tensor] = {}
        rows = len(x_0) // self._accumulate
        for part in range(self._accumulate):
            x, drawn = _rows((x_0, draw), slice(part * rows, (part + 1) * rows))
            last = part == self._accumulate - 1
            # Processes exchange their gradients once, at the end.
            with nullcontext() if last else self._accelerator.no_sync(self._prepared):
                losses = self._prepared(x, drawn)
                self._accelerator.backward(losses["loss"] / self._accumulate)
            for name, value in losses.items():
                means[name] = means.get(name, 0.0) + value.detach() / self._accumulate
        return means

    def _rehearse(self, x_0: Tensor, draw: Any) -> None:  # noqa: ANN401
        """Compile by a step that changes nothing: the gradient is compiled after the loss."""
        self._rehearsed = True
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            try:
                self._gradient(x_0, draw)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # noqa: BLE001 (compilers raise anything)
                self._loss.give_up(error)
        self.optimizer.zero_grad()

    def _descend(self, rate: float, bad: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        # Fused Adam reads it, as a GradScaler sets it, and leaves everything as it is.
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        self.optimizer.step()
        self.averaged.update(bad)

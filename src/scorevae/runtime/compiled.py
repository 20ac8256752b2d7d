"""What a machine compiles: its own choice, like that of its device, and no parameter.

``SCOREVAE_COMPILE=auto|0|1|graphs``; auto compiles on CUDA alone, and graphs lets the steps of a
training be replayed as CUDA graphs besides. Compiled functions round otherwise than the same
functions as they are written, as another GPU would, and on a CPU the numbers of a seed are to stay
the same to the bit.
"""

import os
import warnings
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch.utils import _pytree as pytree

from scorevae.errors import UserError, in_a_line

P = ParamSpec("P")
R = TypeVar("R")
BACKEND = "inductor"
_told: set[str] = set()  # the reasons that were printed


def compiling(device: torch.device | str) -> bool:
    """Whether to compile for a device: ``SCOREVAE_COMPILE``.

    Raises:
        UserError: the variable is none of auto, 0, 1 and graphs.
    """
    chosen = os.environ.get("SCOREVAE_COMPILE", "auto")
    if chosen not in ("auto", "0", "1", "graphs"):
        raise UserError(f"SCOREVAE_COMPILE={chosen}: give auto (on CUDA alone), 0, 1 or graphs")
    return torch.device(device).type == "cuda" if chosen == "auto" else chosen != "0"


def replaying() -> bool:
    """Whether compiled steps are replayed as CUDA graphs; a CPU has none and runs them as ever."""
    return os.environ.get("SCOREVAE_COMPILE") == "graphs"


class Compiled(Generic[P, R]):
    """A function of tensors that is compiled at its first call, for the shapes given then.

    With tensors of other shapes or without gradients where there were some, as in the last batch
    of a data set, it runs as it is written: compiling once more would take longer. So it does for
    good, and says why in a line, where it cannot be compiled: without a compiler, with an old
    driver. ``whole`` takes a function that cannot be compiled in one piece for one that cannot be
    compiled. With ``graphs`` it is replayed as a CUDA graph: its results are overwritten once
    ``torch.compiler.cudagraph_mark_step_begin`` has been called and it is called again.
    """

    def __init__(
        self, function: Callable[P, R], name: str, *, whole: bool = True, graphs: bool = False
    ) -> None:
        self.written, self.name = function, name
        # Of diffusers' looks at its versions, which do not change.
        warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
        self._compiled: Callable[P, R] | None = torch.compile(
            function, backend=BACKEND, fullgraph=whole, dynamic=False, options=_options(graphs)
        )
        self._form: tuple[object, ...] | None = None

    @property
    def active(self) -> bool:
        """Whether it is, or is going to be, compiled."""
        return self._compiled is not None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The function's result."""
        form = _form((args, kwargs))
        self._form = self._form or form
        if self._compiled is None or form != self._form:
            return self.written(*args, **kwargs)
        try:
            # DDP would cut the graph in the middle of an inner gradient.
            with torch._dynamo.config.patch(optimize_ddp=False):
                return self._compiled(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 (compilers raise anything)
            self.give_up(error)  # and if it was no compiler's error, it comes again
            return self.written(*args, **kwargs)

    def give_up(self, error: Exception) -> None:
        """Run as written from now on; say why, once for each reason."""
        self._compiled = None
        if (reason := _reason(error)) not in _told:
            _told.add(reason)
            print(f"{self.name}: runs uncompiled: {reason}", flush=True)


def _options(graphs: bool) -> dict[str, Any] | None:
    """Of the compiler; others, of tests, take none."""
    if BACKEND != "inductor":
        return None
    from scorevae.runtime.weight_gradients import WeightGradients  # which imports the compiler

    return {"joint_custom_pre_pass": WeightGradients(), "triton.cudagraphs": graphs}


def _reason(error: Exception) -> str:
    """What went wrong, in a part of a line, and what to do."""
    cause = getattr(error, "inner_exception", error)  # torch wraps what a compiler raised
    said = in_a_line(f"{type(cause).__name__}: {cause}")
    return f"{said} (SCOREVAE_COMPILE=0 does not try)"


def _form(tree: object) -> tuple[object, ...]:
    """What a compiled function is special to: structure, shapes, types, the gradient mode."""
    leaves, structure = pytree.tree_flatten(tree)
    shapes: list[Any] = [
        (x.shape, x.dtype) if isinstance(x, torch.Tensor) else x
        for x in leaves
        if isinstance(x, torch.Tensor | int | float)
    ]
    return structure, torch.is_grad_enabled(), *shapes

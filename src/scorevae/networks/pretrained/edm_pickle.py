"""Pickles of EDM without the code in them.

Every object there is the call of one function with the source of the object's module, the name of
its class and its state. That function is replaced by one that keeps name and state. Whatever else
a pickle may call is on the list below, and puts numbers together; the rest is refused by name.
"""

import io
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from scorevae.errors import UserError, in_a_line


class Recorded:
    """An object of the pickle: the name of its class, and its state."""

    name = "ModuleDict"  # of those that the pickle makes by their class
    state: Any

    def __setstate__(self, state: object) -> None:
        self.state = state

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers of a module and of those in it, by name as PyTorch gives them."""
        for name, value in [*self.state["_parameters"].items(), *self.state["_buffers"].items()]:
            if value is not None:
                yield prefix + name, value
        for name, module in self.state["_modules"].items():
            if module is not None:
                yield from module.tensors(f"{prefix}{name}.")


def _recorded(meta: dict[str, Any]) -> Recorded:
    """Of meta, ``module_src`` is what EDM would run."""
    kept = Recorded()
    kept.name, kept.state = str(meta["class_name"]), meta["state"]
    return kept


def _storage(saved: bytes) -> object:
    return torch.load(io.BytesIO(saved), map_location="cpu", weights_only=True)


# Ours have no defaults and lead to PyTorch's, since a pickle may set attributes of what it names.
def _tensor(storage: Any, offset: int, size: Any, stride: Any, *rest: object) -> Tensor:  # noqa: ANN401
    return torch._utils._rebuild_tensor(storage, offset, size, stride)


def _parameter(data: Tensor, *rest: object) -> Tensor:
    return data


class _Kind:
    """NumPy's dtype of one number; its own would take any layout of memory from the file."""

    def __init__(self, code: str, *rest: object) -> None:
        if code not in ("f8", "f4", "i8", "i4", "b1"):
            raise ValueError(f"a number of kind {code}")
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.code = str(state[1]) + self.code  # the order of bytes


def _number(kind: _Kind, data: bytes) -> Any:  # noqa: ANN401 (int, float or bool)
    return np.frombuffer(data, kind.code)[0].item()


ALLOWED: dict[str, Callable[..., Any]] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _recorded,
    "torch.nn.modules.container.ModuleDict": Recorded,
    "dnnlib.util.EasyDict": dict,
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "torch.storage._load_from_bytes": _storage,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "numpy.dtype": _Kind,
    "numpy.core.multiarray.scalar": _number,
    "numpy._core.multiarray.scalar": _number,
}


# What a pickle that is not whole, or none, makes of the unpickler.
DAMAGE = (
    *(pickle.UnpicklingError, EOFError, AttributeError, LookupError),
    *(TypeError, ValueError, RuntimeError, OverflowError, MemoryError),
)


class _Unpickler(pickle.Unpickler):
    def __init__(self, path: Path, file: BinaryIO) -> None:
        super().__init__(file)
        self.path = path

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        try:
            return ALLOWED[f"{module}.{name}"]
        except KeyError:
            raise UserError(
                f"{self.path}: asks for {module}.{name}, which may run code and is not in "
                "networks of EDM; give one of EDM's own files"
            ) from None


def unpickled(path: Path) -> object:
    """What a pickle holds, objects as :class:`Recorded`.

    Raises:
        UserError: there is no such file; it is truncated or no pickle; it asks for anything that
            is not on the list.
    """
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch, that storages have types
            return _Unpickler(path, file).load()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the path of an EDM pickle") from None
    except DAMAGE as error:
        why = in_a_line(error, 100)
        raise UserError(f"{path}: truncated, or no pickle ({why}); bring it again") from None

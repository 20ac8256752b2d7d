"""Every random number of the project follows from the seed and a name, never from history."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(seed: int, *path: str | int) -> int:
    """A seed for one purpose: the first 63 bits of sha256 of ``seed/path[0]/path[1]/…``."""
    name = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def make_generator(device: torch.device | str, seed: int, *path: str | int) -> torch.Generator:
    """A generator on ``device`` seeded by :func:`derive_seed`."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *path))


@contextmanager
def global_seed(seed: int, *path: str | int) -> Iterator[None]:
    """Seed torch's global generators, which initialise weights, and restore them afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, *path))
        yield

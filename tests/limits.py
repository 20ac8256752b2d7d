"""Limits of this process that tests put on and take off again."""

import resource
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path


def disk_of(size: int) -> AbstractContextManager[None]:
    """No file can grow beyond ``size`` bytes: as on a full disk, writing fails half way."""
    return _limit(resource.RLIMIT_FSIZE, size)


def memory_of(size: int) -> AbstractContextManager[None]:
    """The address space is what it is now, and ``size`` bytes more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + size)


@contextmanager
def _limit(kind: int, size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))

"""How far a long computation is: a bar on a terminal, a few lines elsewhere."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from tqdm import tqdm

NOTHING: Mapping[str, float] = {}


class Advance(Protocol):
    """Called with what is done and with numbers to show."""

    def __call__(self, done: int, numbers: Mapping[str, float] = NOTHING) -> None:
        """Show them."""


@contextmanager
def progress(
    name: str, first: int, total: int | None, *, beginning: str = ""
) -> Iterator[Advance]:
    """Yield a function of (done, numbers to show); ``first`` is where the count starts.

    ``beginning`` says what takes the time until it is called first.

    Elsewhere than on a terminal about ten lines are printed in all, or one for each 10,000 where
    the total is not known.
    """
    if sys.stderr.isatty():
        begun = f"{name} ({beginning})" if beginning else name
        with tqdm(total=total, initial=first, desc=begun) as bar:

            def update(done: int, numbers: Mapping[str, float] = NOTHING) -> None:
                bar.set_description(name, refresh=False)
                bar.set_postfix({k: f"{v:.4g}" for k, v in numbers.items()}, refresh=False)
                bar.update(done - bar.n)

            yield update
        return
    if first:
        print(f"{name}: resuming at {first}{'' if total is None else f' of {total}'}", flush=True)
    if beginning:
        print(f"{name}: {beginning}", flush=True)
    tenth = 10_000 if total is None else max(1, total // 10)
    of_total = "" if total is None else f"/{total}"
    printed = first // tenth

    def line(done: int, numbers: Mapping[str, float] = NOTHING) -> None:
        nonlocal printed
        if done // tenth > printed or done == total:
            printed = done // tenth
            shown = "  ".join(f"{k} {v:.4g}" for k, v in numbers.items())
            print(f"{name}: {done}{of_total}  {shown}".rstrip(), flush=True)

    yield line

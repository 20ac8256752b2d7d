"""How far a long computation is: a bar on a terminal, a few lines elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

Advance = Callable[[int, dict[str, float]], None]


@contextmanager
def progress(name: str, first: int, total: int) -> Iterator[Advance]:
    """Yield a function of (done, numbers to show); ``first`` is where the count starts.

    Elsewhere than on a terminal about ten lines are printed in all.
    """
    if sys.stderr.isatty():
        with tqdm(total=total, initial=first, desc=name) as bar:

            def update(done: int, numbers: dict[str, float]) -> None:
                bar.set_postfix({k: f"{v:.4g}" for k, v in numbers.items()}, refresh=False)
                bar.update(done - bar.n)

            yield update
        return
    if first:
        print(f"{name}: resuming at {first} of {total}", flush=True)
    tenth = max(1, total // 10)
    printed = first // tenth

    def line(done: int, numbers: dict[str, float]) -> None:
        nonlocal printed
        if done // tenth > printed or done == total:
            printed = done // tenth
            shown = "  ".join(f"{k} {v:.4g}" for k, v in numbers.items())
            print(f"{name}: {done}/{total}  {shown}".rstrip(), flush=True)

    yield line

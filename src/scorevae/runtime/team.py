"""The processes of a stage as one: they divide its loops, and what one of them meets all know of.

All run the same code. What they exchange travels from CPU to CPU, by gloo.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from scorevae.errors import Unavailable, UserError, in_words
from scorevae.runtime.interruption import Ended
from scorevae.runtime.memory import ran_out

Item = TypeVar("Item")
Result = TypeVar("Result")

PATIENCE = timedelta(days=30)  # with an item that takes long; a process that has ended is noticed


class _Word(NamedTuple):
    """What a process says to all others."""

    place: str  # in the code
    failure: Exception | None
    value: Any


class Team:
    """The processes of a stage; one alone exchanges nothing."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count
        self._inside = False  # an item of a divided loop
        self._apart: Exception | None = None  # what ended the block, if it was not at one place

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes files, and to the terminal."""
        return self.rank == 0

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item], /
    ) -> Iterator[Result]:
        """As the built-in map, but item i is computed by process i mod ``count``.

        Every process is given every result. What an item divides itself, its process goes through
        alone. What it raises, all processes raise.
        """
        if self.count == 1 or self._inside:
            yield from map(function, items)
            return
        for first in range(0, len(items), self.count):
            own = items[first + self.rank : first + self.rank + 1]  # none is left for some at last
            value: list[Result] = []
            failure = None
            self._inside = True
            try:
                value = [function(item) for item in own]
            except Exception as error:  # noqa: BLE001 (whatever it is: the others wait)
                failure = error
            finally:
                self._inside = False
            for found in self._exchange(f"item {first} of {len(items)}", value, failure):
                yield from found

    def exchange(self, mine: Result) -> list[Result]:
        """What every process gives, in their order, once all of them have come here."""
        return [mine] if self.count == 1 else self._exchange("exchange", mine)

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Raise, in all processes, what one of them raises in the block.

        Raises:
            UserError: another process failed, or is at another place of the block.
            Unavailable: another process raised that.
        """
        if self.count == 1:
            yield
            return
        failure = None
        try:
            yield
        except Exception as error:  # noqa: BLE001 (whatever it is: the others wait)
            failure = error
        try:
            self._exchange("end", None, failure)
        finally:
            self._apart = None

    def _exchange(
        self, place: str, mine: Result, failure: Exception | None = None
    ) -> list[Result]:
        """What all say; raises the first failure among it.

        A process that failed says so at the end of its block, while others may be in the midst of
        it: that ends the block for them, too, and nobody says more.
        """
        if self._apart:
            raise self._apart
        words = _gathered(_Word(place, failure and _portable(failure), mine), self.count)
        failures = [(rank, word.failure) for rank, word in enumerate(words) if word.failure]
        apart = {word.place for word in words} != {place}
        if not failures and not apart:
            return [word.value for word in words]
        error: Exception = UserError("the processes of this stage went different ways")
        if failures:
            rank, told = failures[0]
            error = failure if failure is not None and rank == self.rank else told
        self._apart = error if apart else None
        raise error


def _gathered(word: _Word, count: int) -> list[_Word]:
    words: list[_Word] = [word] * count
    try:
        dist.all_gather_object(words, word)
    except RuntimeError:  # gloo lost a connection
        raise Ended(
            "Error: another process of this stage was ended; give the same command again"
        ) from None
    return words


def _portable(error: Exception) -> Exception:
    """The error as another process may raise it, to the same effect."""
    if isinstance(error, Unavailable):
        return Unavailable(str(error))
    return MemoryError(str(error)) if ran_out(error) else UserError(in_words(error))


ALONE = Team()


@contextmanager
def team() -> Iterator[Team]:
    """The processes that torchrun has started, each on a device of its own; or this one alone.

    They agree (:meth:`Team.agreeing`) on how the block ends. After an error the first one ends
    first, with the last word: whoever ends so before it would have torchrun kill it.
    """
    if "LOCAL_RANK" not in os.environ or (count := int(os.environ["WORLD_SIZE"])) == 1:
        yield ALONE
        return
    if devices := torch.cuda.device_count():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % devices)
    dist.init_process_group("gloo", timeout=PATIENCE)
    found = Team(dist.get_rank(), count)
    failure = None
    try:
        with found.agreeing():
            yield found
    except Exception as error:  # noqa: BLE001 (whatever it is: it is raised at the end)
        failure = error
    if failure is None:
        dist.destroy_process_group()  # or its threads may end the process by SIGABRT
        return
    if not found.writes:
        with suppress(RuntimeError):  # nothing is sent: the connection ends with the process
            dist.recv(torch.zeros(1), src=0)
    raise failure

"""When a long computation is asked to stop: signals, and the loss of the DVC that started it."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from scorevae.errors import UserError

_PARENT = os.getppid()  # at import, which is early, so that a parent lost since is noticed


class Interrupted(UserError):
    """Stopped from outside, with everything saved that it takes to go on."""


@contextmanager
def stop_requests() -> Iterator[Callable[[], str | None]]:
    """Yield a function that tells why to stop, or None; SIGTERM and SIGINT no longer kill.

    A stage that outlives its ``dvc`` would finish for nothing: the next ``dvc repro`` does not
    know of it, removes what it wrote and begins again. So it stops, saved, when its parent has
    gone; but only under DVC (which sets DVC_STAGE), since ``nohup`` and the like are meant to be
    left by their parents.
    """
    received: list[int] = []
    handled = (signal.SIGTERM, signal.SIGINT)

    def reason() -> str | None:
        if received:
            return signal.Signals(received[0]).name
        if "DVC_STAGE" in os.environ and os.getppid() != _PARENT:
            return "the end of dvc"
        return None

    try:
        before = {
            number: signal.signal(number, lambda n, _: received.append(n)) for number in handled
        }
    except ValueError:  # not the main thread: signals are somebody else's
        yield reason
        return
    try:
        yield reason
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

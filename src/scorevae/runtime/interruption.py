"""When a long computation is asked to stop: signals, and the loss of the DVC that started it."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

from scorevae.errors import UserError


class Interrupted(UserError):
    """Stopped from outside, with everything saved that it takes to go on."""


def _links_to_dvc() -> list[tuple[psutil.Process, int]]:
    """This process and its ancestors below DVC, each with its parent's pid; [] without DVC.

    They are those whose environment has DVC_STAGE. Usually this process alone: DVC starts a
    command through ``$SHELL``, which mostly puts the command in its own place. ``/bin/sh``, taken
    where SHELL is unset (containers, services), stays in between on Debian.
    """
    links = []
    process: psutil.Process | None = psutil.Process()
    with suppress(psutil.Error):  # of another user, or ended meanwhile
        while process is not None and "DVC_STAGE" in process.environ():
            links.append((process, process.ppid()))
            process = process.parent()
    return links


_LINKS = _links_to_dvc()  # at import, which is early, so that a parent lost since is noticed


def _ending() -> list[signal.Signals]:
    """The signals that end a process, but for a hang-up where it is ignored, as by ``nohup``."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGTERM] if ignored else [signal.SIGTERM, signal.SIGHUP]


class Ended(SystemExit):
    """The end of the process by a signal; no error, so that no analysis takes it for its own."""


@contextmanager
def signals_raised() -> Iterator[None]:
    """Raise Ended where SIGTERM or SIGHUP would end the process without a last word."""

    def stop(number: int, _: object) -> None:
        name = signal.Signals(number).name
        raise Ended(f"Error: stopped by {name}; the same command begins this stage again")

    try:
        before = {number: signal.signal(number, stop) for number in _ending()}
    except ValueError:  # not the main thread: signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stop_requests() -> Iterator[Callable[[], str | None]]:
    """Yield a function that tells why to stop, or None; SIGTERM, SIGHUP, SIGINT no longer kill.

    A stage that outlives its ``dvc`` would finish for nothing: the next ``dvc repro`` does not
    know of it, removes what it wrote and begins again. So it stops, saved, when its parent has
    gone; but only under DVC, since ``nohup`` and the like are meant to be left by their parents.
    """
    received: list[int] = []
    handled = [signal.SIGINT, *_ending()]

    def reason() -> str | None:
        if received:
            return signal.Signals(received[0]).name
        try:  # a process that has lost its parent is given to another at once
            lost = any(process.ppid() != parent for process, parent in _LINKS)
        except psutil.NoSuchProcess:
            lost = True
        return "the end of dvc" if lost else None

    try:
        before = {n: signal.signal(n, lambda number, _: received.append(number)) for n in handled}
    except ValueError:  # not the main thread: signals are somebody else's
        yield reason
        return
    try:
        yield reason
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

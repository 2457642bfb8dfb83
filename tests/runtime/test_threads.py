"""A thread that starts while something strikes from outside."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from queue import SimpleQueue

import pytest

from stigg_guard.runtime.threads import start

pytestmark = pytest.mark.timeout(120, method="thread")  # the alarm is these tests' own

STARTS = 400
LATEST = 3e-4  # about as long as one start takes


class Struck(Exception):
    """What the signal handler raises."""


@pytest.fixture
def is_struck() -> Iterator[Callable[[float, Callable[[], object]], bool]]:
    """Makes a step in which an exception is raised after these seconds; whether it was."""
    armed = False

    def strike(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Struck

    def made(after: float, step: Callable[[], object]) -> bool:
        nonlocal armed
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, after)
            step()
            armed = False
        except Struck:
            return True
        return False

    before = signal.signal(signal.SIGALRM, strike)
    yield made
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_a_start_that_is_struck_raises_what_struck_it_and_the_thread_runs(
    is_struck: Callable[[float, Callable[[], object]], bool],
) -> None:
    strikes = 0
    for number in range(1, STARTS + 1):
        ran: SimpleQueue[bool] = SimpleQueue()
        thread = threading.Thread(target=ran.put, args=(True,))
        strikes += is_struck(LATEST * number / STARTS, partial(start, thread))
        if thread.ident is not None:
            thread.join(30)
            assert not ran.empty()
    assert strikes > 0


def test_an_error_of_the_start_is_raised_and_nothing_holds_it() -> None:
    class Wrong(threading.Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    with pytest.raises(RuntimeError, match="can't start") as raised:
        start(Wrong())
    frames = [entry.frame for entry in raised.traceback if entry.name == "start"]
    assert all(raised.value not in frame.f_locals.values() for frame in frames)


def test_who_starts_a_thread_returns_when_it_runs() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait, args=(30,))
    start(thread)
    assert thread.is_alive()
    done.set()
    thread.join(30)

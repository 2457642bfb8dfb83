"""A thread that starts while something strikes from outside."""

from __future__ import annotations

import threading
from functools import partial
from queue import SimpleQueue

import pytest

from stigg_guard.runtime.threads import start
from striker import Striker

pytestmark = pytest.mark.timeout(120, method="thread")  # the alarm is these tests' own

STARTS = 400
LATEST = 3e-4  # about as long as one start takes


def test_a_start_that_is_struck_raises_what_struck_it_and_the_thread_runs(striker: Striker) -> None:
    raised = 0
    for number in range(1, STARTS + 1):
        ran: SimpleQueue[bool] = SimpleQueue()
        thread = threading.Thread(target=ran.put, args=(True,))
        raised += not striker.returns(partial(start, thread), LATEST * number / STARTS)
        if thread.ident is not None:
            thread.join(30)
            assert not ran.empty()
    assert raised > 0


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

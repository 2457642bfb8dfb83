"""Work that goes one after the other, by key."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from stigg_guard.errors import SidecarTimeout
from stigg_guard.usage.turns import Turns

WAIT = 30.0


@contextmanager
def taken(turns: Turns, key: str) -> Iterator[None]:
    """Another thread has the turn."""
    inside, over = threading.Event(), threading.Event()

    def work() -> bool:
        inside.set()
        return over.wait(WAIT)

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(turns.take, key, work)
        assert inside.wait(WAIT)
        try:
            yield
        finally:
            over.set()
        assert working.result()


def test_work_of_one_key_goes_one_after_the_other() -> None:
    turns, at_work, most = Turns(WAIT), [0], [0]

    def work() -> None:
        at_work[0] += 1
        most[0] = max(most[0], at_work[0])
        at_work[0] -= 1

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(turns.take, "c", work) for _ in range(200)]:
            done.result()
    assert most == [1]


def test_whoever_waits_too_long_is_told_and_other_keys_do_not_wait() -> None:
    turns = Turns(0.01)
    with taken(turns, "c"):
        assert turns.take("d", lambda: "other work") == "other work"
        with pytest.raises(SidecarTimeout, match=r"took longer than 0\.01 s"):
            turns.take("c", lambda: pytest.fail("two at once"))
    assert turns.take("c", lambda: "next") == "next"


def test_a_turn_that_failed_is_over() -> None:
    turns = Turns(0.0)
    with pytest.raises(ZeroDivisionError):
        turns.take("c", lambda: 1 / 0)
    assert turns.take("c", lambda: "next") == "next"


def test_a_turn_that_an_exception_from_outside_has_left_behind_is_over() -> None:
    turns = Turns(0.0)
    turns._taken["c"] = threading.Lock()
    assert turns.take("c", lambda: "next") == "next"

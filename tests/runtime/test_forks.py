"""What each process has its own of, whichever threads come first and however it was forked."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from conftest import in_child
from stigg_guard.runtime.forks import PerProcess


def test_threads_that_come_at_once_get_the_same_object() -> None:
    both = threading.Barrier(2)

    def make() -> object:
        both.wait(30)
        return object()

    own = PerProcess(make)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(own.get), pool.submit(own.get)
    assert first.result() is second.result() is own.get()


def test_a_child_makes_its_own() -> None:
    own: PerProcess[list[str]] = PerProcess(list)
    own.get().append("the parent's")

    def has_its_own() -> bool:
        own.get().append("the child's")
        return own.get() == ["the child's"]

    assert in_child(has_its_own)
    assert own.get() == ["the parent's"]

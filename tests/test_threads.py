"""A thread that starts while something strikes from outside."""

from __future__ import annotations

import threading

import pytest

from stigg_guard.threads import start


class Struck(Exception):
    """What a signal handler raises."""


class TornWhileItStarts(threading.Thread):
    """The thread runs, and who started it is struck before he knows."""

    def start(self) -> None:
        ran.clear()
        try:
            super().start()
            assert ran.wait(30)
            raise Struck
        except Struck:
            threading._limbo[self]  # type: ignore[attr-defined] # as threading itself takes it out of its books


ran = threading.Event()


def test_is_told_of_by_the_exception_itself() -> None:
    thread = TornWhileItStarts(target=ran.set)
    with pytest.raises(Struck):
        start(thread)
    thread.join(30)


def test_another_error_is_raised_as_it_is() -> None:
    class Wrong(threading.Thread):
        def start(self) -> None:
            raise KeyError("another")

    with pytest.raises(KeyError, match="another"):
        start(Wrong())
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        with pytest.raises(KeyError, match="another"):
            start(Wrong())
    done = threading.Event()
    start(threading.Thread(target=done.set))
    assert done.wait(30)

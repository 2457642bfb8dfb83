"""Exceptions that come from outside, at any moment of a step: a soft time limit, Ctrl-C, a watchdog."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Struck(Exception):
    """What the signal handler raises."""


class Striker:
    """Makes steps in the main thread, in which an exception is raised after a time."""

    def __init__(self) -> None:
        self._armed = False
        self.strikes = 0

    def returns(self, step: Callable[[], object], after: float) -> bool:
        """Whether the step returned before the exception came, after so many seconds; it may have been made all the
        same."""
        try:
            self._armed = True
            signal.setitimer(signal.ITIMER_REAL, after)
            step()
            self._armed = False
        except Struck:
            return False
        return True

    def _raise(self, *_: object) -> None:
        if self._armed:
            self._armed = False
            self.strikes += 1
            raise Struck

    @contextmanager
    def at_work(self) -> Iterator[Striker]:
        """Takes the alarm of this process. What strikes a finalizer, or a callback of the garbage collector, is
        swallowed by Python itself, which tells of it; that is no fault, and the step goes on."""
        before, told = signal.signal(signal.SIGALRM, self._raise), sys.unraisablehook

        def tell_others(unraisable: sys.UnraisableHookArgs) -> None:
            if unraisable.exc_type is not Struck:
                told(unraisable)

        sys.unraisablehook = tell_others
        try:
            yield self
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            sys.unraisablehook = told

"""What forks of processes are told to, and what each process has of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


def _nothing() -> None:
    pass


def follow_forks(
    *,
    before: Callable[[], object] = _nothing,
    after_in_parent: Callable[[], object] = _nothing,
    after_in_child: Callable[[], object] = _nothing,
) -> None:
    """As ``os.register_at_fork``; nothing where processes cannot fork, as on Windows."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=after_in_parent, after_in_child=after_in_child)


class PerProcess(Generic[T]):
    """An object that each process has its own of: a forked child makes it anew, on first use, and leaves its parent's
    alone. It needs no hooks of forks, which some servers do not call.

    It is put in its place by one step, which neither exceptions from outside nor threads that come at once can tear:
    all of these get the same object. ``make`` may be called by several of them, and so does nothing else.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._by_pid: dict[int, T] = {}

    def get(self) -> T:
        pid = os.getpid()
        own = self._by_pid.get(pid)
        if own is None:
            own = self._by_pid.setdefault(pid, self._make())
            for other in set(self._by_pid) - {pid}:
                self._by_pid.pop(other, None)
        return own

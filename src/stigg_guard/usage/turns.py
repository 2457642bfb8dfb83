"""Work that goes one after the other, by key: without a lock that an exception from outside could leave taken."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from time import monotonic
from typing import TypeVar

from stigg_guard.errors import SidecarTimeout

T = TypeVar("T")


class Turns:
    """Turns of one process. ``patience`` is how many seconds a thread waits for those before it."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._taken: dict[Hashable, threading.Lock] = {}

    def take(self, key: Hashable, work: Callable[[], T]) -> T:
        """Returns what the work returns, which goes on alone of all with this key.

        Raises:
            SidecarTimeout: those before it took longer than the patience.
        """
        deadline = monotonic() + self._patience
        while True:
            own = threading.Lock()
            with own:
                if self._taken.setdefault(key, own) is own:
                    try:
                        return work()
                    finally:
                        self._taken.pop(key, None)
            self._wait(key, deadline)

    def _wait(self, key: Hashable, deadline: float) -> None:
        turn = self._taken.get(key)
        if turn is None:
            return
        if not turn.acquire(timeout=max(0.0, deadline - monotonic())):
            raise SidecarTimeout(f"the checks of other threads took longer than {self._patience:g} s")
        turn.release()
        if self._taken.get(key) is turn:  # an exception from outside has left it behind
            self._taken.pop(key, None)

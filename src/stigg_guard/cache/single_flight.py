"""Single flight: however many threads ask for the same at once, one of them loads it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from time import monotonic
from typing import Any, TypeVar, cast

from stigg_guard.errors import SidecarTimeout

T = TypeVar("T")

_NOTHING = object()


class SingleFlight:
    """Loads of one process, by key. ``patience`` is how many seconds a thread waits for another one's load, and
    ``late`` what it raises then."""

    def __init__(self, patience: float, late: type[Exception] = SidecarTimeout) -> None:
        self._patience = patience
        self._late = late
        self._flights: dict[Hashable, _Flight] = {}

    def load(self, key: Hashable, load: Callable[[], T]) -> T:
        """Returns what ``load`` returns, which the first thread calls; the others wait for what it gets. If it is
        interrupted, another one loads. No lock is held meanwhile but that of the key.

        Raises:
            Exception: ``late``, if the other thread's load took longer than the patience.
            Exception: what the load raised.
        """
        deadline = monotonic() + self._patience
        while True:
            own = _Flight()
            with own.latch:
                flight = self._flights.setdefault(key, own)
                if flight is own:
                    try:
                        own.result = load()
                    except Exception as error:
                        own.error = error
                        raise
                    finally:
                        self._flights.pop(key, None)
                    return cast(T, own.result)
            if not flight.latch.acquire(timeout=max(0.0, deadline - monotonic())):
                self._land(key, flight)
                raise self._late(f"another thread's fetch took longer than {self._patience:g} s")
            flight.latch.release()
            self._land(key, flight)
            if flight.error is not None:
                raise flight.error
            if flight.result is not _NOTHING:
                return cast(T, flight.result)

    def _land(self, key: Hashable, flight: _Flight) -> None:
        """Forgets a flight that is over, or that an exception from outside has left behind."""
        if self._flights.get(key) is flight:
            self._flights.pop(key, None)


class _Flight:
    """One load that other threads wait for. Its latch is a lock that C code takes and releases, so that no exception
    from outside leaves it taken."""

    __slots__ = ("error", "latch", "result")

    def __init__(self) -> None:
        self.latch = threading.Lock()
        self.result: Any = _NOTHING
        self.error: Exception | None = None

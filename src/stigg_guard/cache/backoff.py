"""The backoff of checks: after a failed attempt the sidecar is left alone for a moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from stigg_guard.errors import SidecarError, SidecarUnavailable

T = TypeVar("T")

BACK_OFF_SECONDS = 0.5


class Backoff:
    """Asks the sidecar, but not within ``BACK_OFF_SECONDS`` of a failed attempt. ``monotonic`` tells seconds."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._asleep_until = 0.0
        self._last_fault = ""

    @property
    def is_asleep(self) -> bool:
        """Whether nothing is asked at present."""
        return self._monotonic() < self._asleep_until

    def ask(self, ask: Callable[[], T]) -> T:
        """Returns what ``ask`` returns.

        Raises:
            SidecarUnavailable: the last attempt failed a moment ago and this one was not made.
            SidecarError: this attempt failed.
        """
        left = self._asleep_until - self._monotonic()
        if left > 0:
            raise SidecarUnavailable(f"the sidecar is not asked for another {left:.1f} s, since: {self._last_fault}")
        try:
            return ask()
        except SidecarError as error:
            self._last_fault = str(error)
            self._asleep_until = self._monotonic() + BACK_OFF_SECONDS
            raise

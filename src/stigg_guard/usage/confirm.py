"""When successful work counts: at once, or when the transaction that it wrote in is committed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

Confirm: TypeAlias = Callable[[Callable[[bool], None]], None]
"""Given what ends successful work; calls it once: with True when the success is certain, with False when it was undone,
as by a transaction that was rolled back."""


def confirm_now(end: Callable[[bool], None]) -> None:
    """Confirms at once, for work that nothing undoes."""
    end(True)


class ConfirmSince(ABC):
    """A :data:`Confirm` to which it matters when the work began."""

    @abstractmethod
    def begin(self) -> Confirm:
        """Returns how work that begins now becomes certain."""

    def __call__(self, end: Callable[[bool], None]) -> None:
        self.begin()(end)

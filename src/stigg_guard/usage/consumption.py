"""One use: units are held while the work runs, reported when it succeeds, given back when it does not."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType, TracebackType

from stigg_guard.amounts import Amount, finite_number, usage_amount
from stigg_guard.entitlements import Customer, Entitlement, require_id
from stigg_guard.errors import InvalidRequest
from stigg_guard.ledger import Event, Hold, Once
from stigg_guard.usage.confirm import Confirm, confirm_now
from stigg_guard.usage.holds import REPEATED, Holds


class Consumption:
    """A reservation for a block of work: the units held. Made by :meth:`Guard.consume`, entered once.

    ``entitlements`` are the answers that allowed the hold, by feature id, once it is entered. ``is_repeat`` says that a
    use with the same key was counted before: nothing is held for this one, and nothing will be counted. The process
    that entered it ends it: what a forked child does is not counted, and gives nothing back.
    """

    __slots__ = (
        "__weakref__",
        "_amounts",
        "_at_least",
        "_confirm",
        "_customer",
        "_dimensions",
        "_event",
        "_hold",
        "_holds",
        "_is_shared",
        "_once",
        "_pid",
        "entitlements",
        "is_repeat",
    )

    entitlements: Mapping[str, Entitlement]

    def __init__(
        self,
        holds: Holds,
        amounts: dict[str, float],
        customer: Customer,
        event: Event | None,
        dimensions: Mapping[str, str | float | bool],
        at_least: float | None = None,
        once: Once | None = None,
        is_shared: bool = False,
    ) -> None:
        self._holds = holds
        self._amounts = amounts
        self._customer = customer
        self._event = event
        self._dimensions = dimensions
        self._at_least = at_least
        self._once = once
        self._is_shared = is_shared
        self.is_repeat = False
        self._confirm: Confirm = confirm_now
        self._hold: Hold | None = None
        self._pid = 0

    @property
    def entitlement(self) -> Entitlement:
        """The answer that allowed the hold; of several features, the first one's."""
        return next(iter(self.entitlements.values()))

    @property
    def amount(self) -> float:
        """What will be reported: the held units, unless the block sets another number; of several features, the
        first one's."""
        return next(iter(self._amounts.values()))

    @amount.setter
    def amount(self, amount: Amount) -> None:
        self.settle(next(iter(self._amounts)), amount)

    @property
    def amounts(self) -> Mapping[str, float]:
        """What will be reported of each feature, by its id; 0 of a repeat, and once the units were given back."""
        return MappingProxyType(self._amounts)

    def settle(self, feature: str, amount: Amount) -> None:
        """Reports ``amount`` units of one of the features instead of those held; of a repeat nothing, as before.

        Raises:
            InvalidRequest: it is no amount, or the feature is not one of those held.
        """
        if feature not in self._amounts:
            raise InvalidRequest("feature_id", f"{feature!r} is not held here; held are {', '.join(self._amounts)}")
        settled = usage_amount(amount)
        if not self.is_repeat:
            self._amounts[feature] = settled

    def cancel(self) -> None:
        """Gives the held units back now; nothing will be reported."""
        self.end(succeeded=False)

    def end(self, succeeded: bool) -> None:
        """Ends the hold, for work that is no ``with`` block: the units are reported, or given back. Once.

        Raises:
            InvalidRequest: it succeeded without a :meth:`begin`, so that nothing was held for it.

        Within a transaction that the guard follows, success is reported when that is committed, and given back when it
        is rolled back.
        """
        if succeeded and not self._pid:
            raise InvalidRequest("", "nothing was held for this work; begin it by 'with', or by begin()")
        hold = self._hold
        if hold is None:
            return
        try:
            self._hold = None
            settle = partial(self._settle, hold)
            if succeeded:
                self._confirm(settle)
            else:
                settle(False)
        except BaseException:
            self._holds.abandon(hold)
            raise

    def _settle(self, hold: Hold, certain: bool) -> None:
        if self._pid != os.getpid():
            return
        if certain:
            self._commit(hold)
        else:
            self._amounts = dict.fromkeys(self._amounts, 0.0)
            self._holds.release(hold)

    def _commit(self, hold: Hold) -> None:
        self._holds.commit(hold, self._amounts, self._event, self._dimensions)

    def begin(self) -> Consumption:
        """Takes the hold, for work that is no ``with`` block, which does it by itself. Once: each use needs a
        :meth:`Guard.consume` of its own.

        Raises:
            InvalidRequest: it was begun before.
            FeatureDenied: the units are not to be had.
            UsageInProgress, KeyReused: another use has the key.
            SidecarError: there is neither data nor a fallback, and ``ON_OUTAGE`` is ``error``.
            LedgerUnavailable: the ledger cannot take it, and ``ON_OUTAGE`` is ``error``.
        """
        self._pid = self._begun()
        answers, hold = self._holds.hold(
            self._amounts, self._customer, self._at_least, once=self._once, is_shared=self._is_shared
        )
        self.entitlements = MappingProxyType(answers)
        self.is_repeat = hold is REPEATED
        if self.is_repeat:
            self._amounts = dict.fromkeys(self._amounts, 0.0)
        elif hold is not None:
            self._keep(hold)
        return self

    def _keep(self, hold: Hold) -> None:
        try:
            if hold.id:
                self._holds.watch(hold, self)
                if self._at_least is not None:
                    self._amounts[next(iter(self._amounts))] = hold.claims[0].amount
            self._confirm = self._holds.begin()
            self._hold = hold
        except BaseException:
            self._holds.abandon(hold)
            raise

    def _begun(self) -> int:
        if self._pid:
            raise InvalidRequest("", "a use is entered once; call consume() again for another one, as for a second try")
        return os.getpid()

    def __enter__(self) -> Consumption:
        return self.begin()

    def __exit__(
        self, error: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        try:
            self.end(succeeded=error is None)
        except BaseException:
            self.cancel()  # unless its end had begun
            raise


class Occupation(Consumption):
    """Units that are held while work runs and always given back, never reported: a limit of how many at once."""

    __slots__ = ()

    def end(self, succeeded: bool) -> None:
        """Gives the units back, however the work went. Once."""
        super().end(False)


def make_event(name: str, dimensions: Mapping[str, str | float | bool]) -> Event:
    """The raw event that will report a use; its key is made here, once.

    Raises:
        InvalidRequest: the name is empty.
    """
    require_id(name, "event_name")
    return Event(name, secrets.token_hex(16), dimensions)


def checked_dimensions(dimensions: Mapping[str, str | float | bool] | None) -> Mapping[str, str | float | bool]:
    """The dimensions of a report or an event; none where none were given.

    Raises:
        InvalidRequest: they are no mapping, or one of them is neither text, a finite number nor a bool.
    """
    if dimensions is not None and not isinstance(dimensions, Mapping):
        raise InvalidRequest("dimensions", f"dimensions are a mapping, not {type(dimensions).__name__}")
    return {dimension: _dimension(dimension, value) for dimension, value in (dimensions or {}).items()}


def _dimension(name: str, value: str | float | bool) -> str | float | bool:
    require_id(name, "dimensions")
    if isinstance(value, str) and value:
        require_id(value, f"dimensions[{name}]")
    return value if isinstance(value, (str, bool)) else finite_number(value, f"dimensions[{name}]")

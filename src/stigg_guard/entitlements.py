"""What a customer may use: frozen values, and the pure decision over them.

The rules are Stigg's: without a requested usage a metered feature is open while ``current_usage < usage_limit``; with
n, while ``current_usage + n <= usage_limit``; an explicit 0 reads the state (``current_usage <= usage_limit``).
Unlimited is always open. Behind a soft limit the sidecar's own answer stands and is never recomputed.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import Enum
from operator import attrgetter
from typing import Any

from stigg_guard.amounts import MAX_AMOUNT, Amount, fits, quanta, units, usage_amount
from stigg_guard.errors import InvalidRequest
from stigg_guard.wire import sidecar_pb2 as wire


class _Name(str, Enum):
    def __str__(self) -> str:
        return str(self.value)


class Kind(_Name):
    """The type of an entitlement, which is that of its feature, or a credit currency's."""

    BOOLEAN = "boolean"
    NUMERIC = "numeric"
    ENUM = "enum"
    METERED = "metered"
    CREDIT = "credit"


class Source(_Name):
    """The source of an answer: where it came from."""

    SIDECAR = "sidecar"
    CACHE = "cache"
    STALE = "stale"
    FALLBACK = "fallback"
    OFFLINE = "offline"


class Reason(_Name):
    """Why access is denied: the wire's ``AccessDeniedReason`` without its prefix."""

    UNKNOWN = "UNKNOWN"
    CUSTOMER_IS_ARCHIVED = "CUSTOMER_IS_ARCHIVED"
    CUSTOMER_NOT_FOUND = "CUSTOMER_NOT_FOUND"
    CUSTOMER_RESOURCE_NOT_FOUND = "CUSTOMER_RESOURCE_NOT_FOUND"
    FEATURE_NOT_FOUND = "FEATURE_NOT_FOUND"
    NO_ACTIVE_SUBSCRIPTION = "NO_ACTIVE_SUBSCRIPTION"
    NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION = "NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION"
    REQUESTED_USAGE_EXCEEDING_LIMIT = "REQUESTED_USAGE_EXCEEDING_LIMIT"
    BUDGET_EXCEEDED = "BUDGET_EXCEEDED"
    REQUESTED_VALUES_MISMATCH = "REQUESTED_VALUES_MISMATCH"
    FEATURE_TYPE_MISMATCH = "FEATURE_TYPE_MISMATCH"
    INSUFFICIENT_CREDITS = "INSUFFICIENT_CREDITS"
    REVOKED = "REVOKED"
    ENTITLEMENT_NOT_FOUND = "ENTITLEMENT_NOT_FOUND"

    @classmethod
    def from_wire(cls, number: int) -> Reason:
        """The reason of a wire number; numbers that this version does not know read as ``UNKNOWN``."""
        return _REASONS.get(number, cls.UNKNOWN)


class ResetPeriod(_Name):
    """How often usage returns to 0."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"

    @classmethod
    def from_wire(cls, number: int) -> ResetPeriod | None:
        """The period of a wire number; None for a number that this version does not know."""
        return _RESETS.get(number)


def _by_number(names: type[Any], descriptor: Any, prefix: str) -> dict[int, Any]:
    known = names.__members__
    members = ((value.number, value.name.removeprefix(prefix)) for value in descriptor.values)
    return {number: known[name] for number, name in members if name in known}


_ENUMS = wire.DESCRIPTOR.enum_types_by_name
_REASONS: dict[int, Reason] = _by_number(Reason, _ENUMS["AccessDeniedReason"], "ACCESS_DENIED_REASON_")
_RESETS: dict[int, ResetPeriod] = _by_number(ResetPeriod, _ENUMS["EntitlementResetPeriod"], "ENTITLEMENT_RESET_PERIOD_")

_COUNTED = (Kind.METERED, Kind.CREDIT)
# Either the usage fits or it does not; every other reason stands whatever is asked.
_BY_AMOUNT = (None, Reason.REQUESTED_USAGE_EXCEEDING_LIMIT, Reason.INSUFFICIENT_CREDITS)


@dataclass(frozen=True, slots=True)
class Customer:
    """Who is asked about: a customer, or one of its resources (a site, a workspace) with a subscription of its own."""

    id: str
    resource: str | None = None

    def __post_init__(self) -> None:
        require_id(self.id, "customer_id")
        if self.resource is not None:
            require_id(self.resource, "resource_id")

    @classmethod
    def of(cls, customer: str | Customer) -> Customer:
        """The customer of an id, or the customer itself."""
        return customer if isinstance(customer, Customer) else cls(customer)

    def __str__(self) -> str:
        return f"{self.id}/{self.resource}" if self.resource else self.id


@dataclass(frozen=True, kw_only=True, slots=True)
class Entitlement:
    """One answer: may this customer use this feature, why not, and by which figures. Falsy when access is denied.

    ``feature_id`` is the id of the feature, or of the currency for ``Kind.CREDIT``. ``kind`` is None when a denial has
    no entitlement behind it. Figures are in the feature's own units; those that do not belong to the kind are None, 0
    or empty. Times are aware datetimes in UTC. ``source`` tells where the answer came from, and ``is_fallback`` that
    it did not come from the customer's data.
    """

    feature_id: str
    kind: Kind | None = None
    has_access: bool
    reason: Reason | None = None
    is_fallback: bool = False
    source: Source = Source.SIDECAR
    value: int | None = None
    enum_values: tuple[str, ...] = ()
    usage_limit: float | None = None
    current_usage: float = 0.0
    requested_usage: float | None = None
    is_unlimited: bool = False
    has_soft_limit: bool = False
    reset_period: ResetPeriod | None = None
    usage_period_anchor: datetime | None = None
    usage_period_start: datetime | None = None
    usage_period_end: datetime | None = None
    usage_period_ns: tuple[int | None, int | None] = field(default=(None, None), repr=False, compare=False)
    """Both ends as they were told, in whole nanoseconds since the epoch: they identify the period."""
    units: str | None = None
    units_plural: str | None = None
    currency: str | None = None
    display_name: str | None = None

    def __bool__(self) -> bool:
        return self.has_access

    @property
    def remaining(self) -> float | None:
        """Units left below the limit, never negative; None when nothing limits the usage."""
        if self.is_unlimited or self.usage_limit is None or self.usage_limit > MAX_AMOUNT:
            return None
        return units(max(0, quanta(self.usage_limit) - quanta(self.current_usage)))

    @property
    def used_fraction(self) -> float | None:
        """The used part of the limit, from 0 to 1; None when nothing limits the usage."""
        if self.is_unlimited or self.usage_limit is None:
            return None
        return min(1.0, max(0.0, self.current_usage / self.usage_limit)) if self.usage_limit > 0 else 1.0

    @property
    def hard_limit(self) -> float | None:
        """The limit that usage must not pass; None when it is unlimited, soft, too large to be met, or not there."""
        limit = self.usage_limit
        if self.is_unlimited or self.has_soft_limit or limit is None or limit > MAX_AMOUNT:
            return None
        return limit

    @property
    def is_limited(self) -> bool:
        """Whether nothing but the amount decides: there is a limit, and no other reason to deny."""
        return self.hard_limit is not None and self.reason in _BY_AMOUNT

    @property
    def needs_fresh_check(self) -> bool:
        """Whether only the sidecar can say if an amount fits: a wallet pays for the feature, so that it has neither a
        limit of its own nor none at all."""
        return (
            self.kind is Kind.METERED
            and self.usage_limit is None
            and not (self.is_unlimited or self.has_soft_limit or self.is_fallback)
        )

    @property
    def explanation(self) -> str:
        """The reason and its figures in one sentence, for logs and error messages."""
        if self.has_access:
            return "access granted"
        reason = str(self.reason or Reason.UNKNOWN)
        if self.usage_limit is None:
            return reason
        asked = "" if self.requested_usage is None else f", {self.requested_usage:.15g} requested"
        used = f"{self.current_usage:.15g} of {self.usage_limit:.15g} {self.units_plural or 'units'} used"
        return f"{reason} ({used}{asked})"

    def allows(self, requested_usage: Amount | None = None, requested_values: Sequence[str] = ()) -> Entitlement:
        """The answer for a requested usage or requested values, decided from this one without asking anybody.

        Raises:
            InvalidRequest: the usage is negative or not a finite number, or the values are one text instead of several.
        """
        if isinstance(requested_values, str):
            raise InvalidRequest("requested_values", f"this is a list of texts, not one: [{requested_values!r}]")
        if requested_usage is not None:
            return self._asked_for(usage_amount(requested_usage, "requested_usage"))
        if not requested_values:
            return self
        if self.kind is not Kind.ENUM:
            return self._denied(Reason.FEATURE_TYPE_MISMATCH)
        return (
            self if set(requested_values) <= set(self.enum_values) else self._denied(Reason.REQUESTED_VALUES_MISMATCH)
        )

    def with_usage(self, current_usage: float) -> Entitlement:
        """The same entitlement after the usage changed to ``current_usage``."""
        limit = self.hard_limit
        if self.kind is not Kind.METERED or limit is None or not self.is_limited:
            return changed(self, current_usage=current_usage)
        return self._answered(quanta(current_usage) < quanta(limit), current_usage=current_usage)

    def _asked_for(self, amount: float) -> Entitlement:
        limit = self.hard_limit
        if self.kind not in _COUNTED:
            return changed(self._denied(Reason.FEATURE_TYPE_MISMATCH), requested_usage=amount)
        if limit is None or not self.is_limited:
            return changed(self, requested_usage=amount)
        return self._answered(fits(self.current_usage, amount, limit), requested_usage=amount)

    def _denied(self, reason: Reason) -> Entitlement:
        """Denied for this reason, unless it is denied already or is a fallback, which has no type to mismatch."""
        return changed(self, has_access=False, reason=reason) if self and not self.is_fallback else self

    def _answered(self, fits: bool, **figures: Any) -> Entitlement:
        exceeded = Reason.INSUFFICIENT_CREDITS if self.kind is Kind.CREDIT else Reason.REQUESTED_USAGE_EXCEEDING_LIMIT
        return changed(self, has_access=fits, reason=None if fits else exceeded, **figures)


_NAMES = tuple(field.name for field in fields(Entitlement))
_VALUES = attrgetter(*_NAMES)
_SETTERS = {name: getattr(Entitlement, name).__set__ for name in _NAMES}


def changed(answer: Entitlement, **changes: Any) -> Entitlement:
    """As ``dataclasses.replace``, in a fraction of its time: most answers are made of others."""
    made = object.__new__(Entitlement)
    for setter, value in zip(_SETTERS.values(), _VALUES(answer), strict=False):
        setter(made, value)
    for name, value in changes.items():
        _SETTERS[name](made, value)
    return made


def require_id(value: object, field: str) -> None:
    """Raises ``InvalidRequest`` unless the value is an id: text that is not empty and that the wire can carry."""
    if not isinstance(value, str) or not value:
        raise InvalidRequest(field, f"an id is text that is not empty, not {reprlib.repr(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(field, f"an id is valid Unicode, not {reprlib.repr(value)}") from None

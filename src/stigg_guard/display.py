"""What pages say of an entitlement: one wording and one set of figures for every framework's tags."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from stigg_guard.entitlements import Customer, Entitlement, Kind
from stigg_guard.errors import InvalidRequest, SidecarError
from stigg_guard.guard import Guard


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a table of limits, one bar of usage.

    ``limit`` and ``usage`` are in the feature's units. ``fraction`` is the used part of the limit, from 0 to 1; it and
    ``limit`` are None when nothing is counted against a limit.
    """

    feature_id: str
    text: str
    limit: float | None
    usage: float
    fraction: float | None
    has_access: bool
    kind: Kind | None


def line(entitlement: Entitlement) -> Line:
    """The entitlement as a row of a page."""
    limit = None if entitlement.is_unlimited else entitlement.usage_limit
    return Line(
        feature_id=entitlement.feature_id,
        text=usage_text(entitlement),
        limit=limit,
        usage=entitlement.current_usage,
        fraction=None if limit is None else _fraction(entitlement.current_usage, limit),
        has_access=entitlement.has_access,
        kind=entitlement.kind,
    )


def usage_text(entitlement: Entitlement) -> str:
    """What the customer has, in words: "3 of 6 templates", "unlimited seats", "100 GB", "eu, us", "not included"."""
    if not entitlement.has_access and not entitlement.is_limited:
        return "not included"
    if entitlement.is_unlimited:
        return f"unlimited {entitlement.units_plural or ''}".rstrip()
    return _TEXTS[entitlement.kind](entitlement)


class DisplayedPlan:
    """A customer's plan as one page shows it: nothing is asked twice, so that the page does not contradict itself.

    Without a customer, and for what an outage hides, there is nothing to show: a page does not fail because of it.
    """

    def __init__(self, guard: Guard, customer: str | Customer | None) -> None:
        self._guard = guard
        self._customer = customer
        self._answers: dict[str, Entitlement | None] = {}
        self._plan: Mapping[str, Entitlement] | None = None

    def entitlement(self, feature: str) -> Entitlement | None:
        """The answer for the feature, or for the currency; None when there is nobody to ask about, or no answer."""
        if feature not in self._answers:
            plan = self._entitlements()
            self._answers[feature] = plan[feature] if feature in plan else self._check(feature)
        return self._answers[feature]

    def lines(self) -> list[Line]:
        """All that the plan has, by feature id."""
        return [line(entitlement) for entitlement in self._entitlements().values()]

    def _entitlements(self) -> Mapping[str, Entitlement]:
        if self._plan is None:
            self._plan = {}
            if self._customer is not None:
                with suppress(SidecarError, InvalidRequest):
                    self._plan = self._guard.entitlements(self._customer)
        return self._plan

    def _check(self, feature: str) -> Entitlement | None:
        """For what the plan lacks: fallbacks and the outage policy are the guard's to apply."""
        if self._customer is None:
            return None
        try:
            return self._guard.check(feature, customer=self._customer)
        except (SidecarError, InvalidRequest):
            return None


def _fraction(usage: float, limit: float) -> float:
    return min(1.0, max(0.0, usage / limit)) if limit > 0 else 1.0


def _metered(entitlement: Entitlement) -> str:
    used, limit = entitlement.current_usage, entitlement.usage_limit
    if limit is None:
        return f"{_counted(used, entitlement)} used"
    return f"{_number(used)} of {_counted(limit, entitlement)}"


def _credit(entitlement: Entitlement) -> str:
    left = entitlement.remaining or 0.0
    return f"{_number(left)} of {_counted(entitlement.usage_limit or 0.0, entitlement)} left"


def _numeric(entitlement: Entitlement) -> str:
    return "included" if entitlement.value is None else _counted(entitlement.value, entitlement)


def _counted(number: float, entitlement: Entitlement) -> str:
    units = entitlement.units if number == 1 else entitlement.units_plural
    return f"{_number(number)} {units or ''}".rstrip()


def _number(number: float) -> str:
    return f"{number:,.3f}".rstrip("0").rstrip(".")


_TEXTS: dict[Kind | None, Callable[[Entitlement], str]] = {
    Kind.METERED: _metered,
    Kind.CREDIT: _credit,
    Kind.NUMERIC: _numeric,
    Kind.ENUM: lambda entitlement: ", ".join(entitlement.enum_values) or "included",
    Kind.BOOLEAN: lambda _: "included",
    None: lambda _: "included",
}

"""Changes that a person or a script makes to a running sidecar: a plan, usage, a promotion, the clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from typing import Any

from stigg_guard.errors import ConfigError, InvalidRequest
from stigg_guard.foreign import quoted
from stigg_guard.sidecar.catalog import read_grant
from stigg_guard.sidecar.document import DocumentFaults, Table, nearest
from stigg_guard.sidecar.engine import Engine
from stigg_guard.wire import sidecar_pb2 as pb

LONGEST = timedelta(days=366)
"""The farthest that the clock is moved in one step."""


class Changes:
    """Makes changes by their names: ``plan``, ``usage``, ``promotion`` and ``clock``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changes: Mapping[str, Callable[[_Given], None]] = {
            "plan": self._plan,
            "usage": self._usage,
            "promotion": self._promotion,
            "clock": self._clock,
        }

    def make(self, name: str, given: Mapping[str, Any]) -> None:
        """Make a change, which takes effect at once.

        Raises:
            InvalidRequest: there is no such change, or what is given for it is wrong.
            StateUnavailable: it cannot be written now.
        """
        change = self._changes.get(name)
        if change is None:
            raise InvalidRequest("", f"there is no change {name!r}; {nearest(name, self._changes)}")
        change(_Given(given))

    def _plan(self, given: _Given) -> None:
        """``customer``, ``plan`` or null for none, and ``resource`` if it is of one."""
        self._engine.assign_plan(given.text("customer"), given.optional("plan"), given.optional("resource"))

    def _usage(self, given: _Given) -> None:
        """``customer``, ``feature``, ``value`` in units, and ``resource`` if it is of one."""
        customer = given.text("customer")
        report = pb.ReportUsageRequest(
            customer_id=customer,
            resource_id=given.optional("resource"),
            feature_id=given.text("feature"),
            value=given.number("value"),
            update_behavior=pb.USAGE_UPDATE_BEHAVIOR_SET,
        )
        self._engine.answer("ReportUsage", report)
        self._engine.tell(customer)

    def _promotion(self, given: _Given) -> None:
        """``customer``, ``feature``, ``grant`` as a plan of the catalog has it, or null to take it back, and ``until``,
        an instant or null for no end."""
        customer, feature_id = given.text("customer"), given.text("feature")
        feature = self._engine.catalog.features.get(feature_id)
        if feature is None:
            raise InvalidRequest(
                "feature", f"there is no {feature_id!r}; {nearest(feature_id, self._engine.catalog.features)}"
            )
        if self._engine.accounts.subscription(customer, "") is None:
            raise InvalidRequest("customer", f"{customer!r} has no subscription, which a promotion adds to")
        if given.all.get("grant") is None:
            self._engine.accounts.revoke(customer, feature_id)
            return
        faults = DocumentFaults("grant")
        grant = read_grant(Table(faults, (), {feature_id: given.all["grant"]}), feature)
        try:
            faults.raise_any()
        except ConfigError as error:
            raise InvalidRequest("grant", str(error.args[-1]).strip()) from None
        until = given.instant("until")
        content = {"grant": asdict(grant), "endDate": until and until.isoformat(), "isVisible": True}
        self._engine.accounts.promote(customer, feature_id, content)

    def _clock(self, given: _Given) -> None:
        """``seconds`` to go forward."""
        seconds, longest = given.number("seconds"), LONGEST.total_seconds()
        if not 0 < seconds <= longest:  # nor is it NaN
            raise InvalidRequest("seconds", f"must be more than 0 and at most {longest:.0f}")
        self._engine.advance(timedelta(seconds=seconds))


class _Given:
    """What is given for a change; each value is checked when it is read."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.all = given

    def text(self, name: str) -> str:
        value = self.optional(name)
        if not value:
            raise InvalidRequest(name, "must not be empty")
        return value

    def optional(self, name: str) -> str | None:
        value = self.all.get(name)
        if not isinstance(value, str | None):
            raise InvalidRequest(name, f"must be a text, not {quoted(value)}")
        return value or None

    def number(self, name: str) -> float:
        value = self.all.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InvalidRequest(name, f"must be a number, not {quoted(value)}")
        return float(value)

    def instant(self, name: str) -> datetime | None:
        value = self.optional(name)
        try:
            instant = datetime.fromisoformat(value.replace("Z", "+00:00")) if value else None
        except ValueError:
            raise InvalidRequest(
                name, f"must be an instant such as 2026-12-31T00:00:00Z, not {quoted(value)}"
            ) from None
        return instant.replace(tzinfo=timezone.utc) if instant and instant.tzinfo is None else instant

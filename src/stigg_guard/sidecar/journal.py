"""The journal of the latest requests, which the status page shows."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from google.protobuf.message import Message

from stigg_guard.clock import utc_now
from stigg_guard.wire import sidecar_pb2 as pb

KEPT = 200
LARGE_BYTES = 4_000
LONGEST_TEXT = 300

_PARTS = ("usages", "events")


class _Answered(NamedTuple):
    number: int
    at: datetime
    method: str
    request: Any
    response: Any
    fault: str


class Journal:
    """The last requests with what became of them. Noting one costs little: it is put into words when it is shown."""

    def __init__(self) -> None:
        self._last: deque[_Answered | Mapping[str, Any]] = deque(maxlen=KEPT)
        self.count = 0
        """How many requests were noted so far."""

    def note(self, method: str, request: Message, response: Message | None, fault: str = "") -> None:
        """A request with its answer, or with what was wrong."""
        self.count += 1
        one = _Answered(self.count, utc_now(), method, request, response, fault)
        # A large one is put into words at once, so that it is not kept.
        self._last.append(_shown(one) if request.ByteSize() > LARGE_BYTES else one)

    def shown(self) -> list[Mapping[str, Any]]:
        """The newest first: ``number``, ``at``, ``method``, ``customer``, ``resource``, ``feature``, ``outcome``
        (allowed, denied, listed, reported or rejected) and ``detail``."""
        return [_shown(one) if isinstance(one, _Answered) else one for one in reversed(list(self._last))]


def _shown(one: _Answered) -> Mapping[str, Any]:
    outcome, detail = ("rejected", one.fault) if one.response is None else _outcome(one)
    first = next((part for name in _PARTS for part in getattr(one.request, name, ())), one.request)

    def told(*fields: str) -> str:
        return _short(next((text for field in fields if (text := getattr(first, field, ""))), ""))

    return {
        "number": one.number,
        "at": one.at.isoformat(timespec="milliseconds"),
        "method": one.method,
        "customer": told("customer_id"),
        "resource": told("resource_id"),
        "feature": told("feature_id", "currency_id", "event_name"),
        "outcome": outcome,
        "detail": _short(detail),
    }


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"


def _outcome(one: _Answered) -> tuple[str, str]:
    if one.method.startswith("Report"):
        return "reported", _report(one)
    if one.method == "ReloadEntitlements":
        return "listed", "read again" if one.response.entitled_entity_exists else "nobody of that id"
    if one.method in ("GetEntitlements", "GetEntitlementsStateV2"):
        reason = reason_name(one.response.access_denied_reason)
        return ("denied", reason) if reason else ("listed", f"{len(one.response.entitlements)} entitlements")
    answer = one.response.entitlement if one.method == "GetEntitlementV2" else one.response
    how = "by a fallback" if answer.is_fallback else ""
    return ("allowed", how) if answer.has_access else ("denied", reason_name(answer.access_denied_reason) or how)


def _report(one: _Answered) -> str:
    if one.method == "ReportEvents":
        return f"{len(one.request.events)} events"
    if one.method == "ReportUsageBulk":
        return f"{len(one.request.usages)} usages"
    sign = "=" if one.request.update_behavior == pb.USAGE_UPDATE_BEHAVIOR_SET else "+" if one.request.value >= 0 else ""
    return f"{sign}{one.request.value:.9g}, now {one.response.current_usage:.9g}"


def reason_name(reason: int) -> str:
    """The name of a denial's reason, without what all have in common; empty for none."""
    if reason == pb.ACCESS_DENIED_REASON_UNSPECIFIED:
        return ""
    known = pb.AccessDeniedReason.values()
    return pb.AccessDeniedReason.Name(reason).removeprefix("ACCESS_DENIED_REASON_") if reason in known else str(reason)

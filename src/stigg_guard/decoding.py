"""Reads entitlements and usage periods from messages of the wire, and keeps equal parts once."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any

from stigg_guard.amounts import is_figure, quanta_used, units
from stigg_guard.entitlements import Entitlement, Kind, Reason, ResetPeriod, Source


def entitlement_from_wire(message: Any, *, feature_id: str = "", source: Source = Source.SIDECAR) -> Entitlement:
    """The frozen value of a wire answer: ``EntitlementV2``, ``GetEntitlementResponse`` or the older ``Entitlement``.

    ``feature_id`` is what was asked for; it names the answer when the sidecar sends a denial without a feature.
    """
    kind = message.WhichOneof("entitlement")
    body = getattr(message, kind) if kind else None
    told = _FIELDS_OF[kind](body) if kind else {}
    if told.get("feature_id") in (None, "", feature_id):
        told["feature_id"] = feature_id
    access = _access(message, told)
    if "current_usage" in told:
        told["current_usage"] = units(quanta_used(told["current_usage"]))
    return Entitlement(kind=Kind(kind) if kind else None, source=source, **access, **told)


@lru_cache(maxsize=1_024)
def _shared(value: Any) -> Any:
    """The same object for equal values, which is kept once: limits and periods are those of many."""
    return value


def ids_and_period_ends(messages: Iterable[Any]) -> tuple[list[str], set[float]]:
    """The feature id or currency id of each wire entitlement, empty for a kind that this version does not know, and
    when their usage periods end, in seconds since the epoch."""
    ids: list[str] = []
    ends: set[float] = set()
    for message in messages:
        kind = message.WhichOneof("entitlement")
        if kind is None:
            ids.append("")
            continue
        body = getattr(message, kind)
        ids.append(body.currency.currency_id if kind == "credit" else body.feature.id)
        if kind in ("metered", "credit") and body.HasField("usage_period_end"):
            ends.add(body.usage_period_end.seconds)
    return ids, ends


def _access(message: Any, fields: dict[str, Any]) -> dict[str, Any]:
    told = fields.get("usage_limit")
    is_wrong = not is_figure(fields.get("current_usage", 0.0)) or not is_figure(told or 0.0)
    if is_wrong and not fields.get("is_unlimited"):  # what is no figure never allows
        fields["usage_limit"] = told if told is not None and is_figure(told) else 0.0
        return {"has_access": False, "reason": Reason.UNKNOWN}
    if "has_access" in message.DESCRIPTOR.fields_by_name:
        reason = message.access_denied_reason if message.HasField("access_denied_reason") else 0
        denied = None if message.has_access else Reason.from_wire(reason)
        return {"has_access": message.has_access, "is_fallback": message.is_fallback, "reason": denied}
    exempt = told is None or fields.get("is_unlimited") or fields.get("has_soft_limit")
    is_free = exempt or fields["current_usage"] < told
    return {"has_access": is_free, "reason": None if is_free else Reason.REQUESTED_USAGE_EXCEEDING_LIMIT}


def _feature_fields(body: Any) -> dict[str, Any]:
    if not body.HasField("feature"):
        return {}
    feature = body.feature
    return {
        "feature_id": feature.id,
        "units": feature.units or None,
        "units_plural": feature.units_plural or None,
    }


def _numeric_fields(body: Any) -> dict[str, Any]:
    value = body.value if body.HasField("value") else None
    return {**_feature_fields(body), "value": value, "is_unlimited": body.is_unlimited}


def _enum_fields(body: Any) -> dict[str, Any]:
    return {**_feature_fields(body), "enum_values": tuple(body.enum_values)}


def _metered_fields(body: Any) -> dict[str, Any]:
    return {
        **_feature_fields(body),
        "usage_limit": _shared(body.usage_limit) if body.HasField("usage_limit") else None,
        "is_unlimited": body.is_unlimited,
        "current_usage": body.current_usage,
        "has_soft_limit": body.has_soft_limit,
        "reset_period": ResetPeriod.from_wire(body.reset_period),
        "usage_period_anchor": _instant(body, "usage_period_anchor"),
        "usage_period_start": _instant(body, "usage_period_start"),
        "usage_period_end": _instant(body, "usage_period_end"),
        "usage_period_ns": _shared(period_from_wire(body)),
    }


def _credit_fields(body: Any) -> dict[str, Any]:
    currency = body.currency
    return {
        "feature_id": currency.currency_id,
        "currency": currency.currency_id,
        "display_name": None if currency.display_name in ("", currency.currency_id) else currency.display_name,
        "units": currency.unit_singular or None,
        "units_plural": currency.unit_plural or None,
        "usage_limit": body.usage_limit,
        "current_usage": body.current_usage,
        "has_soft_limit": body.has_soft_limit,
        "usage_period_end": _instant(body, "usage_period_end"),
        "usage_period_ns": (None, _nanoseconds(body, "usage_period_end")),
    }


def period_from_wire(body: Any) -> tuple[int | None, int | None]:
    """Both ends of the usage period of a metered entitlement or a report's answer, in nanoseconds since the epoch."""
    return _nanoseconds(body, "usage_period_start"), _nanoseconds(body, "usage_period_end")


def _nanoseconds(body: Any, field: str) -> int | None:
    """A timestamp of the wire as it was told; None where it was not, or lies outside the years 1 to 9999."""
    if not body.HasField(field):
        return None
    stamp = getattr(body, field)
    if not -62_135_596_800 <= stamp.seconds <= 253_402_300_799:
        return None
    return int(stamp.seconds) * 1_000_000_000 + int(stamp.nanos)


def _instant(body: Any, field: str) -> datetime | None:
    if not body.HasField(field):
        return None
    stamp = getattr(body, field)
    try:
        told: datetime = _shared(datetime.fromtimestamp(stamp.seconds + stamp.nanos / 1e9, timezone.utc))
        return told
    except (ValueError, OverflowError, OSError):
        return None  # no instant that a calendar has


_FIELDS_OF = {
    "boolean": _feature_fields,
    "numeric": _numeric_fields,
    "enum": _enum_fields,
    "metered": _metered_fields,
    "credit": _credit_fields,
}

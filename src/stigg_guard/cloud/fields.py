"""The fields of Stigg's GraphQL API as those of the sidecar's messages, and back.

Where the schema leaves a meaning open, the reading is the one that the documentation of the sidecar suggests; the
list of what is assumed is in docs/cloud.md.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from stigg_guard import amounts
from stigg_guard.api import CreditEntitlement, EntitlementsState, FeatureEntitlement, UsageMeasurementWithCurrentUsage
from stigg_guard.decoding import entitlement_from_wire, ids_and_period_ends
from stigg_guard.errors import InvalidRequest
from stigg_guard.wire import sidecar_pb2 as pb
from stigg_guard.wire.beside import set_rates, set_valid_until
from stigg_guard.wire.responses import FEATURE_TYPES

ENTITLEMENT = """
__typename
... on FeatureEntitlement {
  isGranted accessDeniedReason usageLimit hasUnlimitedUsage hasSoftLimit currentUsage enumValues resetPeriod
  usagePeriodAnchor usagePeriodStart usagePeriodEnd validUntil
  creditRate { amount currencyId customCurrencyId }
  feature { refId featureType meterType featureUnits featureUnitsPlural }
}
... on CreditEntitlement {
  isGranted accessDeniedReason usageLimit hasSoftLimit currentUsage usagePeriodEnd validUntil
  currency { currencyId displayName description unitSingular unitPlural additionalMetaData }
}
"""
STATE = f"accessDeniedReason entitlementsV2 {{ {ENTITLEMENT} }}"
MEASUREMENT = "id customerId resourceId featureId currentUsage usagePeriodStart usagePeriodEnd"


def _numbers(enum: Any, prefix: str) -> Mapping[str, Any]:
    """The numbers of an enum of the wire by the names without their prefix."""
    return {name.removeprefix(prefix): number for name, number in enum.items()}


REASONS = _numbers(pb.AccessDeniedReason, "ACCESS_DENIED_REASON_")
"""The numbers of reasons by their names."""
_METERS = _numbers(pb.MeterType, "METER_TYPE_")
_RESETS = _numbers(pb.EntitlementResetPeriod, "ENTITLEMENT_RESET_PERIOD_")

NOT_THERE = frozenset(
    REASONS[name]
    for name in (
        "CUSTOMER_NOT_FOUND",
        "CUSTOMER_IS_ARCHIVED",
        "CUSTOMER_RESOURCE_NOT_FOUND",
        "NO_ACTIVE_SUBSCRIPTION",
        "FEATURE_NOT_FOUND",
        "NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION",
        "ENTITLEMENT_NOT_FOUND",
    )
)
"""Denials for which there is no entitlement: whatever comes beside them is only about the feature."""

_YEAR = timedelta(days=366).total_seconds()
_BEHAVIORS = {
    pb.USAGE_UPDATE_BEHAVIOR_UNSPECIFIED: "DELTA",
    pb.USAGE_UPDATE_BEHAVIOR_DELTA: "DELTA",
    pb.USAGE_UPDATE_BEHAVIOR_SET: "SET",
}


def state_response(state: EntitlementsState, now: datetime) -> pb.GetEntitlementsStateV2Response:
    """All entitlements of a customer, with the instant until which they hold where that can be read."""
    told = listed(state.entitlements_v2)
    found = [each for each in map(entitlement_message, told) if each is not None]
    response = pb.GetEntitlementsStateV2Response(entitlements=_told_once(found))
    if state.access_denied_reason:
        response.access_denied_reason = reason_number(state.access_denied_reason)
    until = first_end((getattr(each, "valid_until", None) for each in told), now)
    if until is not None:
        set_valid_until(response, until)
    set_rates(response, dict(_rates(told)))
    return response


def entitlement_message(said: object) -> pb.EntitlementV2 | None:
    """One entitlement; None for nothing, and for a kind that this version does not know.

    Raises:
        TypeError: it says of no kind that it is one, or a field is not of its type.
    """
    if not isinstance(said, (FeatureEntitlement, CreditEntitlement)):
        if said is not None and not (isinstance(said, dict) and "__typename" in said):
            raise TypeError("expected an entitlement")
        return None
    answer = pb.EntitlementV2(has_access=_flag(said.is_granted))
    kind = kind_of(said)
    if said.access_denied_reason and not answer.has_access:
        answer.access_denied_reason = reason_number(said.access_denied_reason)
    body: Message = _credit(said) if isinstance(said, CreditEntitlement) else _feature(said, kind)
    getattr(answer, kind).CopyFrom(body)
    return _held_to_its_limit(answer)


def kind_of(said: FeatureEntitlement | CreditEntitlement) -> str:
    """The sidecar's name of the kind; without a feature it is boolean."""
    if isinstance(said, CreditEntitlement):
        return "credit"
    feature = said.feature
    if feature is None or feature.feature_type in ("BOOLEAN", "ENUM"):
        return "enum" if feature is not None and feature.feature_type == "ENUM" else "boolean"
    return "metered" if feature.meter_type in ("Fluctuating", "Incremental") else "numeric"


def missing(kind: str, reason: pb.AccessDeniedReason) -> pb.EntitlementV2:
    """The answer where there is no entitlement: an empty one of this kind, and the reason."""
    answer = pb.EntitlementV2(access_denied_reason=reason)
    getattr(answer, kind).SetInParent()
    if kind == "metered":
        answer.metered.reset_period = pb.ENTITLEMENT_RESET_PERIOD_UNSPECIFIED
    return answer


def decided(answer: pb.EntitlementV2, usage: float | None, values: Iterable[str]) -> pb.EntitlementV2:
    """The answer to a requested usage, or to requested values, by the figures that came."""
    kind = answer.WhichOneof("entitlement")
    wanted = list(values) if kind == "enum" else []
    amount = usage if kind in ("metered", "credit") else None
    known = entitlement_from_wire(answer)
    asked = known.allows(amount, wanted)
    made = pb.EntitlementV2()
    made.CopyFrom(answer)
    made.has_access = asked.has_access
    made.ClearField("access_denied_reason")
    if asked.reason is not None:
        made.access_denied_reason = REASONS[str(asked.reason)]
    return made


def reason_number(name: str) -> pb.AccessDeniedReason:
    """The wire's number of a reason in the API's spelling; one that is not known is ``UNKNOWN``."""
    spelled = "_".join(re.findall("[A-Z][a-z]*", name)).upper()
    number: pb.AccessDeniedReason = REASONS.get(spelled, pb.ACCESS_DENIED_REASON_UNKNOWN)
    return number


def first_end(told: Iterable[object], now: datetime) -> float | None:
    """The first plausible instant, in seconds since the epoch: the unit of what is told is not documented."""
    present = now.timestamp()
    ends = [instant for each in told for instant in _readings(each) if present < instant <= present + _YEAR]
    return min(ends, default=None)


def listed(told: object) -> Iterable[Any]:
    """What is to be a list, and is one. A text or an object has items, too, which mean nothing.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(told, list):
        raise TypeError(f"expected a list, not {type(told).__name__}")
    return told


def usage_input(usage: pb.ReportUsageRequest, key: str | None, place: str = "") -> Any:
    """The input of one usage report; ``place`` stands before the fields' names in a bulk."""
    if usage.update_behavior not in _BEHAVIORS:
        raise InvalidRequest(f"{place}update_behavior", f"there is no number {usage.update_behavior}; use 1 or 2")
    return _given(
        customerId=usage.customer_id,
        resourceId=usage.resource_id if usage.HasField("resource_id") else None,
        featureId=usage.feature_id,
        value=amounts.finite_number(usage.value, f"{place}value"),
        updateBehavior=_BEHAVIORS[usage.update_behavior],
        dimensions=_dimensions(usage, place),
        createdAt=_instant(usage, place),
        idempotencyKey=key,
    )


def event_input(event: pb.Event, place: str) -> Any:
    """The input of one raw event."""
    return _given(
        customerId=event.customer_id,
        resourceId=event.resource_id if event.HasField("resource_id") else None,
        eventName=event.event_name,
        idempotencyKey=event.idempotency_key,
        dimensions=_dimensions(event, place),
        timestamp=_instant(event, place),
    )


def usage_response(measured: UsageMeasurementWithCurrentUsage) -> pb.ReportUsageResponse:
    """What was counted, as the sidecar answers it."""
    return pb.ReportUsageResponse(
        measurement_id=measured.id,
        customer_id=measured.customer_id,
        resource_id=measured.resource_id or None,
        feature_id=measured.feature_id,
        current_usage=_number(measured.current_usage),
        usage_period_start=_moment(measured.usage_period_start),
        usage_period_end=_moment(measured.usage_period_end),
    )


def _told_once(found: Sequence[pb.EntitlementV2]) -> list[pb.EntitlementV2]:
    """Without those of which there are two: which one holds is not documented, so the API is asked for it alone."""
    ids, _ = ids_and_period_ends(found)
    names = [(each.WhichOneof("entitlement") == "credit", named) for each, named in zip(found, ids, strict=True)]
    count = Counter(names)
    return [each for each, name in zip(found, names, strict=True) if count[name] == 1]


def _rates(told: Iterable[object]) -> Iterator[tuple[str, tuple[str, float]]]:
    """What a unit of each feature costs that credits pay for."""
    for said in told:
        rate = getattr(said, "credit_rate", None)
        if rate is None or not isinstance(said, FeatureEntitlement) or said.feature is None:
            continue
        if said.usage_limit is None and not said.has_unlimited_usage:
            yield said.feature.ref_id, (rate.custom_currency_id or rate.currency_id, rate.amount)


def _feature(said: FeatureEntitlement, kind: str) -> Message:
    described = _described(said, kind)
    if kind == "boolean":
        return pb.BooleanEntitlement(feature=described)
    if kind == "enum":
        return pb.EnumEntitlement(feature=described, enum_values=listed(said.enum_values or []))
    if kind == "numeric":
        limit = _number(said.usage_limit)
        value = None if limit is None else int(limit)
        return pb.NumericEntitlement(feature=described, value=value, is_unlimited=_flag(said.has_unlimited_usage))
    return pb.MeteredEntitlement(
        feature=described,
        usage_limit=_number(said.usage_limit),
        is_unlimited=_flag(said.has_unlimited_usage),
        current_usage=_number(said.current_usage),
        has_soft_limit=_flag(said.has_soft_limit),
        reset_period=_RESETS.get(said.reset_period or "", pb.ENTITLEMENT_RESET_PERIOD_UNSPECIFIED),
        usage_period_anchor=_moment(said.usage_period_anchor),
        usage_period_start=_moment(said.usage_period_start),
        usage_period_end=_moment(said.usage_period_end),
    )


def _described(said: FeatureEntitlement, kind: str) -> pb.EntitlementFeature | None:
    feature = said.feature
    if feature is None:
        return None
    return pb.EntitlementFeature(
        id=feature.ref_id,
        feature_type=FEATURE_TYPES[kind],
        units=feature.feature_units or "",
        units_plural=feature.feature_units_plural or "",
        meter_type=_METERS.get((feature.meter_type or "").upper(), pb.METER_TYPE_NONE),
        is_metered=kind == "metered",
    )


def _credit(said: CreditEntitlement) -> Message:
    currency = said.currency
    metadata = currency.additional_meta_data
    credit = pb.CreditEntitlement(
        currency=pb.EntitlementCurrency(
            currency_id=currency.currency_id,
            display_name=currency.display_name,
            description=currency.description,
            unit_singular=currency.unit_singular,
            unit_plural=currency.unit_plural,
            additional_meta_data=ParseDict(metadata, Struct()) if isinstance(metadata, dict) else None,
        ),
        usage_limit=_number(said.usage_limit),
        current_usage=_number(said.current_usage),
        usage_period_end=_moment(said.usage_period_end),
        has_soft_limit=_flag(said.has_soft_limit),
    )
    credit.remaining = amounts.left(credit.current_usage, credit.usage_limit)
    return credit


def _held_to_its_limit(answer: pb.EntitlementV2) -> pb.EntitlementV2:
    """Denied when the usage has reached its limit: whether ``isGranted`` says so already is not documented."""
    known = entitlement_from_wire(answer)
    if known.has_access and not known.with_usage(known.current_usage).has_access:
        answer.has_access = False
        answer.access_denied_reason = pb.ACCESS_DENIED_REASON_REQUESTED_USAGE_EXCEEDING_LIMIT
    return answer


def _moment(instant: object) -> datetime | None:
    """An instant that was read; None for what is none."""
    return instant if isinstance(instant, datetime) else None


def _flag(told: object) -> bool | None:
    """What is to be true or false, or is not told. A message would take 1 for true.

    Raises:
        TypeError: it is something else.
    """
    if told is not None and not isinstance(told, bool):
        raise TypeError(f"expected true or false, not {type(told).__name__}")
    return told


def _number(told: object) -> float | None:
    """What is to be a number, or is not told. A message would take true for 1.

    Raises:
        TypeError: it is something else.
    """
    if told is not None and (isinstance(told, bool) or not isinstance(told, (int, float))):
        raise TypeError(f"expected a number, not {type(told).__name__}")
    return told


def _readings(told: object) -> list[float]:
    """What an end may mean: an instant as text, or a number of seconds or of milliseconds since the epoch."""
    if isinstance(told, datetime):
        return [told.timestamp()]
    try:
        number = float(told)  # type: ignore[arg-type] # what is no number raises
    except (OverflowError, TypeError, ValueError):
        return []
    return [number, number / 1000]


def _instant(message: Any, place: str) -> str | None:
    if not message.HasField("timestamp"):
        return None
    try:
        instant: datetime = message.timestamp.ToDatetime(timezone.utc)
    except (ValueError, OverflowError):
        raise InvalidRequest(f"{place}timestamp", "is not an instant between the years 1 and 9999") from None
    return instant.isoformat()


def _dimensions(message: Any, place: str) -> Mapping[str, object] | None:
    found = {}
    for name, value in message.dimensions.items():
        kind = value.WhichOneof("value")
        found[name] = getattr(value, kind) if kind else None
        amounts.finite_number(value.number_value, f"{place}dimensions[{name}].number_value")
    return found or None


def _given(**fields: object) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}

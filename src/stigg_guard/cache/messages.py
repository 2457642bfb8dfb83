"""Reads the messages of Stigg's webhooks and of its queue: which customer's entitlements have changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from stigg_guard.amounts import is_figure
from stigg_guard.entitlements import Customer, Entitlement, Kind
from stigg_guard.foreign import json_value


class Reached(NamedTuple):
    """A threshold that Stigg was told to watch: the part of the limit, and the entitlement as it was then."""

    part: float
    entitlement: Entitlement


class Message(NamedTuple):
    """The customer, or the resource of one, whose entitlements changed; None where it is about nobody. ``id`` is that
    of the message, and whatever stands there in one that is not Stigg's. ``reached`` is the threshold that it tells
    of."""

    customer: Customer | None
    id: object
    reached: Reached | None


def read_message(body: str | bytes) -> Message:
    """Reads a message of any type, whether its fields are flat or inside ``data``.

    Raises:
        ValueError: it is no JSON object, or what it has for an id is none.
    """
    told = json_value(body)
    if not isinstance(told, dict):
        raise ValueError("it is no JSON object")
    data = told.get("data")
    fields = {**told, **data} if isinstance(data, dict) else told
    return Message(_customer(fields), fields.get("messageId"), _reached(fields))


def _customer(message: Mapping[str, Any]) -> Customer | None:
    is_about_itself = str(message.get("type", "")).startswith("customer.")
    customer = _id(message, "customer") or (message.get("id") if is_about_itself else None)
    return Customer(customer, _id(message, "resource")) if customer else None


def _reached(message: Mapping[str, Any]) -> Reached | None:
    """The threshold of a message of type ``entitlement.usage_exceeded``; None where it does not tell all of it."""
    if message.get("type") != "entitlement.usage_exceeded":
        return None
    feature = _id(message, "feature")
    percentage, usage, limit = (
        _figure(message, name) for name in ("thresholdPercentage", "currentUsage", "usageLimit")
    )
    if not isinstance(feature, str) or percentage is None or usage is None or limit is None:
        return None
    entitlement = Entitlement(
        feature_id=feature,
        kind=Kind.METERED,
        has_access=True,
        usage_limit=limit,
        has_soft_limit=message.get("hasSoftLimit") is True,
    )
    return Reached(percentage / 100, entitlement.with_usage(usage))


def _figure(message: Mapping[str, Any], name: str) -> float | None:
    told: Any = message.get(name)
    is_number = isinstance(told, (int, float)) and not isinstance(told, bool)
    return float(told) if is_number and is_figure(told) else None


def _id(message: Mapping[str, Any], of: str) -> Any:
    """The id of an object in the message; None where there is none."""
    named = message.get(of)
    return (named.get("id") if isinstance(named, dict) else None) or message.get(f"{of}Id") or None

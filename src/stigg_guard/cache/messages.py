"""What Stigg tells of changes, by webhooks and through its queue: whose entitlements a message is about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from stigg_guard.entitlements import Customer
from stigg_guard.foreign import json_value


class Message(NamedTuple):
    """The customer, or the resource of one, whose entitlements changed; None where it is about nobody. ``id`` is that
    of the message, and whatever stands there in one that is not Stigg's."""

    customer: Customer | None
    id: object


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
    return Message(_customer(fields), fields.get("messageId"))


def _customer(message: Mapping[str, Any]) -> Customer | None:
    is_about_itself = str(message.get("type", "")).startswith("customer.")
    customer = _id(message, "customer") or (message.get("id") if is_about_itself else None)
    return Customer(customer, _id(message, "resource")) if customer else None


def _id(message: Mapping[str, Any], of: str) -> Any:
    """The id of an object in the message; None where there is none."""
    named = message.get(of)
    return (named.get("id") if isinstance(named, dict) else None) or message.get(f"{of}Id") or None

"""Metadata beside the contract: until when a list of entitlements holds, and what units cost in credits.

Each is a field of an unknown number, which every reader of the contract passes over and keeps.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

_VALID_UNTIL, _FIXED64 = 15_000, 1
_RATES, _BYTES = 15_001, 2


def set_valid_until(response: Message, instant: float) -> None:
    """Notes in a response until when it holds, in seconds since the epoch."""
    response.MergeFromString(_varint(_VALID_UNTIL << 3 | _FIXED64) + struct.pack("<d", instant))


def valid_until(response: Message) -> float | None:
    """Until when the response holds, in seconds since the epoch; None where nobody said."""
    told = _told(response, _VALID_UNTIL, _FIXED64)
    if told is None:
        return None
    (instant,) = struct.unpack("<d", struct.pack("<Q", told))
    return float(instant)


def set_rates(response: Message, told_rates: Mapping[str, tuple[str, float]]) -> None:
    """Notes in a response what a unit of its features costs: by the feature's id in which currency, and how much."""
    if not told_rates:
        return
    table = {feature: {"currency": currency, "rate": rate} for feature, (currency, rate) in told_rates.items()}
    told = json.dumps(table).encode()
    response.MergeFromString(_varint(_RATES << 3 | _BYTES) + _varint(len(told)) + told)


def rates(response: Message) -> bytes:
    """What was noted by :func:`set_rates`, as JSON in the form of the setting ``CREDIT_RATES``; empty where nobody
    said."""
    told: bytes = _told(response, _RATES, _BYTES) or b""
    return told


def _told(response: Message, number: int, wire_type: int) -> Any:
    unknown = UnknownFieldSet(response)
    for field in (unknown[index] for index in range(len(unknown))):
        if field.field_number == number and field.wire_type == wire_type:
            return field.data
    return None


def _varint(number: int) -> bytes:
    more, low = divmod(number, 0x80)
    return bytes([low | 0x80]) + _varint(more) if more else bytes([low])

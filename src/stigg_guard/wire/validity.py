"""Until when a list of entitlements holds: what Stigg's API says and the contract has no field for.

It travels as a field of an unknown number, which every reader of the contract passes over and keeps.
"""

from __future__ import annotations

import struct

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

_NUMBER = 15_000
_FIXED64 = 1
_TAG = (_NUMBER << 3) | _FIXED64


def set_valid_until(response: Message, instant: float) -> None:
    """Notes in a response until when it holds, in seconds since the epoch."""
    tag = bytes([_TAG & 0x7F | 0x80, _TAG >> 7 & 0x7F | 0x80, _TAG >> 14])
    response.MergeFromString(tag + struct.pack("<d", instant))


def valid_until(response: Message) -> float | None:
    """Until when the response holds, in seconds since the epoch; None where nobody said."""
    unknown = UnknownFieldSet(response)
    for field in (unknown[index] for index in range(len(unknown))):
        if field.field_number == _NUMBER and field.wire_type == _FIXED64:
            (instant,) = struct.unpack("<d", struct.pack("<Q", field.data))
            return float(instant)
    return None

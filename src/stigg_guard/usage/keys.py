"""Callers' keys: by what a use counts once, however often it is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from stigg_guard.entitlements import Customer, require_id
from stigg_guard.errors import InvalidRequest
from stigg_guard.ledger import Once

MAX_LENGTH = 255
"""Of a key, in characters."""


class BoundKey(NamedTuple):
    """A key that clients choose, bound to the use that it came with first: text that is the same for the same one, such
    as method, path and amount. With another ``binding`` it is refused."""

    key: str
    binding: str


Key: TypeAlias = "str | BoundKey"


def once_of(key: Key | None, customer: Customer, features: Iterable[str]) -> Once | None:
    """By what a use of these features, held together, counts once; None without a key.

    Raises:
        InvalidRequest: the key is no text, empty or too long.
    """
    if key is None:
        return None
    text, binding = key if isinstance(key, BoundKey) else (key, "")
    require_id(text, "key")
    if len(text) > MAX_LENGTH:
        raise InvalidRequest("key", f"a key has at most {MAX_LENGTH} characters, not {len(text)}")
    told = _digest(customer.id, customer.resource or "", *sorted(features), text)
    return Once(customer.id, told, binding and _digest(binding))


def _digest(*texts: str) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()

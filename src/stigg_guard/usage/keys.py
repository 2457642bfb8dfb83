"""Idempotency keys of callers: with the same one a use counts once, however often it is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple, TypeAlias

from stigg_guard.entitlements import Customer, require_id
from stigg_guard.errors import InvalidRequest
from stigg_guard.ledger import Once

MAX_LENGTH = 255
"""Of a key, in characters."""
FILES_KEPT = 3_600 * 1_000_000
"""For how many microseconds all ranges of a file are one use."""


class BoundKey(NamedTuple):
    """An idempotency key that clients choose, bound to the use that it came with first by a text that is the same for
    the same use, such as method, path and amount. With another ``binding`` it raises ``KeyReused``."""

    key: str
    binding: str


class FileKey(NamedTuple):
    """The key of a file that is downloaded in ranges, many of them at once: ``url`` and ``validator``."""

    url: str
    validator: str


class PerDownload(Enum):
    """The type of ``PER_DOWNLOAD``."""

    PER_DOWNLOAD = "per download"


PER_DOWNLOAD = PerDownload.PER_DOWNLOAD
"""In the place of a view's key: a download counts once, in however many ranges it comes."""

Key: TypeAlias = "str | BoundKey | FileKey"


def file_key(url: str, etag: str | None, last_modified: str | None) -> FileKey | None:
    """The key of a file that was found at a URL, from the headers of the response; None if these do not tell by what to
    know it again."""
    validator = etag or last_modified
    return FileKey(url, validator) if validator else None


def once_of(key: Key | None, customer: Customer, features: Iterable[str]) -> Once | None:
    """By what a use of these features, held together, counts once; None without a key.

    Raises:
        InvalidRequest: the key is no text, empty or too long, or what it is bound to is none.
    """
    if key is None:
        return None
    whose = customer.id, customer.resource or "", sorted(features)
    if isinstance(key, FileKey):
        return Once(customer.id, _digest("file", *whose, key), "", FILES_KEPT)
    text, binding = key if isinstance(key, BoundKey) else (key, "")
    require_id(text, "key")
    if not isinstance(binding, str):
        raise InvalidRequest("key", f"what a key is bound to is a text, not {binding!r}")
    if len(text) > MAX_LENGTH:
        raise InvalidRequest("key", f"a key has at most {MAX_LENGTH} characters, not {len(text)}")
    return Once(customer.id, _digest("key", *whose, [text]), binding and _digest(binding))


def _digest(*parts: str | Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

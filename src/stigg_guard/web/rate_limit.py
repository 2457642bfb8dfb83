"""The ``RateLimit`` headers of a response: limits and what is left of them, for clients that are programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from math import ceil, floor
from typing import Protocol

from stigg_guard.entitlements import Entitlement
from stigg_guard.errors import FeatureDenied

_LARGEST_INTEGER = 10**15 - 1  # of a structured field (RFC 9651)


class Held(Protocol):
    """Units that were held for a request; a ``Consumption`` is one."""

    @property
    def entitlements(self) -> Mapping[str, Entitlement]:
        """The answers that allowed it, by feature id."""
        ...

    @property
    def amounts(self) -> Mapping[str, float]:
        """What is used of each feature."""
        ...


def rate_limit_headers(noted: Iterable[Held | FeatureDenied], now: datetime) -> Mapping[str, str]:
    """``RateLimit`` and ``RateLimit-Policy`` (draft-ietf-httpapi-ratelimit-headers) of the features of a request.

    ``noted`` is what its guards held and denied, in that order. What was held is fewer left, in as far as it was not
    given back by now. What has no hard limit, or an id that the header cannot carry, is left out; without anything to
    tell there are no headers.
    """
    told: dict[str, Entitlement] = {}
    left: dict[str, float] = {}
    for answer, used in _used(noted):
        feature = answer.feature_id
        if not has_policy(answer):
            continue
        if feature not in told or not answer:
            told[feature], left[feature] = answer, answer.remaining or 0.0
        left[feature] -= used
    if not told:
        return {}
    return {
        "RateLimit-Policy": ", ".join(_policy(answer) for answer in told.values()),
        "RateLimit": ", ".join(_rate_limit(answer, left[feature], now) for feature, answer in told.items()),
    }


def has_policy(answer: Entitlement) -> bool:
    """Whether ``RateLimit-Policy`` tells of it: there is a hard limit, and the header can carry the id."""
    return answer.hard_limit is not None and answer.feature_id.isascii() and answer.feature_id.isprintable()


def _policy(answer: Entitlement) -> str:
    start, end = answer.usage_period_start, answer.usage_period_end
    window = (end - start).total_seconds() if start is not None and end is not None else 0.0
    width = f";w={_integer(window)}" if window >= 1 else ""
    return f"{_name(answer)};q={_integer(answer.usage_limit or 0.0)}{width}"


def _used(noted: Iterable[Held | FeatureDenied]) -> Iterator[tuple[Entitlement, float]]:
    """Each answer, with how much of it is used."""
    for one in noted:
        if isinstance(one, FeatureDenied):
            yield one.entitlement, 0.0
        else:
            yield from ((answer, one.amounts[feature]) for feature, answer in one.entitlements.items())


def _rate_limit(answer: Entitlement, left: float, now: datetime) -> str:
    end = answer.usage_period_end
    reset = "" if end is None else f";t={_integer(ceil((end - now).total_seconds()))}"
    return f"{_name(answer)};r={_integer(left)}{reset}"


def _name(answer: Entitlement) -> str:
    escaped = answer.feature_id.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _integer(number: float) -> int:
    return min(_LARGEST_INTEGER, max(0, floor(number)))

"""Readers of settings: each makes the value of a setting of whatever the environment, Django or Flask has.

What is malformed is a ``ValueError``, which says what was expected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from ipaddress import IPv6Address
from math import isfinite
from typing import Any

from stigg_guard.errors import ConfigError
from stigg_guard.fallbacks import Fallback, parse_fallbacks
from stigg_guard.foreign import json_value, quoted
from stigg_guard.rules import Rule, parse_rules
from stigg_guard.settings.urls import REDIS, REDIS_FORM, redis_url, require_parts

YEAR = 366 * 86_400.0

_ADDRESS = re.compile(r"(?:\[(?P<numeric>[^\[\]]+)\]|(?P<host>[^\s\[\]/@:]+))(?::(?P<port>[0-9]{1,5}))?")


def text(value: Any) -> str:
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"expected text, not {type(value).__name__ if not isinstance(value, str) else 'nothing'}")
    return value.strip()


def optional_text(value: Any) -> str | None:
    return None if value is None else text(value)


def sidecar(value: Any) -> str:
    address = text(value)
    if address not in ("local", "offline", "cloud"):
        split_address(address)
    return address


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``host:port``; without a port it is 80, the sidecar's own default.

    Raises:
        ConfigError: it is not an address.
    """
    found = _ADDRESS.fullmatch(f"[{address}]" if _is_ipv6(address) else address)
    port = int((found and found["port"]) or 80)
    if found is None or not 0 < port < 65536 or not _is_ipv6(found["numeric"] or "::"):
        raise ConfigError(f"expected host:port, host, 'local', 'offline' or 'cloud', not {address!r}")
    return found["numeric"] or found["host"], port


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def seconds(value: Any) -> float:
    number = _number(value)
    if not 0 < number <= YEAR:
        raise ValueError(f"expected a number of seconds above 0 and up to a year, not {quoted(value)}")
    return number


def share(value: Any) -> float:
    number = _number(value)
    if not 0 < number <= 1:
        raise ValueError(f"expected a number above 0 and up to 1, not {quoted(value)}")
    return number


def keys_ttl(value: Any) -> int:
    number = _number(value)
    if number == 0 or number != int(number):
        raise ValueError(f"expected a whole number of seconds, negative for never, not {quoted(value)}")
    return int(number)


def cache(value: Any) -> str:
    url = text(value)
    if url != "memory://":
        if not url.startswith(REDIS):
            raise ValueError(REDIS_FORM.replace("expected ", "expected memory://, "))
        redis_url(url)
    return url


def ledger(value: Any) -> str | None:
    if value is None:
        return None
    url = text(value)
    require_parts(url)
    return url


def duration(value: Any) -> float:
    number = _number(value)
    if number < 0:
        raise ValueError(f"expected a number of seconds, 0 or more, not {quoted(value)}")
    return number


def _number(value: Any) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else float("nan")
    except (ValueError, TypeError, OverflowError):
        number = float("nan")
    if not isfinite(number):
        raise ValueError(f"expected a finite number, not {quoted(value)}")
    return number


def count(value: Any) -> int:
    number = _number(value)
    if number < 1 or number != int(number):
        raise ValueError(f"expected a whole number of 1 or more, not {quoted(value)}")
    return int(number)


def flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    spelled = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    answer = spelled.get(str(value).strip().lower())
    if answer is None:
        raise ValueError(f"expected true or false, not {quoted(value)}")
    return answer


def parts(value: Any) -> Sequence[float]:
    """Parts of a limit, in order: ``0.8``, or several."""
    told = json_value(value) if isinstance(value, str) else value
    numbers = sorted({_number(one) for one in (told if isinstance(told, (list, tuple)) else [told])})
    if any(not 0 < number <= 10 for number in numbers):
        raise ValueError(f"expected parts of a limit above 0, such as [0.8, 1.0], not {quoted(value)}")
    return tuple(numbers)


def one_of(choices: type[Enum]) -> Callable[[Any], Enum]:
    def read(value: Any) -> Enum:
        try:
            return choices(value.strip().lower() if isinstance(value, str) else value)
        except ValueError:
            names = ", ".join(repr(choice.value) for choice in choices)
            raise ValueError(f"expected one of {names}, not {quoted(value)}") from None

    return read


def rules(value: Any) -> Sequence[Rule]:
    return parse_rules(value) if value else ()


def resolver(value: Any) -> str | Callable[..., Any] | None:
    return value if callable(value) else optional_text(value)


def fallbacks(value: Any) -> Mapping[str, Fallback]:
    return parse_fallbacks(value) if value else {}


def feature_names(value: Any) -> Mapping[str, object]:
    table = json_value(value) if isinstance(value, str) else value
    if not isinstance(table, Mapping):
        raise ValueError("expected a mapping of feature ids to names")
    for feature, name in table.items():  # a lazy translation is not translated before it is shown
        if name is None or isinstance(name, (bool, int, float, bytes, list, tuple, Mapping)):
            raise ValueError(f"{feature}: expected a text, not {quoted(name)}")
    return dict(table)

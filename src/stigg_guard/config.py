"""The settings, read in one place: the environment, Django's ``STIGG_GUARD`` and Flask's ``STIGG_GUARD_*`` alike."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from enum import Enum
from math import isfinite
from typing import Any

from stigg_guard.entitlements import Reason
from stigg_guard.errors import ConfigError
from stigg_guard.fallbacks import Fallback, parse_fallbacks

PREFIX = "STIGG_GUARD_"

# What money can change is 402; the rest is 403 (RFC 9110).
STATUS_CODES: Mapping[Reason, int] = {
    Reason.NO_ACTIVE_SUBSCRIPTION: 402,
    Reason.NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION: 402,
    Reason.REQUESTED_USAGE_EXCEEDING_LIMIT: 402,
    Reason.BUDGET_EXCEEDED: 402,
    Reason.REQUESTED_VALUES_MISMATCH: 402,
    Reason.INSUFFICIENT_CREDITS: 402,
    Reason.ENTITLEMENT_NOT_FOUND: 402,
    Reason.UNKNOWN: 403,
    Reason.CUSTOMER_IS_ARCHIVED: 403,
    Reason.CUSTOMER_NOT_FOUND: 403,
    Reason.CUSTOMER_RESOURCE_NOT_FOUND: 403,
    Reason.FEATURE_NOT_FOUND: 403,
    Reason.FEATURE_TYPE_MISMATCH: 403,
    Reason.REVOKED: 403,
}


class OnOutage(str, Enum):
    """What a check answers when there is neither data nor a fallback."""

    ALLOW = "allow"
    DENY = "deny"
    ERROR = "error"


class ReportMode(str, Enum):
    """When usage is reported: after the response by a background thread, or before it by the request itself."""

    BACKGROUND = "background"
    INLINE = "inline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every setting. Times are in seconds. The upper-case name of a field is its name in settings and environment."""

    sidecar: str = "localhost:80"
    """``host:port`` of the sidecar; ``local`` starts one as a child process; ``offline`` asks nobody."""
    catalog: str | None = None
    """The catalog file of the ``local`` sidecar; none serves the demonstration catalog."""
    offline_file: str | None = None
    """The file that ``offline`` answers from."""
    api_key: str | None = field(default=None, repr=False)
    tls_ca_file: str | None = None
    """PEM file of the authority that signed the sidecar's certificate; none means plaintext, as Stigg's sidecar has."""
    timeout: float = 1.0
    """Deadline of a check."""
    cache_ttl: float = 30.0
    cache_size: int = 10_000
    """Number of customers whose entitlements are kept."""
    stale_ttl: float = 86_400.0
    """How long past its TTL an entitlement may still answer while the sidecar cannot be reached."""
    fallbacks: Mapping[str, Fallback] = field(default_factory=dict)
    on_outage: OnOutage = OnOutage.ERROR
    ledger: str = field(default="memory://", repr=False)
    """URL of the ledger; it may hold a password, so it never shows in a repr."""
    hold_ttl: float = 300.0
    """After this time a hold that was neither committed nor released no longer counts against the limit."""
    report: ReportMode = ReportMode.BACKGROUND
    customer: str | Callable[..., Any] | None = None
    """Dotted path or callable that finds the customer of a request."""
    upgrade_url: str | None = None
    """Where a denied customer can buy more; ``{feature}`` is replaced by the feature's id."""
    status_codes: Mapping[Reason, int] = field(default_factory=lambda: STATUS_CODES)
    enabled: bool = True
    """False lets every check pass and reports nothing."""

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any], *, prefix: str = "") -> Config:
        """The configuration of a settings mapping; with a prefix, only the keys that begin with it are read.

        Values may be strings, as the environment has them, or of the setting's own type.

        Raises:
            ConfigError: a key is unknown or a value malformed; the message names every such key and the remedy.
        """
        given = {key[len(prefix) :]: value for key, value in settings.items() if key.startswith(prefix)}
        values: dict[str, Any] = {}
        faults = [f"{prefix}{key}: unknown setting; {_nearest(key, prefix)}" for key in given if key not in _READERS]
        for key in given.keys() & _READERS.keys():
            try:
                values[key.lower()] = _READERS[key](given[key])
            except (ValueError, TypeError) as error:
                faults.append(f"{prefix}{key}: {error}")
        faults.extend(_contradictions(values, prefix))
        if faults:
            raise ConfigError("; ".join(sorted(faults)))
        return cls(**values)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Config:
        """The configuration of the ``STIGG_GUARD_*`` environment variables; mappings are written as JSON."""
        return cls.from_mapping(os.environ if environ is None else environ, prefix=PREFIX)


def _nearest(key: str, prefix: str) -> str:
    close = get_close_matches(key.upper(), _READERS, n=1)
    return f"did you mean {prefix}{close[0]}?" if close else "the settings are " + ", ".join(sorted(_READERS))


def _contradictions(values: Mapping[str, Any], prefix: str) -> Iterator[str]:
    sidecar = values.get("sidecar", "")
    if sidecar == "offline" and not values.get("offline_file"):
        yield f"{prefix}OFFLINE_FILE: SIDECAR is 'offline', so name the file to answer from"
    if sidecar != "offline" and values.get("offline_file"):
        yield f"{prefix}OFFLINE_FILE: it is read only with SIDECAR = 'offline'"
    if sidecar != "local" and values.get("catalog"):
        yield f"{prefix}CATALOG: it is read only with SIDECAR = 'local'"


def _text(value: Any) -> str:
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"expected text, not {type(value).__name__ if not isinstance(value, str) else 'nothing'}")
    return value.strip()


def _optional_text(value: Any) -> str | None:
    return None if value is None else _text(value)


def _sidecar(value: Any) -> str:
    address = _text(value)
    if address not in ("local", "offline"):
        split_address(address)
    return address


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``host:port``; without a port it is 80, the sidecar's own default.

    Raises:
        ConfigError: it is not an address.
    """
    host, colon, port = address.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")):  # an IPv6 address without brackets has no port
        host, port = address, "80"
    host = host.strip("[]")
    if not host or set(host) & set("/@ ") or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"expected host:port, 'local' or 'offline', not {address!r}")
    return host, int(port)


def _seconds(value: Any) -> float:
    seconds = _number(value)
    if seconds <= 0:
        raise ValueError(f"expected a number of seconds above 0, not {value!r}")
    return seconds


def _duration(value: Any) -> float:
    seconds = _number(value)
    if seconds < 0:
        raise ValueError(f"expected a number of seconds, 0 or more, not {value!r}")
    return seconds


def _number(value: Any) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else float("nan")
    except (ValueError, TypeError, OverflowError):
        number = float("nan")
    if not isfinite(number):
        raise ValueError(f"expected a finite number, not {value!r}")
    return number


def _count(value: Any) -> int:
    number = _number(value)
    if number < 1 or number != int(number):
        raise ValueError(f"expected a whole number of 1 or more, not {value!r}")
    return int(number)


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    spelled = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    answer = spelled.get(str(value).strip().lower())
    if answer is None:
        raise ValueError(f"expected true or false, not {value!r}")
    return answer


def _one_of(choices: type[Enum]) -> Callable[[Any], Enum]:
    def read(value: Any) -> Enum:
        try:
            return choices(value.strip().lower() if isinstance(value, str) else value)
        except ValueError:
            names = ", ".join(repr(choice.value) for choice in choices)
            raise ValueError(f"expected one of {names}, not {value!r}") from None

    return read


def _resolver(value: Any) -> str | Callable[..., Any] | None:
    return value if callable(value) else _optional_text(value)


def _fallbacks(value: Any) -> Mapping[str, Fallback]:
    return parse_fallbacks(value) if value else {}


def _status_codes(value: Any) -> Mapping[Reason, int]:
    table = json.loads(value) if isinstance(value, str) else value
    if not isinstance(table, Mapping):
        raise ValueError("expected a mapping of denial reasons to HTTP statuses")
    return {**STATUS_CODES, **dict(_status(name, status) for name, status in table.items())}


def _status(name: Any, status: Any) -> tuple[Reason, int]:
    if name not in Reason.__members__:
        close = get_close_matches(str(name).upper(), Reason.__members__, n=1)
        raise ValueError(f"unknown reason {name!r}; " + (f"did you mean {close[0]}?" if close else "see Reason"))
    if isinstance(status, bool) or not isinstance(status, int) or not 400 <= status < 600:
        raise ValueError(f"{name}: expected an HTTP status from 400 to 599, not {status!r}")
    return Reason[name], status


_READERS: dict[str, Callable[[Any], Any]] = {
    "SIDECAR": _sidecar,
    "CATALOG": _optional_text,
    "OFFLINE_FILE": _optional_text,
    "API_KEY": _optional_text,
    "TLS_CA_FILE": _optional_text,
    "TIMEOUT": _seconds,
    "CACHE_TTL": _seconds,
    "CACHE_SIZE": _count,
    "STALE_TTL": _duration,
    "FALLBACKS": _fallbacks,
    "ON_OUTAGE": _one_of(OnOutage),
    "LEDGER": _text,
    "HOLD_TTL": _seconds,
    "REPORT": _one_of(ReportMode),
    "CUSTOMER": _resolver,
    "UPGRADE_URL": _optional_text,
    "STATUS_CODES": _status_codes,
    "ENABLED": _flag,
}

assert {entry.name.upper() for entry in fields(Config)} == _READERS.keys()

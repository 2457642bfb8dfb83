"""The settings, read in one place: the environment, Django's ``STIGG_GUARD`` and Flask's ``STIGG_GUARD_*`` alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from enum import Enum
from types import MappingProxyType
from typing import Any

from stigg_guard.entitlements import Customer, Reason
from stigg_guard.errors import ConfigError
from stigg_guard.fallbacks import Fallback
from stigg_guard.foreign import json_value, quoted
from stigg_guard.offline import OfflineReports
from stigg_guard.rules import Rule
from stigg_guard.settings import readers
from stigg_guard.usage.credits import Rates, parse_rates

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
    """The outage policy: what a check answers when there is neither data nor a fallback."""

    ALLOW = "allow"
    DENY = "deny"
    ERROR = "error"


class OnUncertain(str, Enum):
    """What to do with a usage report in doubt: it may have been counted, and sending it again could count it twice."""

    RECONCILE = "reconcile"
    RESEND = "resend"
    DROP = "drop"


class Anonymous(str, Enum):
    """How to answer a request that no customer belongs to."""

    REFUSE = "refuse"
    LOGIN = "login"


class ReportMode(str, Enum):
    """When usage is reported: after the response by a background thread, or before it by the request itself. ``auto``
    is the former, but the latter in processes that may be ended right after their work, such as those of jobs."""

    AUTO = "auto"
    BACKGROUND = "background"
    INLINE = "inline"


def _nearest(key: str, prefix: str) -> str:
    close = get_close_matches(key.upper(), _READERS, n=1)
    return f"did you mean {prefix}{close[0]}?" if close else "the settings are " + ", ".join(sorted(_READERS))


def _converted(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The values of these settings in their own types, and what is wrong with them."""
    values: dict[str, Any] = {}
    faults = []
    for name, value in given.items():
        try:
            values[name] = _READERS[name.upper()](value)
        except (ValueError, TypeError, RecursionError) as error:
            faults.append(f"{name.upper()}: {error}")
    return values, [*faults, *_contradictions(values)]


def _contradictions(values: Mapping[str, Any]) -> Iterator[str]:
    for name in ("catalog", "offline_file", "tls_ca_file", "tls_cert_file", "tls_key_file"):
        if values.get(name) and not os.path.isfile(values[name]):
            yield f"{name.upper()}: there is no file {values[name]}"
    sidecar = values.get("sidecar", "")
    if sidecar == "offline" and not values.get("offline_file"):
        yield "OFFLINE_FILE: SIDECAR is 'offline', so name the file to answer from"
    if sidecar == "local" and values.get("offline_file"):
        yield "OFFLINE_FILE: a local sidecar answers from CATALOG, which may be an offline file"
    if sidecar == "cloud" and not values.get("api_key"):
        yield "API_KEY: SIDECAR is 'cloud', so set the server key of Stigg's app that it is asked with"
    if sidecar == "offline" and values.get("catalog"):
        yield "CATALOG: with SIDECAR = 'offline' answers come from OFFLINE_FILE, which may be a catalog"


def _anonymous(value: Any) -> Anonymous | Customer:
    if isinstance(value, Customer):
        return value
    kind, _, customer_id = readers.text(value).partition(":")
    if kind == "customer":
        return Customer(customer_id)
    if value not in {choice.value for choice in Anonymous}:
        raise ValueError(f"expected 'refuse', 'login' or 'customer:' and an id, not {quoted(value)}")
    return Anonymous(value)


def _status_codes(value: Any) -> Mapping[Reason, int]:
    table = json_value(value) if isinstance(value, str) else value
    if not isinstance(table, Mapping):
        raise ValueError("expected a mapping of denial reasons to HTTP statuses")
    return {**STATUS_CODES, **dict(_status(name, status) for name, status in table.items())}


def _status(name: Any, status: Any) -> tuple[Reason, int]:
    if name not in Reason.__members__:
        close = get_close_matches(str(name).upper(), Reason.__members__, n=1)
        raise ValueError(f"unknown reason {quoted(name)}; " + (f"did you mean {close[0]}?" if close else "see Reason"))
    if isinstance(status, bool) or not isinstance(status, int) or not 400 <= status < 600:
        raise ValueError(f"{name}: expected an HTTP status from 400 to 599, not {quoted(status)}")
    return Reason[name], status


def _setting(default: Any, reader: Callable[[Any], Any], meaning: str, *, shown: bool = True) -> Any:
    """A field of :class:`Config`: all that is to be said of a setting.

    ``reader`` makes its value of whatever the environment, Django or Flask has, or raises ``ValueError``. ``meaning``
    is its documentation. One that is not ``shown`` may hold a secret, and is left out of reprs.
    """
    metadata = {"reader": reader, "meaning": meaning}
    return field(default_factory=lambda: default, repr=shown, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Every setting. Times are in seconds. The upper-case name of a field is its name in settings and environment."""

    sidecar: str = _setting(
        "localhost:80",
        readers.sidecar,
        "``host:port`` of the sidecar, or a host alone for port 80; ``local`` starts one as a child "
        "process; ``offline`` answers from a file; ``cloud`` asks Stigg's own API and needs ``API_KEY``.",
    )
    catalog: str | None = _setting(
        None,
        readers.optional_text,
        "The catalog file of the ``local`` sidecar, and of the commands that run one or compare features;"
        " none means the demonstration catalog.",
    )
    offline_file: str | None = _setting(
        None,
        readers.optional_text,
        "The file that ``offline`` answers from; with another sidecar, what answers until that has answered once.",
    )
    offline_reports: OfflineReports = _setting(
        OfflineReports.REFUSE,
        readers.one_of(OfflineReports),
        "How usage is treated while ``offline`` answers: ``refuse`` raises before it happens, ``keep`` counts it in "
        "this process until that ends, ``ignore`` counts nothing.",
    )
    api_key: str | None = _setting(
        None,
        readers.optional_text,
        "The server key for Stigg's GraphQL API, which ``Guard.api`` asks, and with ``SIDECAR = cloud`` checks and "
        "reports too.",
        shown=False,
    )
    api_url: str | None = _setting(
        None,
        readers.optional_text,
        "Where that API is; none means Stigg's own.",
    )
    api_share: float = _setting(
        1.0,
        readers.share,
        "With ``SIDECAR = cloud``, which part of the API's documented rate limits may be used: by the processes of "
        "this host, or by all that share ``CACHE``.",
    )
    tls_ca_file: str | None = _setting(
        None,
        readers.optional_text,
        "PEM file of the authority that signed the sidecar's certificate; none means plaintext, as "
        "Stigg's sidecar has.",
    )
    tls_cert_file: str | None = _setting(
        None,
        readers.optional_text,
        "PEM file of our own certificate, for a sidecar that asks for one.",
    )
    tls_key_file: str | None = _setting(
        None,
        readers.optional_text,
        "PEM file of its key.",
    )
    sidecar_api_key: str | None = _setting(
        None,
        readers.optional_text,
        "The key that goes with each call to a local sidecar that requires one.",
        shown=False,
    )
    credit_rates: Rates = _setting(
        MappingProxyType({}),
        parse_rates,
        "What a unit of each feature costs that a wallet of credits pays for: ``currency`` and ``rate`` by the "
        "feature's id; JSON or a mapping. It goes before what the source tells.",
    )
    timeout: float = _setting(
        1.0,
        readers.seconds,
        "Deadline of a check.",
    )
    cache_ttl: float = _setting(
        30.0,
        readers.seconds,
        "How long a customer's entitlements are fresh.",
    )
    cache_size: int = _setting(
        10_000,
        readers.count,
        "Number of customers whose entitlements are kept.",
    )
    cache: str = _setting(
        "memory://",
        readers.cache,
        "``memory://``, or the ``redis://``, ``rediss://`` or ``unix://`` URL of what all processes "
        "share; it may hold a password.",
        shown=False,
    )
    redis_environment_prefix: str = _setting(
        "stigg-guard",
        readers.text,
        "What the keys of the shared cache begin with: another one for each environment that shares a Redis.",
    )
    redis_keys_ttl: int = _setting(
        604_800,
        readers.keys_ttl,
        "After how many seconds without a request Redis forgets a customer; negative: never.",
    )
    stale_ttl: float = _setting(
        86_400.0,
        readers.duration,
        "How long past its TTL an entitlement may still answer while the sidecar cannot be reached.",
    )
    fallbacks: Mapping[str, Fallback] = _setting(
        MappingProxyType({}),
        readers.fallbacks,
        "Answers for features without data, by their ids; JSON or a mapping.",
    )
    on_outage: OnOutage = _setting(
        OnOutage.ERROR,
        readers.one_of(OnOutage),
        "What a check answers when there is neither data nor a fallback.",
    )
    ledger: str | None = _setting(
        None,
        readers.ledger,
        "URL of the ledger, which may hold a password and never shows in a repr. None is a file of its "
        "own: beside the project in Django, in the instance folder in Flask, else in the user's state "
        "folder.",
        shown=False,
    )
    hold_ttl: float = _setting(
        300.0,
        readers.seconds,
        "After this time a hold that was neither committed nor released no longer counts against the limit.",
    )
    report: ReportMode = _setting(
        ReportMode.AUTO,
        readers.one_of(ReportMode),
        "When usage is reported.",
    )
    on_uncertain: OnUncertain = _setting(
        OnUncertain.RECONCILE,
        readers.one_of(OnUncertain),
        "``reconcile`` reads the usage back and decides when the figures allow it; ``resend`` may count "
        "twice, ``drop`` not at all. A sidecar that honours idempotency keys, as the local one does, is "
        "simply asked again.",
    )
    settle_grace: float = _setting(
        15.0,
        readers.duration,
        "How long the sidecar's figures may lag behind its own acknowledgement.",
    )
    thresholds: Sequence[float] = _setting(
        (),
        readers.parts,
        "The parts of a limit, such as 0.8 and 1, at which ``threshold_reached`` tells of a customer's usage.",
    )
    token_secret: str | None = _setting(
        None,
        readers.optional_text,
        "What signs the tokens of holds that travel; in Django and Flask without it the project's own ``SECRET_KEY``.",
        shown=False,
    )
    customer: str | Callable[..., Any] | None = _setting(
        None,
        readers.resolver,
        "Dotted path or callable that finds the customer of a request.",
    )
    anonymous: Anonymous | Customer = _setting(
        Anonymous.REFUSE,
        _anonymous,
        "How requests are answered that no customer belongs to: ``refuse`` answers 401, ``login`` sends "
        "browsers to the login page, and ``customer:ID`` lets them have what that customer, such as one "
        "with a free plan, has.",
    )
    login_url: str | None = _setting(
        None,
        readers.optional_text,
        "The login page; in Django without it the project's own ``LOGIN_URL``.",
    )
    rules: Sequence[Rule] = _setting(
        (),
        readers.rules,
        "What guards requests by their path, first match first: mappings with ``path``, ``feature``, "
        "``consume`` and ``methods``.",
    )
    rate_limit_headers: bool = _setting(
        False,
        readers.flag,
        "Whether responses tell what is left of the consumed features, in ``RateLimit`` and ``RateLimit-Policy``.",
    )
    webhook_secret: str | None = _setting(
        None,
        readers.optional_text,
        "What Stigg's webhooks carry to show that they are Stigg's.",
        shown=False,
    )
    database: str = _setting(
        "default",
        readers.text,
        "In Django, the alias of the database whose transactions usage follows.",
    )
    upgrade_url: str | None = _setting(
        None,
        readers.optional_text,
        "Where a denied customer can buy more; ``{feature}`` is replaced by the feature's id.",
    )
    feature_names: Mapping[str, object] = _setting(
        MappingProxyType({}),
        readers.feature_names,
        "What pages call features that have no display name: texts, or what becomes one when it is shown.",
    )
    status_codes: Mapping[Reason, int] = _setting(
        STATUS_CODES,
        _status_codes,
        "The HTTP status of a denial, by its reason.",
    )
    enabled: bool = _setting(
        True,
        readers.flag,
        "False lets every check pass and reports nothing.",
    )

    def __post_init__(self) -> None:
        """Converts each value into its own type.

        Raises:
            ConfigError: values are malformed or contradict each other; the message names every one.
        """
        values, faults = _converted({entry.name: getattr(self, entry.name) for entry in fields(self)})
        if faults:
            raise ConfigError("; ".join(sorted(faults)))
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any], *, prefix: str = "") -> Config:
        """The configuration of a settings mapping; with a prefix, only the keys that begin with it are read.

        Values may be strings, as the environment has them, or of the setting's own type.

        Raises:
            ConfigError: a key is unknown or a value malformed; the message names every such key and the remedy.
        """
        given = {str(key)[len(prefix) :]: value for key, value in settings.items() if str(key).startswith(prefix)}
        values, faults = _converted({key.lower(): value for key, value in given.items() if key in _READERS})
        faults += [f"{key}: unknown setting; {_nearest(key, prefix)}" for key in given if key not in _READERS]
        if faults:
            raise ConfigError("; ".join(sorted(prefix + fault for fault in faults)))
        return cls(**values)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Config:
        """The configuration of the ``STIGG_GUARD_*`` environment variables; mappings are written as JSON."""
        return cls.from_mapping(os.environ if environ is None else environ, prefix=PREFIX)


_READERS: Mapping[str, Callable[[Any], Any]] = {
    entry.name.upper(): entry.metadata["reader"] for entry in fields(Config)
}

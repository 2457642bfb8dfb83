"""``settings.STIGG_GUARD`` and what it makes: for each configuration a guard, and the way to a request's customer."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

from asgiref.sync import async_to_sync
from django.conf import settings
from django.core import mail
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.http import HttpRequest
from django.utils.module_loading import import_string

from stigg_guard.calls import is_asynchronous
from stigg_guard.clock import Clock
from stigg_guard.config import Config
from stigg_guard.django.ledger.address import address_of
from stigg_guard.django.ledger.ledger import django_ledger_from_url
from stigg_guard.django.signals import SignalObserver
from stigg_guard.django.transactions import confirm_on_commit
from stigg_guard.entitlements import Customer
from stigg_guard.errors import ConfigError, MissingExtra
from stigg_guard.guard import Guard
from stigg_guard.ledger.files import default_url
from stigg_guard.settings.readers import split_address
from stigg_guard.settings.urls import ledger_file, redis_url
from stigg_guard.usage.confirm import confirm_now
from stigg_guard.web.paywall import Paywalls

Resolver: TypeAlias = Callable[[HttpRequest], "str | Customer | None"]

DEFAULT = "default"
"""The configuration that is meant when none is named."""
DATABASE_LEDGER = "django://"
"""What the URL of a ledger in a database begins with; its alias follows."""


@dataclass(frozen=True, slots=True)
class Configured:
    """What one configuration makes. ``resolver`` finds the customer of a request; None when ``CUSTOMER`` is not set."""

    guard: Guard
    resolver: Resolver | None
    paywalls: Paywalls


_configured: Mapping[str, Configured] = {}
_faults: Mapping[str, str] = {}


def get_guard(using: str = DEFAULT) -> Guard:
    """The guard of a configuration, which all of this process's views share.

    Raises:
        ImproperlyConfigured: the configuration is wrong or there is none of this name, or the app is not ready yet.
    """
    return configured(using).guard


def configured(using: str = DEFAULT) -> Configured:
    """Returns what one configuration makes: its guard, and how the customer of a request is found.

    Raises:
        ImproperlyConfigured: as from :func:`get_guard`.
    """
    try:
        return _configured[using]
    except KeyError:
        raise _missing(using) from None


def configurations() -> Mapping[str, Configured]:
    """All configurations that are right, by name."""
    return _configured


def faults() -> Mapping[str, str]:
    """What is wrong with the other configurations, by name."""
    return _faults


def given_settings() -> Mapping[str, Any]:
    """What ``settings.STIGG_GUARD`` says, by the name of the configuration: there are several if one is ``default``."""
    given = getattr(settings, "STIGG_GUARD", {})
    return given if isinstance(given, Mapping) and DEFAULT in given else {DEFAULT: given}


def configure() -> None:
    """Makes the guards of the settings as they are now, and closes those made before. Connects to nothing.

    A wrong configuration is told by a system check, and refused by :func:`get_guard` and by the middleware.
    """
    global _configured, _faults
    made: dict[str, Configured] = {}
    faulty: dict[str, str] = {}
    for using, given in given_settings().items():
        try:
            new = _made(using, given)
            _require_own_ledger(new.guard.config, made)
            made[using] = new
        except (ConfigError, MissingExtra) as error:
            faulty[using] = f"settings.STIGG_GUARD of {using!r}: {error}"
    before, _configured, _faults = _configured, made, faulty
    for old in before.values():
        old.guard.close()


def follow_settings(*, setting: str, **_signal: Any) -> None:
    """Receives ``setting_changed``, which tests send."""
    if setting == "STIGG_GUARD":
        configure()


def _made(using: str, given: Any) -> Configured:
    if not isinstance(given, Mapping):
        raise ConfigError(f"expected a dict of settings, not {type(given).__name__}")
    config = Config.from_mapping(given)
    if config.database not in connections:
        raise ConfigError(f"DATABASE: there is no {config.database!r} in DATABASES, which has {', '.join(connections)}")
    resolver, observer = _resolver(config.customer), SignalObserver(using)
    if config.ledger is not None and config.ledger.startswith(DATABASE_LEDGER):
        guard = _guard_over_database(config, config.ledger, observer)
    else:
        confirm = confirm_on_commit(config.database)
        guard = Guard(_with_ledger(config), confirm=confirm, observer=observer, is_testing=_tests_run, secret=_secret)
    return Configured(guard, resolver, Paywalls(guard))


def _require_own_ledger(config: Config, made: Mapping[str, Configured]) -> None:
    """Whoever drains a ledger sends to his own sidecar all that is in it.

    Raises:
        ConfigError: a configuration made before has this ledger, and another sidecar.
    """
    for using, other in made.items():
        theirs = other.guard.config
        if _ledger_place(config) == _ledger_place(theirs) is not None and _target(config) != _target(theirs):
            raise ConfigError(
                f"LEDGER: it is that of {using!r}, which has another SIDECAR, and usage would be reported to either; "
                "give each sidecar a ledger of its own"
            )


def _ledger_place(config: Config) -> tuple[object, ...] | None:
    """What all URLs of one ledger have in common; none for a ledger that nobody else can have."""
    url = urlsplit(config.ledger or "")
    if not config.enabled or config.sidecar == "offline":
        return None
    if url.scheme == "sqlite":
        return ("sqlite", os.path.realpath(ledger_file(config.ledger or "").path))
    if url.scheme == "django":
        database = connections.settings[url.netloc]
        return tuple(str(database[name]) for name in ("ENGINE", "HOST", "PORT", "NAME"))
    if url.scheme == "unix":
        return ("redis", os.path.realpath(unquote(url.path)), parse_qs(url.query).get("db", ["0"])[0])
    if "+" in url.scheme:
        redis = redis_url(config.ledger or "", of_ledger=True)
        return ("redis", redis.kind, frozenset(redis.hosts), redis.service, parse_qs(url.query).get("db", ["0"])[0])
    if url.scheme in ("redis", "rediss"):
        number = parse_qs(url.query).get("db", [url.path.strip("/") or "0"])[0]
        return ("redis", url.hostname, url.port or 6379, number)
    return None


def _target(config: Config) -> tuple[object, ...]:
    """The sidecar that usage is reported to."""
    if config.sidecar == "local":
        return ("local", config.catalog)
    if config.sidecar == "cloud":
        return ("cloud", config.api_url, config.api_key)
    return split_address(config.sidecar)


def _guard_over_database(config: Config, url: str, observer: SignalObserver) -> Guard:
    clock = Clock()
    ledger = django_ledger_from_url(url, clock, settle_grace=config.settle_grace)
    on_commit = confirm_on_commit(config.database)
    in_same_database = address_of(url).alias == config.database

    def confirm(end: Callable[[bool], None]) -> None:
        """At once where usage is a part of the transaction that it follows; the ledger of an override is not."""
        (confirm_now if in_same_database and guard.ledger is ledger else on_commit)(end)

    guard = Guard(
        config,
        clock=clock,
        ledger=ledger,
        confirm=confirm,
        observer=observer,
        is_testing=_tests_run,
        secret=_secret,
    )
    ledger.committed = guard.send
    return guard


def _tests_run() -> bool:
    """Whether this is Django's test environment, whoever has set it up."""
    return hasattr(mail, "outbox")


def _secret() -> str:
    """What signs tokens where the settings name nothing for it."""
    return str(settings.SECRET_KEY)


def _with_ledger(config: Config) -> Config:
    """Beside the project, unless the settings name another ledger."""
    folder = getattr(settings, "BASE_DIR", None)
    if config.ledger is not None or folder is None or not config.enabled:
        return config
    return replace(config, ledger=default_url(folder, config.sidecar))


def _missing(using: str) -> ImproperlyConfigured:
    if using in _faults:
        return ImproperlyConfigured(_faults[using])
    if _configured or _faults:
        names = ", ".join([*_configured, *_faults])
        return ImproperlyConfigured(f"settings.STIGG_GUARD has no configuration {using!r}; it has {names}")
    return ImproperlyConfigured(
        "there is no guard yet: put 'stigg_guard.django' into INSTALLED_APPS, and use it after django.setup()"
    )


def _resolver(given: str | Callable[..., Any] | None) -> Resolver | None:
    resolver = _imported(given) if isinstance(given, str) else given
    return async_to_sync(resolver) if resolver is not None and is_asynchronous(resolver) else resolver


def _imported(path: str) -> Callable[..., Any]:
    try:
        found = import_string(path)
    except ImportError as error:
        raise ConfigError(f"CUSTOMER: cannot import {path!r}: {error}") from error
    if not callable(found):
        raise ConfigError(f"CUSTOMER: {path!r} is a {type(found).__name__}, and a function of the request is due")
    resolver: Callable[..., Any] = found
    return resolver

"""``settings.STIGG_GUARD``, and what it makes: the one guard of the process, and the customer of a request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.utils.module_loading import import_string

from stigg_guard.config import Config
from stigg_guard.display import DisplayedPlan
from stigg_guard.entitlements import Customer
from stigg_guard.errors import ConfigError, SignInRequired
from stigg_guard.guard import Guard
from stigg_guard.ledger import default_ledger

Resolver: TypeAlias = Callable[[HttpRequest], "str | Customer | None"]

_ANYBODY = Customer("anybody")
_CUSTOMER = "_stigg_guard_customer"
_PLAN = "_stigg_guard_plan"


@dataclass(frozen=True, slots=True)
class _Setup:
    guard: Guard
    customer: Resolver | None


_setup: _Setup | None = None


def get_guard() -> Guard:
    """The guard that all of this process's views share.

    Raises:
        ImproperlyConfigured: the app is not installed, or not ready yet.
    """
    return _made().guard


def customer_of(request: HttpRequest, *_args: Any, **_kwargs: Any) -> str | Customer:
    """The customer that the configured resolver finds for the request; it is asked once per request.

    Takes and ignores a view's other arguments. With ``ENABLED = False`` nobody is looked up and anybody will do.

    Raises:
        SignInRequired: the resolver found nobody.
    """
    customer = _found(request)
    if customer is None:
        raise SignInRequired(f"no customer belongs to the request for {request.path}")
    return customer


def displayed_plan(request: HttpRequest) -> DisplayedPlan:
    """What templates show of the request's customer; the same one for the whole of the request."""
    known = vars(request)
    if _PLAN not in known:
        known[_PLAN] = DisplayedPlan(get_guard(), _found(request))
    plan: DisplayedPlan = known[_PLAN]
    return plan


def configure() -> None:
    """Makes the guard of the settings as they are now, and closes the one made before. Connects to nothing.

    Raises:
        ImproperlyConfigured: a setting is wrong; the message names it and the remedy.
    """
    global _setup
    given = getattr(settings, "STIGG_GUARD", {})
    if not isinstance(given, Mapping):
        raise ImproperlyConfigured(f"settings.STIGG_GUARD: expected a dict of settings, not {type(given).__name__}")
    try:
        config = Config.from_mapping(given)
        made = _Setup(Guard(_with_ledger(config)), _resolver(config.customer))
    except ConfigError as error:
        raise ImproperlyConfigured(f"settings.STIGG_GUARD: {error}") from error
    before, _setup = _setup, made
    if before is not None:
        before.guard.close()


def follow_settings(*, setting: str, **_signal: Any) -> None:
    """Receives ``setting_changed``, which tests send."""
    if setting == "STIGG_GUARD":
        configure()


def _with_ledger(config: Config) -> Config:
    """Beside the project, unless the settings name another ledger."""
    folder = getattr(settings, "BASE_DIR", None)
    if config.ledger is not None or folder is None or not config.enabled:
        return config
    return replace(config, ledger=default_ledger(folder, config.sidecar))


def _made() -> _Setup:
    if _setup is None:
        raise ImproperlyConfigured(
            "there is no guard yet: put 'stigg_guard.django' into INSTALLED_APPS, and use it after django.setup()"
        )
    return _setup


def _found(request: HttpRequest) -> str | Customer | None:
    known = vars(request)
    if _CUSTOMER not in known:
        known[_CUSTOMER] = _looked_up(request)
    customer: str | Customer | None = known[_CUSTOMER]
    return customer


def _looked_up(request: HttpRequest) -> str | Customer | None:
    setup = _made()
    if not setup.guard.config.enabled:
        return _ANYBODY
    if setup.customer is None:
        raise ImproperlyConfigured(
            "settings.STIGG_GUARD['CUSTOMER'] is missing: name the function that finds the customer of a request"
        )
    return setup.customer(request)


def _resolver(configured: str | Resolver | None) -> Resolver | None:
    if not isinstance(configured, str):
        return configured
    try:
        found = import_string(configured)
    except ImportError as error:
        raise ConfigError(f"CUSTOMER: cannot import {configured!r}: {error}") from error
    if not callable(found):
        raise ConfigError(f"CUSTOMER: {configured!r} is a {type(found).__name__}, and a function of the request is due")
    resolver: Resolver = found
    return resolver

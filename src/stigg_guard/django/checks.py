"""System checks: what a project forgot, told by ``manage.py check`` and at every start of ``runserver``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.utils.module_loading import import_string

from stigg_guard.django.conf import get_guard
from stigg_guard.django.middleware import StiggGuardMiddleware

_MIDDLEWARE = f"{StiggGuardMiddleware.__module__}.{StiggGuardMiddleware.__qualname__}"


def check_middleware(**_: Any) -> Sequence[CheckMessage]:
    """Without the middleware a denial would be an error 500."""
    if any(_is_ours(path) for path in settings.MIDDLEWARE):
        return []
    hint = f"Add {_MIDDLEWARE!r} to MIDDLEWARE, after AuthenticationMiddleware."
    return [Error("Nothing turns a denied request into a response.", hint=hint, id="stigg_guard.E001")]


def check_customer(**_: Any) -> Sequence[CheckMessage]:
    """Without a resolver no view can tell who is asking."""
    config = get_guard().config
    if config.customer is not None or not config.enabled:
        return []
    hint = "Set STIGG_GUARD['CUSTOMER'] to the dotted path of a function of the request that returns a customer id."
    return [Error("The customer of a request cannot be found.", hint=hint, id="stigg_guard.E002")]


def _is_ours(path: str) -> bool:
    found = None
    with suppress(ImportError):  # Django itself tells of a middleware that cannot be imported
        found = import_string(path)
    return isinstance(found, type) and issubclass(found, StiggGuardMiddleware)

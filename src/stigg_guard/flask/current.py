"""The guard of the current app, and the customer of the current request."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from flask import Flask, Request, current_app, request

from stigg_guard.display import DisplayedPlan
from stigg_guard.entitlements import Customer
from stigg_guard.errors import ConfigError, SignInRequired
from stigg_guard.guard import Guard

CustomerLoader: TypeAlias = "Callable[[Request], str | Customer | None]"

EXTENSION = "stigg_guard"
_PLAN = "stigg_guard.plan"
_CUSTOMER = "stigg_guard.customer"


class AppGuard:
    """What one app has: its guard, and the way to the customer of a request."""

    def __init__(self, guard: Guard, loader: Callable[[], CustomerLoader | None]) -> None:
        self.guard = guard
        self._loader = loader

    def find_customer(self) -> str | Customer | None:
        """The customer of the current request, which is asked for once; None when nobody is signed in."""
        environ = request.environ
        if _CUSTOMER not in environ:
            environ[_CUSTOMER] = self._load_customer()
        found: str | Customer | None = environ[_CUSTOMER]
        return found

    def _load_customer(self) -> str | Customer | None:
        loader = self._loader()
        if loader is None:
            raise ConfigError(
                "nothing says which customer a request belongs to: decorate a function of the request with "
                "customer_loader, or set STIGG_GUARD_CUSTOMER to its dotted path"
            )
        return loader(request)

    def customer(self) -> str | Customer:
        """As :meth:`find_customer`, but somebody must be signed in."""
        customer = self.find_customer()
        if customer is None:
            raise SignInRequired(f"{request.endpoint} is guarded, and the request comes from nobody who is signed in")
        return customer

    def displayed_plan(self) -> DisplayedPlan:
        """What templates show of the customer; the same one for the whole of a request."""
        plan = request.environ.get(_PLAN)
        if not isinstance(plan, DisplayedPlan):
            plan = request.environ[_PLAN] = DisplayedPlan(self.guard, self.find_customer())
        return plan


def app_guard() -> AppGuard:
    """Of the current app.

    Raises:
        ConfigError: the app has no ``StiggGuard``.
    """
    # Through the proxy itself, the attribute alone costs more than a cached check.
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined] # the stubs hide the proxy
    try:
        found: AppGuard = app.extensions[EXTENSION]
    except KeyError:
        raise ConfigError(
            f"the app {app.name!r} has no guard: call StiggGuard(app), or init_app(app) in its factory"
        ) from None
    return found

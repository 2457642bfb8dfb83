"""The guard of the current app, and what is known of the current request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, cast

from flask import Flask, Request, current_app, has_request_context, request

from stigg_guard.calls import Begin, Ending
from stigg_guard.entitlements import Customer
from stigg_guard.errors import ConfigError, FeatureDenied, SignInRequired
from stigg_guard.guard import Guard
from stigg_guard.usage.consumption import Consumption
from stigg_guard.web.display import DisplayedPlan
from stigg_guard.web.paywall import Paywalls
from stigg_guard.web.views import FoundCustomer, customer_found
from stigg_guard.wording import Wording

CustomerLoader: TypeAlias = "Callable[[Request], FoundCustomer | Awaitable[FoundCustomer]]"

EXTENSION = "stigg_guard"
_ATTRIBUTE = "_stigg_guard"


class AppGuard:
    """What one app has: its guard, what it sells, the way to the customer of a request, and how texts are written."""

    def __init__(self, guard: Guard, loader: Callable[[], CustomerLoader | None], wording: Wording) -> None:
        self.guard = guard
        self.paywalls = Paywalls(guard)
        self.wording = wording
        self._loader = loader

    def find_customer(self) -> FoundCustomer:
        """The customer of the current request, which is asked for once; None when nobody is signed in.

        With ``ENABLED = False`` nobody is looked up, and anybody will do.
        """
        return self._customer_of(of_request())

    def customer(self) -> str | Customer:
        """As :meth:`find_customer`, for a guard: somebody must be signed in.

        Raises:
            SignInRequired: nobody is.
        """
        current = of_request()
        current.is_guarded = True
        customer = self._customer_of(current)
        if customer is None:
            raise SignInRequired(f"{request.endpoint} is guarded, and the request comes from nobody who is signed in")
        return customer

    def displayed_plan(self) -> DisplayedPlan:
        """What templates show of the customer, the same one for the whole of a request; without one that of nobody."""
        if not has_request_context():  # a mail, a task
            return DisplayedPlan(self.guard, lambda: None, self.wording)
        current = of_request()
        if current.plan is None:
            current.plan = DisplayedPlan(self.guard, self.find_customer, self.wording)
        return current.plan

    def _customer_of(self, current: CurrentRequest) -> FoundCustomer:
        if not current.is_customer_known:
            current.customer = customer_found(self.guard.config, self._load_customer)
            current.is_customer_known = True
        return current.customer

    def _load_customer(self) -> FoundCustomer:
        loader = self._loader()
        if loader is None:
            raise ConfigError(
                "nothing says which customer a request belongs to: decorate a function of the request with "
                "customer_loader, or set STIGG_GUARD_CUSTOMER to its dotted path"
            )
        return cast("FoundCustomer", current_app.ensure_sync(loader)(this_request()))


class CurrentRequest:
    """What is known of one request: whose it is, what templates show, which groups are to guard it and which of them
    have begun, whether anything guards it, and what its guards held or denied."""

    def __init__(self) -> None:
        self.customer: FoundCustomer = None
        self.is_customer_known = False
        self.plan: DisplayedPlan | None = None
        self.groups: list[Begin] = []
        self.endings: list[Ending] = []
        self.is_guarded = False
        self.noted: list[Consumption | FeatureDenied] = []


def of_request() -> CurrentRequest:
    """Of the current request."""
    return known_of(this_request())


def known_of(this: Request) -> CurrentRequest:
    """Of the request, which has it as an attribute: a view may send the app another request meanwhile."""
    known: dict[str, Any] = vars(this)
    current: CurrentRequest | None = known.get(_ATTRIBUTE)
    if current is None:
        current = known[_ATTRIBUTE] = CurrentRequest()
    return current


def this_request() -> Request:
    """The current request itself: through its proxy, each attribute alone costs more than a cached check."""
    this: Request = request._get_current_object()  # type: ignore[attr-defined] # the stubs hide the proxy
    return this


def this_app() -> Flask:
    """The current app itself, as :func:`this_request`."""
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined] # the stubs hide the proxy
    return app


def app_guard() -> AppGuard:
    """Of the current app.

    Raises:
        ConfigError: the app has no ``StiggGuard``.
    """
    app = this_app()
    try:
        found: AppGuard = app.extensions[EXTENSION]
    except KeyError:
        raise ConfigError(
            f"the app {app.name!r} has no guard: call StiggGuard(app), or init_app(app) in its factory"
        ) from None
    return found

"""The state of a request: its customer, the plan that pages show, and what was used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.shortcuts import resolve_url
from django.urls import NoReverseMatch

from stigg_guard.config import Config
from stigg_guard.django import asynchronous
from stigg_guard.django.conf import DEFAULT, configured, get_guard
from stigg_guard.django.wording import WORDING
from stigg_guard.entitlements import Customer, Entitlement
from stigg_guard.errors import FeatureDenied, SignInRequired
from stigg_guard.guard import Guard
from stigg_guard.usage.consumption import Consumption
from stigg_guard.web.display import DisplayedPlan
from stigg_guard.web.views import FoundCustomer, customer_found

T = TypeVar("T")

_CUSTOMER = "_stigg_guard_customer_"
_PLAN = "_stigg_guard_plan_"
_USED = "_stigg_guard_used"
_SUCCESS = "_stigg_guard_success"
_USING = "_stigg_guard_using"


class RequestPlan(DisplayedPlan):
    """``request.stigg``: the plan of the request's customer, who is looked up when something is asked first.

    An ``async def`` view awaits ``ahas``, ``aentitlement`` and ``aall``, which wait in a thread. What was asked once is
    known: after ``await request.stigg.aall()`` templates of an async view ask about nothing that the plan has. What is
    not known is looked up all the same, in a thread with connections of its own, and keeps the event loop waiting.
    """

    async def ahas(self, feature: str) -> bool:
        """As ``has``."""
        return await sync_to_async(self.has)(feature)

    async def aentitlement(self, feature: str) -> Entitlement | None:
        """As ``entitlement``."""
        return await sync_to_async(self.entitlement)(feature)

    async def aall(self) -> Mapping[str, Entitlement]:
        """As ``all``."""
        return await sync_to_async(lambda: self.all)()

    def _asked(self, ask: Callable[[Guard, Customer], T]) -> T | None:
        look_up = partial(super()._asked, ask)
        return look_up() if asynchronous.may_block() else asynchronous.beside_loop(look_up)


def find_customer(request: HttpRequest, using: str = DEFAULT) -> FoundCustomer:
    """The customer of the request: whom the resolver ``CUSTOMER`` finds, else the free one of ``ANONYMOUS``, or None.

    The resolver is asked once per request, and nothing else in a request says who its customer is. With
    ``ENABLED = False`` nobody is looked up and anybody will do.

    Raises:
        ImproperlyConfigured: there is no resolver.
    """
    _of_django(request)[_USING] = using
    known = vars(request)
    key = _CUSTOMER + using
    if key not in known:
        known[key] = _looked_up(request, using)
    customer: FoundCustomer = known[key]
    return customer


def customer_of(request: HttpRequest, using: str = DEFAULT) -> str | Customer:
    """As :func:`find_customer`, but there must be somebody.

    Raises:
        SignInRequired: no customer belongs to the request; the middleware answers it as ``ANONYMOUS`` says.
    """
    customer = find_customer(request, using)
    if customer is None:
        raise SignInRequired(f"no customer belongs to the request for {request.path}")
    return customer


def displayed_plan(request: HttpRequest, using: str = DEFAULT) -> RequestPlan:
    """What is shown of the plan of the request's customer; the same one for the whole of the request."""
    known = vars(request)
    key = _PLAN + using
    if key not in known:
        known[key] = RequestPlan(get_guard(using), lambda: find_customer(request, using), WORDING)
    plan: RequestPlan = known[key]
    return plan


def asked_configuration(request: HttpRequest) -> str:
    """The name of the configuration that this request was guarded by last."""
    using: str = _of_django(request).get(_USING, DEFAULT)
    return using


def note_use(request: HttpRequest, used: Consumption | FeatureDenied, using: str) -> None:
    """Remembers what the ``RateLimit`` headers of the response are to tell, if the configuration wants them."""
    if get_guard(using).config.rate_limit_headers:
        _of_django(request).setdefault(_USED, []).append(used)


def noted_use(request: HttpRequest) -> Sequence[Consumption | FeatureDenied]:
    """Returns what :func:`note_use` noted of the request."""
    used: list[Consumption | FeatureDenied] = vars(request).get(_USED, [])
    return used


def forbid_caching(request: HttpRequest) -> None:
    """Has Django's own caches keep no response to the request."""
    _of_django(request)["_cache_update_cache"] = False  # so do they tell each other


def is_of_customer(request: HttpRequest) -> bool:
    """Whether anybody has asked whose request it is: guards have, and what is shown of a plan."""
    return _USING in vars(request)


def login_pages(config: Config) -> Iterator[str]:
    """The addresses of the pages where customers sign in: Django's, and that of the configuration."""
    for page in (settings.LOGIN_URL, config.login_url):
        with suppress(NoReverseMatch):  # a check tells of a name that no URL has, where it is needed
            if page is not None:
                yield resolve_url(page)


class ViewOf:
    """What the guards above each other know of the view that answers the request."""

    def __init__(self, request: HttpRequest) -> None:
        self._known = _of_django(request)

    def note_success(self, response: Any) -> None:
        self._known[_SUCCESS] = response

    def success(self) -> Any:
        return self._known.get(_SUCCESS)


def _of_django(request: HttpRequest) -> dict[str, Any]:
    """What is remembered of Django's own request, which Django REST framework wraps in one of its own."""
    return vars(getattr(request, "_request", request))


def _looked_up(request: HttpRequest, using: str) -> FoundCustomer:
    made = configured(using)

    def find() -> FoundCustomer:
        if made.resolver is None:
            raise ImproperlyConfigured(
                "settings.STIGG_GUARD['CUSTOMER'] is missing: name the function that finds the customer of a request"
            )
        return made.resolver(request)

    return customer_found(made.guard.config, find)

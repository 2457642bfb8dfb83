"""The decorators of views. For class-based views wrap them in Django's ``method_decorator``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from stigg_guard import decorators
from stigg_guard.django.conf import customer_of, get_guard
from stigg_guard.entitlements import Amount

P = ParamSpec("P")
R = TypeVar("R", bound=HttpResponseBase)

_FAILURE = 400


def requires_feature(feature: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Runs the view only for customers who may use the feature; the middleware answers the others.

    A ``consumes_usage`` below that names no feature consumes this one.

    Raises:
        ConfigError: at decoration, when the view is an ``async def``.
    """
    return decorators.requires_feature(feature, guard=get_guard, customer=customer_of)


def consumes_usage(
    n: Amount | Callable[[HttpRequest], Amount] = 1, feature: str | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Holds ``n`` units of the feature while the view runs, and reports them if it answers with a status below 400.

    ``n`` is in the feature's units, a number or a callable of the request; what a callable answers is judged before
    the view runs, and a bad amount is answered with 400. Without ``feature`` it is that of the ``requires_feature``
    above.

    Raises:
        ConfigError: at decoration, when the view is an ``async def``.
        InvalidRequest: ``n`` is a number, and negative or not finite.
    """
    amount = _of_request(n) if callable(n) else n
    return decorators.consumes_usage(amount, feature, guard=get_guard, customer=customer_of, settle=_settle)


def _of_request(n: Callable[[HttpRequest], Amount]) -> Callable[..., Amount]:
    def amount(request: HttpRequest, *_args: Any, **_kwargs: Any) -> Amount:
        return n(request)

    return amount


def _settle(response: HttpResponseBase) -> tuple[HttpResponseBase, bool]:
    return response, response.status_code < _FAILURE

"""The decorators of views. For class-based views wrap them in Django's ``method_decorator``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar, cast

from django.http import HttpRequest
from django.http.response import HttpResponseBase, StreamingHttpResponse

from stigg_guard import decorators
from stigg_guard.decorators import Dimensions, HoldOpen
from stigg_guard.django.conf import customer_of, get_guard
from stigg_guard.entitlements import Amount
from stigg_guard.views import ViewCalls, succeeded

P = ParamSpec("P")
R = TypeVar("R", bound=HttpResponseBase)


def requires_feature(feature: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Runs the view only for customers who may use the feature; the middleware answers the others.

    A ``consumes_usage`` below that names no feature consumes this one.

    Raises:
        ConfigError: at decoration, when the view is an ``async def``.
    """
    return decorators.requires_feature(feature, calls=_ViewCalls(get_guard, customer_of))


def consumes_usage(
    n: Amount | Callable[[HttpRequest], Amount] = 1,
    feature: str | None = None,
    *,
    event: str | None = None,
    dimensions: Dimensions | Callable[[HttpRequest], Dimensions] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Holds ``n`` units of the feature while the view runs, and reports them if it answers with a status below 400.

    ``n`` is in the feature's units, a number or a callable of the request; what a callable answers is judged before
    the view runs, and a bad amount is answered with 400. Without ``feature`` it is that of the ``requires_feature``
    above. With ``event`` the use is reported as a raw event of that name, with these dimensions.

    A streamed response counts when it was streamed to its end, and is given back when it is closed before.

    Raises:
        ConfigError: at decoration, when the view is an ``async def``.
        InvalidRequest: ``n`` is a number, and negative or not finite.
    """
    return decorators.consumes_usage(
        n, feature, calls=_ViewCalls(get_guard, customer_of), event=event, dimensions=dimensions
    )


def releases_usage(
    n: Amount | Callable[[HttpRequest], Amount], feature: str
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Gives ``n`` units of a fluctuating feature back if the view answers with a status below 400.

    ``n`` is as for :func:`consumes_usage`, and how many units are given back: not negative.

    Raises:
        ConfigError: at decoration, when the view is an ``async def``.
        InvalidRequest: ``n`` is a number, and negative or not finite.
    """
    return decorators.releases_usage(n, feature, calls=_ViewCalls(get_guard, customer_of))


class _ViewCalls(ViewCalls):
    def request(self, request: HttpRequest, *_args: Any, **_kwargs: Any) -> HttpRequest:
        return request

    def settle(self, response: HttpResponseBase, hold_open: HoldOpen) -> tuple[HttpResponseBase, bool]:
        success = succeeded(response.status_code)
        if success and isinstance(response, StreamingHttpResponse) and not response.is_async:
            response.streaming_content = hold_open(cast("Iterator[bytes]", response.streaming_content))
        return response, success

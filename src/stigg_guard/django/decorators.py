"""The decorators of views, ``def`` and ``async def``. For class-based views there are mixins, too.

Put them on function views, on the methods of class-based views, by Django's ``method_decorator`` too (on ``async def``
methods since Django 5.2), or around ``View.as_view()``. What blocks runs in a thread for ``async def`` views, which are
awaited exactly once.

``methods`` are the HTTP methods that are guarded: all when none are named, but for OPTIONS that Django answers itself,
as for class-based views. ``resource`` is the name of the view's argument that has the id of the customer's resource, or
a callable of the request. ``using`` is the name of the configuration. Callables get the request, and by name those of
the view's arguments that they take.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, ParamSpec, TypeVar

from django.http.response import HttpResponseBase

from stigg_guard import decorators
from stigg_guard.amounts import Amount
from stigg_guard.calls import Dimensions, OneOrComputed
from stigg_guard.decorators import KeyOfCall, OnRepeat
from stigg_guard.django.calls import DjangoCalls
from stigg_guard.django.conf import DEFAULT

P = ParamSpec("P")
R = TypeVar("R", bound="HttpResponseBase | Awaitable[HttpResponseBase]")


def requires_feature(
    feature: str,
    *,
    methods: Iterable[str] = (),
    resource: str | Callable[..., str | None] | None = None,
    using: str = DEFAULT,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Runs the view only for customers who may use the feature; the middleware answers the others.

    A ``consumes_usage`` below that names no feature consumes this one.
    """
    return decorators.requires_feature(feature, calls=DjangoCalls(using, methods=methods, resource=resource))


def consumes_usage(
    n: OneOrComputed[Amount] = 1,
    feature: str | None = None,
    *,
    event: str | None = None,
    dimensions: OneOrComputed[Dimensions] | None = None,
    actual: Callable[[Any], Amount] | None = None,
    key: KeyOfCall | None = None,
    on_repeat: OnRepeat = "refuse",
    methods: Iterable[str] = (),
    resource: str | Callable[..., str | None] | None = None,
    using: str = DEFAULT,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Holds ``n`` units of the feature while the view runs, and reports them if it answers with a status below 400.

    ``n`` is in the feature's units, a number or a callable; what a callable answers is judged before the view runs, and
    a bad amount is answered with 400. Without ``feature`` it is that of the ``requires_feature`` above. With ``event``
    the use is reported as a raw event of that name, with these dimensions. ``actual`` says of the response how many
    units are reported in place of those held.

    ``key`` is a callable that finds the client's key of the request, as in the header ``Idempotency-Key``; a request
    without one is an ordinary use. Requests with the same key count once within a day. While the first goes on, others
    are answered 409; so they are when it was counted, unless ``on_repeat`` is ``"run"``: then the view runs, and
    nothing is counted. One with another method, path or amount is answered 422.

    ``PER_DOWNLOAD`` in its place makes a download one use, in however many ranges it comes within an hour: those of one
    URL whose responses have the same ``ETag``, or else the same ``Last-Modified``. The units are held when the view has
    answered, before anything is sent.

    A streamed response counts when it was streamed to its end, and is given back when it is closed before. In a
    database transaction usage is reported when that is committed, and given back when it is rolled back.

    Raises:
        InvalidRequest: ``n`` is a number, and negative or not finite.
        ConfigError: ``on_repeat`` is neither ``"refuse"`` nor ``"run"``.
    """
    return decorators.consumes_usage(
        n,
        feature,
        calls=DjangoCalls(using, methods=methods, resource=resource),
        event=event,
        dimensions=dimensions,
        actual=actual,
        key=key,
        on_repeat=on_repeat,
    )


def occupies(
    feature: str,
    n: OneOrComputed[Amount] = 1,
    *,
    methods: Iterable[str] = (),
    resource: str | Callable[..., str | None] | None = None,
    using: str = DEFAULT,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Holds ``n`` units of the feature while the view runs, and a streamed response is sent, and then gives them back:
    a limit of how many requests at once. Nothing is reported.

    Raises:
        InvalidRequest: ``n`` is a number, and negative or not finite.
    """
    return decorators.occupies(feature, n, calls=DjangoCalls(using, methods=methods, resource=resource))


def releases_usage(
    n: OneOrComputed[Amount],
    feature: str,
    *,
    actual: Callable[[Any], Amount] | None = None,
    methods: Iterable[str] = (),
    resource: str | Callable[..., str | None] | None = None,
    using: str = DEFAULT,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Gives ``n`` units of a fluctuating feature back if the view answers with a status below 400.

    ``n`` is as for :func:`consumes_usage`, and how many units are given back: not negative. ``actual`` says of the
    response how many are given back in place of them.

    Raises:
        InvalidRequest: ``n`` is a number, and negative or not finite.
    """
    calls = DjangoCalls(using, methods=methods, resource=resource)
    return decorators.releases_usage(n, feature, calls=calls, actual=actual)

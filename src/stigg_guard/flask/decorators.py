"""The decorators of views and of other functions that are called with a request."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

from stigg_guard import decorators
from stigg_guard.amounts import Amount
from stigg_guard.calls import Dimensions
from stigg_guard.decorators import KeyOfCall, OnRepeat
from stigg_guard.flask.calls import AmountOfRequest, FlaskCalls, Resource

P = ParamSpec("P")
R = TypeVar("R")


def requires_feature(
    feature: str, *, methods: Iterable[str] = (), resource: Resource | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Calls the view only if the customer may use the feature; a request is answered 402 or 403 otherwise.

    Put it below ``route``, on a method of a class-based view, or into its ``decorators``. ``methods`` are the HTTP
    methods that are guarded: all when none are named, but for OPTIONS that Flask answers itself. ``resource`` is the
    name of the URL's argument that has the id of the customer's resource, or a callable of the request and of those of
    the URL's arguments that it names.

    Raises:
        ConfigError: ``methods`` are no names.
    """
    return decorators.requires_feature(feature, calls=FlaskCalls(methods, resource))


def consumes_usage(
    n: AmountOfRequest = 1,
    feature: str | None = None,
    *,
    methods: Iterable[str] = (),
    resource: Resource | None = None,
    event: str | None = None,
    dimensions: Dimensions | Callable[..., Dimensions] | None = None,
    actual: Callable[[Any], Amount] | None = None,
    key: KeyOfCall | None = None,
    on_repeat: OnRepeat = "refuse",
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Holds ``n`` units while the view runs, and reports them if it succeeds: no exception, a status below 400 but 304.

    ``n`` is a number, or a callable of the request and of those of the URL's arguments that it names; if it can make
    nothing of the request, that is answered 400. Without ``feature`` it is that of the ``requires_feature`` above.
    ``actual`` is called with what the view returned, or with the ``HTTPException`` that it answered by, and says how
    many units are reported in place of those held. With ``event`` the use is reported as a raw event of that name, with
    these dimensions. ``methods`` and ``resource`` are as for :func:`requires_feature`.

    ``key`` is a callable that finds the client's key of the request, as in the header ``Idempotency-Key``; a request
    without one is an ordinary use. Requests with the same key count once within a day. While the first goes on, others
    are answered 409; so they are when it was counted, unless ``on_repeat`` is ``"run"``: then the view runs, and
    nothing is counted. One with another method, path or amount is answered 422.

    ``PER_DOWNLOAD`` in its place makes a download one use, in however many ranges it comes within an hour: those of one
    URL whose responses have the same ``ETag``, or else the same ``Last-Modified``. The units are held when the view has
    answered, before anything is sent.

    What the view returns passes through as it is, but for a stream, which counts when it was streamed to its end, and
    is given back when the client goes away before. An ``abort`` with a redirect counts as a returned redirect does; a
    redirect to the login page is no success.

    Raises:
        InvalidRequest: ``n`` is a number, and negative or not finite. As a callable it is judged at each request.
        ConfigError: ``methods`` are no names, or ``on_repeat`` is neither ``"refuse"`` nor ``"run"``. Each request
            raises it if this is a function of ``before_request``, which cannot know whether the view will succeed.
    """
    calls = FlaskCalls(methods, resource)
    return decorators.consumes_usage(
        n,
        feature,
        calls=calls,
        event=event,
        dimensions=dimensions,
        actual=actual,
        key=key,
        on_repeat=on_repeat,
    )


def occupies(
    feature: str, n: AmountOfRequest = 1, *, methods: Iterable[str] = (), resource: Resource | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Holds ``n`` units while the view runs, and a stream is sent, and then gives them back: a limit of how many
    requests at once. Nothing is reported.

    The arguments are as for :func:`consumes_usage`.
    """
    return decorators.occupies(feature, n, calls=FlaskCalls(methods, resource))


def releases_usage(
    n: AmountOfRequest,
    feature: str,
    *,
    methods: Iterable[str] = (),
    resource: Resource | None = None,
    actual: Callable[[Any], Amount] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Gives ``n`` units of a fluctuating feature back if the view succeeds.

    The arguments are as for :func:`consumes_usage`; ``n`` is how many units are given back: not negative.
    """
    return decorators.releases_usage(n, feature, calls=FlaskCalls(methods, resource), actual=actual)

"""What guards views: decorators, groups of views, and rules by path, all on the same calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, wraps
from typing import Any, ParamSpec, TypeAlias, TypeVar

from flask import Blueprint, Flask, Request, Response, current_app, request
from werkzeug.exceptions import HTTPException

from stigg_guard import decorators
from stigg_guard.amounts import Amount
from stigg_guard.consumption import Consumption
from stigg_guard.decorators import Begin, Dimensions, HoldOpen, is_asynchronous
from stigg_guard.entitlements import Customer
from stigg_guard.errors import ConfigError
from stigg_guard.flask.current import Group, app_guard, of_request, this_request
from stigg_guard.flask.errors import Refused, refusing
from stigg_guard.guard import Guard
from stigg_guard.rules import Rule, rule_of
from stigg_guard.views import EXEMPT, ViewCalls, succeeded

P = ParamSpec("P")
R = TypeVar("R")

AmountOfRequest: TypeAlias = "Amount | Callable[..., Amount]"
Resource: TypeAlias = "str | Callable[..., str | None]"


def requires_feature(
    feature: str, *, methods: Iterable[str] = (), resource: Resource | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Calls the view only if the customer may use the feature; a request is answered 402 or 403 otherwise.

    Put it below ``route``, on a method of a class-based view, or into its ``decorators``. ``methods`` are the HTTP
    methods that are guarded: all but OPTIONS when none are named. ``resource`` is the name of the URL's argument that
    has the id of the customer's resource, or a callable of the request and of those of the URL's arguments that it
    names.

    Raises:
        ConfigError: ``methods`` are no names.
    """
    return decorators.requires_feature(feature, calls=_calls(methods, resource))


def consumes_usage(
    n: AmountOfRequest = 1,
    feature: str | None = None,
    *,
    methods: Iterable[str] = (),
    resource: Resource | None = None,
    event: str | None = None,
    dimensions: Dimensions | Callable[..., Dimensions] | None = None,
    actual: Callable[[Response], Amount] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Holds ``n`` units while the view runs, and reports them if it succeeds: no exception, a status below 400 but 304.

    ``n`` is a number, or a callable of the request and of those of the URL's arguments that it names; if it can make
    nothing of the request, that is answered 400. Without ``feature`` it is that of the ``requires_feature`` above.
    ``actual`` is called with the response and says how many units are reported in place of those held. With ``event``
    the use is reported as a raw event of that name, with these dimensions. ``methods`` and ``resource`` are as for
    :func:`requires_feature`.

    An ``abort`` with a redirect counts as a returned redirect does. A streamed response counts when it was streamed to
    its end, and is given back when the client goes away before.

    Raises:
        InvalidRequest: ``n`` is a number, and negative or not finite. As a callable it is judged at each request.
        ConfigError: ``methods`` are no names.
    """
    calls = _calls(methods, resource)
    return decorators.consumes_usage(n, feature, calls=calls, event=event, dimensions=dimensions, actual=actual)


def releases_usage(
    n: AmountOfRequest, feature: str, *, methods: Iterable[str] = (), resource: Resource | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Gives ``n`` units of a fluctuating feature back if the view succeeds.

    The arguments are as for :func:`consumes_usage`; ``n`` is how many units are given back: not negative.
    """
    return decorators.releases_usage(n, feature, calls=_calls(methods, resource))


def protect(
    group: Flask | Blueprint,
    feature: str,
    n: AmountOfRequest | None = None,
    *,
    methods: Iterable[str] = (),
    resource: Resource | None = None,
) -> None:
    """Guards every view of a blueprint, of the blueprints in it, or of an app, but not those that are ``exempt``.

    The customer must have the feature; with ``n`` each request consumes that many units, as by
    :func:`consumes_usage`. The views are reached only after all functions of ``before_request``, so that what one of
    those answers is never counted.

    Raises:
        InvalidRequest: as from :func:`consumes_usage`, and for an empty feature id.
        ConfigError: ``methods`` are no names. Each request raises it where the app has no ``StiggGuard``.
    """
    guarded = _group(feature, n, _calls(methods, resource))

    def join() -> None:
        app_guard()  # without one nobody would call the group
        of_request().groups.append(guarded)

    group.before_request(join)


def guard_by_rules(app: Flask, rules: Sequence[Rule]) -> None:
    """Guards the app's views by the rules that their paths meet, but not those that are ``exempt``."""
    guarded = {rule: _group(rule.feature, rule.consume, _calls(rule.methods)) for rule in rules if rule.feature}

    def join() -> None:
        this = this_request()
        rule = rule_of(rules, [this.path], this.method, this.endpoint or "")
        if rule is not None:
            of_request().groups.append(guarded[rule])

    app.before_request(join)


def dispatch_guarded(app: Flask) -> None:
    """Has the app's views called under the guards of the groups that they belong to, the outermost first, and denials
    deep in them raised as those of the guards are.

    A function of ``before_request`` cannot know whether the view will be reached, and one of ``after_request`` not
    whether it was.
    """
    dispatch = app.dispatch_request

    def dispatch_request(*args: Any) -> Any:
        view: Callable[[], Any] = partial(dispatch, *args)
        if _is_guarded():
            for group in reversed(of_request().groups):
                view = partial(group, view)
        return view()

    app.dispatch_request = refusing(dispatch_request)  # type: ignore[method-assign] # of this app only, whatever its class


class _ViewCalls(ViewCalls):
    def request(self, *_args: object, **_kwargs: object) -> Request:
        return this_request()

    def view_arguments(self, *_args: object, **_kwargs: object) -> Mapping[str, Any]:
        return this_request().view_args or {}

    def held(self, usage: Consumption, *_args: object, **_kwargs: object) -> None:
        of_request().noted.append(usage)

    def settle(self, returned: Any, hold_open: HoldOpen) -> tuple[Response, bool]:
        if returned is None:
            raise ConfigError(
                f"what is under consumes_usage returned nothing for {request.path}. A view has to return its answer; a "
                "before_request function cannot know whether the view will succeed, so decorate the view, or protect "
                "the blueprint"
            )
        response = current_app.make_response(returned)
        success = succeeded(response.status_code)
        if success and response.is_streamed:
            if request.method == "HEAD":
                return response, False  # nobody will ask for the body, or close it
            response.response = hold_open(response.response)
        return response, success

    def check_first(self, function: Callable[P, R], check: Callable[..., None]) -> Callable[P, R]:
        return super().check_first(_synchronous(function), refusing(check))

    def settle_after(self, function: Callable[P, R], begin: Begin) -> Callable[P, R]:
        return super().settle_after(_returning(_synchronous(function)), refusing(begin))


def _calls(methods: Iterable[str], resource: Resource | None = None) -> _ViewCalls:
    return _ViewCalls(_guard, _customer, methods=methods, resource=resource)


def _guard() -> Guard:
    return app_guard().guard


def _customer(*_args: object, **_kwargs: object) -> str | Customer:
    return app_guard().customer()


def _group(feature: str, n: AmountOfRequest | None, calls: _ViewCalls) -> Group:
    def call(view: Callable[[], Any]) -> Any:
        return view()

    if n is None:
        return decorators.requires_feature(feature, calls=calls)(call)
    return decorators.consumes_usage(n, feature, calls=calls)(call)


def _is_guarded() -> bool:
    """Whether groups and rules apply: not where no view was found, and not to views that are exempt."""
    endpoint = this_request().endpoint
    return endpoint is not None and not getattr(current_app.view_functions[endpoint], EXEMPT, False)


def _synchronous(function: Callable[P, R]) -> Callable[P, R]:
    """The function as Flask itself calls it: an ``async def`` is run to its end."""
    if not is_asynchronous(function):
        return function

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        answer: R = current_app.ensure_sync(function)(*args, **kwargs)
        return answer

    return run


def _returning(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which returns what it answers by an exception and is no failure, as by ``abort(redirect(…))``."""

    @wraps(function)
    def returned(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except Refused:  # a redirect to the login page is no success
            raise
        except HTTPException as error:
            response = error.get_response(request.environ)
            if not succeeded(response.status_code):
                raise
            answer: Any = current_app.handle_http_exception(error)
            return response if answer is error else answer  # type: ignore[return-value] # what the view answers with

    return returned

"""Guards groups of views, such as blueprints, and views that rules by path are for.

What guards them begins as the last thing before the view, whoever calls that, and ends with the view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial, wraps
from typing import Any

from flask import Blueprint, Flask, Request, Response

from stigg_guard import decorators
from stigg_guard.amounts import usage_amount
from stigg_guard.calls import Begin, Ending
from stigg_guard.entitlements import require_id
from stigg_guard.flask.calls import AmountOfRequest, FlaskCalls, Resource, settled_view, synchronous
from stigg_guard.flask.current import CurrentRequest, app_guard, known_of, of_request, this_app, this_request
from stigg_guard.flask.errors import denying
from stigg_guard.rules import Rule, rule_of
from stigg_guard.web.views import EXEMPT, private_unless_said

_IN_FORCE = "_stigg_guard_in_force"


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
    :func:`consumes_usage`. It begins after all functions of ``before_request``, so that what one of those answers is
    never counted.

    Raises:
        InvalidRequest: as from :func:`consumes_usage`, and for an empty feature id.
        ConfigError: ``methods`` are no names. Each request raises it where the app has no ``StiggGuard``.
    """
    begin = _group(feature, n, FlaskCalls(methods, resource))

    def join() -> None:
        app_guard()  # without one nobody would begin
        of_request().groups.append(begin)

    group.before_request(join)


def guard_by_rules(app: Flask, rules: Sequence[Rule]) -> None:
    """Guards the app's views by the rules that their paths meet, but not those that are ``exempt``."""
    groups = {rule: _group(rule.feature, rule.consume, FlaskCalls(rule.methods)) for rule in rules if rule.feature}

    def join() -> None:
        this = this_request()
        rule = rule_of(rules, [this.path], this.method, this.endpoint or "")
        if rule is not None:
            of_request().groups.append(groups[rule])

    app.before_request(join)


def put_in_force(app: Flask) -> None:
    """Has the groups of each request begin and end."""
    app.before_request(_come_last)
    app.after_request(_finish)
    app.teardown_request(_give_back)


def _group(feature: str, n: AmountOfRequest | None, calls: FlaskCalls) -> Begin:
    """What a group does before a view."""
    if n is None:
        return denying(decorators.feature_check(feature, calls=calls))
    require_id(feature, "feature_id")
    if not callable(n):
        usage_amount(n)
    return denying(decorators.usage_hold(n, lambda: feature, calls=calls))


def _come_last() -> None:
    """Puts what begins the groups behind all functions of ``before_request``, which may answer before the view."""
    app, this = this_app(), this_request()
    _put_view_in_force(app, this)
    last = _last(this.blueprint)
    functions = app.before_request_funcs.setdefault(last.blueprint, [])
    if functions[-1:] != [last]:
        functions.append(last)


@dataclass(frozen=True)
class _Last:
    """The last function before the views of a blueprint, or, without one, before those of the app itself. The functions
    of outer blueprints run before those of inner ones, so that it is the last of all for these views only."""

    blueprint: str | None

    def __call__(self) -> None:
        """Begins the groups, the outermost first, also where something else than the app will call the view."""
        this = this_request()
        if this.blueprint == self.blueprint:
            _put_view_in_force(this_app(), this)
            _begin_groups(known_of(this), this)


_last = cache(_Last)  # one for each blueprint


def _put_view_in_force(app: Flask, this: Request) -> None:
    """Replaces the view of the request by one that ends the groups. It may have been replaced since the last request,
    so this is done at each; without a view, as for an address that is not there, nothing is guarded."""
    endpoint = this.endpoint or ""
    view = app.view_functions.get(endpoint)
    if view is not None and not hasattr(view, _IN_FORCE):
        app.view_functions[endpoint] = _in_force(view)


def _in_force(view: Callable[..., Any]) -> Callable[..., Any]:
    """The view, with which the groups of the request end. Denials deep in it are raised as those of guards are."""
    run = denying(synchronous(view))

    @wraps(view)
    def ending(*args: Any, **kwargs: Any) -> Any:
        this = this_request()
        current = known_of(this)
        _begin_groups(current, this)
        endings = _taken_endings(current)
        if not endings:
            return run(*args, **kwargs)
        call = partial(run, *args, **kwargs)
        for end in reversed(endings):
            call = partial(settled_view, call, end)
        return call()

    setattr(ending, _IN_FORCE, True)
    return ending


def _begin_groups(current: CurrentRequest, this: Request) -> None:
    if not current.groups:
        return
    view = this_app().view_functions.get(this.endpoint or "")
    groups, current.groups = current.groups, []
    if view is None or getattr(view, EXEMPT, False):
        return
    for begin in groups:
        ending = begin()
        if ending is not None:
            current.endings.append(ending)


def _taken_endings(current: CurrentRequest) -> list[Ending]:
    endings = current.endings
    if endings:
        current.endings = []
    return endings


def _finish(response: Response) -> Response:
    """Judges by the response where the view itself was not seen: it was called by other means, or not at all. Keeps
    the response to a guarded request private."""
    current = of_request()
    for end in reversed(_taken_endings(current)):
        settled_view(lambda: response, end)
    if current.is_guarded:
        private_unless_said(response.headers)
    return response


def _give_back(_error: BaseException | None) -> None:
    """There was no response."""
    for end in reversed(_taken_endings(of_request())):
        end(False, None)

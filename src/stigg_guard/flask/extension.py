"""The Flask extension: settings from ``app.config``, decorators for views, answers to the requests they refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

from flask import Blueprint, Flask, Request, Response, current_app, render_template, request
from jinja2 import DictLoader
from werkzeug.utils import ImportStringError, import_string

from stigg_guard import decorators
from stigg_guard.config import PREFIX, Config
from stigg_guard.decorators import Dimensions, HoldOpen
from stigg_guard.denial import PROBLEM_TYPE, TEMPLATE, Denial, page_source, prefers_html
from stigg_guard.entitlements import Amount, Customer
from stigg_guard.errors import (
    ConfigError,
    FeatureDenied,
    InvalidRequest,
    LedgerUnavailable,
    SidecarError,
    SignInRequired,
    StiggGuardError,
)
from stigg_guard.flask.current import EXTENSION, AppGuard, CustomerLoader, app_guard
from stigg_guard.flask.templating import TEMPLATE_GLOBALS
from stigg_guard.guard import Guard
from stigg_guard.ledger import default_ledger
from stigg_guard.views import ViewCalls, succeeded

P = ParamSpec("P")
R = TypeVar("R")
L = TypeVar("L", bound=CustomerLoader)

_REFUSALS = (FeatureDenied, SidecarError, LedgerUnavailable, SignInRequired, InvalidRequest)


def requires_feature(feature: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Calls the view only if the customer may use the feature; a request is answered 402 or 403 otherwise.

    Put it below ``route``. On a ``before_request`` function of a blueprint it guards all of the blueprint's views.
    """
    return decorators.requires_feature(feature, calls=_ViewCalls(_guard, _customer))


def consumes_usage(
    n: Amount | Callable[[Request], Amount],
    feature: str | None = None,
    *,
    event: str | None = None,
    dimensions: Dimensions | Callable[[Request], Dimensions] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Holds ``n`` units while the view runs, and reports them if it succeeds: no exception, a status below 400.

    ``n`` is a number or a function of the request. Without ``feature`` it is that of the ``requires_feature`` above.
    With ``event`` the use is reported as a raw event of that name, with these dimensions.
    A streamed response counts when it was streamed to its end, and is given back when the client goes away before.

    Raises:
        InvalidRequest: ``n`` is a number, and negative or not finite. As a function it is judged at each request,
            which is answered 400.
    """
    return decorators.consumes_usage(
        n, feature, calls=_ViewCalls(_guard, _customer), event=event, dimensions=dimensions
    )


def releases_usage(n: Amount | Callable[[Request], Amount], feature: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Gives ``n`` units of a fluctuating feature back if the view succeeds.

    ``n`` is as for :func:`consumes_usage`, and how many units are given back: not negative.
    """
    return decorators.releases_usage(n, feature, calls=_ViewCalls(_guard, _customer))


class StiggGuard:
    """Guards the views of one or more Flask apps.

    The settings are ``STIGG_GUARD_*`` of ``app.config``. Nothing is connected or started before the first guarded
    request.

    Raises:
        ConfigError: as from :meth:`init_app`.
    """

    requires_feature = staticmethod(requires_feature)
    consumes_usage = staticmethod(consumes_usage)
    releases_usage = staticmethod(releases_usage)

    def __init__(self, app: Flask | None = None) -> None:
        self._loader: CustomerLoader | None = None
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Reads the app's settings; registers the error handler, the denial page and the template functions.

        Raises:
            ConfigError: a setting is wrong, or the app has a ``StiggGuard`` already.
        """
        if EXTENSION in app.extensions:
            raise ConfigError(f"the app {app.name!r} has a StiggGuard already: call init_app once for each app")
        config = Config.from_mapping(app.config, prefix=PREFIX)
        if config.ledger is None and config.enabled:
            config = replace(config, ledger=default_ledger(app.instance_path, config.sidecar))
        configured = _configured_loader(config)
        app.extensions[EXTENSION] = AppGuard(Guard(config), lambda: configured or self._loader)
        app.register_error_handler(StiggGuardError, _answer)
        app.register_blueprint(_templates())
        app.jinja_env.globals.update(TEMPLATE_GLOBALS)

    @property
    def guard(self) -> Guard:
        """The guard of the current app."""
        return _guard()

    def customer_loader(self, loader: L) -> L:
        """Decorates the function that finds the customer of a request: an id, a ``Customer``, or None for nobody.

        The setting ``STIGG_GUARD_CUSTOMER``, where an app has it, goes first.
        """
        self._loader = loader
        return loader


def _guard() -> Guard:
    return app_guard().guard


def _customer(*_args: object, **_kwargs: object) -> str | Customer:
    return app_guard().customer()


class _ViewCalls(ViewCalls):
    def request(self, *_args: object, **_kwargs: object) -> Request:
        return request

    def settle(self, returned: Any, hold_open: HoldOpen) -> tuple[Response, bool]:
        if returned is None:
            raise ConfigError(
                "a function under consumes_usage returned nothing: a before_request function cannot know whether the "
                "view will succeed, so decorate the views"
            )
        response = current_app.make_response(returned)
        success = succeeded(response.status_code)
        if success and response.is_streamed:
            response.response = hold_open(response.response)
        return response, success


def _configured_loader(config: Config) -> CustomerLoader | None:
    if not isinstance(config.customer, str):
        return config.customer
    try:
        loader = import_string(config.customer)
    except ImportStringError as error:
        raise ConfigError(f"{PREFIX}CUSTOMER: {error.exception}; expected module.function") from error
    if not callable(loader):
        raise ConfigError(f"{PREFIX}CUSTOMER: {config.customer} is not callable; expected a function of the request")
    found: CustomerLoader = loader
    return found


def _templates() -> Blueprint:
    """Has the denial page for the app's loader to find, after the app's own templates."""
    blueprint = Blueprint(EXTENSION, __name__)
    blueprint.jinja_loader = DictLoader({TEMPLATE: page_source()})
    return blueprint


def _answer(error: StiggGuardError) -> Response:
    """Answers what a request is refused for. It is registered for the root of the errors, so that an app's own handlers
    of single ones go first, whenever they were registered."""
    if not isinstance(error, _REFUSALS) or (isinstance(error, InvalidRequest) and error.field != "value"):
        raise error  # not the client's doing
    if isinstance(error, (SidecarError, LedgerUnavailable)):
        current_app.logger.warning("%s was answered 503: %s", request.endpoint, error)
    denial = Denial.of(error, _guard().config)
    if prefers_html(request.headers.get("Accept", "")):
        response = current_app.make_response(render_template(TEMPLATE, denial=denial))
    else:
        response = current_app.response_class(denial.problem(), content_type=PROBLEM_TYPE)
    response.status_code = denial.status
    response.headers.update(denial.headers)
    response.vary.add("Accept")
    return response

"""The Flask extension: what it reads from an app, and what it gives to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from typing import TypeVar
from weakref import ref

from flask import Flask, Response
from werkzeug.utils import ImportStringError, import_string

from stigg_guard.config import PREFIX, Anonymous, Config
from stigg_guard.errors import ConfigError, StiggGuardError
from stigg_guard.flask import decorators, errors, groups
from stigg_guard.flask.cli import stigg
from stigg_guard.flask.current import EXTENSION, AppGuard, CustomerLoader, app_guard, of_request
from stigg_guard.flask.signals import Signals
from stigg_guard.flask.templating import add_to_templates
from stigg_guard.guard import Guard
from stigg_guard.ledger.files import default_url
from stigg_guard.usage.confirm import Confirm, confirm_now
from stigg_guard.web.rate_limit import rate_limit_headers
from stigg_guard.web.views import exempt
from stigg_guard.wording import ENGLISH, Wording

L = TypeVar("L", bound=CustomerLoader)


class StiggGuard:
    """Guards the views of one or more Flask apps.

    The settings are ``STIGG_GUARD_*`` of ``app.config``. Nothing is connected or started before the first guarded
    request. ``wording`` writes texts, numbers and dates in the reader's language. ``confirm`` decides when the usage of
    successful work is certain: with :func:`stigg_guard.flask.sqlalchemy.follow`, when its transaction is committed.

    Raises:
        ConfigError: as from :meth:`init_app`.
    """

    requires_feature = staticmethod(decorators.requires_feature)
    consumes_usage = staticmethod(decorators.consumes_usage)
    releases_usage = staticmethod(decorators.releases_usage)
    occupies = staticmethod(decorators.occupies)
    protect = staticmethod(groups.protect)
    exempt = staticmethod(exempt)

    def __init__(self, app: Flask | None = None, *, wording: Wording = ENGLISH, confirm: Confirm = confirm_now) -> None:
        self._wording = wording
        self._confirm = confirm
        self._loader: CustomerLoader | None = None
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Reads the app's settings; registers an error handler, template functions and the command ``flask stigg``.

        It makes and opens nothing: no file, no connection, no environment of templates.

        Raises:
            ConfigError: a setting is wrong, or the app has a ``StiggGuard`` already.
        """
        if EXTENSION in app.extensions:
            raise ConfigError(f"the app {app.name!r} has a StiggGuard already: call init_app once for each app")
        config = _config(app)
        configured = _configured_loader(config)
        guard = Guard(
            config, confirm=self._confirm, observer=Signals(app), is_testing=_tests_of(app), secret=_secret_of(app)
        )
        app.extensions[EXTENSION] = AppGuard(guard, lambda: configured or self._loader, self._wording)
        app.register_error_handler(StiggGuardError, errors.answer)
        add_to_templates(app)
        app.cli.add_command(stigg)
        if config.rules:
            groups.guard_by_rules(app, config.rules)
        if config.rate_limit_headers:
            app.after_request(_tell_limits)
        groups.put_in_force(app)

    @property
    def guard(self) -> Guard:
        """The guard of the current app."""
        return app_guard().guard

    def customer_loader(self, loader: L) -> L:
        """Decorates the function that finds the customer of a request: an id, a ``Customer``, or None for nobody.

        It is asked once per request and may be ``async def``. The setting ``STIGG_GUARD_CUSTOMER``, where an app has
        it, goes first. What it answers decides what is paid for: take it from who is signed in, not from what the
        request says.
        """
        self._loader = loader
        return loader


def _config(app: Flask) -> Config:
    config = Config.from_mapping(app.config, prefix=PREFIX)
    if config.anonymous is Anonymous.LOGIN and config.login_url is None:
        raise ConfigError(f"{PREFIX}LOGIN_URL: {PREFIX}ANONYMOUS is 'login', so give the address of the login page")
    if config.ledger is None and config.enabled:
        return replace(config, ledger=default_url(app.instance_path, config.sidecar))
    return config


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


def _secret_of(app: Flask) -> Callable[[], str | bytes | None]:
    """What signs tokens where the settings name nothing for it."""
    found = ref(app)

    def secret() -> str | bytes | None:
        app = found()
        return None if app is None else app.secret_key

    return secret


def _tests_of(app: Flask) -> Callable[[], bool]:
    """Whether tests of the app run, which is not kept alive by this."""
    found = ref(app)

    def is_testing() -> bool:
        app = found()
        return app is not None and app.testing

    return is_testing


def _tell_limits(response: Response) -> Response:
    response.headers.update(rate_limit_headers(of_request().noted, datetime.now(timezone.utc)))
    return response

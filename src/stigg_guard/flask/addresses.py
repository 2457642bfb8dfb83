"""Where pages are that settings name: the login page and the upgrade page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import unquote, urlsplit

from flask import current_app, has_request_context, url_for
from werkzeug.routing import BuildError

from stigg_guard.config import PREFIX
from stigg_guard.errors import ConfigError
from stigg_guard.flask.current import app_guard, this_request
from stigg_guard.web import denial

_ENDPOINT = re.compile(r"[\w.-]+")


def login_url() -> str | None:
    """The login page of ``STIGG_GUARD_LOGIN_URL``.

    Raises:
        ConfigError: the setting names an endpoint that the app does not have.
    """
    page = app_guard().guard.config.login_url
    return None if page is None else _address("LOGIN_URL", page)


def upgrade_url(feature: str = "") -> str | None:
    """Where more of the feature can be bought, by ``STIGG_GUARD_UPGRADE_URL``; an endpoint is given ``feature``.

    Raises:
        ConfigError: as from :func:`login_url`.
    """
    page = denial.upgrade_url(app_guard().guard.config, feature)
    return None if page is None else _address("UPGRADE_URL", page, **({"feature": feature} if feature else {}))


def login_pages() -> Iterator[str]:
    """The pages that requests of nobody are redirected to: our own, and those that Flask-Login is told. One that is not
    there leads nowhere."""
    manager = getattr(current_app, "login_manager", None)
    views = getattr(manager, "login_view", None), getattr(manager, "refresh_view", None)
    of_blueprints = getattr(manager, "blueprint_login_views", {}).values()
    for page in (app_guard().guard.config.login_url, *views, *of_blueprints):
        if page is not None:
            with suppress(ConfigError):
                yield _address("LOGIN_URL", page)


def _address(setting: str, page: str, **arguments: Any) -> str:
    """An endpoint has the address of its view. A path of a view of this app is below where the app is mounted; every
    other one, as of another app beside it, is as it is written, and so is an address of another site."""
    if _ENDPOINT.fullmatch(page):
        try:
            return url_for(page, **arguments)
        except BuildError as error:
            raise ConfigError(
                f"{PREFIX}{setting}: {error} Name an endpoint of the app, or give a path that begins with /, or an "
                "address that begins with https://"
            ) from error
    if page.startswith("/") and has_request_context() and _is_of_this_app(page):
        return this_request().script_root + page
    return page


def _is_of_this_app(path: str) -> bool:
    urls = current_app.create_url_adapter(this_request())
    return urls is not None and urls.test(unquote(urlsplit(path).path), "GET")

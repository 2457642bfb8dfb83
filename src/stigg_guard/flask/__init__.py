"""Guards Flask views by what a customer has paid for."""

from __future__ import annotations

from stigg_guard.errors import MissingExtra

try:
    from stigg_guard.flask.extension import StiggGuard, consumes_usage, releases_usage, requires_feature
except ModuleNotFoundError as error:
    if error.name != "flask":
        raise
    raise MissingExtra("flask", "stigg_guard.flask") from error

__all__ = ["StiggGuard", "consumes_usage", "releases_usage", "requires_feature"]

"""Guards Flask views by what a customer has paid for."""

from __future__ import annotations

from stigg_guard.errors import MissingExtra

try:
    import flask  # noqa: F401 - only to learn whether it is there
except ModuleNotFoundError as error:
    if error.name != "flask":
        raise
    raise MissingExtra("flask", "stigg_guard.flask") from error

from stigg_guard.flask.decorators import consumes_usage, occupies, releases_usage, requires_feature
from stigg_guard.flask.errors import FeatureDenied, RequestDenied
from stigg_guard.flask.extension import StiggGuard
from stigg_guard.flask.groups import protect
from stigg_guard.flask.signals import feature_denied, usage_lost_contact, usage_reported
from stigg_guard.web.views import exempt

__all__ = [
    "FeatureDenied",
    "RequestDenied",
    "StiggGuard",
    "consumes_usage",
    "exempt",
    "feature_denied",
    "occupies",
    "protect",
    "releases_usage",
    "requires_feature",
    "usage_lost_contact",
    "usage_reported",
]

"""The guard in Django: ``"stigg_guard.django"`` in ``INSTALLED_APPS``, its middleware, and decorators for views."""

from __future__ import annotations

from stigg_guard.errors import MissingExtra

try:
    import django  # noqa: F401 - only to learn whether it is there
except ModuleNotFoundError as error:
    raise MissingExtra("django", "stigg_guard.django") from error

from stigg_guard.django.conf import get_guard
from stigg_guard.django.decorators import consumes_usage, releases_usage, requires_feature

__all__ = ["consumes_usage", "get_guard", "releases_usage", "requires_feature"]

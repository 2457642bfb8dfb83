"""The guard in Django: ``"stigg_guard.django"`` in ``INSTALLED_APPS``, its middleware, and guards for views."""

from __future__ import annotations

from stigg_guard.errors import MissingExtra

try:
    import django  # noqa: F401 - only to learn whether it is there
except ModuleNotFoundError as error:
    raise MissingExtra("django", "stigg_guard.django") from error

from stigg_guard.django.conf import get_guard
from stigg_guard.django.decorators import consumes_usage, occupies, releases_usage, requires_feature
from stigg_guard.django.mixins import ConsumesUsageMixin, RequiresFeatureMixin
from stigg_guard.django.requests import RequestPlan, customer_of
from stigg_guard.django.signals import feature_denied, usage_lost_contact, usage_reported
from stigg_guard.django.urls import protect
from stigg_guard.web.views import exempt

__all__ = [
    "ConsumesUsageMixin",
    "RequestPlan",
    "RequiresFeatureMixin",
    "consumes_usage",
    "customer_of",
    "exempt",
    "feature_denied",
    "get_guard",
    "occupies",
    "protect",
    "releases_usage",
    "requires_feature",
    "usage_lost_contact",
    "usage_reported",
]

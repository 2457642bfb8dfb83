"""Mixins for class-based views, whose handlers are ``def`` or ``async def``. They stand left of the view's class."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.views import View

from stigg_guard import decorators
from stigg_guard.amounts import Amount
from stigg_guard.django.calls import DjangoCalls
from stigg_guard.django.conf import DEFAULT
from stigg_guard.django.requests import customer_of
from stigg_guard.entitlements import Customer
from stigg_guard.usage.consumption import Consumption


class GuardedView(View):
    """What the mixins have in common. ``guarded_methods`` are HTTP methods, all when none are named, but for
    OPTIONS that the framework answers itself."""

    feature: str = ""
    guarded_methods: Iterable[str] = ()
    using: str = DEFAULT

    def get_feature(self) -> str:
        """The id of the feature: ``feature``."""
        if not self.feature:
            raise ImproperlyConfigured(f"{type(self).__name__} names no feature: set feature, or override get_feature")
        return self.feature

    def get_customer(self) -> str | Customer:
        """Whose request it is: as the configured resolver says."""
        return customer_of(self.request, self.using)

    def get_resource(self) -> str | None:
        """The id of the customer's resource that is asked about, if any."""
        return None


class RequiresFeatureMixin(GuardedView):
    """Runs the view only for customers who may use the feature; the middleware answers the others."""

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        requiring = decorators.requires_feature(self.get_feature(), calls=_MixinCalls(self))
        return requiring(super().dispatch)(request, *args, **kwargs)


class ConsumesUsageMixin(GuardedView):
    """Holds ``usage_amount`` units of the feature while the view runs, and reports them if its status is below 400.

    A view with a form is best guarded by ``guarded_methods = ["POST"]``. Django shows a form with mistakes with status
    200: answer it with 422, or say in :meth:`get_actual_usage` that nothing was used.
    """

    usage_amount: Amount = 1
    usage: Consumption
    """What is held, while the view runs."""

    def get_usage_amount(self) -> Amount:
        """How many units are held. What it raises because the request lacks it, such as ``ValueError``, is a 400."""
        return self.usage_amount

    def get_actual_usage(self, response: HttpResponseBase) -> Amount:
        """How many units the response has used, which are reported."""
        return self.usage.amount

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        consuming = decorators.consumes_usage(
            lambda _: self.get_usage_amount(), self.get_feature(), calls=_MixinCalls(self), actual=self.get_actual_usage
        )
        return consuming(super().dispatch)(request, *args, **kwargs)


class _MixinCalls(DjangoCalls):
    """How a view is called, as it says itself."""

    def __init__(self, view: Any) -> None:
        super().__init__(view.using, customer=self._customer_of_view, methods=view.guarded_methods)
        self._view = view

    def held(self, usage: Consumption, *args: Any, **kwargs: Any) -> None:
        super().held(usage, *args, **kwargs)
        self._view.usage = usage

    def _customer_of_view(self, *_args: Any, **_kwargs: Any) -> str | Customer:
        customer, resource = self._view.get_customer(), self._view.get_resource()
        return customer if resource is None else Customer(Customer.of(customer).id, resource)

"""Guards whole groups of URLs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from types import ModuleType
from typing import Any, TypeAlias

from django.urls import ResolverMatch, URLPattern, URLResolver, include
from django.urls.resolvers import RoutePattern

from stigg_guard import decorators
from stigg_guard.decorators import OneOrComputed
from stigg_guard.django.calls import DjangoCalls
from stigg_guard.django.conf import DEFAULT
from stigg_guard.entitlements import Amount
from stigg_guard.views import EXEMPT

Patterns: TypeAlias = "Sequence[URLPattern | URLResolver]"
Included: TypeAlias = "tuple[Any, str | None, str | None]"
View: TypeAlias = Callable[..., Any]


def protect(
    urls: Included | str | ModuleType | Patterns,
    feature: str,
    n: OneOrComputed[Amount] | None = None,
    *,
    methods: Iterable[str] = (),
    resource: str | Callable[..., str | None] | None = None,
    using: str = DEFAULT,
) -> Included:
    """Guards all views of ``urls``: what ``include()`` returns or takes, and what it includes itself.

    ::

        path("api/", protect(include("shop.api"), "feature-api-calls", n=1, methods=["POST"]))

    The views need the feature, and with ``n`` consume that many of its units, as by
    :func:`~stigg_guard.django.requires_feature` and :func:`~stigg_guard.django.consumes_usage`, where the other
    arguments are explained. Those under :func:`~stigg_guard.django.exempt` are left alone. Names, namespaces and
    reversing stay as they are.

    Raises:
        InvalidRequest: ``n`` is a number, and negative or not finite, or the feature's id is empty.
    """
    urlconf, app_name, namespace = urls if isinstance(urls, tuple) else include(urls)
    calls = DjangoCalls(using, methods=methods, resource=resource)
    guard: Callable[[View], View]
    if n is None:
        check = decorators.feature_check(feature, calls=calls)
        guard = lambda view: calls.check_first(view, check)  # noqa: E731 - one of two
    else:
        guard = decorators.consumes_usage(n, feature, calls=calls)
    return [_ProtectedUrls(urlconf, guard)], app_name, namespace


class _ProtectedUrls(URLResolver):
    """Resolves to guarded views; what is reversed are the views themselves."""

    def __init__(self, urlconf: Any, guard: Callable[[View], View]) -> None:
        super().__init__(RoutePattern(""), urlconf)
        self._guarded = cache(guard)

    def resolve(self, path: str) -> ResolverMatch:
        match = super().resolve(path)
        if not getattr(match.func, EXEMPT, False):
            match.func = self._guarded(match.func)
        return match

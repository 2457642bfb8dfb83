"""Guards whole groups of URLs: those that are named where they are included, and those that a rule is for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cache, reduce, wraps
from types import ModuleType
from typing import Any, TypeAlias, TypeVar

from asgiref.sync import markcoroutinefunction
from django.conf import settings
from django.conf.urls.i18n import is_language_prefix_patterns_used
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.urls import ResolverMatch, URLPattern, URLResolver, include
from django.urls.resolvers import RoutePattern
from django.utils.translation import get_language_from_path

from stigg_guard import decorators
from stigg_guard.amounts import Amount
from stigg_guard.calls import OneOrComputed
from stigg_guard.django.calls import DjangoCalls, is_awaited
from stigg_guard.django.conf import DEFAULT, configurations
from stigg_guard.rules import Rule, rule_of
from stigg_guard.web.views import EXEMPT

Pattern = TypeVar("Pattern", bound="URLPattern | URLResolver")
Patterns: TypeAlias = "Sequence[URLPattern | URLResolver]"
Included: TypeAlias = "tuple[Any, str | None, str | None]"
View: TypeAlias = Callable[..., Any]


def protect(
    urls: Included | tuple[Any, str] | str | ModuleType | Patterns,
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
    given: Any = urls
    urlconf, app_name, namespace = given if isinstance(given, tuple) and len(given) == 3 else include(given)
    guard = _guard(feature, n, DjangoCalls(using, methods=methods, resource=resource))
    return GuardedUrls(urlconf, guard), app_name, namespace


def ruled(urlconf: Any) -> GuardedUrls:
    """The URLconf, with its views under the rules that their requests meet.

    They are guarded where decorators would: inside of the view's transaction, and of what other middleware does.
    """
    return GuardedUrls(urlconf, _ruled)


def met_rules(request: HttpRequest) -> tuple[tuple[str, Rule], ...]:
    """The rules that the request meets, at most one of each configuration, after the configuration's name."""
    paths, method = _paths(request), request.method or ""
    view = request.resolver_match.view_name if request.resolver_match is not None else ""
    met = ((using, rule_of(made.guard.config.rules, paths, method, view)) for using, made in configurations().items())
    return tuple((using, rule) for using, rule in met if rule is not None)


def _paths(request: HttpRequest) -> Sequence[str]:
    """The path within the site, and that without the prefix of a language where the URLs have one."""
    path = request.path_info
    language, _ = is_language_prefix_patterns_used(getattr(request, "urlconf", None) or settings.ROOT_URLCONF)
    if not language or get_language_from_path(path) is None:
        return (path,)
    return path, "/" + path.lstrip("/").partition("/")[2]


@dataclass(frozen=True, slots=True)
class GuardedUrls:
    """A URLconf like ``original``, whose views are guarded but for those that are exempt."""

    original: Any
    guard: Callable[[View], View]

    @property
    def urlpatterns(self) -> Patterns:
        guard = cache(self.guard)
        try:
            return [_guarded(pattern, guard) for pattern in self._resolver.url_patterns]
        except AttributeError as error:  # Django would take it to mean that this has no patterns
            raise ImproperlyConfigured(f"the URLconf {self} cannot be loaded: {error}") from error

    def __getattr__(self, name: str) -> Any:
        """What else a URLconf may have: handlers of errors."""
        return getattr(self._resolver.urlconf_module, name)

    def __str__(self) -> str:
        """As Django's pages for developers name the original."""
        return self.original.__name__ if isinstance(self.original, ModuleType) else str(self.original)

    @property
    def _resolver(self) -> URLResolver:
        return URLResolver(RoutePattern(""), self.original)


def _guard(feature: str, n: OneOrComputed[Amount] | None, calls: DjangoCalls) -> Callable[[View], View]:
    if n is not None:
        return decorators.consumes_usage(n, feature, calls=calls)
    check = decorators.feature_check(feature, calls=calls)
    return lambda view: calls.check_first(view, check)


def _guarded(pattern: Pattern, guard: Callable[[View], View]) -> Pattern:
    """The pattern, which resolves to guarded views; what is reversed are the views themselves."""

    def resolve(path: str) -> ResolverMatch | None:
        match = pattern.resolve(path)
        if match is not None and not getattr(match.func, EXEMPT, False):
            match.func = guard(match.func)
        return match

    guarded = copy(pattern)
    guarded.resolve = resolve  # type: ignore[method-assign] # so it stays of its class, by which Django tells patterns
    return guarded


def _ruled(view: View) -> View:
    """The view, which each request finds under the rules that it meets, those of the first configuration outermost."""

    @cache
    def under(rules: Sequence[tuple[str, Rule]]) -> View:
        return reduce(_under, reversed(rules), view)

    @wraps(view)
    def chosen(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        return under(met_rules(request))(request, *args, **kwargs)

    return markcoroutinefunction(chosen) if is_awaited(view) else chosen


def _under(view: View, named_rule: tuple[str, Rule]) -> View:
    using, rule = named_rule
    feature = rule.feature or ""  # a rule without one exempts, and is not met
    return _guard(feature, rule.consume, DjangoCalls(using, methods=rule.methods))(view)

"""System checks of what the URLs lead to: rules that meet no view, guards of nothing, and guards in a wrong order."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from functools import partial
from inspect import getclosurevars, isfunction
from typing import Any, NamedTuple

from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning  # noqa: A004 - as Django names it
from django.urls import URLPattern, URLResolver, get_resolver
from django.urls.resolvers import LocalePrefixPattern, RoutePattern

from stigg_guard.decorators import consumed_features
from stigg_guard.django.conf import configurations
from stigg_guard.django.mixins import ConsumesUsageMixin, GuardedView
from stigg_guard.rules import Rule

# Where functions are from: some of these modules cannot be imported in every project.
_ASKING_DECORATORS, _ASKING_MIXINS = "django.contrib.auth.decorators", "django.contrib.auth.mixins"
_OF_METHODS, _OF_FUNCTIONS = "django.utils.decorators", "rest_framework.decorators"
_LITERAL = re.compile(r"\^?((?:[\w/-](?![*+?{])|\\[/.-])*)")
_ORDER = "Put consumes_usage below the decorator, and ConsumesUsageMixin right of the mixin, that asks who may."


class ViewRoute(NamedTuple):
    """A view's address: how its path begins, whether that is all of it, and what its URL is called."""

    beginning: str
    is_whole: bool
    name: str
    view: Callable[..., Any]

    def meets(self, rule: Rule) -> bool:
        """Whether a request for the view may meet the rule."""
        if rule.path is None:
            return rule.view == self.name
        return rule.covers(self.beginning) or (not self.is_whole and rule.path.startswith(self.beginning))


def check_rules(**_: Any) -> Sequence[CheckMessage]:
    """A rule that meets no view guards nothing, unless it is for a URLconf that the checks do not see."""
    found = routes()
    return [
        _unmet(using, rule, found)
        for using, made in configurations().items()
        for rule in made.guard.config.rules
        if not any(route.meets(rule) for route in found)
    ]


def check_views(**_: Any) -> Sequence[CheckMessage]:
    """What would be told by the first request of a view, or by its customers."""
    return [fault for view in dict.fromkeys(route.view for route in routes()) for fault in _faults(view)]


def routes() -> Sequence[ViewRoute]:
    """All of the site."""
    has_urls = getattr(settings, "ROOT_URLCONF", None) is not None
    return list(_routes(get_resolver().url_patterns, "/", True, ())) if has_urls else ()


def _routes(patterns: Sequence[Any], before: str, is_whole: bool, namespaces: Sequence[str]) -> Iterator[ViewRoute]:
    for pattern in patterns:
        literal, is_literal = _literal(pattern)
        path = before + literal if is_whole else before
        if isinstance(pattern, URLResolver):
            within = (*namespaces, pattern.namespace) if pattern.namespace else namespaces
            yield from _routes(pattern.url_patterns, path, is_whole and is_literal, within)
        elif isinstance(pattern, URLPattern):
            name = ":".join((*namespaces, pattern.name or pattern.lookup_str))
            yield ViewRoute(path, is_whole and is_literal, name, pattern.callback)


def _literal(pattern: Any) -> tuple[str, bool]:
    """How what the pattern matches begins, and whether that is all of it."""
    if isinstance(pattern.pattern, LocalePrefixPattern):
        return "", True
    route = str(pattern.pattern)
    if isinstance(pattern.pattern, RoutePattern):
        literal, variable, _ = route.partition("<")
        return literal, not variable
    found = _LITERAL.match(route)
    literal, rest = (found[1], route[found.end() :]) if found else ("", route)
    return literal.replace("\\", ""), rest in (r"$", r"\Z") or (not rest and isinstance(pattern, URLResolver))


def _unmet(using: str, rule: Rule, found: Sequence[ViewRoute]) -> CheckMessage:
    known = {route.name if rule.path is None else route.beginning for route in found}
    nearest = get_close_matches(rule.view or rule.path or "", sorted(known), n=1, cutoff=0.0)
    correct = "Else correct it" + (f"; the nearest is {nearest[0]!r}." if nearest else ".")
    hint = (
        f"It is in force for a URLconf that middleware sets, as for another host; if it is for one, keep it. {correct}"
    )
    place = f"settings.STIGG_GUARD of {using!r}"
    text = f"The rule of the {rule} meets no view of ROOT_URLCONF."
    return Warning(text, hint=hint, obj=place, id="stigg_guard.W006")


def _faults(view: Callable[..., Any]) -> Iterator[CheckMessage]:
    kind = getattr(view, "view_class", None) or getattr(view, "cls", None)
    name = f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else _name(view)
    chains = [list(_chain(view)), *(list(_chain(handler)) for handler in _handlers(view, kind))]
    if any(consumed_features(one) == [] for chain in chains for one in chain) or _is_nameless(view, kind):
        hint = "Name it: consumes_usage(n, feature), feature = …, or requires_feature(feature) right above."
        yield Error(f"{name} is guarded by no feature.", hint=hint, id="stigg_guard.E005")
    if any(map(_asks_below, chains)) or _asks_by_mixin(chains[0], kind):
        text = f"{name} holds units before it is known who may have them."
        yield Warning(text, hint=_ORDER, id="stigg_guard.W007")


def _handlers(view: Any, kind: Any) -> Iterator[Callable[..., Any]]:
    names = {"dispatch", *getattr(kind, "http_method_names", ()), *(getattr(view, "actions", None) or {}).values()}
    found = (getattr(kind, name, None) for name in sorted(names))
    return (handler for handler in found if isfunction(handler))


def _is_nameless(view: Any, kind: Any) -> bool:
    """Whether the class is a guard without a feature."""
    if not (isinstance(kind, type) and issubclass(kind, GuardedView)):
        return False
    given = getattr(view, "view_initkwargs", {}).get("feature", kind.feature)
    return not given and kind.get_feature is GuardedView.get_feature


def _asks_below(chain: Sequence[Callable[..., Any]]) -> bool:
    """Whether one of Django's decorators that ask who may stands below a guard that consumes."""
    guards = [place for place, one in enumerate(chain) if consumed_features(one) is not None]
    return bool(guards) and any(_module(one) == _ASKING_DECORATORS for one in chain[guards[0] :])


def _asks_by_mixin(chain: Sequence[Callable[..., Any]], kind: Any) -> bool:
    """Whether one of Django's mixins that ask who may stands below a guard that consumes."""
    order = getattr(kind, "__mro__", ())
    asking = [place for place, one in enumerate(order) if one.__module__ == _ASKING_MIXINS]
    above = order[: max(asking, default=0)]
    dispatches = (vars(one)["dispatch"] for one in above if "dispatch" in vars(one))
    guards = (one for part in (chain, *map(_chain, dispatches)) for one in part if consumed_features(one) is not None)
    return bool(asking) and (ConsumesUsageMixin in above or any(guards))


def _chain(function: Any) -> Iterator[Callable[..., Any]]:
    """The function and what it wraps, the outermost first."""
    while function is not None:
        if _module(function) == _OF_METHODS:
            yield from _of_method(function)
        else:
            yield function
        function = _wrapped(function)


def _wrapped(function: Any) -> Any:
    if isinstance(function, partial):
        return function.func
    if _module(function) == _OF_FUNCTIONS:
        return getclosurevars(function).nonlocals.get("func")
    return getattr(function, "__wrapped__", None)


def _of_method(function: Any) -> Iterator[Callable[..., Any]]:
    """What ``method_decorator`` puts around the method anew at each call, here around nothing."""
    decorated: Any = _nothing()
    for decorate in getclosurevars(function).nonlocals.get("decorators", ()):
        decorated = decorate(decorated)
    return _chain(decorated)


def _nothing() -> Callable[..., Any]:
    def nothing(*_: Any, **__: Any) -> None: ...

    return nothing


def _name(view: Any) -> str:
    return f"{view.__module__}.{getattr(view, '__qualname__', type(view).__qualname__)}"


def _module(function: Any) -> str | None:
    """Where the function is written, whatever it wraps."""
    written: str | None = getattr(function, "__globals__", {}).get("__name__")
    return written

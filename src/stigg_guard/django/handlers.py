"""Whose code serves a request: that of the framework, of the site's view, or of a decorator around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from inspect import getclosurevars, unwrap
from typing import Any

from django.http import HttpRequest
from django.views import View

_OPTIONS = ("django.views.generic.base.View.options", "rest_framework.views.APIView.options")
_SERVING = ("dispatch", "http_method_not_allowed")
_FRAMEWORKS = ("django", "rest_framework", "stigg_guard")


def answers_options(view: Any) -> bool:
    """Whether the framework itself answers OPTIONS, by which browsers ask before they ask for more, so that no code of
    the site runs: the view is of a class that has neither ``options`` nor ``dispatch`` of its own, or is such a method
    of one, and so are the decorators between."""
    if not _is_frameworks(view):
        return False
    method = bound_method(view)
    if method is None:
        kind = getattr(view, "view_class", None) or getattr(view, "cls", None)
        return _leaves_options(kind) and "options" not in (getattr(view, "actions", None) or {})
    if method.__name__ == View.dispatch.__name__:
        served: View = method.__self__
        return _leaves_options(type(served)) and "options" not in vars(served)
    return _is_frameworks_options(method)


def is_the_view(function: Any, request: HttpRequest) -> bool:
    """Whether Django itself gets what the function returns: it is the view that serves the request, or a method of it,
    with no decorator of the site around it."""
    view = getattr(request.resolver_match, "func", None)
    kind = getattr(view, "view_class", None) or getattr(view, "cls", None)
    handler = getattr(kind, (request.method or "").lower(), None)
    method = bound_method(function)
    is_dispatch = method is not None and method.__name__ == View.dispatch.__name__
    return is_dispatch or _leads_to(view, function) or _leads_to(handler, function)


def _leads_to(outer: Any, function: Any) -> bool:
    while outer is not None and _plain(outer) is not _plain(function):
        outer = getattr(outer, "__wrapped__", None) if _is_of_frameworks(outer) else None
    return outer is not None


def bound_method(function: Callable[..., Any]) -> Any:
    """The method of a class-based view, bound to the one that serves a request, that the function calls; else None."""
    bound = unwrap(function, stop=lambda one: isinstance(one, partial))  # method_decorator binds by a partial
    method = bound.func if isinstance(bound, partial) else bound
    return method if isinstance(getattr(method, "__self__", None), View) else None


def _leaves_options(kind: Any) -> bool:
    served = [vars(one)[name] for one in getattr(kind, "__mro__", ()) for name in _SERVING if name in vars(one)]
    return _is_frameworks_options(getattr(kind, "options", None)) and all(map(_is_frameworks, served))


def _is_frameworks_options(method: Any) -> bool:
    return f"{getattr(method, '__module__', '')}.{getattr(method, '__qualname__', '')}" in _OPTIONS


def _is_frameworks(function: Any) -> bool:
    """Whether the function, and all that it wraps, is written in the frameworks or here."""
    while function is not None:
        if not _is_of_frameworks(function):
            return False
        function = getattr(_plain(function), "__wrapped__", None)
    return True


def _is_of_frameworks(function: Any) -> bool:
    """Whether the function itself is, and what ``method_decorator`` has put around it."""
    plain = _plain(function)
    module = getattr(plain, "__globals__", {}).get("__name__", "")
    return module.partition(".")[0] in _FRAMEWORKS and all(map(_is_frameworks, _of_method(module, plain)))


def _plain(function: Any) -> Any:
    function = function.func if isinstance(function, partial) else function
    return getattr(function, "__func__", function)


def _of_method(module: str, function: Any) -> Iterable[Any]:
    """What ``method_decorator`` has put around the method."""
    decorators: Iterable[Any] = ()
    if module == "django.utils.decorators":
        decorators = getclosurevars(function).nonlocals.get("decorators", ())
    return decorators

"""Which views leave OPTIONS, by which browsers ask before they ask for more, to the framework."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from inspect import getclosurevars, unwrap
from typing import Any

from django.views import View

_OPTIONS = ("django.views.generic.base.View.options", "rest_framework.views.APIView.options")
_FRAMEWORKS = ("django", "rest_framework", "stigg_guard")


def answers_options(view: Any) -> bool:
    """Whether the framework itself answers OPTIONS, so that no code of the site runs: the view is of a class that has
    neither ``options`` nor ``dispatch`` of its own, or is such a method of one, and so are the decorators between."""
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


def bound_method(function: Callable[..., Any]) -> Any:
    """The method of a class-based view, bound to the one that serves a request, that the function calls; else None."""
    bound = unwrap(function, stop=lambda one: isinstance(one, partial))  # method_decorator binds by a partial
    method = bound.func if isinstance(bound, partial) else bound
    return method if isinstance(getattr(method, "__self__", None), View) else None


def _leaves_options(kind: Any) -> bool:
    dispatches = [vars(one)["dispatch"] for one in getattr(kind, "__mro__", ()) if "dispatch" in vars(one)]
    return _is_frameworks_options(getattr(kind, "options", None)) and all(map(_is_frameworks, dispatches))


def _is_frameworks_options(method: Any) -> bool:
    return f"{getattr(method, '__module__', '')}.{getattr(method, '__qualname__', '')}" in _OPTIONS


def _is_frameworks(function: Any) -> bool:
    """Whether the function, and all that it wraps, is written in the frameworks or here."""
    while function is not None:
        function = function.func if isinstance(function, partial) else getattr(function, "__func__", function)
        module = getattr(function, "__globals__", {}).get("__name__", "")
        if module.partition(".")[0] not in _FRAMEWORKS or not all(map(_is_frameworks, _of_method(module, function))):
            return False
        function = getattr(function, "__wrapped__", None)
    return True


def _of_method(module: str, function: Any) -> Iterable[Any]:
    """What ``method_decorator`` has put around the method."""
    decorators: Iterable[Any] = ()
    if module == "django.utils.decorators":
        decorators = getclosurevars(function).nonlocals.get("decorators", ())
    return decorators

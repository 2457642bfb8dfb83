"""The decorators, written once: what differs between a plain function, a Django view and a Flask view is passed in."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any, ParamSpec, TypeVar

from stigg_guard.entitlements import Amount, Customer, usage_amount
from stigg_guard.errors import ConfigError
from stigg_guard.guard import Guard

P = ParamSpec("P")
R = TypeVar("R")

_UNNAMED = "_stigg_guard_feature"


def requires_feature(
    feature: str, *, guard: Callable[[], Guard], customer: Callable[..., str | Customer]
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Calls the function only if the customer may use the feature, else raises what :meth:`Guard.require` raises.

    ``customer`` gets the function's own arguments. A ``consumes_usage`` below that names no feature consumes this one.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        _refuse_coroutine(function)
        _name_below(function, feature)

        @wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            guard().require(feature, customer=customer(*args, **kwargs))
            return function(*args, **kwargs)

        return guarded

    return decorate


def consumes_usage(
    n: Amount | Callable[..., Amount],
    feature: str | None = None,
    *,
    guard: Callable[[], Guard],
    customer: Callable[..., str | Customer],
    settle: Callable[[Any], tuple[Any, bool]] = lambda result: (result, True),
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Holds ``n`` units while the function runs, reports them when it succeeds and gives them back when it does not.

    ``n`` and ``customer`` may be callables of the function's arguments. ``settle`` turns the function's result into
    what is returned, and tells whether it is a success. Without ``feature`` it is that of the ``requires_feature``
    above.

    Raises:
        InvalidRequest: ``n`` is a number, and negative or not finite. As a callable it is judged at each call.
    """
    if not callable(n):
        usage_amount(n)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        _refuse_coroutine(function)
        named: list[str] = [feature] if feature is not None else []

        @wraps(function)
        def consuming(*args: P.args, **kwargs: P.kwargs) -> R:
            if not named:
                raise ConfigError(
                    f"{function.__qualname__} consumes usage of no feature: name it in consumes_usage(n, feature), "
                    "or put requires_feature(feature) above"
                )
            amount = n(*args, **kwargs) if callable(n) else n
            with guard().consume(named[0], amount, customer=customer(*args, **kwargs)) as usage:
                result, succeeded = settle(function(*args, **kwargs))
                if not succeeded:
                    usage.cancel()
            settled: R = result
            return settled

        if feature is None:
            setattr(consuming, _UNNAMED, named)
        return consuming

    return decorate


def _name_below(function: Callable[..., Any], feature: str) -> None:
    """Tells the ``consumes_usage`` below which feature it consumes; decorators between them carry its attribute up."""
    unnamed = getattr(function, _UNNAMED, None)
    if unnamed is None:
        return
    if unnamed and unnamed != [feature]:
        raise ConfigError(f"consumes_usage is under two features, {unnamed[0]} and {feature}: name the one it consumes")
    unnamed[:] = [feature]


def _refuse_coroutine(function: Callable[..., Any]) -> None:
    if iscoroutinefunction(function):
        raise ConfigError(
            f"{function.__qualname__} is an async function, and this guard is synchronous: guard a synchronous function"
        )

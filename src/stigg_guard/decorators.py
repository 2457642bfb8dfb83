"""The decorators, written once: what differs between a plain function, a Django view and a Flask view is passed in."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from functools import wraps
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar, cast

from stigg_guard.consumption import SettlingStream
from stigg_guard.entitlements import Amount, Customer, require_id, usage_amount
from stigg_guard.errors import ConfigError

if TYPE_CHECKING:
    from stigg_guard.guard import Guard

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

Dimensions: TypeAlias = "Mapping[str, str | float | bool]"
OneOrComputed: TypeAlias = "T | Callable[..., T]"
HoldOpen: TypeAlias = Callable[[Iterable[Any]], Iterable[Any]]
Settle: TypeAlias = Callable[[Any, HoldOpen], "tuple[Any, bool]"]

_UNNAMED = "_stigg_guard_feature"


def settle_result(result: Any, hold_open: HoldOpen) -> tuple[Any, bool]:
    """For plain functions: who returns has succeeded, and a generator has when it is exhausted."""
    return (hold_open(result) if isinstance(result, Generator) else result), True


def requires_feature(
    feature: str, *, guard: Callable[[], Guard], customer: OneOrComputed[str | Customer]
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Calls the function only if the customer may use the feature, else raises what :meth:`Guard.require` raises.

    ``customer`` may be a callable of the function's arguments. A ``consumes_usage`` below that names no feature
    consumes this one.
    """
    require_id(feature, "feature_id")

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        _refuse_coroutine(function)
        _name_below(function, feature)

        @wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            guard().require(feature, customer=_given(customer, *args, **kwargs))
            return function(*args, **kwargs)

        return guarded

    return decorate


def consumes_usage(
    n: OneOrComputed[Amount],
    feature: str | None = None,
    *,
    guard: Callable[[], Guard],
    customer: OneOrComputed[str | Customer],
    settle: Settle = settle_result,
    event: str | None = None,
    dimensions: OneOrComputed[Dimensions] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Holds ``n`` units while the function runs, reports them when it succeeds and gives them back when it does not.

    ``n``, ``customer`` and ``dimensions`` may be callables of the function's arguments. Without ``feature`` it is that
    of the ``requires_feature`` above. With ``event`` the use is reported as a raw event with these dimensions.

    ``settle`` turns the function's result into what is returned, and tells whether it is a success. Where the result is
    a stream that goes on after the function returned, it puts ``hold_open(stream)`` in its place, and the usage is
    settled when that ends.

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
            usage = guard().consume(
                _named(named, function),
                _given(n, *args, **kwargs),
                customer=_given(customer, *args, **kwargs),
                event=event,
                dimensions=_given(dimensions, *args, **kwargs),
            )
            usage.__enter__()
            return cast(R, _settled(lambda: function(*args, **kwargs), settle, usage.end))

        if feature is None:
            setattr(consuming, _UNNAMED, named)
        return consuming

    return decorate


def releases_usage(
    n: OneOrComputed[Amount],
    feature: str,
    *,
    guard: Callable[[], Guard],
    customer: OneOrComputed[str | Customer],
    settle: Settle = settle_result,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Gives ``n`` units of a fluctuating feature back when the function succeeds, with the ledger's durability.

    The arguments are those of :func:`consumes_usage`; ``n`` is how many units are given back, not negative.
    """
    require_id(feature, "feature_id")
    if not callable(n):
        usage_amount(n)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        _refuse_coroutine(function)

        @wraps(function)
        def releasing(*args: P.args, **kwargs: P.kwargs) -> R:
            amount = usage_amount(_given(n, *args, **kwargs))
            owner, books = _given(customer, *args, **kwargs), guard()

            def end(succeeded: bool) -> None:
                if succeeded:
                    books.report(feature, -amount, customer=owner)

            return cast(R, _settled(lambda: function(*args, **kwargs), settle, end))

        return releasing

    return decorate


def _given(value: Any, *args: Any, **kwargs: Any) -> Any:
    return value(*args, **kwargs) if callable(value) else value


def _settled(call: Callable[[], Any], settle: Settle, end: Callable[[bool], None]) -> Any:
    """What the call comes to. ``end`` is told how it went: now, or by the stream that was held open."""
    streams: list[SettlingStream[Any]] = []

    def hold_open(stream: Iterable[Any]) -> SettlingStream[Any]:
        streams.append(SettlingStream(stream, end))
        return streams[0]

    try:
        result, succeeded = settle(call(), hold_open)
    except BaseException:
        end(False)
        raise
    if not streams:
        end(succeeded)
    return result


def _name_below(function: Callable[..., Any], feature: str) -> None:
    """Tells the ``consumes_usage`` below which feature it consumes; decorators between them carry its attribute up."""
    unnamed = getattr(function, _UNNAMED, None)
    if unnamed is None:
        return
    if unnamed and unnamed != [feature]:
        raise ConfigError(f"consumes_usage is under two features, {unnamed[0]} and {feature}: name the one it consumes")
    unnamed[:] = [feature]


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))


def _named(named: list[str], function: Callable[..., Any]) -> str:
    if not named:
        raise ConfigError(
            f"{_name(function)} consumes usage of no feature: name it in consumes_usage(n, feature), "
            "or put requires_feature(feature) above"
        )
    return named[0]


def _refuse_coroutine(function: Callable[..., Any]) -> None:
    called = getattr(function, "__call__", function)  # noqa: B004 - an object whose call is a coroutine is one too
    if any(check(one) for check in (iscoroutinefunction, isasyncgenfunction) for one in (function, called)):
        raise ConfigError(
            f"{_name(function)} is an async function, and this guard is synchronous: guard a synchronous function"
        )

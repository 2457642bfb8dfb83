"""How guarded functions are called: what differs between plain functions, Django's views and Flask's."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterable, Mapping
from functools import wraps
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any, ParamSpec, Protocol, TypeAlias, TypeVar, cast

from stigg_guard.amounts import Amount
from stigg_guard.entitlements import Customer, Entitlement
from stigg_guard.errors import ConfigError
from stigg_guard.usage.consumption import Consumption
from stigg_guard.usage.keys import FileKey, Key
from stigg_guard.usage.streams import SettlingStream

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

Dimensions: TypeAlias = "Mapping[str, str | float | bool]"
OneOrComputed: TypeAlias = "T | Callable[..., T]"
HoldOpen: TypeAlias = Callable[[Iterable[Any]], SettlingStream[Any]]
Ending: TypeAlias = Callable[[bool, Any], None]
"""How what was begun before a call ends: told whether the call succeeded, and what it returned."""
Begin: TypeAlias = "Callable[..., Ending | None]"
"""What happens before a call, with the call's arguments; None when the call is not guarded."""


class Guarding(Protocol):
    """What decorators ask of a guard."""

    def require(self, feature: str, *, customer: str | Customer) -> Entitlement: ...

    def peek(self, feature: str, *, customer: str | Customer) -> Entitlement: ...

    def consume(
        self,
        feature: str | Mapping[str, Amount],
        n: Amount = 1,
        *,
        customer: str | Customer,
        event: str | None = None,
        dimensions: Dimensions | None = None,
        key: Key | None = None,
    ) -> Consumption: ...

    def occupy(
        self, feature: str | Mapping[str, Amount], n: Amount = 1, *, customer: str | Customer
    ) -> Consumption: ...

    def report_later(self, feature: str, *, customer: str | Customer) -> Callable[[Amount], None]: ...


class Calls:
    """How a guarded function is called, and what is known of a call. This one is for plain functions.

    ``guard`` is a callable, so that a decorator can stand where no guard is made yet. ``customer`` may be a callable
    of the function's arguments; the attribute always is.
    """

    def __init__(self, guard: Callable[[], Guarding], customer: OneOrComputed[str | Customer]) -> None:
        self.guard = guard
        self.customer: Callable[..., str | Customer] = customer if callable(customer) else lambda *_, **__: customer

    def applies(self, *_args: Any, **_kwargs: Any) -> bool:
        """Whether this call is guarded at all."""
        return True

    def computed(self, given: Any) -> Callable[..., Any]:
        """What was given to a decorator, a value or a callable, as a function of a call's arguments."""
        if callable(given):
            return cast("Callable[..., Any]", given)
        return lambda *_args, **_kwargs: given

    def binding(self, *_args: Any, **_kwargs: Any) -> str:
        """What a key that comes with this call is bound to, besides the amount."""
        return ""

    def settle_files(self, function: Callable[P, R], begin: Callable[[FileKey | None], Begin]) -> Callable[P, R]:
        """The function, with what is begun after each call for the file that it returned, before that is delivered."""
        raise ConfigError(f"{name_of(function)} is no view: PER_DOWNLOAD is for downloads")

    def held(self, usage: Consumption, *args: Any, **kwargs: Any) -> None:
        """Called with the units that were held for the call."""

    def settle(self, result: Any, hold_open: HoldOpen) -> tuple[Any, bool]:
        """What is returned in place of the result, and whether it is a success.

        Where the result is a stream that goes on after the call, ``hold_open(stream)`` takes its place, and the usage
        is settled when that ends.
        """
        return (hold_open(result) if isinstance(result, Generator) else result), True

    def check_first(self, function: Callable[P, R], check: Callable[..., None]) -> Callable[P, R]:
        """The function, with the check before each call."""
        _forbid_coroutine(function)

        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            check(*args, **kwargs)
            return function(*args, **kwargs)

        return checked

    def settle_after(self, function: Callable[P, R], begin: Begin) -> Callable[P, R]:
        """The function, with ``begin`` before each call, and what it began ended after it."""
        _forbid_coroutine(function)

        @wraps(function)
        def settled(*args: P.args, **kwargs: P.kwargs) -> R:
            ending = begin(*args, **kwargs)
            if ending is None:
                return function(*args, **kwargs)
            return cast(R, settled_call(lambda: function(*args, **kwargs), self.settle, ending))

        return settled


def settled_call(call: Callable[[], Any], settle: Callable[[Any, HoldOpen], tuple[Any, bool]], ending: Ending) -> Any:
    """Returns what the call returns. ``ending`` is told how it went: now, or by the stream that was held open."""
    streams: list[SettlingStream[Any]] = []

    def hold_open(stream: Iterable[Any]) -> SettlingStream[Any]:
        streams.append(SettlingStream(stream, lambda succeeded: ending(succeeded, known())))
        return streams[0]

    result: Any = None
    known: Callable[[], Any] = bool
    try:
        result = call()
        result, succeeded = settle(result, hold_open)
        known = _reference(result)
    except BaseException:
        ending(False, result)
        raise
    if not streams:
        ending(succeeded, result)
    return result


def _reference(result: Any) -> Callable[[], Any]:
    """Leads to the result, and keeps it alive only if it must: a stream that is dropped ends at once."""
    try:
        return weakref.ref(result)
    except TypeError:
        return lambda: result


def name_of(function: Callable[..., Any]) -> str:
    """The function's name, for messages."""
    return getattr(function, "__qualname__", repr(function))


def is_asynchronous(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine or an asynchronous generator."""
    called = getattr(function, "__call__", function)  # noqa: B004 - an object whose call is a coroutine is one too
    return any(check(one) for check in (iscoroutinefunction, isasyncgenfunction) for one in (function, called))


def _forbid_coroutine(function: Callable[..., Any]) -> None:
    if is_asynchronous(function):
        raise ConfigError(
            f"{name_of(function)} is an async function, and this guard is synchronous: guard a synchronous function"
        )

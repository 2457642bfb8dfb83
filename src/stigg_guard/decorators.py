"""The decorators ``requires_feature``, ``consumes_usage`` and ``releases_usage``, written once for all ``Calls``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar, get_args

from stigg_guard.amounts import Amount, usage_amount
from stigg_guard.calls import Begin, Calls, Dimensions, Ending, OneOrComputed, name_of
from stigg_guard.entitlements import require_id
from stigg_guard.errors import ConfigError, UsageRepeated
from stigg_guard.runtime.log import logger
from stigg_guard.usage.consumption import Consumption
from stigg_guard.usage.keys import PER_DOWNLOAD, BoundKey, FileKey, PerDownload

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

KeyOfCall: TypeAlias = "Callable[..., str | None] | PerDownload"
"""Finds the key of a call, or says that views are called for downloads."""
OnRepeat: TypeAlias = Literal["refuse", "run"]
"""Whether a function is refused or run when the use with its key was counted before."""
_UNNAMED = "_stigg_guard_feature"
_CONSUMES = "_stigg_guard_consumes"


def requires_feature(feature: str, *, calls: Calls) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Calls the function only if the customer may use the feature, else raises what :meth:`Guard.require` raises.

    A ``consumes_usage`` below that names no feature consumes this one.
    """
    check = feature_check(feature, calls=calls)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        _name_below(function, feature)
        return calls.check_first(function, check)

    return decorate


def feature_check(feature: str, *, calls: Calls) -> Callable[..., None]:
    """What ``requires_feature`` does before a call, given the call's arguments."""
    if callable(feature):
        raise ConfigError(
            f'{name_of(feature)} is no feature id: write @requires_feature("feature-id"), with parentheses'
        )
    require_id(feature, "feature_id")

    def check(*args: Any, **kwargs: Any) -> None:
        if calls.applies(*args, **kwargs):
            calls.guard().require(feature, customer=calls.customer(*args, **kwargs))

    return check


def consumes_usage(
    n: OneOrComputed[Amount],
    feature: str | None = None,
    *,
    calls: Calls,
    event: str | None = None,
    dimensions: OneOrComputed[Dimensions] | None = None,
    actual: Callable[[Any], Amount] | None = None,
    key: KeyOfCall | None = None,
    on_repeat: OnRepeat = "refuse",
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Holds ``n`` units while the function runs, reports them when it succeeds and gives them back when it does not.

    ``n`` and ``dimensions`` may be callables, as ``calls`` has it. Without ``feature`` it is that of the
    ``requires_feature`` above. With ``event`` the use is reported as a raw event with these dimensions. ``actual`` says
    of the result how many units are reported in place of those held.

    ``key`` is a callable as well. Calls with the same key within a day count once; with None it is an ordinary use.
    One whose use was counted is refused with ``UsageRepeated``, or it runs and nothing is counted. ``PER_DOWNLOAD``
    makes the ranges of a file one use, which begins when the view has answered.

    Raises:
        InvalidRequest: ``n`` is a number, and negative or not finite. As a callable it is judged at each call. Or the
            feature's id is empty.
        ConfigError: ``key`` is a text, or ``on_repeat`` is neither ``"refuse"`` nor ``"run"``.
    """
    if not (key is None or key is PER_DOWNLOAD or callable(key)):
        raise ConfigError(f"key is a callable that finds the key of a call, not {key!r}, which all calls would share")
    if on_repeat not in get_args(OnRepeat):
        raise ConfigError(f'on_repeat is "refuse" or "run", not {on_repeat!r}')
    if feature is not None:
        require_id(feature, "feature_id")
    if not callable(n):
        usage_amount(n)
    calls.computed(n)  # it raises at once for what cannot be called with a request

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        named: list[str] = [feature] if feature is not None else []
        hold = partial(
            usage_hold,
            n,
            lambda: _named(named, function),
            calls=calls,
            event=event,
            dimensions=dimensions,
            actual=actual,
        )
        if key is PER_DOWNLOAD:
            consuming = calls.settle_files(function, lambda file: hold(key=file, on_repeat="run"))
        else:
            consuming = calls.settle_after(function, hold(key=key, on_repeat=on_repeat))
        if feature is None:
            setattr(consuming, _UNNAMED, named)
        setattr(consuming, _CONSUMES, (consuming, named))
        return consuming

    return decorate


def consumed_features(function: Callable[..., Any]) -> Sequence[str] | None:
    """What the function itself consumes as a guard, and nothing that it wraps, whose attributes it may carry: one
    feature, or none where its ``consumes_usage`` and what stands above name none. None if it is no such guard."""
    consuming, named = getattr(function, _CONSUMES, (None, None))
    return named if consuming is function else None


def usage_hold(
    n: OneOrComputed[Amount],
    feature: Callable[[], str],
    *,
    calls: Calls,
    event: str | None = None,
    dimensions: OneOrComputed[Dimensions] | None = None,
    actual: Callable[[Any], Amount] | None = None,
    key: Callable[..., str | None] | FileKey | None = None,
    on_repeat: OnRepeat = "refuse",
) -> Begin:
    """What ``consumes_usage`` does before a call, with ``feature`` asked at each call."""
    computed_n, computed_dimensions, computed_key = map(calls.computed, (n, dimensions, key))

    def begin(*args: Any, **kwargs: Any) -> Ending | None:
        if not calls.applies(*args, **kwargs):
            return None
        amount, told = _amount(computed_n(*args, **kwargs)), computed_key(*args, **kwargs)
        usage = calls.guard().consume(
            feature(),
            amount,
            customer=calls.customer(*args, **kwargs),
            event=event,
            dimensions=computed_dimensions(*args, **kwargs),
            key=BoundKey(told, f"{amount} {calls.binding(*args, **kwargs)}") if isinstance(told, str) else told,
        )
        usage.__enter__()
        if usage.is_repeat and on_repeat == "refuse":
            raise UsageRepeated
        return _held(usage, partial(calls.held, usage, *args, **kwargs), actual)

    return begin


def occupies(feature: str, n: OneOrComputed[Amount] = 1, *, calls: Calls) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Holds ``n`` units while the function runs and gives them back, however it ends: a limit of how many at once.

    ``n`` may be a callable, as ``calls`` has it.

    Raises:
        InvalidRequest: ``n`` is a number, and negative or not finite. Or the feature's id is empty.
    """
    require_id(feature, "feature_id")
    if not callable(n):
        usage_amount(n)
    computed_n = calls.computed(n)

    def begin(*args: Any, **kwargs: Any) -> Ending | None:
        if not calls.applies(*args, **kwargs):
            return None
        amount = _amount(computed_n(*args, **kwargs))
        usage = calls.guard().occupy(feature, amount, customer=calls.customer(*args, **kwargs))
        usage.__enter__()
        return _held(usage, partial(calls.held, usage, *args, **kwargs), None)

    return lambda function: calls.settle_after(function, begin)


def releases_usage(
    n: OneOrComputed[Amount], feature: str, *, calls: Calls, actual: Callable[[Any], Amount] | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Gives ``n`` units of a fluctuating feature back when the function succeeds, with the ledger's durability.

    The arguments are those of :func:`consumes_usage`; ``n`` is how many units are given back, not negative, and
    ``actual`` says of the result how many are given back in place of them.
    """
    require_id(feature, "feature_id")
    if not callable(n):
        usage_amount(n)
    computed_n = calls.computed(n)

    def begin(*args: Any, **kwargs: Any) -> Ending | None:
        if not calls.applies(*args, **kwargs):
            return None
        amount = usage_amount(_amount(computed_n(*args, **kwargs)))
        report = calls.guard().report_later(feature, customer=calls.customer(*args, **kwargs))

        def end(succeeded: bool, result: Any) -> None:
            if succeeded:
                report(-_counted(actual, result, amount))

        return end

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        return calls.settle_after(function, begin)

    return decorate


def _amount(computed: Any) -> Any:
    """What was computed as an amount. Text is an error, and whoever computed it is told why."""
    if isinstance(computed, (str, bytes)):
        logger.warning("n is computed as the text %r, where an amount is due: convert it, as by int()", computed)
    return computed


def _held(usage: Consumption, tell: Callable[[], None], actual: Callable[[Any], Amount] | None) -> Ending:
    """Tells of a hold; how it ends."""
    try:
        tell()
        return ending_of(usage, actual)
    except BaseException:
        usage.cancel()
        raise


def ending_of(usage: Consumption, actual: Callable[[Any], Amount] | None) -> Ending:
    """How a hold ends: what ``actual`` says of the result is reported in place of the units held."""

    def end(succeeded: bool, result: Any) -> None:
        try:
            if succeeded and actual is not None:
                usage.amount = _counted(actual, result, usage.amount)
            usage.end(succeeded)
        except BaseException:
            usage.cancel()  # unless its end had begun
            raise

    return end


def _counted(actual: Callable[[Any], Amount] | None, result: Any, n: float) -> float:
    """How many units ``actual`` says of the result, else ``n``. The work is done and delivered: a wrong count of it is
    told, and does not undo it."""
    if actual is None:
        return n
    try:
        return usage_amount(actual(result))
    except Exception:  # it is the application's own code, which may raise anything
        logger.exception("what was really used cannot be told, so it counts as %g units", n)
        return n


def _name_below(function: Callable[..., Any], feature: str) -> None:
    """Tells the ``consumes_usage`` below which feature it consumes; decorators between them carry its attribute up."""
    unnamed = getattr(function, _UNNAMED, None)
    if unnamed is None:
        return
    if unnamed and unnamed != [feature]:
        raise ConfigError(f"consumes_usage is under two features, {unnamed[0]} and {feature}: name the one it consumes")
    unnamed[:] = [feature]


def _named(named: list[str], function: Callable[..., Any]) -> str:
    if not named:
        raise ConfigError(
            f"{name_of(function)} consumes usage of no feature: name it in consumes_usage(n, feature), "
            "or put requires_feature(feature) above"
        )
    return named[0]

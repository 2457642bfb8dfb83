"""Overrides entitlements in tests: customers have what the test says, and no sidecar runs.

::

    with override_entitlements({"feature-sso": True, "feature-templates": {"limit": 3}}) as stigg:
        create_template()
        assert stigg.usage("feature-templates") == 1

Named in ``pytest_plugins`` it is a plugin with the fixtures ``stigg`` and ``assert_usage_reported``. A conftest may
import from it first, so pytest must not want to rewrite its assertions: PYTEST_DONT_REWRITE.
"""

from __future__ import annotations

import sys
import unittest
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from inspect import getattr_static, isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from types import FunctionType
from typing import Any, TypeVar, cast

from stigg_guard.errors import ConfigError, RealLedgerWarning
from stigg_guard.sidecar.one_plan import Given, parse_plan
from stigg_guard.testing.stand_in import SOURCE, Report, StandIn, standing_in

__all__ = ["Override", "RealLedgerWarning", "Report", "StandIn", "override_entitlements"]

T = TypeVar("T", bound=Callable[..., Any])

_GIVEN = "_stigg_guard_entitlements"
_MARKS_OF_FIXTURES = ("_fixture_function_marker", "_pytestfixturefunction")  # of pytest 8.4, and of those before it


def override_entitlements(entitlements: Mapping[str, Any]) -> Override:
    """Overrides what every customer has, by feature id, for a block, a function or each test of a class.

    A value is what a catalog says of a plan's entitlement: ``True``; ``{"value": 100}``, or just the number;
    ``{"values": ["eu"]}``, or just the list; ``{"limit": 6}`` or ``{"unlimited": True}``, with ``reset``, ``soft`` and
    the ``usage`` that each customer has to begin with. ``False`` is a feature that the plan lacks, as are those that
    are not named. Currencies are not among them: nobody has credits.

    Meanwhile every guard of the process, in all threads, answers from this, whatever its configuration says, reports
    before it returns, and asks no sidecar; what its transactions and its observer decide, they do. Overrides within
    one another are merged, and the inner one wins; when that ends, usage and time are as they were before it.

    Raises:
        ConfigError: a value is wrong; the message names every one.
    """
    return Override(parse_plan(entitlements, source=SOURCE))


class Override:
    """An override that is still to begin: a context manager, and a decorator of functions and of test classes.

    A class is a ``unittest.TestCase``, all of whose tests run within it, ``setUp`` and ``tearDown`` included, or a
    plain one, of whose methods those named ``test…`` do.
    """

    def __init__(self, given: Mapping[str, Given]) -> None:
        self._given = given
        self._entered: list[AbstractContextManager[StandIn]] = []

    def __enter__(self) -> StandIn:
        self._entered.append(standing_in(self._given))
        return self._entered[-1].__enter__()

    def __exit__(self, *error: Any) -> None:
        self._entered.pop().__exit__(*error)

    def __call__(self, decorated: T) -> T:
        """The function or the class, to run within the override.

        Raises:
            ConfigError: it is a generator function, whose body runs when the call is over, or a class without tests.
        """
        if isinstance(decorated, type):
            _decorate_class(decorated, self._given)
            return decorated
        return _within(lambda *_: standing_in(self._given), decorated)


def _within(begin: Callable[..., AbstractContextManager[StandIn]], function: T) -> T:
    """The function, within what ``begin`` makes of a call's arguments."""
    if any(hasattr(function, mark) for mark in _MARKS_OF_FIXTURES):
        raise ConfigError(
            f"override_entitlements stands above the fixture {function.__name__} and would hide it: put "
            "'with override_entitlements(…):' into it"
        )
    if isgeneratorfunction(function) or isasyncgenfunction(function):
        raise ConfigError(
            f"{function.__qualname__} is a generator, which runs after its call: put "
            "'with override_entitlements(…):' into it"
        )

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        with begin(*args):
            return function(*args, **kwargs)

    @wraps(function)
    async def awaited(*args: Any, **kwargs: Any) -> Any:
        with begin(*args):
            return await function(*args, **kwargs)

    return cast(T, awaited if iscoroutinefunction(function) else called)


def _decorate_class(decorated: type, given: Mapping[str, Given]) -> None:
    """Puts the class's tests within the override: those of the classes it derives from too, on top of their own."""
    setattr(decorated, _GIVEN, {**getattr(decorated, _GIVEN, {}), **given})
    names = ("run", "debug") if issubclass(decorated, unittest.TestCase) else _test_methods(decorated)
    if not names:
        raise ConfigError(f"{decorated.__name__} has no test methods: decorate the class that has them")
    for name in names:
        method = getattr_static(decorated, name)
        function = getattr(method, "__func__", method)
        if isinstance(method, staticmethod):  # it is not told of which class it is the test
            own = getattr(function, "__wrapped__", function) if hasattr(function, _GIVEN) else function
            setattr(decorated, name, staticmethod(_marked(_within(lambda *_: standing_in(_given(decorated)), own))))
        elif not hasattr(function, _GIVEN):
            within = _marked(_within(lambda test, *_: standing_in(_given(test)), function))
            setattr(decorated, name, within if method is function else classmethod(within))


def _given(test: Any) -> Mapping[str, Given]:
    """What the class of a test, or the class itself, is decorated with."""
    given: Mapping[str, Given] = getattr(test, _GIVEN)
    return given


def _marked(within: T) -> T:
    """The test, which is not decorated again where it is inherited."""
    setattr(within, _GIVEN, True)
    return within


def _test_methods(decorated: type) -> Sequence[str]:
    names = [name for name in dir(decorated) if name.startswith("test")]
    kinds = (FunctionType, staticmethod, classmethod)
    return [name for name in names if isinstance(getattr_static(decorated, name), kinds)]


if "pytest" in sys.modules:  # who runs tests by other means needs no pytest
    import pytest

    @pytest.fixture
    def stigg() -> Iterator[StandIn]:
        """An override of all entitlements, in which customers have nothing but what the test gives them."""
        with override_entitlements({}) as stand_in:
            yield stand_in

    @pytest.fixture
    def assert_usage_reported(stigg: StandIn) -> Callable[..., None]:
        """``assert_usage_reported("feature-id", 2, customer="customer-id")``"""
        return stigg.assert_usage_reported

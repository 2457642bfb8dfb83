"""What an override can stand above: functions, tests, test cases and classes, and what it refuses."""

from __future__ import annotations

import asyncio
import unittest
from collections.abc import Iterator
from typing import Any

import pytest

from stigg_guard import ConfigError, FeatureDenied, Guard
from stigg_guard.testing import StandIn, override_entitlements
from testing.guards import ACME, use, used

pytest_plugins = ["stigg_guard.testing"]


def test_a_function_runs_within_the_override_each_time_it_is_called(unreachable: Guard) -> None:
    @override_entitlements({"t": {"limit": 1}})
    def work(amount: int) -> float:
        """Works."""
        use(unreachable, "t", amount)
        return used(unreachable, "t")

    assert [work(1), work(1)] == [1, 1]
    assert work.__doc__ == "Works."
    with pytest.raises(FeatureDenied):
        work(2)


@override_entitlements({"f": True})
def test_a_decorated_test_has_its_fixtures_and_changes_what_it_runs_in(unreachable: Guard, stigg: StandIn) -> None:
    stigg.set({"t": {"limit": 1}})
    assert unreachable.check("f", customer=ACME)
    assert unreachable.check("t", customer=ACME)


def test_an_async_function_runs_within_the_override_to_its_end(unreachable: Guard) -> None:
    @override_entitlements({"f": True})
    async def work() -> bool:
        await asyncio.sleep(0)  # one turn of the loop: the function is not done when it is called
        return bool(unreachable.check("f", customer=ACME))

    assert asyncio.run(work())


def test_a_generator_function_is_refused_since_it_runs_after_its_call() -> None:
    def work() -> Iterator[None]:
        yield

    with pytest.raises(ConfigError, match="is a generator"):
        override_entitlements({})(work)


def test_a_fixture_is_refused_since_pytest_would_not_find_it() -> None:
    @pytest.fixture
    def made() -> None: ...

    with pytest.raises(ConfigError, match="stands above the fixture made and would hide it"):
        override_entitlements({})(made)


def results_of(case: type[unittest.TestCase]) -> unittest.TestResult:
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    return result


def test_a_test_case_runs_each_test_within_an_override_of_its_own(unreachable: Guard) -> None:
    @override_entitlements({"t": {"limit": 2}})
    class Case(unittest.TestCase):
        def setUp(self) -> None:
            use(unreachable, "t")

        def test_one(self) -> None:
            assert used(unreachable, "t") == 1
            use(unreachable, "t")

        test_other = test_one

        @override_entitlements({"t": {"limit": 5}})
        def test_with_its_own(self) -> None:
            assert unreachable.check("t", customer=ACME).remaining == 4

        def tearDown(self) -> None:
            assert unreachable.entitlements(ACME)

    result = results_of(Case)
    assert (result.testsRun, result.errors, result.failures) == (3, [], [])


def test_an_async_test_case_runs_within_the_override(unreachable: Guard) -> None:
    @override_entitlements({"f": True})
    class Case(unittest.IsolatedAsyncioTestCase):
        async def test_it(self) -> None:
            assert unreachable.check("f", customer=ACME)

    assert results_of(Case).wasSuccessful()


def test_a_derived_test_case_adds_to_the_entitlements_of_its_base(unreachable: Guard) -> None:
    @override_entitlements({"f": True, "n": 1})
    class Base(unittest.TestCase):
        expected = 1

        def test_it(self) -> None:
            assert unreachable.check("f", customer=ACME)
            assert unreachable.check("n", customer=ACME).value == self.expected

    @override_entitlements({"n": 2})
    class Derived(Base):
        expected = 2

    assert results_of(Base).wasSuccessful()
    assert results_of(Derived).wasSuccessful()


@override_entitlements({"f": True, "n": 1})
class TestPlainClass:
    number = 1

    def test_the_methods_of_a_plain_class_run_within_the_override(self, unreachable: Guard) -> None:
        assert unreachable.check("f", customer=ACME)
        assert unreachable.check("n", customer=ACME).value == self.number

    @staticmethod
    def test_static_ones_do_too(unreachable: Guard) -> None:
        assert unreachable.check("n", customer=ACME).value == 1

    @classmethod
    def test_those_of_the_class_do_too(cls, unreachable: Guard) -> None:
        assert unreachable.check("n", customer=ACME).value == cls.number


@override_entitlements({"n": 2})
class TestDerivedPlainClass(TestPlainClass):
    number = 2

    @staticmethod
    def test_static_ones_do_too(unreachable: Guard) -> None:
        assert unreachable.check("n", customer=ACME).value == 2


@override_entitlements({"n": 1})
class TestStatic:
    @staticmethod
    def test_an_inherited_static_test_has_what_its_class_is_given(unreachable: Guard, request: Any) -> None:
        assert unreachable.check("n", customer=ACME).value == (2 if request.cls is TestInheritedStatic else 1)


@override_entitlements({"n": 2})
class TestInheritedStatic(TestStatic):
    pass


def test_a_class_without_tests_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no test methods"):

        @override_entitlements({})
        class Nothing:
            pass

"""Observers are called once when usage reaches a part of its limit, whoever reports it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from stigg_guard import Config, ConfigError, Customer, Entitlement, Guard
from stigg_guard.observer import Observer
from usage.outage import MakeGuard, Outage


class Watcher(Observer):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, float, float]] = []

    def threshold_reached(self, customer: Customer, feature: str, part: float, entitlement: Entitlement) -> None:
        self.told.append((str(customer), feature, part, entitlement.current_usage))


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


@pytest.fixture
def guard(make_guard: MakeGuard, watcher: Watcher) -> Guard:
    made = make_guard(THRESHOLDS=[1.0, 0.8], REPORT="inline")
    made.observe(watcher)
    return made


def use(guard: Guard, n: float, feature: str = "seats") -> None:
    with guard.consume(feature, n, customer="c"):
        pass


def test_each_is_told_of_when_usage_comes_to_it(guard: Guard, watcher: Watcher) -> None:
    use(guard, 7)
    assert watcher.told == []
    use(guard, 1)
    assert watcher.told == [("c", "seats", 0.8, 8)]
    use(guard, 1)
    use(guard, 1)
    assert watcher.told == [("c", "seats", 0.8, 8), ("c", "seats", 1.0, 10)]


def test_several_are_told_of_at_once_in_order(guard: Guard, watcher: Watcher) -> None:
    use(guard, 10)
    assert [part for _, _, part, _ in watcher.told] == [0.8, 1.0]


def test_what_falls_below_comes_to_it_again(guard: Guard, watcher: Watcher) -> None:
    use(guard, 8)
    guard.report("seats", -3, customer="c")
    use(guard, 2)
    assert watcher.told == [("c", "seats", 0.8, 8)]
    use(guard, 1)
    assert watcher.told == [("c", "seats", 0.8, 8)] * 2


def test_a_total_that_is_set_is_not_judged(guard: Guard, watcher: Watcher) -> None:
    guard.report("seats", 9, customer="c", set_total=True)
    assert watcher.told == []


def test_of_several_guards_one_tells(make_guard: MakeGuard, watcher: Watcher) -> None:
    guards = [make_guard(THRESHOLDS=0.5, REPORT="inline") for _ in range(4)]
    for guard in guards:
        guard.observe(watcher)
    with ThreadPoolExecutor(4) as threads:
        for guard in guards * 20:
            threads.submit(use, guard, 1, "tokens")
    assert sum(guard.flush() for guard in guards) == 0
    assert [(feature, part) for _, feature, part, _ in watcher.told] == [("tokens", 0.5)]
    assert 50 <= watcher.told[0][3] <= 80


def test_an_outage_in_between_changes_nothing(guard: Guard, watcher: Watcher, outage: Outage) -> None:
    use(guard, 1)
    outage.begin()
    use(guard, 8)
    assert watcher.told == []
    outage.end()
    assert guard.flush(30) == 0
    assert [part for _, _, part, _ in watcher.told] == [0.8]


@pytest.mark.parametrize("told", ["[0.8, 1]", [1, 0.8], (0.8, 1.0)])
def test_they_are_a_setting(told: object) -> None:
    assert Config.from_mapping({"THRESHOLDS": told}).thresholds == (0.8, 1.0)


@pytest.mark.parametrize("told", [[0], [-1], ["much"], [float("nan")], "[", [True], {"a": 1}])
def test_what_is_no_part_of_a_limit_is_refused(told: object) -> None:
    with pytest.raises(ConfigError, match="THRESHOLDS"):
        Config.from_mapping({"THRESHOLDS": told})

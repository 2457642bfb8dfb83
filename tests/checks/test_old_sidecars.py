"""Sidecars that do not know every question, and servers that are none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest

from conftest import ManualClock
from faulty_sidecar import FaultySidecar
from stigg_guard import Config, Fallback, Guard, NotSupported, Source

V2, LISTS = {"GetEntitlementsStateV2"}, {"GetEntitlementsStateV2", "GetEntitlements"}
EVERYTHING = {*LISTS, "GetEntitlementV2", "GetEntitlement"}


@pytest.fixture
def new_guard(faulty: FaultySidecar, clock: ManualClock) -> Iterator[Callable[..., Guard]]:
    made = []

    def new(**settings: Any) -> Guard:
        made.append(Guard(Config(sidecar=faulty.address, ledger="memory://", **settings), clock=clock.clock))
        return made[-1]

    yield new
    for guard in made:
        guard.close()


@pytest.mark.parametrize("without", [V2, LISTS, {*LISTS, "GetEntitlementV2"}])
def test_an_old_sidecar_answers_what_it_knows(
    new_guard: Callable[..., Guard], faulty: FaultySidecar, without: set[str]
) -> None:
    faulty.without = without
    answer = new_guard().check("f", customer="c", requested_usage=100)
    assert (bool(answer), answer.source, answer.usage_limit) == (True, Source.SIDECAR, 100)


def test_what_answers_no_question_is_an_outage(new_guard: Callable[..., Guard], faulty: FaultySidecar) -> None:
    faulty.without = EVERYTHING
    assert new_guard().check("f", customer="c", fallback=Fallback(True)).is_fallback
    answers = [new_guard(on_outage=policy).check("f", customer="c") for policy in ("allow", "deny")]
    assert [(bool(answer), answer.source) for answer in answers] == [(True, Source.FALLBACK), (False, Source.FALLBACK)]
    with pytest.raises(NotSupported):
        new_guard().check("f", customer="c")


def test_what_an_old_sidecar_does_not_answer_of_a_feature_is_an_outage(
    new_guard: Callable[..., Guard], faulty: FaultySidecar
) -> None:
    faulty.without, faulty.unreadable = LISTS, {"f"}
    assert new_guard(on_outage="allow").check("f", customer="c").is_fallback


def test_a_sidecar_in_the_place_of_what_answered_nothing_is_asked_for_all(
    new_guard: Callable[..., Guard], faulty: FaultySidecar, clock: ManualClock
) -> None:
    guard = new_guard(on_outage="allow")
    faulty.without = EVERYTHING
    assert guard.check("f", customer="c").is_fallback
    faulty.without = set()
    clock.advance(31)
    assert guard.entitlements("c").keys() == {"f", "g"}


def test_what_was_known_answers_while_no_question_is(
    new_guard: Callable[..., Guard], faulty: FaultySidecar, clock: ManualClock
) -> None:
    guard = new_guard()
    guard.check("f", customer="c")
    faulty.without = EVERYTHING
    clock.advance(31)
    assert guard.check("f", customer="c").source is Source.STALE
    assert guard.entitlements("c").keys() == {"f", "g"}


def test_an_old_sidecar_that_many_ask_at_once_is_asked_for_its_list(
    new_guard: Callable[..., Guard], faulty: FaultySidecar
) -> None:
    faulty.without = V2
    together = Barrier(8)

    def keys(guard: Guard, number: int) -> set[str]:
        together.wait(30)
        return set(guard.entitlements("c" if number % 2 else "nobody"))

    with ThreadPoolExecutor(8) as threads:
        for _ in range(10):
            guard = new_guard()
            list(threads.map(keys, [guard] * 8, range(8)))
            assert guard.entitlements("c").keys() == {"f", "g"}


def test_a_sidecar_in_the_place_of_an_older_one_is_asked_for_its_own_list(
    new_guard: Callable[..., Guard], faulty: FaultySidecar, clock: ManualClock
) -> None:
    guard = new_guard()
    faulty.without = V2
    assert guard.entitlements("c").keys() == {"f", "g"}
    faulty.without = {"GetEntitlements"}
    with pytest.raises(NotSupported):
        guard.entitlements("d")
    clock.advance(1)
    assert guard.entitlements("d").keys() == {"f", "g"}


@pytest.mark.parametrize("fallback", [None, Fallback(True)])
def test_a_fallback_hides_no_sidecar_in_the_place_of_what_answered_nothing(
    new_guard: Callable[..., Guard], faulty: FaultySidecar, clock: ManualClock, fallback: Fallback | None
) -> None:
    guard = new_guard(on_outage="allow")
    faulty.without = EVERYTHING
    assert guard.check("f", customer="c", fallback=fallback).is_fallback
    faulty.without = set()
    clock.advance(31)
    assert guard.entitlements("c").keys() == {"f", "g"}

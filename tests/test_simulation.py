"""The system at random, on the ledger in plain words and on a real one: nothing is oversold, lost or counted twice, and
``consume`` allows what ``check`` does."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from simulation.mutants import MUTANTS
from simulation.world import World
from stigg_guard import Clock
from stigg_guard.ledger import Ledger, accounting
from stigg_guard.ledger.sqlite import SqliteLedger

FOUND_BY = {
    "an older snapshot decides by its own limit": 38,
    "there is no grace": 7,
    "every newer snapshot may lower": 6,
    "another period moves the row at once": 131,
    "what was added is forgotten with the period": 237,
    "the later period is the present one": 1,
    "an answer of another period is ignored": 135,
    "an answer without a figure adds nothing": 7,
    "usage on its way counts by its period": 4,
    "the time of a use is what a clock says": 6,
    "reading back compares with the row of now": 88,
    "uses of different periods are one report": 9,
}
"""The seed of a run in which a simpler rule fails."""


def in_memory(clock: Clock, settle_grace: float, _read: Callable[[], int]) -> Ledger:
    return SqliteLedger(None, clock, settle_grace=settle_grace)


@pytest.mark.parametrize("seed", range(20))
def test_the_rules_hold(seed: int) -> None:
    assert World(seed, shown="both").run(1000) is None


@pytest.mark.parametrize("shown", ["start", "end", "none"])
def test_they_hold_where_an_end_of_periods_is_not_shown(shown: str) -> None:
    assert [World(seed, shown=shown, clocks=0).run(1000) for seed in range(5)] == [None] * 5


@pytest.mark.parametrize("leaps", [0.0, 0.1])
@pytest.mark.parametrize("seed", range(5))
def test_a_real_ledger_keeps_them(seed: int, leaps: float) -> None:
    world = World(seed, in_memory, shown="both", leaps=leaps)
    assert world.run(500) is None
    world.ledger.close()


@pytest.mark.parametrize("rule", MUTANTS)
def test_a_simpler_rule_is_found_out(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = FOUND_BY[rule]
    assert World(seed, shown="both").run(1000) is None
    monkeypatch.setattr(accounting, *MUTANTS[rule])
    assert World(seed, shown="both").run(1000) is not None

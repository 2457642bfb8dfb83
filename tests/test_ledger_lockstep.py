"""All homes of the ledger give equal answers to one random program of steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockstep import GRACE, Lockstep, LockstepClock
from stigg_guard.ledger.sqlite import SqliteLedger
from stigg_guard.urls import LedgerFile


@pytest.mark.parametrize("seed", range(3))
def test_equal(seed: int, tmp_path: Path) -> None:
    clock = LockstepClock()
    ledgers = {
        "memory": SqliteLedger(None, clock.clock, settle_grace=GRACE),
        "file": SqliteLedger(LedgerFile(str(tmp_path / "l.db")), clock.clock, settle_grace=GRACE),
    }
    run = Lockstep(ledgers, clock, seed)
    for _ in range(1500):
        run.step()
    for ledger in ledgers.values():
        ledger.close()

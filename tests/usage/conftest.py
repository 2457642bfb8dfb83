"""A real sidecar, a ledger in a file, and guards over both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ManualClock
from stigg_guard import Config, Guard
from stigg_guard.sidecar.catalog import parse_catalog
from stigg_guard.sidecar.store import Store
from usage.outage import CATALOG, MakeGuard, Outage, WatchedEngine


@pytest.fixture
def engine(clock: ManualClock) -> Iterator[WatchedEngine]:
    made = WatchedEngine(parse_catalog(CATALOG), Store(None), now=clock.now)
    yield made
    made.close()


@pytest.fixture
def outage(engine: WatchedEngine, clock: ManualClock) -> Iterator[Outage]:
    made = Outage(engine, clock)
    yield made
    made.begin()


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite3"


@pytest.fixture
def make_guard(outage: Outage, ledger: Path, clock: ManualClock) -> Iterator[MakeGuard]:
    made: list[Guard] = []

    def make(**settings: object) -> Guard:
        given = {**outage.settings, "LEDGER": f"sqlite:///{ledger}", "TIMEOUT": 10, **settings}
        made.append(Guard(Config.from_mapping(given), clock=clock.clock))
        return made[-1]

    yield make
    for guard in made:
        guard.close()


@pytest.fixture
def guard(make_guard: MakeGuard) -> Guard:
    return make_guard()

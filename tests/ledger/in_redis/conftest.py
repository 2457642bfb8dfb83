"""A Redis that tests share, one that a test may kill, and ledgers in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from redis_server import RedisServer
from stigg_guard.clock import Clock
from stigg_guard.ledger.redis import RedisLedger

Make = Callable[[str], RedisLedger]


@pytest.fixture
def server(redis_server: RedisServer) -> RedisServer:
    redis_server.client.flushall()
    return redis_server


@pytest.fixture
def patient_url(server: RedisServer) -> str:
    return f"{server.url}?socket_timeout=30"  # a busy machine is no outage


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that the test may kill."""
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture
def make_ledger() -> Iterator[Make]:
    made: list[RedisLedger] = []

    def make(url: str) -> RedisLedger:
        made.append(RedisLedger(url, Clock()))
        return made[-1]

    yield make
    for ledger in made:
        ledger.close()


@pytest.fixture
def ledger(make_ledger: Make, patient_url: str) -> RedisLedger:
    return make_ledger(patient_url)

"""Ledgers in each of their homes, on a clock that is set by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ManualClock
from django_databases import open_ledger
from ledger.steps import FIRST, WAIT, Make
from redis_server import RedisNodes, RedisServer, redis_nodes
from stigg_guard.ledger import Ledger


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    redis_server.client.flushall()
    return f"{redis_server.url}?socket_timeout={WAIT}"  # a busy machine is no outage


@pytest.fixture(scope="session")
def redis_masters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisNodes]:
    with redis_nodes(tmp_path_factory.mktemp("masters")) as nodes:
        yield nodes


@pytest.fixture
def redis_cluster_url(redis_masters: RedisNodes) -> str:
    redis_masters.flush()
    return f"{redis_masters.url}?socket_timeout={WAIT}"


@pytest.fixture
def memory_url() -> str:
    return "memory://"


@pytest.fixture
def django_sqlite_url(django_sqlite: str) -> str:
    return f"django://{django_sqlite}"


@pytest.fixture
def django_postgres_url(django_postgres: str) -> str:
    return f"django://{django_postgres}"


HOMES = ("memory_url", "file_url", "redis_url", "redis_cluster_url", "django_sqlite_url", "django_postgres_url")


@pytest.fixture(params=HOMES)
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def make_ledger(clock: ManualClock) -> Iterator[Make]:
    made: list[Ledger] = []

    def make(url: str, settle_grace: float = 0) -> Ledger:
        made.append(open_ledger(url, clock.clock, settle_grace=settle_grace))
        return made[-1]

    yield make
    for ledger in made:
        ledger.close()


@pytest.fixture
def ledger(make_ledger: Make, url: str) -> Ledger:
    ledger = make_ledger(url)
    assert ledger.ticket("ann").number >= FIRST.number  # and all that follow are newer than it
    return ledger

"""A real Redis, guards that share their snapshots through it, and the shared snapshots as one process sees them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cache.workers import MakeGuard, Room
from conftest import ManualClock
from redis_server import RedisServer
from stigg_guard import Clock


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path, durable=False) as server:
        yield server


@pytest.fixture
def make_worker(redis: RedisServer, make_guard: MakeGuard) -> MakeGuard:
    """Makes guards that share the Redis as the processes of an application do."""
    return lambda **given: make_guard(**{"CACHE": redis.url, "LEDGER": "memory://", **given})


@pytest.fixture
def frozen(redis: RedisServer) -> Iterator[None]:
    """Redis is stopped and not dead: it takes connections and answers nothing."""
    pid = redis.client.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    yield
    os.kill(pid, signal.SIGCONT)


@pytest.fixture
def make_room(redis: RedisServer, clock: ManualClock) -> Iterator[Callable[..., Room]]:
    made: list[Room] = []

    def make(time: Clock = clock.clock, **given: object) -> Room:
        made.append(Room(redis.url, time, **given))
        return made[-1]

    yield make
    for room in made:
        room.snapshots.close()


@pytest.fixture
def room(make_room: Callable[..., Room]) -> Room:
    return make_room()

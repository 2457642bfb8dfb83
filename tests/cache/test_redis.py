"""Snapshots shared through a real Redis: who finds which, who hears of news, and what a Redis that fails costs."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from cache.workers import (
    ANN,
    CHANNEL,
    CUSTOMER,
    KEY,
    NOBODY_LISTENS,
    PATIENCE,
    TEMPLATES,
    MakeGuard,
    Room,
    evals,
    fetched,
    usage,
)
from conftest import ManualClock
from redis_server import RedisServer
from stigg_guard import Clock, Config, ConfigError, Customer, Guard, Source
from stigg_guard.cache.redis_snapshots import REST_SECONDS
from stigg_guard.cache.snapshots import NO_TICKET, Snapshot
from stigg_guard.cache.ttl_cache import SnapshotCache
from stigg_guard.clock import microseconds
from stigg_guard.ledger import Ticket


class TestRoom:
    def test_snapshot_is_found_as_it_was_stored_with_the_time_of_its_fetch(
        self, make_room: Callable[..., Room], clock: ManualClock
    ) -> None:
        one, other = make_room(), make_room()
        begun_at = clock.now().timestamp()
        assert one.store(fetched(one.stamp(), used=4))
        clock.advance(7)
        found = other.find()
        assert found is not None
        assert usage(found) == 4
        assert found.begun_at == pytest.approx(begun_at, abs=0.001)
        assert clock.monotonic() - found.fetched_at == pytest.approx(7, abs=0.001)

    def test_without_an_injected_clock_the_server_tells_the_time(
        self, make_room: Callable[..., Room], redis: RedisServer
    ) -> None:
        room = make_room(Clock())
        seconds, _ = redis.client.time()
        stamp = room.stamp()
        assert 0 <= stamp / 1e6 - seconds < PATIENCE
        room.store(fetched(stamp))
        assert usage(room.find()) == 3

    def test_older_snapshot_does_not_replace_a_newer_one(self, room: Room, clock: ManualClock) -> None:
        older = fetched(room.stamp(), used=1)
        clock.advance(1)
        assert room.store(fetched(room.stamp(), used=2))
        assert not room.store(older)
        assert usage(room.find()) == 2

    def test_what_was_fetched_before_an_invalidation_is_not_stored_after_it(
        self, room: Room, clock: ManualClock
    ) -> None:
        before = fetched(room.stamp())
        clock.advance(1)
        stamp = room.snapshots.invalidate(ANN)
        assert not room.store(before)
        assert room.find() is None
        assert room.store(fetched(stamp, used=5))
        assert usage(room.find()) == 5

    def test_snapshot_from_before_the_servers_clock_was_set_back_is_neither_used_nor_kept(
        self, room: Room, clock: ManualClock
    ) -> None:
        room.store(fetched(room.stamp(), used=1))
        clock.advance(-500)
        assert room.find() is None
        assert room.store(fetched(room.stamp(), used=2))
        assert usage(room.find()) == 2

    def test_snapshot_that_others_cannot_read_is_not_stored(self, room: Room) -> None:
        assert room.store(Snapshot({}, None, NO_TICKET))
        assert room.store(fetched(stamp=0))
        assert room.find() is None

    @pytest.mark.parametrize("ttl", [60, -1])
    def test_redis_forgets_a_customer_after_the_configured_time(
        self, make_room: Callable[..., Room], redis: RedisServer, ttl: int
    ) -> None:
        room = make_room(REDIS_KEYS_TTL=ttl)
        room.store(fetched(room.stamp()))
        assert redis.client.ttl(KEY) in (range(1, 61) if ttl > 0 else (-1,))
        room.snapshots.invalidate(ANN)
        assert redis.client.ttl(KEY) in (range(1, 61) if ttl > 0 else (-1,))

    def test_environments_do_not_see_each_other(self, make_room: Callable[..., Room], redis: RedisServer) -> None:
        one, other = make_room(REDIS_ENVIRONMENT_PREFIX="live"), make_room(REDIS_ENVIRONMENT_PREFIX="test")
        one.store(fetched(one.stamp()))
        assert other.find() is None
        assert set(redis.client.keys()) == {"live:snapshot:ann/", "live:in-use", "test:in-use"}

    def test_no_two_customers_share_a_key(self, room: Room, redis: RedisServer) -> None:
        odd = ["a", "a/b", "a%2Fb", "a:b", "{a}", "A", " a", "ä", "a\x00", "a\n"]
        customers = [*map(Customer, odd), *(Customer("a", resource=one) for one in odd), Customer("a/b", resource="c")]
        stamp = room.stamp()
        for number, customer in enumerate(customers):
            room.store(fetched(stamp, used=number), customer)
        assert [usage(room.find(customer)) for customer in customers] == list(range(len(customers)))

    def test_ticket_of_the_same_ledger_is_kept(self, make_room: Callable[..., Room], redis: RedisServer) -> None:
        one, other = make_room(LEDGER=redis.url), make_room(LEDGER=redis.url)
        one.store(fetched(one.stamp(), ticket=7))
        found = other.find()
        assert found is not None
        assert found.ticket == Ticket(7, 1)

    def test_ticket_that_the_ledger_cannot_have_given_is_not_believed(
        self, make_room: Callable[..., Room], redis: RedisServer
    ) -> None:
        room = make_room(LEDGER=redis.url)
        room.store(fetched(room.stamp(), ticket=10**9))
        found = room.find()
        assert found is not None
        assert found.ticket == Ticket(room.tickets, 1)

    @pytest.mark.parametrize("ledger", ["memory://", "sqlite:///ledger.db", "redis://127.0.0.1:1/0"])
    def test_ticket_of_another_ledger_is_replaced_by_one_of_our_own_as_old_as_the_snapshot(
        self, make_room: Callable[..., Room], ledger: str, clock: ManualClock
    ) -> None:
        one, other = make_room(LEDGER=ledger), make_room(LEDGER=ledger)
        begun_at = microseconds(clock.now())
        one.store(fetched(one.stamp(), ticket=7))
        clock.advance(5)
        found = other.find()
        assert found is not None
        assert found.ticket == Ticket(other.tickets, begun_at) == Ticket(101, begun_at)


class TestCache:
    @pytest.fixture
    def make_cache(self, room: Room, clock: ManualClock) -> Callable[..., SnapshotCache]:
        def make(fetch: Callable[[Customer], Snapshot]) -> SnapshotCache:
            given = {"ttl": 30, "stale_ttl": 100, "size": 10, "patience": PATIENCE}
            return SnapshotCache(fetch, clock=clock.clock, shared=room.snapshots, **given)

        return make

    def test_fetch_that_began_before_an_invalidation_answers_only_once(
        self, make_cache: Callable[..., SnapshotCache], make_room: Callable[..., Room], clock: ManualClock
    ) -> None:
        elsewhere = make_room()
        meanwhile = [lambda: None, lambda: elsewhere.snapshots.invalidate(ANN)]

        def fetch(_customer: Customer) -> Snapshot:
            clock.advance(0.1)
            meanwhile.pop()()
            return fetched(stamp=0)

        cache = make_cache(fetch)
        assert [cache.get(ANN)[1] for _ in range(3)] == [Source.SIDECAR, Source.SIDECAR, Source.CACHE]

    def test_many_threads_share_one_look_into_redis(
        self, make_cache: Callable[..., SnapshotCache], redis: RedisServer, room: Room
    ) -> None:
        cache = make_cache(lambda _: fetched(stamp=0))
        everyone = threading.Barrier(16)

        def look(_: int) -> float | None:
            everyone.wait(PATIENCE)
            return usage(cache.get(ANN)[0])

        with ThreadPoolExecutor(16) as pool:
            assert list(pool.map(look, range(16))) == [3] * 16
        assert evals(redis) < 16  # one look and one store, and again for a thread that comes just too late


class TestGarbage:
    @pytest.mark.parametrize(
        "value",
        [
            b"",
            b"\x00\xff",
            b"1",
            b"2 123\n",
            b"1 12 7 - GetEntitlementsStateV2Response 0123456789abcdef0123456789abcdef\n",
            b"1 9999999999999999999999 x",
            b"null",
        ],
    )
    def test_value_that_is_not_ours_is_a_miss_with_one_line_in_the_log(
        self, room: Room, redis: RedisServer, caplog: pytest.LogCaptureFixture, value: bytes
    ) -> None:
        redis.client.set(KEY, value)
        assert room.find() is None
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "is not of this version or is damaged" in caplog.text

    def test_key_of_another_type_is_a_miss_and_is_replaced(self, room: Room, redis: RedisServer) -> None:
        redis.client.rpush(KEY, "a", "b")
        assert room.find() is None
        assert room.store(fetched(room.stamp()))
        assert usage(room.find()) == 3

    def test_value_under_another_customers_key_is_a_miss(self, room: Room, redis: RedisServer) -> None:
        room.store(fetched(room.stamp()))
        redis.client.copy(KEY, "stigg-guard:snapshot:bob/")
        assert room.find(Customer("bob")) is None

    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def test_damaged_value_is_a_miss(
        self, redis: RedisServer, room: Room, clock: ManualClock, data: st.DataObject
    ) -> None:
        redis.client.delete(KEY)
        clock.advance(60)  # whatever was an outage before is none now
        assume(room.store(fetched(room.stamp(), used=6)))  # nor is a busy machine
        stored = redis.client.execute_command("GET", KEY, NEVER_DECODE=True)
        place = data.draw(st.integers(0, len(stored) - 1))
        byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != stored[place]))
        redis.client.set(KEY, stored[:place] + bytes([byte]) + stored[place + 1 :])
        assert room.find() is None
        redis.client.set(KEY, stored[:place])
        assert room.find() is None


class TestInvalidation:
    def test_every_process_hears_of_it(self, make_room: Callable[..., Room]) -> None:
        rooms = [make_room(), make_room()]
        site = Customer("a/b", resource="ä")
        stamps = [room.stamp() for room in rooms]
        for room in rooms:
            customer, stamp = hear(room, lambda: rooms[0].snapshots.invalidate(site))
            assert customer == site
            assert stamp >= max(stamps)

    def test_process_hears_again_after_redis_was_away(self, make_room: Callable[..., Room], redis: RedisServer) -> None:
        listener = make_room()
        listener.stamp()
        hear(listener, lambda: redis.client.publish(CHANNEL, "1 ann/"))
        redis.kill()
        redis.start()
        assert hear(listener, lambda: redis.client.publish(CHANNEL, "2 ann/"), stamp=2) == (ANN, 2)

    @pytest.mark.parametrize("message", [b"", b"\xff 1", b"1 \xff", b"1 a/b/c", b"x ann/", b"1 /", b"1 ann"])
    def test_message_that_is_not_ours_is_ignored(self, room: Room, redis: RedisServer, message: bytes) -> None:
        room.stamp()
        hear(room, lambda: redis.client.publish(CHANNEL, "1 ann/"))
        redis.client.publish(CHANNEL, message)
        assert hear(room, lambda: redis.client.publish(CHANNEL, "2 ann/"), stamp=2) == (ANN, 2)

    def test_closed_room_stops_listening_and_finds_nothing(self, room: Room) -> None:
        room.store(fetched(room.stamp()))
        listeners = [thread for thread in threading.enumerate() if thread.name == "stigg-guard-invalidations"]
        room.snapshots.close()
        for listener in listeners:
            listener.join(PATIENCE)
            assert not listener.is_alive()
        assert room.find() is None

    def test_closing_what_was_never_used_does_nothing(self, room: Room) -> None:
        room.snapshots.close()
        assert room.snapshots.invalidate(ANN) == 0


def hear(room: Room, speak: Callable[[], object], stamp: int = 0) -> tuple[Customer, int]:
    """What the room hears, not before ``stamp``; speaks until it does, because nobody hears before he listens."""
    for _ in range(600):
        speak()
        try:
            while True:
                news = room.news.get(timeout=0.05)
                if news[1] >= stamp:
                    return news
        except Empty:
            continue
    pytest.fail("nothing was heard")


class TestOutage:
    def test_worker_goes_on_without_redis(
        self, make_worker: MakeGuard, redis: RedisServer, clock: ManualClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        redis.kill()
        worker = make_worker()
        for _ in range(3):
            assert worker.check(TEMPLATES, customer=CUSTOMER).source is Source.SIDECAR
            assert worker.check(TEMPLATES, customer=CUSTOMER).source is Source.CACHE
            assert worker.reload(CUSTOMER)
            clock.advance(31)
        assert [record.getMessage().split(" fails: ")[0] for record in caplog.records] == [
            f"the cache in Redis at 127.0.0.1:{redis.port} is not used while it"
        ]

    @pytest.mark.usefixtures("frozen")
    def test_worker_goes_on_when_redis_hangs(self, make_worker: MakeGuard, clock: ManualClock) -> None:
        worker = make_worker()
        for _ in range(3):
            assert worker.check(TEMPLATES, customer=CUSTOMER).source is Source.SIDECAR
            clock.advance(31)

    def test_redis_that_hangs_later_is_waited_for_once(
        self, redis: RedisServer, room: Room, request: pytest.FixtureRequest, clock: ManualClock
    ) -> None:
        stamp = room.stamp()
        request.getfixturevalue("frozen")
        assert room.find() is None
        assert room.store(fetched(stamp))
        assert room.snapshots.invalidate(ANN) == 0

    def test_redis_is_left_alone_for_a_second_after_a_failure(
        self, room: Room, redis: RedisServer, clock: ManualClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        redis.kill()
        assert room.stamp() == 0
        redis.start()
        clock.advance(REST_SECONDS - 0.001)
        assert room.stamp() == 0
        assert evals(redis) == 0
        clock.advance(0.001)
        assert room.stamp() > 0
        assert [record.getMessage().rpartition(" is ")[2][:8] for record in caplog.records] == ["not used", "used aga"]

    def test_restarted_redis_is_filled_again(
        self, make_worker: MakeGuard, redis: RedisServer, clock: ManualClock
    ) -> None:
        make_worker().check(TEMPLATES, customer=CUSTOMER)
        redis.restart()
        worker = make_worker()
        assert worker.check(TEMPLATES, customer=CUSTOMER).source is Source.SIDECAR
        assert make_worker(SIDECAR=NOBODY_LISTENS).check(TEMPLATES, customer=CUSTOMER).source is Source.CACHE

    def test_flushed_redis_is_filled_again(self, make_worker: MakeGuard, redis: RedisServer) -> None:
        make_worker().check(TEMPLATES, customer=CUSTOMER)
        redis.client.flushall()
        redis.client.script_flush()
        assert make_worker().check(TEMPLATES, customer=CUSTOMER).source is Source.SIDECAR
        assert make_worker(SIDECAR=NOBODY_LISTENS).check(TEMPLATES, customer=CUSTOMER).source is Source.CACHE

    def test_redis_that_refuses_writes_costs_nothing_but_speed(
        self, make_worker: MakeGuard, redis: RedisServer
    ) -> None:
        redis.client.config_set("maxmemory", 1)
        worker = make_worker()
        assert worker.check(TEMPLATES, customer=CUSTOMER).source is Source.SIDECAR
        assert worker.check(TEMPLATES, customer=CUSTOMER).source is Source.CACHE

    def test_wrong_password_is_told_once_and_not_shown(
        self, tmp_path: Path, make_guard: MakeGuard, caplog: pytest.LogCaptureFixture
    ) -> None:
        with RedisServer(tmp_path, durable=False, password="right") as server:
            guard = make_guard(CACHE=f"redis://:wr0ng@127.0.0.1:{server.port}/0")
            assert guard.check(TEMPLATES, customer=CUSTOMER).source is Source.SIDECAR
        assert len(caplog.records) == 1
        assert "wr0ng" not in caplog.text


@pytest.mark.parametrize(
    "url", ["redis://:s3cret@host:port", "redis://:s3cret@host/0?socket_timeout=x", "redis://h?a=1"]
)
def test_url_that_redis_does_not_understand_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError, match="CACHE: expected redis://") as caught:
        Guard(Config.from_mapping({"CACHE": url}))
    assert "s3cret" not in str(caught.value)


def test_missing_extra_is_told_with_the_line_that_installs_it() -> None:
    code = """
import sys
sys.modules["redis"] = None
import stigg_guard
try:
    stigg_guard.Guard(stigg_guard.Config(cache="redis://127.0.0.1:1/0", ledger="memory://"))
except stigg_guard.MissingExtra as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "A Redis cache needs an extra that is not installed: pip install 'stigg-guard[redis]'\n"

"""Redis as the home of what several sidecars count: shared exactly, through outages, restarts and lost data."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from redis_server import RedisServer
from sidecar.contract import DEMO
from stigg_guard.sidecar.catalog import demo_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.metrics import Metrics
from stigg_guard.sidecar.redis_store import REST_SECONDS, TURN_SECONDS, RedisStore
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.state import CounterKey, CreditEvent, EventKey, RecordKey, StateUnavailable, StoredResponse
from stigg_guard.wire import sidecar_pb2 as pb

KEY = CounterKey("customer", "", "feature", "")
EVENT = EventKey("1.0", "customer", "", "login", "key")


class Time:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), password="secret") as running:
        yield running


@pytest.fixture
def redis(server: RedisServer) -> RedisServer:
    server.client.flushall()
    return server


def url_of(server: RedisServer) -> str:
    return f"redis://:secret@127.0.0.1:{server.port}/0"


class Stores:
    """Makes stores of one prefix, with a clock and figures of their own."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.made: list[RedisStore] = []

    def __call__(self, prefix: str = "dev", metrics: Metrics | None = None, time: Time | None = None) -> RedisStore:
        store = RedisStore(prefix, url_of(self.server), metrics or Metrics(), time or Time())
        self.made.append(store)
        return store


@pytest.fixture
def stores(redis: RedisServer) -> Iterator[Stores]:
    stores = Stores(redis)
    yield stores
    for store in stores.made:
        store.close()


def add(store: RedisStore, amount: float = 1, key: CounterKey = KEY) -> None:
    with store.transaction() as transaction:
        transaction.set_usage(key, transaction.usage(key) + amount)


def value(metrics: Metrics, name: str) -> float:
    return float(metrics.registry.get_sample_value(f"sidecar_{name}_total") or 0)


def test_what_one_writes_the_other_learns_and_a_third_finds(stores: Stores) -> None:
    one, other = stores(), stores()
    record = RecordKey("promotion", "customer", "feature")
    with one.transaction() as transaction:
        transaction.set_usage(KEY, 0.3)
        transaction.assign_plan("customer", "", "growth")
        transaction.assign_plan("customer", "site", None)
        transaction.keep(record, {"endDate": None})
    assert other.usage(KEY) == 0
    assert not other.refresh()
    assert other.refresh()
    for store in (one, other, stores()):
        assert store.usage(KEY) == 0.3
        assert store.plans() == {("customer", ""): "growth", ("customer", "site"): None}
        assert store.record(record) == {"endDate": None}
    one.keep(record, None)
    other.refresh()
    assert other.record(record) is None
    assert stores().record(record) is None
    assert stores("prod").usage(KEY) == 0


def test_a_failed_transaction_leaves_nothing_and_gives_the_turn_back(stores: Stores) -> None:
    one, other = stores(), stores()
    with pytest.raises(ZeroDivisionError), one.transaction() as transaction:  # noqa: PT012 - the failing block is tested
        transaction.set_usage(KEY, 1)
        raise ZeroDivisionError
    add(other)
    one.refresh()
    assert one.usage(KEY) == 1


def test_events_values_answers_and_what_happened_to_credits_are_shared(stores: Stores) -> None:
    one, other = stores(), stores()
    answer, noted = StoredResponse(b"\x00digest", b"\xffresponse"), CreditEvent("c", "", "x", "t", "g", "", 7, "at")
    with one.transaction() as transaction:
        assert transaction.is_new_event(EVENT)
        assert transaction.is_new_value(KEY, "'user'")
        assert transaction.answer("key", 10.0) is None
        transaction.remember("key", answer, 10.0)
        transaction.note(noted)
    with other.transaction() as transaction:
        assert not transaction.is_new_event(EVENT)
        assert not transaction.is_new_value(KEY, "'user'")
        assert transaction.is_new_value(KEY, "'other'")
        assert transaction.answer("key", 20.0) == answer
    assert other.credit_events("c") == [noted]
    assert other.credit_events("d") == []


def test_many_threads_of_two_sidecars_lose_and_repeat_nothing(stores: Stores) -> None:
    both = [stores(), stores()]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: add(both[number % 2]), range(400)))
    for store in both:
        store.refresh()
        assert store.usage(KEY) == 400


def test_usage_to_begin_with_is_written_once(stores: Stores) -> None:
    one, other = stores(), stores()
    one.seed({KEY: 3})
    add(one)
    other.seed({KEY: 3})
    assert (one.usage(KEY), other.usage(KEY)) == (4, 4)


def test_who_dies_in_its_turn_writes_nothing_and_others_go_on(stores: Stores) -> None:
    slow, other, redis = stores(), stores(), stores.server.client
    with pytest.raises(StateUnavailable, match="too slow"), slow.transaction() as transaction:  # noqa: PT012 # its end raises
        transaction.set_usage(KEY, 100)
        assert 0 < redis.pttl("dev:sidecar:1:turn") <= TURN_SECONDS * 1000
        redis.delete("dev:sidecar:1:turn")  # as when its time is over
        add(other)
    with pytest.raises(StateUnavailable, match="too slow"), slow.transaction() as transaction:  # noqa: PT012 # its end raises
        redis.delete("dev:sidecar:1:turn")
        transaction.is_new_event(EVENT)
    add(slow)
    assert slow.usage(KEY) == 2


def test_who_never_gets_a_turn_says_so(stores: Stores) -> None:
    class Hasty(Time):
        def __call__(self) -> float:
            self.seconds += 1
            return self.seconds

    store = stores(time=Hasty())
    stores.server.client.set("dev:sidecar:1:turn", "another")
    with pytest.raises(StateUnavailable, match="another sidecar has been writing"):
        add(store)


def test_a_log_that_was_cut_is_made_up_for_by_reading_all(stores: Stores, caplog: pytest.LogCaptureFixture) -> None:
    one, other = stores(), stores()
    told: list[frozenset[str] | None] = []
    other.on_change = told.append
    add(one)
    other.refresh()
    add(one, 2)
    stores.server.client.xtrim("dev:sidecar:1:log", maxlen=1, approximate=False)
    other.refresh()
    assert other.usage(KEY) == 3
    assert told == [None]
    assert "was read anew" in caplog.text


def test_a_server_that_lost_everything_is_given_it_back(stores: Stores, caplog: pytest.LogCaptureFixture) -> None:
    one, other = stores(), stores()
    with one.transaction() as transaction:
        transaction.set_usage(KEY, 3)
        transaction.assign_plan("customer", "", "growth")
        transaction.keep(RecordKey("promotion", "customer", "feature"), {"endDate": None})
    other.refresh()
    stores.server.client.flushall()
    add(other)
    one.refresh()
    for store in (one, other, stores()):
        assert store.usage(KEY) == 4
        assert store.plans() == {("customer", ""): "growth"}
        assert store.record(RecordKey("promotion", "customer", "feature")) == {"endDate": None}
    said = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert said == [
        f"Redis at 127.0.0.1:{stores.server.port} lost what it had taken; what is known here was written back"
    ]


def test_a_question_is_enough_to_give_it_back(stores: Stores) -> None:
    store = stores()
    add(store)
    stores.server.client.flushall()
    store.refresh()
    assert store.refresh()
    assert stores().usage(KEY) == 1


def test_a_server_that_went_back_in_time_has_nothing_of_then(stores: Stores) -> None:
    store, redis, gone = stores(), stores.server.client, RecordKey("promotion", "customer", "feature")
    store.keep(gone, {"endDate": None})
    before = {key: redis.dump(key) for key in redis.keys("dev:sidecar:1:*")}
    store.keep(gone, None)
    add(store)
    redis.flushall()
    for key, value in before.items():
        redis.restore(key, 0, value)
    store.refresh()
    late = stores()
    assert (late.record(gone), late.usage(KEY)) == (None, 1)


def test_a_server_that_lost_the_log_alone_has_what_others_wrote(stores: Stores) -> None:
    one, other = stores(), stores()
    add(one)
    other.refresh()
    add(one)
    stores.server.client.delete("dev:sidecar:1:log")
    other.refresh()
    add(other)
    one.refresh()
    assert one.usage(KEY) == other.usage(KEY) == stores().usage(KEY) == 3


def test_while_it_cannot_be_given_back_nothing_is_forgotten(stores: Stores) -> None:
    time = Time()
    store, redis = stores(time=time), stores.server.client
    add(store)
    redis.flushall()
    redis.config_set("maxmemory", 1)
    try:
        assert store.refresh()
        assert store.usage(KEY) == 1
    finally:
        redis.config_set("maxmemory", 0)
    time.seconds += REST_SECONDS
    store.refresh()
    assert stores().usage(KEY) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"of": "another"},
        {"changes": "{"},
        {"changes": "[1, 2]"},
        {"changes": '[[[["c"], 1]], [], []]'},
        {"changes": '[[[["c", "", "f", ""], "many"]], [], []]'},
        {b"\xff": b"\xfe"},
    ],
)
def test_an_entry_of_somebody_else_is_skipped_and_said_once(
    fields: Any, stores: Stores, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = stores(), stores()
    add(one)
    for _ in range(2):
        stores.server.client.xadd("dev:sidecar:1:log", fields)
    add(one)
    other.refresh()
    assert other.usage(KEY) == one.usage(KEY) == 2
    assert other.refresh()
    assert (
        caplog.messages == ["an entry of dev:sidecar:1:log in Redis is not of a sidecar; such entries are skipped"] * 2
    )


def test_listeners_hear_whose_plans_and_records_changed(stores: Stores) -> None:
    one, other = stores(), stores()
    told: list[frozenset[str] | None] = []
    other.on_change = told.append
    add(one)
    one.keep(RecordKey("customer", "ada", ""), {})
    other.refresh()
    assert told == [frozenset({"ada"})]


def test_a_sidecar_goes_on_hearing_after_an_entry_of_somebody_else(stores: Stores) -> None:
    one, other = (Engine(demo_catalog(), stores()) for _ in range(2))
    told: Queue[frozenset[str] | None] = Queue()
    with Sidecar(other):
        other.on_change = told.put
        stores.server.client.xadd("dev:sidecar:1:log", {"of": "another"})
        one.assign_plan(DEMO, "growth")
        assert told.get(timeout=20) == frozenset({DEMO})


def test_a_sidecar_hears_at_once_what_another_has_changed(stores: Stores) -> None:
    one, other = (Engine(demo_catalog(), stores()) for _ in range(2))
    told: Queue[frozenset[str] | None] = Queue()
    with Sidecar(other):
        other.on_change = told.put
        one.assign_plan(DEMO, "growth")
        assert told.get(timeout=20) == frozenset({DEMO})
        assert other.accounts.subscription(DEMO, "").plan.id == "growth"


class TestWithoutRedis:
    """Redis is away at the start, or goes in between."""

    def test_answers_go_on_changes_are_refused_and_all_recovers(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        metrics, time = Metrics(), Time()
        with RedisServer(tmp_path, password="secret") as server:
            store = RedisStore("dev", url_of(server), metrics, time)
            add(store)
            server.kill()
            with pytest.raises(StateUnavailable, match=f"Redis at 127.0.0.1:{server.port}"):
                add(store)
            assert store.refresh()
            assert store.usage(KEY) == 1
            assert value(metrics, "redis_client_errors") == 1
            server.start()
            with pytest.raises(StateUnavailable, match="does not answer"):
                add(store)  # it is left alone for a second
            time.seconds += REST_SECONDS
            add(store)
            assert store.usage(KEY) == 2
            store.close()
        said = [record.message for record in caplog.records]
        assert len(said) == 2
        assert said[0].startswith(f"nothing can be counted while Redis at 127.0.0.1:{server.port} fails: ")
        assert said[1] == f"Redis at 127.0.0.1:{server.port} answers again"
        assert "secret" not in caplog.text

    def test_one_that_is_full_is_told_of_once_until_it_takes_what_is_written(
        self, stores: Stores, caplog: pytest.LogCaptureFixture
    ) -> None:
        time = Time()
        store, other = stores(time=time), stores(time=time)
        add(store)
        stores.server.client.config_set("maxmemory", 1)
        try:
            for _ in range(3):
                with pytest.raises(StateUnavailable, match="OOM"):
                    add(store)
                time.seconds += REST_SECONDS
                store.refresh()
                other.refresh()
            assert (store.usage(KEY), other.usage(KEY)) == (1, 1)
        finally:
            stores.server.client.config_set("maxmemory", 0)
        add(store)
        assert store.usage(KEY) == 2
        said = [record.message.partition(str(stores.server.port))[2][:8] for record in caplog.records]
        assert said == [" fails: ", " answers"]

    def test_a_start_without_it_knows_the_usage_to_begin_with_and_writes_it_later(self, tmp_path: Path) -> None:
        metrics, time = Metrics(), Time()
        with RedisServer(tmp_path, password="secret") as server:
            server.kill()
            engine = Engine(demo_catalog(), RedisStore("dev", url_of(server), metrics, time))
            assert value(metrics, "initialization_errors") == 1
            assert templates(engine) == 3
            server.start()
            time.seconds += REST_SECONDS
            assert engine.answer("ReportUsage", usage()).current_usage == 4
            other = Engine(demo_catalog(), RedisStore("dev", url_of(server), Metrics(), time))
            assert templates(other) == 4
            engine.close()
            other.close()

    def test_a_refresh_after_it_writes_what_was_to_begin_with(self, tmp_path: Path) -> None:
        time = Time()
        with RedisServer(tmp_path, password="secret") as server:
            server.kill()
            store = RedisStore("dev", url_of(server), Metrics(), time)
            store.seed({KEY: 3})
            server.start()
            time.seconds += REST_SECONDS
            store.refresh()
            assert server.client.hlen("dev:sidecar:1:usage") == 1
            assert store.usage(KEY) == 3
            store.close()

    def test_one_that_hangs_is_waited_for_once_a_second(self, stores: Stores) -> None:
        time = Time()
        store = stores(time=time)
        add(store)
        stores.server.pause()
        try:
            assert store.refresh()
            assert [store.refresh() for _ in range(1000)] == [True] * 1000  # none of them waits for Redis
        finally:
            stores.server.resume()
        time.seconds += REST_SECONDS
        add(store)
        assert store.usage(KEY) == 2


def usage() -> Any:
    return pb.ReportUsageRequest(customer_id=DEMO, feature_id="feature-templates", value=1)


def templates(engine: Engine) -> float:
    engine.refresh()
    request = pb.GetMeteredEntitlementRequest(customer_id=DEMO, feature_id="feature-templates")
    answer: Any = engine.answer("GetMeteredEntitlement", request)
    return float(answer.entitlement.current_usage)


def test_a_wallet_is_debited_exactly_by_two_sidecars(stores: Stores) -> None:
    engines = [Engine(demo_catalog(), stores()) for _ in range(2)]
    engines[0].wallets.grant(DEMO, GRANT)
    subscriber = engines[0].accounts.subscription(DEMO, "").subscriber
    done = threading.Barrier(4)

    def use(number: int) -> None:
        done.wait()
        for step in range(10):
            engines[number % 2].refresh()
            engines[number % 2].wallets.consume(DEMO, "", "api-credits", 1_000_000, f"{number}-{step}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    for engine in engines:
        engine.refresh()
        left = engine.wallets.left(subscriber, "api-credits", engine.now())
        assert left == (50_000 - 12_500 + 100 - 40) * 1_000_000


GRANT = {
    "resource": "",
    "currency": "api-credits",
    "amount": 100_000_000,
    "grantType": "PROMOTIONAL",
    "priority": 0.0,
    "effectiveAt": "2020-01-01T00:00:00+00:00",
    "expireAt": None,
    "displayName": "Gift",
}

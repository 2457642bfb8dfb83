"""Redis beyond one server: sentinels, clusters, and what is said of a URL that leads to one without naming it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pytest
from redis.crc import key_slot

from cache.workers import ANN, Room, fetched, usage
from redis_ledgers import KEY, claim, drained, held, persisting
from redis_server import RedisNodes, RedisSentinels, redis_nodes, redis_sentinels, until
from stigg_guard.clock import Clock
from stigg_guard.errors import LedgerUnavailable
from stigg_guard.ledger import Ledger, UsageKey, Use, ledger_from_url
from stigg_guard.sidecar.metrics import Metrics
from stigg_guard.sidecar.redis_store import RedisStore
from stigg_guard.sidecar.state import CounterKey, StateUnavailable

PATIENT = "socket_timeout=30&socket_connect_timeout=30"
COUNTER = CounterKey("customer", "", "feature", "")
CUSTOMERS = [UsageKey(f"customer-{number}", "", "templates") for number in range(40)]

Open = Callable[[str], Ledger]


@pytest.fixture(scope="module")
def formed_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisNodes]:
    with redis_nodes(tmp_path_factory.mktemp("nodes"), replicas=1) as nodes:
        yield nodes


@pytest.fixture
def nodes(formed_nodes: RedisNodes) -> RedisNodes:
    formed_nodes.flush()
    return formed_nodes


@pytest.fixture(scope="module")
def formed_sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisSentinels]:
    with redis_sentinels(tmp_path_factory.mktemp("sentinels")) as group:
        yield group


@pytest.fixture
def sentinels(formed_sentinels: RedisSentinels) -> RedisSentinels:
    formed_sentinels.master.client.flushall()
    return formed_sentinels


@pytest.fixture
def ledger_at() -> Iterator[Open]:
    made: list[Ledger] = []

    def open_ledger(url: str) -> Ledger:
        made.append(ledger_from_url(url, Clock()))
        return made[-1]

    yield open_ledger
    for ledger in made:
        ledger.close()


@pytest.fixture
def room_at() -> Iterator[Callable[[str], Room]]:
    made: list[Room] = []

    def open_room(url: str) -> Room:
        made.append(Room(url, Clock()))
        return made[-1]

    yield open_room
    for room in made:
        room.snapshots.close()


def add(store: RedisStore) -> None:
    with store.transaction() as transaction:
        transaction.set_usage(COUNTER, transaction.usage(COUNTER) + 1)


class TestRedisUrl:
    @pytest.mark.parametrize("path", ["", "/1"])
    def test_that_leads_to_a_node_of_a_cluster_is_told_so(self, nodes: RedisNodes, ledger_at: Open, path: str) -> None:
        port = nodes.nodes[0].port
        ledger = ledger_at(f"redis://127.0.0.1:{port}{path}?{PATIENT}")
        told = rf"a node of a Redis Cluster, and other nodes have other keys; write redis\+cluster://127.0.0.1:{port}$"
        with pytest.raises(LedgerUnavailable, match=told):
            ledger.counts()

    @pytest.mark.parametrize("path", ["", "/1"])
    def test_that_leads_to_a_sentinel_is_told_so(self, sentinels: RedisSentinels, ledger_at: Open, path: str) -> None:
        port = sentinels.sentinel.port
        ledger = ledger_at(f"redis://127.0.0.1:{port}{path}?{PATIENT}")
        told = rf"a Redis Sentinel, which keeps no data; write redis\+sentinel://127.0.0.1:{port}/ and the name of"
        with pytest.raises(LedgerUnavailable, match=told):
            ledger.hold([claim()], 60)

    def test_of_a_cache_is_told_so_too(
        self,
        nodes: RedisNodes,
        sentinels: RedisSentinels,
        room_at: Callable[[str], Room],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        for port in (nodes.nodes[0].port, sentinels.sentinel.port):
            assert room_at(f"redis://127.0.0.1:{port}?{PATIENT}").find() is None
        assert "write redis+cluster://" in caplog.text
        assert "write redis+sentinel://" in caplog.text

    def test_that_names_a_cluster_where_there_is_none_is_told_so(
        self, sentinels: RedisSentinels, ledger_at: Open
    ) -> None:
        ledger = ledger_at(f"redis+cluster://127.0.0.1:{sentinels.master.port}?{PATIENT}")
        with pytest.raises(LedgerUnavailable, match="Cluster mode is not enabled on this node"):
            ledger.hold([claim()], 60)


class TestSentinels:
    def test_wait_has_each_step_in_a_replica(self, sentinels: RedisSentinels, ledger_at: Open) -> None:
        ledger = ledger_at(f"{sentinels.url}?wait=1&{PATIENT}")
        hold = held(ledger)
        impatient = ledger_at(f"{sentinels.url}?wait=1&socket_timeout=0.2")
        sentinels.replica.pause()
        try:
            with pytest.raises(LedgerUnavailable) as caught:
                impatient.commit(hold, [Use(KEY, 1)])
        finally:
            sentinels.replica.resume()
        assert caught.value.repeat is not None
        assert persisting(caught.value.repeat) == [1]
        assert drained(ledger) == {KEY: 1}

    def test_without_so_many_replicas_there_is_no_ledger(self, sentinels: RedisSentinels, ledger_at: Open) -> None:
        ledger = ledger_at(f"{sentinels.url}?wait=2&socket_timeout=2")
        with pytest.raises(LedgerUnavailable, match="1 of 2 replicas have the step; see wait in the URL"):
            ledger.hold([claim()], 60)

    def test_name_another_master_and_all_go_on_there(
        self, sentinels: RedisSentinels, ledger_at: Open, room_at: Callable[[str], Room]
    ) -> None:
        url = f"{sentinels.url}?{PATIENT}"
        ledger, room = ledger_at(url), room_at(url)
        with closing(RedisStore("dev", url, Metrics(), monotonic=lambda: 0.0)) as store:
            ledger.record(Use(KEY, 1))
            room.store(fetched(room.stamp(), used=4))
            add(store)
            sentinels.fail_over()
            persisting(lambda: ledger.record(Use(KEY, 2)))
            until(lambda: usage(room.find()) == 4)
            with suppress(StateUnavailable):  # the connection to the server that was the master
                add(store)
        with closing(RedisStore("dev", url, Metrics())) as store:
            add(store)
            assert store.usage(COUNTER) >= 2
        assert drained(ledger) == {KEY: 3}

    def test_that_know_no_such_master_are_told_of(self, sentinels: RedisSentinels, ledger_at: Open) -> None:
        ledger = ledger_at(f"redis+sentinel://127.0.0.1:{sentinels.sentinel.port}/other?{PATIENT}")
        with pytest.raises(LedgerUnavailable, match=r"no sentinel that answers knows a running master 'other'$"):
            ledger.hold([claim()], 60)


class TestCluster:
    def test_shares_customers_among_its_masters(self, nodes: RedisNodes, ledger_at: Open) -> None:
        ledger = ledger_at(f"redis+cluster://127.0.0.1:{nodes.nodes[1].port}?{PATIENT}")  # one node is enough
        for key in CUSTOMERS:
            ledger.commit(held(ledger, claim(key)), [Use(key, 1)])
        slots: dict[str, set[int]] = {}
        for name in nodes.names():
            slots.setdefault(name[name.index("{") : name.index("}")], set()).add(key_slot(name.encode()))
        assert {len(several) for several in slots.values()} == {1}
        assert all(node.client.dbsize() > len(CUSTOMERS) // 2 for node in nodes.masters())
        assert ledger.counts()["unsent"] == len(CUSTOMERS)
        assert drained(ledger) == dict.fromkeys(CUSTOMERS, 1)
        assert ledger.counts()["unsent"] == 0

    def test_whose_slots_move_goes_on(self, nodes: RedisNodes, ledger_at: Open) -> None:
        ledger = ledger_at(f"{nodes.url}?{PATIENT}")
        ledger.record(Use(KEY, 1))
        (book,) = (name for name in nodes.names() if name.endswith("ann:book"))
        nodes.move_slot(book, next(node for node in nodes.masters() if node is not nodes.master_of(book)))
        assert ledger.record(Use(KEY, 2)) == 3
        assert drained(ledger) == {KEY: 3}

    def test_whose_replica_takes_over_goes_on(self, nodes: RedisNodes, ledger_at: Open) -> None:
        ledger = ledger_at(f"{nodes.url}?{PATIENT}")
        for key in CUSTOMERS:
            ledger.record(Use(key, 1))
        nodes.take_over()
        for key in CUSTOMERS:
            persisting(lambda key=key: ledger.record(Use(key, 2)))
        assert drained(ledger) == dict.fromkeys(CUSTOMERS, 3)

    def test_keeps_a_cache_and_a_sidecars_state_on_one_node_each(
        self, nodes: RedisNodes, room_at: Callable[[str], Room]
    ) -> None:
        url = f"{nodes.url}?{PATIENT}"
        one, other = room_at(url), room_at(url)
        other.find()  # and listens from now on
        assert one.store(fetched(one.stamp(), used=4))
        assert usage(other.find()) == 4
        until(lambda: bool(one.snapshots.invalidate(ANN)) and not other.news.empty())
        assert other.find() is None
        with closing(RedisStore("dev", url, Metrics())) as store, closing(RedisStore("dev", url, Metrics())) as reader:
            add(store)
            reader.refresh()
            assert reader.usage(COUNTER) == 1
        tags = {name[: name.index("}") + 1] for name in nodes.names()}
        assert tags == {"{stigg-guard}", "{dev}"}

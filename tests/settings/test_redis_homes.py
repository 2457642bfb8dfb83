"""Redis beyond one server: sentinels, clusters, and what is said of a URL that leads to one without naming it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import count

import pytest
from redis.crc import key_slot
from redis.exceptions import MovedError

from cache.workers import ANN, Room, fetched, usage
from redis_ledgers import KEY, claim, drained, held, persisting
from redis_server import RedisNodes, RedisSentinels, redis_nodes, redis_sentinels, until
from stigg_guard.clock import Clock
from stigg_guard.errors import LedgerUnavailable
from stigg_guard.ledger import Ledger, UsageKey, Use, ledger_from_url
from stigg_guard.settings.redis_homes import home_of
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
        with pytest.raises(LedgerUnavailable, match="cluster support disabled"):
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


class Silent:
    """Servers that accept connections and answer nothing."""

    def __init__(self, count: int) -> None:
        self._sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
        self.hosts = ",".join(f"127.0.0.1:{one.getsockname()[1]}" for one in self._sockets)

    @property
    def asked(self) -> int:
        """How many connections were opened since the last time."""
        return sum(self._accepted(one) for one in self._sockets)

    def close(self) -> None:
        for one in self._sockets:
            one.close()

    def _accepted(self, one: socket.socket) -> int:
        one.settimeout(0)
        for number in count():
            try:
                one.accept()[0].close()
            except BlockingIOError:
                return number
        return 0


@pytest.fixture
def silent() -> Iterator[Silent]:
    servers = Silent(6)
    yield servers
    servers.close()


class TestDiscovery:
    def test_is_of_one_thread_while_others_wait(self, silent: Silent, ledger_at: Open) -> None:
        ledger = ledger_at(f"redis+cluster://{silent.hosts}?socket_timeout=1")
        together = threading.Barrier(8)

        def hold() -> None:
            together.wait()
            with pytest.raises(LedgerUnavailable):
                ledger.hold([claim()], 60)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: hold(), range(8)))
        assert silent.asked == 6

    def test_asks_those_first_that_answered(self, nodes: RedisNodes, silent: Silent, ledger_at: Open) -> None:
        host = f"127.0.0.1:{nodes.nodes[0].port}"
        ledger = ledger_at(f"redis+cluster://{silent.hosts},{host}?socket_timeout=1")
        persisting(lambda: ledger.record(Use(KEY, 1)))
        assert silent.asked > 0
        ledger._server._home.forget()  # type: ignore[attr-defined] # the home of this URL is a cluster's
        ledger.record(Use(KEY, 1))
        assert silent.asked == 0

    def test_is_not_repeated_where_replicas_are_lacking(self, nodes: RedisNodes, ledger_at: Open) -> None:
        ledger = ledger_at(f"{nodes.url}?wait=2&socket_timeout=2")
        with pytest.raises(LedgerUnavailable, match="of 2 replicas have the step"):
            ledger.hold([claim()], 60)
        assert ledger._server._home._places  # type: ignore[attr-defined] # likewise

    def test_goes_on_where_another_thread_forgets(self, nodes: RedisNodes) -> None:
        timeouts = {"socket_timeout": 30.0, "socket_connect_timeout": 30.0}
        home = home_of(nodes.url, "LEDGER", timeouts, {}, of_ledger=True)
        home.place("key")

        class Moved(MovedError):
            @property
            def host(self) -> str:
                home.forget()
                return "127.0.0.1"

            @host.setter
            def host(self, _: str) -> None: ...

        assert home.follow(Moved(f"1 127.0.0.1:{nodes.nodes[0].port}"))


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

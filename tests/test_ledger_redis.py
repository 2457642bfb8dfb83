"""What only the Redis ledger has: a server that stops, comes back, forgets its scripts, and is shared by all hosts."""

from __future__ import annotations

import logging
import os
import select
import socket
import socketserver
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import TypeVar

import pytest
from redis import Redis
from redis.crc import key_slot

from conftest import ManualClock
from redis_server import RedisServer
from stigg_guard import Config, Guard
from stigg_guard.clock import Clock
from stigg_guard.errors import ClientClosed, ConfigError, InvalidRequest, LedgerUnavailable
from stigg_guard.ledger import Acknowledged, Batch, Claim, Entry, Event, Hold, Refused, State, UsageKey, Use
from stigg_guard.ledger.redis import CUSTOMERS_AT_ONCE, PREFIX, SPLIT_SECONDS, RedisLedger
from stigg_guard.sidecar.server import Sidecar

KEY = UsageKey("ann", "", "templates")
OTHER = UsageKey("bob", "site-01", "templates")
LEASE = 30.0
Make = Callable[[str], RedisLedger]
Made = TypeVar("Made")


def claim(key: UsageKey = KEY, amount: float = 1, limit: float | None = 10) -> Claim:
    return Claim(key, amount, limit, 0, 0, 1)


def held(ledger: RedisLedger, *wishes: Claim) -> Hold:
    answer = ledger.hold(wishes or (claim(),), 60)
    assert isinstance(answer, Hold), answer
    return answer


def taken(ledger: RedisLedger, size: int = 100) -> Batch:
    batch = ledger.take_batch(size, LEASE)
    assert batch is not None
    return batch


def acknowledge(ledger: RedisLedger, batch: Batch) -> None:
    ledger.acknowledge([Acknowledged(report, None, 0) for report in batch.reports])


def drain(ledger: RedisLedger, arrived: dict[str, Entry]) -> None:
    """Acknowledges all that there is to send, and notes it by its id."""
    while (batch := ledger.take_batch(100, LEASE)) is not None:
        arrived.update({report.id: report for report in batch.reports})
        acknowledge(ledger, batch)


def drain_until(ended: Callable[[], bool], ledger: RedisLedger, arrived: dict[str, Entry]) -> None:
    while not ended():
        with suppress(LedgerUnavailable):
            drain(ledger, arrived)


def sums(arrived: dict[str, Entry]) -> dict[UsageKey, float]:
    usage = Counter[UsageKey]()
    for report in arrived.values():
        usage.update({report.key: report.amount})
    return usage


def drained(ledger: RedisLedger) -> dict[UsageKey, float]:
    """Acknowledges all that there is to send, and adds up what it was."""
    arrived: dict[str, Entry] = {}
    drain(ledger, arrived)
    return sums(arrived)


def persisting(step: Callable[[], Made]) -> Made:
    """Makes a step that may be repeated, until the server takes it."""
    while True:
        with suppress(LedgerUnavailable):
            return step()


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    shared_server.client.flushall()
    return shared_server


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


class TestServer:
    def test_that_crashed_comes_back_with_everything(self, make_ledger: Make, own_server: RedisServer) -> None:
        ledger = make_ledger(own_server.url)
        hold = held(ledger, claim(amount=2))
        ledger.commit(held(ledger, claim(amount=3)), [Use(KEY, 3)])
        own_server.restart()
        assert ledger.hold([claim(amount=6)], 60) == Refused(claim(amount=6), 5)
        assert ledger.commit(hold, [Use(KEY, 2)]) == [5]

    def test_that_crashed_comes_back_with_the_batch_under_way(
        self, own_server: RedisServer, clock: ManualClock
    ) -> None:
        ledger = RedisLedger(own_server.url, clock.clock)
        ledger.record(Use(KEY, 1))
        ledger.record(Use(OTHER, 2))
        batch = taken(ledger)
        own_server.restart()
        assert ledger.take_batch(100, LEASE) is None
        clock.advance(LEASE)
        again = taken(ledger)
        ledger.close()
        assert again.id == batch.id
        assert [report.id for report in again.reports] == [report.id for report in batch.reports]

    def test_that_crashes_under_load_loses_and_doubles_nothing(
        self, own_server: RedisServer, clock: ManualClock
    ) -> None:
        ledger = RedisLedger(own_server.url, clock.clock)
        enough = threading.Event()
        arrived: dict[str, Entry] = {}

        def work(key: UsageKey) -> int:
            for done in count():
                if enough.is_set():
                    return done
                hold = persisting(lambda: held(ledger, claim(key, limit=None)))
                persisting(lambda hold=hold: ledger.commit(hold, [Use(key, 1)]))
            return 0

        with ThreadPoolExecutor(3) as pool:
            working = {key: pool.submit(work, key) for key in (KEY, OTHER)}
            pool.submit(drain_until, enough.is_set, ledger, arrived)
            for _ in range(3):
                own_server.restart()
            enough.set()
        clock.advance(LEASE)
        drain(ledger, arrived)
        ledger.close()
        assert sums(arrived) == {key: one.result() for key, one in working.items()}

    def test_that_is_away_is_told_of_and_used_again_when_it_is_back(
        self, make_ledger: Make, own_server: RedisServer
    ) -> None:
        ledger = make_ledger(own_server.url)
        ledger.record(Use(KEY, 1))
        own_server.kill()
        with pytest.raises(LedgerUnavailable, match=rf"Redis ledger at 127.0.0.1:{own_server.port} cannot be used"):
            ledger.record(Use(KEY, 1))
        own_server.start()
        assert ledger.record(Use(KEY, 2)) == 3

    def test_that_never_answers_is_told_of(self, make_ledger: Make) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            ledger = make_ledger(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
            with pytest.raises(LedgerUnavailable, match="Timeout"):
                ledger.hold([claim()], 60)

    def test_that_refuses_to_write_is_told_of(self, ledger: RedisLedger, server: RedisServer) -> None:
        ledger.counts()
        server.client.config_set("maxmemory", "1")
        try:
            with pytest.raises(LedgerUnavailable, match="maxmemory"):
                ledger.hold([claim()], 60)
        finally:
            server.client.config_set("maxmemory", "0")
        assert ledger.counts()["held"] == 0

    def test_that_is_a_read_only_replica_is_told_of(self, make_ledger: Make, own_server: RedisServer) -> None:
        ledger = make_ledger(own_server.url)
        own_server.client.replicaof("127.0.0.1", 1)
        with pytest.raises(LedgerUnavailable, match="read only replica"):
            ledger.record(Use(KEY, 1))

    def test_that_forgot_the_script_is_given_it_again(self, ledger: RedisLedger, server: RedisServer) -> None:
        hold = held(ledger)
        server.client.script_flush()
        assert ledger.commit(hold, [Use(KEY, 1)]) == [1]
        server.client.script_flush()
        assert drained(ledger) == {KEY: 1}

    def test_that_lost_a_hold_takes_its_commit_as_late(self, ledger: RedisLedger, server: RedisServer) -> None:
        hold = held(ledger)
        server.client.flushall()
        assert ledger.commit(hold, [Use(KEY, 1)]) == [1]
        assert ledger.counts()["late"] == 1

    @pytest.mark.parametrize(("saves", "warnings"), [("", 1), ("60 1", 0)])
    def test_that_keeps_nothing_is_warned_of_once(
        self, make_ledger: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, saves: str, warnings: int
    ) -> None:
        with RedisServer(tmp_path, durable=False) as server, caplog.at_level(logging.WARNING, "stigg_guard"):
            server.client.config_set("save", saves)
            ledger = make_ledger(server.url)
            ledger.ticket("ann")
            ledger.ticket("ann")
        assert [record.getMessage().count("writes nothing to disk") for record in caplog.records] == [1] * warnings

    def test_that_does_not_tell_what_it_keeps_is_not_warned_of(
        self, make_ledger: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with RedisServer(tmp_path, durable=False) as server:
            server.client.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-config")
            make_ledger(server.url.replace(":@", "app:pw@")).ticket("ann")
        assert not caplog.records


class TestUrl:
    def test_that_names_no_redis_is_refused_without_its_password(self) -> None:
        with pytest.raises(ConfigError, match="LEDGER: expected redis://") as refused:
            RedisLedger("redis://:s3/cret@localhost:6379/0", Clock())
        assert "s3" not in str(refused.value)
        assert refused.value.__cause__ is None

    def test_password_shows_in_no_error(self, make_ledger: Make, tmp_path: Path) -> None:
        with RedisServer(tmp_path, password="s3cret") as server:
            make_ledger(server.url).ticket("ann")
            wrong = make_ledger(server.url.replace("s3cret", "s4cret"))
            with pytest.raises(LedgerUnavailable) as refused:
                wrong.ticket("ann")
        assert "s4cret" not in f"{refused.value!r} {refused.value.__cause__!r}"

    def test_number_of_the_database_keeps_ledgers_apart(self, make_ledger: Make, server: RedisServer) -> None:
        make_ledger(server.url).record(Use(KEY, 1))
        assert make_ledger(server.url[:-1] + "1").counts()["unsent"] == 0

    def test_is_not_connected_to_before_the_first_use(self, make_ledger: Make) -> None:
        make_ledger("rediss://nowhere.invalid:6379/0").close()

    def test_without_redis_py_says_what_to_install(self) -> None:
        program = "import sys; sys.modules['redis'] = None; import stigg_guard.ledger.redis"
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert "A Redis ledger needs an extra that is not installed: pip install 'stigg-guard[redis]'" in ended.stderr


class TestCustomers:
    def test_of_one_hold_are_one(self, ledger: RedisLedger) -> None:
        with pytest.raises(InvalidRequest, match="one customer at a time"):
            ledger.hold([claim(), claim(OTHER)], 60)
        with pytest.raises(InvalidRequest, match="one customer at a time"):
            ledger.commit(held(ledger), [Use(OTHER, 1)])

    def test_share_batches(self, ledger: RedisLedger) -> None:
        keys = [UsageKey(f"c{number}", "", "templates") for number in range(7)]
        for key in keys:
            ledger.record(Use(key, 1))
        assert [report.key for report in taken(ledger, 5).reports] == keys[:5]
        assert [report.key for report in taken(ledger, 5).reports] == keys[5:]

    def test_come_again_together_when_the_lease_of_their_batch_ends(
        self, server: RedisServer, clock: ManualClock
    ) -> None:
        ledger = RedisLedger(server.url, clock.clock)
        for key in (KEY, OTHER):
            ledger.record(Use(key, 1))
        batch = taken(ledger)
        ledger.acknowledge([Acknowledged(batch.reports[0], 1, 0)])
        clock.advance(LEASE)
        assert [report.key for report in taken(ledger).reports] == [OTHER]
        ledger.close()

    def test_have_their_keys_in_one_slot(self, ledger: RedisLedger, server: RedisServer) -> None:
        everything(ledger)
        slots: dict[str, set[int]] = {}
        for name in server.client.keys(f"{PREFIX}*"):
            tag = name[name.index("{") : name.index("}")]
            slots.setdefault(tag, set()).add(key_slot(name.encode()))
        assert {tag: len(several) for tag, several in slots.items()} == dict.fromkeys(
            ["{queue", "{customer/ann", "{customer/bob"], 1
        )

    def test_are_told_to_every_script_by_keys_of_one_slot(self, ledger: RedisLedger, server: RedisServer) -> None:
        with server.client.monitor() as monitor:
            everything(ledger)
            server.client.echo("the end")
            scripts = []
            for seen in monitor.listen():
                name, *words = seen["command"].split(" ")
                if name == "ECHO":
                    break
                if seen["client_type"] == "lua" and words:
                    assert words[0] in scripts[-1], "a key that was not declared"
                elif name == "EVALSHA":
                    scripts.append(words[2 : 2 + int(words[1])])
        assert {len({key_slot(key.encode()) for key in keys}) for keys in scripts} == {1}

    def test_with_nothing_left_leave_nothing_in_the_queue(self, server: RedisServer, clock: ManualClock) -> None:
        ledger = RedisLedger(server.url, clock.clock)
        everything(ledger)
        drained(ledger)
        ledger.release(held(ledger))
        ledger.counts()
        clock.advance(LEASE)
        assert not ledger.take_uncertain(10, LEASE)
        left = {name.partition("}:")[2].partition(":")[0] for name in server.client.keys(f"{PREFIX}*")}
        assert left == {"usage", "counters", "ended"}
        ledger.close()

    def test_are_all_counted_however_many_there_are(self, ledger: RedisLedger) -> None:
        for number in range(CUSTOMERS_AT_ONCE + 1):
            ledger.record(Use(UsageKey(f"c{number}", "", "templates"), 1))
        assert ledger.counts()["unsent"] == CUSTOMERS_AT_ONCE + 1
        assert len(ledger.entries([State.UNSENT], 10_000)) == CUSTOMERS_AT_ONCE + 1

    def test_of_odd_names_are_kept_apart(self, ledger: RedisLedger) -> None:
        odd = ["a", "a/b", "a%2Fb", "a/~b", "a}b", "{a}", "a:b", "~a"]
        odder = [*odd, "a b", "ä", "", "a\x00b", "\ud800", "queue", '"', "a" * 999]
        keys = [UsageKey(one, other, "f") for one in odd for other in odder]
        keys += [UsageKey(one, "", other) for one in odder for other in ("f/", "~f", "f\n")]
        for amount, key in enumerate(dict.fromkeys(keys), 1):
            ledger.record(Use(key, amount))
        assert drained(ledger) == {key: amount for amount, key in enumerate(dict.fromkeys(keys), 1)}


def everything(ledger: RedisLedger) -> None:
    """Calls each method, and leaves something behind."""
    ledger.ticket("ann")
    hold = held(ledger, claim(), claim(UsageKey("ann", "site-01", "templates")))
    ledger.renew([hold], 60)
    ledger.commit(hold, [Use(held_claim.key, 1) for held_claim in hold.claims])
    ledger.release(held(ledger))
    ledger.record(Use(OTHER, 2, event=Event("login", "1", {})))
    batch = taken(ledger)
    ledger.postpone(batch, 0)
    ledger.split(taken(ledger))
    for part in (taken(ledger), taken(ledger)):
        ledger.doubt(part.reports, 0, "no answer")
    first, second = ledger.take_uncertain(2, LEASE)
    ledger.put_back([first])
    ledger.bury(second, "bad")
    assert ledger.retry([second.id]) == 1
    assert ledger.discard(["ann//templates/none"]) == 0
    acknowledge(ledger, taken(ledger))
    ledger.known_usage(KEY)
    ledger.entries(list(State), 10)
    ledger.counts()
    ledger.record(Use(OTHER, 1))


class TestQueue:
    """A step queues its customer before it changes it; whoever finds nothing to send takes the customer out again."""

    def test_forgets_no_customer_whose_step_comes_after_a_vain_visit(
        self, ledger: RedisLedger, server: RedisServer
    ) -> None:
        ahead = 2**52
        queue_at(server.client, ahead)
        assert ledger.take_batch(100, LEASE) is None
        ledger.record(Use(KEY, 1))
        assert drained(ledger) == {KEY: 1}

    def test_survives_a_crash_between_queueing_and_the_step(self, ledger: RedisLedger, server: RedisServer) -> None:
        queue_at(server.client, 5)
        assert ledger.take_batch(100, LEASE) is None
        assert not server.client.keys(f"{PREFIX}{{queue}}:*")

    def test_loses_nobody_while_many_record_and_many_drain(self, ledger: RedisLedger) -> None:
        keys = [UsageKey(f"c{number}", "", "templates") for number in range(3)]

        def record(key: UsageKey) -> None:
            for _ in range(200):
                ledger.record(Use(key, 1))

        arrived: dict[str, Entry] = {}
        with ThreadPoolExecutor(6) as pool:
            recording = [pool.submit(record, key) for key in keys]
            for _ in range(3):
                pool.submit(drain_until, lambda: all(one.done() for one in recording), ledger, arrived)
        drain(ledger, arrived)
        assert sums(arrived) == dict.fromkeys(keys, 200)

    def test_gives_no_batch_more_reports_after_its_lease(self, server: RedisServer, clock: ManualClock) -> None:
        ledger = RedisLedger(server.url, jumping(clock, read=3, seconds=LEASE))
        ledger.record(Use(KEY, 1))
        assert [report.amount for report in taken(ledger).reports] == [1]
        ledger.close()

    def test_splits_no_batch_after_the_lease_of_its_parts(self, server: RedisServer, clock: ManualClock) -> None:
        ledger = RedisLedger(server.url, jumping(clock, read=7, seconds=SPLIT_SECONDS))
        ledger.record(Use(KEY, 1))
        batch = taken(ledger)
        ledger.split(batch)
        assert taken(ledger).id == batch.id
        ledger.close()


def jumping(clock: ManualClock, read: int, seconds: float) -> Clock:
    """The clock, which goes forward before it is read for the ``read``-th time."""
    reads = count(1)

    def now() -> datetime:
        if next(reads) == read:
            clock.advance(seconds)
        return clock.now()

    return Clock(clock.monotonic, now)


def queue_at(client: Redis, token: int) -> None:
    """Queues ann, as a step does that ended there."""
    client.zadd(f"{PREFIX}{{queue}}:customers", {"ann": token}, gt=True)
    client.zadd(f"{PREFIX}{{queue}}:unsent", {"ann": token})


class TestCommit:
    def test_of_one_hold_is_made_once_however_often_it_is_asked_for(self, ledger: RedisLedger) -> None:
        hold = held(ledger, claim(amount=2))
        assert [ledger.commit(hold, [Use(KEY, 2)]) for _ in range(3)] == [[2]] * 3
        assert drained(ledger) == {KEY: 2}
        assert ledger.counts()["late"] == 0

    def test_whose_answer_is_lost_is_made_once(self, make_ledger: Make, server: RedisServer) -> None:
        with Forgetful(server.port) as proxy:
            ledger = make_ledger(f"redis://127.0.0.1:{proxy.port}/0?socket_timeout=30")
            hold = held(ledger, claim(amount=2))
            proxy.lose_next_answer()
            assert ledger.commit(hold, [Use(KEY, 2)]) == [2]
            proxy.lose_next_answer()
            assert ledger.record(Use(KEY, 3)) == 5
            assert drained(ledger) == {KEY: 5}


class Forgetful(socketserver.ThreadingTCPServer):
    """A way to a server on which answers get lost: the connection ends instead."""

    daemon_threads = True

    def __init__(self, to: int) -> None:
        super().__init__(("127.0.0.1", 0), Forgetful.Way)
        self.to = to
        self.loses = False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def lose_next_answer(self) -> None:
        self.loses = True

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    class Way(socketserver.BaseRequestHandler):
        server: Forgetful

        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", self.server.to)) as server:
                ways = {self.request: server, server: self.request}
                while True:
                    for ready in select.select([*ways], [], [])[0]:
                        said = ready.recv(65536)
                        if not said or (ready is server and self.server.loses):
                            self.server.loses = self.server.loses and not said
                            return
                        ways[ready].sendall(said)


class TestEvents:
    def test_of_one_key_count_without_being_added_up_anew(self, ledger: RedisLedger) -> None:
        for number in range(3):
            ledger.record(Use(KEY, 0.1, event=Event("call", str(number), {})))
        assert ledger.hold([claim(amount=9.8)], 60) == Refused(claim(amount=9.8), pytest.approx(0.3))
        ledger.bury(ledger.entries([State.UNSENT], 1)[0], "bad")
        assert isinstance(ledger.hold([claim(amount=9.8)], 60), Hold)

    def test_of_the_last_period_do_not_count_in_this_one(self, server: RedisServer, clock: ManualClock) -> None:
        ledger = RedisLedger(server.url, clock.clock)
        ledger.record(Use(KEY, 3, event=Event("call", "1", {})))
        clock.advance(100)
        start = clock.now().timestamp()
        assert ledger.hold([Claim(KEY, 99, 10, 0, start, 1)], 60) == Refused(Claim(KEY, 99, 10, 0, start, 1), 0)
        ledger.record(Use(KEY, 4, event=Event("call", "2", {})))
        assert ledger.hold([Claim(KEY, 99, 10, 0, start, 1)], 60) == Refused(Claim(KEY, 99, 10, 0, start, 1), 4)
        ledger.close()


class TestClock:
    def test_of_the_server_times_holds(self, ledger: RedisLedger, server: RedisServer) -> None:
        held(ledger)
        seconds, _ = server.client.time()
        ((_, until),) = server.client.zscan_iter(f"{PREFIX}{{customer/ann}}:held")
        assert 50 < until - seconds < 70

    def test_that_is_behind_other_hosts_loses_nothing(self, ledger: RedisLedger, server: RedisServer) -> None:
        queue_at(server.client, 2**52)
        ledger.take_batch(100, LEASE)
        hold = held(ledger)
        ledger.commit(hold, [Use(KEY, 1)])
        batch = taken(ledger)
        ledger.put_back(batch.reports)
        assert drained(ledger) == {KEY: 1}


CONSUMES = """
import sys
from concurrent.futures import ThreadPoolExecutor
from random import Random
from stigg_guard.clock import Clock
from stigg_guard.errors import LedgerUnavailable
from stigg_guard.ledger import Claim, Hold, UsageKey, Use
from stigg_guard.ledger.redis import RedisLedger

ledger = RedisLedger(sys.argv[1], Clock())
key = UsageKey("ann", "", "templates")
ledger.ticket("ann")
print("ready", flush=True)
sys.stdin.readline()

def consume(seed):
    random, used, refused = Random(seed), 0, 0
    for _ in range(40):
        amount = random.randint(1, 5)
        answer = ledger.hold([Claim(key, amount, 1000, 0, 0, 1)], 60)
        if not isinstance(answer, Hold):
            assert answer.counted + amount > 1000
        elif random.random() < 0.3:
            ledger.release(answer)
        else:
            ledger.commit(answer, [Use(key, amount)])
            used += amount
    return used

with ThreadPoolExecutor(8) as pool:
    print(sum(pool.map(consume, range(int(sys.argv[2]), int(sys.argv[2]) + 8))), flush=True)
ledger.close()
"""


class TestProcesses:
    def test_and_their_threads_sell_a_limit_exactly(self, ledger: RedisLedger, patient_url: str) -> None:
        commands = [[sys.executable, "-c", CONSUMES, patient_url, str(8 * number)] for number in range(8)]
        running = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for command in commands
        ]
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        sold = sum(int(process.communicate("\n")[0]) for process in running)
        assert 996 <= sold <= 1000
        assert drained(ledger) == {KEY: sold}
        assert ledger.known_usage(KEY) == sold

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_that_are_forked_have_connections_of_their_own(self, ledger: RedisLedger, server: RedisServer) -> None:
        ledger.record(Use(KEY, 1))
        before = {client["id"] for client in server.client.client_list()}
        child = os.fork()
        if child == 0:
            ledger.record(Use(KEY, 2))
            mine = {client["id"] for client in server.client.client_list()} - before
            ledger.close()
            os._exit(0 if mine else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert ledger.record(Use(KEY, 3)) == 6

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_that_are_forked_may_close_and_leave_their_parent_alone(self, ledger: RedisLedger) -> None:
        ledger.record(Use(KEY, 1))
        child = os.fork()
        if child == 0:
            ledger.close()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert ledger.record(Use(KEY, 1)) == 2

    def test_that_closed_are_told_so(self, ledger: RedisLedger) -> None:
        ledger.close()
        with pytest.raises(ClientClosed):
            ledger.counts()


class TestGuard:
    def test_counts_a_commit_once_of_which_nobody_knows_whether_it_was_made(
        self, sidecar: Sidecar, own_server: RedisServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        with Guard(Config(sidecar=sidecar.address, ledger=own_server.url)) as guard:
            with guard.consume("feature-templates", 2, customer="customer-demo-01"):
                own_server.pause()
            assert guard.check("feature-templates", customer="customer-demo-01")
            assert "is asked again until it does" in caplog.text
            own_server.resume()
            assert guard.flush(timeout=30) == 0
            assert guard.reload("customer-demo-01")
            assert guard.check("feature-templates", customer="customer-demo-01").current_usage == 5
            assert guard.stats()["stranded"] == 0

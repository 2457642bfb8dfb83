"""What only the Redis ledger has: customers in slots of their own, a queue of them, and hosts that share it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from redis import Redis
from redis.crc import key_slot

from conftest import ManualClock
from redis_ledgers import (
    KEY,
    LEASE,
    OTHER,
    Forgetful,
    acknowledge,
    claim,
    drain,
    drain_until,
    drained,
    held,
    sums,
    taken,
)
from redis_server import RedisServer
from stigg_guard.clock import Clock
from stigg_guard.errors import ClientClosed, InvalidRequest
from stigg_guard.ledger import (
    Acknowledged,
    Claim,
    Entry,
    Event,
    Hold,
    LimitExceeded,
    News,
    Period,
    State,
    UsageKey,
    Use,
)
from stigg_guard.ledger.redis import SPLIT_SECONDS, RedisLedger
from stigg_guard.ledger.redis_fields import PREFIX
from stigg_guard.ledger.redis_steps import CUSTOMERS_AT_ONCE

Make = Callable[[str], RedisLedger]


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
        ledger.acknowledge([Acknowledged(batch.reports[0], 1)])
        clock.advance(LEASE)
        assert [report.key for report in taken(ledger).reports] == [OTHER]
        ledger.close()

    def test_have_their_keys_in_one_slot(self, ledger: RedisLedger, server: RedisServer) -> None:
        everything(ledger)
        slots: dict[str, set[int]] = {}
        for name in server.client.keys("*"):
            tag = name[name.index("{") : name.index("}")]
            slots.setdefault(tag, set()).add(key_slot(name.encode()))
        assert {tag: len(several) for tag, several in slots.items()} == dict.fromkeys(
            ["{queue", "{customer/ann", "{customer/bob", "{customer/nonsense"], 1
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
        assert left == {"book", "ended", "clock"}
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
    ledger.put_back([first], 0, "again")
    ledger.bury(second, "bad")
    assert ledger.retry([second.id]) == 1
    assert ledger.discard(["ann/0000000000000001//templates", "nonsense"]) == 0
    acknowledge(ledger, taken(ledger))
    ledger.known(KEY)
    ledger.outstanding(KEY)
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
        assert server.client.keys(f"{PREFIX}{{queue}}:*") == [f"{PREFIX}{{queue}}:clock"]

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
        jumping = JumpingClock(clock)
        ledger = RedisLedger(server.url, Clock(clock.monotonic, jumping.now))
        ledger.record(Use(KEY, 1))
        ledger.take_batch(100, LEASE)
        ledger.record(Use(KEY, 2))
        jumping.jump(read=2, seconds=LEASE)  # between the queue and the customer
        assert [report.amount for report in taken(ledger).reports] == [1]
        ledger.close()

    def test_splits_no_batch_after_the_lease_of_its_parts(self, server: RedisServer, clock: ManualClock) -> None:
        jumping = JumpingClock(clock)
        ledger = RedisLedger(server.url, Clock(clock.monotonic, jumping.now))
        ledger.record(Use(KEY, 1))
        batch = taken(ledger)
        jumping.jump(read=2, seconds=SPLIT_SECONDS)  # between the leases and the customer
        ledger.split(batch)
        assert taken(ledger).id == batch.id
        ledger.close()


class JumpingClock:
    """A clock that goes forward before one of the next times it is read."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._reads = iter(())

    def jump(self, read: int, seconds: float) -> None:
        self._reads = iter([0.0] * (read - 1) + [seconds])

    def now(self) -> datetime:
        self._clock.advance(next(self._reads, 0.0))
        return self._clock.now()


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


class TestEvents:
    def test_of_one_key_count_without_being_added_up_anew(self, ledger: RedisLedger) -> None:
        for number in range(3):
            ledger.record(Use(KEY, 0.1, event=Event("call", str(number), {})))
        assert ledger.hold([claim(amount=9.8)], 60) == LimitExceeded(claim(amount=9.8), 0.3, 10)
        ledger.bury(ledger.entries([State.UNSENT], 1)[0], "bad")
        assert isinstance(ledger.hold([claim(amount=9.8)], 60), Hold)

    def test_of_the_last_period_do_not_count_in_this_one(self, server: RedisServer, clock: ManualClock) -> None:
        ledger = RedisLedger(server.url, clock.clock)
        begun_at = int(clock.now().timestamp()) * 1_000_000_000
        first, second = Period(begun_at, begun_at + 10**11), Period(begun_at + 10**11, begun_at + 2 * 10**11)
        ledger.hold([Claim(KEY, 99, News(first, 0, 10_000_000, 1))], 60)
        ledger.record(Use(KEY, 3, event=Event("call", "1", {})))
        clock.advance(100)
        wish = Claim(KEY, 99, News(second, 0, 10_000_000, 2))
        assert ledger.hold([wish], 60) == LimitExceeded(wish, 0, 10)
        ledger.record(Use(KEY, 4, event=Event("call", "2", {})))
        assert ledger.hold([wish], 60) == LimitExceeded(wish, 4, 10)
        ledger.close()


class TestClock:
    def test_of_the_server_times_holds(self, ledger: RedisLedger, server: RedisServer) -> None:
        held(ledger)
        seconds, _ = server.client.time()
        (place,) = server.client.zrange(f"{PREFIX}{{customer/ann}}:index", 0, -1)
        assert 50 < int(place[1:17]) / 1_000_000 - seconds < 70

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
from stigg_guard.ledger import Claim, Hold, News, Period, UsageKey, Use
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
        answer = ledger.hold([Claim(key, amount, News(Period(), 0, 1000_000_000, 1))], 60)
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
        row = ledger.known(KEY)
        assert row is not None
        assert row.used == sold * 1_000_000

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

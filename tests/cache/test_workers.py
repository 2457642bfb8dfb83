"""Guards that share snapshots as the processes of an application do: what one has asked, the others need not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cache.workers import ANN, CUSTOMER, NOBODY_LISTENS, PATIENCE, TEMPLATES, MakeGuard, Room, evals, fetched, until
from conftest import ManualClock, in_child
from redis_server import RedisServer
from stigg_guard import Config, Customer, Guard, InvalidRequest, SidecarError, SidecarUnavailable, Source
from stigg_guard.cache.shared import AllOf, Fetch
from stigg_guard.sidecar.catalog import demo_catalog, parse_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.store import Store

CALLS_PER_HOUR = """
[features.feature-calls]
type = "metered"
meter = "incremental"
[plans.p.entitlements]
feature-calls = { limit = 2, reset = "hour" }
[customers.c]
plan = "p"
"""


class TestWorkers:
    def test_snapshot_of_one_worker_answers_in_another_without_the_sidecar(self, make_worker: MakeGuard) -> None:
        first, second = make_worker(), make_worker(SIDECAR=NOBODY_LISTENS)
        assert first.check(TEMPLATES, customer=CUSTOMER).source is Source.SIDECAR
        answer = second.check(TEMPLATES, customer=CUSTOMER)
        assert (answer.source, answer.current_usage, answer.usage_limit) == (Source.CACHE, 3, 6)

    def test_missing_customer_is_shared_too(self, make_worker: MakeGuard) -> None:
        first, second = make_worker(), make_worker(SIDECAR=NOBODY_LISTENS)
        answers = [worker.check(TEMPLATES, customer="nobody") for worker in (first, second)]
        assert answers[0].reason is answers[1].reason is not None

    def test_cached_check_does_not_touch_redis(self, make_worker: MakeGuard, redis: RedisServer) -> None:
        worker = make_worker()
        worker.check(TEMPLATES, customer=CUSTOMER)
        before = evals(redis)
        for _ in range(100):
            assert worker.check(TEMPLATES, customer=CUSTOMER)
            assert worker.check(TEMPLATES, customer=CUSTOMER, requested_usage=2)
        assert evals(redis) == before

    @pytest.mark.parametrize(("age", "source"), [(29.999, Source.CACHE), (30.001, Source.SIDECAR)])
    def test_shared_snapshot_is_fresh_for_its_time_since_the_fetch(
        self, make_worker: MakeGuard, clock: ManualClock, age: float, source: Source
    ) -> None:
        make_worker().check(TEMPLATES, customer=CUSTOMER)
        clock.advance(age)
        assert make_worker().check(TEMPLATES, customer=CUSTOMER).source is source

    def test_finding_a_snapshot_does_not_lengthen_its_time(self, make_worker: MakeGuard, clock: ManualClock) -> None:
        make_worker().check(TEMPLATES, customer=CUSTOMER)
        clock.advance(20)
        worker = make_worker()
        assert worker.check(TEMPLATES, customer=CUSTOMER).source is Source.CACHE
        clock.advance(11)
        assert worker.check(TEMPLATES, customer=CUSTOMER).source is Source.SIDECAR

    def test_worker_that_starts_in_an_outage_answers_from_what_is_shared(
        self, make_worker: MakeGuard, clock: ManualClock
    ) -> None:
        make_worker().check(TEMPLATES, customer=CUSTOMER)
        clock.advance(31)
        worker = make_worker(SIDECAR=NOBODY_LISTENS, STALE_TTL=100)
        assert worker.check(TEMPLATES, customer=CUSTOMER).source is Source.STALE
        with pytest.raises(SidecarUnavailable):
            worker.check(TEMPLATES, customer="somebody-else")

    def test_worker_finds_what_is_shared_while_it_leaves_the_sidecar_alone(self, make_worker: MakeGuard) -> None:
        make_worker().check(TEMPLATES, customer=CUSTOMER)
        worker = make_worker(SIDECAR=NOBODY_LISTENS)
        with pytest.raises(SidecarUnavailable):
            worker.check(TEMPLATES, customer="somebody-else")
        assert worker.check(TEMPLATES, customer=CUSTOMER).source is Source.CACHE

    def test_shared_snapshot_that_is_too_old_answers_no_more(self, make_worker: MakeGuard, clock: ManualClock) -> None:
        make_worker().check(TEMPLATES, customer=CUSTOMER)
        clock.advance(131)
        with pytest.raises(SidecarUnavailable):
            make_worker(SIDECAR=NOBODY_LISTENS, STALE_TTL=100).check(TEMPLATES, customer=CUSTOMER)

    def test_denial_is_read_again_from_the_sidecar_and_not_from_an_equally_old_copy(
        self, make_worker: MakeGuard, clock: ManualClock
    ) -> None:
        seller, first, second = (make_worker(REPORT="inline") for _ in range(3))
        seller.report(TEMPLATES, 6, customer=CUSTOMER, set_total=True)
        assert not first.check(TEMPLATES, customer=CUSTOMER)
        seller.report(TEMPLATES, 2, customer=CUSTOMER, set_total=True)
        clock.advance(0.9)
        assert not second.check(TEMPLATES, customer=CUSTOMER)
        clock.advance(0.2)
        assert [worker.check(TEMPLATES, customer=CUSTOMER).source for worker in (first, second)] == [
            Source.SIDECAR,
            Source.CACHE,  # what the first has just fetched is young enough
        ]

    def test_shared_snapshot_does_not_outlive_the_usage_period(
        self, make_worker: MakeGuard, clock: ManualClock
    ) -> None:
        with Sidecar(Engine(parse_catalog(CALLS_PER_HOUR), Store(None), now=clock.now)) as hourly:
            first, second = make_worker(SIDECAR=hourly.address), make_worker(SIDECAR=hourly.address)
            end = first.check("feature-calls", customer="c").usage_period_end
            assert end is not None
            clock.advance((end - timedelta(seconds=5) - clock.now()).total_seconds())
            make_worker(SIDECAR=hourly.address).check("feature-calls", customer="c")
            clock.advance(5)
            assert second.check("feature-calls", customer="c").source is Source.SIDECAR

    def test_reload_reaches_every_worker(self, redis: RedisServer) -> None:
        with Sidecar(Engine(demo_catalog(), Store(None)), http_port=0) as sidecar:
            given = {"SIDECAR": sidecar.address, "CACHE": redis.url, "LEDGER": "memory://", "REPORT": "inline"}
            with Guard(Config.from_mapping(given)) as seller, Guard(Config.from_mapping(given)) as worker:
                assert worker.check(TEMPLATES, customer=CUSTOMER).current_usage == 3
                seller.report(TEMPLATES, 5, customer=CUSTOMER, set_total=True)
                wait = threading.Event()
                for _ in range(600):
                    seller.reload(CUSTOMER)
                    if worker.check(TEMPLATES, customer=CUSTOMER).current_usage == 5:
                        return
                    wait.wait(0.05)
        pytest.fail("the worker never heard of it")

    def test_worker_that_reloads_keeps_what_it_read(self, make_worker: MakeGuard) -> None:
        worker = make_worker()
        worker.reload(CUSTOMER)
        assert worker.check(TEMPLATES, customer=CUSTOMER).source is Source.CACHE

    def test_worker_keeps_its_own_snapshot_when_the_shared_one_is_older(
        self, make_worker: MakeGuard, redis: RedisServer, clock: ManualClock
    ) -> None:
        worker = make_worker(REPORT="inline")
        worker.check(TEMPLATES, customer=CUSTOMER)
        older = redis.client.dump(f"stigg-guard:snapshot:{CUSTOMER}/")
        clock.advance(20)
        worker.report(TEMPLATES, 5, customer=CUSTOMER, set_total=True)
        worker.reload(CUSTOMER)
        redis.client.restore(f"stigg-guard:snapshot:{CUSTOMER}/", 0, older, replace=True)
        clock.advance(2)
        answer = worker.check(TEMPLATES, customer=CUSTOMER, requested_usage=2)
        assert (answer.source, answer.current_usage) == (Source.SIDECAR, 5)

    def test_offline_answers_are_not_shared(self, make_worker: MakeGuard, redis: RedisServer) -> None:
        file = Path(__file__).parents[1] / "data" / "offline.json"
        worker = make_worker(SIDECAR="offline", OFFLINE_FILE=file)
        worker.check(TEMPLATES, customer=CUSTOMER)
        assert evals(redis) == 0

    def test_forked_child_has_a_connection_of_its_own(self, make_worker: MakeGuard) -> None:
        worker = make_worker()
        worker.check(TEMPLATES, customer=CUSTOMER)
        make_worker().check(TEMPLATES, customer="customer-demo-02")
        assert in_child(lambda: worker.check(TEMPLATES, customer="customer-demo-02").source is Source.CACHE)
        assert worker.check(TEMPLATES, customer="customer-demo-02").source is Source.CACHE


class HeldUp(Engine):
    """Counts the lists that are asked for; an answer waits until it is ``clear``, or fails."""

    def __init__(self) -> None:
        super().__init__(demo_catalog(), Store(None))
        self.lists = 0
        self.asked = threading.Event()
        self.clear = threading.Event()
        self.fault: Exception | None = None

    def answer(self, method: str, request: Any, **options: Any) -> Any:
        if method == "GetEntitlementsStateV2":
            self.lists += 1
            self.asked.set()
            assert self.clear.wait(PATIENCE)
            if self.fault is not None:
                raise self.fault
        return super().answer(method, request, **options)


class TestAtOnce:
    """Workers that miss at the same time."""

    @pytest.fixture
    def engine(self) -> Iterator[HeldUp]:
        made = HeldUp()
        yield made
        made.close()

    @pytest.fixture
    def workers(self, engine: HeldUp, make_worker: MakeGuard) -> Iterator[list[Guard]]:
        with Sidecar(engine) as sidecar:
            yield [make_worker(SIDECAR=sidecar.address, TIMEOUT=PATIENCE) for _ in range(8)]

    def test_ask_the_sidecar_once(self, engine: HeldUp, workers: list[Guard], redis: RedisServer) -> None:
        with ThreadPoolExecutor(8) as threads:
            before = evals(redis)
            answers = [threads.submit(worker.check, TEMPLATES, customer=CUSTOMER) for worker in workers]
            until(lambda: evals(redis) >= before + 3 * len(workers))  # each has looked, and most of them again
            engine.clear.set()
            sources = sorted(answer.result().source.value for answer in answers)
        assert (engine.lists, sources) == (1, ["cache"] * 7 + ["sidecar"])

    def test_do_not_wait_for_one_whose_fetch_failed(self, engine: HeldUp, workers: list[Guard]) -> None:
        engine.fault = InvalidRequest("", "not today")
        first, second, third, *_ = workers
        with ThreadPoolExecutor(2) as threads:
            failing = threads.submit(first.check, TEMPLATES, customer=CUSTOMER)
            assert engine.asked.wait(PATIENCE)
            waiting = threads.submit(second.check, TEMPLATES, customer=CUSTOMER)
            engine.clear.set()
            assert isinstance(failing.exception(), SidecarError | InvalidRequest)
            assert isinstance(waiting.exception(), SidecarError | InvalidRequest)
        engine.fault = None
        assert third.check(TEMPLATES, customer=CUSTOMER).source is Source.SIDECAR

    def test_do_not_wait_for_another_while_they_leave_the_sidecar_alone(
        self, make_worker: MakeGuard, room: Room, redis: RedisServer
    ) -> None:
        worker = make_worker(SIDECAR=NOBODY_LISTENS, TIMEOUT=PATIENCE)
        with pytest.raises(SidecarUnavailable):
            worker.check(TEMPLATES, customer="somebody-else")
        assert room.snapshots.begin(Customer(CUSTOMER), 0) is Fetch.OURS
        before = evals(redis)
        with pytest.raises(SidecarUnavailable, match="is not asked"):
            worker.check(TEMPLATES, customer=CUSTOMER)
        assert evals(redis) <= before + 2  # it has looked, and given nothing up that is not its own
        assert room.snapshots.begin(Customer(CUSTOMER), 0) is Fetch.OURS

    def test_take_over_from_one_that_was_killed(
        self, engine: HeldUp, workers: list[Guard], make_room: Callable[..., Room]
    ) -> None:
        engine.clear.set()
        killed, other = make_room(TIMEOUT=0.2).snapshots, make_room().snapshots
        customer = Customer(CUSTOMER)
        assert [killed.begin(customer, 0), other.begin(customer, 0)] == [Fetch.OURS, Fetch.THEIRS]
        assert workers[0].check(TEMPLATES, customer=CUSTOMER).source is Source.SIDECAR

    def test_fetch_what_is_newer_than_they_have_seen_and_no_more(
        self, make_room: Callable[..., Room], clock: ManualClock
    ) -> None:
        one, other = make_room(), make_room()
        one.store(fetched(one.stamp()))
        stored = one.stamp()
        assert [room.snapshots.begin(ANN, seen) for room, seen in ((other, 0), (other, stored), (one, stored))] == [
            Fetch.DONE,
            Fetch.OURS,
            Fetch.THEIRS,
        ]
        one.snapshots.give_up(ANN)  # it is not its own
        assert one.snapshots.begin(ANN, stored) is Fetch.THEIRS
        other.snapshots.give_up(ANN)
        assert one.snapshots.begin(ANN, stored) is Fetch.OURS
        clock.advance(1)
        one.store(fetched(one.stamp()))
        assert other.snapshots.begin(ANN, stored) is Fetch.DONE
        clock.advance(1)
        one.snapshots.invalidate(AllOf(ANN.id))
        assert other.snapshots.begin(ANN, 0) is Fetch.OURS

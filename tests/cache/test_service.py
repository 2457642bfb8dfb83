"""The cache service beside guards: no guard fetches, changes are seen by all, and without it all is as before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPConnection
from typing import Any

import pytest
from google.protobuf.message import Message

from cache.workers import (
    ANN,
    CUSTOMER,
    NOBODY_LISTENS,
    PATIENCE,
    TEMPLATES,
    MakeGuard,
    Room,
    comes,
    fetched,
    until,
    usage,
)
from conftest import ManualClock
from redis_server import RedisServer
from stigg_guard import Config, ConfigError, Customer, Guard, Source
from stigg_guard.cache import redis as cache_redis
from stigg_guard.cache import redis_snapshots
from stigg_guard.cache import service as cache_service
from stigg_guard.cache.service import CacheService
from stigg_guard.cache.shared import AllOf
from stigg_guard.errors import SidecarError
from stigg_guard.observer import Observer, Step
from stigg_guard.sidecar.catalog import demo_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.store import Store

WORKERS = 4
PICKED = "customer-demo-02"
OTHERS = tuple(f"nobody-{number}" for number in range(12))


class Fetches(Observer):
    """Counts those of guards."""

    def __init__(self) -> None:
        self.count = 0

    def fetched(self, step: Step) -> None:
        self.count += 1


@dataclass
class Site:
    """What processes share, a sidecar over an engine, and the workers of a site."""

    engine: Engine
    sidecar: Sidecar
    redis: RedisServer
    fetches: Fetches
    workers: list[Guard]
    make: MakeGuard
    clock: ManualClock

    def config(self, **given: object) -> Config:
        return Config.from_mapping({"SIDECAR": self.sidecar.address, "CACHE": self.redis.url, "TIMEOUT": 5, **given})

    @contextmanager
    def service(self, config: Config | None = None) -> Iterator[CacheService]:
        service = CacheService(config or self.config(), self.clock.clock, keep=600)
        thread = threading.Thread(target=service.run)
        thread.start()
        until(lambda: service.is_ready)
        yield service
        service.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()

    def sources(self, feature: str = TEMPLATES) -> list[Source]:
        return [worker.check(feature, customer=CUSTOMER).source for worker in self.workers]

    def limits(self) -> set[float | None]:
        return {worker.peek(TEMPLATES, customer=CUSTOMER).usage_limit for worker in self.workers}


@pytest.fixture
def site(
    redis: RedisServer, make_worker: MakeGuard, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    monkeypatch.setattr(cache_service, "PASS_SECONDS", 0.02)
    monkeypatch.setattr(cache_redis, "ANSWER_SECONDS", PATIENCE)  # after a timeout it rests, and this clock stands
    engine, fetches = Engine(demo_catalog(), Store(None), now=clock.now), Fetches()
    with Sidecar(engine) as sidecar:
        workers = [make_worker(SIDECAR=sidecar.address, TIMEOUT=5) for _ in range(WORKERS)]
        for worker in workers:
            worker.observe(fetches)
        yield Site(engine, sidecar, redis, fetches, workers, make_worker, clock)


def age(service: CacheService, customer: str = CUSTOMER) -> float:
    """How old what is shared is."""
    snapshot, now = service._shared.find(Customer(customer), to_use=False)
    return (now - snapshot.stamp) / 1e6 if snapshot is not None else float("inf")


def pass_time(site: Site, seconds: float, *services: CacheService) -> None:
    """Lets time pass until what is shared was renewed. A fetch that is under way while the clock is set comes from
    before: then time passes again."""
    for _ in range(15):
        site.clock.advance(seconds)
        if comes(lambda: all(age(service) == 0 for service in services), PATIENCE / 15):
            return
    pytest.fail("it was not renewed")


class TestFresh:
    def test_no_guard_fetches_while_it_runs(self, site: Site) -> None:
        site.sources()
        assert site.fetches.count == 1
        with site.service() as service:
            for _ in range(10):
                pass_time(site, 22, service)
                assert Source.SIDECAR not in site.sources()
        assert site.fetches.count == 1

    def test_without_it_guards_fetch_as_before(self, site: Site) -> None:
        site.sources()
        with site.service():
            pass
        site.clock.advance(31)
        assert site.sources() == [Source.SIDECAR, *[Source.CACHE] * (WORKERS - 1)]

    def test_a_worker_that_starts_in_an_outage_has_data(self, site: Site) -> None:
        site.sources()
        with site.service() as service:
            pass_time(site, 25, service)
        site.clock.advance(25)
        newcomer = site.make(SIDECAR=NOBODY_LISTENS)
        assert newcomer.check(TEMPLATES, customer=CUSTOMER).source is Source.CACHE

    def test_who_is_not_asked_for_any_more_is_not_renewed(self, site: Site) -> None:
        site.sources()
        with site.service() as service:
            pass_time(site, 22, service)
            site.clock.advance(601)
            site.workers[0].check(TEMPLATES, customer="customer-demo-02")
            until(lambda: service._due.keys() == {Customer("customer-demo-02")})
            assert age(service) == 601

    def test_two_services_share_the_work(self, site: Site) -> None:
        site.sources()
        with site.service() as one, site.service() as other:
            for _ in range(10):
                pass_time(site, 21, one, other)
                assert Source.SIDECAR not in site.sources()
        assert site.fetches.count == 1

    def test_more_customers_than_a_batch(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(redis_snapshots, "USES_AT_A_TIME", 7)
        names = [f"nobody-{number}" for number in range(150)]
        for name in names:
            site.workers[0].check(TEMPLATES, customer=name)
        with site.service() as service:
            site.clock.advance(25)
            until(lambda: all(service._due[Customer(name)] > site.clock.monotonic() for name in names))
            assert service.figures.registry.get_sample_value("stigg_guard_cache_customers") == 150
            before = site.fetches.count
            site.clock.advance(4)
            assert {site.workers[1].peek(TEMPLATES, customer=name).source for name in names} == {Source.CACHE}
            assert site.fetches.count == before == len(names)


class TestChanges:
    def test_an_upgrade_is_seen_by_all_and_no_guard_fetches(self, site: Site) -> None:
        assert site.limits() == {6}
        with site.service():
            for plan, limit in (("free", 2), ("growth", 50), ("essentials", 6)):
                site.clock.advance(1)  # stamps are of this clock
                self.watched(site)
                site.engine.assign_plan(CUSTOMER, plan)
                until(lambda wanted=limit: site.limits() == {wanted})
            assert site.fetches.count == 1

    def watched(self, site: Site) -> None:
        """Returns when the service hears what the sidecar tells."""
        heard: list[bytes] = []

        class Ear:
            def hear(self, channel: bytes, message: bytes | None) -> None:
                if message is not None and message.endswith(b"probe/*"):
                    heard.append(channel)

        ear = Ear()
        room = Room(site.redis.url, site.clock.clock)
        listener = room.snapshots.listen(ear.hear)
        until(lambda: (site.engine.tell("probe"), bool(heard))[1])
        listener.over.set()
        room.snapshots.close()

    def test_news_from_a_webhook_is_read_again_before_the_old_is_outdated(self, site: Site) -> None:
        site.limits()
        with site.service() as service:
            site.engine.on_change = lambda _: None  # Stigg's sidecar tells nothing
            site.clock.advance(1)
            site.engine.assign_plan(CUSTOMER, "free")
            site.workers[0].forget(CUSTOMER)
            until(lambda: site.limits() == {2})
            assert site.fetches.count == 1
            assert age(service) == 0

    def test_what_is_invalidated_at_once_is_renewed_too(self, site: Site) -> None:
        site.sources()
        with site.service() as service:
            site.clock.advance(1)
            site.workers[0]._workings.lookup.outdate(frozenset({CUSTOMER}))
            until(lambda: age(service) == 0)
            assert Source.SIDECAR not in site.sources()

    def test_its_own_fresh_copy_is_not_outdated_by_news_of_each_process(self, site: Site) -> None:
        site.sources()
        with site.service() as service:
            site.clock.advance(1)
            for worker in site.workers:
                worker.forget(CUSTOMER)
            until(lambda: age(service) == 0 and not service._told)
            site.clock.advance(1)
            assert Source.SIDECAR not in site.sources()
            assert age(service) == 1

    def test_while_the_sidecar_is_away_nothing_is_taken_away(self, site: Site, make_guard: MakeGuard) -> None:
        site.sources()
        site.clock.advance(1)
        service = CacheService(site.config(SIDECAR=NOBODY_LISTENS), site.clock.clock, keep=600)
        thread = threading.Thread(target=service.run)
        thread.start()
        until(lambda: bool(service._told))
        newcomer = site.make(SIDECAR=NOBODY_LISTENS)
        assert newcomer.check(TEMPLATES, customer=CUSTOMER).source is Source.CACHE
        assert service.is_alive
        assert not service.is_ready
        service.stop()
        thread.join(PATIENCE)

    def test_redis_may_go_and_come_back(self, site: Site, caplog: pytest.LogCaptureFixture) -> None:
        site.sources()
        with site.service() as service:
            site.redis.kill()
            until(lambda: not service.is_ready)
            site.clock.advance(5)  # it is left alone for a second
            site.redis.start()
            until(lambda: (site.clock.advance(2), service.is_ready)[1])
            site.clock.advance(31)
            site.sources()
            until(lambda: service._due.keys() == {Customer(CUSTOMER)})


class Picky(Engine):
    """Fails for some customers, and tells of no change."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(demo_catalog(), Store(None), now=now)
        self.on_change = lambda _: None
        self.fails = {PICKED}

    def answer(self, method: str, request: Any, **about: Any) -> Message:
        if request.customer_id in self.fails:
            raise SidecarError("no answer for this one", code="INVALID_ARGUMENT")
        return super().answer(method, request, **about)


class TestOneWhoAlwaysFails:
    """Among others. Time passes, as after a failure the sidecar is left alone for a moment."""

    @pytest.fixture
    def picky(self, site: Site) -> Picky:
        return Picky(site.clock.now)

    @pytest.fixture
    def service(self, site: Site, picky: Picky, monkeypatch: pytest.MonkeyPatch) -> Iterator[CacheService]:
        monkeypatch.setattr(cache_service, "TAKE_SECONDS", 1e6)
        for customer in (*OTHERS, PICKED):  # who came last is read first
            site.workers[0].check(TEMPLATES, customer=customer)
            site.clock.advance(1)
        with Sidecar(picky) as sidecar:
            service = CacheService(site.config(SIDECAR=sidecar.address), site.clock.clock, keep=1e5)
            thread = threading.Thread(target=service.run)
            thread.start()
            yield service
            service.stop()
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def test_keeps_no_other_from_being_renewed(self, site: Site, service: CacheService) -> None:
        self.comes(site, lambda: service.is_ready)
        site.clock.advance(25)
        begun = site.clock.monotonic()
        self.comes(site, lambda: all(age(service, customer) < site.clock.monotonic() - begun for customer in OTHERS))
        self.comes(site, lambda: service.is_ready)
        assert age(service, PICKED) > 25

    def test_keeps_no_change_of_others_from_being_seen(self, site: Site, service: CacheService) -> None:
        self.comes(site, lambda: service.is_ready)
        with ThreadPoolExecutor(1) as pool:
            taking = pool.submit(service.take, [PICKED, *OTHERS])
            self.comes(site, taking.done)
        assert taking.result() == set(OTHERS)

    def test_is_waited_for_to_a_deadline_where_nobody_is_answered_for(
        self, site: Site, picky: Picky, service: CacheService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.comes(site, lambda: service.is_ready)
        picky.fails |= set(OTHERS)
        self.comes(site, lambda: not service.is_ready)  # what was under way is answered
        monkeypatch.setattr(cache_service, "TAKE_SECONDS", 60)
        with ThreadPoolExecutor(1) as pool:
            begun = site.clock.monotonic()
            taking = pool.submit(service.take, OTHERS[:3])
            self.comes(site, taking.done)
        assert taking.result() == set()
        assert site.clock.monotonic() - begun > 60

    def comes(self, site: Site, holds: Callable[[], bool]) -> None:
        until(lambda: (site.clock.advance(0.6), holds())[1])


class TestStamps:
    def test_outdating_by_a_stamp_spares_what_is_newer(self, room: Room, clock: ManualClock) -> None:
        stamp = room.stamp()
        room.store(fetched(stamp, used=1))
        room.snapshots.outdate(AllOf(ANN.id), stamp)
        assert usage(room.find()) == 1
        clock.advance(1)
        room.snapshots.outdate(AllOf(ANN.id), stamp + 1)
        assert room.find() is None

    def test_whether_it_was_outdated_is_told(self, room: Room, redis: RedisServer) -> None:
        assert room.snapshots.outdate(AllOf(ANN.id), room.stamp())
        redis.kill()
        assert not room.snapshots.outdate(AllOf(ANN.id), 1)

    def test_an_older_stamp_does_not_lift_a_later_invalidation(self, room: Room, clock: ManualClock) -> None:
        stamp = room.stamp()
        clock.advance(1)
        room.store(fetched(room.stamp()))
        clock.advance(1)
        room.snapshots.invalidate(AllOf(ANN.id))
        room.snapshots.outdate(AllOf(ANN.id), stamp)
        assert room.find() is None

    def test_who_is_in_use_is_known_by_uses_and_not_by_renewals(self, room: Room, clock: ManualClock) -> None:
        for name in ("a", "b/c", "ä"):
            clock.advance(1)
            room.find(Customer(name, "r"))
        room.snapshots.find(Customer("d"), to_use=False)
        assert room.snapshots.in_use(60) == [Customer("ä", "r"), Customer("b/c", "r"), Customer("a", "r")]
        assert room.snapshots.in_use(0.5) == [Customer("ä", "r")]

    def test_nobody_is_told_where_no_service_runs(self, room: Room) -> None:
        assert not room.snapshots.tell(AllOf(None))


@pytest.mark.parametrize(
    "given",
    [
        {"CACHE": "memory://"},
        {"CACHE": "redis://localhost", "SIDECAR": "local"},
        {"CACHE": "redis://localhost", "ENABLED": False},
    ],
)
def test_it_says_what_it_needs(given: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"^(CACHE|SIDECAR|ENABLED): "):
        CacheService(Config.from_mapping(given), keep=600)


class Process:
    """The command in a process of its own."""

    def __init__(self, **environment: str) -> None:
        command = [sys.executable, "-m", "stigg_guard", "cache-service", "--http-port", "0"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}, stderr=subprocess.PIPE
        )
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        assert ready.startswith("ready http=127.0.0.1:"), self.process.communicate()
        self.port = int(ready.rpartition(":")[2])

    def get(self, path: str) -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request("GET", path)
        answer = connection.getresponse()
        told = answer.status, answer.read().decode()
        connection.close()
        return told

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=PATIENCE)
        return self.process.returncode


def test_killed_and_started_again_it_costs_nothing_but_freshness(redis: RedisServer) -> None:
    with Sidecar(Engine(demo_catalog(), Store(None)), http_port=0) as sidecar:
        given = {"SIDECAR": sidecar.address, "CACHE": redis.url, "LEDGER": "memory://"}
        environment = {f"STIGG_GUARD_{name}": value for name, value in given.items()}
        fetches = Fetches()
        guards = [Guard(Config.from_mapping({**given, "TIMEOUT": 5}), observer=fetches) for _ in range(WORKERS)]

        def limits() -> set[float | None]:
            return {guard.peek(TEMPLATES, customer=CUSTOMER).usage_limit for guard in guards}

        assert limits() == {6}
        first = Process(**environment)
        until(lambda: first.get("/readyz")[0] == 200)
        assert first.get("/livez") == (200, '{"status":"UP"}')
        assert "stigg_guard_cache_renewal_seconds_count" in first.get("/metrics")[1]
        assert first.get("/")[0] == 404
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
        assert limits() == {6}
        second = Process(**environment)
        until(lambda: second.get("/readyz")[0] == 200)
        assert limits() == {6}
        assert fetches.count == 1
        assert second.end(signal.SIGTERM) == 0
        for guard in guards:
            guard.close()

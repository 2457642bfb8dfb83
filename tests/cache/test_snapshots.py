"""Snapshots: how long they last, how often they are fetched, and what happens when they cannot be."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import count

import pytest

from conftest import ManualClock, in_child
from stigg_guard.cache.backoff import BACK_OFF_SECONDS
from stigg_guard.cache.snapshots import Listed, Snapshot, snapshot_of
from stigg_guard.cache.ttl_cache import EXTRAS_KEPT, SnapshotCache
from stigg_guard.clock import Clock
from stigg_guard.entitlements import Customer, Entitlement, Kind, Reason, Source
from stigg_guard.errors import SidecarError, SidecarTimeout, SidecarUnavailable
from stigg_guard.ledger import Ticket
from stigg_guard.wire import sidecar_pb2 as wire

ANN = Customer("ann")
PATIENCE = 30.0


def metered(used: float, period_end: datetime | None = None) -> wire.EntitlementV2:
    body = wire.MeteredEntitlement(
        feature=wire.EntitlementFeature(id="f"), usage_limit=6, current_usage=used, usage_period_end=period_end
    )
    return wire.EntitlementV2(has_access=used < 6, metered=body)


def usage(snapshot: Snapshot) -> float:
    answer = snapshot.find("f")
    assert answer is not None
    return answer.current_usage


class Pause:
    """Makes the first fetch that comes by wait until ``over``."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.over = threading.Event()

    def __call__(self) -> None:
        if not self.begun.is_set():
            self.begun.set()
            assert self.over.wait(PATIENCE)


class Origin:
    """Where snapshots come from: counts its fetches, and answers, fails or waits as it is told."""

    def __init__(self) -> None:
        self.asked: list[Customer] = []
        self.tickets = count(1)
        self.answer = metered(3)
        self.fault: Exception | None = None
        self.before: Callable[[], None] = lambda: None

    def fetch(self, customer: Customer) -> Snapshot:
        ticket = Ticket(next(self.tickets), 0)
        self.asked.append(customer)
        answer, fault = self.answer, self.fault
        self.before()
        if fault is not None:
            raise fault
        return snapshot_of(wire.GetEntitlementsStateV2Response(entitlements=[answer]), ticket)


@pytest.fixture
def origin() -> Origin:
    return Origin()


@pytest.fixture
def make_cache(origin: Origin, clock: ManualClock) -> Callable[..., SnapshotCache]:
    def make(**settings: float) -> SnapshotCache:
        wanted = {"ttl": 30.0, "stale_ttl": 100.0, "size": 10, "patience": PATIENCE, **settings}
        return SnapshotCache(origin.fetch, clock=clock.clock, **wanted)

    return make


@pytest.fixture
def cache(make_cache: Callable[..., SnapshotCache]) -> SnapshotCache:
    return make_cache()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as threads:
        yield threads


class TestTimeToLive:
    def test_second_look_asks_nobody(self, cache: SnapshotCache, origin: Origin) -> None:
        first, second = cache.get(ANN), cache.get(ANN)
        assert [first[1], second[1]] == [Source.SIDECAR, Source.CACHE]
        assert first[0] is second[0]
        assert origin.asked == [ANN]

    @pytest.mark.parametrize(("age", "source"), [(29.999, Source.CACHE), (30, Source.SIDECAR), (10**6, Source.SIDECAR)])
    def test_snapshot_is_fresh_for_its_time(
        self, cache: SnapshotCache, clock: ManualClock, age: float, source: Source
    ) -> None:
        cache.get(ANN)
        clock.advance(age)
        assert cache.get(ANN)[1] is source

    def test_looking_does_not_lengthen_the_time(self, cache: SnapshotCache, clock: ManualClock) -> None:
        for expected in (Source.SIDECAR, Source.CACHE, Source.CACHE, Source.SIDECAR):
            assert cache.get(ANN)[1] is expected
            clock.advance(12)

    def test_snapshot_does_not_outlive_the_usage_period(
        self, cache: SnapshotCache, origin: Origin, clock: ManualClock
    ) -> None:
        origin.answer = metered(3, period_end=clock.now() + timedelta(seconds=5))
        cache.get(ANN)
        clock.advance(4.999)
        assert cache.get(ANN)[1] is Source.CACHE
        clock.advance(0.001)
        assert cache.get(ANN)[1] is Source.SIDECAR

    def test_period_that_already_ended_does_not_make_every_look_a_fetch(
        self, cache: SnapshotCache, origin: Origin, clock: ManualClock
    ) -> None:
        origin.answer = metered(3, period_end=clock.now() - timedelta(seconds=5))
        cache.get(ANN)
        assert cache.get(ANN)[1] is Source.CACHE

    def test_customer_and_its_resource_have_snapshots_of_their_own(self, cache: SnapshotCache, origin: Origin) -> None:
        site = Customer("ann", resource="site-01")
        for customer in (ANN, site, ANN, site):
            cache.get(customer)
        assert origin.asked == [ANN, site]

    def test_refresh_asks_at_once(self, cache: SnapshotCache, origin: Origin) -> None:
        cache.get(ANN)
        origin.answer = metered(4)
        cache.refresh(ANN)
        assert usage(cache.get(ANN)[0]) == 4


class TestOutage:
    def test_old_snapshot_answers_while_nothing_else_does(
        self, cache: SnapshotCache, origin: Origin, clock: ManualClock
    ) -> None:
        snapshot, _ = cache.get(ANN)
        origin.fault = SidecarUnavailable("down")
        clock.advance(129.999)
        assert cache.get(ANN) == (snapshot, Source.STALE)

    def test_snapshot_that_is_too_old_answers_no_more(
        self, cache: SnapshotCache, origin: Origin, clock: ManualClock
    ) -> None:
        cache.get(ANN)
        origin.fault = SidecarUnavailable("down")
        clock.advance(130)
        with pytest.raises(SidecarUnavailable, match="down"):
            cache.get(ANN)

    def test_without_stale_time_an_expired_snapshot_is_gone(
        self, make_cache: Callable[..., SnapshotCache], origin: Origin, clock: ManualClock
    ) -> None:
        cache = make_cache(stale_ttl=0.0)
        cache.get(ANN)
        origin.fault = SidecarUnavailable("down")
        clock.advance(30)
        with pytest.raises(SidecarUnavailable):
            cache.get(ANN)

    def test_sidecar_is_left_alone_for_a_moment_after_a_failure(
        self, cache: SnapshotCache, origin: Origin, clock: ManualClock
    ) -> None:
        origin.fault = SidecarUnavailable("nobody listens")
        with pytest.raises(SidecarUnavailable, match=r"^nobody listens$"):
            cache.get(ANN)
        for name in ("ann", "bob"):
            with pytest.raises(SidecarUnavailable, match=r"not asked for another 0\.5 s, since: nobody listens"):
                cache.get(Customer(name))
        assert origin.asked == [ANN]
        origin.fault = None
        clock.advance(BACK_OFF_SECONDS)
        assert cache.get(ANN)[1] is Source.SIDECAR

    def test_fresh_snapshots_answer_during_the_back_off(self, cache: SnapshotCache, origin: Origin) -> None:
        cache.get(ANN)
        origin.fault = SidecarUnavailable("down")
        with pytest.raises(SidecarUnavailable):
            cache.get(Customer("bob"))
        assert cache.get(ANN)[1] is Source.CACHE

    def test_fault_of_our_own_is_neither_hidden_by_old_data_nor_held_against_the_sidecar(
        self, cache: SnapshotCache, origin: Origin, clock: ManualClock
    ) -> None:
        cache.get(ANN)
        clock.advance(31)
        origin.fault = ZeroDivisionError()
        with pytest.raises(ZeroDivisionError):
            cache.get(ANN)
        origin.fault = None
        assert cache.get(ANN)[1] is Source.SIDECAR

    def test_failed_refresh_keeps_what_is_cached(self, cache: SnapshotCache, origin: Origin) -> None:
        cache.get(ANN)
        origin.fault = SidecarError("no")
        with pytest.raises(SidecarError):
            cache.refresh(ANN)
        assert cache.get(ANN)[1] is Source.CACHE


class TestThreads:
    def test_many_threads_share_one_fetch(self, cache: SnapshotCache, origin: Origin, pool: ThreadPoolExecutor) -> None:
        origin.before = pause = Pause()
        everyone = threading.Barrier(64, action=pause.over.set)

        def look() -> Snapshot:
            everyone.wait(PATIENCE)
            return cache.get(ANN)[0]

        looks = [pool.submit(look) for _ in range(64)]
        assert len({id(one.result(PATIENCE)) for one in looks}) == 1
        assert origin.asked == [ANN]

    def test_followers_share_the_leaders_error(
        self, cache: SnapshotCache, origin: Origin, pool: ThreadPoolExecutor
    ) -> None:
        origin.before = pause = Pause()
        origin.fault = SidecarUnavailable("down")
        leader = pool.submit(cache.get, ANN)
        pause.begun.wait(PATIENCE)
        follower = pool.submit(cache.get, ANN)
        pause.over.set()
        for look in (leader, follower):
            assert isinstance(look.exception(PATIENCE), SidecarUnavailable)
        assert origin.asked == [ANN]

    def test_follower_has_a_patience_of_its_own(
        self, make_cache: Callable[..., SnapshotCache], origin: Origin, pool: ThreadPoolExecutor
    ) -> None:
        cache = make_cache(patience=0.01)
        origin.before = pause = Pause()
        leader = pool.submit(cache.get, ANN)
        pause.begun.wait(PATIENCE)
        with pytest.raises(SidecarTimeout, match=r"took longer than 0\.01 s"):
            cache.get(ANN)
        pause.over.set()
        assert leader.result(PATIENCE)[1] is Source.SIDECAR

    def test_follower_who_loses_patience_takes_old_data(
        self,
        make_cache: Callable[..., SnapshotCache],
        origin: Origin,
        clock: ManualClock,
        pool: ThreadPoolExecutor,
    ) -> None:
        cache = make_cache(patience=0.01)
        cache.get(ANN)
        clock.advance(31)
        origin.before = pause = Pause()
        leader = pool.submit(cache.get, ANN)
        pause.begun.wait(PATIENCE)
        assert cache.get(ANN)[1] is Source.STALE
        pause.over.set()
        leader.result(PATIENCE)

    def test_one_customers_fetch_does_not_wait_for_anothers(
        self, cache: SnapshotCache, origin: Origin, pool: ThreadPoolExecutor
    ) -> None:
        origin.before = pause = Pause()
        slow = pool.submit(cache.get, ANN)
        pause.begun.wait(PATIENCE)
        assert cache.get(Customer("bob"))[1] is Source.SIDECAR
        pause.over.set()
        slow.result(PATIENCE)

    def test_older_fetch_that_lands_late_does_not_replace_a_newer_one(
        self, cache: SnapshotCache, origin: Origin, pool: ThreadPoolExecutor
    ) -> None:
        origin.before = pause = Pause()
        late = pool.submit(cache.refresh, ANN)
        pause.begun.wait(PATIENCE)
        origin.answer = metered(5)
        cache.refresh(ANN)
        pause.over.set()
        late.result(PATIENCE)
        assert usage(cache.get(ANN)[0]) == 5


class TestBound:
    def test_readers_see_no_more_customers_than_the_size(
        self, make_cache: Callable[..., SnapshotCache], origin: Origin
    ) -> None:
        cache = make_cache(size=3)
        for name in "abcde":
            cache.get(Customer(name))
        assert set(cache.snapshots) == {"c", "d", "e"}
        assert cache.get(Customer("a"))[1] is Source.SIDECAR

    def test_fetching_again_keeps_a_customer_longest(self, make_cache: Callable[..., SnapshotCache]) -> None:
        cache = make_cache(size=2)
        for name in "aba":
            cache.refresh(Customer(name))
        cache.get(Customer("c"))
        assert set(cache.snapshots) == {"a", "c"}

    def test_what_is_too_old_even_for_an_outage_is_dropped(self, cache: SnapshotCache, clock: ManualClock) -> None:
        cache.get(ANN)
        clock.advance(130)
        cache.get(Customer("bob"))
        assert set(cache.snapshots) == {"bob"}


class TestCorrection:
    def test_later_usage_is_seen_by_the_next_look(self, cache: SnapshotCache, origin: Origin) -> None:
        cache.get(ANN)
        cache.correct(ANN, "f", 6)
        answer = cache.get(ANN)[0].find("f")
        assert answer is not None
        assert (answer.current_usage, answer.has_access) == (6, False)
        assert answer.reason is Reason.REQUESTED_USAGE_EXCEEDING_LIMIT

    def test_fetched_figures_stay_as_they_came(self, cache: SnapshotCache) -> None:
        cache.get(ANN)
        cache.correct(ANN, "f", 6)
        assert cache.get(ANN)[0].fetched["f"].current_usage == 3

    def test_answers_that_were_given_do_not_change(self, cache: SnapshotCache) -> None:
        given = cache.get(ANN)[0].find("f")
        assert given is not None
        cache.correct(ANN, "f", 6)
        assert given.current_usage == 3

    def test_next_fetch_replaces_the_correction(self, cache: SnapshotCache, origin: Origin, clock: ManualClock) -> None:
        cache.get(ANN)
        cache.correct(ANN, "f", 6)
        clock.advance(30)
        assert usage(cache.get(ANN)[0]) == 3

    def test_nothing_is_corrected_where_nothing_is_counted(self, cache: SnapshotCache, origin: Origin) -> None:
        cache.correct(ANN, "f", 6)
        assert not cache.snapshots
        origin.answer = wire.EntitlementV2(
            has_access=True, boolean=wire.BooleanEntitlement(feature=wire.EntitlementFeature(id="f"))
        )
        cache.get(ANN)
        cache.correct(ANN, "f", 6)
        cache.correct(ANN, "g", 6)
        assert usage(cache.get(ANN)[0]) == 0


class TestMemory:
    def test_message_is_kept_as_its_bytes(self, cache: SnapshotCache, origin: Origin) -> None:
        listed = cache.get(ANN)[0].messages
        assert isinstance(listed, Listed)
        assert listed.payload == wire.GetEntitlementsStateV2Response(entitlements=[origin.answer]).SerializeToString()
        assert dict(listed) == {"f": origin.answer}

    def test_entitlement_is_made_when_it_is_asked_for(self, cache: SnapshotCache) -> None:
        snapshot, _ = cache.get(ANN)
        assert snapshot.answers == {}
        answer = snapshot.find("f")
        assert snapshot.answers == {"f": answer}
        assert snapshot.find("f") is answer

    def test_customers_share_limits_and_periods(self, cache: SnapshotCache, origin: Origin, clock: ManualClock) -> None:
        origin.answer = metered(3, clock.now() + timedelta(days=1))
        ann, bob = (cache.get(Customer(name))[0].find("f") for name in ("ann", "bob"))
        assert ann is not None
        assert bob is not None
        assert ann is not bob
        assert ann.usage_limit is bob.usage_limit
        assert ann.usage_period_end is bob.usage_period_end
        assert ann.usage_period_ns is bob.usage_period_ns


class TestSingleAnswers:
    def test_answer_beside_the_list_lives_with_the_snapshot(self, cache: SnapshotCache, clock: ManualClock) -> None:
        snapshot, _ = cache.get(ANN)
        end = clock.now() + timedelta(seconds=5)
        cache.add(snapshot, Entitlement(feature_id="g", kind=Kind.METERED, has_access=True, usage_period_end=end))
        assert cache.get(ANN)[0].answers["g"].source is Source.CACHE
        assert list(cache.get(ANN)[0].messages) == ["f"]
        clock.advance(5)
        assert "g" not in cache.get(ANN)[0].answers

    def test_unknown_feature_is_remembered_as_missing(self, cache: SnapshotCache) -> None:
        snapshot, _ = cache.get(ANN)
        cache.add(snapshot, Entitlement(feature_id="g", has_access=False, reason=Reason.FEATURE_NOT_FOUND))
        assert snapshot.missing["g"].source is Source.CACHE
        assert "g" not in snapshot.answers

    def test_number_of_answers_beside_the_list_is_bounded(self, cache: SnapshotCache) -> None:
        snapshot, _ = cache.get(ANN)
        for number in range(2 * EXTRAS_KEPT):
            reason = Reason.FEATURE_NOT_FOUND if number % 2 else Reason.REVOKED
            cache.add(snapshot, Entitlement(feature_id=f"g{number}", has_access=False, reason=reason))
        assert len(snapshot.answers) + len(snapshot.missing) == EXTRAS_KEPT + 1
        assert snapshot.find("f") is not None


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
class TestFork:
    def test_child_does_not_wait_for_a_fetch_of_its_parent(
        self, cache: SnapshotCache, origin: Origin, clock: ManualClock, pool: ThreadPoolExecutor
    ) -> None:
        origin.before = pause = Pause()
        parents = pool.submit(cache.get, ANN)
        pause.begun.wait(PATIENCE)
        assert in_child(lambda: cache.get(ANN)[1] is Source.SIDECAR)
        pause.over.set()
        parents.result(PATIENCE)

    @pytest.mark.parametrize("moment", [1, 2, 3, 4])
    def test_child_goes_on_whatever_a_thread_of_its_parent_was_doing(
        self, origin: Origin, clock: ManualClock, pool: ThreadPoolExecutor, moment: int
    ) -> None:
        pause, looks_at_the_clock, parent = Pause(), count(1), os.getpid()

        def monotonic() -> float:
            if os.getpid() == parent and next(looks_at_the_clock) == moment:
                pause()
            return clock.monotonic()

        stopped = Clock(monotonic, clock.now)
        cache = SnapshotCache(origin.fetch, ttl=30, stale_ttl=0, size=9, patience=1, clock=stopped)
        parents = pool.submit(cache.get, ANN)
        pause.begun.wait(PATIENCE)
        assert in_child(lambda: usage(cache.refresh(ANN)) == 3)
        assert in_child(lambda: usage(cache.get(ANN)[0]) == 3)
        pause.over.set()
        parents.result(PATIENCE)

    def test_child_asks_again_during_its_parents_back_off(self, cache: SnapshotCache, origin: Origin) -> None:
        origin.fault = SidecarUnavailable("down")
        with pytest.raises(SidecarUnavailable):
            cache.get(ANN)
        origin.fault = None
        assert in_child(lambda: cache.get(ANN)[1] is Source.SIDECAR)

    def test_child_has_its_parents_snapshots(self, cache: SnapshotCache) -> None:
        cache.get(ANN)
        assert in_child(lambda: cache.get(ANN)[1] is Source.CACHE)

    def test_child_whose_tickets_start_anew_replaces_its_parents_snapshots(
        self, cache: SnapshotCache, origin: Origin
    ) -> None:
        for _ in range(5):
            cache.refresh(ANN)

        def work() -> bool:
            origin.tickets, origin.answer = count(1), metered(5)
            cache.refresh(ANN)
            return usage(cache.get(ANN)[0]) == 5

        assert in_child(work)

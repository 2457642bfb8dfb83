"""Using units over a real sidecar and a ledger in a file: several at once, in streams, while either one is away."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from conftest import ManualClock, full_disk, in_child
from stigg_guard import (
    Config,
    Customer,
    FeatureDenied,
    GetMeteredEntitlementRequest,
    Guard,
    InvalidRequest,
    LedgerUnavailable,
    Reason,
)
from stigg_guard.ledger import UsageKey, Use
from stigg_guard.sidecar.catalog import parse_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.store import Store
from stigg_guard.usage.streams import SettlingStream

CATALOG = """
[features.seats]
type = "metered"
meter = "fluctuating"
[features.calls]
type = "metered"
meter = "incremental"
[features.tokens]
type = "metered"
meter = "incremental"
[features.elsewhere]
type = "metered"
meter = "incremental"
[plans.p.entitlements]
seats = { limit = 10 }
calls = { limit = 5 }
tokens = { limit = 100 }
[customers.c]
plan = "p"
[customers.c.resources.site]
plan = "p"
[meters.answered]
feature = "tokens"
aggregation = "sum"
dimension = "tokens"
"""

MakeGuard = Callable[..., Guard]


class WatchedEngine(Engine):
    """Tells ``counted`` of every report, after it was counted and before it is answered."""

    counted: Callable[[Any], None] = staticmethod(lambda _request: None)

    def answer(self, method: str, request: Any, **options: Any) -> Any:
        answer = super().answer(method, request, **options)
        if method.startswith("Report"):
            self.counted(request)
        return answer

    def used(self, feature: str, resource: str | None = None) -> float:
        request = GetMeteredEntitlementRequest(customer_id="c", feature_id=feature, resource_id=resource)
        answer: Any = self.answer("GetMeteredEntitlement", request)
        return float(answer.entitlement.current_usage)


@pytest.fixture
def engine(clock: ManualClock) -> Iterator[WatchedEngine]:
    made = WatchedEngine(parse_catalog(CATALOG), Store(None), now=clock.now)
    yield made
    made.close()


class Outage:
    """A sidecar that can go away, and come back at the same address."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._running = Sidecar(engine)
        self._running.start()
        self.address = self._running.address
        self._is_up = True

    def begin(self) -> None:
        if self._is_up:
            self._running.stop(grace=0)
            self._is_up = False

    def end(self) -> None:
        self._running = Sidecar(self._engine, port=int(self.address.rpartition(":")[2]))
        self._running.start()
        self._is_up = True


@pytest.fixture
def outage(engine: WatchedEngine) -> Iterator[Outage]:
    made = Outage(engine)
    yield made
    made.begin()


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite3"


@pytest.fixture
def make_guard(outage: Outage, ledger: Path, clock: ManualClock) -> Iterator[MakeGuard]:
    made: list[Guard] = []

    def make(**settings: object) -> Guard:
        given = {"SIDECAR": outage.address, "LEDGER": f"sqlite:///{ledger}", "TIMEOUT": 10, **settings}
        made.append(Guard(Config.from_mapping(given), clock=clock.clock))
        return made[-1]

    yield make
    for guard in made:
        guard.close()


@pytest.fixture
def guard(make_guard: MakeGuard) -> Guard:
    return make_guard()


def unlimited_disk() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def exit_status(work: Callable[[], float]) -> int:
    """What the work comes to in a forked child; 99 when it fails."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            status = int(work())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def waiting(guard: Guard) -> int:
    """How many reports the ledger has, whether the reporter is trying to send them right now or not."""
    stats = guard.stats()
    return stats["unsent"] + stats["sending"]


def levels(caplog: pytest.LogCaptureFixture) -> set[int]:
    return {record.levelno for record in caplog.records if record.name == "stigg_guard"}


class TestSeveralFeatures:
    def test_are_held_and_reported_together(self, guard: Guard, engine: WatchedEngine) -> None:
        with guard.consume({"seats": 9, "calls": 5}, customer="c") as usage:
            assert set(usage.entitlements) == {"seats", "calls"}
            assert usage.entitlement.feature_id == "seats"
            for feature, n in (("seats", 2), ("calls", 1)):
                with pytest.raises(FeatureDenied), guard.consume(feature, n, customer="c"):
                    pytest.fail("oversold")
        assert guard.flush() == 0
        assert (engine.used("seats"), engine.used("calls")) == (9, 5)

    @pytest.mark.parametrize(("feature", "n"), [("calls", 6), ("elsewhere", 1)])
    def test_are_denied_together_and_the_denial_names_the_one(self, guard: Guard, feature: str, n: int) -> None:
        wanted = {"seats": 1, feature: n, "tokens": 1}
        with pytest.raises(FeatureDenied) as denied, guard.consume(wanted, customer="c"):
            pytest.fail("the block ran")
        assert denied.value.entitlement.feature_id == feature
        with guard.consume({"seats": 10, "tokens": 100}, customer="c"):
            pass

    def test_are_settled_one_by_one(self, guard: Guard, engine: WatchedEngine) -> None:
        with guard.consume({"seats": 5, "calls": 2, "tokens": 7}, customer="c") as usage:
            usage.settle("calls", 1)
            usage.settle("tokens", 0)
            usage.amount = 4
        assert guard.flush() == 0
        assert (engine.used("seats"), engine.used("calls"), engine.used("tokens")) == (4, 1, 0)

    def test_refuse_to_settle_what_is_not_held(self, guard: Guard) -> None:
        with (
            pytest.raises(InvalidRequest, match="'calls' is not held here; held are seats"),
            guard.consume("seats", customer="c") as usage,
        ):
            usage.settle("calls", 1)
        assert guard.stats()["held"] == 0

    def test_are_one_at_least(self, guard: Guard) -> None:
        with pytest.raises(InvalidRequest, match="at least one feature"):
            guard.consume({}, customer="c")

    def test_keep_their_fallbacks_when_they_are_decided_anew(self, make_guard: MakeGuard, clock: ManualClock) -> None:
        guard = make_guard(FALLBACKS={"unheard-of": {"hasAccess": True}})
        with guard.consume("seats", 8, customer="c"):
            clock.advance(2)
            with pytest.raises(FeatureDenied) as denied, guard.consume({"unheard-of": 1, "seats": 3}, customer="c"):
                pytest.fail("oversold")
        assert denied.value.entitlement.feature_id == "seats"


class TestOneFeature:
    def test_nested_holds_add_up_and_fail_apart(self, guard: Guard, engine: WatchedEngine) -> None:
        with guard.consume("seats", 4, customer="c"):
            with pytest.raises(ZeroDivisionError), guard.consume("seats", 6, customer="c"):
                _ = 1 / 0
            with guard.consume("seats", 6, customer="c") as inner:
                inner.amount = 5
                with pytest.raises(FeatureDenied), guard.consume("seats", 1, customer="c"):
                    pytest.fail("oversold")
        assert guard.flush() == 0
        assert engine.used("seats") == 9

    def test_more_used_than_held_is_reported_and_leaves_less_for_others(
        self, guard: Guard, engine: WatchedEngine
    ) -> None:
        with guard.consume("seats", 2, customer="c") as usage:
            usage.amount = 9
        with pytest.raises(FeatureDenied), guard.consume("seats", 2, customer="c"):
            pytest.fail("oversold")
        assert guard.flush() == 0
        assert engine.used("seats") == 9

    def test_canceled_gives_back_at_once_and_reports_nothing(self, guard: Guard, engine: WatchedEngine) -> None:
        with guard.consume("seats", 10, customer="c") as usage:
            usage.cancel()
            usage.cancel()
            with guard.consume("seats", 10, customer="c") as other:
                other.cancel()
        assert (guard.flush(), engine.used("seats")) == (0, 0)

    def test_is_reported_for_the_resource_that_used_it(self, guard: Guard, engine: WatchedEngine) -> None:
        with guard.consume("seats", 2, customer=Customer("c", resource="site")):
            pass
        assert guard.flush() == 0
        assert (engine.used("seats"), engine.used("seats", "site")) == (0, 2)


class TestEvents:
    def test_arrive_with_dimensions_of_their_own_types(self, guard: Guard, engine: WatchedEngine) -> None:
        seen: list[Any] = []
        engine.counted = seen.append
        dimensions = {"tokens": 30, "model": "small", "cached": True, "note": ""}
        with guard.consume("tokens", 30, customer="c", event="answered", dimensions=dimensions):
            pass
        assert guard.flush() == 0
        (event,) = seen[0].events
        kinds = {name: value.WhichOneof("value") for name, value in event.dimensions.items()}
        assert kinds == {
            "tokens": "number_value",
            "model": "string_value",
            "cached": "boolean_value",
            "note": "string_value",
        }
        assert (event.event_name, event.customer_id, engine.used("tokens")) == ("answered", "c", 30)

    def test_count_once_though_sent_twice(
        self, guard: Guard, engine: WatchedEngine, ledger: Path, clock: ManualClock
    ) -> None:
        sent: list[Any] = []
        with ExitStack() as disk:

            def fill_the_disk_once(request: Any) -> None:
                sent.append(request.events[0])
                if len(sent) == 1:
                    disk.enter_context(full_disk(ledger))

            engine.counted = fill_the_disk_once
            with guard.consume("tokens", 30, customer="c", event="answered", dimensions={"tokens": 30}):
                pass
            assert guard.flush(timeout=1) == 1
        clock.advance(31)
        assert guard.flush() == 0
        assert len(sent) == 2
        assert sent[0] == sent[1]
        assert engine.used("tokens") == 30

    def test_of_several_features_count_once(self, guard: Guard, engine: WatchedEngine) -> None:
        wanted = {"tokens": 30, "calls": 1}
        with guard.consume(wanted, customer="c", event="answered", dimensions={"tokens": 30}):
            pass
        assert guard.flush() == 0
        assert engine.used("tokens") == 30

    def test_of_a_failure_are_not_sent(self, guard: Guard, engine: WatchedEngine) -> None:
        with pytest.raises(ZeroDivisionError), guard.consume("tokens", 30, customer="c", event="answered"):
            _ = 1 / 0
        assert guard.flush() == 0
        assert guard.stats()["acknowledged"] == 0

    @pytest.mark.parametrize(
        ("event", "dimensions", "field"),
        [
            ("", {}, "event_name"),
            (7, {}, "event_name"),
            ("answered", {"tokens": None}, r"dimensions\[tokens\]"),
            ("answered", {"tokens": [1]}, r"dimensions\[tokens\]"),
            ("answered", {"tokens": float("nan")}, r"dimensions\[tokens\]"),
            ("answered", {"model": "\ud800"}, r"dimensions\[model\]"),
            ("answered", {1: "a"}, "dimensions"),
        ],
    )
    def test_that_cannot_be_sent_are_refused_before_the_block(
        self, guard: Guard, event: Any, dimensions: Any, field: str
    ) -> None:
        with pytest.raises(InvalidRequest, match=field):
            guard.consume("tokens", 1, customer="c", event=event, dimensions=dimensions)


class TestStreams:
    @pytest.fixture
    def stream(self, guard: Guard) -> Callable[[int], Any]:
        """A job that yields numbers, for as many seats as there are."""

        @guard.consumes_usage(lambda n: n, "seats", customer="c")
        def count(n: int) -> Iterator[int]:
            for number in range(n):
                if number == 4:
                    raise OSError("out of paper")
                yield number

        return count

    def test_are_reported_when_they_end_and_not_when_they_begin(
        self, stream: Callable[[int], Any], guard: Guard, engine: WatchedEngine
    ) -> None:
        numbers = stream(3)
        assert next(numbers) == 0
        assert (guard.stats()["held"], guard.stats()["unsent"]) == (1, 0)
        assert list(numbers) == [1, 2]
        numbers.close()
        assert list(numbers) == []
        assert guard.flush() == 0
        assert engine.used("seats") == 3

    def test_give_back_when_closed_half_way(
        self, stream: Callable[[int], Any], guard: Guard, engine: WatchedEngine
    ) -> None:
        numbers = stream(3)
        next(numbers)
        numbers.close()
        assert guard.stats()["held"] == 0
        assert (guard.flush(), engine.used("seats")) == (0, 0)

    def test_give_back_when_they_fail_half_way(
        self, stream: Callable[[int], Any], guard: Guard, engine: WatchedEngine
    ) -> None:
        with pytest.raises(OSError, match="out of paper"):
            list(stream(8))
        assert guard.stats()["held"] == 0
        assert (guard.flush(), engine.used("seats")) == (0, 0)

    def test_give_back_when_closed_before_they_began(self, stream: Callable[[int], Any], guard: Guard) -> None:
        stream(3).close()
        assert guard.stats()["held"] == 0

    def test_give_back_when_nobody_wants_them_any_more(self, stream: Callable[[int], Any], guard: Guard) -> None:
        numbers = stream(3)
        next(numbers)
        assert guard.stats()["held"] == 1
        del numbers
        gc.collect()
        assert guard.stats()["held"] == 0

    def test_that_are_dropped_in_an_event_loop_end_in_another_thread(self) -> None:
        ended_in: list[int] = []

        async def drop() -> None:
            stream = SettlingStream((), lambda _: ended_in.append(threading.get_ident()))
            del stream
            assert ended_in == []
            await asyncio.sleep(0)  # one turn of the loop, which hands the ending on

        asyncio.run(drop())
        assert len(ended_in) == 1
        assert ended_in != [threading.get_ident()]

    def test_that_are_dropped_tell_what_is_wrong_and_raise_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        def fail(_succeeded: bool) -> None:
            raise OSError("out of paper")

        stream = SettlingStream((), fail)
        del stream
        assert "out of paper" in caplog.text

    def test_run_their_own_cleaning_up_when_closed(self, guard: Guard) -> None:
        seen: list[int] = []

        @guard.consumes_usage(1, "seats", customer="c")
        def letters() -> Iterator[str]:
            try:
                yield "a"
            finally:
                seen.append(int(guard.stats()["held"]))

        stream: Any = letters()
        next(stream)
        stream.close()
        assert seen == [1]

    def test_of_units_given_back_count_when_they_end(self, guard: Guard, engine: WatchedEngine) -> None:
        guard.report("seats", 8, customer="c", set_total=True)

        @guard.releases_usage(2, "seats", customer="c")
        def remove() -> Iterator[int]:
            yield 1
            yield 2

        cut: Any = remove()
        next(cut)
        cut.close()
        assert guard.flush() == 0
        assert engine.used("seats") == 8
        assert list(remove()) == [1, 2]
        assert guard.flush() == 0
        assert engine.used("seats") == 6


class TestOneUse:
    def test_is_entered_once(self, guard: Guard, engine: WatchedEngine) -> None:
        usage = guard.consume("seats", 5, customer="c")
        with pytest.raises(ConnectionError), usage:
            raise ConnectionError
        with pytest.raises(InvalidRequest, match=r"call consume\(\) again"), usage:
            pass
        with guard.consume("seats", 5, customer="c") as usage, pytest.raises(InvalidRequest), usage:
            pass
        assert (guard.flush(), guard.stats()["held"], engine.used("seats")) == (0, 0, 5)

    def test_is_for_one_thread(self, guard: Guard, engine: WatchedEngine) -> None:
        usage, refused = guard.consume("seats", 1, customer="c"), []

        def enter() -> None:
            try:
                with usage:
                    pass
            except InvalidRequest as error:
                refused.append(error)

        threads = [threading.Thread(target=enter) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (guard.flush(), len(refused), engine.used("seats")) == (0, 3, 1)

    def test_begins_and_ends_without_a_block(self, guard: Guard, engine: WatchedEngine) -> None:
        usage = guard.consume("seats", 5, customer="c").begin()
        assert guard.stats()["held"] == 1
        usage.end(succeeded=True)
        usage.end(succeeded=True)
        assert (guard.flush(), engine.used("seats")) == (0, 5)

    def test_that_was_never_begun_cannot_succeed(self, guard: Guard) -> None:
        usage = guard.consume("seats", 5, customer="c")
        usage.cancel()
        with pytest.raises(InvalidRequest, match="nothing was held"):
            usage.end(succeeded=True)

    def test_of_a_dropped_stream_is_given_back_at_once(self, guard: Guard) -> None:
        @guard.consumes_usage(10, "seats", customer="c")
        def letters() -> Iterator[str]:
            yield from "ab"

        gc.disable()
        try:
            stream = letters()
            next(stream)
            assert guard.stats()["held"] == 1
            del stream
            assert guard.stats()["held"] == 0
        finally:
            gc.enable()

    def test_at_once_sends_what_was_used_before_and_no_more(
        self, guard: Guard, engine: WatchedEngine, clock: ManualClock
    ) -> None:
        """Others who go on using do not keep a process that ends from its end."""
        reported = []

        def use_more(request: Any) -> None:
            reported.append(request.feature_id)
            clock.advance(0.01)
            guard.ledger.record(Use(UsageKey("c", "", "tokens"), 0.1))

        guard.ledger.record(Use(UsageKey("c", "", "seats"), 1))
        reporter = guard._own.book.reporter
        engine.counted = use_more
        reporter.drain(before=guard.ledger.ticket("c").at)
        assert reported == ["seats", "tokens"]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
class TestForkedChild:
    def test_ends_what_it_has_begun_itself(self, make_guard: MakeGuard, engine: WatchedEngine) -> None:
        guard = make_guard()
        usage = guard.consume("seats", 4, customer="c")

        def use() -> bool:
            with usage:
                pass
            return guard.flush() == 0

        assert in_child(use)
        assert engine.used("seats") == 4

    @pytest.mark.parametrize("succeeded", [True, False])
    def test_does_not_end_what_its_parent_holds(self, guard: Guard, engine: WatchedEngine, succeeded: bool) -> None:
        def end() -> bool:
            usage.end(succeeded)
            return True

        usage = guard.consume("seats", 3, customer="c").__enter__()
        assert in_child(end)
        assert (guard.stats()["held"], guard.stats()["unsent"]) == (1, 0)
        usage.end(succeeded=True)
        assert (guard.flush(), engine.used("seats")) == (0, 3)

    @pytest.mark.parametrize("end", [list, SettlingStream.close, SettlingStream.__del__])
    def test_does_not_end_a_stream_of_its_parent(
        self, guard: Guard, engine: WatchedEngine, end: Callable[[Any], object]
    ) -> None:
        guard.report("seats", 5, customer="c", set_total=True)

        @guard.releases_usage(2, "seats", customer="c")
        @guard.consumes_usage(1, "calls", customer="c")
        def letters() -> Iterator[str]:
            yield from "ab"

        def end_it() -> bool:
            end(stream)
            return True

        stream = letters()
        assert in_child(end_it)
        assert guard.stats()["held"] == 1
        assert list(stream) == ["a", "b"]
        assert (guard.flush(), engine.used("seats"), engine.used("calls")) == (0, 3, 1)


class TestWithoutLedger:
    """The disk is full: the ledger can be read, and takes nothing."""

    @pytest.fixture(autouse=True)
    def opened(self, request: pytest.FixtureRequest, make_guard: MakeGuard) -> None:
        make_guard().stats()

    def test_error_denies_nobody_and_runs_nothing(self, guard: Guard, ledger: Path) -> None:
        with full_disk(ledger), pytest.raises(LedgerUnavailable, match="ledger"), guard.consume("seats", customer="c"):
            pytest.fail("the block ran")
        with guard.consume("seats", 10, customer="c"):
            pass

    def test_deny_denies(self, make_guard: MakeGuard, ledger: Path) -> None:
        guard = make_guard(ON_OUTAGE="deny")
        with full_disk(ledger), pytest.raises(FeatureDenied) as denied, guard.consume("seats", customer="c"):
            pytest.fail("the block ran")
        assert denied.value.entitlement.reason is Reason.UNKNOWN
        assert denied.value.entitlement.is_fallback

    def test_allow_runs_the_block_and_sends_its_usage_at_once(
        self, make_guard: MakeGuard, ledger: Path, engine: WatchedEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        guard = make_guard(ON_OUTAGE="allow")
        with full_disk(ledger):
            with guard.consume({"seats": 2, "calls": 0}, customer="c") as usage:
                assert usage.entitlement.usage_limit == 10
            assert (engine.used("seats"), guard.stats()["stranded"]) == (2, 0)
        assert "used without a hold" in caplog.text
        assert "sent at once" in caplog.text
        assert guard.check("seats", customer="c").current_usage == 2

    def test_allow_writes_the_usage_once_the_ledger_is_back(
        self, make_guard: MakeGuard, ledger: Path, engine: WatchedEngine, outage: Outage
    ) -> None:
        guard = make_guard(ON_OUTAGE="allow")
        with full_disk(ledger):
            usage = guard.consume({"seats": 2, "calls": 1}, customer="c").__enter__()
        outage.begin()
        usage.end(succeeded=True)
        assert waiting(guard) == 2
        outage.end()
        assert guard.flush(timeout=10) == 0
        assert (engine.used("seats"), engine.used("calls")) == (2, 1)

    def test_allow_gives_nothing_back_after_a_failure(
        self, make_guard: MakeGuard, ledger: Path, engine: WatchedEngine
    ) -> None:
        guard = make_guard(ON_OUTAGE="allow")
        with full_disk(ledger), pytest.raises(ZeroDivisionError), guard.consume("seats", 2, customer="c"):
            _ = 1 / 0
        assert (guard.flush(), engine.used("seats")) == (0, 0)

    def test_a_commit_is_sent_at_once(
        self, guard: Guard, ledger: Path, engine: WatchedEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        usage = guard.consume("seats", 2, customer="c").__enter__()
        with full_disk(ledger):
            usage.end(succeeded=True)
            assert engine.used("seats") == 2
        assert "sent at once" in caplog.text
        assert guard.stats()["stranded"] == 0

    def test_an_event_is_sent_at_once(self, guard: Guard, ledger: Path, engine: WatchedEngine) -> None:
        usage = guard.consume("tokens", 5, customer="c", event="answered", dimensions={"tokens": 5}).__enter__()
        with full_disk(ledger):
            usage.end(succeeded=True)
            assert engine.used("tokens") == 5

    def test_a_report_is_sent_at_once(self, guard: Guard, ledger: Path, engine: WatchedEngine) -> None:
        with full_disk(ledger):
            guard.report("seats", 0, customer="c")
            guard.report("seats", 3, customer="c", set_total=True)
            assert engine.used("seats") == 3

    def test_a_report_that_the_sidecar_refuses_is_told(
        self, guard: Guard, ledger: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with full_disk(ledger):
            guard.report("unheard-of", 3, customer="c")
        assert "the sidecar refuses usage of 'c unheard-of'" in caplog.text
        assert (guard.stats()["stranded"], guard.stats()["rejected"]) == (0, 1)

    def test_a_failure_leaves_the_hold_to_expire(
        self, guard: Guard, ledger: Path, clock: ManualClock, caplog: pytest.LogCaptureFixture
    ) -> None:
        usage = guard.consume("seats", 10, customer="c").__enter__()
        with full_disk(ledger):
            usage.cancel()
        assert "left to expire" in caplog.text
        with pytest.raises(FeatureDenied):
            guard.consume("seats", customer="c").__enter__()
        clock.advance(301)
        with guard.consume("seats", 10, customer="c"):
            pass


class TestWithoutLedgerAndSidecar:
    """What neither takes is kept in memory, loudly, until one of them does."""

    @pytest.fixture
    def keep(self, guard: Guard, ledger: Path, outage: Outage, caplog: pytest.LogCaptureFixture) -> Callable[[], None]:
        usage = guard.consume("seats", 2, customer="c").__enter__()

        def keep() -> None:
            outage.begin()
            usage.end(succeeded=True)
            assert guard.stats()["stranded"] == 1
            assert logging.CRITICAL in levels(caplog)
            assert "'c seats' is kept in memory only" in caplog.text
            assert guard.flush(timeout=0.1) >= 1

        return keep

    def test_is_sent_when_the_sidecar_is_back(
        self, guard: Guard, keep: Callable[[], None], outage: Outage, engine: WatchedEngine, ledger: Path
    ) -> None:
        with full_disk(ledger):
            keep()
            outage.end()
            guard.flush(timeout=10)
            assert guard.stats()["stranded"] == 0
        assert engine.used("seats") == 2

    def test_is_written_when_the_ledger_is_back(
        self, guard: Guard, keep: Callable[[], None], outage: Outage, engine: WatchedEngine, ledger: Path
    ) -> None:
        with full_disk(ledger):
            keep()
        assert guard.flush(timeout=0.1) == 1
        assert (guard.stats()["stranded"], waiting(guard)) == (0, 1)
        outage.end()
        assert guard.flush(timeout=10) == 0
        assert engine.used("seats") == 2

    def test_stays_with_the_process_that_keeps_it(self, guard: Guard, keep: Callable[[], None], ledger: Path) -> None:
        with full_disk(ledger):
            keep()

            def inherited() -> int:
                unlimited_disk()
                return guard.flush(timeout=0.1)

            assert exit_status(inherited) == 0
        assert guard.flush(timeout=0.1) == 1

    def test_is_kept_in_a_process_that_has_just_forked(self, guard: Guard, ledger: Path, outage: Outage) -> None:
        outage.begin()
        guard.stats()
        with closing(sqlite3.connect(ledger)) as damaged:
            damaged.execute("ALTER TABLE entries RENAME TO lost")

        def report() -> int:
            guard.report("seats", 1, customer="c")
            with closing(sqlite3.connect(ledger)) as mended:
                mended.execute("ALTER TABLE lost RENAME TO entries")
            return guard.stats()["stranded"] + waiting(guard)

        assert exit_status(report) == 1


class TestLongWork:
    def test_keeps_its_hold(self, guard: Guard, clock: ManualClock) -> None:
        with guard.consume("seats", 10, customer="c"):
            for _ in range(3):
                clock.advance(200)
                guard._own.book.keeper._renew()
            with pytest.raises(FeatureDenied), guard.consume("seats", customer="c"):
                pytest.fail("oversold")
        assert guard.stats()["late"] == 0

    def test_keeps_its_hold_while_a_report_takes_longer_than_that(
        self, make_guard: MakeGuard, clock: ManualClock, engine: WatchedEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        guard, renewed, answered = make_guard(HOLD_TTL=0.3), threading.Event(), threading.Event()
        reported = threading.Event()
        renew = guard.ledger.renew

        def renew_and_tell(*given: Any) -> None:
            renew(*given)
            renewed.set()

        def answer_late(_request: Any) -> None:
            reported.set()
            answered.wait(30)

        monkeypatch.setattr(guard.ledger, "renew", renew_and_tell)
        engine.counted = answer_late
        guard.report("calls", 1, customer="c")
        assert reported.wait(30)
        with guard.consume("seats", 10, customer="c"):
            for _ in range(3):
                clock.advance(0.2)
                renewed.clear()
                assert renewed.wait(30)
            with pytest.raises(FeatureDenied), guard.consume("seats", customer="c"):
                pytest.fail("oversold")
        answered.set()
        assert guard.stats()["late"] == 0

    def test_that_ends_late_counts_and_is_told(self, guard: Guard, clock: ManualClock, engine: WatchedEngine) -> None:
        with guard.consume("seats", 7, customer="c"):
            clock.advance(301)
            with guard.consume("seats", 4, customer="c"):
                pass
        assert guard.stats()["late"] == 1
        assert guard.flush() == 0
        assert engine.used("seats") == 11


class TestInline:
    @pytest.fixture
    def guard(self, make_guard: MakeGuard) -> Guard:
        return make_guard(REPORT="inline")

    def test_everything_is_reported_before_it_returns(self, guard: Guard, engine: WatchedEngine) -> None:
        with guard.consume({"seats": 5, "calls": 1}, customer="c"):
            pass
        assert (engine.used("seats"), engine.used("calls")) == (5, 1)
        with guard.consume("tokens", 5, customer="c", event="answered", dimensions={"tokens": 5}):
            pass
        assert engine.used("tokens") == 5
        guard.report("seats", -2, customer="c")
        assert engine.used("seats") == 3

    def test_a_long_backlog_is_left_to_the_background(
        self, guard: Guard, engine: WatchedEngine, clock: ManualClock
    ) -> None:
        for total in (1, 2, 3):
            guard.ledger.record(Use(UsageKey("c", "", "seats"), total, is_set=True))
        engine.counted = lambda _: clock.advance(6)
        guard.report("calls", 1, customer="c")
        assert guard.flush(timeout=60) == 0
        assert (engine.used("seats"), engine.used("calls")) == (3, 1)

    def test_what_used_nothing_reports_nothing(self, guard: Guard, engine: WatchedEngine) -> None:
        with guard.consume("seats", 5, customer="c") as usage:
            usage.amount = 0
        assert guard.stats()["acknowledged"] == 0

    def test_work_succeeds_without_the_sidecar(self, guard: Guard, engine: WatchedEngine, outage: Outage) -> None:
        with guard.consume("seats", 5, customer="c"):
            outage.begin()
        assert waiting(guard) == 1
        outage.end()
        assert guard.flush(timeout=10) == 0
        assert engine.used("seats") == 5


class TestGivingBack:
    @pytest.fixture(autouse=True)
    def ten_used(self, guard: Guard) -> None:
        with guard.consume("seats", 10, customer="c"):
            pass
        assert guard.flush() == 0

    def test_frees_units_when_the_sidecar_has_counted_it_and_not_before(
        self, guard: Guard, outage: Outage, engine: WatchedEngine
    ) -> None:
        outage.begin()
        guard.report("seats", -4, customer="c")
        with pytest.raises(FeatureDenied), guard.consume("seats", 1, customer="c"):
            pytest.fail("oversold")
        outage.end()
        assert guard.flush(timeout=10) == 0
        with guard.consume("seats", 4, customer="c"):
            pass
        assert guard.flush() == 0
        assert engine.used("seats") == 10

    def test_outlives_the_process_that_did_it(
        self, guard: Guard, make_guard: MakeGuard, outage: Outage, engine: WatchedEngine
    ) -> None:
        outage.begin()
        guard.report("seats", -4, customer="c")
        guard.close()
        outage.end()
        assert make_guard().flush(timeout=10) == 0
        assert engine.used("seats") == 6


def test_stats_tell_of_the_ledger_and_of_the_reporter(guard: Guard) -> None:
    with guard.consume("seats", 2, customer="c"):
        assert guard.stats()["held"] == 1
    assert guard.flush() == 0
    assert guard.stats() == {
        **dict.fromkeys(("held", "unsent", "sending", "uncertain", "waiting", "dead", "late"), 0),
        **dict.fromkeys(("rejected", "doubted", "failures", "stranded"), 0),
        "acknowledged": 1,
    }

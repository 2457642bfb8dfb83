"""Using units over a real sidecar and a ledger in a file: several at once, while either one is away."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from conftest import ManualClock, full_disk, in_child
from stigg_guard import Config, Customer, FeatureDenied, Guard, InvalidRequest
from stigg_guard.ledger import UsageKey, Use
from stigg_guard.usage.confirm import Confirm, ConfirmSince
from stigg_guard.usage.streams import SettlingStream
from usage.outage import MakeGuard, Outage, WatchedEngine, waiting


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
        reporter = guard._own.holds.reporter
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

    def test_does_not_give_back_what_its_parent_holds_and_it_drops(self, guard: Guard, engine: WatchedEngine) -> None:
        def drop() -> bool:
            begun.clear()
            gc.collect()
            guard.report("calls", 1, customer="c")
            return guard.flush() == 0 and guard.stats()["held"] == 1

        begun = [guard.consume("seats", 10, customer="c").__enter__()]
        assert in_child(drop)
        with pytest.raises(FeatureDenied), guard.consume("seats", customer="c"):
            pytest.fail("oversold")
        begun[0].end(succeeded=True)
        assert (guard.flush(), engine.used("seats")) == (0, 10)

    def test_reports_beside_its_parent(self, guard: Guard, engine: WatchedEngine) -> None:
        def use() -> bool:
            with guard.consume("seats", 4, customer="c"):
                watched = len(guard._own.holds.keeper._holds)
            return watched == 1 and guard.flush() == 0

        with guard.consume("seats", 3, customer="c"):
            assert in_child(use)
        assert (guard.flush(), engine.used("seats")) == (0, 7)

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


class StruckConfirm(ConfirmSince):
    """A transaction in which Ctrl-C comes at the begin of work, or at its end."""

    def __init__(self, at: str) -> None:
        self._at = at

    def begin(self) -> Confirm:
        if self._at == "begin":
            raise KeyboardInterrupt
        return self._confirm

    def _confirm(self, _end: Callable[[bool], None]) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("at", ["begin", "end"])
def test_struck_work_gives_back_what_it_held_whoever_keeps_the_exception(
    at: str, outage: Outage, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    config = Config.from_mapping({**outage.settings, "LEDGER": "memory://", "TIMEOUT": 10})
    with Guard(config, clock=clock.clock, confirm=StruckConfirm(at)) as guard:
        usage = guard.consume("seats", 10, customer="c")
        with pytest.raises(KeyboardInterrupt) as kept, usage:
            pass
        guard.flush()
        assert guard.stats()["held"] == 0
        assert kept.value.__traceback__ is not None
    assert "work was dropped without an end, and what it held is given back: 10 of 'c seats'" in caplog.text


class TestLongWork:
    def test_keeps_its_hold(self, guard: Guard, clock: ManualClock) -> None:
        with guard.consume("seats", 10, customer="c"):
            for _ in range(3):
                clock.advance(200)
                guard._own.holds.keeper._renew()
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


def test_who_finds_everything_under_way_has_not_reached_the_sidecar(make_guard: MakeGuard, outage: Outage) -> None:
    guard, other = make_guard(), make_guard()
    outage.begin()
    guard.report("seats", 1, customer="c")
    guard.flush(0.05)
    assert any(other.ledger.take_batch(100, 30) for _ in range(1000))  # the guard has it for a moment
    guard.flush(0.05)
    assert guard.stats()["failures"] > 0


def test_stats_tell_of_the_ledger_and_of_the_reporter(guard: Guard) -> None:
    with guard.consume("seats", 2, customer="c"):
        assert guard.stats()["held"] == 1
    assert guard.flush() == 0
    assert guard.stats() == {
        **dict.fromkeys(("held", "unsent", "sending", "uncertain", "waiting", "dead", "late"), 0),
        **dict.fromkeys(("rejected", "doubted", "failures", "stranded"), 0),
        "acknowledged": 1,
    }


class TestPartialHolds:
    def test_hold_what_is_left_if_that_is_enough(self, guard: Guard, engine: WatchedEngine) -> None:
        with guard.consume("seats", 7, customer="c"):
            pass
        with guard.consume("seats", 10, customer="c", at_least=2) as usage:
            assert usage.amount == 3
            answer = usage.entitlement
            assert (answer.has_access, answer.reason, answer.requested_usage) == (True, None, 3)
            with pytest.raises(FeatureDenied), guard.consume("seats", customer="c"):
                pytest.fail("oversold")
        assert guard.flush() == 0
        assert engine.used("seats") == 10

    def test_hold_all_where_all_is_left(self, guard: Guard) -> None:
        with guard.consume("seats", 10, customer="c", at_least=1) as usage:
            assert (usage.amount, usage.entitlement.requested_usage) == (10, 10)

    def test_are_denied_when_it_is_not_enough(self, guard: Guard) -> None:
        with (
            guard.consume("seats", 9, customer="c"),
            pytest.raises(FeatureDenied) as denied,
            guard.consume("seats", 5, customer="c", at_least=2),
        ):
            pytest.fail("oversold")
        assert denied.value.entitlement.requested_usage == 2
        assert guard.stats()["held"] == 0

    def test_count_what_was_really_used(self, guard: Guard, engine: WatchedEngine) -> None:
        with guard.consume("seats", 8, customer="c"):
            pass
        with guard.consume("seats", 5, customer="c", at_least=1) as usage:
            usage.amount = 1
        assert guard.flush() == 0
        assert engine.used("seats") == 9

    @pytest.mark.parametrize("at_least", [0, -1, 6, float("nan"), True, "1"])
    def test_refuse_what_is_no_such_amount(self, guard: Guard, at_least: Any) -> None:
        with pytest.raises(InvalidRequest, match="at_least"):
            guard.consume("seats", 5, customer="c", at_least=at_least)

    def test_are_of_one_feature(self, guard: Guard) -> None:
        with pytest.raises(InvalidRequest, match="all is held or nothing"):
            guard.consume({"seats": 5, "calls": 1}, customer="c", at_least=1)

    def test_sell_exactly_what_is_left_to_many_threads(self, guard: Guard, engine: WatchedEngine) -> None:
        sold: list[float] = []

        def use() -> None:
            try:
                with guard.consume("tokens", 7, customer="c", at_least=1) as usage:
                    sold.append(usage.amount)
            except FeatureDenied:
                pass

        threads = [threading.Thread(target=use) for _ in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(sold) == 100
        assert guard.flush() == 0
        assert engine.used("tokens") == 100


class TestOccupation:
    def test_holds_while_the_block_runs_and_reports_nothing(self, guard: Guard, engine: WatchedEngine) -> None:
        with guard.occupy("seats", 6, customer="c") as usage:
            assert usage.amount == 6
            assert usage.entitlement.feature_id == "seats"
            with guard.occupy("seats", 4, customer="c"):
                for n in (1, 4):
                    with pytest.raises(FeatureDenied), guard.occupy("seats", n, customer="c"):
                        pytest.fail("too many at once")
            with guard.occupy("seats", 4, customer="c"):
                pass
        assert guard.stats()["held"] == 0
        assert guard.flush() == 0
        assert engine.used("seats") == 0

    def test_gives_back_what_failed(self, guard: Guard) -> None:
        with pytest.raises(ZeroDivisionError), guard.occupy("seats", 10, customer="c"):
            _ = 1 / 0
        with guard.occupy("seats", 10, customer="c"):
            pass

    def test_shares_the_limit_with_uses(self, guard: Guard, engine: WatchedEngine) -> None:
        with guard.consume("seats", 7, customer="c"):
            pass
        with pytest.raises(FeatureDenied), guard.occupy("seats", 4, customer="c"):
            pytest.fail("too many at once")
        with guard.occupy("seats", 3, customer="c"):
            pass
        assert guard.flush() == 0
        assert engine.used("seats") == 7

    def test_decorates_functions_and_generators(self, guard: Guard, engine: WatchedEngine) -> None:
        @guard.occupies("seats", 10, customer="c")
        def parts() -> Iterator[int]:
            yield 1
            yield 2

        stream = parts()
        assert next(stream) == 1
        with pytest.raises(FeatureDenied):
            next(parts())
        assert list(stream) == [2]
        assert list(parts()) == [1, 2]
        assert guard.flush() == 0
        assert engine.used("seats") == 0

"""Uses with a caller's key: however often one is asked for, it counts once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from conftest import ManualClock, full_disk, in_child
from stigg_guard import (
    BoundKey,
    Config,
    ConfigError,
    Customer,
    FeatureDenied,
    Guard,
    InvalidRequest,
    KeyReused,
    UsageInProgress,
    UsageRepeated,
)
from stigg_guard.ledger.sqlite import SqliteLedger
from stigg_guard.sidecar.catalog import parse_catalog
from stigg_guard.sidecar.store import Store
from stigg_guard.testing import override_entitlements
from stigg_guard.usage.keys import FileKey
from usage.outage import CATALOG, MakeGuard, WatchedEngine

CREDITS = """
[currencies.credits]
units = "credits"
[features.ai]
type = "metered"
meter = "incremental"
credit_rate = { currency = "credits", amount = 2 }
[plans.q.entitlements]
ai = {}
[plans.q.credits]
credits = { amount = 20 }
[customers.d]
plan = "q"
"""
RATES = {"ai": {"currency": "credits", "rate": 2}}
ORDER = "order-42"


@pytest.fixture
def engine(clock: ManualClock) -> Iterator[WatchedEngine]:
    made = WatchedEngine(parse_catalog(CATALOG + CREDITS), Store(None), now=clock.now)
    yield made
    made.close()


class TestConsume:
    def test_of_a_repeat_holds_and_counts_nothing(self, guard: Guard, engine: WatchedEngine) -> None:
        with guard.consume("seats", 6, customer="c", key=ORDER) as first:
            assert not first.is_repeat
        for _ in range(2):
            with guard.consume("seats", 6, customer="c", key=ORDER) as usage:
                assert usage.is_repeat
                assert usage.amounts == {"seats": 0}
                assert usage.entitlement.feature_id == "seats"
                assert guard.stats()["held"] == 0
                usage.amount = 4
                assert usage.amounts == {"seats": 0}
                with pytest.raises(InvalidRequest):
                    usage.amount = -1
        guard.flush()
        assert engine.used("seats") == 6

    def test_while_the_first_goes_on_is_refused(self, guard: Guard, engine: WatchedEngine) -> None:
        with guard.consume("seats", customer="c", key=ORDER):
            with pytest.raises(UsageInProgress), guard.consume("seats", customer="c", key=ORDER):
                pytest.fail("it ran twice")
            with pytest.raises(UsageInProgress):
                guard.report("seats", 1, customer="c", key=ORDER)
        guard.flush()
        assert engine.used("seats") == 1

    def test_after_a_failure_is_like_new(self, guard: Guard, engine: WatchedEngine) -> None:
        with pytest.raises(ZeroDivisionError), guard.consume("seats", customer="c", key=ORDER):
            _ = 1 / 0
        with guard.consume("seats", customer="c", key=ORDER) as usage:
            usage.cancel()
        with guard.consume("seats", customer="c", key=ORDER) as usage:
            assert not usage.is_repeat
        guard.flush()
        assert engine.used("seats") == 1

    def test_after_a_denial_is_like_new(self, guard: Guard) -> None:
        with pytest.raises(FeatureDenied), guard.consume("seats", 11, customer="c", key=ORDER):
            pytest.fail("oversold")
        with guard.consume("seats", 10, customer="c", key=ORDER):
            pass

    def test_of_others_is_their_own(self, guard: Guard) -> None:
        for customer, feature, key in [
            ("c", "seats", ORDER),
            ("c", "calls", ORDER),
            ("c", "seats", "order-43"),
            (Customer("c", "site"), "seats", ORDER),
        ]:
            with guard.consume(feature, customer=customer, key=key) as usage:
                assert not usage.is_repeat

    def test_of_a_file_is_apart_from_one_of_more_features(self, guard: Guard) -> None:
        with guard.consume("calls", customer="c", key=FileKey("seats", ORDER)):
            pass
        with guard.consume({"calls": 1, "seats": 1}, customer="c", key=ORDER) as usage:
            assert not usage.is_repeat

    def test_of_several_features_is_one_use(self, guard: Guard, engine: WatchedEngine) -> None:
        for wanted in ({"seats": 2, "calls": 3}, {"calls": 3, "seats": 2}):
            with guard.consume(wanted, customer="c", key=ORDER):
                pass
        guard.flush()
        assert (engine.used("seats"), engine.used("calls")) == (2, 3)

    def test_of_what_is_left_is_one_use(self, guard: Guard, engine: WatchedEngine) -> None:
        for held in (10, 0):
            with guard.consume("seats", 12, customer="c", at_least=1, key=ORDER) as usage:
                assert usage.amount == held
        guard.flush()
        assert engine.used("seats") == 10

    def test_of_a_killed_process_is_like_new_when_its_hold_ends(
        self, guard: Guard, clock: ManualClock, engine: WatchedEngine
    ) -> None:
        assert in_child(lambda: guard.consume("seats", customer="c", key=ORDER).begin() is not None)
        with pytest.raises(UsageInProgress), guard.consume("seats", customer="c", key=ORDER):
            pytest.fail("it ran twice")
        clock.advance(guard.config.hold_ttl)
        with guard.consume("seats", customer="c", key=ORDER):
            pass
        guard.flush()
        assert engine.used("seats") == 1

    def test_that_is_late_counts_once_with_the_other(
        self, make_guard: MakeGuard, clock: ManualClock, engine: WatchedEngine
    ) -> None:
        first, second = make_guard(), make_guard()
        slow = first.consume("seats", customer="c", key=ORDER).begin()
        clock.advance(first.config.hold_ttl)
        with second.consume("seats", customer="c", key=ORDER) as usage:
            assert not usage.is_repeat
        slow.end(succeeded=True)
        assert first.flush() == second.flush() == 0
        assert engine.used("seats") == 1
        assert first.stats()["late"] == 1

    def test_with_the_key_of_another_use_is_refused(self, guard: Guard) -> None:
        with guard.consume("seats", customer="c", key=BoundKey(ORDER, "POST /orders")):
            pass
        with pytest.raises(KeyReused), guard.consume("seats", customer="c", key=BoundKey(ORDER, "POST /invoices")):
            pytest.fail("it ran")
        with guard.consume("seats", customer="c", key=BoundKey(ORDER, "POST /orders")) as usage:
            assert usage.is_repeat

    @pytest.mark.parametrize(
        "key", ["", "x" * 256, "\ud800", 42, BoundKey("", "POST /"), BoundKey(ORDER, None), BoundKey(ORDER, b"POST /")]
    )
    def test_refuses_what_is_no_key(self, guard: Guard, key: str) -> None:
        with pytest.raises(InvalidRequest, match="key: "):
            guard.consume("seats", customer="c", key=key)
        with pytest.raises(InvalidRequest, match="key: "):
            guard.report("seats", 1, customer="c", key=key)

    def test_takes_any_other_text(self, guard: Guard) -> None:
        for key in ("x" * 255, "ключ\n{a}/'\0"):
            with guard.consume("seats", customer="c", key=key):
                pass
            with guard.consume("seats", customer="c", key=key) as usage:
                assert usage.is_repeat


@pytest.mark.parametrize("rates", [RATES, {}], ids=["at a known rate", "at no known rate"])
def test_use_that_a_wallet_pays_for_counts_once(make_guard: MakeGuard, rates: object) -> None:
    guard = make_guard(CREDIT_RATES=rates, SETTLE_GRACE=0)
    for _ in range(3):
        with guard.consume("ai", 10, customer="d", key=ORDER) as usage:
            pass
    assert usage.is_repeat
    guard.flush()
    guard.reload("d")
    assert guard.entitlements("d")["credits"].current_usage == 20
    with pytest.raises(FeatureDenied), guard.consume("ai", 1, customer="d", key="order-43"):
        pytest.fail("oversold")


class TestReport:
    def test_counts_once(self, guard: Guard, engine: WatchedEngine) -> None:
        for _ in range(3):
            guard.report("seats", 4, customer="c", key=ORDER)
        guard.report("seats", -1, customer="c", key="order-43")
        guard.flush()
        assert engine.used("seats") == 3

    def test_beyond_the_limit_counts_too(self, guard: Guard, engine: WatchedEngine) -> None:
        guard.report("seats", 99, customer="c", key=ORDER)
        guard.flush()
        assert engine.used("seats") == 99

    def test_of_a_total_counts_once(self, guard: Guard, engine: WatchedEngine) -> None:
        guard.report("seats", 5, customer="c", set_total=True, key=ORDER)
        guard.report("seats", 1, customer="c")
        guard.report("seats", 5, customer="c", set_total=True, key=ORDER)
        guard.flush()
        assert engine.used("seats") == 6

    def test_of_what_was_consumed_counts_nothing(self, guard: Guard, engine: WatchedEngine) -> None:
        with guard.consume("seats", customer="c", key=ORDER):
            pass
        guard.report("seats", 1, customer="c", key=ORDER)
        guard.flush()
        assert engine.used("seats") == 1

    def test_without_a_ledger_is_sent_at_once(self, make_guard: MakeGuard, ledger: Path, engine: WatchedEngine) -> None:
        guard = make_guard()
        guard.stats()
        with full_disk(ledger):
            guard.report("seats", 2, customer="c", key=ORDER)
            assert engine.used("seats") == 2


def test_uses_that_an_outage_of_the_ledger_allows_count_once_when_it_is_back(
    make_guard: MakeGuard, ledger: Path, engine: WatchedEngine
) -> None:
    guard = make_guard(ON_OUTAGE="allow")
    guard.stats()
    with full_disk(ledger):
        uses = [guard.consume("seats", customer="c", key=ORDER).begin() for _ in range(2)]
    for usage in uses:
        usage.end(succeeded=True)
    guard.flush()
    assert engine.used("seats") == 1


class Struck(BaseException):
    """What comes from outside, as from a time-out of a server."""


@contextmanager
def struck_before_the_commit() -> Iterator[None]:
    """An exception from outside as the block comes to commit in the ledger."""

    def trace(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code is SqliteLedger.commit.__code__:
            sys.settrace(before)
            raise Struck

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with pytest.raises(Struck):
            yield
    finally:
        sys.settrace(before)


class TestInterruptedEnd:
    def test_of_a_range_beside_another_counts(self, guard: Guard, engine: WatchedEngine) -> None:
        file = FileKey("/manual.pdf", '"1"')
        whole, part = (guard.consume("seats", 2, customer="c", key=file).begin() for _ in range(2))
        whole.end(succeeded=False)
        with struck_before_the_commit():
            part.end(succeeded=True)
        assert guard.flush() == 0
        assert engine.used("seats") == 2

    def test_of_a_use_that_an_outage_allowed_counts_once(
        self, make_guard: MakeGuard, ledger: Path, engine: WatchedEngine
    ) -> None:
        guard = make_guard(ON_OUTAGE="allow")
        guard.stats()
        with full_disk(ledger):
            first, second = (guard.consume("seats", customer="c", key=ORDER).begin() for _ in range(2))
        with struck_before_the_commit():
            first.end(succeeded=True)
        assert (guard.flush(), engine.used("seats")) == (0, 1)
        second.end(succeeded=True)
        assert (guard.flush(), engine.used("seats")) == (0, 1)


class TestDecorator:
    def test_refuses_a_repeat(self, guard: Guard, engine: WatchedEngine) -> None:
        @guard.consumes_usage(2, "seats", customer="c", key=lambda order: order)
        def work(order: str | None) -> str:
            return f"done {order}"

        assert work("a") == "done a"
        with pytest.raises(UsageRepeated):
            work("a")
        assert [work(None), work(None)] == ["done None", "done None"]
        guard.flush()
        assert engine.used("seats") == 6

    def test_runs_a_repeat_if_it_is_told_to(self, guard: Guard, engine: WatchedEngine) -> None:
        @guard.consumes_usage(2, "seats", customer="c", key=lambda order: order, on_repeat="run")
        def work(order: str) -> str:
            return f"done {order}"

        assert [work("a"), work("a")] == ["done a", "done a"]
        guard.flush()
        assert engine.used("seats") == 2

    def test_refuses_a_text_which_all_calls_would_share(self, guard: Guard) -> None:
        with pytest.raises(ConfigError, match="all calls would share"):
            guard.consumes_usage(1, "seats", customer="c", key="Idempotency-Key")

    def test_refuses_what_is_no_answer_to_a_repeat(self, guard: Guard) -> None:
        with pytest.raises(ConfigError, match="on_repeat"):
            guard.consumes_usage(2, "seats", customer="c", key=str, on_repeat="ignore")  # type: ignore[arg-type] # wrong on purpose


def test_disabled_guard_counts_nothing_and_knows_no_repeat() -> None:
    with Guard(Config.from_mapping({"ENABLED": False})) as guard:
        for _ in range(2):
            with guard.consume("seats", customer="c", key=ORDER) as usage:
                assert not usage.is_repeat
            guard.report("seats", 1, customer="c", key=ORDER)
        with pytest.raises(InvalidRequest):
            guard.consume("seats", customer="c", key="")


def test_overridden_entitlements_count_once(guard: Guard) -> None:
    with override_entitlements({"seats": {"limit": 3}}) as stigg:
        for _ in range(2):
            with guard.consume("seats", 2, customer="c", key=ORDER) as usage:
                pass
            guard.report("seats", 1, customer="c", key="order-43")
        assert usage.is_repeat
        stigg.assert_usage_reported("seats", 3)

"""Features that a wallet of credits pays for, at rates that are known: holds in the wallet's currency."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from conftest import ManualClock, in_child
from stigg_guard import Config, ConfigError, Customer, FeatureDenied, Guard, Reason
from stigg_guard.amounts import units
from stigg_guard.ledger import State, UsageKey, Use
from stigg_guard.sidecar import entitlement_checks
from stigg_guard.sidecar.catalog import parse_catalog
from stigg_guard.sidecar.store import Store
from stigg_guard.usage.credits import CreditRate, told_rates
from usage.outage import MakeGuard, Outage, WatchedEngine

CATALOG = """
[currencies.credits]
units = "credits"
[features.ai]
type = "metered"
meter = "incremental"
credit_rate = { currency = "credits", amount = 2 }
[features.images]
type = "metered"
meter = "incremental"
credit_rate = { currency = "credits", amount = 0.5 }
[features.seats]
type = "metered"
meter = "fluctuating"
[features.loans]
type = "metered"
meter = "incremental"
[plans.p.entitlements]
ai = {}
images = {}
seats = { limit = 3 }
[plans.p.credits]
credits = { amount = 20 }
[customers.c]
plan = "p"
[customers.c.resources.site]
plan = "p"
"""
RATES = {"ai": {"currency": "credits", "rate": 2}, "images": {"currency": "credits", "rate": 0.5}}


@pytest.fixture
def engine(clock: ManualClock) -> Iterator[WatchedEngine]:
    made = WatchedEngine(parse_catalog(CATALOG), Store(None), now=clock.now)
    yield made
    made.close()


@pytest.fixture(params=[RATES, {}], ids=["by the setting", "by the source"])
def guard(make_guard: MakeGuard, request: pytest.FixtureRequest) -> Guard:
    return make_guard(CREDIT_RATES=request.param, SETTLE_GRACE=0)


def spent(guard: Guard, customer: str | Customer = "c") -> float:
    """What the sidecar has taken from the wallet."""
    guard.reload(customer)
    return guard.entitlements(customer)["credits"].current_usage


def used_of_wallet(guard: Guard) -> float:
    """What the ledger believes to be used of the wallet."""
    row = guard.ledger.known(UsageKey("c", "", "credits"))
    assert row is not None
    return units(row.used)


def test_holds_what_it_costs(guard: Guard) -> None:
    with guard.consume("ai", 7, customer="c") as usage:
        assert usage.entitlement.feature_id == "ai"
        with pytest.raises(FeatureDenied), guard.consume("ai", 4, customer="c"):
            pytest.fail("oversold")
        with guard.consume("images", 12, customer="c"):
            pass
    assert guard.flush() == 0
    assert spent(guard) == 20


def test_denies_with_the_figures_of_the_wallet(guard: Guard) -> None:
    with (
        guard.consume("ai", 6, customer="c"),
        pytest.raises(FeatureDenied) as denied,
        guard.consume("images", 20, customer="c"),
    ):
        pytest.fail("oversold")
    answer = denied.value.entitlement
    assert (answer.feature_id, answer.currency, answer.reason) == ("images", "credits", Reason.INSUFFICIENT_CREDITS)
    assert (answer.current_usage, answer.requested_usage, answer.usage_limit) == (12, 10, 20)
    assert guard.stats()["held"] == 0


def test_settles_what_was_really_used(guard: Guard) -> None:
    with guard.consume("ai", 10, customer="c") as usage:
        usage.amount = 1.5
    assert guard.flush() == 0
    assert spent(guard) == 3
    with pytest.raises(ZeroDivisionError), guard.consume("ai", 8, customer="c"):
        _ = 1 / 0
    with guard.consume("ai", 8.5, customer="c"):
        pass


def test_several_features_are_held_in_one_wallet_all_or_none(guard: Guard) -> None:
    with pytest.raises(FeatureDenied), guard.consume({"ai": 8, "images": 10, "seats": 1}, customer="c"):
        pytest.fail("oversold")
    with guard.consume({"ai": 8, "images": 8, "seats": 3}, customer="c"):
        assert guard.stats()["held"] == 3
        with pytest.raises(FeatureDenied), guard.consume("images", 1, customer="c"):
            pytest.fail("oversold")
    assert guard.flush() == 0
    assert spent(guard) == 20


def test_holds_what_is_left(guard: Guard) -> None:
    with guard.consume("images", 25, customer="c"):  # 7.5 credits are left
        with guard.consume("ai", 5, customer="c", at_least=1) as usage:
            assert usage.amount == 3
        with pytest.raises(FeatureDenied) as denied, guard.consume("ai", 5, customer="c", at_least=1):
            pytest.fail("oversold")
        assert denied.value.entitlement.requested_usage == 2


def test_a_resource_has_a_wallet_of_its_own(guard: Guard) -> None:
    site = Customer("c", "site")
    with guard.consume("ai", 10, customer="c"), guard.consume("ai", 10, customer=site):
        pass
    assert guard.flush() == 0
    assert (spent(guard), spent(guard, site)) == (20, 20)


def test_sells_exactly_the_wallet_to_many_threads(guard: Guard) -> None:
    together = threading.Barrier(16)

    def use(number: int) -> float:
        together.wait(20)
        sold = 0.0
        for turn in range(8):
            feature, cost = ("ai", 2) if (number + turn) % 2 else ("images", 0.5)
            try:
                with guard.consume(feature, customer="c"):
                    sold += cost
            except FeatureDenied:
                pass
        return sold

    with ThreadPoolExecutor(16) as threads:
        sold = sum(threads.map(use, range(16)))
    assert guard.flush() == 0
    assert spent(guard) == sold
    assert sold == 20


def test_what_was_reported_counts_until_the_sidecar_tells_of_it(make_guard: MakeGuard) -> None:
    guard = make_guard(CREDIT_RATES=RATES)  # which heeds no lower figure for a while
    with guard.consume("ai", 10, customer="c"):
        pass
    assert guard.flush() == 0
    with pytest.raises(FeatureDenied), guard.consume("images", 1, customer="c"):
        pytest.fail("oversold")


def test_rates_come_from_the_sidecar_where_the_setting_names_none(make_guard: MakeGuard) -> None:
    guard = make_guard(CREDIT_RATES={"images": {"currency": "credits", "rate": 1}})
    with guard.consume("ai", 8, customer="c"):
        with guard.consume("images", 4, customer="c"):
            pass
        with pytest.raises(FeatureDenied) as denied, guard.consume("ai", 1, customer="c"):
            pytest.fail("oversold")
    answer = denied.value.entitlement
    assert (answer.currency, answer.requested_usage, answer.current_usage) == ("credits", 2, 20)
    with pytest.raises(FeatureDenied), guard.consume("ai", 1, customer="c"):  # within the grace
        pytest.fail("oversold")


def test_what_is_held_is_paid_at_its_rate_when_that_changes_meanwhile(
    make_guard: MakeGuard, engine: WatchedEngine
) -> None:
    guard = make_guard()
    with guard.consume("ai", 4, customer="c"):
        engine.replace_catalog(parse_catalog(CATALOG.replace("amount = 2 }", "amount = 1 }")))
        guard.reload("c")
        with pytest.raises(FeatureDenied), guard.consume("ai", 17, customer="c"):  # at 1 credit each, with 4 held
            pytest.fail("oversold")
        with guard.consume("ai", 6, customer="c"):
            pass
    assert [(one.amount, one.rate) for one in guard.ledger.entries([State.UNSENT], 9)] == [
        (6, CreditRate("credits", 1)),
        (4, CreditRate("credits", 2)),
    ]
    assert guard.flush() == 0
    assert used_of_wallet(guard) == 6 + 8


def test_a_process_that_knows_no_rate_notes_what_was_paid(make_guard: MakeGuard) -> None:
    reporter = make_guard()
    reporter.ledger.record(Use(UsageKey("c", "", "ai"), 10, rate=CreditRate("credits", 2.0)))
    assert reporter.flush() == 0
    assert used_of_wallet(reporter) == 20


def test_pages_show_what_was_paid_before_the_sidecar_knows_of_it(guard: Guard, outage: Outage) -> None:
    with guard.consume("ai", 4, customer="c"):
        outage.begin()
    guard.report("images", 3, customer="c")
    assert guard.entitlements("c")["credits"].current_usage == 9.5
    outage.end()


def test_a_hold_that_travels_takes_its_rate_along(make_guard: MakeGuard) -> None:
    web, worker = make_guard(TOKEN_SECRET="s" * 16), make_guard(TOKEN_SECRET="s" * 16)
    with worker.resume(web.hold("ai", 10, customer="c", ttl=60).token):
        pass
    assert worker.flush() == 0
    assert used_of_wallet(worker) == 20


def test_what_is_reported_without_a_hold_is_paid_at_the_rate_that_is_known(guard: Guard) -> None:
    guard.report("ai", 10, customer="c")
    assert guard.flush() == 0
    with pytest.raises(FeatureDenied), guard.consume("images", 1, customer="c"):
        pytest.fail("oversold")


@pytest.mark.skipif(os.environ.get("STIGG_TESTS_ON") == "cloud", reason="the API tells the rates")
def test_without_a_rate_the_sidecar_is_asked_and_the_log_says_what_is_missing(
    make_guard: MakeGuard, engine: WatchedEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(entitlement_checks, "set_rates", lambda *_: None)  # as Stigg's own sidecar, which tells none
    guard = make_guard(CREDIT_RATES={"images": RATES["images"]})
    for _ in range(2):
        with guard.consume("ai", 1, customer="c"):
            pass
    assert [record.getMessage().partition(",")[0] for record in caplog.records if "CREDIT_RATES" in record.message] == [
        "'ai' is paid from credits"
    ]


@pytest.mark.parametrize("rates", [{}, {"loans": {"currency": "credits", "rate": 1}}])
def test_of_a_feature_that_the_plan_lacks_the_log_says_nothing_of_credits(
    make_guard: MakeGuard, rates: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    guard = make_guard(CREDIT_RATES=rates)
    with pytest.raises(FeatureDenied) as denied, guard.consume("loans", 1, customer="c"):
        pytest.fail("the plan lacks it")
    assert denied.value.entitlement.reason is Reason.NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION
    assert [record.getMessage() for record in caplog.records if "CREDIT_RATES" in record.getMessage()] == []


@pytest.mark.skipif(os.environ.get("STIGG_TESTS_ON") == "cloud", reason="the API tells the rates")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_a_check_of_its_parent(
    make_guard: MakeGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def use() -> bool:
        with guard.consume("ai", 1, customer="c"):
            return True

    def check() -> bool:
        begun.set()
        return over.wait(30)

    monkeypatch.setattr(entitlement_checks, "set_rates", lambda *_: None)
    guard, begun, over = make_guard(CREDIT_RATES={}), threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        checked = pool.submit(guard._own.holds._background.get().checks.take, Customer("c"), check)
        assert begun.wait(30)
        try:
            assert in_child(use)
        finally:
            over.set()
        assert checked.result()


def test_a_wallet_that_the_plan_has_not_is_no_wallet(make_guard: MakeGuard) -> None:
    guard = make_guard(CREDIT_RATES={"ai": {"currency": "gold", "rate": 2}})
    with guard.consume("ai", 10, customer="c"):
        pass
    with pytest.raises(FeatureDenied), guard.consume("ai", 1, customer="c"):
        pytest.fail("oversold")


@pytest.mark.parametrize("told", [RATES, json.dumps(RATES), {"ai": CreditRate("credits", 2.0)}])
def test_rates_are_a_setting(told: object) -> None:
    assert Config.from_mapping({"CREDIT_RATES": told}).credit_rates["ai"] == ("credits", 2.0)


@pytest.mark.parametrize(
    ("told", "rates"),
    [
        (b"", {}),
        (b"[1]", {}),
        (b"{", {}),
        (b"\xff", {}),
        (json.dumps({"a": {"currency": "credits", "rate": 0}, "ai": RATES["ai"]}).encode(), {"ai": ("credits", 2)}),
        (json.dumps({"a": {"currency": None, "rate": 1}, "ai": RATES["ai"]}).encode(), {"ai": ("credits", 2)}),
    ],
)
def test_a_source_is_believed_as_far_as_it_tells_rates(told: bytes, rates: object) -> None:
    assert told_rates(told) == rates


@pytest.mark.parametrize(
    ("told", "fault"),
    [
        ([1], "expected a mapping"),
        ("{", "JSON"),
        ({"ai": 2}, "ai: expected a currency and a rate"),
        ({"ai": {"currency": "credits"}}, "ai: expected a currency and a rate"),
        ({"ai": {"currency": "credits", "rate": 0}}, "above 0"),
        ({"ai": {"currency": "credits", "rate": True}}, "above 0"),
        ({"ai": {"currency": "credits", "rate": float("nan")}}, "above 0"),
        ({"ai": {"currency": "", "rate": 1}}, "currency"),
    ],
)
def test_wrong_rates_are_told(told: object, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        Config.from_mapping({"CREDIT_RATES": told})


TENTHS = CATALOG.replace("amount = 2 }", "amount = 0.1 }").replace(
    "credits = { amount = 20 }", "credits = { amount = 10 }"
)


class TestTenths:
    """A price that no binary fraction tells."""

    @pytest.fixture
    def engine(self, clock: ManualClock) -> Iterator[WatchedEngine]:
        made = WatchedEngine(parse_catalog(TENTHS), Store(None), now=clock.now)
        yield made
        made.close()

    @pytest.fixture
    def guard(self, make_guard: MakeGuard) -> Guard:
        return make_guard(SETTLE_GRACE=0)

    @pytest.mark.parametrize("left", range(1, 30))
    def test_what_is_left_is_had_whole_and_in_part(self, guard: Guard, left: int) -> None:
        guard.report("ai", 100 - left, customer="c")
        assert guard.flush() == 0
        guard.reload("c")
        for at_least in (1, left):
            with guard.consume("ai", left + 5, customer="c", at_least=at_least) as usage:
                assert usage.amount == left
                usage.cancel()
        with pytest.raises(FeatureDenied) as denied, guard.consume("ai", 100, customer="c", at_least=left + 1):
            pytest.fail("oversold")
        assert denied.value.entitlement.reason is Reason.INSUFFICIENT_CREDITS


def test_what_the_plan_pays_for_costs_no_credits(make_guard: MakeGuard) -> None:
    rates = {**RATES, "seats": {"currency": "credits", "rate": 5}}
    guard = make_guard(CREDIT_RATES=rates, SETTLE_GRACE=30, REPORT="inline")
    with guard.consume("seats", 2, customer="c"), guard.consume("ai", 10, customer="c") as usage:
        usage.cancel()
    guard.report("seats", 1, customer="c")
    with guard.consume("ai", 10, customer="c"):
        pass
    assert spent(guard) == 20


def test_a_repeat_enters_though_the_wallet_is_empty(guard: Guard) -> None:
    for _ in range(2):
        with guard.consume("ai", 10, customer="c", key="order-42") as usage:
            pass
        assert guard.flush() == 0
        assert spent(guard) == 20
    assert usage.is_repeat
    with pytest.raises(FeatureDenied), guard.consume("ai", 10, customer="c", key="order-43"):
        pytest.fail("oversold")

"""The guard over a real sidecar: checks, holds, reports."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from conftest import ManualClock, config_of, in_child
from stigg_guard import (
    Config,
    Customer,
    Fallback,
    FeatureDenied,
    GetMeteredEntitlementRequest,
    Guard,
    InvalidRequest,
    Kind,
    Reason,
    SidecarUnavailable,
    Source,
    Stigg,
)
from stigg_guard.cache.snapshots import AMOUNTS_KEPT
from stigg_guard.ledger import UsageKey, Use
from stigg_guard.observer import Observer
from stigg_guard.sidecar.catalog import demo_catalog, parse_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.store import Store
from stigg_guard.wire import METHODS, SERVICE

CUSTOMER = "customer-demo-01"
TEMPLATES = "feature-templates"
NOBODY_LISTENS = "127.0.0.1:1"

MakeGuard = Callable[..., Guard]

LIMIT_OF_TEN = """
[features.feature-templates]
type = "metered"
meter = "fluctuating"
[features.feature-calls]
type = "metered"
meter = "incremental"
[plans.p.entitlements]
feature-templates = { limit = 10 }
feature-calls = { limit = 2, reset = "hour" }
[customers.c]
plan = "p"
[customers.c.usage]
feature-templates = 3
"""


def used(sidecar: Sidecar, feature: str = TEMPLATES, customer: str = CUSTOMER) -> float:
    """What the sidecar itself says was used."""
    host, _, port = sidecar.address.rpartition(":")
    with Stigg(remote_sidecar_host=host, remote_sidecar_port=int(port)) as stigg:
        request = GetMeteredEntitlementRequest(customer_id=customer, feature_id=feature)
        return stigg.get_metered_entitlement(request).entitlement.current_usage


@pytest.fixture
def ten(clock: ManualClock) -> Iterator[Sidecar]:
    """A sidecar whose customer ``c`` has used 3 of 10 templates, and may make 2 calls an hour."""
    engine = Engine(parse_catalog(LIMIT_OF_TEN), Store(None), now=clock.now)
    with Sidecar(engine) as running:
        yield running


class TestCheck:
    def test_says_from_the_sidecar_first_and_then_from_the_cache(self, guard: Guard) -> None:
        first, second = (guard.check(TEMPLATES, customer=CUSTOMER) for _ in range(2))
        assert (first.source, second.source) == (Source.SIDECAR, Source.CACHE)
        assert (first.current_usage, first.usage_limit, first.remaining) == (3, 6, 3)
        assert first.kind is Kind.METERED
        assert first.units_plural == "templates"

    def test_decides_a_requested_usage_by_the_documented_figures(self, guard: Guard) -> None:
        denied = guard.check(TEMPLATES, customer=CUSTOMER, requested_usage=10)
        assert not denied
        assert denied.reason is Reason.REQUESTED_USAGE_EXCEEDING_LIMIT
        assert guard.check(TEMPLATES, customer=CUSTOMER, requested_usage=3)

    def test_what_an_amount_was_answered_with_follows_the_usage(self, ten: Sidecar, clock: ManualClock) -> None:
        with Guard(Config(sidecar=ten.address), clock=clock.clock) as guard:
            before = [guard.check(TEMPLATES, customer="c", requested_usage=7) for _ in range(2)]
            assert [(answer.has_access, answer.current_usage) for answer in before] == [(True, 3), (True, 3)]
            with guard.consume(TEMPLATES, 2, customer="c"):
                pass
            assert not guard.check(TEMPLATES, customer="c", requested_usage=7)
            after = guard.check(TEMPLATES, customer="c", requested_usage=5)
            assert (after.has_access, after.current_usage, after.requested_usage) == (True, 5, 5)

    @pytest.mark.parametrize("amount", [True, [1], "1", float("nan"), -1])
    def test_what_is_like_an_amount_that_was_asked_is_refused_as_ever(self, guard: Guard, amount: object) -> None:
        assert guard.check(TEMPLATES, customer=CUSTOMER)
        assert guard.check(TEMPLATES, customer=CUSTOMER, requested_usage=1)
        with pytest.raises(InvalidRequest, match="requested_usage"):
            guard.check(TEMPLATES, customer=CUSTOMER, requested_usage=amount)

    def test_any_number_of_amounts_is_answered_in_bounded_memory(self, guard: Guard) -> None:
        snapshot, _ = guard._own.lookup.cache.get(Customer(CUSTOMER))
        answer = snapshot.find(TEMPLATES)
        assert answer is not None
        for amount in range(1_000):
            assert (snapshot.allowed(answer, amount / 1_000) or answer).requested_usage == amount / 1_000
        assert len(snapshot._allowed) <= AMOUNTS_KEPT

    def test_finds_the_same_snapshot_by_id_and_by_customer(self, guard: Guard) -> None:
        guard.check(TEMPLATES, customer=CUSTOMER)
        assert guard.check(TEMPLATES, customer=Customer(CUSTOMER)).source is Source.CACHE

    def test_asks_for_a_resource_apart_from_its_customer(self, guard: Guard) -> None:
        guard.check(TEMPLATES, customer=CUSTOMER)
        answer = guard.check(TEMPLATES, customer=Customer(CUSTOMER, resource="site-01"))
        assert answer.source is Source.SIDECAR
        assert answer.current_usage == 0

    @pytest.mark.parametrize(
        ("customer", "feature", "reason"),
        [
            (CUSTOMER, "feature-analytics", Reason.NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION),
            (CUSTOMER, "feature-unheard-of", Reason.FEATURE_NOT_FOUND),
            ("nobody", TEMPLATES, Reason.CUSTOMER_NOT_FOUND),
            ("customer-demo-04", TEMPLATES, Reason.NO_ACTIVE_SUBSCRIPTION),
            ("customer-demo-05", TEMPLATES, Reason.CUSTOMER_IS_ARCHIVED),
            (Customer(CUSTOMER, resource="nowhere"), TEMPLATES, Reason.CUSTOMER_RESOURCE_NOT_FOUND),
        ],
    )
    def test_gives_the_reason_of_a_denial_twice_alike(
        self, guard: Guard, customer: str | Customer, feature: str, reason: Reason
    ) -> None:
        first, second = (guard.check(feature, customer=customer) for _ in range(2))
        assert (first.reason, first.has_access) == (second.reason, second.has_access) == (reason, False)
        assert second.source is Source.CACHE

    def test_answers_credits_by_their_currency(self, guard: Guard) -> None:
        answer = guard.check("api-credits", customer=CUSTOMER, requested_usage=10**9)
        assert answer.kind is Kind.CREDIT
        assert answer.reason is Reason.INSUFFICIENT_CREDITS

    def test_answers_an_enum_by_the_requested_values(self, guard: Guard) -> None:
        allowed = guard.check("feature-regions", customer=CUSTOMER)
        assert guard.check("feature-regions", customer=CUSTOMER, requested_values=allowed.enum_values)
        denied = guard.check("feature-regions", customer=CUSTOMER, requested_values=["the-moon"])
        assert denied.reason is Reason.REQUESTED_VALUES_MISMATCH

    @pytest.mark.parametrize("amount", [-1, float("nan"), float("inf"), True, "2"])
    def test_refuses_a_requested_usage_that_is_no_amount(self, guard: Guard, amount: object) -> None:
        with pytest.raises(InvalidRequest, match="requested_usage"):
            guard.check(TEMPLATES, customer=CUSTOMER, requested_usage=amount)

    @pytest.mark.parametrize(
        ("customer", "feature"),
        [("", TEMPLATES), (None, TEMPLATES), (CUSTOMER, ""), (7, "f"), ([], "f"), ("\ud800", "f")],
    )
    def test_refuses_ids_that_are_none(self, guard: Guard, customer: object, feature: str) -> None:
        with pytest.raises(InvalidRequest):
            guard.check(feature, customer=customer)

    def test_does_not_outlive_the_usage_period(self, ten: Sidecar, clock: ManualClock) -> None:
        with Guard(config_of(ten, cache_ttl=86_400), clock=clock.clock) as guard:
            answer = guard.check("feature-calls", customer="c")
            assert answer.usage_period_end is not None
            clock.advance((answer.usage_period_end - clock.now()).total_seconds())
            assert guard.check("feature-calls", customer="c").source is Source.SIDECAR

    def test_lists_what_the_plan_has(self, guard: Guard) -> None:
        guard.check("feature-analytics", customer=CUSTOMER)
        listed = guard.entitlements(CUSTOMER)
        assert TEMPLATES in listed
        assert "feature-analytics" not in listed
        assert guard.entitlements("nobody") == {}

    def test_require_raises_what_check_denies(self, guard: Guard) -> None:
        assert guard.require(TEMPLATES, customer=CUSTOMER)
        with pytest.raises(FeatureDenied, match="customer-demo-01 may not use feature-analytics") as denied:
            guard.require("feature-analytics", customer=CUSTOMER)
        assert denied.value.customer == Customer(CUSTOMER)


class TestReload:
    def test_sees_an_upgrade_at_once(self, clock: ManualClock) -> None:
        engine = Engine(demo_catalog(), Store(None))
        with Sidecar(engine) as sidecar, Guard(config_of(sidecar), clock=clock.clock) as guard:
            assert not guard.check("feature-analytics", customer=CUSTOMER)
            engine.assign_plan(CUSTOMER, "growth")
            assert not guard.check("feature-analytics", customer=CUSTOMER)
            assert guard.reload(CUSTOMER)
            assert guard.check("feature-analytics", customer=CUSTOMER)

    def test_is_not_needed_to_be_let_in_after_a_second(self, clock: ManualClock) -> None:
        engine = Engine(demo_catalog(), Store(None))
        with Sidecar(engine) as sidecar, Guard(config_of(sidecar), clock=clock.clock) as guard:
            with guard.consume(TEMPLATES, 3, customer=CUSTOMER):
                pass
            assert guard.flush() == 0
            assert not guard.check("feature-analytics", customer=CUSTOMER)
            engine.assign_plan(CUSTOMER, "growth")
            clock.advance(1.5)
            assert guard.check("feature-analytics", customer=CUSTOMER)
            engine.assign_plan(CUSTOMER, "essentials")
            clock.advance(1.5)
            assert guard.reload(CUSTOMER)
            assert not guard.check(TEMPLATES, customer=CUSTOMER)
            engine.assign_plan(CUSTOMER, "growth")
            clock.advance(1.5)
            with guard.consume(TEMPLATES, 40, customer=CUSTOMER):
                pass

    def test_tells_that_a_customer_does_not_exist(self, guard: Guard) -> None:
        assert guard.reload("nobody") is False


class TestConsume:
    def test_reports_after_success(self, guard: Guard, sidecar: Sidecar) -> None:
        with guard.consume(TEMPLATES, 2, customer=CUSTOMER):
            assert used(sidecar) == 3
        assert guard.check(TEMPLATES, customer=CUSTOMER).current_usage == 5
        assert guard.flush() == 0
        assert used(sidecar) == 5

    def test_reports_inline_before_it_returns(self, make_guard: MakeGuard, sidecar: Sidecar) -> None:
        with make_guard(REPORT="inline").consume(TEMPLATES, 2, customer=CUSTOMER):
            pass
        assert used(sidecar) == 5

    def test_gives_back_what_a_failure_did_not_use(self, guard: Guard, sidecar: Sidecar) -> None:
        with pytest.raises(ZeroDivisionError), guard.consume(TEMPLATES, 3, customer=CUSTOMER):
            _ = 1 / 0
        with guard.consume(TEMPLATES, 3, customer=CUSTOMER) as usage:
            usage.cancel()
        guard.flush()
        assert used(sidecar) == 3
        with guard.consume(TEMPLATES, 3, customer=CUSTOMER):
            pass

    def test_denies_without_running_the_block(self, guard: Guard) -> None:
        with pytest.raises(FeatureDenied) as denied, guard.consume(TEMPLATES, 4, customer=CUSTOMER):
            pytest.fail("the block ran")
        answer = denied.value.entitlement
        assert (answer.requested_usage, answer.current_usage, answer.usage_limit) == (4, 3, 6)

    def test_counts_what_others_hold(self, guard: Guard) -> None:
        with guard.consume(TEMPLATES, 2, customer=CUSTOMER):
            with pytest.raises(FeatureDenied), guard.consume(TEMPLATES, 2, customer=CUSTOMER):
                pytest.fail("oversold")
            with guard.consume(TEMPLATES, 1, customer=CUSTOMER):
                pass

    def test_settles_another_amount_than_it_held(self, guard: Guard, sidecar: Sidecar) -> None:
        with guard.consume(TEMPLATES, 3, customer=CUSTOMER) as usage:
            usage.amount = 1
            assert usage.amount == 1
        with guard.consume(TEMPLATES, 1, customer=CUSTOMER) as usage:
            usage.amount = 0
        guard.flush()
        assert used(sidecar) == 4

    @pytest.mark.parametrize("amount", [-1, float("nan"), True, None])
    def test_refuses_an_amount_that_is_none_before_anything_is_held(self, guard: Guard, amount: object) -> None:
        with pytest.raises(InvalidRequest):
            guard.consume(TEMPLATES, amount, customer=CUSTOMER)
        with pytest.raises(InvalidRequest), guard.consume(TEMPLATES, 1, customer=CUSTOMER) as usage:
            usage.amount = amount
        with guard.consume(TEMPLATES, 3, customer=CUSTOMER):
            pass

    def test_passes_a_soft_limit_and_counts_on(self, guard: Guard, sidecar: Sidecar) -> None:
        before = used(sidecar, "feature-api-calls")
        with guard.consume("feature-api-calls", 5_000, customer=CUSTOMER):
            pass
        assert guard.flush() == 0
        assert used(sidecar, "feature-api-calls") == before + 5_000

    def test_counts_unlimited_features(self, guard: Guard, sidecar: Sidecar) -> None:
        before = used(sidecar, "feature-seats", "customer-demo-02")
        with guard.consume("feature-seats", 7, customer="customer-demo-02"):
            pass
        assert guard.flush() == 0
        assert used(sidecar, "feature-seats", "customer-demo-02") == before + 7

    def test_denies_features_that_are_not_metered(self, guard: Guard) -> None:
        with pytest.raises(FeatureDenied) as denied, guard.consume("feature-custom-domain", customer=CUSTOMER):
            pytest.fail("the block ran")
        assert denied.value.entitlement.reason is Reason.FEATURE_TYPE_MISMATCH

    def test_refuses_to_consume_a_currency(self, guard: Guard) -> None:
        with pytest.raises(InvalidRequest, match="currency"), guard.consume("api-credits", customer=CUSTOMER):
            pytest.fail("the block ran")

    def test_sells_exactly_what_is_left_to_64_threads(self, ten: Sidecar, clock: ManualClock) -> None:
        start = threading.Barrier(64)

        def one(guard: Guard) -> bool:
            start.wait()
            try:
                with guard.consume(TEMPLATES, 1, customer="c"):
                    return True
            except FeatureDenied:
                return False

        with Guard(config_of(ten), clock=clock.clock) as guard, ThreadPoolExecutor(64) as threads:
            assert sum(threads.map(one, [guard] * 64)) == 7
            assert guard.flush() == 0
        assert used(ten, customer="c") == 10

    def test_does_not_sell_again_what_another_process_sold(
        self, ten: Sidecar, clock: ManualClock, tmp_path: Path
    ) -> None:
        config = config_of(ten, ledger=f"sqlite:///{tmp_path}/ledger")
        with Guard(config, clock=clock.clock) as one, Guard(config, clock=clock.clock) as other:
            assert one.check(TEMPLATES, customer="c").current_usage == 3
            assert other.check(TEMPLATES, customer="c").current_usage == 3
            with one.consume(TEMPLATES, 7, customer="c"):
                pass
            assert one.flush() == 0
            with pytest.raises(FeatureDenied) as denied, other.consume(TEMPLATES, 1, customer="c"):
                pytest.fail("oversold from an old snapshot")
            assert denied.value.entitlement.current_usage == 10

    def test_starts_again_in_a_new_period(self, ten: Sidecar, clock: ManualClock) -> None:
        with Guard(config_of(ten), clock=clock.clock) as guard:
            with guard.consume("feature-calls", 2, customer="c"):
                pass
            with pytest.raises(FeatureDenied), guard.consume("feature-calls", 1, customer="c"):
                pytest.fail("oversold")
            assert guard.flush() == 0
            clock.advance(3_600)
            with guard.consume("feature-calls", 2, customer="c"):
                pass
            assert guard.flush() == 0
        assert used(ten, "feature-calls", "c") == 2

    def test_counts_in_the_period_in_which_it_ends(self, ten: Sidecar, clock: ManualClock) -> None:
        clock.advance(-clock.now().timestamp() % 3_600 + 600)  # ten past the hour: no other period begins in the test
        with Guard(config_of(ten), clock=clock.clock) as guard:
            with guard.consume("feature-calls", 1, customer="c"):
                pass
            with guard.consume("feature-calls", 1, customer="c"):
                clock.advance(3_600)
            assert guard.flush() == 0
            assert used(ten, "feature-calls", "c") == 1
            clock.advance(60)  # until then it counts in both periods
            with guard.consume("feature-calls", 1, customer="c"):
                pass
            with pytest.raises(FeatureDenied), guard.consume("feature-calls", 1, customer="c"):
                pytest.fail("oversold in the new period")

    def test_a_forked_child_checks_consumes_and_reports(self, make_guard: MakeGuard, sidecar: Sidecar) -> None:
        guard = make_guard()
        with guard.consume(TEMPLATES, 1, customer=CUSTOMER):
            pass
        assert guard.flush() == 0

        def consumes_and_reports() -> bool:
            with guard.consume(TEMPLATES, 1, customer=CUSTOMER):
                pass
            return guard.flush() == 0

        assert in_child(consumes_and_reports)
        assert used(sidecar) == 5
        assert guard.reload(CUSTOMER)
        assert guard.check(TEMPLATES, customer=CUSTOMER).current_usage == 5


class TestReport:
    def test_gives_units_back(self, guard: Guard, sidecar: Sidecar) -> None:
        guard.report(TEMPLATES, -2, customer=CUSTOMER)
        assert guard.flush() == 0
        assert used(sidecar) == 1

    def test_sets_the_total(self, guard: Guard, sidecar: Sidecar) -> None:
        guard.report(TEMPLATES, 5, customer=CUSTOMER, set_total=True)
        assert guard.flush() == 0
        assert used(sidecar) == 5

    @pytest.mark.parametrize("amount", [0, 1])
    def test_never_lowers_what_is_shown(self, guard: Guard, amount: int) -> None:
        """The ledger has heard of no other usage of the feature."""
        shown = [guard.check(TEMPLATES, customer=CUSTOMER).current_usage]

        class Page(Observer):
            def used(self, use: Use) -> None:
                shown.append(guard.check(TEMPLATES, customer=CUSTOMER).current_usage)

        guard.observe(Page())
        guard.report(TEMPLATES, amount, customer=CUSTOMER)
        assert shown == [3, 3]
        assert guard.flush() == 0
        assert guard.check(TEMPLATES, customer=CUSTOMER).current_usage == 3 + amount

    def test_reports_for_a_resource(self, guard: Guard) -> None:
        site = Customer(CUSTOMER, resource="site-01")
        guard.report(TEMPLATES, 2, customer=site)
        assert guard.flush() == 0
        assert guard.check(TEMPLATES, customer=site).current_usage == 2

    def test_sets_aside_only_the_report_that_is_refused(self, guard: Guard, sidecar: Sidecar) -> None:
        before = used(sidecar, "feature-api-calls")
        ledger = guard.ledger
        for feature in (TEMPLATES, "feature-unheard-of", "feature-api-calls"):
            # Without waking the reporter, so that one batch holds all three.
            ledger.record(Use(UsageKey(CUSTOMER, "", feature), 1))
        assert guard.flush() == 0
        assert ledger.counts()["dead"] == 1
        assert (used(sidecar), used(sidecar, "feature-api-calls")) == (4, before + 1)

    def test_refuses_what_is_no_amount(self, guard: Guard) -> None:
        with pytest.raises(InvalidRequest):
            guard.report(TEMPLATES, float("nan"), customer=CUSTOMER)


class TestOutage:
    def test_on_outage_error_raises_with_a_cold_cache(self, make_guard: MakeGuard) -> None:
        guard = make_guard(SIDECAR=NOBODY_LISTENS)
        with pytest.raises(SidecarUnavailable, match="start it, or correct the address"):
            guard.check(TEMPLATES, customer=CUSTOMER)
        with pytest.raises(SidecarUnavailable, match="not asked for another"):
            guard.check(TEMPLATES, customer="customer-demo-02")

    def test_on_outage_allow_lets_work_go_on_and_reports_it_later(self, clock: ManualClock, tmp_path: Path) -> None:
        ledger = f"sqlite:///{tmp_path}/ledger"
        with Guard(Config.from_mapping({"SIDECAR": NOBODY_LISTENS, "ON_OUTAGE": "allow", "LEDGER": ledger})) as guard:
            answer = guard.check(TEMPLATES, customer=CUSTOMER)
            assert (answer.has_access, answer.is_fallback, answer.source) == (True, True, Source.FALLBACK)
            with guard.consume(TEMPLATES, 2, customer=CUSTOMER):
                pass
            assert guard.flush(timeout=0.1) == 1
        with (
            Sidecar(Engine(demo_catalog(), Store(None))) as sidecar,
            Guard(config_of(sidecar, ledger=ledger)) as guard,
        ):
            assert guard.flush() == 0
            assert used(sidecar) == 5

    def test_on_outage_deny_denies(self, make_guard: MakeGuard) -> None:
        guard = make_guard(SIDECAR=NOBODY_LISTENS, ON_OUTAGE="deny")
        answer = guard.check(TEMPLATES, customer=CUSTOMER)
        assert (answer.has_access, answer.is_fallback, answer.reason) == (False, True, Reason.UNKNOWN)
        with pytest.raises(FeatureDenied), guard.consume(TEMPLATES, customer=CUSTOMER):
            pytest.fail("the block ran")

    def test_a_fallback_answers_before_the_policy(self, make_guard: MakeGuard) -> None:
        guard = make_guard(SIDECAR=NOBODY_LISTENS, FALLBACKS={TEMPLATES: {"hasAccess": True, "usageLimit": 5}})
        answer = guard.check(TEMPLATES, customer=CUSTOMER)
        assert (answer.has_access, answer.usage_limit, answer.source) == (True, 5, Source.FALLBACK)
        own = guard.check(TEMPLATES, customer=CUSTOMER, fallback=Fallback(has_access=False))
        assert own.has_access is False
        with guard.consume(TEMPLATES, 5, customer=CUSTOMER), pytest.raises(FeatureDenied):
            guard.consume(TEMPLATES, 1, customer=CUSTOMER).__enter__()

    def test_a_fallback_answers_for_an_unknown_feature_but_never_for_a_denial(self, make_guard: MakeGuard) -> None:
        allowed = {"hasAccess": True}
        guard = make_guard(FALLBACKS={"feature-unheard-of": allowed, "feature-analytics": allowed})
        assert guard.check("feature-unheard-of", customer=CUSTOMER).source is Source.FALLBACK
        assert guard.check("feature-unheard-of", customer=CUSTOMER).source is Source.FALLBACK
        assert not guard.check("feature-analytics", customer=CUSTOMER)

    def test_goes_on_from_the_cache_and_is_fresh_when_the_sidecar_is_back(self, clock: ManualClock) -> None:
        engine = Engine(parse_catalog(LIMIT_OF_TEN), Store(None), now=clock.now)
        first = Sidecar(engine)
        first.start()
        port = int(first.address.rpartition(":")[2])
        with Guard(Config(sidecar=first.address, stale_ttl=3_600), clock=clock.clock) as guard:
            assert guard.check(TEMPLATES, customer="c").source is Source.SIDECAR
            first.stop(grace=0)
            assert guard.check(TEMPLATES, customer="c").source is Source.CACHE
            clock.advance(31)
            assert guard.check(TEMPLATES, customer="c").source is Source.STALE
            assert guard.check("feature-unheard-of", customer="c").reason is not None
            with guard.consume(TEMPLATES, 7, customer="c"):
                pass
            with pytest.raises(FeatureDenied), guard.consume(TEMPLATES, 1, customer="c"):
                pytest.fail("oversold during the outage")
            with Sidecar(engine, port=port) as again:
                fresh = self._first_fresh(guard, clock)
                assert fresh.source is Source.SIDECAR
                assert guard.flush() == 0
                assert used(again, customer="c") == 10
            clock.advance(3_700)
            with pytest.raises(SidecarUnavailable):
                guard.check(TEMPLATES, customer="c")

    @staticmethod
    def _first_fresh(guard: Guard, clock: ManualClock) -> object:
        """Asks until the channel is connected again; each try is past the guard's own back-off."""
        for _ in range(200_000):
            clock.advance(1)
            answer = guard.check(TEMPLATES, customer="c")
            if answer.source is not Source.STALE:
                return answer
        raise AssertionError("still stale")

    def test_a_denied_answer_is_cached_like_any_other(self, guard: Guard) -> None:
        with guard.consume(TEMPLATES, 3, customer=CUSTOMER):
            pass
        denied = guard.check(TEMPLATES, customer=CUSTOMER)
        assert (denied.has_access, denied.source, denied.current_usage) == (False, Source.CACHE, 6)
        with pytest.raises(FeatureDenied) as error, guard.consume(TEMPLATES, 1, customer=CUSTOMER):
            pytest.fail("oversold")
        assert error.value.entitlement.current_usage == 6

    def test_a_stale_answer_past_its_period_goes_on_counting(self, clock: ManualClock) -> None:
        engine = Engine(parse_catalog(LIMIT_OF_TEN), Store(None), now=clock.now)
        sidecar = Sidecar(engine)
        sidecar.start()
        with Guard(config_of(sidecar), clock=clock.clock) as guard:
            with guard.consume("feature-calls", 2, customer="c"):
                pass
            assert guard.flush() == 0
            sidecar.stop(grace=0)
            clock.advance(3_600)
            answer = guard.check("feature-calls", customer="c")
            assert (answer.source, answer.current_usage, answer.has_access) == (Source.STALE, 2, False)
            with pytest.raises(FeatureDenied), guard.consume("feature-calls", 1, customer="c"):
                pytest.fail("oversold")


class TestOlderSidecars:
    @pytest.fixture
    def older(self) -> Iterator[Callable[[set[str]], str]]:
        """A real gRPC server that knows only some of the calls; gives its address."""
        servers = []

        def serve(names: set[str]) -> str:
            engine = Engine(parse_catalog(LIMIT_OF_TEN), Store(None))
            server = grpc.server(ThreadPoolExecutor(2))
            handlers = {
                name: grpc.unary_unary_rpc_method_handler(
                    lambda request, _context, name=name: engine.answer(name, request),
                    METHODS[name].request.FromString,
                    METHODS[name].response.SerializeToString,
                )
                for name in names
            }
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            servers.append(server)
            return f"127.0.0.1:{port}"

        yield serve
        for server in servers:
            server.stop(0).wait()

    @pytest.mark.parametrize(
        "names",
        [{"GetEntitlements", "GetEntitlement", "ReportUsage"}, {"GetEntitlement", "ReportUsage"}],
        ids=["lists", "singles"],
    )
    def test_are_asked_in_the_older_way(self, older: Callable[[set[str]], str], names: set[str]) -> None:
        with Guard(Config(sidecar=older(names))) as guard:
            assert guard.check(TEMPLATES, customer="c").current_usage == 3
            assert guard.check(TEMPLATES, customer="c").source is Source.CACHE
            assert guard.check("feature-nope", customer="c").reason is Reason.FEATURE_NOT_FOUND
            with guard.consume(TEMPLATES, 6, customer="c"):
                pass
            with guard.consume("feature-calls", 1, customer="c"):
                pass
            with pytest.raises(FeatureDenied), guard.consume(TEMPLATES, 2, customer="c"):
                pytest.fail("oversold")
            assert guard.flush() == 0
            assert guard.check(TEMPLATES, customer="c").current_usage == 9

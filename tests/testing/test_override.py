"""Entitlements that a test makes up: what guards answer meanwhile, what was reported, and how an override ends."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from stigg_guard import (
    Config,
    ConfigError,
    Customer,
    Event,
    FeatureDenied,
    GetBooleanEntitlementRequest,
    Guard,
    InvalidRequest,
    Kind,
    Reason,
    ReportEventsRequest,
    ReportUsageBulkRequest,
    ReportUsageRequest,
)
from stigg_guard.ledger import Acknowledged
from stigg_guard.observer import Observer
from stigg_guard.testing import RealLedgerWarning, Report, StandIn, override_entitlements
from testing.guards import ACME, TIMES, make, use, used

pytest_plugins = ["stigg_guard.testing"]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, Kind.BOOLEAN),
        (100, Kind.NUMERIC),
        ({"value": 100}, Kind.NUMERIC),
        ({"value": 100, "unlimited": False}, Kind.NUMERIC),
        (["eu"], Kind.ENUM),
        (("eu",), Kind.ENUM),
        ({"eu"}, Kind.ENUM),
        ({"values": ["eu"]}, Kind.ENUM),
        ({"limit": 3}, Kind.METERED),
        ({"unlimited": True}, Kind.METERED),
    ],
)
def test_each_form_of_value_is_an_entitlement_of_its_kind(unreachable: Guard, value: object, kind: Kind) -> None:
    with override_entitlements({"f": value}):
        answer = unreachable.require("f", customer=ACME)
    assert answer.kind is kind
    assert answer.value == (100 if kind is Kind.NUMERIC else None)
    assert answer.enum_values == (("eu",) if kind is Kind.ENUM else ())


def test_a_limit_has_its_usage_its_period_and_its_softness(unreachable: Guard) -> None:
    with override_entitlements({"s": {"limit": 10, "usage": 9, "reset": "month"}, "o": {"limit": 1, "soft": True}}):
        limited = unreachable.check("s", customer=ACME)
        use(unreachable, "o", 5)
        assert unreachable.check("o", customer=ACME)
    assert (limited.usage_limit, limited.current_usage) == (10, 9)
    assert limited.usage_period_end is not None


@pytest.mark.parametrize("feature", ["excluded", "unnamed"])
def test_what_is_false_or_not_named_is_not_in_the_plan(unreachable: Guard, feature: str) -> None:
    with override_entitlements({"f": True, "excluded": False}):
        answer = unreachable.check(feature, customer=ACME)
        assert list(unreachable.entitlements(ACME)) == ["f"]
        with pytest.raises(FeatureDenied):
            use(unreachable, feature)
    assert answer.reason is Reason.NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION


def test_every_customer_and_resource_has_the_entitlements_and_usage_of_its_own(unreachable: Guard) -> None:
    with override_entitlements({"t": {"limit": 3, "usage": 1}}):
        use(unreachable, "t", 2, Customer(ACME, "site-01"))
        assert used(unreachable, "t", Customer(ACME, "site-01")) == 3
        assert [used(unreachable, "t", customer) for customer in (ACME, "other")] == [1, 1]


def test_wrong_values_are_refused_at_once_and_all_of_them_are_named() -> None:
    with pytest.raises(ConfigError) as refused:
        override_entitlements(
            {"f": "eu", "t": {"limt": 3}, "": True, "n": 2.5, "u": None, "v": {"limit": 1, "usage": -1}}
        )
    told = str(refused.value)
    assert told.startswith("override_entitlements: 7 faults\n  ")
    assert "\n  f: expected True, False, a whole number" in told
    assert "\n  t.limt: unknown key; did you mean 'limit'?" in told
    assert "line" not in told


@pytest.mark.parametrize("given", [["f"], {1: True}, None])
def test_what_is_no_mapping_by_feature_id_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match="expected a mapping by feature id"):
        override_entitlements(given)


def test_a_guard_that_is_switched_off_answers_from_the_override_too() -> None:
    with make(ENABLED=False) as guard, override_entitlements({"t": {"limit": 1}}) as stigg:
        use(guard, "t")
        assert not guard.check("t", customer=ACME)
        assert guard.reload(ACME)
        assert stigg.usage("t") == 1


def test_guards_answer_from_their_own_sidecar_again_when_it_ends(guard: Guard) -> None:
    assert guard.check("feature-templates", customer="customer-demo-01").usage_limit == 6
    with override_entitlements({"feature-templates": {"limit": 1}}):
        assert guard.check("feature-templates", customer="customer-demo-01").usage_limit == 1
        use(guard, "feature-templates", customer="customer-demo-01")
    assert used(guard, "feature-templates", "customer-demo-01") == 3
    assert guard.stats()["acknowledged"] == 0


def test_all_guards_and_threads_share_one_limit() -> None:
    def used_once(guard: Guard) -> bool:
        try:
            use(guard, "t")
        except FeatureDenied:
            return False
        return True

    with make() as one, make() as other, override_entitlements({"t": {"limit": 5}}) as stigg:
        with ThreadPoolExecutor(8) as threads:
            succeeded = list(threads.map(used_once, [one, other] * TIMES))
        assert sum(succeeded) == stigg.usage("t") == 5


def test_the_ledger_is_in_memory_and_everything_is_reported(unreachable: Guard) -> None:
    own = unreachable.ledger
    with override_entitlements({"t": {"limit": 5}}):
        assert unreachable.ledger is not own
        unreachable.report("t", 2, customer=ACME)
        assert unreachable.flush(0) == 0
        assert unreachable.stats()["acknowledged"] == 1
    assert unreachable.ledger is own
    assert own.counts()["unsent"] == 0


def test_reports_are_told_with_customer_amount_and_time(unreachable: Guard) -> None:
    with override_entitlements({"t": {"limit": 5}, "u": {"unlimited": True}}) as stigg:
        use(unreachable, "t", 2, Customer(ACME, "site-01"))
        unreachable.report("t", 4, customer=ACME, set_total=True)
        use(unreachable, "u", 3, event="login")
        reports = stigg.reported
    assert [str(report) for report in reports] == [
        "2 of t by acme/site-01",
        "= 4 of t by acme",
        "3 of u by acme as the event login",
    ]
    assert reports[0] == Report(Customer(ACME, "site-01"), "t", 2.0, False, reports[0].at)


def test_usage_is_the_total_of_one_customer_or_of_all(unreachable: Guard) -> None:
    with override_entitlements({"t": {"limit": 9}}) as stigg:
        unreachable.report("t", 1, customer="other")
        unreachable.report("t", 5, customer=ACME)
        unreachable.report("t", 2, customer=ACME, set_total=True)
        unreachable.report("t", -1, customer=ACME)
        assert (stigg.usage("t"), stigg.usage("t", ACME), stigg.usage("x")) == (2, 1, 0)


def test_a_raw_event_counts_as_the_units_that_it_uses(unreachable: Guard) -> None:
    with override_entitlements({"t": {"limit": 3}}):
        use(unreachable, "t", 2, event="created")
        assert used(unreachable, "t") == 2
        with pytest.raises(FeatureDenied):
            use(unreachable, "t", 2, event="created")


def test_usage_of_a_feature_that_nobody_named_can_be_reported(unreachable: Guard) -> None:
    with override_entitlements({}) as stigg:
        unreachable.report("t", 2, customer=ACME)
        assert stigg.usage("t") == 2


def test_the_client_of_a_guard_asks_the_override(unreachable: Guard) -> None:
    with override_entitlements({"f": True, "t": {"limit": 9}}):
        stigg = unreachable.stigg
        request = GetBooleanEntitlementRequest(customer_id=ACME, feature_id="f")
        assert stigg.get_boolean_entitlement(request).has_access
        usages = [ReportUsageRequest(customer_id=name, feature_id="t", value=1) for name in ("one", "other")]
        assert [
            usage.current_usage for usage in stigg.report_usage_bulk(ReportUsageBulkRequest(usages=usages)).usages
        ] == [1, 1]
        stigg.report_events(
            ReportEventsRequest(events=[Event(customer_id=ACME, event_name="login", idempotency_key="1")])
        )


def test_a_wrong_request_is_refused_as_by_a_sidecar(unreachable: Guard) -> None:
    with override_entitlements({"f": True}):
        with pytest.raises(InvalidRequest, match="customer_id"):
            unreachable.stigg.get_boolean_entitlement(GetBooleanEntitlementRequest(feature_id="f"))
        with pytest.raises(InvalidRequest, match="usages"):
            unreachable.stigg.report_usage_bulk(ReportUsageBulkRequest())
        unreachable.stigg.close()


class Diary(Observer):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def denied(self, error: FeatureDenied) -> None:
        self.told.append(f"denied {error.entitlement.feature_id}")

    def reported(self, answer: Acknowledged) -> None:
        self.told.append(f"reported {answer.report.amount:g}")


def test_a_guards_observer_is_told() -> None:
    diary = Diary()
    with Guard(Config(ledger="memory://"), observer=diary) as guard, override_entitlements({"t": {"limit": 1}}):
        use(guard, "t")
        with pytest.raises(FeatureDenied):
            use(guard, "t")
        with pytest.raises(FeatureDenied):
            guard.require("x", customer=ACME)
    assert diary.told == ["reported 1", "denied t", "denied x"]


def test_a_guards_transactions_decide_when_usage_is_reported() -> None:
    waiting: list[Callable[[bool], None]] = []
    with (
        Guard(Config(ledger="memory://"), confirm=waiting.append) as guard,
        override_entitlements({"t": {"limit": 2}}) as stigg,
    ):
        use(guard, "t", 2)
        assert stigg.usage("t") == 0
        with pytest.raises(FeatureDenied):
            use(guard, "t")
        waiting[0](True)
        assert stigg.usage("t") == 2


@pytest.mark.parametrize("certain", [True, False])
def test_a_transaction_may_end_after_the_override(certain: bool, caplog: pytest.LogCaptureFixture) -> None:
    waiting: list[Callable[[bool], None]] = []
    with Guard(Config(ledger="memory://"), confirm=waiting.append) as guard:
        with override_entitlements({"t": {"limit": 2}}):
            use(guard, "t", 2)
        gc.collect()
        waiting.pop()(certain)
        assert guard.stats()["unsent"] == 0
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


def test_nested_overrides_are_merged_and_the_inner_one_wins(unreachable: Guard) -> None:
    with override_entitlements({"f": True, "t": {"limit": 3}}):
        with override_entitlements({"t": {"limit": 9}, "x": True}):
            assert sorted(unreachable.entitlements(ACME)) == ["f", "t", "x"]
            assert unreachable.check("t", customer=ACME).usage_limit == 9
        assert sorted(unreachable.entitlements(ACME)) == ["f", "t"]
        assert unreachable.check("t", customer=ACME).usage_limit == 3


def test_an_inner_override_goes_on_with_the_usage_and_leaves_it_as_it_was(unreachable: Guard) -> None:
    with override_entitlements({"t": {"limit": 9, "usage": 1}, "s": {"limit": 9}}) as outer:
        use(unreachable, "t")
        use(unreachable, "s", 4)
        with override_entitlements({"x": True, "s": {"limit": 9, "usage": 8}}) as inner:
            assert (used(unreachable, "t"), used(unreachable, "s")) == (2, 8)
            assert used(unreachable, "t", "other") == 1
            use(unreachable, "t")
            assert [report.feature for report in inner.reported] == ["t"]
        assert (used(unreachable, "t"), used(unreachable, "s")) == (2, 4)
        assert outer.usage("t") == 2


def test_overrides_may_end_in_another_order_than_they_began(unreachable: Guard) -> None:
    first, second = override_entitlements({"f": True}), override_entitlements({"t": {"limit": 1}})
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert unreachable.check("f", customer=ACME)
    assert unreachable.check("t", customer=ACME)
    second.__exit__(None, None, None)
    with override_entitlements({}):
        assert not unreachable.check("f", customer=ACME)


def test_set_changes_what_it_names_and_keeps_the_usage(unreachable: Guard, stigg: StandIn) -> None:
    assert not unreachable.check("t", customer=ACME)
    stigg.set({"t": {"limit": 2}, "f": True})
    use(unreachable, "t", 2)
    stigg.set({"t": {"limit": 3}})
    assert unreachable.check("t", customer=ACME).remaining == 1
    assert unreachable.check("f", customer=ACME)
    stigg.set({"f": False})
    assert not unreachable.check("f", customer=ACME)


def test_set_with_usage_is_what_was_used_from_now_on(unreachable: Guard, stigg: StandIn) -> None:
    stigg.set({"t": {"limit": 3}})
    use(unreachable, "t", 3)
    stigg.set({"t": {"limit": 3, "usage": 1}})
    assert used(unreachable, "t") == used(unreachable, "t", "other") == 1
    use(unreachable, "t", 2)
    with pytest.raises(FeatureDenied):
        use(unreachable, "t")


def test_set_changes_the_innermost_override_until_it_ends(unreachable: Guard, stigg: StandIn) -> None:
    with override_entitlements({"t": {"limit": 3}}):
        stigg.set({"t": {"limit": 1}})
        assert unreachable.check("t", customer=ACME).usage_limit == 1
    assert not unreachable.check("t", customer=ACME)


def test_usage_returns_to_0_when_its_period_is_over(unreachable: Guard, stigg: StandIn) -> None:
    stigg.set({"s": {"limit": 2, "reset": "month"}, "t": {"limit": 2}})
    stigg.travel_to(datetime(2024, 2, 29, 23, 59))
    use(unreachable, "s", 2)
    use(unreachable, "t", 2)
    assert not unreachable.check("s", customer=ACME)
    stigg.travel(timedelta(minutes=2))
    assert (used(unreachable, "s"), used(unreachable, "t")) == (0, 2)
    use(unreachable, "s", 2)
    assert stigg.reported[-1].at.date() == datetime(2024, 3, 1).date()
    assert stigg.usage("s") == 4


def test_one_may_travel_back(unreachable: Guard, stigg: StandIn) -> None:
    stigg.set({"s": {"limit": 2, "reset": "day"}})
    use(unreachable, "s", 2)
    stigg.travel(timedelta(days=-1))
    assert used(unreachable, "s") == 0
    stigg.travel(timedelta(days=1))
    assert used(unreachable, "s") == 2


def test_an_instant_with_a_zone_is_that_instant(stigg: StandIn) -> None:
    east = timezone(timedelta(hours=5))
    stigg.travel_to(datetime(2030, 1, 1, 5, tzinfo=east))
    assert timedelta() <= stigg.now() - datetime(2030, 1, 1, tzinfo=timezone.utc) < timedelta(minutes=1)


def test_time_is_as_before_when_an_inner_override_ends(stigg: StandIn) -> None:
    with override_entitlements({}) as inner:
        inner.travel(timedelta(days=9))
        with override_entitlements({}):
            assert stigg.now() - datetime.now(timezone.utc) > timedelta(days=8)
    assert stigg.now() - datetime.now(timezone.utc) < timedelta(days=1)


def test_after_its_end_an_override_tells_and_changes_nothing(unreachable: Guard) -> None:
    with override_entitlements({"t": {"limit": 3}}) as stigg:
        use(unreachable, "t")
    assert stigg.usage("t") == 1
    with pytest.raises(ConfigError, match="has ended"):
        stigg.set({"f": True})
    with pytest.raises(ConfigError, match="has ended"):
        stigg.travel(timedelta(1))


def test_the_fixture_gives_nothing_until_the_test_says_what(unreachable: Guard, stigg: StandIn) -> None:
    assert not unreachable.entitlements(ACME)
    assert not stigg.reported


def test_reported_usage_can_be_asserted(
    unreachable: Guard, stigg: StandIn, assert_usage_reported: Callable[..., None]
) -> None:
    stigg.set({"t": {"limit": 9}})
    use(unreachable, "t", 0.1)
    use(unreachable, "t", 0.2)
    use(unreachable, "t", 3, "other")
    assert_usage_reported("t", 0.3, customer=ACME)
    assert_usage_reported("t", 3.3)
    assert_usage_reported("x", 0)


def test_a_failed_assertion_lists_what_was_reported(unreachable: Guard, stigg: StandIn) -> None:
    stigg.set({"t": {"limit": 9}, "s": {"limit": 9}})
    use(unreachable, "t", 2)
    use(unreachable, "s", 3, "other")
    with pytest.raises(AssertionError) as failed:
        stigg.assert_usage_reported("t", 5, customer=ACME)
    assert str(failed.value) == (
        "expected 5 of t to be reported by acme, and 2 was; all reports are:\n  2 of t by acme\n  3 of s by other"
    )


def test_a_failed_assertion_tells_of_work_that_still_holds_units(unreachable: Guard, stigg: StandIn) -> None:
    stigg.set({"t": {"limit": 9}})
    with unreachable.consume("t", customer=ACME), pytest.raises(AssertionError) as failed:
        stigg.assert_usage_reported("t", 1)
    assert "  (none)\n1 held: the work goes on, or its transaction is not committed" in str(failed.value)


def test_an_assertion_waits_for_what_another_thread_is_about_to_report(unreachable: Guard, stigg: StandIn) -> None:
    stigg.set({"t": {"limit": 9}})
    holds, asserted = threading.Event(), threading.Event()

    def work() -> None:
        with unreachable.consume("t", customer=ACME):
            holds.set()
            asserted.wait(0.1)

    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(work)
        holds.wait()
        stigg.assert_usage_reported("t", 1)
        asserted.set()
        done.result()


def test_an_override_leaves_no_thread_behind(unreachable: Guard) -> None:
    before = set(threading.enumerate())
    with override_entitlements({"t": {"limit": 9}}) as stigg:
        use(unreachable, "t")
        stigg.travel(timedelta(days=1))
        use(unreachable, "t")
    assert set(threading.enumerate()) <= before


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", *command], cwd=cwd, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


CASE = """
import sys, unittest
from stigg_guard import Config, Guard
from stigg_guard.ledger import Acknowledged
from stigg_guard.observer import Observer
from stigg_guard.testing import override_entitlements

class Case(unittest.TestCase):
    @override_entitlements({"f": True})
    def test_it(self):
        self.assertTrue(Guard(Config(ledger="memory://")).check("f", customer="acme"))
        self.assertNotIn("pytest", sys.modules)
"""


def test_unittest_needs_no_pytest(tmp_path: Path) -> None:
    (tmp_path / "test_case.py").write_text(CASE)
    assert "OK" in run("-m", "unittest", "test_case", cwd=tmp_path)


CONFTEST = """
from stigg_guard.ledger import Acknowledged
from stigg_guard.observer import Observer
from stigg_guard.testing import override_entitlements
pytest_plugins = ["stigg_guard.testing"]
"""
WITH_FIXTURES = """
from stigg_guard import Config, Guard

def test_it(stigg, assert_usage_reported):
    stigg.set({"t": {"limit": 1}})
    with Guard(Config(ledger="memory://")) as guard:
        guard.report("t", 1, customer="acme")
    assert_usage_reported("t", 1)
"""


def test_a_conftest_may_import_from_the_plugin_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(WITH_FIXTURES)
    assert "1 passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:django", cwd=tmp_path)


REAL = {"LEDGER": "sqlite:///real.sqlite3"}
WARNED = pytest.mark.filterwarnings("error:a test is about to use")


@WARNED
@pytest.mark.parametrize(
    "act",
    [
        lambda guard: guard.check("f", customer=ACME),
        lambda guard: guard.report("f", 1, customer=ACME),
        lambda guard: use(guard, "f"),
        lambda guard: guard.stats(),
    ],
)
def test_a_test_without_an_override_is_warned_before_the_ledger_of_the_settings_is_used(
    act: Callable[[Guard], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        Guard(Config.from_mapping(REAL), is_testing=lambda: True) as guard,
        pytest.raises(RealLedgerWarning, match=r"override entitlements .* or set LEDGER"),
    ):
        act(guard)
    assert list(tmp_path.iterdir()) == []


@WARNED
def test_nobody_is_warned_of_an_override_or_of_a_ledger_in_memory(tmp_path: Path) -> None:
    folder_that_is_none = tmp_path / "file"
    folder_that_is_none.touch()
    out_of_reach = Config.from_mapping({"LEDGER": f"sqlite:///{folder_that_is_none}/stigg-guard-x.sqlite3"})
    with Guard(out_of_reach, is_testing=lambda: True) as guard, override_entitlements({"f": {"limit": 1}}):
        use(guard, "f")
    with Guard(Config.from_mapping({"ENABLED": False}), is_testing=lambda: True) as guard:
        use(guard, "f")

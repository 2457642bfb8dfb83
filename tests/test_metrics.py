"""The metrics of a guard as Prometheus reads them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from conftest import ManualClock
from stigg_guard import Config, Fallback, FeatureDenied, Guard, SidecarUnavailable
from stigg_guard.ledger import UsageKey, Use
from stigg_guard.metrics import GuardCollector
from stigg_guard.sidecar.server import Sidecar

CUSTOMER = "customer-demo-01"
FEATURE = "feature-templates"
NOBODY_LISTENS = "127.0.0.1:1"


def scraped(guard: Guard) -> dict[str, float]:
    """What a page of metrics says of the guard, by name and labels."""
    return read(collected(guard))


def collected(guard: Guard) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(GuardCollector(guard))
    return registry


def read(registry: CollectorRegistry) -> dict[str, float]:
    lines = generate_latest(registry).decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


def test_shows_the_entries_of_each_state(guard: Guard) -> None:
    guard.ledger.record(Use(UsageKey(CUSTOMER, "", FEATURE), 2))
    with guard.consume(FEATURE, customer=CUSTOMER):
        page = scraped(guard)
    states = ("held", "unsent", "sending", "uncertain", "dead")
    assert [page[f'stigg_guard_ledger_entries{{state="{state}"}}'] for state in states] == [1, 1, 0, 0, 0]
    assert page["stigg_guard_ledger_up"] == 1


def test_counts_what_the_process_reported(guard: Guard) -> None:
    guard.report(FEATURE, 1, customer=CUSTOMER)
    guard.flush()
    page = scraped(guard)
    outcomes = ("acknowledged", "rejected", "doubted")
    assert [page[f'stigg_guard_reports_total{{outcome="{outcome}"}}'] for outcome in outcomes] == [1, 0, 0]
    names = ("stigg_guard_late_holds_total", "stigg_guard_report_failures", "stigg_guard_stranded_uses")
    assert [page[name] for name in names] == [0, 0, 0]


def test_registering_reads_nothing(make_guard: Callable[..., Guard], tmp_path: Path) -> None:
    guard = make_guard(LEDGER=f"sqlite:///{tmp_path}/ledger.db")
    CollectorRegistry(auto_describe=True).register(GuardCollector(guard))
    assert not (tmp_path / "ledger.db").exists()


def test_two_guards_in_one_registry_are_refused(make_guard: Callable[..., Guard]) -> None:
    registry = CollectorRegistry()
    registry.register(GuardCollector(make_guard()))
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(GuardCollector(make_guard()))


def test_a_ledger_that_cannot_be_read_is_down_and_breaks_no_page(
    make_guard: Callable[..., Guard], tmp_path: Path
) -> None:
    (tmp_path / "ledger.db").mkdir()
    figures = scraped(make_guard(LEDGER=f"sqlite:///{tmp_path}/ledger.db"))
    assert figures["stigg_guard_ledger_up"] == 0
    assert figures["stigg_guard_stranded_uses"] == 0  # it needs no ledger
    assert not any(name.startswith("stigg_guard_ledger_entries") for name in figures)


def test_a_closed_guard_is_down(guard: Guard) -> None:
    guard.close()
    assert scraped(guard)["stigg_guard_ledger_up"] == 0


def test_counts_checks_by_outcome_and_source(
    make_guard: Callable[..., Guard], sidecar: Sidecar, clock: ManualClock
) -> None:
    page = collected(guard := make_guard())
    for feature in (FEATURE, FEATURE, "feature-analytics"):
        guard.check(feature, customer=CUSTOMER)
    sidecar.stop()
    clock.advance(60)
    guard.check(FEATURE, customer=CUSTOMER)
    figures = read(page)
    assert {name: value for name, value in figures.items() if name.startswith("stigg_guard_checks_total")} == {
        'stigg_guard_checks_total{outcome="granted",source="sidecar"}': 1,
        'stigg_guard_checks_total{outcome="granted",source="cache"}': 1,
        'stigg_guard_checks_total{outcome="denied",source="cache"}': 1,
        'stigg_guard_checks_total{outcome="granted",source="stale"}': 1,
    }
    assert figures['stigg_guard_cache_requests_total{result="hit"}'] == 2
    assert figures['stigg_guard_cache_requests_total{result="miss"}'] == 2
    assert figures["stigg_guard_stale_answers_total"] == 1
    assert figures['stigg_guard_fetch_seconds_count{outcome="ok"}'] == 2
    assert figures['stigg_guard_fetch_seconds_count{outcome="failed"}'] == 1


def test_counts_fallbacks_and_checks_without_an_answer(make_guard: Callable[..., Guard]) -> None:
    page = collected(guard := make_guard(SIDECAR=NOBODY_LISTENS))
    assert guard.check(FEATURE, customer=CUSTOMER, fallback=Fallback(True))
    with pytest.raises(SidecarUnavailable):
        guard.check(FEATURE, customer=CUSTOMER)
    figures = read(page)
    assert figures["stigg_guard_fallbacks_total"] == 1
    assert figures['stigg_guard_checks_total{outcome="granted",source="fallback"}'] == 1
    assert figures['stigg_guard_checks_total{outcome="unanswered",source="none"}'] == 1


def test_counts_denials_by_reason_and_no_mere_checks(guard: Guard) -> None:
    page = collected(guard)
    assert not guard.check("feature-analytics", customer=CUSTOMER)
    with pytest.raises(FeatureDenied):
        guard.require("feature-analytics", customer=CUSTOMER)
    with pytest.raises(FeatureDenied), guard.consume(FEATURE, 4, customer=CUSTOMER):
        pytest.fail("oversold")
    figures = read(page)
    assert {name: value for name, value in figures.items() if name.startswith("stigg_guard_denials_total")} == {
        'stigg_guard_denials_total{reason="NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION"}': 1,
        'stigg_guard_denials_total{reason="REQUESTED_USAGE_EXCEEDING_LIMIT"}': 1,
    }


def exported() -> set[str]:
    """The names of the samples that a page may have."""
    ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
    with Guard(Config(ledger="memory://")) as guard:
        families = list(GuardCollector(guard).describe())
    return {f"{family.name}{end}" for family in families for end in ends.get(family.type, [""])}


@pytest.mark.parametrize("file", ["grafana.json", "operations.md"])
def test_dashboard_and_alerts_name_what_there_is(file: str) -> None:
    text = (Path(__file__).parents[1] / "docs" / file).read_text(encoding="utf-8")
    named = set(re.findall(r"\bstigg_guard_\w+[a-z]\b", text)) - {"stigg_guard_fetch_seconds"}  # the histogram itself
    assert named <= exported()


def test_dashboard_shows_every_metric() -> None:
    dashboard = json.loads((Path(__file__).parents[1] / "docs" / "grafana.json").read_text(encoding="utf-8"))
    queries = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    ends = ("_sum", "_count")  # of a histogram whose buckets are shown
    assert [name for name in exported() if not name.endswith(ends) and name not in queries] == []


def test_manual_has_a_row_for_every_metric() -> None:
    manual = (Path(__file__).parents[1] / "docs" / "operations.md").read_text(encoding="utf-8")
    with Guard(Config(ledger="memory://")) as guard:
        names = [family.name + "_total" * (family.type == "counter") for family in GuardCollector(guard).describe()]
    assert [name for name in names if f"\n| `{name}" not in manual] == []

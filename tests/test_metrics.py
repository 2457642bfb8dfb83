"""The metrics of a guard as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from stigg_guard import Guard
from stigg_guard.ledger import UsageKey, Use
from stigg_guard.metrics import GuardCollector

CUSTOMER = "customer-demo-01"
FEATURE = "feature-templates"


def scraped(guard: Guard) -> dict[str, float]:
    """What a page of metrics says, by name and labels."""
    registry = CollectorRegistry()
    registry.register(GuardCollector(guard))
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

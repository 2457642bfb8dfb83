"""Prometheus metrics of a guard: the figures of its ledger and its reporter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from time import time

from stigg_guard.errors import MissingExtra, StiggGuardError
from stigg_guard.guard import Guard
from stigg_guard.ledger import State

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ModuleNotFoundError as error:
    raise MissingExtra("prometheus", "GuardCollector") from error


class GuardCollector(Collector):
    """The figures of :meth:`Guard.stats`: ``REGISTRY.register(GuardCollector(guard))``.

    They are read when they are scraped, and not before. A ledger that cannot be read is ``stigg_guard_ledger_up`` 0,
    without its figures; it is never an error of the page.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        ledger = self._guard.ledger
        try:
            counts = ledger.counts()
            oldest = {state: ledger.entries([state], 1) for state in State if counts[state]}
        except StiggGuardError:
            yield _ledger_up(False)
        else:
            yield _ledger_up(True)
            yield from _ledger_metrics(counts)
            yield _ages({state: time() - entries[0].first_at / 1e6 for state, entries in oldest.items() if entries})
        yield from _reporter_metrics(self._guard.reporter_stats())

    def describe(self) -> Iterator[Metric]:
        """The metrics without their values, so that registering reads no ledger."""
        yield _ledger_up(False)
        yield from _ledger_metrics(Counter())
        yield _ages({})
        yield from _reporter_metrics(Counter())


def _ledger_up(up: bool) -> Metric:
    return GaugeMetricFamily("stigg_guard_ledger_up", "1 if the ledger can be read.", value=up)


def _ledger_metrics(stats: Mapping[str, int]) -> Iterator[Metric]:
    entries = GaugeMetricFamily("stigg_guard_ledger_entries", "Entries of the ledger.", labels=["state"])
    for state in State:
        entries.add_metric([state.value], stats[state.value])
    yield entries
    yield CounterMetricFamily("stigg_guard_late_holds", "Holds committed after they expired.", value=stats["late"])


def _ages(ages: Mapping[State, float]) -> Metric:
    text = "Age of the oldest entry by its first use."
    oldest = GaugeMetricFamily("stigg_guard_ledger_oldest_seconds", text, labels=["state"])
    for state in State:
        oldest.add_metric([state.value], max(0.0, ages.get(state, 0.0)))
    return oldest


def _reporter_metrics(stats: Mapping[str, int]) -> Iterator[Metric]:
    reports = CounterMetricFamily("stigg_guard_reports", "Reports of this process by outcome.", labels=["outcome"])
    for outcome in ("acknowledged", "rejected", "doubted"):
        reports.add_metric([outcome], stats[outcome])
    yield reports
    yield GaugeMetricFamily("stigg_guard_report_failures", "Failures to report in a row.", value=stats["failures"])
    yield GaugeMetricFamily("stigg_guard_stranded_uses", "Uses kept in memory only.", value=stats["stranded"])

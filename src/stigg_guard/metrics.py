"""Prometheus metrics of a guard: what it checked and fetched, the figures of its ledger and its reporter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from time import time

from stigg_guard.entitlements import Customer, Entitlement, Source
from stigg_guard.errors import FeatureDenied, MissingExtra, StiggGuardError
from stigg_guard.guard import Guard
from stigg_guard.ledger import State
from stigg_guard.observer import Observer, Step

try:
    from prometheus_client import Counter as Counts
    from prometheus_client import Histogram
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ModuleNotFoundError as error:
    raise MissingExtra("prometheus", "GuardCollector") from error


class GuardCollector(Collector):
    """What a guard does and the figures of :meth:`Guard.stats`: ``REGISTRY.register(GuardCollector(guard))``.

    Checks, denials and fetches are counted from when it is made. The ledger is read when it is scraped, and not before.
    One that cannot be read is ``stigg_guard_ledger_up`` 0, without its figures; it is never an error of the page.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._activity = _Activity()
        guard.observe(self._activity)

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        for counted in self._activity.metrics:
            yield from counted.collect()
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
        for counted in self._activity.metrics:
            yield from counted.describe()
        yield _ledger_up(False)
        yield from _ledger_metrics(Counter())
        yield _ages({})
        yield from _reporter_metrics(Counter())


class _Activity(Observer):
    """Counts what happens in a guard."""

    def __init__(self) -> None:
        self._checks = _counts("checks", "Checks by outcome and by where the answer came from.", "outcome", "source")
        self._cache = _counts("cache_requests", "Checks that the cache answered (hit) or did not (miss).", "result")
        self._fallbacks = _counts("fallbacks", "Checks that a fallback answered.")
        self._stale = _counts("stale_answers", "Checks answered by entitlements that are no longer fresh.")
        self._denials = _counts("denials", "Requests that were denied, by reason.", "reason")
        self._fetches = Histogram(
            "stigg_guard_fetch_seconds", "Duration of a question to the sidecar.", ["outcome"], registry=None
        )
        counts = (self._checks, self._cache, self._fallbacks, self._stale, self._denials)
        self.metrics: tuple[Counts | Histogram, ...] = (*counts, self._fetches)

    def checked(self, answer: Entitlement, customer: Customer) -> None:
        self._checks.labels("granted" if answer else "denied", answer.source.value).inc()
        self._cache.labels("hit" if answer.source is Source.CACHE else "miss").inc()
        if answer.is_fallback:
            self._fallbacks.inc()
        if answer.source is Source.STALE:
            self._stale.inc()

    def unanswered(self, feature: str, customer: Customer, error: StiggGuardError) -> None:
        self._checks.labels("unanswered", "none").inc()
        self._cache.labels("miss").inc()

    def denied(self, error: FeatureDenied) -> None:
        self._denials.labels(str(error.entitlement.reason)).inc()

    def fetched(self, step: Step) -> None:
        self._fetches.labels("ok" if step.error is None else "failed").observe(step.seconds)


def _counts(name: str, meaning: str, *labels: str) -> Counts:
    return Counts(f"stigg_guard_{name}", meaning, labels, registry=None)


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

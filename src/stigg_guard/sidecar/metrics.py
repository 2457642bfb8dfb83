"""The local sidecar's figures for Prometheus, under the names of Stigg's sidecar, so that its dashboards work here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from stigg_guard.errors import MissingExtra

try:
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
    from prometheus_client.samples import Sample
except ModuleNotFoundError as error:
    raise MissingExtra("sidecar", "The local sidecar") from error

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The figures of one sidecar, in a registry of their own. Errors of the network stay 0 with a catalog,
    which needs none."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("sidecar_requests", "Answered requests.", ["method", "code"], registry=self.registry)
        self.seconds = Histogram(
            "sidecar_request_duration_seconds",
            "How long answers took.",
            ["method"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.cache_hits = self._counter("cache_hits", "Checks that were answered from what this sidecar knew.")
        self.cache_misses = self._counter("cache_misses", "Checks for which Redis had news.")
        self.initialization_errors = self._counter("initialization_errors", "Starts without the state.")
        self.invalid_api_key_errors = self._counter("invalid_api_key_errors", "Requests without the right key.")
        self.network_request_errors = self._counter(
            "network_request_errors", "Answers that another server did not give."
        )
        self.redis_client_errors = self._counter("redis_client_errors", "Steps that Redis did not take.")

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)

    def summary(self) -> Mapping[str, float]:
        """What people ask for: ``answered``, ``failed``, ``hits``, ``misses``, ``redis_errors``, and the seconds
        within which half of the answers were given, and 99 %."""
        codes: defaultdict[str, float] = defaultdict(float)
        for sample in self._samples(self.requests, "_total"):
            codes[sample.labels["code"]] += sample.value
        return {
            "answered": codes["OK"],
            "failed": sum(codes.values()) - codes["OK"],
            "hits": self._total(self.cache_hits),
            "misses": self._total(self.cache_misses),
            "redis_errors": self._total(self.redis_client_errors),
            "p50": self._within(0.5),
            "p99": self._within(0.99),
        }

    def _within(self, part: float) -> float:
        """The least bound within which so large a part of all answers was given; 0 before the first one."""
        buckets: defaultdict[float, float] = defaultdict(float)
        for sample in self._samples(self.seconds, "_bucket"):
            buckets[float(sample.labels["le"])] += sample.value
        every = max(buckets.values(), default=0)
        found = (bound for bound in sorted(buckets) if buckets[bound] >= part * every)
        return min(next(found, 0.0), _SECONDS[-1]) if every else 0.0

    def _total(self, counter: Counter) -> float:
        return sum(sample.value for sample in self._samples(counter, "_total"))

    def _samples(self, figure: Counter | Histogram, ending: str) -> Iterator[Sample]:
        return (sample for family in figure.collect() for sample in family.samples if sample.name.endswith(ending))

    def _counter(self, name: str, meaning: str) -> Counter:
        return Counter(f"sidecar_{name}", meaning, registry=self.registry)

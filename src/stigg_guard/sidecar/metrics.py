"""The local sidecar's figures for Prometheus, under the names of Stigg's sidecar, so that its dashboards work here."""

from __future__ import annotations

from stigg_guard.errors import MissingExtra

try:
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
except ModuleNotFoundError as error:
    raise MissingExtra("sidecar", "The local sidecar") from error

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The figures of one sidecar, in a registry of their own. Errors of the network stay 0: a catalog needs none."""

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
        self.network_request_errors = self._counter("network_request_errors", "Always 0 in the local sidecar.")
        self.redis_client_errors = self._counter("redis_client_errors", "Steps that Redis did not take.")

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, meaning: str) -> Counter:
        return Counter(f"sidecar_{name}", meaning, registry=self.registry)

"""Spans, metrics and log events, as the SDK of OpenTelemetry collects them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from stigg_guard import Customer, FeatureDenied, Guard, SidecarUnavailable
from stigg_guard.otel import instrument

CUSTOMER = "customer-demo-01"
TEMPLATES = "feature-templates"
NOBODY_LISTENS = "127.0.0.1:1"


class Telemetry(NamedTuple):
    """What a process collects, and the providers that it collects by."""

    spans: InMemorySpanExporter
    metrics: InMemoryMetricReader
    logs: InMemoryLogRecordExporter
    providers: Mapping[str, Any]

    def points(self, name: str) -> list[Any]:
        data = self.metrics.get_metrics_data()
        found = (
            [] if data is None else [scope for resource in data.resource_metrics for scope in resource.scope_metrics]
        )
        return [
            point
            for scope in found
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def counted(self, name: str) -> dict[tuple[Any, ...], float]:
        return {tuple(dict(point.attributes).values()): point.value for point in self.points(name)}


@pytest.fixture
def telemetry() -> Telemetry:
    spans, metrics, logs = InMemorySpanExporter(), InMemoryMetricReader(), InMemoryLogRecordExporter()
    tracing, logging = TracerProvider(), LoggerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(spans))
    logging.add_log_record_processor(SimpleLogRecordProcessor(logs))
    metering = MeterProvider([metrics])
    providers = {"tracer_provider": tracing, "meter_provider": metering, "logger_provider": logging}
    return Telemetry(spans, metrics, logs, providers)


def test_fetches_holds_and_reports_are_spans(make_guard: Callable[..., Guard], telemetry: Telemetry) -> None:
    guard = make_guard(REPORT="inline")
    instrument(guard, **telemetry.providers)
    with guard.consume(TEMPLATES, 2, customer=Customer(CUSTOMER, "site-01")):
        pass
    spans = [(span.name, span.kind, dict(span.attributes or {})) for span in telemetry.spans.get_finished_spans()]
    whose = {"stigg_guard.customer": CUSTOMER, "stigg_guard.resource": "site-01"}
    assert spans == [
        ("stigg_guard.fetch", SpanKind.CLIENT, whose),
        ("stigg_guard.hold", SpanKind.INTERNAL, {**whose, "stigg_guard.features": (TEMPLATES,)}),
        ("stigg_guard.report", SpanKind.CLIENT, {"stigg_guard.features": (TEMPLATES,)}),
    ]


def test_a_span_lies_within_that_of_the_request(guard: Guard, telemetry: Telemetry) -> None:
    instrument(guard, **telemetry.providers)
    tracer = telemetry.providers["tracer_provider"].get_tracer("site")
    with tracer.start_as_current_span("request") as request:
        guard.check(TEMPLATES, customer=CUSTOMER)
    fetch, _ = telemetry.spans.get_finished_spans()
    assert fetch.parent is not None
    assert fetch.parent.span_id == request.get_span_context().span_id
    assert fetch.instrumentation_scope is not None
    assert fetch.instrumentation_scope.name == "stigg_guard"


def test_a_denied_hold_is_no_error_and_a_failed_fetch_is(
    make_guard: Callable[..., Guard], telemetry: Telemetry
) -> None:
    guard, lost = make_guard(), make_guard(SIDECAR=NOBODY_LISTENS)
    for one in (guard, lost):
        instrument(one, **telemetry.providers)
    with pytest.raises(FeatureDenied), guard.consume(TEMPLATES, 4, customer=CUSTOMER):
        pytest.fail("oversold")
    with pytest.raises(SidecarUnavailable):
        lost.check(TEMPLATES, customer=CUSTOMER)
    spans = telemetry.spans.get_finished_spans()
    assert [(span.name, span.status.status_code) for span in spans] == [
        ("stigg_guard.fetch", StatusCode.UNSET),
        ("stigg_guard.hold", StatusCode.UNSET),
        ("stigg_guard.fetch", StatusCode.ERROR),
    ]
    told = [dict(span.attributes or {}) for span in spans]
    assert told[1]["stigg_guard.denied"] == "REQUESTED_USAGE_EXCEEDING_LIMIT"
    assert told[2]["error.type"] == "SidecarUnavailable"
    assert NOBODY_LISTENS in str(spans[2].status.description)


def test_metrics(make_guard: Callable[..., Guard], telemetry: Telemetry) -> None:
    guard = make_guard(REPORT="inline")
    leave = instrument(guard, **telemetry.providers)
    for _ in range(2):
        guard.check(TEMPLATES, customer=CUSTOMER)
    with pytest.raises(FeatureDenied):
        guard.require("feature-analytics", customer=CUSTOMER)
    guard.report(TEMPLATES, 1, customer=CUSTOMER)
    assert telemetry.counted("stigg_guard.checks") == {
        ("granted", "sidecar"): 1,
        ("granted", "cache"): 1,
        ("denied", "cache"): 1,
    }
    assert telemetry.counted("stigg_guard.denials") == {("NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION",): 1}
    assert telemetry.counted("stigg_guard.reports") == {(): 1}
    assert [point.count for point in telemetry.points("stigg_guard.fetch.duration")] == [2]
    assert [point.count for point in telemetry.points("stigg_guard.report.duration")] == [1]
    leave()
    guard.check(TEMPLATES, customer=CUSTOMER)
    assert telemetry.counted("stigg_guard.checks")[("granted", "cache")] == 1


def test_failures_are_measured_with_their_type(make_guard: Callable[..., Guard], telemetry: Telemetry) -> None:
    guard = make_guard(SIDECAR=NOBODY_LISTENS)
    instrument(guard, **telemetry.providers)
    with pytest.raises(SidecarUnavailable), guard.consume(TEMPLATES, customer=CUSTOMER):
        pytest.fail("held")
    with pytest.raises(SidecarUnavailable):
        guard.check(TEMPLATES, customer=CUSTOMER)
    assert telemetry.counted("stigg_guard.checks") == {("unanswered", "none"): 1}
    for name in ("fetch", "hold"):
        (point,) = telemetry.points(f"stigg_guard.{name}.duration")
        assert dict(point.attributes) == {"error.type": "SidecarUnavailable"}


def test_the_ledger_is_counted_when_it_is_collected(make_guard: Callable[..., Guard], telemetry: Telemetry) -> None:
    guard = make_guard(SIDECAR=NOBODY_LISTENS, LEDGER="memory://")
    instrument(guard, **telemetry.providers)
    guard.report(TEMPLATES, 1, customer=CUSTOMER)
    counted = telemetry.counted("stigg_guard.ledger.entries")
    assert sum(counted.values()) == 1
    assert set(counted) == {("held",), ("unsent",), ("sending",), ("uncertain",), ("dead",)}
    guard.close()
    assert telemetry.points("stigg_guard.ledger.entries") == []


def test_a_guard_is_not_kept_alive(make_guard: Callable[..., Guard], telemetry: Telemetry) -> None:
    instrument(Guard(make_guard().config), **telemetry.providers)
    assert telemetry.points("stigg_guard.ledger.entries") == []


def test_checks_are_log_events_only_where_that_is_asked_for(guard: Guard, telemetry: Telemetry) -> None:
    instrument(guard, **telemetry.providers)
    guard.check(TEMPLATES, customer=CUSTOMER)
    assert telemetry.logs.get_finished_logs() == ()


def test_checks_are_log_events_of_the_conventions(make_guard: Callable[..., Guard], telemetry: Telemetry) -> None:
    guard, lost = make_guard(), make_guard(SIDECAR=NOBODY_LISTENS)
    for one in (guard, lost):
        instrument(one, evaluations=True, **telemetry.providers)
    guard.check(TEMPLATES, customer=CUSTOMER)
    guard.check("feature-analytics", customer=CUSTOMER)
    with pytest.raises(SidecarUnavailable):
        lost.check(TEMPLATES, customer=CUSTOMER)
    records = [log.log_record for log in telemetry.logs.get_finished_logs()]
    assert {record.event_name for record in records} == {"feature_flag.evaluation"}
    whose = {"feature_flag.provider.name": "stigg-guard", "feature_flag.context.id": CUSTOMER}
    told = [dict(record.attributes or {}) for record in records]
    assert told[:2] == [
        {
            "feature_flag.key": TEMPLATES,
            **whose,
            "feature_flag.result.variant": "granted",
            "feature_flag.result.reason": "targeting_match",
        },
        {
            "feature_flag.key": "feature-analytics",
            **whose,
            "feature_flag.result.variant": "denied",
            "feature_flag.result.reason": "cached",
        },
    ]
    message = told[2].pop("feature_flag.error.message")
    assert NOBODY_LISTENS in str(message)
    reason = {"feature_flag.result.reason": "error", "error.type": "general"}
    assert told[2] == {"feature_flag.key": TEMPLATES, **whose, **reason}

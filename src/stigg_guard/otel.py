"""OpenTelemetry: spans for what takes time, metrics, and log events for checks."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from importlib.metadata import version

from stigg_guard.clock import microseconds
from stigg_guard.entitlements import Customer, Entitlement, Source
from stigg_guard.errors import FeatureDenied, MissingExtra, StiggGuardError
from stigg_guard.guard import Guard
from stigg_guard.ledger import Acknowledged, State
from stigg_guard.observer import Observer, Step

try:
    from opentelemetry._logs import Logger, LoggerProvider, LogRecord, SeverityNumber, get_logger
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation, get_meter
    from opentelemetry.trace import SpanKind, StatusCode, Tracer, TracerProvider, get_tracer
    from opentelemetry.util.types import AttributeValue
except ModuleNotFoundError as error:
    raise MissingExtra("otel", "stigg_guard.otel") from error

SCOPE = "stigg_guard"
PROVIDER = "stigg-guard"
EVALUATION = "feature_flag.evaluation"
"""What OpenTelemetry's semantic conventions call the event of an evaluated flag."""

# As the conventions spell them.
_REASONS = {Source.CACHE: "cached", Source.STALE: "stale", Source.FALLBACK: "default"}


def instrument(
    guard: Guard,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    logger_provider: LoggerProvider | None = None,
    evaluations: bool = False,
) -> Callable[[], None]:
    """Traces and measures the guard from now on, by the providers given or the global ones; the returned function ends
    it. With ``evaluations`` each check is a log event, too, which names the customer.
    """
    scope = version("stigg-guard")
    meter = get_meter(SCOPE, scope, meter_provider)
    observers: list[Observer] = [_Spans(get_tracer(SCOPE, scope, tracer_provider)), _Metrics(meter)]
    if evaluations:
        observers.append(_Evaluations(get_logger(SCOPE, scope, logger_provider)))
    _measure_ledger(meter, guard)
    ends = [guard.observe(observer) for observer in observers]

    def leave() -> None:
        for end in ends:
            end()

    return leave


class _Spans(Observer):
    """A span for each fetch, hold and batch of reports, within the span of the thread in which it was."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def fetched(self, step: Step) -> None:
        self._span("stigg_guard.fetch", SpanKind.CLIENT, step)

    def held(self, step: Step) -> None:
        self._span("stigg_guard.hold", SpanKind.INTERNAL, step)

    def sent(self, step: Step) -> None:
        self._span("stigg_guard.report", SpanKind.CLIENT, step)

    def _span(self, name: str, kind: SpanKind, step: Step) -> None:
        began_at = microseconds(step.began_at) * 1000
        span = self._tracer.start_span(name, kind=kind, attributes=_attributes(step), start_time=began_at)
        if step.error is not None and not isinstance(step.error, FeatureDenied):
            span.set_attribute("error.type", type(step.error).__qualname__)
            span.set_status(StatusCode.ERROR, str(step.error))
        span.end(began_at + round(step.seconds * 1e9))


class _Metrics(Observer):
    """Counts checks, denials and reports; measures how long fetches, holds and batches take."""

    def __init__(self, meter: Meter) -> None:
        self._checks = meter.create_counter("stigg_guard.checks", "{check}", "Checks by outcome and source.")
        self._denials = meter.create_counter("stigg_guard.denials", "{denial}", "Denials by reason.")
        self._reports = meter.create_counter("stigg_guard.reports", "{report}", "Reports that were acknowledged.")
        self._fetch = meter.create_histogram("stigg_guard.fetch.duration", "s", "Duration of fetches.")
        self._hold = meter.create_histogram("stigg_guard.hold.duration", "s", "Duration of taking holds.")
        self._report = meter.create_histogram("stigg_guard.report.duration", "s", "Duration of sending batches.")

    def checked(self, answer: Entitlement, customer: Customer) -> None:
        self._checks.add(1, {"outcome": _variant(answer), "source": answer.source.value})

    def unanswered(self, feature: str, customer: Customer, error: StiggGuardError) -> None:
        self._checks.add(1, {"outcome": "unanswered", "source": "none"})

    def denied(self, error: FeatureDenied) -> None:
        self._denials.add(1, {"reason": str(error.entitlement.reason)})

    def fetched(self, step: Step) -> None:
        self._fetch.record(step.seconds, _error_type(step))

    def held(self, step: Step) -> None:
        self._hold.record(step.seconds, _error_type(step))

    def sent(self, step: Step) -> None:
        self._report.record(step.seconds, _error_type(step))

    def reported(self, answer: Acknowledged) -> None:
        self._reports.add(1)


class _Evaluations(Observer):
    """A log event for each check."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger

    def checked(self, answer: Entitlement, customer: Customer) -> None:
        self._emit(
            answer.feature_id,
            customer,
            {
                "feature_flag.result.variant": _variant(answer),
                "feature_flag.result.reason": _REASONS.get(answer.source, "targeting_match"),
            },
        )

    def unanswered(self, feature: str, customer: Customer, error: StiggGuardError) -> None:
        told = {"feature_flag.result.reason": "error", "error.type": "general"}
        self._emit(feature, customer, {**told, "feature_flag.error.message": str(error)})

    def _emit(self, feature: str, customer: Customer, told: dict[str, AttributeValue]) -> None:
        attributes = {
            "feature_flag.key": feature,
            "feature_flag.provider.name": PROVIDER,
            "feature_flag.context.id": str(customer),
            **told,
        }
        self._logger.emit(LogRecord(event_name=EVALUATION, severity_number=SeverityNumber.INFO, attributes=attributes))


def _measure_ledger(meter: Meter, guard: Guard) -> None:
    """Counts the ledger's entries when they are collected, as long as somebody has the guard."""
    known = weakref.ref(guard)

    def entries(_options: CallbackOptions) -> Iterator[Observation]:
        guard = known()
        if guard is None:
            return
        try:
            counts = guard.ledger.counts()
        except StiggGuardError:
            return  # a ledger that cannot be read has no figures
        for state in State:
            yield Observation(counts[state], {"state": state.value})

    meter.create_observable_gauge("stigg_guard.ledger.entries", [entries], "{entry}", "Entries of the ledger.")


def _attributes(step: Step) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {}
    if step.customer is not None:
        attributes["stigg_guard.customer"] = step.customer.id
        if step.customer.resource is not None:
            attributes["stigg_guard.resource"] = step.customer.resource
    if step.features:
        attributes["stigg_guard.features"] = step.features
    if isinstance(step.error, FeatureDenied):
        attributes["stigg_guard.denied"] = str(step.error.entitlement.reason)
    return attributes


def _variant(answer: Entitlement) -> str:
    return "granted" if answer else "denied"


def _error_type(step: Step) -> dict[str, AttributeValue]:
    return {} if step.error is None else {"error.type": type(step.error).__qualname__}

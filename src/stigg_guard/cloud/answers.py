"""The 12 requests, answered by Stigg's GraphQL API."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from types import MappingProxyType
from typing import Any, TypeVar

from google.protobuf.message import Message

from stigg_guard.amounts import usage_amount
from stigg_guard.api import Api, UsageEventsReportInput
from stigg_guard.clock import utc_now
from stigg_guard.cloud.fields import (
    ENTITLEMENT,
    MEASUREMENT,
    NOT_THERE,
    STATE,
    decided,
    entitlement_message,
    event_input,
    kind_of,
    listed,
    missing,
    state_response,
    usage_input,
    usage_response,
)
from stigg_guard.entitlements import require_id
from stigg_guard.errors import (
    ApiError,
    ApiRejected,
    ApiTimeout,
    ApiUnauthenticated,
    ApiUnavailable,
    InvalidRequest,
    SidecarError,
    SidecarTimeout,
    SidecarUnauthenticated,
    SidecarUnavailable,
    StiggGuardError,
)
from stigg_guard.fallbacks import Fallback, fallback_answer, requested_fallback
from stigg_guard.wire import METHODS
from stigg_guard.wire import sidecar_pb2 as pb
from stigg_guard.wire.responses import TYPED_METHODS, entitlement_response

T = TypeVar("T")

SECONDS = 10.0
"""The deadline of a call without one of its own: that of Stigg's sidecar."""

# What the API says of the customer of a question, as the sidecar answers it.
_DENIALS = {
    "CUSTOMER_NOT_FOUND": pb.ACCESS_DENIED_REASON_CUSTOMER_NOT_FOUND,
    "RESOURCE_NOT_FOUND": pb.ACCESS_DENIED_REASON_CUSTOMER_RESOURCE_NOT_FOUND,
    "SUBSCRIPTION_NOT_FOUND": pb.ACCESS_DENIED_REASON_NO_ACTIVE_SUBSCRIPTION,
    "FEATURE_NOT_FOUND": pb.ACCESS_DENIED_REASON_FEATURE_NOT_FOUND,
}
# The field that the API's word is about, where its message does not begin with one.
_FIELDS = {
    "CUSTOMER_NOT_FOUND": "customer_id",
    "RESOURCE_NOT_FOUND": "resource_id",
    "FEATURE_NOT_FOUND": "feature_id",
}


class Cloud:
    """Answers requests by asking Stigg's API, which it closes. It remembers nothing, and is as safe as ``api`` is under
    threads and forks.

    ``fallbacks`` answer, by feature id, for features that Stigg does not know. ``now`` tells the present instant.
    """

    honours_keys = True
    """Each report carries its key to Stigg, which counts those of one key once."""

    def __init__(
        self,
        api: Api,
        *,
        fallbacks: Mapping[str, Fallback] = MappingProxyType({}),
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._api = api
        self._fallbacks = fallbacks
        self._now = now
        self._methods: Mapping[str, Callable[[Any, float, str | None], Message]] = {
            "GetEntitlementsStateV2": self._state,
            "GetEntitlements": self._entitlements,
            "ReloadEntitlements": self._reload,
            "ReportUsage": self._report_usage,
            "ReportUsageBulk": self._report_bulk,
            "ReportEvents": self._report_events,
        }

    def answer(
        self, method: str, request: Message, *, timeout: float | None = None, idempotency_key: str | None = None
    ) -> Message:
        """The answer within ``timeout`` seconds, repetitions included.

        Raises:
            InvalidRequest: a report was rejected; the field is named where Stigg says it. Nothing was counted.
            SidecarError: there is no answer; the subclass says why.
        """
        seconds = SECONDS if timeout is None else timeout
        _require_ids(request)
        try:
            if method in self._methods:
                return self._methods[method](request, seconds, idempotency_key)
            return self._entitlement(method, request, seconds)
        except ApiError as error:
            raise _error_of(error, is_report=method.startswith("Report")) from error

    def close(self) -> None:
        """Closes the connections of this process."""
        self._api.close()

    def _state(self, request: Any, timeout: float, _key: str | None) -> pb.GetEntitlementsStateV2Response:
        query = _of_customer(request)
        try:
            answer = self._api.get_entitlements_state(query, fields=STATE, timeout=timeout)
        except ApiRejected as error:
            return pb.GetEntitlementsStateV2Response(access_denied_reason=_denial(error))
        with _reading("GetEntitlementsState"):
            return state_response(answer.entitlements_state, self._now())

    def _entitlements(self, request: Any, timeout: float, key: str | None) -> Message:
        return older_list(self._state(request, timeout, key))

    def _reload(self, request: Any, timeout: float, key: str | None) -> Message:
        return pb.ReloadEntitlementsResponse(entitled_entity_exists=exists(self._state(request, timeout, key)))

    def _entitlement(self, method: str, request: Any, timeout: float) -> Message:
        """The six ``GetEntitlement…``: asked by the API alone, which costs one request."""
        kind, usage, values = asked_for(method, request)
        query = _of_customer(request)
        query["currencyId" if kind == "credit" else "featureId"] = (
            request.currency_id if kind == "credit" else request.feature_id
        )
        query["options"] = {"requestedUsage": usage, "requestedValues": list(values)}
        try:
            said = self._api.get_entitlement_v2(query, fields=ENTITLEMENT, timeout=timeout)
        except ApiRejected as error:
            answer = missing(kind or "boolean", _denial(error))
        else:
            with _reading("GetEntitlementV2"):
                answer = _told(said.entitlement_v2, kind)
            if answer.access_denied_reason not in NOT_THERE:
                answer = decided(answer, usage, values)
        return enveloped(method, request, answer, self._fallbacks)

    def _report_usage(self, request: Any, timeout: float, key: str | None) -> Message:
        given = usage_input(request, key)
        answer = self._api.report_usage(given, fields=MEASUREMENT, timeout=timeout)
        with _reading("ReportUsage"):
            return usage_response(answer.report_usage)

    def _report_bulk(self, request: Any, timeout: float, key: str | None) -> Message:
        usages = [
            usage_input(usage, key and f"{key}/{index}", f"usages[{index}].")
            for index, usage in enumerate(request.usages)
        ]
        answer = self._api.report_usage_bulk({"usages": usages}, fields=MEASUREMENT, timeout=timeout)
        with _reading("ReportUsageBulk"):
            measured = list(map(usage_response, listed(answer.report_usage_bulk)))
            if len(measured) != len(usages):
                raise ValueError(f"{len(measured)} measurements for {len(usages)} usages")
            return pb.ReportUsageBulkResponse(usages=measured)

    def _report_events(self, request: Any, timeout: float, _key: str | None) -> Message:
        events: Any = [event_input(event, f"events[{index}].") for index, event in enumerate(request.events)]
        answer = self._api.report_event(UsageEventsReportInput(usage_events=events), timeout=timeout)
        with _reading("ReportEvent"):
            _ = answer.report_event  # which may be null, but is there
        return METHODS["ReportEvents"].response()


def asked_for(method: str, request: Any) -> tuple[str | None, float | None, tuple[str, ...]]:
    """The kind that a ``GetEntitlement…`` insists on, if it does, and the usage and values that it asks for.

    Raises:
        InvalidRequest: the requested usage is no amount, or it is not clear what is asked for.
    """
    kind = TYPED_METHODS.get(method)
    if method == "GetEntitlementV2":
        if request.HasField("feature_id") == request.HasField("currency_id"):
            raise InvalidRequest("feature_id", "ask for exactly one of feature_id and currency_id")
        kind = "credit" if request.HasField("currency_id") else None
    options = request.options
    names = options.DESCRIPTOR.fields_by_name
    values = tuple(options.requested_values) if "requested_values" in names and kind in (None, "enum") else ()
    if "requested_usage" not in names or not options.HasField("requested_usage"):
        return kind, None, values
    return kind, usage_amount(options.requested_usage, "options.requested_usage"), values


def enveloped(method: str, request: Any, answer: pb.EntitlementV2, fallbacks: Mapping[str, Fallback]) -> Message:
    """The response that carries the answer, or the fallback for a feature that nobody knows."""
    if answer.access_denied_reason == pb.ACCESS_DENIED_REASON_FEATURE_NOT_FOUND:
        fallback = requested_fallback(request) or fallbacks.get(request.feature_id)
        if fallback is not None:
            return fallback_answer(method, request, fallback)
    return entitlement_response(method, request, answer)


def of_kind(answer: pb.EntitlementV2, kind: str | None) -> pb.EntitlementV2:
    """The answer, if it is of the kind that is insisted on."""
    if kind is None or kind == answer.WhichOneof("entitlement"):
        return answer
    return missing(kind, pb.ACCESS_DENIED_REASON_FEATURE_TYPE_MISMATCH)


def older_list(state: pb.GetEntitlementsStateV2Response) -> pb.GetEntitlementsResponse:
    """A customer's list as ``GetEntitlements`` has it: features only, without those that were revoked."""
    if state.HasField("access_denied_reason"):
        return pb.GetEntitlementsResponse(access_denied_reason=state.access_denied_reason)
    response = pb.GetEntitlementsResponse()
    for each in state.entitlements:
        kind = each.WhichOneof("entitlement")
        if kind != "credit" and each.access_denied_reason != pb.ACCESS_DENIED_REASON_REVOKED:
            getattr(response.entitlements.add(), kind).CopyFrom(getattr(each, kind))
    return response


def exists(state: pb.GetEntitlementsStateV2Response) -> bool:
    """Whether there is who the list is of."""
    return state.access_denied_reason not in (
        pb.ACCESS_DENIED_REASON_CUSTOMER_NOT_FOUND,
        pb.ACCESS_DENIED_REASON_CUSTOMER_RESOURCE_NOT_FOUND,
    )


def _told(said: Any, kind: str | None) -> pb.EntitlementV2:
    """What the API told of one feature or currency; without any answer it knows none."""
    answer = entitlement_message(said)
    if answer is None:
        unknown = pb.ACCESS_DENIED_REASON_ENTITLEMENT_NOT_FOUND
        return missing(kind or "boolean", unknown if kind == "credit" else pb.ACCESS_DENIED_REASON_FEATURE_NOT_FOUND)
    reason, is_known = answer.access_denied_reason, getattr(said, "feature", None) is not None
    is_credit = answer.WhichOneof("entitlement") == "credit"
    if is_credit and kind != "credit":
        raise ValueError("it is about a currency, and a feature was asked about")
    if answer.has_access and not is_known and not is_credit:
        raise ValueError("it grants what is no feature, so nobody knows how much")
    if reason not in NOT_THERE:
        return of_kind(answer, kind)
    if reason == pb.ACCESS_DENIED_REASON_NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION and is_known:
        reason = of_kind(missing(kind_of(said), reason), kind).access_denied_reason
    return missing(kind or kind_of(said), reason)


def _require_ids(request: Any) -> None:
    """Refuses empty ids: what the API would say of them is not documented."""
    fields = request.DESCRIPTOR.fields_by_name
    for name in ("customer_id", "resource_id", "feature_id", "currency_id"):
        if name in fields and not (fields[name].has_presence and not request.HasField(name)):
            require_id(getattr(request, name), name)


def _of_customer(request: Any) -> Any:
    query = {"customerId": request.customer_id}
    return {**query, "resourceId": request.resource_id} if request.HasField("resource_id") else query


def _denial(error: ApiRejected) -> pb.AccessDeniedReason:
    """The denial that an error is. Raises the error itself when it is none."""
    if error.code not in _DENIALS:
        raise error
    return _DENIALS[error.code]


@contextmanager
def _reading(operation: str) -> Iterator[None]:
    """What is read here is as the API sent it: nobody has held it to the schema yet.

    Raises:
        SidecarError: it does not follow the schema. A report that was answered so may have been counted.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, RecursionError, TypeError, ValueError) as error:
        problem = "the answer does not follow the API's schema; is API_URL the address of Stigg's API?"
        unknown = operation.startswith("Report")
        raise SidecarError(f"{operation}: {problem}", code="UNAVAILABLE", outcome_unknown=unknown) from error


def _error_of(error: ApiError, *, is_report: bool) -> StiggGuardError:
    """The error of a sidecar that stands for the API's. That the API failed over a report may be the report's fault;
    whoever fails otherwise, or does not answer as the API does, answers nobody."""
    unknown = error.outcome_unknown and is_report
    if isinstance(error, ApiTimeout):
        return SidecarTimeout(str(error), code="DEADLINE_EXCEEDED", outcome_unknown=unknown)
    if isinstance(error, ApiUnauthenticated):
        return SidecarUnauthenticated(str(error), code="UNAUTHENTICATED", outcome_unknown=unknown)
    if isinstance(error, ApiRejected):
        if error.turned_away and not unknown:
            return _rejection(error) if is_report else SidecarError(error.said, code="INVALID_ARGUMENT")
        if is_report:
            return SidecarError(str(error), code="UNAVAILABLE", outcome_unknown=unknown)
    away = SidecarUnavailable(str(error), code="UNAVAILABLE", outcome_unknown=unknown)
    if isinstance(error, ApiUnavailable):
        away.retry_after = error.retry_after
    return away


def _rejection(error: ApiRejected) -> InvalidRequest:
    field, separator, problem = error.said.partition(": ")
    if separator and " " not in field:
        return InvalidRequest(field.replace("createdAt", "timestamp"), problem)  # its name for the time of a use
    return InvalidRequest(_FIELDS.get(error.code, ""), error.said)

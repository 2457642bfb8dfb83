"""Calls an operation of the API: makes a request from its arguments, and results from the answer."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias, TypeVar

from stigg_guard.api.customers import changed_customers
from stigg_guard.api.documents import Operation, official_document, operations
from stigg_guard.api.record import NOT_GIVEN, Result, to_wire
from stigg_guard.api.transport import Gate, Request, Transport
from stigg_guard.errors import ApiError, InvalidRequest
from stigg_guard.foreign import quoted

AnyResult = TypeVar("AnyResult", bound=Result)

OnChange: TypeAlias = Callable[[frozenset[str] | None], None]
"""Is told whose entitlements a mutation may have changed, by their ids; None when that cannot be told."""

STIGG = "https://api.stigg.io"
SECONDS = 30.0
MAX_SECONDS = 86_400.0

# Where the inputs are that carry an idempotency key: Stigg counts those of one key once. The last is a list in a bulk.
_KEYED: Mapping[str, tuple[str, ...]] = {
    "ReportUsage": ("input",),
    "ReportUsageBulk": ("input", "usages"),
    "ReportEvent": ("input", "usageEvents"),
    "ConsumeCredits": ("input",),
    "ConsumeCreditsAsync": ("input", "consumptions"),
}


class Caller:
    """Calls operations by their names. ``timeout`` is in seconds and covers repetitions; each call may have another.

    Raises:
        ConfigError: the key or the address is malformed.
        InvalidRequest: the timeout is none.
    """

    def __init__(
        self,
        api_key: str,
        api_url: str | None = None,
        *,
        timeout: float = SECONDS,
        on_change: OnChange | None = None,
        gate: Gate | None = None,
        pauses: Sequence[float] | None = None,
    ) -> None:
        self._transport = Transport(api_key, api_url or STIGG, gate, pauses=pauses)
        self._timeout = _checked_timeout(timeout)
        self._on_change = on_change

    @property
    def server_time(self) -> datetime | None:
        """What the API's clock showed at its last answer; None before that, or when it does not tell."""
        return self._transport.server_time

    def close(self) -> None:
        """Closes the connections of this process."""
        self._transport.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._transport.url})"

    def _call(
        self,
        name: str,
        answer: type[AnyResult],
        arguments: Mapping[str, Any],
        fields: str | None = None,
        timeout: float | None = None,
    ) -> AnyResult:
        """The answer of an operation to its variables, by their GraphQL names.

        Raises:
            TypeError: an argument is not of its type.
            InvalidRequest: the timeout is none.
            ApiError: the API did not do it.
        """
        operation = operations()[name]
        given = {key: value for key, value in arguments.items() if value is not NOT_GIVEN}
        variables = {key: to_wire(operation.variables[key], value, key) for key, value in given.items()}
        if name in _KEYED:
            variables = _stamped(variables, _KEYED[name])
        document = official_document(name) if fields is None else operation.document(fields)
        body = _json({"operationName": name, "query": document, "variables": variables}, name)
        request = Request(name, body, operation.changes, repeatable=name in _KEYED)
        data: Mapping[str, Any] = {}
        try:
            data = self._transport.send(request, self._timeout if timeout is None else _checked_timeout(timeout))
        except ApiError as error:
            if error.outcome_unknown:
                self._tell(operation, variables, {})
            raise
        self._tell(operation, variables, data)
        return answer.from_wire(data)

    def _tell(self, operation: Operation, variables: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        if self._on_change is None or not operation.changes:
            return
        customers = changed_customers(operation.name, variables, data)
        if customers is None or customers:
            self._on_change(customers)


def _checked_timeout(timeout: float) -> float:
    if not isinstance(timeout, (int, float)) or isinstance(timeout, bool) or not 0 < timeout <= MAX_SECONDS:
        raise InvalidRequest("timeout", f"expected a number of seconds above 0 and up to a day, not {quoted(timeout)}")
    return timeout


def _json(value: Mapping[str, Any], name: str) -> bytes:
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{name}: what is given cannot be written as JSON: {error}") from None


def _stamped(variables: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    """The variables with an idempotency key in each input that lacks one; what the caller gave is left as it is."""
    first, *rest = path
    inner = variables.get(first)
    if isinstance(inner, list):
        return {**variables, first: [_keyed(item) for item in inner]}
    if not isinstance(inner, dict):
        return dict(variables)
    return {**variables, first: _stamped(inner, tuple(rest)) if rest else _keyed(inner)}


def _keyed(item: dict[str, Any]) -> dict[str, Any]:
    return item if item.get("idempotencyKey") is not None else {**item, "idempotencyKey": str(uuid.uuid4())}

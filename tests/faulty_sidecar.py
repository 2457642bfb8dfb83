"""A sidecar that fails on purpose, on the way to counting a report or on the way back."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import grpc

from stigg_guard import GetMeteredEntitlementRequest, InvalidRequest, Stigg
from stigg_guard.sidecar.catalog import parse_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.store import Store
from stigg_guard.wire import KEYS_HONOURED, METHODS, SERVICE, TELLS_OF_KEYS

CATALOG = """
[features.f]
type = "metered"
meter = "fluctuating"
[features.g]
type = "metered"
meter = "fluctuating"
[plans.p.entitlements]
f = { limit = 100, reset = "year" }
g = { limit = 100, reset = "year" }
[customers.c]
plan = "p"
[customers.d]
plan = "p"
"""


class FaultySidecar:
    """A real gRPC server over a real engine. ``before`` and ``after`` run around each report, and may abort it."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.engine = Engine(parse_catalog(CATALOG), Store(None), now=now)
        self.before: Callable[[grpc.ServicerContext], None] = no_fault
        self.after: Callable[[grpc.ServicerContext], None] = no_fault
        self.asked: list[tuple[str, str | None]] = []
        self.without: set[str] = set()
        self.unreadable: set[str] = set()  # features whose usage cannot be read
        self.unanswered: set[str] = set()  # customers about whom no question is answered
        self.reported: set[str] = set()  # the features or events of the last report, and the latest time in it
        self.reported_at = 0.0
        self.honours_keys = True  # the local sidecar does; Stigg's own does not
        self._server = grpc.server(ThreadPoolExecutor(4))
        handlers = {name: self._handler(name) for name in METHODS}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))
        self._port = self._server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{self._port}"
        self._server.start()

    def client(self, **settings: Any) -> Stigg:
        return Stigg(remote_sidecar_host="127.0.0.1", remote_sidecar_port=self._port, **settings)

    def used(self, feature: str = "f") -> float:
        request = GetMeteredEntitlementRequest(customer_id="c", feature_id=feature)
        answer: Any = self.engine.answer("GetMeteredEntitlement", request)
        return float(answer.entitlement.current_usage)

    def abort_for(self, name: str, code: grpc.StatusCode) -> Callable[[grpc.ServicerContext], None]:
        """A fault of this feature or event alone: each report with it ends with this status."""
        return lambda context: context.abort(code, "on purpose") if name in self.reported else None

    def stop(self) -> None:
        self._server.stop(0).wait()

    def _handler(self, name: str) -> Any:
        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            if name in self.without:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "not here")
            if self.honours_keys and name in TELLS_OF_KEYS:
                context.set_trailing_metadata((KEYS_HONOURED,))
            if not name.startswith("Report"):
                if getattr(request, "customer_id", "") in self.unanswered:
                    context.abort(grpc.StatusCode.UNAVAILABLE, "on purpose")
                if getattr(request, "feature_id", "") in self.unreadable:
                    context.abort(grpc.StatusCode.NOT_FOUND, "on purpose")
                return self.engine.answer(name, request)
            usages = [request] if name == "ReportUsage" else getattr(request, "usages", [])
            self.reported = {usage.feature_id for usage in usages}
            self.reported |= {event.event_name for event in getattr(request, "events", [])}
            self.reported_at = max((usage.timestamp.seconds for usage in usages), default=0)
            key = dict(context.invocation_metadata()).get("idempotency-key")
            self.asked.append((name, key))
            self.before(context)
            try:
                answer = self.engine.answer(name, request, idempotency_key=key if self.honours_keys else None)
            except InvalidRequest as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            self.after(context)
            return answer

        method = METHODS[name]
        return grpc.unary_unary_rpc_method_handler(handle, method.request.FromString, method.response.SerializeToString)


def abort(code: grpc.StatusCode) -> Callable[[grpc.ServicerContext], None]:
    """A fault: the call ends with this status."""
    return lambda context: context.abort(code, "on purpose")


def no_fault(_context: grpc.ServicerContext) -> None:
    """Lets the report through."""

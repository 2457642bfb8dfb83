"""A sidecar's handlers that count reports, and calls of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from rpc_server import Handler
from stigg_guard import (
    GetMeteredEntitlementRequest,
    GetMeteredEntitlementResponse,
    ReportUsageRequest,
    ReportUsageResponse,
    SidecarError,
)
from stigg_guard.channel import Channel

CHECK = GetMeteredEntitlementRequest(customer_id="c", feature_id="f")
REPORT = ReportUsageRequest(customer_id="c", feature_id="f", value=1)


class Books:
    """A sidecar's handlers that count reports. ``before`` and ``after`` counting something may happen."""

    def __init__(self) -> None:
        self.counted = 0
        self.peers: list[str] = []
        self.before: Callable[[grpc.ServicerContext], object] = lambda _context: None
        self.after: Callable[[grpc.ServicerContext], object] = lambda _context: None

    def report(self, _request: Any, context: grpc.ServicerContext) -> ReportUsageResponse:
        self.before(context)
        self.counted += 1
        self.peers.append(context.peer())
        self.after(context)
        return ReportUsageResponse(current_usage=self.counted)

    def check(self, _request: Any, context: grpc.ServicerContext) -> GetMeteredEntitlementResponse:
        self.peers.append(context.peer())
        return GetMeteredEntitlementResponse(has_access=True)

    @property
    def handlers(self) -> dict[str, Handler]:
        return {"ReportUsage": self.report, "GetMeteredEntitlement": self.check}


def check(channel: Channel, timeout: float = 5) -> Any:
    return channel.answer("GetMeteredEntitlement", CHECK, timeout=timeout)


def report(channel: Channel, timeout: float = 5) -> Any:
    return channel.answer("ReportUsage", REPORT, timeout=timeout)


def aborting(code: grpc.StatusCode, details: str = "customer_id: on purpose") -> Handler:
    return lambda _request, context: context.abort(code, details)


def is_unknown(channel: Channel, timeout: float = 5) -> bool:
    """Whether a report that fails on the channel may have been counted."""
    with pytest.raises(SidecarError) as failed:
        report(channel, timeout)
    return failed.value.outcome_unknown

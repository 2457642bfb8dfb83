"""Local sidecars as processes of their own, and plain calls to them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from stigg_guard.wire import METHODS
from stigg_guard.wire.sidecar_pb2 import ReportUsageRequest

FREE_PORTS = ("--port", "0", "--http-port", "0")
READY = re.compile(r"ready grpc=(127\.0\.0\.1:\d+) http=(127\.0\.0\.1:\d+)\n")
ONE_TEMPLATE = ReportUsageRequest(customer_id="customer-demo-01", feature_id="feature-templates", value=1)


@dataclass(frozen=True)
class Running:
    process: subprocess.Popen[str]
    address: str
    http_address: str

    def end(self) -> int:
        """Wait for the end, and return the exit status."""
        return self.process.wait(30)


Start = Callable[..., Running]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start sidecars on free ports; kill those that still run at the end of the test."""
    with ExitStack() as processes:

        def start(
            *options: str,
            module: tuple[str, ...] = ("stigg_guard.sidecar",),
            stderr: int | None = None,
            **environment: str,
        ) -> Running:
            process = subprocess.Popen(
                [sys.executable, "-m", *module, *FREE_PORTS, *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, **environment},
            )
            processes.enter_context(process)
            processes.callback(process.kill)
            ready = READY.fullmatch(process.stdout.readline() if process.stdout else "")
            assert ready
            return Running(process, ready[1], ready[2])

        yield start


def call(channel: grpc.Channel, method: str, request: Any, key: str | None = None) -> Any:
    path, _, response = METHODS[method]
    ask = channel.unary_unary(
        path, request_serializer=type(request).SerializeToString, response_deserializer=response.FromString
    )
    return ask(request, timeout=20, metadata=None if key is None else [("idempotency-key", key)])


def templates_used(address: str) -> float:
    request = METHODS["GetMeteredEntitlement"].request(customer_id="customer-demo-01", feature_id="feature-templates")
    with grpc.insecure_channel(address) as channel:
        return float(call(channel, "GetMeteredEntitlement", request).entitlement.current_usage)

"""A local sidecar at a fixed time, and a client that knows nothing but the contract."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from sidecar.contract import NOW, Client
from sidecar.processes import start
from stigg_guard.fallbacks import Fallback
from stigg_guard.sidecar.catalog import demo_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.store import Store

__all__ = ["start"]


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(
        demo_catalog(), Store(None), now=lambda: NOW, fallbacks={"feature-planned": Fallback(True, usage_limit=9)}
    )
    yield engine
    engine.close()


@pytest.fixture
def sidecar(engine: Engine) -> Iterator[Sidecar]:
    with Sidecar(engine) as sidecar:
        yield sidecar


@pytest.fixture
def channel(sidecar: Sidecar) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(sidecar.address) as channel:
        yield channel


@pytest.fixture
def client(channel: grpc.Channel) -> Client:
    return Client(channel)

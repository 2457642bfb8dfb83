"""A server that speaks Stigg's GraphQL API, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from api_server import KEY, ApiServer
from stigg_guard.api import Api


@pytest.fixture
def server() -> Iterator[ApiServer]:
    running = ApiServer()
    yield running
    running.stop()


@pytest.fixture
def api(server: ApiServer) -> Iterator[Api]:
    with Api(KEY, server.url) as client:
        yield client

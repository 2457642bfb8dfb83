"""A channel to a server that counts reports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from channel.books import Books
from rpc_server import TcpProxy, serving
from stigg_guard.channel import Channel


@pytest.fixture
def books() -> Books:
    return Books()


@pytest.fixture
def port(books: Books) -> Iterator[int]:
    with serving(books.handlers) as port:
        yield port


@pytest.fixture
def channel(port: int) -> Iterator[Channel]:
    with closing(Channel("127.0.0.1", port)) as channel:
        yield channel


@pytest.fixture
def proxy(port: int) -> Iterator[TcpProxy]:
    with TcpProxy(port) as proxy:
        yield proxy


@pytest.fixture
def proxied(proxy: TcpProxy) -> Iterator[Channel]:
    """A channel that goes through the proxy."""
    with closing(Channel("127.0.0.1", proxy.port)) as channel:
        yield channel

"""A channel to a server that counts reports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from channel.books import Books
from rpc_server import serving
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

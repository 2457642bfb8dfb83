"""Where an event loop runs: which threads Django lets work that blocks run in, and their database connections."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TypeVar

from asgiref.sync import sync_to_async
from django.db import connections

from stigg_guard.usage.asynchronous import AsyncCalls, in_event_loop

T = TypeVar("T")


def may_block() -> bool:
    """Whether Django lets this thread wait for a database: no event loop runs in it, or the project allows it."""
    return not in_event_loop() or bool(os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"))


def beside_loop(work: Callable[[], T]) -> T:
    """Returns what blocking work returns that cannot be awaited. The event loop stands still meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(copy_context().run, partial(_with_own_connections, work)).result()


def _with_own_connections(work: Callable[[], T]) -> T:
    try:
        return work()
    finally:
        connections.close_all()


ASYNC_CALLS = AsyncCalls(in_thread=lambda work: sync_to_async(work)(), apart=_with_own_connections)
"""How guarded ``async def`` views are called. The thread that Django keeps for a request has its connections."""

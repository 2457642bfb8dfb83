"""Where an event loop runs: what blocks runs in a thread, and what was begun there is ended once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django.db import connections

from stigg_guard.consumption import SettlingStream
from stigg_guard.decorators import Ending, HoldOpen

T = TypeVar("T")
Settle = Callable[[Any, HoldOpen], tuple[Any, bool]]


def in_event_loop() -> bool:
    """Whether one runs in this thread, where nothing is to block."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def may_block() -> bool:
    """Whether Django lets this thread wait for a database: no event loop runs in it, or the project allows it."""
    return not in_event_loop() or bool(os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"))


def beside_loop(work: Callable[[], T]) -> T:
    """What blocking work comes to that cannot be awaited. The event loop stands still meanwhile."""

    def with_own_connections() -> T:
        try:
            return work()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(copy_context().run, with_own_connections).result()


async def begun(begin: Callable[[], Ending | None]) -> Ending | None:
    """What ``begin`` has begun, in a thread. A coroutine that is cancelled meanwhile leaves nothing begun behind."""
    ending, cancelled = await _done(begin)
    if cancelled:
        if ending is not None:
            await _done(partial(ending, False, None))
        raise asyncio.CancelledError
    return ending


async def settled_call(call: Callable[[], Awaitable[Any]], settle: Settle, ending: Ending) -> Any:
    """As :func:`stigg_guard.decorators.settled_call`, for a call that is awaited; ``ending`` is called in a thread."""
    streams: list[SettlingStream[Any]] = []

    def hold_open(stream: Iterable[Any]) -> SettlingStream[Any]:
        streams.append(SettlingStream(stream, lambda succeeded: ending(succeeded, result)))
        return streams[0]

    result = None
    try:
        result = await call()
        result, succeeded = settle(result, hold_open)
    except BaseException:
        await in_thread(partial(ending, False, result))
        raise
    if not streams:
        await in_thread(partial(ending, succeeded, result))
    return result


async def in_thread(work: Callable[[], T]) -> T:
    """What blocking work comes to, which is done in a thread even if the coroutine is cancelled meanwhile."""
    result, cancelled = await _done(work)
    if cancelled:
        raise asyncio.CancelledError
    return result


class AsyncSettlingStream(AsyncIterator[bytes]):
    """An asynchronous stream that ends ``settlement``, an empty stream held open, as it ends itself."""

    def __init__(self, parts: AsyncIterable[bytes], settlement: SettlingStream[Any]) -> None:
        self._parts = aiter(parts)
        self._settlement = settlement

    async def __anext__(self) -> bytes:
        try:
            await asyncio.sleep(0)  # parts that wait for nothing would keep the server from noticing who has left
            return await anext(self._parts)
        except StopAsyncIteration:
            await in_thread(partial(next, self._settlement, None))
            raise
        except BaseException:
            await in_thread(self._settlement.close)
            raise

    def close(self) -> None:
        """Cuts the stream off, unless it has ended."""
        self._settlement.close()


async def _done(work: Callable[[], T]) -> tuple[T, bool]:
    """What the work came to, and whether the coroutine was to be cancelled meanwhile: a thread cannot be stopped."""
    task = asyncio.ensure_future(sync_to_async(work)())
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    return task.result(), cancelled

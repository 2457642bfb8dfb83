"""Where an event loop runs: what blocks runs in a thread, and what was begun there is ended once.

A coroutine that is cancelled while it waits for a thread ends at once, by the exception that it is cancelled by. What
the thread does goes on, and the event loop waits for it before it closes.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any, Protocol, TypeVar

from asgiref.sync import sync_to_async
from django.db import connections

from stigg_guard.consumption import SettlingStream, end_dropped
from stigg_guard.decorators import Ending, HoldOpen
from stigg_guard.log import logger

T = TypeVar("T")
Settle = Callable[[Any, HoldOpen], tuple[Any, bool]]

_tasks: set[asyncio.Task[Any]] = set()  # the event loop itself has but weak references to them


class View(Protocol):
    """What the guards above each other know of the view below them."""

    def note_success(self, response: Any) -> None:
        """The view has ended with this response, which is a success."""

    def success(self) -> Any:
        """The response that it has ended with; None if it has not, or without success."""


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
    step = _step(begin)
    try:
        return await _outcome(step)
    except (asyncio.CancelledError, GeneratorExit):
        step.add_done_callback(_give_back)
        _wait_for(step)
        raise


async def settled_call(call: Callable[[], Awaitable[Any]], settle: Settle, ending: Ending, view: View) -> Any:
    """As :func:`stigg_guard.decorators.settled_call`, for a call that is awaited; ``ending`` is called in a thread.

    Success is that of the view: if a guard below has told of one, a cancellation that came after it is none here.
    """
    streams: list[SettlingStream[Any]] = []

    def hold_open(stream: Iterable[Any]) -> SettlingStream[Any]:
        streams.append(SettlingStream(stream, lambda succeeded: ending(succeeded, result)))
        return streams[0]

    result = None
    try:
        result = await call()
        result, succeeded = settle(result, hold_open)
    except (asyncio.CancelledError, GeneratorExit):
        done = view.success()
        _go_on(partial(ending, done is not None, done))
        raise
    except BaseException:
        await settled(partial(ending, False, result))
        raise
    if not streams:
        if succeeded:
            view.note_success(result)
        await settled(partial(ending, succeeded, result))
    return result


async def settled(end: Callable[[], None]) -> None:
    """Ends something in a thread, whatever becomes of the coroutine."""
    step = _step(end)
    try:
        await _outcome(step)
    except (asyncio.CancelledError, GeneratorExit):
        step.add_done_callback(partial(_end_again, end))
        _wait_for(step)
        raise


class AsyncSettlingStream(AsyncIterator[bytes]):
    """An asynchronous stream that ends ``settlement``, an empty stream held open, as it ends itself."""

    def __init__(self, parts: AsyncIterable[bytes], settlement: SettlingStream[Any], response: Any, view: View) -> None:
        self._parts = aiter(parts)
        self._settlement = settlement
        self._response = response
        self._view = view

    async def __anext__(self) -> bytes:
        try:
            await asyncio.sleep(0)  # parts that wait for nothing would keep the server from noticing who has left
            return await anext(self._parts)
        except StopAsyncIteration:
            self._view.note_success(self._response)
            if (end := self._settlement.take_end()) is not None:
                await settled(partial(end, True))
            raise
        except (asyncio.CancelledError, GeneratorExit):
            if (end := self._settlement.take_end()) is not None:
                _go_on(partial(end, self._view.success() is not None))
            raise
        except BaseException:
            if (end := self._settlement.take_end()) is not None:
                await settled(partial(end, False))
            raise

    def close(self) -> None:
        """Cuts the stream off, unless it has ended."""
        self._settlement.close()


def _step(work: Callable[[], T]) -> Future[T]:
    """Work that a thread does, the one that Django keeps for the request. It is cancelled where the event loop closes
    before the thread comes to it, and in no other case."""
    step: Future[T] = Future()

    def run() -> None:
        if step.set_running_or_notify_cancel():
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - it is raised where the step is waited for
                step.set_exception(error)
            else:
                step.set_result(result)

    _keep(sync_to_async(run)()).add_done_callback(lambda _: step.cancel())
    return step


async def _outcome(step: Future[T]) -> T:
    """What the step comes to, which goes on when whoever waits for it is cancelled."""
    await asyncio.wait([_signal(step)])
    return step.result()


def _signal(step: Future[Any]) -> asyncio.Future[None]:
    """Set when the step is done. It carries no exception, which an event loop would tell of if nobody asked for it."""
    loop = asyncio.get_running_loop()
    signal: asyncio.Future[None] = loop.create_future()

    def tell(_: Future[Any]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(signal.set_result, None)

    step.add_done_callback(tell)
    return signal


def _go_on(end: Callable[[], None]) -> None:
    """Ends something, in a thread of its own, for a coroutine that does not wait for it."""
    ended: Future[None] = Future()

    def run() -> None:
        try:
            end_dropped(end)
            connections.close_all()
        finally:
            ended.set_result(None)

    threading.Thread(target=copy_context().run, args=(run,), name="stigg-guard-settles").start()
    _wait_for(ended)


def _wait_for(step: Future[Any]) -> None:
    """Keeps an event loop that closes from doing so before the step is done."""

    async def patiently() -> None:
        while not signal.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([signal])

    if in_event_loop():
        signal = _signal(step)
        _keep(patiently())


def _keep(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    task = asyncio.ensure_future(coroutine)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return task


def _give_back(step: Future[Ending | None]) -> None:
    """Ends what was begun for a coroutine that is gone; in the thread that began it, or in one of its own."""
    ending = None if step.cancelled() or step.exception() is not None else step.result()
    if ending is None:
        return
    if in_event_loop():
        _go_on(partial(ending, False, None))
    else:
        end_dropped(partial(ending, False, None))


def _end_again(end: Callable[[], None], step: Future[Any]) -> None:
    """Does a step that the event loop dropped as it closed, and tells of one that failed and that nobody waits for."""
    if step.cancelled():
        _go_on(end)
    elif (error := step.exception()) is not None:
        logger.error("dropped work cannot be ended, and its hold is left to expire", exc_info=error)

"""The engine for ``async def`` views: what blocks runs in a thread, and what was begun there is ended once.

A coroutine that is cancelled while it waits for a thread ends at once, by the exception that it is cancelled by. What
the thread does goes on, and the event loop waits for it before it closes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from stigg_guard.calls import Ending, HoldOpen
from stigg_guard.runtime.log import logger
from stigg_guard.usage.streams import SettlingStream, end_dropped

T = TypeVar("T")
Settle: TypeAlias = Callable[[Any, HoldOpen], tuple[Any, bool]]
Work: TypeAlias = Callable[[], None]

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


@dataclass(frozen=True, slots=True)
class AsyncCalls:
    """Begins, before calls that are awaited, what blocks, and ends it after them.

    ``in_thread`` does work in the thread that the framework keeps for the request, and is awaited. ``apart`` does it
    in the thread that calls it, which is of no request, and closes what the work opened there.
    """

    in_thread: Callable[[Work], Awaitable[None]]
    apart: Callable[[Work], None]

    async def begun(self, begin: Callable[[], Ending | None]) -> Ending | None:
        """What ``begin`` has begun, in a thread. If the coroutine is cancelled meanwhile, nothing stays begun."""
        step = _Step(self, begin, dropped=True)
        try:
            return await step.outcome()
        except (asyncio.CancelledError, GeneratorExit):
            step.leave(self._give_back)
            raise

    async def settled_call(self, call: Callable[[], Awaitable[Any]], settle: Settle, ending: Ending, view: View) -> Any:
        """As :func:`stigg_guard.calls.settled_call`, for a call that is awaited; ``ending`` is called in a thread.

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
            self.elsewhere(partial(ending, done is not None, done))
            raise
        except BaseException:
            await self.settled(partial(ending, False, result))
            raise
        if not streams:
            if succeeded:
                view.note_success(result)
            await self.settled(partial(ending, succeeded, result))
        return result

    async def settled(self, end: Work) -> None:
        """Ends something in a thread, also when the coroutine is cancelled."""
        step = _Step(self, end)
        try:
            await step.outcome()
        except (asyncio.CancelledError, GeneratorExit):
            step.leave(_tell)
            raise

    def elsewhere(self, end: Work) -> None:
        """Ends something in a thread that nobody waits for but an event loop that closes."""
        if in_event_loop():
            run = partial(self.apart, partial(end_dropped, end))
            asyncio.get_running_loop().run_in_executor(None, copy_context().run, run)
        else:
            end_dropped(end)

    def _give_back(self, begun: Future[Ending | None]) -> None:
        """Ends what was begun for a coroutine that is gone."""
        ending = None if begun.cancelled() or begun.exception() is not None else begun.result()
        if ending is not None:
            self.elsewhere(partial(ending, False, None))


class AsyncSettlingStream(AsyncIterator[bytes]):
    """An asynchronous stream that ends ``settlement``, an empty stream held open, as it ends itself."""

    def __init__(
        self,
        calls: AsyncCalls,
        parts: AsyncIterable[bytes],
        settlement: SettlingStream[Any],
        response: Any,
        view: View,
    ) -> None:
        self._calls = calls
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
                await self._calls.settled(partial(end, True))
            raise
        except (asyncio.CancelledError, GeneratorExit):
            if (end := self._settlement.take_end()) is not None:
                self._calls.elsewhere(partial(end, self._view.success() is not None))
            raise
        except BaseException:
            if (end := self._settlement.take_end()) is not None:
                await self._calls.settled(partial(end, False))
            raise

    def close(self) -> None:
        """Cuts the stream off, unless it has ended."""
        self._settlement.close()


class _Step(Generic[T]):
    """Work in the thread that the framework keeps for the request. It goes on when whoever waits for it is cancelled.

    An event loop that closes waits for it; what the thread has not come to by then is done by another one, or is
    ``dropped`` if nothing is begun without it.
    """

    def __init__(self, calls: AsyncCalls, work: Callable[[], T], *, dropped: bool = False) -> None:
        self._calls = calls
        self._work = work
        self._is_dropped = dropped
        self._first = threading.Lock()  # of those that come to the work
        self._outcome: Future[T] = Future()
        self._signals: list[asyncio.Future[None]] = []
        task = asyncio.ensure_future(self._carry_out())
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)

    async def outcome(self) -> T:
        """Returns what the work returns."""
        await asyncio.wait([self._signal()])
        return self._outcome.result()

    def leave(self, then: Callable[[Future[T]], None]) -> None:
        """Stops waiting: ``then`` is called with the outcome, in the thread that did the work or in this one."""
        self._outcome.add_done_callback(then)
        with suppress(RuntimeError):  # no event loop runs any more
            self._signal()

    async def _carry_out(self) -> None:
        self._signal()
        try:
            await self._calls.in_thread(self._do)
        except asyncio.CancelledError:  # by an event loop that closes
            if not self._outcome.done():
                self._hand_on()
            while waiting := [signal for signal in self._signals if not signal.done()]:
                with suppress(asyncio.CancelledError):
                    await asyncio.wait(waiting)
            raise

    def _hand_on(self) -> None:
        if not self._is_dropped:
            self._calls.elsewhere(self._do)
        elif self._first.acquire(blocking=False):
            self._outcome.cancel()

    def _do(self) -> None:
        if not self._first.acquire(blocking=False):
            return
        try:
            result = self._work()
        except BaseException as error:  # noqa: BLE001 - it is raised where the outcome is waited for
            self._outcome.set_exception(error)
        else:
            self._outcome.set_result(result)

    def _signal(self) -> asyncio.Future[None]:
        """Set when the work is done. It carries no exception, which an event loop would tell of if nobody asked."""
        loop = asyncio.get_running_loop()
        signal: asyncio.Future[None] = loop.create_future()

        def tell(_: Future[T]) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(signal.set_result, None)

        self._outcome.add_done_callback(tell)
        self._signals.append(signal)
        return signal


def _tell(ended: Future[None]) -> None:
    """Logs a failure that no caller waits for."""
    error = ended.exception()
    if error is not None:
        logger.error("dropped work cannot be ended, and its hold is left to expire", exc_info=error)

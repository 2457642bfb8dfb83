"""The engine for async views without a framework: over the threads that asyncio itself has."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from stigg_guard import Guard
from stigg_guard.calls import Ending, HoldOpen
from stigg_guard.decorators import ending_of
from stigg_guard.usage.asynchronous import AsyncCalls, AsyncSettlingStream
from usage.outage import WatchedEngine

WAIT = 30


class View:
    """A guarded view: where its guard worked, and what it has answered."""

    def __init__(self, guard: Guard) -> None:
        self.worked_in: list[str] = []
        self.answered: Any = None
        self.waits, self.goes_on = threading.Event(), threading.Event()
        self._guard = guard
        self.calls = AsyncCalls(in_thread=self._in_thread, apart=self._apart)

    def note_success(self, response: Any) -> None:
        self.answered = response

    def success(self) -> Any:
        return self.answered

    async def ask(self, view: Callable[[], Awaitable[Any]]) -> Any:
        """Calls the view, for which 2 seats are held."""
        ending = await self.calls.begun(self.begin)
        assert ending is not None
        return await self.calls.settled_call(view, self._settle, ending, self)

    def begin(self) -> Ending:
        return ending_of(self._guard.consume("seats", 2, customer="c").begin(), None)

    def begin_slowly(self) -> Ending:
        self.waits.set()
        assert self.goes_on.wait(WAIT)
        return self.begin()

    def _settle(self, response: Any, hold_open: HoldOpen) -> tuple[Any, bool]:
        is_stream = isinstance(response, AsyncIterator)
        return AsyncSettlingStream(self.calls, response, hold_open(()), "stream", self) if is_stream else response, True

    async def _in_thread(self, work: Callable[[], None]) -> None:
        self.worked_in.append("the request's thread")
        await asyncio.to_thread(work)

    def _apart(self, work: Callable[[], None]) -> None:
        work()
        self.worked_in.append("another thread")


@pytest.fixture
def view(guard: Guard) -> View:
    return View(guard)


@pytest.fixture
def stands(guard: Guard, engine: WatchedEngine) -> Callable[[], tuple[float, float]]:
    """How many seats are used, and how many holds there are."""

    def stands() -> tuple[float, float]:
        assert guard.flush() == 0
        return engine.used("seats"), guard.stats()["held"]

    return stands


Stands = Callable[[], tuple[float, float]]


async def answer() -> str:
    return "done"


async def fail() -> str:
    raise OSError("out of paper")


async def parts(*, fails: bool = False) -> AsyncIterator[bytes]:
    yield b"one"
    if fails:
        raise OSError("out of paper")


def test_view_that_succeeds_counts(view: View, stands: Stands) -> None:
    assert asyncio.run(view.ask(answer)) == "done"
    assert stands() == (2, 0)
    assert view.worked_in == ["the request's thread"] * 2


def test_view_that_fails_gives_back(view: View, stands: Stands) -> None:
    with pytest.raises(OSError, match="out of paper"):
        asyncio.run(view.ask(fail))
    assert stands() == (0, 0)
    assert view.worked_in == ["the request's thread"] * 2


@pytest.mark.parametrize(("answered", "used"), [(None, 0), ("done", 2)])
def test_view_that_is_cancelled_counts_if_a_guard_below_has_told_of_success(
    view: View, stands: Stands, answered: str | None, used: int
) -> None:
    async def cancelled() -> str:
        view.answered = answered
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(view.ask(cancelled))
    assert stands() == (used, 0)
    assert view.worked_in == ["the request's thread", "another thread"]


def test_hold_that_is_taken_for_a_view_that_is_gone_is_given_back(view: View, stands: Stands) -> None:
    async def leave() -> None:
        begun = asyncio.ensure_future(view.calls.begun(view.begin_slowly))
        assert await asyncio.to_thread(view.waits.wait, WAIT)
        begun.cancel()
        with pytest.raises(asyncio.CancelledError):
            await begun
        view.goes_on.set()

    asyncio.run(leave())
    assert stands() == (0, 0)


@pytest.mark.parametrize(("fails", "used"), [(False, 2), (True, 0)])
def test_stream_counts_when_it_was_read_to_its_end(view: View, stands: Stands, fails: bool, used: int) -> None:
    async def stream() -> AsyncIterator[bytes]:
        return parts(fails=fails)

    async def read() -> list[bytes]:
        return [part async for part in await view.ask(stream)]

    if fails:
        with pytest.raises(OSError, match="out of paper"):
            asyncio.run(read())
    else:
        assert asyncio.run(read()) == [b"one"]
    assert stands() == (used, 0)
    assert view.answered == (None if fails else "stream")


def test_stream_that_is_closed_gives_back(view: View, stands: Stands) -> None:
    async def stream() -> AsyncIterator[bytes]:
        return parts()

    async def close() -> None:
        (await view.ask(stream)).close()

    asyncio.run(close())
    assert stands() == (0, 0)


def test_work_left_when_no_event_loop_runs_is_ended_in_place(view: View) -> None:
    ended: list[str] = []
    view.calls.elsewhere(lambda: ended.append("ended"))
    assert (ended, view.worked_in) == (["ended"], [])

"""Work that is a stream: what it used is settled when the stream ends, and given back when it is cut off or dropped."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

from stigg_guard.runtime.log import logger

Item = TypeVar("Item")
R = TypeVar("R")


def end_dropped(end: Callable[[], None]) -> None:
    """Ends, from a finalizer, what was dropped. That may run anywhere: what ``end`` raises is logged, and in a thread
    with an event loop it is called in another one."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        _end_logged(end)
    else:
        loop.call_soon(loop.run_in_executor, None, _end_logged, end)  # soon: the locks of the executor may be taken now


def _end_logged(end: Callable[[], None]) -> None:
    try:
        end()
    except Exception:  # whatever it is, no caller gets it
        logger.exception("dropped work cannot be ended, and its hold is left to expire")


class SettlingStream(Iterator[Item]):
    """A stream that tells ``end`` how it ended, once: by itself, which is a success, or else cut off. It ends in the
    process that made it; its copy in a forked child does nothing."""

    def __init__(self, items: Iterable[Item], end: Callable[[bool], None]) -> None:
        self._unended: Callable[[bool], None] | None = end
        self._is_ending = False
        self._pid = os.getpid()
        self._source = items
        self._items = iter(items)

    def __next__(self) -> Item:
        if self._is_ending:
            raise RuntimeError("a stream that was sent cannot be read again: count while it is made")
        try:
            return next(self._items)
        except BaseException as error:
            self._end(succeeded=isinstance(error, StopIteration))
            raise

    def close(self) -> None:
        """Cuts the stream off, unless it has ended."""
        try:
            close = getattr(self._source, "close", None)
            if close is not None:
                close()
        finally:
            self._end(succeeded=False)

    def take_end(self) -> Callable[[bool], None] | None:
        """What is still to be told how the stream ended, which is for the caller to do; None if nothing is."""
        end, self._unended = self._unended, None
        return end if self._pid == os.getpid() else None

    def __del__(self) -> None:
        end = self.take_end()
        if end is not None:
            end_dropped(partial(end, False))

    def _end(self, *, succeeded: bool) -> None:
        end = self.take_end()
        if end is None:
            return
        self._is_ending = True
        try:
            end(succeeded)
        finally:
            self._is_ending = False


def settling_generator(source: Generator[Any, Any, R], settlement: SettlingStream[Any]) -> Generator[Any, Any, R]:
    """The generator, at whose end the settlement, an empty stream held open, ends in the same way."""
    try:
        returned = yield from source
    except BaseException:
        settlement.close()
        raise
    next(settlement, None)
    return returned

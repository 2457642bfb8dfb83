"""Threads that call gRPC for those who ask, so that no exception from outside strikes gRPC's own code."""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

from stigg_guard.clock import Clock
from stigg_guard.errors import ClientClosed
from stigg_guard.runtime.threads import start

logger = logging.getLogger("stigg_guard")

T = TypeVar("T")


class Callers:
    """Does the work that is handed to it, in threads of its own. They start with the first work.

    An exception from outside (Ctrl-C, a soft time limit, a watchdog) strikes between any two steps of Python code. In
    gRPC's it would leave a lock taken, on which the calls of all threads hang from then on. Here it strikes only who
    waits, and handing over is one step. One thread always waits for work, so that none queues behind a slow call.

    Around a fork new work waits and that under way ends first, both for ``PATIENCE`` seconds at most.
    """

    KEPT = 8
    """How many threads are kept waiting for work."""
    PATIENCE = 2.0
    TICK = 0.001

    def __init__(self, clock: Clock) -> None:
        self._monotonic = clock.monotonic
        self._handed: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._handing = threading.Lock()
        self._ended = False
        self._counting = threading.Lock()
        self._threads = self._waiting = self._working = 0
        self._forking_until = 0.0

    def run(self, work: Callable[[], T]) -> T:
        """What ``work`` returns or raises. The caller does it himself when no thread can be started, as at exit.

        Raises:
            ClientClosed: they have ended.
        """
        if sys.is_finalizing() or not (self._threads or self._start()):
            return work()
        outcomes: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._hand_over(partial(_finish, partial(copy_context().run, work), outcomes.put))
        answer, error = outcomes.get()
        if error is None:
            return answer  # type: ignore[no-any-return] # a queue of outcomes of any type
        try:
            raise error
        finally:
            del error  # it holds this frame by its traceback

    def post(self, work: Callable[[], None]) -> None:
        """Has ``work`` done by and by. Raises ``ClientClosed`` when they have ended."""
        self._hand_over(partial(_finish, work, _log_fault))

    def end(self, last: Callable[[], None]) -> None:
        """Ends the threads once all is done that was handed over, and ``last``."""
        with self._handing:
            self._ended = True
            self._handed.put(partial(_finish, last, _log_fault))
            self._handed.put(None)

    def hold_back(self) -> None:
        """Before a fork: returns when nothing is under way, or patience is at its end."""
        with self._counting:
            self._forking_until = self._monotonic() + self.PATIENCE
        while self._working and self._monotonic() < self._forking_until:
            time.sleep(self.TICK)

    def let_go(self) -> None:
        """After the fork."""
        self._forking_until = 0.0

    def _hand_over(self, job: Callable[[], None]) -> None:
        with self._handing:
            if self._ended:
                raise ClientClosed("the client is closed; make a new one")
            self._handed.put(job)

    def _start(self) -> bool:
        try:
            start(threading.Thread(target=self._serve, name="stigg-calls", daemon=True))
        except RuntimeError:  # the interpreter is ending, or there are too many threads
            return False
        return True

    def _serve(self) -> None:
        with self._counting:
            self._threads += 1
            self._waiting += 1
        while (job := self._handed.get()) is not None:
            with self._counting:
                self._waiting -= 1
                alone = not self._waiting
            if alone:
                self._start()
            while not self._begun():
                time.sleep(self.TICK)
            job()
            del job  # and what it holds, while waiting for more
            if self._is_spare():
                return
        self._handed.put(None)

    def _begun(self) -> bool:
        with self._counting:
            free = self._monotonic() >= self._forking_until
            self._working += free
            return free

    def _is_spare(self) -> bool:
        with self._counting:
            self._working -= 1
            spare = self._waiting >= self.KEPT
            self._threads -= spare
            self._waiting += not spare
            return spare


def _finish(work: Callable[[], object], tell: Callable[[tuple[object, BaseException | None]], None]) -> None:
    try:
        answer = work()
    except BaseException as error:  # noqa: BLE001 - who is told raises or logs it
        tell((None, error))
    else:
        tell((answer, None))


def _log_fault(outcome: tuple[object, BaseException | None]) -> None:
    _, error = outcome
    if error is not None:
        logger.error("work beside the calls to the sidecar failed", exc_info=error)

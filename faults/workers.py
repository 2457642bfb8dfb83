"""The applications under test: processes with a guard each, on one ledger."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from typing import Any

from faults.sidecars import target
from stigg_guard import Config, FeatureDenied, Guard

PATIENCE = 60.0  # in seconds, for a worker that may be dead

# One clean process imports the code once and then only forks: a worker is there within milliseconds.
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["faults.workers", "stigg_guard"])

# What breaks here is broken on purpose, and the output is a table.
logging.getLogger("stigg_guard").addHandler(logging.NullHandler())


class WorkFailed(Exception):
    """What an application raises when its own work goes wrong."""


def make_guard(address: str, ledger: str, **settings: Any) -> Guard:
    """A guard as an application has it; ``settings`` are by their upper-case names."""
    return Guard(Config.from_mapping({**target(address), "LEDGER": ledger, **settings}))


def is_free(guard: Guard, feature: str, amount: float, customer: str) -> bool:
    """Whether so much can be held; it is given back."""
    try:
        with guard.consume(feature, amount, customer=customer):
            raise WorkFailed
    except WorkFailed:
        return True
    except FeatureDenied:
        return False


@contextmanager
def processes(count: int, work: Callable[..., None], *args: Any) -> Iterator[list[BaseProcess]]:
    """Runs ``work(*args, number)`` in this many processes, which are dead afterwards."""
    started: list[BaseProcess] = [CONTEXT.Process(target=work, args=(*args, number)) for number in range(count)]
    for process in started:
        process.start()
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.join()


def drain(address: str, ledger: str, patience: float = PATIENCE) -> Mapping[str, int]:
    """Reports all that is unsent, as the next process of an application would; what is in the ledger then.

    What a killed process was sending is sent when its lease ends.
    """
    with make_guard(address, ledger, SETTLE_GRACE=2) as guard:
        return drained(guard, patience)


def drained(guard: Guard, patience: float = PATIENCE) -> Mapping[str, int]:
    """As :func:`drain`, by a guard that is there."""
    deadline = time.monotonic() + patience
    while _is_open(guard) and time.monotonic() < deadline:
        guard.flush(1.0)
        time.sleep(0.2)
    return guard.ledger.counts()


def _is_open(guard: Guard) -> bool:
    counts = guard.ledger.counts()
    return any(counts[state] for state in ("unsent", "sending", "uncertain"))

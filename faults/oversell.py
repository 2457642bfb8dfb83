"""Many processes on one limit: what is sold, and what is refused."""

from __future__ import annotations

import os
import random
import signal
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from math import inf
from queue import Queue
from typing import Any, NamedTuple

from tests.redis_server import RedisServer

from faults.promise import Promise, Scale
from faults.sidecars import LocalSidecar
from faults.workers import CONTEXT, PATIENCE, WorkFailed, drain, make_guard, processes
from stigg_guard import FeatureDenied
from stigg_guard.errors import LedgerUnavailable, SidecarUnavailable

PROCESSES = 8
THREADS = 8
ATTEMPTS = 60
LIMIT = 6_000
BACK_OFF = 0.5
"""How long a thread waits after a try without an answer, so that tries are left for when the ledger is back."""
CUSTOMER = "customer"
FEATURE = "feature-units"


class Attempt(NamedTuple):
    """One try to use units, between two instants of the clock that all processes share."""

    began: float
    ended: float
    amount: int
    outcome: str


def oversell(scale: Scale) -> Iterator[Promise]:
    """8 processes x 8 threads use random amounts of one limit, and a third of the work fails."""
    yield from oversell_on(scale, "sqlite", f"sqlite:///{scale.folder / 'oversell.sqlite3'}")
    for home, meanwhile in (
        ("redis", _nothing),
        ("redis killed 3 times", _kill),
        ("redis stopped 3 times", _stop),
    ):
        folder = scale.folder / home
        folder.mkdir()
        with RedisServer(folder) as server:
            yield from oversell_on(scale, home, server.url, partial(meanwhile, server))


def _kill(server: RedisServer) -> None:
    for _ in range(3):
        time.sleep(0.5)
        server.restart()


def _stop(server: RedisServer) -> None:
    """It hangs for longer than anybody waits, and then does all that it was asked meanwhile."""
    process = server.client.info("server")["process_id"]
    for _ in range(3):
        time.sleep(0.5)
        os.kill(process, signal.SIGSTOP)
        time.sleep(1.0)
        os.kill(process, signal.SIGCONT)


def _nothing(_server: RedisServer) -> None:
    pass


def oversell_on(
    scale: Scale, home: str, ledger: str, meanwhile: Callable[[], None] = lambda: None, *, api: bool = False
) -> Iterator[Promise]:
    """The promises on one ledger; with ``api`` on the GraphQL API instead of gRPC."""
    with LocalSidecar(scale.folder / f"oversell-{home}", {FEATURE: LIMIT}, [CUSTOMER], api=api) as sidecar:
        began = time.monotonic()
        attempts = all_attempts(sidecar.address, ledger, meanwhile)
        seconds = time.monotonic() - began
        sold = sum(attempt.amount for attempt in attempts if attempt.outcome == "used")
        wrong = wrongly_refused(attempts, LIMIT)
        outcomes = Counter(attempt.outcome for attempt in attempts)
        drain(sidecar.address, ledger)
        counted = sidecar.usage([CUSTOMER])[CUSTOMER, FEATURE]
    who = f"{home}: {PROCESSES} processes x {THREADS} threads"
    rate = f"{len(attempts)} attempts in {seconds:.1f} s"
    yield Promise(f"{who} never sell more than the limit", f"{sold} of {LIMIT} sold, {rate}", sold <= LIMIT)
    yield Promise(
        f"{who} refuse only what is not free",
        f"{wrong} of {outcomes['refused']} refusals wrong, {outcomes['unknown']} tries got no answer",
        not wrong and outcomes["refused"] > 0,
    )
    yield Promise(f"{who}: the sidecar counts what was sold", f"{counted:g} counted, {sold} sold", counted == sold)


def wrongly_refused(attempts: Sequence[Attempt], limit: int) -> int:
    """How many refusals no order of events explains.

    Units may be taken from the beginning of an attempt until the end of a failed one, or for good after a success. A
    refusal is wrong if they would have fitted at every instant of it, even with all that may have been taken then.
    """
    changes: list[tuple[float, int]] = []
    for attempt in attempts:
        if attempt.outcome != "refused":
            changes += [(attempt.began, attempt.amount), (attempt.ended, -attempt.amount)]
    changes.sort(key=lambda change: (change[0], -change[1]))
    instants = [instant for instant, _ in changes]
    taken = [0, *accumulate(amount for _, amount in changes)]
    wrong = 0
    for attempt in attempts:
        if attempt.outcome == "refused":
            during = taken[bisect_left(instants, attempt.began) : bisect_right(instants, attempt.ended) + 1]
            wrong += max(during) + attempt.amount <= limit
    return wrong


def all_attempts(address: str, ledger: str, meanwhile: Callable[[], None]) -> list[Attempt]:
    """What all processes tried, while something happens."""
    results: Any = CONTEXT.Queue()
    together = CONTEXT.Barrier(PROCESSES, timeout=PATIENCE)
    with processes(PROCESSES, _work, address, ledger, together, results):
        meanwhile()
        return [Attempt(*attempt) for _ in range(PROCESSES) for attempt in results.get(timeout=PATIENCE)]


def _work(address: str, ledger: str, together: Any, results: Any, _number: int) -> None:
    made: Queue[Attempt] = Queue()
    with make_guard(address, ledger) as guard:

        def attempt(_: int) -> None:
            amount = random.randint(1, 9)
            began = time.monotonic()
            try:
                with guard.consume(FEATURE, amount, customer=CUSTOMER):
                    time.sleep(random.random() * 0.004)
                    if random.random() < 0.33:
                        raise WorkFailed
                made.put(Attempt(began, inf, amount, "used"))
            except WorkFailed:
                made.put(Attempt(began, time.monotonic(), amount, "failed"))
            except FeatureDenied:
                made.put(Attempt(began, time.monotonic(), amount, "refused"))
            except LedgerUnavailable:  # nobody told whether the units were taken
                made.put(Attempt(began, inf, amount, "unknown"))
                time.sleep(BACK_OFF)
            except SidecarUnavailable:  # on a busy machine; nothing was taken
                made.put(Attempt(began, time.monotonic(), amount, "failed"))

        with ThreadPoolExecutor(THREADS) as threads:
            together.wait()
            list(threads.map(attempt, range(THREADS * ATTEMPTS)))
    results.put([tuple(made.get()) for _ in range(made.qsize())])

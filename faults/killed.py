"""kill -9 of applications at random moments, while the sidecar is killed and restarted too: what arrives.

Each thread of each round uses units of two features at once: its own, which nobody else uses, and a common one. It
writes a line before it commits and one after. A line that was written outlives the process, so the sidecar must have
counted of the thread's own feature what the second lines say; if the last line is a first one, the thread was killed
between the two, and that one use may have counted too. The common feature must be the sum of all own ones to the unit:
it shows that a hold is committed whole, and nothing of it reported twice.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from threading import Event, Thread

from tests.redis_server import RedisServer

from faults.promise import Promise, Scale
from faults.sidecars import LocalSidecar
from faults.workers import WorkFailed, drain, is_free, make_guard, processes
from stigg_guard import SidecarError
from stigg_guard.clock import Clock
from stigg_guard.ledger import State, ledger_from_url

PROCESSES = 2
THREADS = 4
COMMON = "feature-common"
OWN = [f"feature-own-{number}" for number in range(PROCESSES * THREADS)]
LIMIT = 1_000_000
HOLD_TTL = 5
ENTRIES = 10_000  # more than there are


def killed(scale: Scale) -> Iterator[Promise]:
    """Rounds of kill -9 under load."""
    yield from killed_on(scale, "sqlite", f"sqlite:///{scale.folder / 'killed.sqlite3'}")
    folder = scale.folder / "killed-server"
    folder.mkdir()
    with RedisServer(folder) as server:
        yield from killed_on(scale, "redis", server.url)


def killed_on(scale: Scale, home: str, ledger: str, *, api: bool = False) -> Iterator[Promise]:
    """The promises on one ledger; with ``api`` on the GraphQL API instead of gRPC."""
    customers = [f"customer-{number}" for number in range(scale.rounds)]
    folder = scale.folder / f"killed-{home}"
    with LocalSidecar(
        scale.folder / f"killed-{home}", {COMMON: LIMIT, **dict.fromkeys(OWN, LIMIT)}, customers, api=api
    ) as sidecar:
        with _restarted_now_and_then(sidecar) as restarts:
            logs = [_round(folder, sidecar.address, ledger, customer) for customer in customers]
        caught = sum((caught for _, caught in logs), Counter[str]())
        left = drain(sidecar.address, ledger)
        usage = sidecar.usage(customers)
        freed = all(_limit_is_exact(sidecar.address, ledger, customer, usage) for customer in customers)
    lives = [
        (usage[customer, own], *_bounds(log, own))
        for customer, (log, _) in zip(customers, logs, strict=True)
        for own in OWN
    ]
    lost = sum(max(0, least - counted) for counted, least, _ in lives)
    twice = sum(max(0, counted - most) for counted, _, most in lives)
    partly = sum(counted not in (least, most) for counted, least, most in lives)
    torn = sum(usage[customer, COMMON] != sum(usage[customer, own] for own in OWN) for customer in customers)
    open_ends = sum(least != most for _, least, most in lives)
    successes = sum(least for _, least, _ in lives)
    what = f"{home}: {scale.rounds} rounds of kill -9"
    yield Promise(
        f"{what} lose nothing and count nothing twice",
        f"{successes} units, {lost:g} lost, {twice:g} twice, {partly} other; sidecar killed {len(restarts)} times",
        not (lost or twice or partly) and successes > 0,
    )
    yield Promise(
        f"{what} at all moments leave no hold half committed",
        f"{torn} torn; killed with {caught['held']} held, {open_ends} committing, {caught['sending']} sending",
        not torn,
    )
    open_states = {state: left[state] for state in ("unsent", "sending", "uncertain", "dead")}
    yield Promise(f"{what} leave nothing behind", f"{open_states}", not any(open_states.values()))
    yield Promise(f"{what}: holds of the dead expire", f"the rest of each limit is free: {freed}", freed)


@contextmanager
def _restarted_now_and_then(sidecar: LocalSidecar) -> Iterator[list[float]]:
    restarts: list[float] = []
    stop = Event()

    def restart() -> None:
        while not stop.wait(random.uniform(1.0, 3.0)):
            sidecar.kill()
            stop.wait(random.uniform(0.0, 0.5))
            sidecar.start()
            restarts.append(time.monotonic())

    thread = Thread(target=restart)
    with ExitStack() as at_end:
        thread.start()
        at_end.callback(thread.join)
        at_end.callback(stop.set)
        yield restarts


def _round(folder: Path, address: str, ledger: str, customer: str) -> tuple[Sequence[str], Counter[str]]:
    """The lines that the applications wrote, and what was in the ledger when they were dead."""
    log = folder / f"{customer}.log"
    log.touch()
    with processes(PROCESSES, _work, address, ledger, str(log), customer):
        deadline = time.monotonic() + 10
        while not log.stat().st_size and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(random.uniform(0.0, 0.4))
    with closing(ledger_from_url(ledger, Clock())) as left:
        entries = left.entries([State.HELD, State.SENDING], ENTRIES)
    caught = Counter(entry.state.value for entry in entries if entry.key.customer_id == customer)
    return log.read_text().splitlines(), caught


def _bounds(log: Sequence[str], own: str) -> tuple[int, int]:
    lines = [line.split() for line in log if line.startswith(f"{own} ")]
    least = sum(int(amount) for _, word, amount in lines if word == "used")
    undecided = bool(lines) and lines[-1][1] == "using"
    return least, least + int(lines[-1][2]) * undecided if lines else least


def _limit_is_exact(address: str, ledger: str, customer: str, usage: dict[tuple[str, str], float]) -> bool:
    """Whether exactly the rest of the limit can be held once the holds of the dead have expired."""
    rest = LIMIT - usage[customer, COMMON]
    with make_guard(address, ledger) as guard:
        return [is_free(guard, COMMON, amount, customer) for amount in (rest, rest + 1)] == [True, False]


def _work(address: str, ledger: str, log: str, customer: str, number: int) -> None:
    guard = make_guard(address, ledger, HOLD_TTL=HOLD_TTL)
    lines = os.open(log, os.O_WRONLY | os.O_APPEND)
    mine = OWN[number * THREADS : (number + 1) * THREADS]

    def use(own: str) -> None:
        while True:
            amount = random.randint(1, 9)
            try:
                with guard.consume({own: amount, COMMON: amount}, customer=customer):
                    time.sleep(random.random() * 0.003)
                    if random.random() < 0.2:
                        raise WorkFailed
                    os.write(lines, f"{own} using {amount}\n".encode())
                os.write(lines, f"{own} used {amount}\n".encode())
            except WorkFailed:
                continue
            except SidecarError:
                time.sleep(0.02)

    threads = [Thread(target=use, args=(own,)) for own in mine]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

"""Holds that travel: taken by processes that put their tokens in a queue, ended by others, and both are killed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from multiprocessing.process import BaseProcess

from redis import Redis
from tests.redis_server import RedisServer

from faults.promise import Promise, Scale
from faults.sidecars import LocalSidecar
from faults.workers import CONTEXT, PATIENCE, WorkFailed, drain, is_free, make_guard

TOKENS = 1_000
TAKERS, ENDERS = 3, 3
CUSTOMER, FEATURE = "customer", "feature"
LIMIT = 1_000_000
TTL = 30.0
QUEUE, TAKEN, ENDED = "queue", "taken", "ended"
SETTINGS = {"TOKEN_SECRET": "of the faults", "TIMEOUT": 5.0}
DIES = 0.02
"""How many of the steps of a process are its last."""


def travelling(scale: Scale) -> Iterator[Promise]:
    """1,000 holds on a file and on Redis; a queue hands them over, and delivers again what was not ended."""
    for home in ("sqlite", "redis"):
        folder = scale.folder / f"travelling-{home}"
        folder.mkdir()
        with RedisServer(folder) as server:
            ledger = server.url if home == "redis" else f"sqlite:///{folder / 'ledger.sqlite3'}"
            with LocalSidecar(folder / "sidecar", {FEATURE: LIMIT}, [CUSTOMER]) as sidecar:
                yield from _on(home, sidecar, ledger, server)


def _on(home: str, sidecar: LocalSidecar, ledger: str, server: RedisServer) -> Iterator[Promise]:
    kills = _hand_over(sidecar.address, ledger, server)
    tokens = [str(token) for token in server.client.smembers(TAKEN)]
    left = drain(sidecar.address, ledger)
    counted = sidecar.usage([CUSTOMER])[CUSTOMER, FEATURE]
    expected = sum(_amount(token) for token in tokens)
    yield Promise(
        f"{home}: {len(tokens)} holds through a queue, with kills on both sides, each ended once",
        f"{expected} units used, {counted:g} counted; {kills} processes killed, {left['late']} ended late",
        counted == expected and len(tokens) >= TOKENS and kills > 0,
    )
    orphans = left["held"]
    deadline = time.monotonic() + 2 * TTL
    with make_guard(sidecar.address, ledger) as guard:
        while guard.ledger.counts()["held"] and time.monotonic() < deadline:
            time.sleep(0.5)
        rest = LIMIT - expected
        free = [is_free(guard, FEATURE, amount, CUSTOMER) for amount in (rest, rest + 1)]
    yield Promise(
        f"{home}: holds whose token never got into the queue come back after their time",
        f"{orphans} such holds; exactly the rest is free: {free == [True, False]}",
        free == [True, False],
    )


def _hand_over(address: str, ledger: str, server: RedisServer) -> int:
    """Runs takers and enders until all tokens are ended; how many of them were killed."""
    kills = 0
    with ExitStack() as at_end:
        places: dict[tuple[Callable[..., None], int], BaseProcess] = {}
        at_end.callback(lambda: _kill(places.values()))
        wanted = [(_take, number) for number in range(TAKERS)] + [(_end, number) for number in range(ENDERS)]
        deadline = time.monotonic() + 4 * PATIENCE
        while not (_took_all(places.values()) and server.client.scard(ENDED) == server.client.scard(TAKEN)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{server.client.scard(ENDED)} of {server.client.scard(TAKEN)} tokens are ended")
            for work, number in wanted:
                process = places.get((work, number))
                if process is not None and (process.is_alive() or process.exitcode == 0):
                    continue
                kills += process is not None
                while server.client.lmove(_underway(number), QUEUE):  # the queue delivers it again
                    pass
                started = CONTEXT.Process(target=work, args=(address, ledger, server.url, number))
                started.start()
                places[work, number] = started
            time.sleep(0.01)
    return kills


def _took_all(processes: Iterable[BaseProcess]) -> bool:
    return sum(process.exitcode == 0 for process in processes) == TAKERS  # enders have no end


def _kill(processes: Iterable[BaseProcess]) -> None:
    for process in processes:
        process.kill()
        process.join()


def _take(address: str, ledger: str, url: str, number: int) -> None:
    with Redis.from_url(url, decode_responses=True) as queue, make_guard(address, ledger, **SETTINGS) as guard:
        while queue.scard(TAKEN) < TOKENS:
            held = guard.hold(FEATURE, random.randint(1, 9), customer=CUSTOMER, ttl=TTL)
            _die_perhaps()
            with queue.pipeline() as both:
                both.lpush(QUEUE, held.token).sadd(TAKEN, held.token).execute()


def _end(address: str, ledger: str, url: str, number: int) -> None:
    with Redis.from_url(url, decode_responses=True) as queue, make_guard(address, ledger, **SETTINGS) as guard:
        while True:
            token = queue.blmove(QUEUE, _underway(number), 1)
            if token is None:
                continue
            try:
                with guard.resume(token) as usage:
                    _die_perhaps()
                    if not (amount := _amount(token)):
                        raise WorkFailed
                    usage.amount = amount
            except WorkFailed:
                pass
            _die_perhaps()
            with queue.pipeline() as both:
                both.lrem(_underway(number), 1, token).sadd(ENDED, token).execute()


def _underway(number: int) -> str:
    return f"underway-{number}"


def _amount(token: str) -> int:
    """What the work of this token comes to, whoever does it; a quarter of it fails."""
    chance = random.Random(token)
    return chance.randint(1, 9) if chance.random() < 0.75 else 0


def _die_perhaps() -> None:
    if random.random() < DIES:
        os.kill(os.getpid(), signal.SIGKILL)

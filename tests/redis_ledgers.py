"""What the tests of ledgers in Redis have in common."""

from __future__ import annotations

import select
import socket
import socketserver
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from stigg_guard.errors import LedgerUnavailable
from stigg_guard.ledger import Acknowledged, Batch, Claim, Entry, Hold, News, Period, UsageKey
from stigg_guard.ledger.redis import RedisLedger

KEY = UsageKey("ann", "", "templates")
OTHER = UsageKey("bob", "site-01", "templates")
LEASE = 30.0
Made = TypeVar("Made")


def claim(key: UsageKey = KEY, amount: float = 1, limit: float | None = 10) -> Claim:
    return Claim(key, amount, News(Period(), 0, None if limit is None else round(limit * 1_000_000), 1))


def held(ledger: RedisLedger, *wishes: Claim) -> Hold:
    answer = ledger.hold(wishes or (claim(),), 60)
    assert isinstance(answer, Hold), answer
    return answer


def taken(ledger: RedisLedger, size: int = 100) -> Batch:
    batch = ledger.take_batch(size, LEASE)
    assert batch is not None
    return batch


def acknowledge(ledger: RedisLedger, batch: Batch) -> None:
    ledger.acknowledge([Acknowledged(report, None) for report in batch.reports])


def drain(ledger: RedisLedger, arrived: dict[str, Entry]) -> None:
    """Acknowledges all that there is to send, and notes it by its id."""
    while (batch := ledger.take_batch(100, LEASE)) is not None:
        arrived.update({report.id: report for report in batch.reports})
        acknowledge(ledger, batch)


def drain_until(ended: Callable[[], bool], ledger: RedisLedger, arrived: dict[str, Entry]) -> None:
    while not ended():
        with suppress(LedgerUnavailable):
            drain(ledger, arrived)


def sums(arrived: dict[str, Entry]) -> dict[UsageKey, float]:
    usage = Counter[UsageKey]()
    for report in arrived.values():
        usage.update({report.key: report.amount})
    return usage


def drained(ledger: RedisLedger) -> dict[UsageKey, float]:
    """Acknowledges all that there is to send, and adds up what it was."""
    arrived: dict[str, Entry] = {}
    drain(ledger, arrived)
    return sums(arrived)


def persisting(step: Callable[[], Made]) -> Made:
    """Makes a step that may be repeated, until the server takes it."""
    while True:
        with suppress(LedgerUnavailable):
            return step()


class Forgetful(socketserver.ThreadingTCPServer):
    """A way to a server on which answers get lost: the connection ends instead."""

    daemon_threads = True

    def __init__(self, to: int) -> None:
        super().__init__(("127.0.0.1", 0), Forgetful.Way)
        self.to = to
        self.loses = False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def lose_next_answer(self) -> None:
        self.loses = True

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    class Way(socketserver.BaseRequestHandler):
        server: Forgetful

        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", self.server.to)) as server:
                ways = {self.request: server, server: self.request}
                while True:
                    for ready in select.select([*ways], [], [])[0]:
                        said = ready.recv(65536)
                        if not said or (ready is server and self.server.loses):
                            self.server.loses = self.server.loses and not said
                            return
                        ways[ready].sendall(said)

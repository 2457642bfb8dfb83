"""The ledger in a Redis Cluster: parts side by side, each of which is a whole ledger in one slot.

A customer belongs to one part. All keys of a part have the same hash tag, so they are on one node: its queue is never
ahead of its customers, or behind them, whatever a failover loses, and one clock times both. Each step is a script with
keys of one slot. So parts know nothing of each other, and what holds for a ledger in one Redis holds for each of them.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar
from zlib import crc32

from stigg_guard.clock import Clock
from stigg_guard.errors import LedgerUnavailable
from stigg_guard.ledger.accounting import Row
from stigg_guard.ledger.entries import (
    Acknowledged,
    Batch,
    Claim,
    Entry,
    Hold,
    LimitExceeded,
    Once,
    State,
    Ticket,
    UsageKey,
    Use,
)
from stigg_guard.ledger.redis import RedisLedger
from stigg_guard.ledger.redis_fields import LATE, holder, number_of, one_customer, quoted, split_id
from stigg_guard.ledger.redis_server import Part, Server
from stigg_guard.ledger.redis_steps import Steps

PARTS = 64
"""How many parts there are: the most masters that can share the work. It is never changed, as customers would move."""

Item = TypeVar("Item")


class RedisClusterLedger:
    """A ledger in a Redis Cluster, exact among all hosts whose URLs lead to it, as :class:`RedisLedger` is in one
    Redis.

    While a master is away, customers of its parts are refused, and all others are served if the cluster does. What
    is written while a slot is moved to another master may be refused, too, until it has moved. Usage of one customer
    is reported in the order in which it was written, that of several in any order.

    Raises:
        MissingExtra: on import, when redis-py is not installed.
        ConfigError: the URL is none of a cluster.
    """

    def __init__(self, url: str, clock: Clock, *, settle_grace: float = 0.0) -> None:
        self._server = Server(url)
        self._places = [Part(self._server, str(number)) for number in range(PARTS)]
        self._parts = [RedisLedger(place, clock, settle_grace=settle_grace) for place in self._places]
        self._queue = Steps(self._server, clock, lambda _: None)

    def ticket(self, customer_id: str) -> Ticket:
        return self._of(quoted(customer_id)).ticket(customer_id)

    def hold(self, claims: Sequence[Claim], ttl: float, once: Once | None = None) -> Hold | LimitExceeded:
        return self._of(one_customer((claim.key for claim in claims), once)).hold(claims, ttl, once)

    def renew(self, holds: Sequence[Hold], ttl: float) -> None:
        self._on_each(holds, holder, lambda part, some: part.renew(some, ttl))

    def commit(self, hold: Hold, uses: Sequence[Use], *, repeated: bool = False) -> Sequence[float]:
        return self._of(one_customer(use.key for use in uses)).commit(hold, uses, repeated=repeated)

    def release(self, hold: Hold) -> None:
        self._of(holder(hold)).release(hold)

    def record(self, use: Use) -> float:
        return self._of(quoted(use.key.customer_id)).record(use)

    def take_batch(self, size: int, lease: float) -> Batch | None:
        ready, fault = self._ready("to_send")
        for part in random.sample(ready, len(ready)):
            if (batch := part.take_batch(size, lease)) is not None:
                return batch
        if fault is not None:
            raise fault
        return None

    def acknowledge(self, answers: Sequence[Acknowledged]) -> None:
        self._on_each(answers, lambda answer: _customer(answer.report.id), lambda part, some: part.acknowledge(some))

    def put_back(self, reports: Sequence[Entry], seconds: float = 0.0, reason: str = "") -> None:
        self._on_each(reports, _holder, lambda part, some: part.put_back(some, seconds, reason))

    def postpone(self, batch: Batch, seconds: float) -> None:
        self._of(_holder(batch.reports[0])).postpone(batch, seconds)

    def split(self, batch: Batch) -> None:
        self._of(_holder(batch.reports[0])).split(batch)

    def doubt(self, reports: Sequence[Entry], seconds: float | None, reason: str) -> None:
        self._on_each(reports, _holder, lambda part, some: part.doubt(some, seconds, reason))

    def take_uncertain(self, size: int, lease: float) -> Sequence[Entry]:
        reports: list[Entry] = []
        ready, fault = self._ready("to_decide")
        for part in ready:
            reports += part.take_uncertain(size - len(reports), lease) if len(reports) < size else []
        if fault is not None and not reports:
            raise fault
        return sorted(reports, key=number_of)

    def bury(self, report: Entry, reason: str) -> None:
        self._of(_holder(report)).bury(report, reason)

    def known(self, key: UsageKey) -> Row | None:
        return self._of(quoted(key.customer_id)).known(key)

    def outstanding(self, key: UsageKey) -> float:
        return self._of(quoted(key.customer_id)).outstanding(key)

    def entries(self, states: Sequence[State], limit: int) -> Sequence[Entry]:
        found = [entry for part in self._in_use() for entry in part.entries(states, limit)]
        return sorted(found, key=lambda entry: (entry.first_at, entry.id))[:limit]

    def retry(self, ids: Sequence[str]) -> int:
        return sum(self._on_each(ids, _customer, lambda part, some: part.retry(some)))

    def discard(self, ids: Sequence[str]) -> int:
        return sum(self._on_each(ids, _customer, lambda part, some: part.discard(some)))

    def counts(self) -> Mapping[str, int]:
        counted: Counter[str] = Counter(dict.fromkeys((*(state.value for state in State), "waiting"), 0))
        for part in self._in_use():
            counted.update(part.counts())
        late = self._server.ask_all([place.placed(("GET", LATE)) for place in self._places])
        return {**counted, "late": sum(int(number or 0) for number in late)}

    def close(self) -> None:
        self._server.close()

    def _of(self, customer: str) -> RedisLedger:
        """The part of a customer, whose id is quoted."""
        return self._parts[crc32(customer.encode()) % PARTS]

    def _in_use(self) -> list[RedisLedger]:
        """The parts that know any customer."""
        parts, fault = self._ready("knows_any")
        if fault is not None:
            raise fault
        return parts

    def _ready(self, step: str) -> tuple[list[RedisLedger], LedgerUnavailable | None]:
        """The parts whose queue answers the step with 1, and what is wrong with others."""
        command = self._queue.of_queue(step)
        answers = self._server.ask_each([place.placed(command) for place in self._places])
        faults = [answer for answer in answers if isinstance(answer, LedgerUnavailable)]
        ready = [part for part, answer in zip(self._parts, answers, strict=True) if answer == 1]
        return ready, faults[0] if faults else None

    def _on_each(
        self,
        items: Iterable[Item],
        customer_of: Callable[[Item], str],
        work: Callable[[RedisLedger, list[Item]], int | None],
    ) -> list[int]:
        """Does the work in the parts of the customers; one that fails keeps no other from it."""
        parts: defaultdict[RedisLedger, list[Item]] = defaultdict(list)
        for item in items:
            parts[self._of(customer_of(item))].append(item)
        numbers: list[int] = []
        fault: LedgerUnavailable | None = None
        for part, some in parts.items():
            try:
                numbers.append(work(part, some) or 0)
            except LedgerUnavailable as error:
                fault = error
        if fault is not None:
            raise fault
        return numbers


def _customer(entry_id: str) -> str:
    return split_id(entry_id)[0]


def _holder(report: Entry) -> str:
    return _customer(report.id)

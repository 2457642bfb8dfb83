"""Takes over what the version before kept in the same Redis, while processes of it may still be at work.

Its queue is closed on first contact: from then on its processes take no reports to send, which they log as usage that
stays in the ledger. A customer is taken over, in one step, when a step of this version is the first to touch it, or
when it is found in the old queue. From then on old processes get no hold of that customer, and what they had held
before is held here as well, until they end it. What they still commit is accepted where they write it, and taken over
within seconds. A report that was under way there is waited for as long as its lease lasts, with the customer.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from stigg_guard.errors import LedgerUnavailable
from stigg_guard.ledger.redis_fields import (
    LATE,
    OLD_LATE,
    OLD_LEASES,
    OLD_LEASES_KEPT,
    OLD_QUEUE_KEYS,
    QUEUES,
    batch_key,
    old_batch_key,
    old_customer_keys,
    pairs,
)
from stigg_guard.ledger.redis_scripts import OLD_LEASE, script
from stigg_guard.ledger.redis_server import Part, Server
from stigg_guard.ledger.redis_steps import CUSTOMERS_AT_ONCE, Step, Steps

WAIT_SECONDS = 0.25
_ASK_SECONDS = 0.01
SWEEP_SECONDS = 1.0


class Takeover:
    """Takes over customers, each exactly once, and goes on looking for what old processes write."""

    def __init__(self, server: Server | Part, steps: Steps) -> None:
        self._server = server
        self._steps = steps
        self._closed_until: int | None = None
        self._swept_at = 0.0

    def begin(self, customer: str) -> None:
        """Takes over what there is of a customer that this ledger does not know yet.

        Raises:
            LedgerUnavailable: a report of the customer is under way in an old process.
        """
        command = self._steps.of(customer, "take_over", "", self._until(), "", keys=old_customer_keys(customer))
        if self._server.ask(command) in ("done", "held"):
            return
        deadline = time.monotonic() + WAIT_SECONDS
        while self._taken_over({customer: ""})[customer] == "wait":
            if time.monotonic() >= deadline:
                raise LedgerUnavailable(
                    "a process of the version before is sending a report of this customer: its end is waited for, for "
                    f"at most {OLD_LEASE // 1_000_000} s"
                )
            time.sleep(_ASK_SECONDS)

    def sweep(self, seconds: float = 0.0) -> None:
        """Takes over all customers in the old queue, if that was not done within this time."""
        if time.monotonic() - self._swept_at < seconds:
            return
        self._until()
        seen = self._server.ask(("ZRANGE", OLD_QUEUE_KEYS[0], 0, -1, "WITHSCORES"))
        for start in range(0, len(seen), 2 * CUSTOMERS_AT_ONCE):
            self._sweep(pairs(seen[start : start + 2 * CUSTOMERS_AT_ONCE]))
        self._swept_at = time.monotonic()

    def _sweep(self, seen: Mapping[str, str]) -> None:
        """Takes over customers, and takes those out of the old queue of whom nothing is left there."""
        statuses = self._taken_over(seen)
        done = [word for customer, token in seen.items() if statuses[customer] == "done" for word in (customer, token)]
        self._server.ask((script("steps.forget_old()"), len(OLD_QUEUE_KEYS), *OLD_QUEUE_KEYS, "", *done))

    def _taken_over(self, seen: Mapping[str, str]) -> dict[str, str]:
        """How far that came with each of the customers, given with their tokens in the old queue."""
        statuses: dict[str, str] = dict.fromkeys(seen, "again")
        while again := [customer for customer, status in statuses.items() if status == "again"]:
            steps = {
                customer: Step("take_over", (self._until(), seen[customer]), old_customer_keys(customer))
                for customer in again
            }
            statuses.update(self._steps.queued(steps, QUEUES))
        return statuses

    def _until(self) -> int:
        """Closes the old queue; until when the reports that were under way there are waited for."""
        if self._closed_until is None:
            keys = OLD_LEASES, OLD_LEASES_KEPT, LATE, OLD_LATE
            closed_at, batches = self._server.ask(self._steps.of_queue("close_old", keys=keys))
            self._adopt(batches)
            self._closed_until = int(closed_at) + OLD_LEASE
        return self._closed_until

    def _adopt(self, batches: Sequence[Any]) -> None:
        """Lets the batches that were under way come again here when their leases end."""
        self._server.ask_all(
            [
                self._steps.of_queue("adopt", batch, keys=(batch_key(batch), old_batch_key(batch), OLD_LEASES_KEPT))
                for batch in batches
            ]
        )

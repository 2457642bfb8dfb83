"""One random program of steps on several ledgers at once, whose outputs must be equal.

What no two ledgers have in common is written in common terms first: ids by the order in which they first show, sequence
numbers by which is the greater.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from itertools import count
from typing import Any

from stigg_guard import Clock
from stigg_guard.errors import KeyTaken
from stigg_guard.ledger import (
    Acknowledged,
    Batch,
    Claim,
    Entry,
    Event,
    Hold,
    Ledger,
    LimitExceeded,
    News,
    Once,
    Period,
    Row,
    State,
    Ticket,
    UsageKey,
    Use,
)

SECOND = 1_000_000_000
START = datetime(2026, 3, 1, tzinfo=timezone.utc)
EPOCH_NS = int(START.timestamp()) * SECOND
DAY, HOUR = 86_400, 3_600
HALF_A_DAY = timedelta(hours=12)
GRACE = 15.0
KEYS = [UsageKey(customer, resource, feature) for customer in "ab" for resource in ("", "r/1") for feature in "fg"]
RATES = [1, 2, 2.5, 0.1, 0.333333, 1000]
AMOUNTS = [0.1, 0.2, 1, 1, 2, 2.5, 3, 0.000001]
PERIODS = [
    Period(),
    Period(EPOCH_NS, EPOCH_NS + DAY * SECOND),
    Period(EPOCH_NS + DAY * SECOND, EPOCH_NS + 2 * DAY * SECOND),
    Period(EPOCH_NS - 15 * DAY * SECOND + 7, EPOCH_NS + 15 * DAY * SECOND + 7),
    Period(EPOCH_NS, None),
    Period(None, EPOCH_NS + DAY * SECOND),
    Period(EPOCH_NS + HOUR * SECOND + 1, EPOCH_NS + DAY * SECOND),
]


def wallet_of(customer: str) -> UsageKey:
    return UsageKey(customer, "", "wallet")


class LockstepClock:
    """The clock of all ledgers. It moves a little with each step, so that no two uses are of one instant. It goes back
    half a day at most, as no hold is ended later than that: when an expired one is deleted, after a day, is each
    ledger's own affair."""

    def __init__(self) -> None:
        self.now = self.furthest = START
        # Time that passes, and no clock that is set anew: what a host does then, no server of many hosts can.
        self.clock = Clock(monotonic=lambda: self.now.timestamp(), now=lambda: self.now)

    def advance(self, rng: random.Random) -> None:
        jump = rng.random()
        seconds = rng.choice([0.01, 0.5, 3, 20])
        if jump < 0.02:
            seconds = rng.choice([40, 100, HOUR, 3 * HOUR, DAY, -2, -100, -HOUR, -DAY])
        self.now = max(self.now + timedelta(seconds=seconds), self.furthest - HALF_A_DAY)
        self.now += timedelta(microseconds=rng.randrange(1, 1000))
        self.furthest = max(self.furthest, self.now)


@dataclass
class Home:
    """One of the ledgers, with what it returned under the common numbers."""

    ledger: Ledger
    tickets: dict[int, Ticket] = field(default_factory=dict)
    holds: dict[int, Hold] = field(default_factory=dict)
    batches: dict[int, Batch] = field(default_factory=dict)
    reports: dict[int, Entry] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)

    def name(self, entry_id: str) -> int:
        return self.names.setdefault(entry_id, len(self.names))

    def told(self, entry: Entry) -> Any:
        """An entry in common terms; its report is kept for later steps."""
        number = self.name(entry.id)
        self.reports[number] = entry
        event = entry.event and (entry.event.name, entry.event.idempotency_key, dict(entry.event.dimensions))
        return replace(entry, id=str(number), ticket=int(entry.ticket > 0), event=None), event

    def listed(self, entries: Sequence[Entry]) -> list[Any]:
        """Entries of one instant come in any order; all others oldest first."""
        assert [entry.first_at for entry in entries] == sorted(entry.first_at for entry in entries)
        return [self.told(entry) for entry in sorted(entries, key=lambda one: (one.first_at, str(one.key), one.amount))]


def _row(row: Row | None) -> Any:
    return row and (row._replace(seen=0, settled=0), row.seen > row.settled)


class Lockstep:
    """Makes random steps on all ledgers, each the same. ``made`` counts them by name, ``outcomes`` are the holds'."""

    def __init__(self, ledgers: Mapping[str, Ledger], clock: LockstepClock, seed: int) -> None:
        self.homes = {name: Home(ledger) for name, ledger in ledgers.items()}
        self.made: dict[str, int] = {}
        self.outcomes: set[str | type[KeyTaken]] = set()
        self._clock = clock
        self._rng = random.Random(seed)
        self._numbers = count(1)
        self._story: list[str] = []
        self._seen: dict[str, dict[int, Any]] = {"tickets": {}, "holds": {}, "batches": {}}
        self._given: dict[int, datetime] = {}  # when a hold was given or renewed
        self._steps = [
            *(self.ticket,) * 3,
            *(self.hold,) * 6,
            *(self.commit,) * 5,
            *(self.release,) * 1,
            *(self.renew,) * 1,
            *(self.record,) * 2,
            *(self.take_batch,) * 4,
            *(self.acknowledge,) * 4,
            self.postpone,
            self.split,
            self.doubt,
            self.put_back,
            self.bury,
            self.take_uncertain,
            self.retry,
            self.discard,
            self.entries,
            self.counts,
            self.known,
            self.outstanding,
        ]

    def step(self) -> None:
        step = self._rng.choice(self._steps)
        self._clock.advance(self._rng)
        self.made[step.__name__] = self.made.get(step.__name__, 0) + 1
        step()

    # Each step below draws what it does, and does it on every home.

    def ticket(self) -> None:
        customer, number = self._rng.choice("ab"), next(self._numbers)

        def draw(home: Home) -> Any:
            home.tickets[number] = home.ledger.ticket(customer)
            return home.tickets[number].at

        self._all(f"ticket {number} {customer}", draw)
        self._seen["tickets"][number] = customer

    def hold(self) -> None:
        rng, number = self._rng, next(self._numbers)
        customer = rng.choice("ab")
        keys = rng.sample([key for key in KEYS if key.customer_id == customer], rng.choice([1, 1, 1, 2]))
        tickets = [ticket for ticket, of in self._seen["tickets"].items() if of == customer]
        wishes: list[tuple[Any, ...]] = [
            (
                key,
                rng.choice(AMOUNTS),
                rng.choice(PERIODS[:3] if rng.random() < 0.8 else PERIODS),
                round(rng.choice([0, 1, 3, 5]) * 1_000_000),
                rng.choice([None, 10_000_000, 10_000_000, 5_000_000, 300_000, -1]),
                rng.choice(tickets[-3:]) if tickets and rng.random() < 0.9 else 0,
            )
            for key in keys
        ]
        if rng.random() < 0.3:  # a wallet pays for them, and for others
            paid_for = rng.sample([key for key in KEYS if key.customer_id == customer], rng.choice([0, 1]))
            prices = {key: rng.choice(RATES) for key in [*keys, *paid_for]}
            price = sum(amount * prices[key] for key, amount, *_ in wishes)
            limit = rng.choice([None, 20_000_000, 4_000_000, -1])
            used = rng.choice([0, 1_000_000, 3_000_000])
            wishes.append((wallet_of(customer), price, Period(), used, limit, wishes[0][5], tuple(prices.items())))
        ttl = rng.choice([1.0, 30.0, 300.0])
        told = f"{customer}{number // 30}", rng.choice("----+"), rng.choice([HOUR, DAY]) * 1_000_000
        once = Once(customer, *told) if rng.random() < 0.5 else None
        if once is not None and rng.random() < 0.2:  # as for a report
            wishes = []

        def hold(home: Home) -> Any:
            claims = []
            for key, amount, period, used, limit, ticket, *pays_for in wishes:
                drawn = home.tickets.get(ticket, Ticket(0, 0))
                claims.append(Claim(key, amount, News(period, used, limit, drawn.number, drawn.at), *pays_for))
            try:
                held = home.ledger.hold(claims, ttl, once)
            except KeyTaken as error:
                return type(error)
            if isinstance(held, LimitExceeded):
                return "refused", held.claim.key, held.counted, held.limit, held.is_perhaps_free
            home.holds[number] = held
            return "held"

        outcome = self._all(f"hold {number} {wishes} for {ttl} {once}", hold)
        self.outcomes.add(outcome if isinstance(outcome, (str, type)) else "refused")
        if outcome == "held":
            self._seen["holds"][number] = wishes or [
                (rng.choice([key for key in KEYS if key.customer_id == customer]), 1)
            ]
            self._given[number] = self._clock.now

    def renew(self) -> None:
        if (number := self._pick("holds")) is not None:
            ttl = self._rng.choice([1.0, 300.0])
            self._all(f"renew {number} {ttl}", lambda home: home.ledger.renew([home.holds[number]], ttl))
            self._given[number] = self._clock.now

    def commit(self) -> None:
        rng = self._rng
        if (number := self._pick("holds")) is None:
            return
        uses = []
        for key, amount, *_ in self._seen["holds"][number]:
            if key == wallet_of(key.customer_id):
                continue
            event = Event("e", f"key-{number}", {"d": "1", "n": 2.0, "b": True}) if rng.random() < 0.15 else None
            dimensions = {"agent": "a"} if rng.random() < 0.1 else {}
            uses.append(Use(key, rng.choice([amount, amount, 0, 0.5]), event=event, dimensions=dimensions))
        repeated = rng.random() < 0.1
        self._all(
            f"commit {number} {uses} repeated={repeated}",
            lambda home: list(home.ledger.commit(home.holds[number], uses, repeated=repeated)),
        )
        if rng.random() < 0.8:
            self._seen["holds"].pop(number)
        else:  # once more, as whoever was interrupted
            self._all(
                f"commit {number} again",
                lambda home: list(home.ledger.commit(home.holds[number], uses, repeated=True)),
            )
            self._seen["holds"].pop(number)

    def release(self) -> None:
        if (number := self._pick("holds")) is not None:
            self._all(f"release {number}", lambda home: home.ledger.release(home.holds[number]))
            self._seen["holds"].pop(number)

    def record(self) -> None:
        rng = self._rng
        is_set = rng.random() < 0.2
        amount = rng.choice(AMOUNTS) * (-1 if not is_set and rng.random() < 0.3 else 1)
        use = Use(rng.choice(KEYS), amount, is_set=is_set)
        self._all(f"record {use}", lambda home: home.ledger.record(use))

    def take_batch(self) -> None:
        number = next(self._numbers)

        def take(home: Home) -> Any:
            batch = home.ledger.take_batch(100, 30.0)
            if batch is None:
                return None
            home.batches[number] = batch
            return home.name(batch.id), [home.told(report) for report in batch.reports]

        taken = self._all(f"take {number}", take)
        if taken is not None:
            self._seen["batches"][number] = [int(report.id) for report, _ in taken[1]]

    def acknowledge(self) -> None:
        if (number := self._pick("batches")) is None:
            return
        rng = self._rng
        told = [
            (
                report,
                rng.choice([None, 0.0, 1.0, 2.1, 4.0, 7.0]),
                rng.choice(PERIODS[:4]),
                rng.choice([None, None, 0.1, 2, 3.5]),
            )
            for report in self._seen["batches"][number]
            if rng.random() < 0.9
        ]
        self._all(
            f"acknowledge {number} {told}",
            lambda home: home.ledger.acknowledge(
                [
                    Acknowledged(
                        home.reports[report],
                        used,
                        period if used is not None else Period(),
                        None if price is None else (wallet_of(home.reports[report].key.customer_id), price),
                    )
                    for report, used, period, price in told
                ]
            ),
        )

    def postpone(self) -> None:
        if (number := self._pick("batches")) is not None:
            seconds = self._rng.choice([0.0, 1.0, 20.0])
            self._all(f"postpone {number} {seconds}", lambda home: home.ledger.postpone(home.batches[number], seconds))

    def split(self) -> None:
        if (number := self._pick("batches")) is not None:
            self._all(f"split {number}", lambda home: home.ledger.split(home.batches[number]))

    def doubt(self) -> None:
        if (number := self._pick("batches")) is not None:
            seconds = self._rng.choice([0.0, 5.0, GRACE, None])
            self._all(
                f"doubt {number} {seconds}", lambda home: home.ledger.doubt(self._reports(home, number), seconds, "why")
            )

    def put_back(self) -> None:
        if (number := self._pick("batches")) is not None:
            seconds = self._rng.choice([0.0, 0.0, 5.0])
            self._all(
                f"put back {number} {seconds}",
                lambda home: home.ledger.put_back(self._reports(home, number), seconds, "again"),
            )

    def bury(self) -> None:
        if (number := self._pick("batches")) is not None:
            report = self._rng.choice(self._seen["batches"][number])
            self._all(f"bury {report}", lambda home: home.ledger.bury(home.reports[report], "no"))

    def take_uncertain(self) -> None:
        self._all(
            "take uncertain",
            lambda home: [home.told(report) for report in self._sorted(home.ledger.take_uncertain(100, 30.0))],
        )

    def retry(self) -> None:
        self._all("retry", lambda home: home.ledger.retry(self._waiting(home)))

    def discard(self) -> None:
        self._all("discard", lambda home: home.ledger.discard(self._waiting(home)[:1]))

    def entries(self) -> None:
        states = self._rng.sample(list(State), self._rng.choice([1, 2, 5]))
        self._all(f"entries {states}", lambda home: home.listed(home.ledger.entries(states, 1000)))

    def counts(self) -> None:
        self._all("counts", lambda home: dict(home.ledger.counts()))

    def known(self) -> None:
        for key in [*KEYS, *map(wallet_of, "ab")]:
            self._all(f"known {key}", lambda home, key=key: _row(home.ledger.known(key)))

    def outstanding(self) -> None:
        for key in KEYS:
            self._all(f"outstanding {key}", lambda home, key=key: home.ledger.outstanding(key))

    def _reports(self, home: Home, number: int) -> list[Entry]:
        return [home.reports[report] for report in self._seen["batches"][number]]

    def _waiting(self, home: Home) -> list[str]:
        return [entry.id for entry in self._sorted(home.ledger.entries([State.DEAD, State.UNCERTAIN], 1000))]

    @staticmethod
    def _sorted(entries: Sequence[Entry]) -> list[Entry]:
        return sorted(entries, key=lambda one: (one.first_at, str(one.key), one.amount))

    def _pick(self, kind: str) -> int | None:
        """One of the last few, mostly; old ones come late."""
        known = list(self._seen[kind])
        if kind == "holds":
            known = [number for number in known if self._clock.furthest - self._given[number] < HALF_A_DAY]
        if not known:
            return None
        return self._rng.choice(known[-4:] if self._rng.random() < 0.9 else known)

    def _all(self, what: str, step: Any) -> Any:
        self._story.append(what)
        outputs = {name: step(home) for name, home in self.homes.items()}
        (first, expected), *others = outputs.items()
        for name, output in others:
            if output != expected:
                told = "\n".join(self._story[-60:])
                raise AssertionError(f"{told}\n\n{first} says {expected}\n{name} says {output}")
        return expected

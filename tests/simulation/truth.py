"""The sidecar as it truly is: features with their plans, periods and books. Times are ticks, until they are told."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from stigg_guard.ledger import Period

NEVER = -1


class Terms(NamedTuple):
    """What a plan gives of a feature: periods of this length from an anchor on, and a limit. Without a length there is
    one period without an end, without an anchor none at all. ``limit`` is in quanta; None is none, -1 allows none."""

    length: int | None
    anchor: int | None
    limit: int | None


@dataclass(frozen=True)
class Manner:
    """How the sidecar behaves: by what it books usage (its ``arrival``, the time ``stamped`` on it, or no books but the
    sum over the ``window`` of now), which ends of periods it shows, how late it rolls them over, how long its figures
    and its events take to be seen, and whether usage stops at 0."""

    books: str
    shown: str
    late: int
    lag: int
    events_lag: int
    stops_at_0: bool
    blind: int
    """For how many ticks after a change a claim may have been asked for before it, or lag behind it."""


class Sale(NamedTuple):
    """Units that were sold within the limit as the ledger saw it: when, and after how many changes it was told of."""

    amount: int
    sold_at: int
    heard: int


@dataclass
class Life:
    """A period of the books since it last became the present one: the most that may be in it, and what was sold that
    the ledger could not know of."""

    top: int
    excused: int = 0


@dataclass
class Arrived:
    """A report as the sidecar has it."""

    amount: int
    is_set: bool
    used_at: int
    sales: Sequence[Sale]
    seen_at: int


@dataclass
class Meter:
    """One feature of one customer. ``worst`` is by how much any period was oversold."""

    rng: random.Random
    manner: Manner
    plans: Sequence[Terms]
    now: int
    plan: int = 0
    epoch: int = 0
    """How many changes of plan there were."""
    heard: int = 0
    """How many of them the ledger was told of."""
    blind_until: int = NEVER
    changed_at: int = 0
    worst: int = 0
    added: int = 0
    taken_off: int = 0
    books: Counter[Hashable] = field(default_factory=Counter)
    log: list[tuple[int, int]] = field(default_factory=list)
    lives: dict[Hashable, Life] = field(default_factory=dict)
    left: list[tuple[int, Hashable]] = field(default_factory=list)
    unseen: list[Arrived] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._enter(self._window(self.now), is_change=True)

    @property
    def limit(self) -> int | None:
        return self.plans[self.plan].limit

    @property
    def begins_anew(self) -> bool:
        """Whether usage is counted by periods."""
        return self.plans[self.plan].length is not None

    @property
    def usage(self) -> int:
        return self._usage(self.account)

    def shows(self) -> tuple[Period, int, int | None]:
        start, end = self.period
        shown = self.manner.shown
        told = Period(start if shown in ("both", "start") else None, end if shown in ("both", "end") else None)
        return told, self.usage, self.limit

    def change(self, plan: int, now: int, changed_at: int) -> None:
        self.now, self.plan, self.changed_at, self.epoch = now, plan, changed_at, self.epoch + 1
        self._enter(self._window(now), is_change=True)
        came_back = any(self.account == left and now - at <= self.manner.blind for at, left in self.left)
        if came_back or self.manner.shown != "both":
            self.blind_until = now + self.manner.blind

    def pass_time(self, now: int) -> None:
        self.now = now
        if self.rolls_at is not None and now >= self.rolls_at:
            self._enter(self._window(now), is_change=False)
        seen = [arrived for arrived in self.unseen if arrived.seen_at <= now]
        self.unseen = [arrived for arrived in self.unseen if arrived.seen_at > now]
        for arrived in seen:
            self.book(arrived)

    def book(self, arrived: Arrived) -> None:
        used_at = min(arrived.used_at, self.now)
        account = self.account
        if self.manner.books == "stamped":
            account = self._account(self._window(used_at))
        amount = arrived.amount - self._usage(account) if arrived.is_set else arrived.amount
        if self.manner.stops_at_0:
            amount = max(amount, -self._usage(account))
        self.log.append((used_at, amount))
        self.books[account] += amount
        if not arrived.is_set:
            self.added += max(arrived.amount, 0)
            self.taken_off += min(arrived.amount, 0)
        self._judge(account, used_at, arrived, amount)

    def _judge(self, account: Hashable, used_at: int, arrived: Arrived, amount: int) -> None:
        life = self.lives.setdefault(account, Life(max(self.limit or 0, 0)))
        life.excused += max(0, amount - sum(sale.amount for sale in arrived.sales))  # nobody asked whether it fits
        start = None if self.manner.books == "window" else account[1].start  # type: ignore[index] # a pair, then
        is_late = start is not None and used_at < start
        for sale in arrived.sales:
            if is_late or sale.sold_at <= self.blind_until or sale.heard < self.epoch:
                life.excused += sale.amount
        if self.limit is not None:
            self.worst = max(self.worst, self._usage(account) - life.top - life.excused)

    def _enter(self, period: Period, *, is_change: bool) -> None:
        if self.lives:
            self.left.append((self.now, self.account))
        self.period, self.entered_at = period, self.now
        self.account: Hashable = self._account(period)
        self.rolls_at = None if period.end is None else period.end + self.rng.randint(0, self.manner.late)
        if is_change or self.account not in self.lives:
            self.lives[self.account] = Life(max(self.limit or 0, self.usage, 0))

    def _window(self, instant: int) -> Period:
        length, anchor, _ = self.plans[self.plan]
        if length is None or anchor is None:
            return Period(anchor, None)
        start = anchor + (instant - anchor) // length * length
        return Period(start, start + length)

    def _account(self, period: Period) -> Hashable:
        return period if self.manner.books == "window" else (self.plan, period)

    def _usage(self, account: Hashable) -> int:
        if self.manner.books != "window":
            return self.books[account]
        assert isinstance(account, Period)
        return sum(amount for at, amount in self.log if account.holds(at))


class Booked(NamedTuple):
    used: int
    period: Period


class Sidecar:
    """All meters of one customer. What it told since when is kept, for replicas that lag."""

    def __init__(self, meters: dict[str, Meter], now: int, lag: int) -> None:
        self.meters, self.now, self.lag = meters, now, lag
        self.told: list[tuple[int, dict[str, tuple[Period, int, int | None]]]] = []
        self.keys: dict[tuple[str, str], Booked | None] = {}
        self.times: Counter[str] = Counter()
        self.changes: list[int] = []
        self.say()

    def say(self) -> None:
        self.told.append((self.now, {name: meter.shows() for name, meter in self.meters.items()}))

    def pass_time(self, ticks: int = 1) -> None:
        self.now += ticks
        before = [(meter.period, len(meter.unseen)) for meter in self.meters.values()]
        for meter in self.meters.values():
            meter.pass_time(self.now)
        if before != [(meter.period, len(meter.unseen)) for meter in self.meters.values()]:
            self.say()

    def change(self, plan: int) -> None:
        for meter in self.meters.values():
            meter.change(plan, self.now, len(self.told))
        self.changes.append(self.now)
        self.say()

    def replica(self, rng: random.Random) -> int:
        """Which of all that was told a replica tells."""
        first = len(self.told) - 1
        while first > 0 and self.told[first][0] > self.now - self.lag:
            first -= 1
        return rng.randint(first, len(self.told) - 1)

    def count(self, feature: str, report: str, key: str | None, arrived: Arrived, *, is_event: bool) -> Booked | None:
        """Books a report, once for each key; the usage then, and the period. An event is seen later."""
        if key is not None and (report, key) in self.keys:
            return self.keys[report, key]
        meter = self.meters[feature]
        self.times[report] += 1
        answer = None
        if is_event and arrived.seen_at > self.now:
            meter.unseen.append(arrived)
        else:
            meter.book(arrived)
            self.say()
            period, used, _ = meter.shows()
            answer = None if is_event else Booked(used, period)
        if key is not None:
            self.keys[report, key] = answer
        return answer

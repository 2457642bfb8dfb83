"""The ledger as plainly as it can be written: what the homes must do, over lists, with the rules of the accounting.

The rules are looked up when they are used, so that a simulation can replace one. It keeps nothing beyond its process,
and knows no threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

from stigg_guard.amounts import quanta, quanta_used, units
from stigg_guard.clock import Clock, microseconds
from stigg_guard.ledger import (
    Acknowledged,
    Batch,
    Entry,
    Event,
    Hold,
    LimitExceeded,
    Once,
    Period,
    Row,
    State,
    Ticket,
    UsageKey,
    Use,
    accounting,
)
from stigg_guard.ledger.accounting import UNTOLD, Before, Mark, Pending
from stigg_guard.ledger.entries import Claim, Dimensions, held_claims, require_free

_DECIDABLE = (State.DEAD, State.UNCERTAIN)
_ON_ITS_WAY = (State.UNSENT, State.SENDING, State.UNCERTAIN)


@dataclass
class _Part:
    """What a hold has of one key."""

    key: UsageKey
    hold: str
    amount: int
    period: Period
    taken_at: int
    until: int
    lasts: int


@dataclass
class _Line:
    number: int
    key: UsageKey
    pending: Pending
    first_at: int
    event: Event | None
    dimensions: Dimensions
    state: State = State.UNSENT
    until: int | None = 0
    lasts: int = 0
    batch: str = ""
    reason: str = ""
    attempts: int = 0
    before: Before | None = None

    @property
    def entry(self) -> Entry:
        return Entry(
            str(self.number), self.state, self.key, units(self.pending.amount), self.pending.is_set,
            self.pending.used_at, self.event, self.reason, self.attempts, self.dimensions, self.pending.period,
            self.first_at, self.pending.ticket, self.before,
        )  # fmt: skip

    def is_due(self, now: int) -> bool:
        return self.until is not None and self.until <= now

    def waits(self, seconds: float | None, now: int) -> None:
        self.lasts = _microseconds(seconds or 0.0)
        self.until = None if seconds is None else now + self.lasts

    def unsend(self) -> None:
        self.state, self.batch, self.attempts = State.UNSENT, "", 0


@dataclass
class PlainLedger:
    """``read`` tells the time of a use in nanoseconds; without it the ledger's clock does."""

    clock: Clock
    settle_grace: float = 0.0
    read: Callable[[], int] | None = None
    rows: dict[UsageKey, Row] = field(default_factory=dict)
    lines: list[_Line] = field(default_factory=list)
    parts: list[_Part] = field(default_factory=list)
    marks: dict[str, Mark] = field(default_factory=dict)
    late: int = 0

    def __post_init__(self) -> None:
        self._numbers, self._ids, self._tickets = count(1), count(1), count(1)

    def ticket(self, customer_id: str) -> Ticket:
        return Ticket(next(self._tickets), self._now())

    def hold(self, claims: Sequence[Claim], ttl: float, once: Once | None = None) -> Hold | LimitExceeded:
        now, lasts = self._now(), _microseconds(ttl)
        if once is not None:
            require_free(accounting.key_state(self.marks.get(once.digest), once.binding, now))
        hold = Hold(f"hold-{next(self._ids)}", held_claims(claims), once)
        wanted: dict[UsageKey, int] = {}
        refused = None
        for claim in claims:
            key, amount = claim.key, quanta(claim.amount)
            grace = _microseconds(self.settle_grace)
            row, limit = accounting.believed(self.rows.get(key), claim.news, now, grace)
            self.rows[key] = row
            total = accounting.counted(row, self._held(key, now) + wanted.get(key, 0), self._on_its_way(key))
            for other, rate in claim.pays_for:
                left = accounting.outstanding(self._held(other, now), self._on_its_way(other))
                total += accounting.cost(left, rate)
            if refused is None and not accounting.is_free(total, amount, limit):
                sending = [
                    accounting.priced(one, rate) for other, rate in claim.pays_for for one in self._sending(other)
                ]
                sending += self._sending(key)
                perhaps = accounting.is_perhaps_free(row, total, amount, limit, sending)
                refused = LimitExceeded(claim, units(total), units(max(limit or 0, 0)), perhaps)
            wanted[key] = amount + wanted.get(key, 0)
        if refused is not None:
            return refused
        for key in dict.fromkeys(claim.key for claim in hold.claims):
            self.parts.append(_Part(key, hold.id, wanted[key], self._held_in(key, hold), now, now + lasts, lasts))
        if once is not None:
            self.marks[once.digest] = Mark(hold.id, now + lasts, once.binding)
        return hold

    def renew(self, holds: Sequence[Hold], ttl: float) -> None:
        now, lasts, ids = self._now(), _microseconds(ttl), {hold.id for hold in holds}
        for part in self.parts:
            if part.hold in ids:
                part.until, part.lasts = now + lasts, lasts
        for digest, mark in self.marks.items():
            if mark.hold in ids:
                self.marks[digest] = mark._replace(ends=now + lasts)

    def commit(self, hold: Hold, uses: Sequence[Use], *, repeated: bool = False) -> Sequence[float]:
        now = self._now()
        ended, had_key = self._end(hold), self._free(hold)
        key = hold.sole_key
        is_open = key is not None and not accounting.is_counted(self.marks.get(key.digest), now)
        if repeated and not ended and not had_key and not is_open:
            return [self._usage(use.key) for use in uses]
        lasted = {part.key for part in ended if part.until > now}
        if len(lasted) < len({claim.key for claim in hold.claims}):
            self.late += 1
        if hold.once is not None:
            if accounting.is_counted(self.marks.get(hold.once.digest), now):
                return []
            self.marks[hold.once.digest] = Mark("", now + hold.once.kept, hold.once.binding)
        periods = {part.key: part.period for part in ended}
        return [self._record(use, periods.get(use.key)) for use in uses]

    def release(self, hold: Hold) -> None:
        self._end(hold)
        self._free(hold)

    def record(self, use: Use) -> float:
        return self._record(use, None)

    def take_batch(self, size: int, lease: float) -> Batch | None:
        now, lasts = self._now(), _microseconds(lease)
        self.parts = [part for part in self.parts if part.until >= now - accounting.EXPIRED_HOLDS_KEPT]
        self._bring_back(now)
        lines = self._due_batch(now) or self._new_batch(size, now)
        for line in lines:
            line.until, line.lasts, line.attempts = now + lasts, lasts, line.attempts + 1
        return Batch(lines[0].batch, [line.entry for line in lines]) if lines else None

    def acknowledge(self, answers: Sequence[Acknowledged]) -> None:
        now, ticket = self._now(), next(self._tickets)
        for answer in answers:
            for line in self._having([answer.report.id]):
                self.lines.remove(line)
                told = None if answer.current_usage is None else quanta_used(answer.current_usage)
                self._learn(line.key, line.pending, told, answer.period, ticket, now)
                if answer.paid is not None:
                    wallet, price = answer.paid
                    paid = line.pending._replace(amount=quanta(price), is_set=False)
                    self._learn(wallet, paid, None, UNTOLD, ticket, now)

    def put_back(self, reports: Sequence[Entry], seconds: float = 0.0, reason: str = "") -> None:
        now = self._now() if seconds else 0
        for line in self._having([report.id for report in reports]):
            if line.state in (State.SENDING, State.UNCERTAIN):
                line.unsend()
                line.waits(seconds, now)
                line.reason = reason

    def postpone(self, batch: Batch, seconds: float) -> None:
        for line in self.lines:
            if line.batch == batch.id:
                line.waits(seconds, self._now())

    def split(self, batch: Batch) -> None:
        for line in self.lines:
            if line.batch == batch.id:
                line.batch, line.until, line.attempts = f"{line.batch}/{line.number}", 0, 0

    def doubt(self, reports: Sequence[Entry], seconds: float | None, reason: str) -> None:
        for line in self._having([report.id for report in reports]):
            if line.state in (State.SENDING, State.UNCERTAIN):
                line.state, line.batch, line.reason = State.UNCERTAIN, "", reason
                line.waits(seconds, self._now())

    def take_uncertain(self, size: int, lease: float) -> Sequence[Entry]:
        now = self._now()
        self._bring_back(now)
        due = [line for line in self.lines if line.state is State.UNCERTAIN and line.is_due(now)][:size]
        for line in due:
            line.waits(lease, now)
        return [line.entry for line in due]

    def bury(self, report: Entry, reason: str) -> None:
        for line in self._having([report.id]):
            line.state, line.batch, line.reason = State.DEAD, "", reason

    def known(self, key: UsageKey) -> Row | None:
        return self.rows.get(key)

    def outstanding(self, key: UsageKey) -> float:
        held = self._held(key, self._now())
        return units(accounting.counted(Row(UNTOLD, 0), held, self._on_its_way(key)))

    def entries(self, states: Sequence[State], limit: int) -> Sequence[Entry]:
        now = self._now()
        found = [line.entry for line in self.lines if line.state in states]
        if State.HELD in states:
            found += [_held_entry(part) for part in self.parts if part.until > now]
        return sorted(found, key=lambda entry: (entry.first_at, entry.id))[:limit]

    def retry(self, ids: Sequence[str]) -> int:
        lines = [line for line in self._having(ids) if line.state in _DECIDABLE]
        for line in lines:
            line.unsend()
            line.reason, line.until = "", 0
        return len(lines)

    def discard(self, ids: Sequence[str]) -> int:
        now, ticket = self._now(), next(self._tickets)
        lines = [line for line in self._having(ids) if line.state in _DECIDABLE]
        for line in lines:
            self.lines.remove(line)
            if line.state is State.UNCERTAIN:
                self._discard(line.key, line.pending, ticket, now)
        return len(lines)

    def counts(self) -> Mapping[str, int]:
        now = self._now()
        states = {state.value: sum(line.state is state for line in self.lines) for state in State}
        waiting = sum(line.state is State.UNCERTAIN and line.until is None for line in self.lines)
        return {**states, "held": sum(part.until > now for part in self.parts), "waiting": waiting, "late": self.late}

    def close(self) -> None:
        pass

    def _learn(self, key: UsageKey, pending: Pending, told: int | None, period: Period, ticket: int, now: int) -> None:
        self.rows[key] = accounting.learned(self.rows.get(key), pending, told, period, ticket, now)

    def _discard(self, key: UsageKey, pending: Pending, ticket: int, now: int) -> None:
        self._learn(key, pending, None, UNTOLD, ticket, now)

    def _held_in(self, key: UsageKey, hold: Hold) -> Period:
        return self.rows[key].period

    def _now(self) -> int:
        return microseconds(self.clock.now())

    def _time_of_use(self) -> int:
        return self._now() * 1000 if self.read is None else self.read()

    def _held(self, key: UsageKey, now: int) -> int:
        for part in self.parts:
            if part.key == key:
                part.until = accounting.until(part.until, part.lasts, now)
        return sum(part.amount for part in self.parts if part.key == key and part.until > now)

    def _on_its_way(self, key: UsageKey) -> list[Pending]:
        return [line.pending for line in self.lines if line.key == key and line.state in _ON_ITS_WAY]

    def _sending(self, key: UsageKey) -> list[Pending]:
        return [
            line.pending
            for line in self.lines
            if line.key == key and line.state is State.SENDING and line.attempts == 1
        ]

    def _usage(self, key: UsageKey) -> float:
        return units(accounting.counted(self.rows.get(key, Row(UNTOLD, 0)), 0, self._on_its_way(key)))

    def _end(self, hold: Hold) -> list[_Part]:
        ended = [part for part in self.parts if part.hold == hold.id]
        self.parts = [part for part in self.parts if part.hold != hold.id]
        return ended

    def _free(self, hold: Hold) -> bool:
        """Leaves the hold's caller's key free; whether it had it."""
        had_it = [digest for digest, mark in self.marks.items() if mark.hold == hold.id]
        for digest in had_it:
            del self.marks[digest]
        return bool(had_it)

    def _record(self, use: Use, period: Period | None) -> float:
        present = self.rows[use.key].period if use.key in self.rows else UNTOLD
        if period is None:
            period = present
        if use.amount or use.is_set:
            used_at = accounting.stamped(period, self._time_of_use())
            new = Pending(quanta(use.amount), period, used_at, use.is_set, dimensions=use.details)
            if use.event is not None or not self._is_added_up(use.key, new, present):
                line = _Line(next(self._numbers), use.key, new, self._now(), use.event, use.dimensions)
                self.lines.append(line)
        return self._usage(use.key)

    def _is_added_up(self, key: UsageKey, new: Pending, present: Period) -> bool:
        unsent = [line for line in self.lines if line.key == key and line.state is State.UNSENT and not line.event]
        if not unsent or not accounting.may_add_up(unsent[-1].pending, new, present):
            return False
        old = unsent[-1].pending
        amount, used_at = old.amount + new.amount, max(old.used_at, new.used_at)
        unsent[-1].pending = old._replace(amount=amount, used_at=used_at)
        return True

    def _bring_back(self, now: int) -> None:
        for line in self.lines:
            if line.until is not None and line.until > now:
                line.until = accounting.until(line.until, line.lasts, now)

    def _due_batch(self, now: int) -> list[_Line]:
        sending = [line for line in self.lines if line.state is State.SENDING]
        under_way = {line.key for line in sending if not line.is_due(now) and not line.event}
        due = (line.batch for line in sending if line.is_due(now) and (line.event or line.key not in under_way))
        batch = next(due, None)
        return [line for line in self.lines if batch is not None and line.batch == batch]

    def _new_batch(self, size: int, now: int) -> list[_Line]:
        lines = self._next_usages(now)[:size]
        if not lines:
            events = [line for line in self.lines if line.state is State.UNSENT and line.event and line.is_due(now)]
            lines = events[: size * accounting.BATCH_EVENTS_PER_USAGE]
        if not lines:
            return []
        batch, ticket = f"batch-{next(self._ids)}", next(self._tickets)
        befores: dict[UsageKey, Before | None] = {}
        for key in {line.key for line in lines} & self.rows.keys():
            self.rows[key], befores[key] = accounting.taken(self.rows[key], ticket, self._is_alone(key))
        for line in lines:
            used_at = accounting.sent_at(line.pending.period, line.pending.used_at, self._time_of_use())
            line.pending = line.pending._replace(used_at=used_at, ticket=ticket)
            line.state, line.batch, line.before = State.SENDING, batch, befores.get(line.key)
        return lines

    def _is_alone(self, key: UsageKey) -> bool:
        return not any(line.key == key and line.state in (State.SENDING, State.UNCERTAIN) for line in self.lines)

    def _next_usages(self, now: int) -> list[_Line]:
        """The oldest unsent usage of each key, where none of the key is under way or due for a decision."""
        found, passed = [], set()
        blocked = {line.key for line in self.lines if not line.event and _blocks(line)}
        for line in self.lines:
            if line.state is State.UNSENT and not line.event and line.key not in passed:
                passed.add(line.key)
                if line.key not in blocked and line.is_due(now):
                    found.append(line)
        return found

    def _having(self, ids: Sequence[str]) -> list[_Line]:
        return [line for line in self.lines if str(line.number) in set(ids)]


def _blocks(line: _Line) -> bool:
    return line.state is State.SENDING or (line.state is State.UNCERTAIN and line.until is not None)


def _held_entry(part: _Part) -> Entry:
    return Entry(
        part.hold, State.HELD, part.key, units(part.amount), False, part.taken_at * 1000, period=part.period,
        first_at=part.taken_at,
    )  # fmt: skip


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)

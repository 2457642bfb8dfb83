"""A random schedule: processes on one ledger, before a sidecar that is late, lags and changes plans.

What is checked: S, of no period more is sold than its limit; L, once all came to rest, ``consume`` allows what
``check`` does; C, each unit that was committed is in the sidecar's books once.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from stigg_guard.amounts import quanta, units
from stigg_guard.clock import Clock
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
    Period,
    State,
    UsageKey,
    Use,
    accounting,
)
from stigg_guard.ledger.accounting import UNTOLD

from .plain import PlainLedger
from .setting import BLIND, FLIGHT, GRACE, HOLD, LEASE, START, TTL, drawn
from .truth import Arrived, Meter, Sale, Sidecar

CUSTOMER = "ann"
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass
class Held:
    hold: Hold
    sales: dict[str, Sale]


@dataclass
class Process:
    """One of those that sell and report. ``offset`` is by how much its host's clock is off."""

    offset: int
    news: dict[str, News] = field(default_factory=dict)
    kept_at: int = -99
    made_of: int = 0
    refused_at: int = -99
    fetches: list[tuple[int, int, int]] = field(default_factory=list)
    sent: list[tuple[Batch, int]] = field(default_factory=list)
    answers: list[tuple[Callable[[], None], int]] = field(default_factory=list)
    holds: list[Held] = field(default_factory=list)


class World:
    """One run. ``ledger`` makes the ledger from the ledger's clock and what reads the time of a use."""

    def __init__(
        self, seed: int, ledger: Callable[[Clock, float, Callable[[], int]], Ledger] = PlainLedger, **given: Any
    ) -> None:
        rng = self.rng = random.Random(seed)
        setting = self.setting = drawn(rng, given)
        meters = {
            name: Meter(rng, setting.manner, [plan[name] for plan in setting.plans], START) for name in setting.features
        }
        self.sidecar = Sidecar(meters, START, setting.manner.lag)
        self.skew = 0
        self.acting = Process(0)
        self.ledger = ledger(Clock(self.monotonic, self.now), GRACE * setting.tick / 1e9, self.read)
        self.processes = [self.new_process() for _ in range(3)]
        self.sales: dict[str, list[Sale]] = {}
        self.taken_at: dict[str, int] = {}
        self.committed: Counter[str] = Counter()
        self.given_back: Counter[str] = Counter()
        self.refused: set[str] = set()
        self.poison: str | None = None
        self.down_until = 0
        self.story: list[str] | None = None
        self.steps = 0
        self.doubts: Counter[str] = Counter()
        self.kills = setting.kills
        self.others = 0

    # -- clocks ---------------------------------------------------------------------------------------------------

    def seconds(self, ticks: float) -> float:
        return ticks * self.setting.tick / 1e9

    def monotonic(self) -> float:
        return self.seconds(self.sidecar.now)

    def now(self) -> datetime:
        return _EPOCH + timedelta(microseconds=(self.sidecar.now + self.skew) * self.setting.tick // 1000)

    def read(self) -> int:
        return (self.sidecar.now + self.skew + self.acting.offset) * self.setting.tick

    def new_process(self) -> Process:
        return Process(self.rng.randint(-self.setting.clocks, self.setting.clocks))

    def told_period(self, period: Period) -> Period:
        return Period(*(end if end is None else end * self.setting.tick for end in period))

    def note(self, *words: Any) -> None:
        if self.story is not None:
            for name, meter in self.sidecar.meters.items():
                words = (
                    *words,
                    f"| {name} true {meter.period} {meter.usage}/{meter.limit} row {self.ledger.known(key_of(name))}",
                )
            self.story.append(f"t={self.sidecar.now - START} " + " ".join(map(str, words)))

    # -- steps ----------------------------------------------------------------------------------------------------

    def step(self) -> None:
        self.steps += 1
        self.acting = self.rng.choice(self.processes)
        if self.rng.random() < self.setting.pace:
            self.pass_time()
            return
        actions, weights = zip(*self.possible(), strict=True)
        self.rng.choices(actions, weights)[0]()

    def possible(self) -> Iterator[tuple[Callable[[], None], float]]:
        """What the acting process may do, and how likely it does."""
        one, setting, now = self.acting, self.setting, self.sidecar.now
        yield self.take, 0.1
        yield self.decide, 0.02
        yield self.person, 0.01
        yield self.record, setting.records
        if self.kills:
            yield self.kill, 0.003
        if one.news and (now - one.kept_at < TTL or self.is_down):
            yield self.use, 0.36 if now > one.refused_at else 0.1
        if one.fetches:
            yield self.arrive, 0.2
        elif not self.is_down:
            yield self.fetch, 0.1
        if one.holds:
            yield self.end, 0.16
        if one.sent:
            yield self.deliver, 0.2
        if any(due <= now for _, due in one.answers):
            yield self.hear, 0.2

    def pass_time(self) -> None:
        rng, setting = self.rng, self.setting
        self.sidecar.pass_time()
        for process in self.processes:
            if process.holds:
                self.ledger.renew([held.hold for held in process.holds], self.seconds(HOLD))
        if rng.random() < setting.changes and self.sidecar.now > START + 2 * BLIND:  # not before the first contact
            self.sidecar.change(rng.randrange(4))
        if setting.clocks and rng.random() < 0.01:
            self.acting.offset = rng.randint(-setting.clocks, setting.clocks)
        if rng.random() < setting.set_back:
            self.skew -= rng.randint(1, 60)
        if rng.random() < setting.leaps:
            self.skew += rng.randint(1, 60)
        if rng.random() < setting.outages:
            self.down_until = self.sidecar.now + rng.randint(1, 12)
        self.poison = rng.choice(setting.features) if rng.random() < setting.refusals else None

    @property
    def is_down(self) -> bool:
        return self.sidecar.now < self.down_until

    def use(self) -> None:
        features = self.rng.sample(list(self.setting.features), self.rng.randint(1, len(self.setting.features)))
        self.hold({name: self.rng.randint(1, 3) * self.setting.quantum for name in features})

    def hold(self, amounts: Mapping[str, int]) -> Held | None:
        process = self.acting
        claims = [Claim(key_of(name), units(amount), self.news(process, name)) for name, amount in amounts.items()]
        for claim in claims:
            meter, row = self.sidecar.meters[claim.key.feature_id], self.ledger.known(claim.key)
            if process.made_of >= meter.changed_at and (row is None or claim.news.ticket > row.seen):
                meter.heard = meter.epoch
            if row is None and meter.entered_at > self.sidecar.now - GRACE:  # it may yet be told of the period before
                meter.blind_until = self.sidecar.now + BLIND
        answer = self.ledger.hold(claims, self.seconds(HOLD))
        self.note("hold", amounts, process.news, type(answer).__name__)
        if isinstance(answer, LimitExceeded):
            process.refused_at = self.sidecar.now
            return None
        held = Held(
            answer,
            {name: Sale(amount, self.sidecar.now, self.sidecar.meters[name].heard) for name, amount in amounts.items()},
        )
        process.holds.append(held)
        return held

    def news(self, process: Process, name: str) -> News:
        return process.news[name]

    def end(self) -> None:
        """Commits a hold with all or some of it, or gives it back."""
        rng = self.rng
        held = rng.choice(self.acting.holds)
        self.acting.holds.remove(held)
        if rng.random() < 0.25:
            self.ledger.release(held.hold)
            self.note("release", held.sales)
            return
        self.commit(
            held,
            {
                name: sale.amount if rng.random() < 0.9 else rng.randint(0, sale.amount)
                for name, sale in held.sales.items()
            },
        )

    def commit(self, held: Held, amounts: Mapping[str, int]) -> None:
        uses = [Use(key_of(name), units(amount), event=self.event()) for name, amount in amounts.items()]
        self.ledger.commit(held.hold, uses, repeated=self.rng.random() < 0.2)
        for use in uses:
            self.into(use, held.sales[use.key.feature_id]._replace(amount=quanta(use.amount)))
        self.note("commit", uses)

    def event(self) -> Event | None:
        return Event("used", f"key-{self.rng.random()}", {}) if self.rng.random() < self.setting.events else None

    def into(self, use: Use, sale: Sale | None) -> None:
        """Notes which entry the use is in, and its sale with it."""
        name, amount = use.key.feature_id, quanta(use.amount)
        if amount or use.is_set:
            unsent = [
                int(entry.id)
                for entry in self.ledger.entries([State.UNSENT], 1000)
                if entry.key == use.key and (entry.event is None) == (use.event is None)
            ]
            self.sales.setdefault(str(max(unsent)), []).extend([sale] if sale else [])
        if not use.is_set:
            self.committed[name] += max(amount, 0)
            self.given_back[name] += min(amount, 0)

    def record(self) -> None:
        """Usage without a hold: more, fewer, or a total."""
        rng, name = self.rng, self.rng.choice(self.setting.features)
        amount, is_set = rng.randint(1, 3) * self.setting.quantum, rng.random() < self.setting.totals
        if not is_set and rng.random() < self.setting.given_back:
            amount = -amount
        use = Use(key_of(name), units(amount), is_set=is_set, event=None if is_set else self.event())
        self.ledger.record(use)
        self.into(use, None)
        self.note("record", use)

    def fetch(self) -> None:
        number, at = self.ledger.ticket(CUSTOMER)
        self.acting.fetches.append((number, self.asked_at(at), self.sidecar.now))

    def asked_at(self, at: int) -> int:
        return at

    def take(self) -> None:
        batch = self.ledger.take_batch(100, self.seconds(LEASE))
        if batch is None:
            return
        came_again = batch.reports[0].attempts > 1
        may_repeat = self.setting.keys or all(report.is_set or report.event for report in batch.reports)
        self.note("take", batch.id, [(report.id, report.amount, report.attempts) for report in batch.reports])
        if came_again and not may_repeat:
            self.ledger.put_back([report for report in batch.reports if report.is_set])
            deltas = [report for report in batch.reports if not report.is_set]
            self.ledger.doubt(deltas, self.seconds(GRACE), "no answer")
        elif self.is_down:
            if came_again:
                self.ledger.postpone(batch, self.seconds(1))
            else:
                self.ledger.put_back(batch.reports)
        else:
            self.acting.sent.append((batch, self.sidecar.now))

    def arrive(self) -> None:
        """A question for the customer's entitlements is answered."""
        number, at, asked_at = self.acting.fetches.pop()
        if self.sidecar.now - asked_at <= FLIGHT and not self.is_down:
            self.answer(self.acting, number, at, self.sidecar.replica(self.rng))

    def answer(self, process: Process, number: int, at: int, index: int) -> None:
        if process.news and next(iter(process.news.values())).ticket > number:
            return
        told = self.sidecar.told[index][1]
        process.made_of, process.kept_at = index, self.sidecar.now
        process.news = {
            name: News(self.told_period(period), max(used, 0), limit, number, at)
            for name, (period, used, limit) in told.items()
        }

    def deliver(self) -> None:
        """A batch comes to the sidecar, or is lost. It is counted or refused; the answer may be lost, or come late."""
        rng, process, now = self.rng, self.acting, self.sidecar.now
        batch, sent_at = process.sent.pop(rng.randrange(len(process.sent)))
        if rng.random() < 0.1 or now - sent_at >= LEASE or self.is_down:
            return
        is_new = not any(self.sidecar.times[report.id] for report in batch.reports)
        if is_new and any(report.key.feature_id == self.poison for report in batch.reports):
            if rng.random() < 0.5:
                self.refuse(batch)
            return
        answers = [self.counted(report, batch.id) for report in batch.reports]
        self.note("counted", batch.id, answers)
        if rng.random() < 0.85:
            due = now + (rng.randint(LEASE, 4 * LEASE) if rng.random() < self.setting.pauses else 0)
            process.answers.append((lambda: self.ledger.acknowledge(answers), due))

    def counted(self, report: Entry, batch: str) -> Acknowledged:
        key = report.event.idempotency_key if report.event else batch if self.setting.keys else None
        manner, now = self.setting.manner, self.sidecar.now
        seen_at = now + self.rng.randint(0, manner.events_lag)
        sales = self.sales.get(report.id, [])
        arrived = Arrived(quanta(report.amount), report.is_set, report.used_at // self.setting.tick, sales, seen_at)
        answer = self.sidecar.count(report.key.feature_id, report.id, key, arrived, is_event=report.event is not None)
        if answer is None or self.rng.random() >= self.setting.figures:
            return Acknowledged(report, None)
        return Acknowledged(report, units(max(answer.used, 0)), self.told_period(answer.period))

    def refuse(self, batch: Batch) -> None:
        if len(batch.reports) > 1:
            self.ledger.split(batch)
        else:
            self.ledger.bury(batch.reports[0], "refused")

    def hear(self) -> None:
        """An answer comes back to who asked."""
        answer = self.rng.choice([one for one in self.acting.answers if one[1] <= self.sidecar.now])
        self.acting.answers.remove(answer)
        answer[0]()
        self.note("heard")

    def decide(self) -> None:
        """Reads back what became of the uncertain reports."""
        if self.is_down:
            return
        for entry in self.ledger.take_uncertain(100, self.seconds(LEASE)):
            told = self.sidecar.told[self.sidecar.replica(self.rng)][1][entry.key.feature_id]
            period, used = self.told_period(told[0]), max(told[1], 0)
            hides = period == UNTOLD and self.sidecar.meters[entry.key.feature_id].begins_anew
            row = None if hides else self.ledger.known(entry.key)  # as the settlement does
            found = accounting.was_counted(row, entry.before, entry.pending, used, period)
            self.note("read back", entry.id, entry.amount, used, found, "counted", self.sidecar.times[entry.id])
            if found is None:
                self.doubts["person"] += 1
                self.ledger.doubt([entry], None, "who knows")
                continue
            changed = any(at >= self.taken_at.get(entry.id, 0) for at in self.sidecar.changes)
            wrong = "wrong, away and back" if changed else "wrong"
            self.doubts["right" if found == bool(self.sidecar.times[entry.id]) else wrong] += 1
            if found:
                self.ledger.acknowledge([Acknowledged(entry, units(used), period)])
            else:
                self.ledger.put_back([entry])

    def person(self) -> None:
        """Somebody who looked into the sidecar's books decides one of those that wait."""
        waiting = self.ledger.entries([State.DEAD, State.UNCERTAIN], 1000)
        if waiting:
            self.decided(self.rng.choice(waiting))

    def decided(self, entry: Entry) -> None:
        if self.sidecar.times[entry.id]:
            self.ledger.discard([entry.id])
        else:
            self.ledger.retry([entry.id])
            if entry.state is State.DEAD:
                self.sales[entry.id] = []  # it did not count any more, and comes on top of what was sold meanwhile
        self.note("person", entry.id, "counted" if self.sidecar.times[entry.id] else "again")

    def kill(self) -> None:
        """A process is killed, with what it held, sent and was about to hear."""
        self.kills -= 1
        self.processes[self.processes.index(self.acting)] = self.new_process()
        self.note("kill", len(self.acting.holds), len(self.acting.sent), len(self.acting.answers))

    # -- the end --------------------------------------------------------------------------------------------------

    def run(self, steps: int) -> str | None:
        """Makes the steps, lets all come to rest; the fault that was found."""
        for _ in range(steps):
            self.step()
            if self.oversold:
                break
        fault = self.settle()
        return f"S: {self.oversold} more than the limit" if self.oversold else fault

    @property
    def oversold(self) -> int:
        return max(meter.worst for meter in self.sidecar.meters.values())

    def settle(self) -> str | None:
        self.down_until, self.poison = 0, None
        for process in self.processes:
            self.acting = process
            process.sent.clear()
            process.answers.clear()
            for held in list(process.holds):
                process.holds.remove(held)
                self.commit(held, {name: sale.amount for name, sale in held.sales.items()})
        for _ in range(400):
            if not any(
                self.ledger.counts()[state.value]
                for state in (State.UNSENT, State.SENDING, State.UNCERTAIN, State.DEAD)
            ):
                break
            self.sidecar.pass_time()
            self.decide()
            for entry in self.ledger.entries([State.DEAD, State.UNCERTAIN], 1000):
                if entry.state is State.DEAD or entry.reason == "who knows":
                    self.decided(entry)
            self.take()
            for batch, _ in self.acting.sent:
                self.ledger.acknowledge([self.counted(report, batch.id) for report in batch.reports])
            self.acting.sent.clear()
        else:
            return "C: usage never leaves the ledger"
        for _ in range(2 * GRACE + TTL + HOLD + self.setting.manner.events_lag):
            self.sidecar.pass_time()
        return self.lost() or self.disagreement()

    def lost(self) -> str | None:
        if any(word.startswith("wrong,") for word in self.doubts):
            return None
        if self.doubts["wrong"]:
            return "C: an uncertain report was decided wrongly"
        for name, meter in self.sidecar.meters.items():
            there = meter.added, meter.taken_off
            if there != (self.committed[name], self.given_back[name]):
                return (
                    f"C: of {name} {self.committed[name]} and {self.given_back[name]} were committed, {there} counted"
                )
        return None

    def disagreement(self) -> str | None:
        fault = None
        for _ in range(3):  # one snapshot may be doubted for its lag, none that is asked for later
            number, at = self.ledger.ticket(CUSTOMER)
            self.sidecar.say()
            self.answer(self.acting, number, self.asked_at(at), len(self.sidecar.told) - 1)
            fault = next(filter(None, map(self.disagrees, self.setting.features)), None)
            for _ in range(HOLD):
                self.sidecar.pass_time()
        return fault

    def disagrees(self, name: str) -> str | None:
        period, used, limit = self.sidecar.meters[name].shows()
        free = 10**9 if limit is None else limit - max(used, 0)
        fits, too_much = (self.is_free(name, amount) for amount in (max(free, 0), max(free, 0) + 1))
        if (free >= 0 and not fits) or (too_much and limit is not None):
            verdict = "refuses what is free" if not fits else "allows more"
            row = self.ledger.known(key_of(name))
            return f"L: check says {used} of {limit} of {name} in {period}, consume {verdict}: {row}"
        return None

    def is_free(self, name: str, amount: int) -> bool:
        held = self.hold({name: amount})
        if held is not None:
            self.acting.holds.remove(held)
            self.ledger.release(held.hold)
        return held is not None


def key_of(feature: str) -> UsageKey:
    return UsageKey(CUSTOMER, "", feature)

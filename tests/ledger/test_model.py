"""A ledger against a model of its sidecar: whatever is done in whatever order, nothing is oversold, lost or doubled.

That the other homes do the same is what the lockstep shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from conftest import ManualClock
from ledger.steps import LEASE, claim, login
from stigg_guard.ledger import (
    Acknowledged,
    Batch,
    Claim,
    Entry,
    Hold,
    Ledger,
    LimitExceeded,
    State,
    UsageKey,
    Use,
    ledger_from_url,
)

GRACE = 10.0
LIMIT = 8.0
SEATS, SITES, LOGINS = KEYS = [UsageKey("ann", "", feature) for feature in ("seats", "sites", "logins")]
ON_THEIR_WAY = [State.UNSENT, State.SENDING, State.UNCERTAIN]


@dataclass(eq=False)
class Flight:
    """A batch in the hands of one process: its own until the lease ends or it is handed on."""

    batch: Batch
    until: float
    answers: Sequence[Acknowledged] = ()


class SidecarModel:
    """Counts every report and every event once."""

    def __init__(self) -> None:
        self.history: dict[UsageKey, list[tuple[float, float]]] = {key: [] for key in KEYS}
        self.sums: Counter[UsageKey] = Counter()
        self._seen: set[str] = set()

    def usage(self, key: UsageKey, until: float = float("inf")) -> float:
        return next((usage for time, usage in reversed(self.history[key]) if time <= until), 0.0)

    def count(self, batch: Batch, now: float) -> list[Acknowledged]:
        for report in batch.reports:
            once = report.event.idempotency_key if report.event else f"{batch.id} {report.id}"
            if once not in self._seen:
                self._seen.add(once)
                self.sums[report.key] += report.amount
                self.history[report.key].append((now, max(0, self.usage(report.key) + report.amount)))
        return [self.answer(report) for report in batch.reports]

    def answer(self, report: Entry) -> Acknowledged:
        return Acknowledged(report, None if report.event else self.usage(report.key))


class LedgerMachine(RuleBasedStateMachine):
    """Some processes that share one ledger: they use units, report them, die, and remember old snapshots."""

    snapshots = Bundle("snapshots")
    holds = Bundle("holds")
    flights = Bundle("flights")
    counted_flights = Bundle("counted_flights")

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.time = ManualClock()
        self.sidecar = SidecarModel()
        self.opened = [self.open()]
        self.held: dict[str, tuple[Hold, float]] = {}
        self.used: Counter[UsageKey] = Counter()
        self.given_up: Counter[UsageKey] = Counter()
        self.owners: dict[str, Flight] = {}
        self.sent: dict[str, list[Entry]] = {}
        self.counted: set[str] = set()
        self.late = 0
        self.numbers = count()

    def open(self) -> Ledger:
        return ledger_from_url(self.url, self.time.clock, settle_grace=GRACE)

    @property
    def ledger(self) -> Ledger:
        return self.opened[-1]

    @property
    def now(self) -> float:
        return self.time.now().timestamp()

    def waiting(self, key: UsageKey, states: Sequence[State]) -> list[float]:
        """What the sidecar has not counted of a key."""
        entries = self.ledger.entries(states, 10_000)
        return [entry.amount for entry in entries if entry.key == key and entry.id not in self.counted]

    def true_usage(self, key: UsageKey) -> float:
        """What is used once everything that adds to it is reported, and nothing that takes away."""
        return self.sidecar.usage(key) + sum(max(amount, 0) for amount in self.waiting(key, ON_THEIR_WAY))

    def units_held(self, key: UsageKey) -> float:
        alive = (hold for hold, until in self.held.values() if until > self.now)
        return sum(wish.amount for hold in alive for wish in hold.claims if wish.key == key)

    def owns(self, flight: Flight) -> bool:
        return self.owners.get(flight.batch.id) is flight and self.now < flight.until

    def may_be_undone(self, flight: Flight) -> bool:
        return self.owns(flight) and self.counted.isdisjoint(report.id for report in flight.batch.reports)

    def count(self, batch: Batch) -> list[Acknowledged]:
        self.counted |= {report.id for report in batch.reports}
        return self.sidecar.count(batch, self.now)

    def use_of(self, key: UsageKey, amount: float) -> Use:
        self.used[key] += amount
        return Use(key, amount, event=login(next(self.numbers)) if key == LOGINS else None)

    # Using units

    @initialize()
    def see_every_key(self) -> None:
        for key in KEYS:
            self.ledger.hold([claim(0, limit=-1, used=0, ticket=self.ledger.ticket("ann"), key=key)], 1)

    @rule(target=snapshots, key=st.sampled_from(KEYS), lag=st.sampled_from([0, 0, 3, GRACE]))
    def fetch(self, key: UsageKey, lag: float) -> Claim:
        ticket = self.ledger.ticket("ann")
        return claim(0, LIMIT, self.sidecar.usage(key, self.now - lag), ticket=ticket, key=key)

    @rule(
        target=holds,
        wishes=st.lists(st.tuples(snapshots, st.integers(0, 6)), min_size=1, max_size=3),
        ttl=st.sampled_from([20, 200]),
    )
    def hold(self, wishes: Sequence[tuple[Claim, int]], ttl: float) -> object:
        claims = [seen._replace(amount=amount) for seen, amount in wishes]
        answer = self.ledger.hold(claims, ttl)
        if isinstance(answer, LimitExceeded):
            assert answer.claim in claims
            assert answer.counted + answer.claim.amount > answer.limit
            return multiple()
        self.held[answer.id] = (answer, self.now + ttl)
        for key in {wish.key for wish in claims}:
            assert self.true_usage(key) + self.units_held(key) <= LIMIT, f"oversold {key}"
        return answer

    @rule(key=st.sampled_from(KEYS), lag=st.sampled_from([0, 3, GRACE]), amount=st.integers(1, 6))
    def use_at_once(self, key: UsageKey, lag: float, amount: int) -> None:
        hold = self.hold([(self.fetch(key, lag), amount)], 20)
        if isinstance(hold, Hold):
            self.commit(hold, 0, again=False)

    @rule(held=st.lists(holds, max_size=3), ttl=st.sampled_from([20, 200]))
    def renew(self, held: Sequence[Hold], ttl: float) -> None:
        self.ledger.renew(held, ttl)
        self.held |= {hold.id: (hold, self.now + ttl) for hold in held if hold.id in self.held}

    @rule(hold=consumes(holds), more=st.integers(-2, 2), again=st.booleans())
    def commit(self, hold: Hold, more: int, again: bool) -> None:
        _, until = self.held.pop(hold.id)
        self.late += until <= self.now
        uses = [self.use_of(wish.key, max(wish.amount + more, 0)) for wish in hold.claims]
        usages = self.ledger.commit(hold, uses)
        if again:
            usages = self.ledger.commit(hold, uses, repeated=True)
        for use, usage in dict(zip([use.key for use in uses], usages, strict=True)).items():
            assert usage >= self.true_usage(use)

    @rule(hold=consumes(holds))
    def release(self, hold: Hold) -> None:
        del self.held[hold.id]
        self.ledger.release(hold)

    @rule(key=st.sampled_from([SEATS, SITES]), amount=st.integers(1, 3))
    def record(self, key: UsageKey, amount: int) -> None:
        assert self.ledger.record(self.use_of(key, amount)) >= self.true_usage(key)

    @rule(key=st.sampled_from([SEATS, SITES]), part=st.floats(0, 1))
    def give_back(self, key: UsageKey, part: float) -> None:
        """Some of what was used, and not more than that."""
        amount = round(part * self.used[key])
        self.ledger.record(self.use_of(key, -amount))

    @rule(seconds=st.sampled_from([0.5, 5, GRACE, LEASE, 120]))
    def wait(self, seconds: float) -> None:
        self.time.advance(seconds)

    # Reporting them

    @rule(target=flights, size=st.sampled_from([1, 2, 100]))
    def take_batch(self, size: int) -> object:
        batch = self.ledger.take_batch(size, LEASE)
        if batch is None:
            return multiple()
        said = [replace(report, attempts=0) for report in batch.reports]
        assert all(report in self.sent.setdefault(batch.id, said) for report in said), "a batch has changed"
        assert batch.id not in self.owners or self.now >= self.owners[batch.id].until, "a lease was not kept"
        flight = self.owners[batch.id] = Flight(batch, self.now + LEASE)
        return flight

    @rule()
    def report_at_once(self) -> None:
        flight = self.take_batch(100)
        if isinstance(flight, Flight):
            self.ledger.acknowledge(self.count(flight.batch))

    @rule(target=counted_flights, flight=consumes(flights))
    def send(self, flight: Flight) -> object:
        if not self.owns(flight):
            return multiple()
        flight.answers = self.count(flight.batch)
        return flight

    @rule(flight=consumes(counted_flights), answers=st.sampled_from([1, 100]))
    def acknowledge(self, flight: Flight, answers: int) -> None:
        if flight.batch.id in self.owners:  # else somebody made up his mind meanwhile
            self.ledger.acknowledge(flight.answers[:answers])

    @rule(flight=consumes(flights), seconds=st.sampled_from([0, 5]))
    def put_back(self, flight: Flight, seconds: float) -> None:
        if self.may_be_undone(flight):
            del self.owners[flight.batch.id]
            self.ledger.put_back(flight.batch.reports, seconds, "no connection")

    @rule(flight=consumes(flights), seconds=st.sampled_from([1, 60]))
    def postpone(self, flight: Flight, seconds: float) -> None:
        if self.owns(flight):
            flight.until = self.now + seconds
            self.ledger.postpone(flight.batch, seconds)

    @rule(flight=consumes(flights))
    def split(self, flight: Flight) -> None:
        if self.may_be_undone(flight):
            del self.owners[flight.batch.id]
            self.ledger.split(flight.batch)

    @rule(flight=consumes(flights))
    def refuse_the_first(self, flight: Flight) -> None:
        if self.may_be_undone(flight):
            del self.owners[flight.batch.id]
            first, *rest = flight.batch.reports
            self.ledger.bury(first, "it is bad")
            self.ledger.put_back(rest)

    @rule(flight=consumes(flights), counts=st.booleans(), seconds=st.sampled_from([0, 10, None]))
    def doubt(self, flight: Flight, counts: bool, seconds: float | None) -> None:
        if self.owns(flight) and all(report.event is None for report in flight.batch.reports):
            if counts:
                self.count(flight.batch)
            del self.owners[flight.batch.id]
            self.ledger.doubt(flight.batch.reports, seconds, "no answer")

    @rule(for_a_person=st.booleans())
    def decide(self, for_a_person: bool) -> None:
        uncertain = self.ledger.take_uncertain(100, LEASE)
        if for_a_person:
            self.ledger.doubt(uncertain, None, "no answer")
        else:
            self.settle_uncertain(uncertain)

    def settle_uncertain(self, uncertain: Sequence[Entry]) -> None:
        for report in uncertain:
            if report.id in self.counted:
                self.ledger.acknowledge([self.sidecar.answer(report)])
            else:
                self.ledger.put_back([report])

    @rule(discard=st.booleans(), which=st.integers(0, 9))
    def clear_up(self, discard: bool, which: int) -> None:
        """A person sends a report again that was not counted, or gives it up."""
        entries = self.ledger.entries([State.DEAD, State.UNCERTAIN], 10_000)
        cases = [entry for entry in entries if entry.id not in self.counted]
        if cases:
            entry = cases[which % len(cases)]
            self.given_up[entry.key] += entry.amount if discard else 0
            assert (self.ledger.discard if discard else self.ledger.retry)([entry.id]) == 1

    @rule()
    def crash(self) -> None:
        """All that processes had in their hands is gone; what is in memory is gone with them."""
        if self.url != "memory://":
            self.opened.append(self.open())
            for flight in self.owners.values():
                flight.until = self.now

    # What always holds

    @invariant()
    def every_use_is_counted_or_waits_or_was_given_up(self) -> None:
        for key in KEYS:
            waits = sum(self.waiting(key, [*ON_THEIR_WAY, State.DEAD]))
            assert self.sidecar.sums[key] + waits + self.given_up[key] == self.used[key], key

    @invariant()
    def no_key_has_two_reports_under_way(self) -> None:
        sending = self.ledger.entries([State.SENDING], 10_000)
        keys = Counter(entry.key for entry in sending if entry.event is None)
        assert set(keys.values()) <= {1}

    @invariant()
    def counts_add_up(self) -> None:
        entries = self.ledger.entries(list(State), 10_000)
        states = Counter(entry.state for entry in entries)
        counts = dict(self.ledger.counts())
        assert counts.pop("waiting") <= counts["uncertain"]
        assert counts == {**{state.value: states[state] for state in State}, "late": self.late}
        for key in KEYS:
            held = sum(entry.amount for entry in entries if entry.state is State.HELD and entry.key == key)
            more = sum(max(entry.amount, 0) for entry in entries if entry.state in ON_THEIR_WAY and entry.key == key)
            assert held == self.units_held(key)
            assert self.ledger.outstanding(key) == held + more

    def teardown(self) -> None:
        try:
            self.everything_arrives_once()
        finally:
            for ledger in self.opened:
                ledger.close()

    def everything_arrives_once(self) -> None:
        states = [*ON_THEIR_WAY, State.DEAD]
        for _ in range(100):
            if not self.ledger.entries(states, 1):
                break
            self.time.advance(120)
            self.settle_uncertain(self.ledger.entries([State.UNCERTAIN], 10_000))
            self.ledger.retry([entry.id for entry in self.ledger.entries([State.DEAD], 10_000)])
            while (batch := self.ledger.take_batch(100, LEASE)) is not None:
                self.ledger.acknowledge(self.count(batch))
        assert self.ledger.entries(states, 1) == []
        for key in KEYS:
            assert self.sidecar.sums[key] + self.given_up[key] == self.used[key]


@pytest.mark.timeout(600)  # a failure takes long to be made small
@pytest.mark.parametrize(("home", "runs"), [("memory", 25), ("file", 10)])
def test_nothing_is_oversold_lost_or_reported_twice(home: str, runs: int, tmp_path: Path) -> None:
    numbers = count()
    run_state_machine_as_test(
        lambda: LedgerMachine("memory://" if home == "memory" else f"sqlite:///{tmp_path}/{next(numbers)}.db"),
        settings=settings(
            max_examples=runs,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
        ),
    )

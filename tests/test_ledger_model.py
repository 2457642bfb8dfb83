"""The ledger against a model: whatever is done in whatever order, nothing is oversold, lost or reported twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    precondition,
    rule,
    run_state_machine_as_test,
)

from conftest import ManualClock
from django_databases import empty_ledger_tables, open_ledger
from redis_server import RedisServer
from stigg_guard.ledger import (
    Acknowledged,
    Batch,
    Claim,
    Entry,
    Event,
    Hold,
    Refused,
    State,
    UsageKey,
    Use,
)

PERIOD = 1000.0
GRACE = 10.0
LEASE = 30.0
LIMIT = 12.0
MONTHLY, SEATS, LOGINS = (UsageKey("ann", "", feature) for feature in ("monthly", "seats", "logins"))
SITE = UsageKey("ann", "site-01", "monthly")
KEYS = (MONTHLY, SITE, SEATS, LOGINS)
REPORTED = [State.UNSENT, State.SENDING, State.UNCERTAIN, State.DEAD]

Period = tuple[UsageKey, float]


def period_of(key: UsageKey, time: float) -> Period:
    """The usage period of a key at a time; only the monthly feature has several."""
    return key, time // PERIOD * PERIOD if key.feature_id == "monthly" else 0.0


@dataclass(frozen=True)
class Snapshot:
    key: UsageKey
    usage: float
    period_start: float
    ticket: int
    fetched_at: float

    def claim(self, amount: float) -> Claim:
        return Claim(self.key, amount, LIMIT, self.usage, self.period_start, self.ticket, self.fetched_at)


@dataclass(eq=False)
class Flight:
    """A batch in the hands of one process: its own until the lease ends or it is handed on."""

    batch: Batch
    until: float
    answers: Sequence[Acknowledged] = ()


class Tally:
    """Amounts by what they do, so that sums can be compared whatever was added up on the way."""

    def __init__(self) -> None:
        self.more = 0.0
        self.less = 0.0
        self.totals: Counter[float] = Counter()

    def add(self, amount: float, is_set: bool, times: int = 1) -> None:
        if is_set:
            self.totals[amount] += times
        elif amount > 0:
            self.more += times * amount
        else:
            self.less += times * amount

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Tally)
        return (self.more, self.less, +self.totals) == (other.more, other.less, +other.totals)

    def __repr__(self) -> str:
        return f"+{self.more} {self.less} ={dict(+self.totals)}"


class SidecarModel:
    """Counts every batch and every event once, and answers questions late."""

    def __init__(self) -> None:
        self.history: dict[Period, list[tuple[float, float]]] = {}
        self.counted = {key: Tally() for key in KEYS}
        self.seen: set[tuple[str, str]] = set()

    def usage(self, period: Period, until: float = float("inf")) -> float:
        return next((usage for time, usage in reversed(self.history.get(period, [])) if time <= until), 0.0)

    def highest(self, key: UsageKey) -> float:
        return max([0.0, *(usage for (of, _), past in self.history.items() if of == key for _, usage in past)])

    def count(self, batch: Batch, now: float) -> list[Acknowledged]:
        for report in batch.reports:
            once = (report.event.idempotency_key, "") if report.event else (batch.id, report.id)
            if once not in self.seen:
                self.seen.add(once)
                self._add(report, now)
        return [self.answer(report) for report in batch.reports]

    def answer(self, report: Entry) -> Acknowledged:
        period = period_of(report.key, report.used_at)
        return Acknowledged(report, None if report.event else self.usage(period), period[1])

    def _add(self, report: Entry, now: float) -> None:
        period = period_of(report.key, report.used_at)
        usage = report.amount if report.is_set else self.usage(period) + report.amount
        self.history.setdefault(period, []).append((now, usage))
        self.counted[report.key].add(report.amount, report.is_set)


def said(report: Entry) -> Entry:
    """What is sent of a report, however often."""
    return replace(report, attempts=0)


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
        self.time.advance(PERIOD - self.now % PERIOD)  # every run begins with a period
        self.sidecar = SidecarModel()
        self.opened = [self.open()]
        self.seen: list[Snapshot] = []
        self.held: dict[str, tuple[Hold, float]] = {}
        self.used: dict[UsageKey, list[tuple[float, Use]]] = {key: [] for key in KEYS}
        self.given_up = {key: Tally() for key in KEYS}
        self.owners: dict[str, Flight] = {}
        self.told: dict[str, dict[str, Entry]] = {}
        self.counted_entries: set[str] = set()
        self.out_of_order: set[UsageKey] = set()
        self.late = 0
        self.event_numbers = count()

    def open(self):
        return open_ledger(self.url, self.time.clock, settle_grace=GRACE)

    @property
    def ledger(self):
        return self.opened[-1]

    @property
    def now(self) -> float:
        return self.time.now().timestamp()

    # What the model says

    def units_held(self, key: UsageKey) -> float:
        alive = (hold for hold, until in self.held.values() if until > self.now)
        return sum(claim.amount for hold in alive for claim in hold.claims if claim.key == key)

    def waits(self, *states: State) -> bool:
        counts = self.ledger.counts()
        return any(counts[state.value] for state in states)

    def waiting(self, key: UsageKey, states: Sequence[State] = REPORTED) -> list[Entry]:
        """What the sidecar has not counted of a key."""
        entries = self.ledger.entries(states, 10_000)
        return [entry for entry in entries if entry.key == key and entry.id not in self.counted_entries]

    def lowest_count(self, key: UsageKey) -> float:
        """The least that must count against the limit, or it is oversold."""
        return self.true_usage(key) + self.units_held(key)

    def true_usage(self, key: UsageKey) -> float:
        """What is used in this period once everything that adds to it is reported, and nothing that takes away."""
        period = period_of(key, self.now)
        on_its_way = [
            report
            for report in self.waiting(key, [State.UNSENT, State.SENDING, State.UNCERTAIN])
            if period_of(key, report.used_at) == period
        ]
        totals = [report.amount for report in on_its_way if report.is_set]
        more = sum(max(report.amount, 0) for report in on_its_way if not report.is_set)
        return max([self.sidecar.usage(period), *totals]) + more

    def highest_count(self, key: UsageKey) -> float:
        """The most that can count against the limit without a unit that was never used or held."""
        entries = [entry for entry in self.ledger.entries(REPORTED[:3], 10_000) if entry.key == key]
        totals = [entry.amount for entry in entries if entry.is_set]
        more = sum(max(entry.amount, 0) for entry in entries if not entry.is_set)
        return max([self.sidecar.highest(key), *totals]) + more + self.units_held(key)

    def owns(self, flight: Flight) -> bool:
        return self.owners.get(flight.batch.id) is flight and self.now < flight.until

    def uncounted(self, flight: Flight) -> bool:
        return self.owns(flight) and not any(report.id in self.counted_entries for report in flight.batch.reports)

    def note_use(self, use: Use) -> None:
        if use.amount or use.is_set:
            self.used[use.key].append((self.now, use))

    def count(self, batch: Batch) -> list[Acknowledged]:
        answers = self.sidecar.count(batch, self.now)
        self.counted_entries |= {report.id for report in batch.reports}
        return answers

    def use_of(self, key: UsageKey, amount: float, *, is_set: bool = False) -> Use:
        event = Event("login", f"login-{next(self.event_numbers)}", {"n": 1.0}) if key == LOGINS else None
        return Use(key, amount, is_set, period_of(key, self.now)[1], event)

    # Using units

    @initialize()
    def see_every_key(self) -> None:
        for key in KEYS:
            start = period_of(key, self.now)[1]
            hold = self.ledger.hold([Claim(key, 0, None, 0, start, self.ledger.ticket("ann"), self.now)], 1)
            assert isinstance(hold, Hold)
            self.ledger.release(hold)

    @rule(target=snapshots, key=st.sampled_from(KEYS), lag=st.sampled_from([0, 0, 3, GRACE]))
    def fetch(self, key: UsageKey, lag: float) -> Snapshot:
        ticket = self.ledger.ticket("ann")
        period = period_of(key, self.now)
        snapshot = Snapshot(key, self.sidecar.usage(period, self.now - lag), period[1], ticket, self.now)
        self.seen.append(snapshot)
        return snapshot

    @rule(
        target=holds,
        wishes=st.lists(st.tuples(snapshots, st.integers(0, 6)), min_size=1, max_size=3),
        ttl=st.sampled_from([20, 200]),
    )
    def hold(self, wishes: Sequence[tuple[Snapshot, int]], ttl: float) -> object:
        claims = [seen.claim(amount) for seen, amount in wishes]
        answer = self.ledger.hold(claims, ttl)
        if isinstance(answer, Refused):
            assert answer.claim in claims
            assert answer.counted + answer.claim.amount > LIMIT
            return multiple()
        self.held[answer.id] = (answer, self.now + ttl)
        for claim in claims:
            assert self.lowest_count(claim.key) <= LIMIT, f"oversold {claim.key}"
        return answer

    @rule(held=st.lists(holds, max_size=3), ttl=st.sampled_from([20, 200]))
    def renew(self, held: Sequence[Hold], ttl: float) -> None:
        self.ledger.renew(held, ttl)
        for hold in held:
            if hold.id in self.held:
                self.held[hold.id] = (hold, self.now + ttl)

    @rule(hold=consumes(holds), more=st.integers(-2, 2))
    def commit(self, hold: Hold, more: int) -> None:
        _, until = self.held.pop(hold.id)
        self.late += until <= self.now
        uses = [self.use_of(claim.key, max(claim.amount + more, 0)) for claim in hold.claims]
        usages = self.ledger.commit(hold, uses)
        for use in uses:
            self.note_use(use)
        for key, usage in {use.key: usage for use, usage in zip(uses, usages, strict=True)}.items():
            assert usage >= self.true_usage(key)

    @rule(hold=consumes(holds))
    def release(self, hold: Hold) -> None:
        del self.held[hold.id]
        self.ledger.release(hold)

    @rule(key=st.sampled_from([MONTHLY, SITE, SEATS]), amount=st.integers(-3, 3))
    def record(self, key: UsageKey, amount: int) -> None:
        use = self.use_of(key, amount)
        usage = self.ledger.record(use)
        self.note_use(use)
        assert usage >= self.true_usage(key)

    @rule(key=st.sampled_from([MONTHLY, SITE, SEATS]), amount=st.integers(0, 9))
    def record_total(self, key: UsageKey, amount: int) -> None:
        use = self.use_of(key, amount, is_set=True)
        self.ledger.record(use)
        self.note_use(use)

    @rule(seconds=st.sampled_from([0.5, 5, GRACE, LEASE, 120, PERIOD]))
    def wait(self, seconds: float) -> None:
        self.time.advance(seconds)

    # Reporting them

    @precondition(lambda self: self.waits(State.UNSENT, State.SENDING))
    @rule(target=flights, size=st.sampled_from([1, 2, 100]))
    def take_batch(self, size: int) -> object:
        batch = self.ledger.take_batch(size, LEASE)
        if batch is None:
            return multiple()
        told = {report.id: said(report) for report in batch.reports}
        assert told.items() <= self.told.setdefault(batch.id, told).items(), "a batch that comes again has changed"
        assert len({report.event is None for report in batch.reports}) == 1
        self.check_one_report_of_each_key()
        assert batch.id not in self.owners or self.now >= self.owners[batch.id].until, "a lease was not kept"
        flight = Flight(batch, self.now + LEASE)
        self.owners[batch.id] = flight
        return flight

    def check_one_report_of_each_key(self) -> None:
        keys = Counter(entry.key for entry in self.ledger.entries([State.SENDING], 10_000) if entry.event is None)
        assert not keys or max(keys.values()) == 1, "two reports of one key are under way"

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

    @rule(flight=consumes(flights))
    def put_back(self, flight: Flight) -> None:
        if self.uncounted(flight):
            del self.owners[flight.batch.id]
            self.ledger.put_back(flight.batch.reports)

    @rule(flight=consumes(flights), seconds=st.sampled_from([1, 60]))
    def postpone(self, flight: Flight, seconds: float) -> None:
        if self.owns(flight):
            flight.until = self.now + seconds
            self.ledger.postpone(flight.batch, seconds)

    @rule(flight=consumes(flights))
    def split(self, flight: Flight) -> None:
        if self.uncounted(flight):
            del self.owners[flight.batch.id]
            self.ledger.split(flight.batch)

    @rule(flight=consumes(flights))
    def refuse_the_first(self, flight: Flight) -> None:
        if self.uncounted(flight):
            del self.owners[flight.batch.id]
            first, *rest = flight.batch.reports
            self.out_of_order.add(first.key)
            self.ledger.bury(first, "it is bad")
            self.ledger.put_back(rest)

    @rule(flight=consumes(flights), counts=st.booleans(), seconds=st.sampled_from([0, 10, None]))
    def doubt(self, flight: Flight, counts: bool, seconds: float | None) -> None:
        if self.owns(flight) and all(report.event is None for report in flight.batch.reports):
            if counts:
                self.count(flight.batch)
            del self.owners[flight.batch.id]
            self.wait_for_a_decision(flight.batch.reports, seconds)

    def wait_for_a_decision(self, reports: Sequence[Entry], seconds: float | None) -> None:
        self.ledger.doubt(reports, seconds, "no answer")
        if seconds is None:
            self.out_of_order |= {report.key for report in reports}

    @precondition(lambda self: self.waits(State.UNCERTAIN))
    @rule(leave_to_a_person=st.booleans())
    def decide(self, leave_to_a_person: bool) -> None:
        uncertain = self.ledger.take_uncertain(100, LEASE)
        if leave_to_a_person:
            self.wait_for_a_decision(uncertain, None)
        else:
            self.settle_uncertain(uncertain)

    def settle_uncertain(self, uncertain: Iterable[Entry]) -> None:
        for report in uncertain:
            if report.id in self.counted_entries:
                self.ledger.acknowledge([self.sidecar.answer(report)])
            else:
                self.ledger.put_back([report])

    @precondition(lambda self: self.waits(State.UNCERTAIN, State.DEAD))
    @rule(discard=st.booleans(), which=st.integers(0, 9))
    def clear_up(self, discard: bool, which: int) -> None:
        """A person sends a report again that was not counted, or gives it up."""
        open_cases = [
            entry
            for entry in self.ledger.entries([State.DEAD, State.UNCERTAIN], 10_000)
            if entry.id not in self.counted_entries
        ]
        if not open_cases:
            return
        entry = open_cases[which % len(open_cases)]
        self.out_of_order.add(entry.key)
        if discard:
            self.given_up[entry.key].add(entry.amount, entry.is_set)
            assert self.ledger.discard([entry.id]) == 1
        else:
            assert self.ledger.retry([entry.id]) == 1

    @precondition(lambda self: self.url != "memory://")
    @rule()
    def crash(self) -> None:
        self.opened.append(self.open())
        for flight in self.owners.values():
            flight.until = self.now

    # What always holds

    @invariant()
    def every_snapshot_leads_to_the_truth(self) -> None:
        """Whichever snapshot somebody still has, and however long it took to arrive."""
        for key in KEYS:
            lowest, highest = self.lowest_count(key), self.highest_count(key)
            for snapshot in self.seen:
                if snapshot.key == key:
                    answer = self.ledger.hold([snapshot.claim(1e9)], 1)
                    assert isinstance(answer, Refused)
                    assert lowest <= answer.counted <= highest, snapshot

    @invariant()
    def every_use_is_counted_or_waits(self) -> None:
        for key in KEYS:
            expected, found = Tally(), Tally()
            for _, use in self.used[key]:
                expected.add(use.amount, use.is_set)
            for entry in self.waiting(key):
                found.add(entry.amount, entry.is_set)
            for tally in (self.sidecar.counted[key], self.given_up[key]):
                found.more += tally.more
                found.less += tally.less
                found.totals += tally.totals
            assert found == expected, key

    @invariant()
    def counts_add_up(self) -> None:
        entries = self.ledger.entries(list(State), 10_000)
        states = Counter(entry.state.value for entry in entries)
        assert self.ledger.counts() == {**{state.value: states[state.value] for state in State}, "late": self.late}
        for key in KEYS:
            held = sum(entry.amount for entry in entries if entry.state is State.HELD and entry.key == key)
            assert held == self.units_held(key)

    def teardown(self) -> None:
        try:
            self.drain()
            self.everything_arrived_once()
        finally:
            for ledger in self.opened:
                ledger.close()

    def drain(self) -> None:
        while any(states := {state: self.ledger.counts()[state.value] for state in REPORTED}.values()):
            self.time.advance(120)
            self.settle_uncertain(self.ledger.entries([State.UNCERTAIN], 10_000))
            self.ledger.retry([entry.id for entry in self.ledger.entries([State.DEAD], 10_000)])
            while (batch := self.ledger.take_batch(100, LEASE)) is not None:
                self.ledger.acknowledge(self.count(batch))
            assert list(states) != [self.ledger.counts()[state.value] for state in REPORTED], "nothing moves any more"

    def everything_arrived_once(self) -> None:
        self.every_use_is_counted_or_waits()
        usage: dict[Period, float] = {}
        for key in set(KEYS) - self.out_of_order:
            for time, use in self.used[key]:
                period = period_of(key, time)
                usage[period] = use.amount if use.is_set else usage.get(period, 0.0) + use.amount
        assert usage == {period: self.sidecar.usage(period) for period in usage}


@pytest.fixture
def fresh_memory() -> Callable[[], str]:
    return lambda: "memory://"


@pytest.fixture
def fresh_file(tmp_path: Path) -> Callable[[], str]:
    numbers = count()
    return lambda: f"sqlite:///{tmp_path}/{next(numbers)}.db"


@pytest.fixture
def fresh_redis(tmp_path: Path) -> Iterator[Callable[[], str]]:
    with RedisServer(tmp_path) as server:

        def emptied() -> str:
            server.client.flushall()
            return f"{server.url}?socket_timeout=30"  # a busy machine is no outage

        yield emptied


@pytest.fixture
def fresh_django_sqlite(django_sqlite: str) -> Callable[[], str]:
    return lambda: emptied_database(django_sqlite)


@pytest.fixture
def fresh_django_postgres(django_postgres: str) -> Callable[[], str]:
    return lambda: emptied_database(django_postgres)


def emptied_database(alias: str) -> str:
    empty_ledger_tables(alias)
    return f"django://{alias}"


@pytest.mark.timeout(600)  # a failure takes long to be made small
@pytest.mark.parametrize(
    ("home", "runs"),
    [
        *(("fresh_memory", 60), ("fresh_file", 40), ("fresh_redis", 25)),
        *(("fresh_django_sqlite", 4), ("fresh_django_postgres", 4)),  # where a step takes ten times as long
    ],
)
def test_nothing_is_oversold_lost_or_reported_twice(request: pytest.FixtureRequest, home: str, runs: int) -> None:
    fresh: Callable[[], str] = request.getfixturevalue(home)  # makes the URL of a new, empty ledger
    run_state_machine_as_test(
        lambda: LedgerMachine(fresh()),
        settings=settings(
            max_examples=runs,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
        ),
    )

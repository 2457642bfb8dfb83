"""The local sidecar's state: what is known of usage and of changes at run time, and how it changes in one step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from threading import Event
from typing import Any, NamedTuple

ANSWERS_KEPT = 24 * 60 * 60.0
"""How long the answer to an idempotency key is repeated, in seconds."""

DECIMALS = 9
"""Of sums of usage: those of binary fractions are not what a person reckons."""


class CounterKey(NamedTuple):
    """The key of a usage counter; ``resource`` and ``period`` are empty where there is none."""

    customer: str
    resource: str
    feature: str
    period: str


class EventKey(NamedTuple):
    """What makes a raw event the same as another; ``resource`` is empty where there is none."""

    stamp: str
    customer: str
    resource: str
    name: str
    idempotency_key: str


class RecordKey(NamedTuple):
    """What a record is kept under: a kind, a customer, and a name where a customer has several of the kind."""

    kind: str
    customer: str
    name: str


class CreditEvent(NamedTuple):
    """What happened to credits: ``amount`` is in quanta, ``at`` an instant in ISO 8601; ``feature`` is empty unless its
    usage was paid."""

    customer: str
    resource: str
    currency: str
    type: str
    credit_grant: str
    feature: str
    amount: int
    at: str


class StoredResponse(NamedTuple):
    """The response kept under an idempotency key, and a digest of the request that it answered."""

    request: bytes
    response: bytes


class StateUnavailable(Exception):
    """The state cannot be written now, or what became of a change is unknown."""


class State(ABC):
    """Usage, deduplication, idempotent answers, and the plans and records of customers that were changed at run time,
    shared by all threads.

    What checks read is known in memory. ``on_change`` is called with the customers whose plans or records have changed,
    None for everybody.
    """

    def __init__(self) -> None:
        self._usage: dict[CounterKey, float] = {}
        self._plans: dict[tuple[str, str], str | None] = {}
        self._records: dict[RecordKey, Mapping[str, Any]] = {}
        self._kept: set[tuple[str, str]] = set()
        self.version = 0
        """Another one after each change."""
        self.on_change: Callable[[frozenset[str] | None], None] = lambda _: None

    def usage(self, key: CounterKey) -> float:
        """The committed usage; 0 if nothing was ever counted."""
        return self._usage.get(key, 0.0)

    def plan(self, customer: str, resource: str, default: str | None) -> str | None:
        """The plan assigned at run time, or the default if there was no assignment; ``None`` is no plan."""
        return self._plans.get((customer, resource), default)

    def has_plan(self, customer: str, resource: str) -> bool:
        """Whether a plan was ever assigned at run time."""
        return (customer, resource) in self._plans

    def plans(self) -> dict[tuple[str, str], str | None]:
        """All assignments by customer and resource."""
        return dict(self._plans)

    def record(self, key: RecordKey) -> Mapping[str, Any] | None:
        """What is kept under the key: a JSON object, which must not be changed."""
        return self._records.get(key)

    def has_records(self, kind: str, customer: str) -> bool:
        """Whether the customer has, or had, a record of the kind; fast, for the sake of checks."""
        return (kind, customer) in self._kept

    def records(self, kind: str, customer: str | None = None) -> dict[RecordKey, Mapping[str, Any]]:
        """All records of a kind, or those of one customer."""
        found = list(self._records.items())
        return {key: content for key, content in found if key.kind == kind and customer in (None, key.customer)}

    def keep(self, key: RecordKey, content: Mapping[str, Any] | None) -> None:
        """Keep a record, or with ``None`` forget it."""
        with self.transaction() as transaction:
            transaction.keep(key, content)

    def seed(self, amounts: Mapping[CounterKey, float]) -> None:
        """Set usage to begin with, for those customers' features of which nothing was ever written in any period."""
        with self.transaction() as transaction:
            for key, amount in self._unwritten(amounts):
                transaction.set_usage(key, amount)

    def refresh(self) -> bool:
        """Learn what others have changed; whether there was nothing to learn."""
        return True

    def follow(self, over: Event) -> None:
        """Refresh as soon as others have changed something, until it is over; at once where nobody else can."""
        return

    @abstractmethod
    def transaction(self) -> AbstractContextManager[Transaction]:
        """All that is written within happens at once, or not at all when the block raises. One runs at a time.

        Raises ``StateUnavailable`` when it cannot be written.
        """

    @abstractmethod
    def credit_events(self, customer: str) -> list[CreditEvent]:
        """What happened to the customer's credits, in that order."""

    @abstractmethod
    def close(self) -> None:
        """Give up what is open; a second time does nothing."""

    def _unwritten(self, amounts: Mapping[CounterKey, float]) -> Iterator[tuple[CounterKey, float]]:
        written = {key[:3] for key in list(self._usage)}
        return ((key, amount) for key, amount in amounts.items() if key[:3] not in written)

    def _learn(
        self,
        usages: Mapping[CounterKey, float],
        plans: Mapping[tuple[str, str], str | None],
        records: Mapping[RecordKey, Mapping[str, Any] | None],
    ) -> None:
        """Take in what is committed."""
        self.version += 1
        self._usage.update(usages)
        self._plans.update(plans)
        for key, content in records.items():
            if content is None:
                self._records.pop(key, None)
            else:
                self._records[key] = content
                self._kept.add(key[:2])
        changed = frozenset((*(customer for customer, _ in plans), *(key.customer for key in records)))
        if changed:
            self.on_change(changed)


class Transaction(ABC):
    """One step's reading and writing; made by ``State.transaction``, which commits what is gathered here."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.usages: dict[CounterKey, float] = {}
        self.plans: dict[tuple[str, str], str | None] = {}
        self.kept: dict[RecordKey, Mapping[str, Any] | None] = {}
        self.credit_events: list[CreditEvent] = []
        self.events: dict[EventKey, None] = {}
        self.values: dict[tuple[CounterKey, str], None] = {}
        self.answers: dict[str, tuple[StoredResponse, float]] = {}

    def usage(self, key: CounterKey) -> float:
        """The usage with what this transaction has written."""
        amount = self.usages.get(key)
        return self._state.usage(key) if amount is None else amount

    def set_usage(self, key: CounterKey, amount: float) -> None:
        """Write usage, which others see once the transaction is committed; ten times 0.1 are 1."""
        self.usages[key] = round(amount, DECIMALS)

    def assign_plan(self, customer: str, resource: str, plan: str | None) -> None:
        """Remember a plan; ``None`` is the end of the subscription."""
        self.plans[customer, resource] = plan

    def records(self, kind: str, customer: str) -> dict[RecordKey, Mapping[str, Any]]:
        """The customer's records of a kind, with what this transaction has kept."""
        own = {key: content for key, content in self.kept.items() if key[:2] == (kind, customer)}
        found: Iterable[tuple[RecordKey, Mapping[str, Any] | None]] = {
            **self._state.records(kind, customer),
            **own,
        }.items()
        return {key: content for key, content in found if content is not None}

    def record(self, key: RecordKey) -> Mapping[str, Any] | None:
        """What is kept under the key, with what this transaction has kept."""
        return self.kept[key] if key in self.kept else self._state.record(key)

    def keep(self, key: RecordKey, content: Mapping[str, Any] | None) -> None:
        """Keep a record, or with ``None`` forget it."""
        self.kept[key] = content

    def note(self, event: CreditEvent) -> None:
        """Write down what happened to credits."""
        self.credit_events.append(event)

    def is_new_event(self, key: EventKey) -> bool:
        """Remember the event; false if it was known."""
        is_new = key not in self.events and not self._knows_event(key)
        self.events[key] = None
        return is_new

    def is_new_value(self, key: CounterKey, value: str) -> bool:
        """Remember a value of a dimension that is counted once; false if it was known."""
        is_new = (key, value) not in self.values and not self._knows_value(key, value)
        self.values[key, value] = None
        return is_new

    def answer(self, idempotency_key: str, now: float) -> StoredResponse | None:
        """The answer given under the key, unless it is too old. ``now`` is in seconds since 1970."""
        found = self.answers.get(idempotency_key) or self._stored_answer(idempotency_key)
        if found is None:
            return None
        answer, given_at = found
        return answer if given_at > now - ANSWERS_KEPT else None

    def remember(self, idempotency_key: str, answer: StoredResponse, now: float) -> None:
        """Keep the answer for 24 hours."""
        self.answers[idempotency_key] = (answer, now)

    @abstractmethod
    def _knows_event(self, key: EventKey) -> bool: ...

    @abstractmethod
    def _knows_value(self, key: CounterKey, value: str) -> bool: ...

    @abstractmethod
    def _stored_answer(self, idempotency_key: str) -> tuple[StoredResponse, float] | None: ...

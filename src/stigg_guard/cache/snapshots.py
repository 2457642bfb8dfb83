"""Snapshots of customers' entitlements, kept as the bytes of the sidecar's answer and read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from stigg_guard.amounts import Amount
from stigg_guard.decoding import entitlement_from_wire, ids_and_period_ends
from stigg_guard.entitlements import Entitlement, Reason, Source
from stigg_guard.ledger import Ticket
from stigg_guard.usage.credits import NO_RATES, Rates, told_rates
from stigg_guard.wire.beside import rates, valid_until

AMOUNTS_KEPT = 100
LISTS_KEPT = 256
READ_KEPT = 16
NO_TICKET = Ticket(0, 0)
"""Of a snapshot that counts as no newer than any other."""


class Listed(Mapping[str, Any]):
    """The entitlements of a sidecar's answer by feature id or currency id. What is kept is the bytes of the answer, and
    each entitlement is read from them when it is asked for.

    ``kind`` is the answer's message class, ``ids`` are those of its entitlements in their order, empty for one that is
    left out.
    """

    __slots__ = ("_places", "kind", "payload")

    def __init__(self, response: Any, ids: Sequence[str]) -> None:
        self.kind: Any = type(response)
        self.payload: bytes = response.SerializeToString()
        self._places = _places(tuple(ids))

    def __getitem__(self, named: str) -> Any:
        return _read(self.kind, self.payload).entitlements[self._places[named]]

    def __contains__(self, named: object) -> bool:
        return named in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@lru_cache(maxsize=READ_KEPT)
def _read(kind: Any, payload: bytes) -> Any:
    """The message, which nobody changes; the last ones are kept for who asks for one entitlement after another."""
    return kind.FromString(payload)


@lru_cache(maxsize=LISTS_KEPT)
def _places(ids: tuple[str, ...]) -> Mapping[str, int]:
    """Where each is in the list; customers of the same plan share it."""
    return {named: place for place, named in enumerate(ids) if named}


class Snapshot:
    """All entitlements of a customer, as one fetch got them.

    ``messages`` are the wire's entitlements by feature id or currency id, read when they are first asked for;
    ``denial`` is the reason why the customer has none at all. ``ticket`` orders snapshots and reports of a customer: a
    later fetch has a higher one, drawn before it began. ``period_ends`` are the ends of usage periods, and of what the
    source says to hold for a time, in seconds since the epoch. ``rates`` are what the source says that features cost
    which a wallet of credits pays for. ``source`` marks the answers: ``CACHE``, or ``OFFLINE``.

    ``answers`` are what checks are answered from: with our own usage since the fetch. ``fetched`` are those with such
    usage as they came. What was asked for alone, because the list lacks it, joins the answers, or ``missing`` when no
    such feature exists. ``begun_at`` is when its fetch began, in seconds since the epoch; ``fetched_at``,
    ``fresh_until`` and ``stale_until`` are on the monotonic clock. ``stamp`` is when the fetch began for other
    processes, 0 when they do not know.
    """

    __slots__ = (
        "_allowed",
        "answers",
        "begun_at",
        "denial",
        "fetched",
        "fetched_at",
        "fresh_until",
        "messages",
        "missing",
        "period_ends",
        "rates",
        "source",
        "stale_until",
        "stamp",
        "ticket",
    )

    def __init__(
        self,
        messages: Mapping[str, Any],
        denial: Reason | None,
        ticket: Ticket,
        *,
        period_ends: Sequence[float] = (),
        rates: Rates = NO_RATES,
        source: Source = Source.CACHE,
    ) -> None:
        self.messages = messages
        self.denial = denial
        self.ticket = ticket
        self.period_ends = period_ends
        self.rates = rates
        self.source = source
        self.stamp = 0
        self.answers: dict[str, Entitlement] = {}
        self.fetched: dict[str, Entitlement] = {}
        self.missing: dict[str, Entitlement] = {}
        self._allowed: dict[tuple[str, float], tuple[Entitlement, Entitlement]] = {}
        self.begun_at = 0.0
        self.fetched_at = 0.0
        self.fresh_until = 0.0
        self.stale_until = 0.0

    def allowed(self, answer: Entitlement, amount: Amount) -> Entitlement | None:
        """What the answer to a feature allows of an amount, made once; None where it denies, or cannot say."""
        if type(amount) is not int and type(amount) is not float:
            return None
        asked = answer.feature_id, amount
        known = self._allowed.get(asked)
        if known is None or known[0] is not answer:
            allowed = answer.allows(amount)
            if not allowed or allowed.needs_fresh_check:
                return None
            if len(self._allowed) >= AMOUNTS_KEPT:
                self._allowed.clear()
            known = self._allowed[asked] = answer, allowed
        return known[1]

    def find(self, feature_id: str) -> Entitlement | None:
        """The answer for a feature or currency; None when the list lacks it and it was not asked for alone."""
        answer = self.answers.get(feature_id)
        if answer is None and feature_id in self.messages:
            answer = entitlement_from_wire(self.messages[feature_id], feature_id=feature_id, source=self.source)
            answer = self.answers.setdefault(feature_id, answer)
        return answer


def snapshot_of(response: Any, ticket: Ticket, source: Source = Source.CACHE) -> Snapshot:
    """The snapshot of a sidecar's answer: ``GetEntitlementsStateV2Response`` or ``GetEntitlementsResponse``."""
    denied = response.HasField("access_denied_reason") and response.access_denied_reason
    ids, period_ends = ids_and_period_ends(response.entitlements)
    until = valid_until(response)
    if until is not None:
        period_ends.add(until)
    denial = Reason.from_wire(response.access_denied_reason) if denied else None
    costs = told_rates(rates(response))
    ends = sorted(period_ends)
    return Snapshot(Listed(response, ids), denial, ticket, period_ends=ends, rates=costs, source=source)

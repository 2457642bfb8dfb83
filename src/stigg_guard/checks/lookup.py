"""Finds answers: in the cache, from the sidecar, else stale if error, from fallbacks or by the outage policy."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import inf
from types import MappingProxyType
from typing import Any

from stigg_guard.amounts import Amount
from stigg_guard.cache.shared import NOT_SHARED, AllOf, SharedSnapshots
from stigg_guard.cache.snapshots import NO_TICKET, Snapshot, snapshot_of
from stigg_guard.cache.ttl_cache import SnapshotCache, cache_key
from stigg_guard.checks.client_factory import client_of
from stigg_guard.checks.outage import OutagePolicy, assumed, fallen_back
from stigg_guard.client import OFFLINE_REFUSES, Stigg
from stigg_guard.clock import Clock
from stigg_guard.config import Config
from stigg_guard.decoding import entitlement_from_wire
from stigg_guard.entitlements import Customer, Entitlement, Reason, Source, changed, require_id
from stigg_guard.errors import ClientClosed, LedgerUnavailable, NotSupported, SidecarError, StiggGuardError
from stigg_guard.fallbacks import Fallback
from stigg_guard.ledger import Ledger, Ticket, UsageKey
from stigg_guard.observer import Audience, Observer
from stigg_guard.offline import OfflineReports
from stigg_guard.runtime.forks import PerProcess
from stigg_guard.wire import sidecar_pb2 as wire

# A denial is not given from a snapshot older than this: who has just bought more must not be turned away for CACHE_TTL.
DENIAL_SECONDS = 1.0

SPREAD = 0.1
"""By which part of its TTL a snapshot may be refreshed early where requests are counted: those that were fetched
together are not all fetched together again."""
MAX_RELOADED = 10
"""For how many customers of one change the sidecar is made to read them again at once; for more, when it is asked."""


class Lookup:
    """Answers for customers. The ``ledger`` orders a customer's snapshots and reports, and says what is on its way.

    ``stigg`` is the client to ask; without one it is made from the configuration on first use, and closed with this.
    It calls the ``audience`` for each fetch, and for what is invalidated.
    """

    def __init__(
        self, config: Config, clock: Clock, ledger: Ledger, stigg: Stigg | None, audience: Audience | None = None
    ) -> None:
        self._config = config
        self._clock = clock
        self._ledger = ledger
        self._audience = audience or Audience(clock)
        self._stigg = stigg
        self._owns_stigg = stigg is None
        self._making = PerProcess(threading.Lock)
        self._closed = False
        self._outage = OutagePolicy(config)
        self._outdated: set[Customer] = set()  # whom the sidecar has to read again before it is asked
        self._lists = (self._state_v2, self._state_v1)  # the newest way to list first
        self._way = 0  # which of them this sidecar knows; none of them is the last
        self._has_listed = False
        self.cache = SnapshotCache(
            self._fetch,
            ttl=config.cache_ttl,
            stale_ttl=config.stale_ttl,
            size=config.cache_size,
            patience=config.timeout,
            spread=SPREAD if config.sidecar == "cloud" else 0.0,
            clock=clock,
            shared=self._shared(),
        )

    @property
    def stigg(self) -> Stigg:
        """The client, made on first use."""
        if self._stigg is not None:
            return self._stigg
        with self._making.get():
            if self._closed:
                raise ClientClosed("this guard is closed; make a new one")
            if self._stigg is None:
                self._stigg = client_of(self._config, self._clock)
            return self._stigg

    @property
    def offline(self) -> bool:
        """Whether answers come from a file, and nothing is counted."""
        return self._config.sidecar == "offline" if self._stigg is None else self._stigg.offline

    @property
    def counts(self) -> bool:
        """Whether usage is counted.

        Raises:
            NotSupported: answers come from a file, and ``OFFLINE_REPORTS`` refuses what would not be counted.
        """
        if not self._config.enabled:
            return False
        if not self.offline:
            return True
        reports = self._config.offline_reports if self._stigg is None else self._stigg.offline_reports
        if reports is OfflineReports.REFUSE:
            raise NotSupported(OFFLINE_REFUSES.format("usage"))
        return reports is OfflineReports.KEEP

    def entitlements(self, customer: Customer) -> Mapping[str, Entitlement]:
        """All that the customer's plan has, by feature id and currency id."""
        if not self._config.enabled:
            return MappingProxyType({})
        snapshot, source = self.cache.get(customer)
        answers = ((key, snapshot.find(key)) for key in sorted(snapshot.messages) if snapshot.denial is None)
        return MappingProxyType({key: self._seen(answer, source) for key, answer in answers if answer is not None})

    def reload(self, customer: Customer) -> bool:
        """Reads the customer from the source again; whether it exists."""
        if not self._config.enabled:
            return True
        exists = self._reload(customer)
        self.cache.refresh(customer)
        self._audience.tell(Observer.invalidated, customer)
        return exists

    def forget(self, whose: Customer | AllOf) -> None:
        """Invalidates what was fetched before, in all processes."""
        self.cache.forget(whose)
        self._tell_of(whose)

    def hear(self, customer: Customer) -> None:
        """After news of a change from elsewhere: a cache service reads the customer again before it invalidates what
        was fetched before; without one that is invalidated at once."""
        if not self.cache.shared.tell(AllOf(customer.id)):
            self.forget(customer)

    def outdate(self, customers: frozenset[str] | None) -> None:
        """After a change to these customers, or to anybody: what was fetched before does not answer any more, in any
        process, and the sidecar reads them again before it is asked. This cannot fail."""
        if not self._config.enabled:
            return
        scopes = [AllOf(None)] if customers is None else [AllOf(customer) for customer in customers]
        for scope in scopes:
            self._outdated.update(self.cache.known(scope))
        if customers is not None and len(customers) <= MAX_RELOADED:
            self._reload_outdated(customers)
        for scope in scopes:
            self.forget(scope)

    def close(self) -> None:
        """Closes the client that was made here, and what is shared with other processes."""
        self._closed = True
        self.cache.close()
        if self._owns_stigg and self._stigg is not None:
            self._stigg.close()
        self._outage.close()

    def _reload_outdated(self, customers: frozenset[str]) -> None:
        """At once, so that no process fetches in between what the sidecar knew before; what fails is made up for by
        :meth:`_fetch`."""
        with suppress(StiggGuardError):
            self._outdated.update(map(Customer, customers))
            for customer in [one for one in list(self._outdated) if one.id in customers]:
                self._reload(customer)

    def _reload(self, customer: Customer) -> bool:
        request = wire.ReloadEntitlementsRequest(customer_id=customer.id, resource_id=customer.resource)
        exists = self.stigg.reload_entitlements(request).entitled_entity_exists
        self._outdated.discard(customer)
        return exists

    def decide(
        self,
        feature: str,
        customer: Customer,
        fallback: Fallback | None = None,
        requested_usage: Amount | None = None,
        requested_values: Sequence[str] = (),
        max_age: float = inf,
        denial_age: float = DENIAL_SECONDS,
    ) -> tuple[Entitlement, Snapshot | None]:
        """As :meth:`known`, but where only the sidecar can say whether a requested amount fits, it is asked, with all
        that is held and on its way."""
        answer, snapshot = self.known(
            feature, customer, fallback, requested_usage, requested_values, max_age, denial_age
        )
        if answer and answer.needs_fresh_check and requested_usage is not None:
            return self.checked(answer, customer, fallback=fallback), None
        return answer, snapshot

    def shown(self, feature: str, customer: Customer) -> Entitlement:
        """The answer for display: a denial too is answered from the cache while that is fresh.

        Raises:
            SidecarError: as from :meth:`known`.
        """
        answer, _ = self.decide(feature, customer, denial_age=inf)
        return answer

    def known(
        self,
        feature: str,
        customer: Customer,
        fallback: Fallback | None = None,
        requested_usage: Amount | None = None,
        requested_values: Sequence[str] = (),
        max_age: float = inf,
        denial_age: float = DENIAL_SECONDS,
    ) -> tuple[Entitlement, Snapshot | None]:
        """The answer to what is requested, and the snapshot that it came from when it came from one.

        A snapshot older than ``max_age`` seconds, or ``denial_age`` for a denial, answers only when no other can be
        had.

        Raises:
            SidecarError: there is neither data nor a fallback, and ``ON_OUTAGE`` is ``error``.
            InvalidRequest: the feature id is empty, or the requested usage is no amount.
        """

        def asked(answer: Entitlement) -> Entitlement:
            return answer.allows(requested_usage, requested_values)

        require_id(feature, "feature_id")
        if not self._config.enabled:
            return asked(assumed(feature, has_access=True)), None
        fallback = fallback or self._config.fallbacks.get(feature)
        try:
            found, snapshot = self._looked_up(feature, customer, fallback, max_age)
            answer = asked(found)
            if not answer and denial_age < max_age:
                again, newest = self._looked_up(feature, customer, fallback, denial_age)
                found, snapshot = self._seen(again, found.source) if newest is snapshot else again, newest
                answer = asked(found)
        except SidecarError as error:
            return asked(self._outage.answer(feature, customer, fallback, error)), None
        if answer.reason is Reason.FEATURE_NOT_FOUND and fallback is not None:
            return asked(fallen_back(feature, fallback)), None
        return answer, snapshot

    def checked(
        self, asked: Entitlement, customer: Customer, *, held: bool = False, fallback: Fallback | None = None
    ) -> Entitlement:
        """The sidecar's own answer, now, to what is requested beside all that is on its way; ``held`` says that what is
        requested is among it.

        Raises:
            SidecarError: it does not answer, there is no fallback, and ``ON_OUTAGE`` is ``error``.
        """
        feature, amount = asked.feature_id, asked.requested_usage or 0.0
        try:
            outstanding = self._ledger.outstanding(UsageKey(customer.id, customer.resource or "", feature))
        except LedgerUnavailable:
            outstanding, held = 0.0, False
        wanted = outstanding if held else outstanding + amount
        try:
            answer = _about(feature, self.cache.backoff.ask(lambda: self._single(feature, customer, wanted)))
        except SidecarError as error:
            fallback = fallback or self._config.fallbacks.get(feature)
            return self._outage.answer(feature, customer, fallback, error).allows(amount)
        return changed(answer, requested_usage=amount)

    def _looked_up(
        self, feature: str, customer: Customer, fallback: Fallback | None, max_age: float
    ) -> tuple[Entitlement, Snapshot]:
        snapshot, source = self.cache.get(customer, max_age)
        answer = snapshot.find(feature) if snapshot.denial is None else None  # a denial of the customer goes first
        if answer is None:
            answer = self._missing(feature, customer, snapshot, source, fallback)
        return self._seen(answer, source), snapshot

    def _seen(self, answer: Entitlement, source: Source) -> Entitlement:
        if answer.source is source or answer.source is Source.OFFLINE:
            return answer
        return changed(answer, source=source)

    def _missing(
        self, feature: str, customer: Customer, snapshot: Snapshot, source: Source, fallback: Fallback | None
    ) -> Entitlement:
        if snapshot.denial is not None:
            return Entitlement(feature_id=feature, has_access=False, reason=snapshot.denial, source=source)
        if feature in snapshot.missing:
            return snapshot.missing[feature]
        try:
            answer = _about(feature, self.cache.once((customer, feature), lambda: self._single(feature, customer)))
        except SidecarError as error:
            if self._is_without_list(error) or fallback is not None:
                raise
            reason = Reason.NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION
            return Entitlement(feature_id=feature, has_access=False, reason=reason, source=source)
        self.cache.add(snapshot, answer)
        return answer

    def _tell_of(self, whose: Customer | AllOf) -> None:
        if isinstance(whose, AllOf):
            self._audience.tell(Observer.invalidated, None if whose.customer is None else Customer(whose.customer))
        else:
            self._audience.tell(Observer.invalidated, whose)

    def _fetch(self, customer: Customer) -> Snapshot:
        with self._audience.timed(Observer.fetched, customer):
            return self._fetched(customer)

    def _fetched(self, customer: Customer) -> Snapshot:
        if customer in self._outdated:
            self._reload(customer)
        snapshot = self._listed(customer, self._next_ticket(customer))
        self.stigg.watch(self._heard)
        return snapshot

    def _listed(self, customer: Customer, ticket: Ticket) -> Snapshot:
        """All that the customer has, by the newest way that the sidecar knows; an empty snapshot where it has never
        known any, which each feature is asked into alone.

        Raises:
            SidecarError: it does not answer, or knows this way no more: another came in its place, and all are tried
                at the next fetch.
        """
        for way in range(self._way, len(self._lists)):
            try:
                snapshot = self._lists[way](customer, ticket)
            except NotSupported:
                if self._has_listed and way + 1 == len(self._lists):
                    self._way = 0
                    raise
                continue
            self._way, self._has_listed, self._outage.has_answered = way, True, True
            return snapshot
        self._way = len(self._lists)
        return Snapshot({}, None, ticket)

    def _is_without_list(self, error: SidecarError) -> bool:
        """Whether a failed question about one feature leaves nothing to go by, since the sidecar does not list. One
        that knows neither question is none: another that comes in its place is asked for lists again."""
        is_without = self._way == len(self._lists)
        if is_without and isinstance(error, NotSupported):
            self._way = 0
        return is_without

    def _heard(self, customer: str | None) -> None:
        """The sidecar tells that a customer has changed, or anybody."""
        if not self.cache.shared.tell(AllOf(customer)):
            self.cache.forget(AllOf(customer))

    def _next_ticket(self, customer: Customer) -> Ticket:
        """A checked answer needs no ledger: without one, the snapshot counts as no newer than the last."""
        try:
            return self._ledger.ticket(customer.id)
        except LedgerUnavailable:
            known = self.cache.snapshots.get(cache_key(customer))
            return known.ticket if known is not None else NO_TICKET

    def _state_v2(self, customer: Customer, ticket: Ticket) -> Snapshot:
        request = wire.GetEntitlementsStateV2Request(customer_id=customer.id, resource_id=customer.resource)
        return snapshot_of(self.stigg.get_entitlements_state_v2(request), ticket, self._source)

    def _state_v1(self, customer: Customer, ticket: Ticket) -> Snapshot:
        request = wire.GetEntitlementsRequest(customer_id=customer.id, resource_id=customer.resource)
        return snapshot_of(self.stigg.get_entitlements(request), ticket, self._source)

    @property
    def _source(self) -> Source:
        return Source.OFFLINE if self.offline else Source.CACHE

    def _shared(self) -> SharedSnapshots:
        if self.offline or self._config.cache == "memory://":
            return NOT_SHARED
        from stigg_guard.cache.redis_snapshots import RedisSnapshots

        return RedisSnapshots(self._config, self._clock, self._next_ticket, self._expire)

    def _expire(self, whose: Customer | AllOf, stamp: int) -> None:
        if isinstance(whose, AllOf):
            self._outdated.update(self.cache.known(whose))
        self.cache.expire(whose, stamp)
        self._tell_of(whose)

    def _single(self, feature: str, customer: Customer, requested_usage: float | None = None) -> Entitlement:
        ids: dict[str, Any] = {"customer_id": customer.id, "resource_id": customer.resource, "feature_id": feature}
        if requested_usage is not None:
            ids["options"] = wire.GetEntitlementOptions(requested_usage=requested_usage)
        with self._audience.timed(Observer.fetched, customer, (feature,)):
            try:
                answer: Any = self.stigg.get_entitlement_v2(wire.GetEntitlementV2Request(**ids)).entitlement
            except NotSupported:
                answer = self.stigg.get_entitlement(wire.GetEntitlementRequest(**ids))
        self._outage.has_answered = True
        return entitlement_from_wire(answer, feature_id=feature)


def _about(feature: str, answer: Entitlement) -> Entitlement:
    """The answer, if it is about the feature that was asked about.

    Raises:
        SidecarError: it is about another one.
    """
    if answer.feature_id != feature:
        raise SidecarError(f"the sidecar was asked about {feature!r}, and answered about {answer.feature_id!r}")
    return answer

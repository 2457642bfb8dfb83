"""``Guard``: may this customer use this feature, and how much of it was used?"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf
from types import MappingProxyType, TracebackType
from typing import Any

from stigg_guard.cache import Snapshot, SnapshotCache
from stigg_guard.client import ApiConfig, LocalSidecarConfig, Stigg
from stigg_guard.clock import Clock
from stigg_guard.config import Config, OnOutage, ReportMode, split_address
from stigg_guard.entitlements import (
    Amount,
    Customer,
    Entitlement,
    Kind,
    Reason,
    Source,
    entitlement_from_wire,
    entitlements_by_id,
    usage_amount,
)
from stigg_guard.errors import ClientClosed, FeatureDenied, InvalidRequest, NotSupported, SidecarError
from stigg_guard.fallbacks import Fallback, fallback_answer
from stigg_guard.ledger import Acknowledged, Claim, Hold, Ledger, Refused, UsageKey, ledger_from_url
from stigg_guard.reporter import Reporter
from stigg_guard.wire import sidecar_pb2 as wire

logger = logging.getLogger("stigg_guard")

# A denial is not given from a snapshot older than this: who has just bought more must not be turned away for CACHE_TTL.
DENIAL_SECONDS = 1.0


class Guard:
    """Checks entitlements from a cache, holds what is about to be used, reports what was used.

    One guard serves all threads of a process and survives forks. Nothing is connected, started or opened before the
    first use. ``config`` defaults to the ``STIGG_GUARD_*`` environment variables; ``stigg`` to a client made from it.
    """

    def __init__(self, config: Config | None = None, *, stigg: Stigg | None = None, clock: Clock | None = None) -> None:
        self.config = config if config is not None else Config.from_env()
        self._clock = clock or Clock()
        self._monotonic = self._clock.monotonic
        self._stigg = stigg
        self._owns_stigg = stigg is None
        self._making = threading.Lock()
        self._making_pid = os.getpid()
        self._closed = False
        self._ledger: Ledger = ledger_from_url(self.config.ledger, self._clock)
        self._reporter = Reporter(self._ledger, lambda: self.stigg, self._acknowledged)
        self._cache = SnapshotCache(
            self._fetch,
            ttl=self.config.cache_ttl,
            stale_ttl=self.config.stale_ttl,
            size=self.config.cache_size,
            patience=self.config.timeout,
            clock=self._clock,
        )
        self._snapshots = self._cache.snapshots
        self._list: Callable[[Customer, int], Snapshot] = self._state_v2

    @property
    def stigg(self) -> Stigg:
        """The client, made on first use."""
        if self._stigg is not None:
            return self._stigg
        if self._making_pid != os.getpid():
            self._making, self._making_pid = threading.Lock(), os.getpid()
        with self._making:
            if self._closed:
                raise ClientClosed("this guard is closed; make a new one")
            if self._stigg is None:
                self._stigg = _client(self.config)
            return self._stigg

    def check(
        self,
        feature: str,
        *,
        customer: str | Customer,
        requested_usage: Amount | None = None,
        requested_values: Sequence[str] = (),
        fallback: Fallback | None = None,
    ) -> Entitlement:
        """Whether the customer may use the feature, decided from the cache when it is fresh.

        ``requested_usage`` is in the feature's units, ``requested_values`` for enum features. A credit currency is
        asked for by its own id. ``fallback`` answers when there is no data, before the configured ones.

        Raises:
            SidecarUnavailable: there is neither data nor a fallback, and ``ON_OUTAGE`` is ``error``.
            InvalidRequest: an id is empty, or the requested usage is negative or no finite number.
        """
        if requested_usage is None and not requested_values:
            snapshot = self._snapshots.get(customer)
            if snapshot is not None and self._monotonic() < snapshot.fresh_until:
                answer = snapshot.answers.get(feature)
                if answer is not None and answer.has_access:
                    return answer
        asked = Customer.of(customer)
        answer, _ = self._decided(feature, asked, fallback, requested_usage, requested_values)
        return answer

    def require(
        self,
        feature: str,
        *,
        customer: str | Customer,
        requested_usage: Amount | None = None,
        requested_values: Sequence[str] = (),
        fallback: Fallback | None = None,
    ) -> Entitlement:
        """As :meth:`check`, but a denial is raised.

        Raises:
            FeatureDenied: the customer may not use the feature.
        """
        entitlement = self.check(
            feature,
            customer=customer,
            requested_usage=requested_usage,
            requested_values=requested_values,
            fallback=fallback,
        )
        if not entitlement.has_access:
            raise FeatureDenied(entitlement, Customer.of(customer))
        return entitlement

    def entitlements(self, customer: str | Customer) -> Mapping[str, Entitlement]:
        """All that the customer's plan has, by feature id and currency id; empty without a subscription.

        Raises:
            SidecarUnavailable: there is no data, fresh or stale.
        """
        if not self.config.enabled:
            return MappingProxyType({})
        snapshot, source = self._cache.get(Customer.of(customer))
        answers = ((key, snapshot.find(key)) for key in sorted(snapshot.messages))
        return MappingProxyType({key: self._seen(answer, source) for key, answer in answers if answer is not None})

    def reload(self, customer: str | Customer) -> bool:
        """Reads the customer's entitlements from the source again: for read-after-write, say after an upgrade.

        Tells whether the customer (or its resource) exists.

        Raises:
            SidecarError: the sidecar did not answer; what was cached stays.
        """
        if not self.config.enabled:
            return True
        asked = Customer.of(customer)
        request = wire.ReloadEntitlementsRequest(customer_id=asked.id, resource_id=asked.resource)
        exists = self.stigg.reload_entitlements(request).entitled_entity_exists
        self._cache.refresh(asked)
        return exists

    def report(self, feature: str, value: Amount, *, customer: str | Customer, set_total: bool = False) -> None:
        """Reports usage that already happened: ``value`` units more, fewer when negative, or with ``set_total`` in all.

        It is in the ledger when this returns, and reported by the time that ``REPORT`` says.

        Raises:
            InvalidRequest: the value is not a finite number, or an id is empty.
        """
        amount = usage_amount(value, negative=True)
        asked = Customer.of(customer)
        if self.config.enabled:
            self._ledger.record(_key(_feature_id(feature), asked), amount, is_set=set_total)
            self._send()

    def consume(self, feature: str, n: Amount = 1, *, customer: str | Customer) -> Consumption:
        """Holds ``n`` units while the block runs; reports them when it succeeds, gives them back when it raises.

        ::

            with guard.consume("feature-templates", 2, customer="customer-demo-01") as usage:
                usage.amount = len(create_templates())

        Raises:
            FeatureDenied: on entering, when the units are not to be had; nothing is held.
            SidecarUnavailable: on entering, as for :meth:`check`.
            InvalidRequest: ``n`` is negative or not a finite number.
        """
        return Consumption(self, _feature_id(feature), usage_amount(n), Customer.of(customer))

    def flush(self, timeout: float = 5.0) -> int:
        """Reports what is unsent within about ``timeout`` seconds; the number of reports left in the ledger."""
        return self._reporter.flush(timeout)

    def close(self) -> None:
        """Flushes briefly, then closes the ledger and the client that this guard made. Closing twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self._reporter.close()
        self._ledger.close()
        if self._owns_stigg and self._stigg is not None:
            self._stigg.close()

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decided(
        self,
        feature: str,
        customer: Customer,
        fallback: Fallback | None = None,
        requested_usage: Amount | None = None,
        requested_values: Sequence[str] = (),
    ) -> tuple[Entitlement, Snapshot | None]:
        """The answer, and the snapshot that it came from when it came from one."""

        def asked(answer: Entitlement) -> Entitlement:
            return answer.allows(requested_usage, requested_values)

        _feature_id(feature)
        if not self.config.enabled:
            return asked(_assumed(feature, has_access=True)), None
        fallback = fallback or self.config.fallbacks.get(feature)
        try:
            answer, snapshot = self._looked_up(feature, customer, fallback)
            if not asked(answer):
                answer, snapshot = self._looked_up(feature, customer, fallback, max_age=DENIAL_SECONDS)
        except SidecarError as error:
            return asked(self._without_data(feature, fallback, error)), None
        if answer.reason is Reason.FEATURE_NOT_FOUND and fallback is not None:
            return asked(_fallen_back(feature, fallback)), None
        return asked(answer), snapshot

    def _looked_up(
        self, feature: str, customer: Customer, fallback: Fallback | None, max_age: float = inf
    ) -> tuple[Entitlement, Snapshot]:
        snapshot, source = self._cache.get(customer, max_age)
        answer = snapshot.find(feature)
        if answer is None:
            answer = self._missing(feature, customer, snapshot, source, fallback)
        return self._seen(answer, source), snapshot

    def _seen(self, answer: Entitlement, source: Source) -> Entitlement:
        if answer.source is source or answer.source is Source.OFFLINE:
            return answer
        end = answer.usage_period_end
        if source is Source.STALE and end is not None and end <= self._clock.now():
            rolled = answer.with_usage(0.0)
            return replace(rolled, source=source, usage_period_start=end, usage_period_end=None)
        return replace(answer, source=source)

    def _missing(
        self, feature: str, customer: Customer, snapshot: Snapshot, source: Source, fallback: Fallback | None
    ) -> Entitlement:
        if snapshot.denial is not None:
            return Entitlement(feature_id=feature, has_access=False, reason=snapshot.denial, source=source)
        if feature in snapshot.missing:
            return snapshot.missing[feature]
        try:
            answer = self._cache.once((customer, feature), lambda: self._single(feature, customer))
        except SidecarError:
            if fallback is not None:
                raise
            reason = Reason.NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION
            return Entitlement(feature_id=feature, has_access=False, reason=reason, source=source)
        self._cache.add(snapshot, answer)
        return answer

    def _without_data(self, feature: str, fallback: Fallback | None, error: SidecarError) -> Entitlement:
        if fallback is not None:
            return _fallen_back(feature, fallback)
        if self.config.on_outage is OnOutage.ERROR:
            raise error
        return _assumed(feature, has_access=self.config.on_outage is OnOutage.ALLOW)

    def _fetch(self, customer: Customer) -> Snapshot:
        ticket = self._ledger.ticket(customer.id)
        try:
            return self._list(customer, ticket)
        except NotSupported:
            self._list = self._state_v1 if self._list == self._state_v2 else _no_list
            return self._fetch(customer)

    def _state_v2(self, customer: Customer, ticket: int) -> Snapshot:
        request = wire.GetEntitlementsStateV2Request(customer_id=customer.id, resource_id=customer.resource)
        return self._snapshot(self.stigg.get_entitlements_state_v2(request), ticket)

    def _state_v1(self, customer: Customer, ticket: int) -> Snapshot:
        request = wire.GetEntitlementsRequest(customer_id=customer.id, resource_id=customer.resource)
        return self._snapshot(self.stigg.get_entitlements(request), ticket)

    def _snapshot(self, response: Any, ticket: int) -> Snapshot:
        denied = response.HasField("access_denied_reason") and response.access_denied_reason
        by_id, period_ends = entitlements_by_id(response.entitlements)
        return Snapshot(
            by_id,
            Reason.from_wire(response.access_denied_reason) if denied else None,
            ticket,
            period_ends=period_ends,
            source=Source.OFFLINE if self.stigg.offline else Source.CACHE,
        )

    def _single(self, feature: str, customer: Customer) -> Entitlement:
        ids: dict[str, Any] = {"customer_id": customer.id, "resource_id": customer.resource, "feature_id": feature}
        try:
            answer: Any = self.stigg.get_entitlement_v2(wire.GetEntitlementV2Request(**ids)).entitlement
        except NotSupported:
            answer = self.stigg.get_entitlement(wire.GetEntitlementRequest(**ids))
        return entitlement_from_wire(answer, feature_id=feature)

    def _hold(self, feature: str, amount: float, customer: Customer) -> tuple[Entitlement, Hold | None]:
        asked, snapshot = self._decided(feature, customer, requested_usage=amount)
        if not self.config.enabled:
            return asked, None
        try:
            return asked, self._held(asked, snapshot, amount, customer)
        except FeatureDenied:
            if snapshot is None or self._cache.age(snapshot) <= DENIAL_SECONDS:
                raise
        answer, snapshot = self._looked_up(feature, customer, None, max_age=DENIAL_SECONDS)
        asked = answer.allows(amount)
        return asked, self._held(asked, snapshot, amount, customer)

    def _held(self, asked: Entitlement, snapshot: Snapshot | None, amount: float, customer: Customer) -> Hold:
        if asked.kind is Kind.CREDIT and asked.currency == asked.feature_id:
            raise InvalidRequest("feature_id", f"{asked.currency} is a currency; consume the feature that spends it")
        if not asked and not asked.is_limited:
            raise FeatureDenied(asked, customer)
        held = self._ledger.hold(_claim(asked, snapshot, amount, customer), self.config.hold_ttl)
        if isinstance(held, Refused):
            raise FeatureDenied(asked.with_usage(held.counted).allows(amount), customer)
        return held

    def _commit(self, hold: Hold, amount: float) -> None:
        key = hold.claim.key
        counted = self._ledger.commit(hold, amount)
        self._cache.correct(_customer(key), key.feature_id, counted)
        if amount:
            self._send()

    def _release(self, hold: Hold) -> None:
        self._ledger.release(hold)

    def _send(self) -> None:
        if self.config.report is ReportMode.INLINE:
            try:
                self._reporter.drain()
                return
            except SidecarError as error:
                logger.warning("usage is not reported yet and stays in the ledger: %s", error)
        self._reporter.notify()

    def _acknowledged(self, answer: Acknowledged) -> None:
        key = answer.report.key
        if answer.current_usage is not None:
            self._cache.correct(_customer(key), key.feature_id, answer.current_usage)


class Consumption:
    """Units held for a block of work. Made by :meth:`Guard.consume`, entered once.

    ``amount`` is what will be reported: the held units unless the block sets another number. ``entitlement`` is the
    answer that allowed the hold.
    """

    __slots__ = ("_amount", "_customer", "_feature", "_guard", "_hold", "entitlement")

    entitlement: Entitlement

    def __init__(self, guard: Guard, feature: str, amount: float, customer: Customer) -> None:
        self._guard = guard
        self._feature = feature
        self._amount = amount
        self._customer = customer
        self._hold: Hold | None = None

    @property
    def amount(self) -> float:
        """What will be reported, in the feature's units; set it when the work took more or less than was held."""
        return self._amount

    @amount.setter
    def amount(self, amount: Amount) -> None:
        self._amount = usage_amount(amount)

    def cancel(self) -> None:
        """Gives the held units back now; nothing will be reported."""
        hold, self._hold = self._hold, None
        if hold is not None:
            self._guard._release(hold)

    def __enter__(self) -> Consumption:
        self.entitlement, self._hold = self._guard._hold(self._feature, self._amount, self._customer)
        return self

    def __exit__(
        self, error: type[BaseException] | None, _value: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.cancel()
            return
        hold, self._hold = self._hold, None
        if hold is not None:
            self._guard._commit(hold, self._amount)


def _client(config: Config) -> Stigg:
    options: dict[str, Any] = {"timeout": config.timeout}
    api = ApiConfig(api_key=config.api_key) if config.api_key else None
    if config.sidecar == "local":
        return Stigg(api, local_sidecar_config=LocalSidecarConfig(), local_sidecar_catalog=config.catalog, **options)
    if config.sidecar == "offline":
        return Stigg(api, offline_file=config.offline_file, **options)
    host, port = split_address(config.sidecar)
    return Stigg(api, remote_sidecar_host=host, remote_sidecar_port=port, tls_ca_file=config.tls_ca_file, **options)


def _no_list(_customer: Customer, ticket: int) -> Snapshot:
    """For sidecars that cannot list: an empty snapshot, which each feature is asked into alone."""
    return Snapshot({}, None, ticket)


def _claim(entitlement: Entitlement, snapshot: Snapshot | None, amount: float, customer: Customer) -> Claim:
    fetched = snapshot.fetched.get(entitlement.feature_id) if snapshot is not None else None
    known = entitlement if fetched is None else fetched
    start = entitlement.usage_period_start
    rolled = fetched is not None and start != fetched.usage_period_start
    return Claim(
        key=_key(entitlement.feature_id, customer),
        amount=amount,
        limit=entitlement.hard_limit,
        known_usage=0.0 if rolled else known.current_usage,
        period_start=start.timestamp() if start is not None else 0.0,
        ticket=snapshot.ticket if snapshot is not None else 0,
    )


def _assumed(feature: str, *, has_access: bool) -> Entitlement:
    reason = None if has_access else Reason.UNKNOWN
    return Entitlement(
        feature_id=feature, has_access=has_access, reason=reason, is_fallback=True, source=Source.FALLBACK
    )


def _fallen_back(feature: str, fallback: Fallback) -> Entitlement:
    answer = fallback_answer("GetEntitlement", wire.GetEntitlementRequest(feature_id=feature), fallback)
    return entitlement_from_wire(answer, feature_id=feature, source=Source.FALLBACK)


def _feature_id(feature: str) -> str:
    if not isinstance(feature, str) or not feature:
        raise InvalidRequest("feature_id", f"a feature id is a non-empty string, not {feature!r}")
    return feature


def _key(feature: str, customer: Customer) -> UsageKey:
    return UsageKey(customer.id, customer.resource or "", feature)


def _customer(key: UsageKey) -> Customer:
    return Customer(key.customer_id, key.resource_id or None)

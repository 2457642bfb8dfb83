"""Entitlement checks of the local sidecar: the nine requests that read what a customer may use, and why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from google.protobuf.message import Message

from stigg_guard import amounts
from stigg_guard.errors import InvalidRequest
from stigg_guard.fallbacks import (
    Fallback,
    fallback_answer,
    requested_fallback,
)
from stigg_guard.sidecar.catalog import Catalog, CreditRate, Grant
from stigg_guard.sidecar.fields import require_finite, require_ids
from stigg_guard.sidecar.state import State
from stigg_guard.sidecar.subscriptions import Denied, Offer, Offers, Subscriber, Subscriptions, Window
from stigg_guard.sidecar.wallets import Wallets
from stigg_guard.wire import sidecar_pb2 as pb
from stigg_guard.wire.beside import set_rates
from stigg_guard.wire.responses import TYPED_METHODS, entitlement_response

_EXCEEDED = {
    "metered": pb.ACCESS_DENIED_REASON_REQUESTED_USAGE_EXCEEDING_LIMIT,
    "credit": pb.ACCESS_DENIED_REASON_INSUFFICIENT_CREDITS,
}

STATES_KEPT = 1024
"""How many states, of those asked for last, are kept so that they need not be built again."""

_Usage: TypeAlias = "tuple[float, Window | None, int | None]"
"""What was used of a metered feature or of credits, the window that it counts in, and how many quanta of credits are
left to pay for more of it, where they do."""


class _Ask(NamedTuple):
    """How much, or which values, a check asks for; ``usage`` is ``None`` when it does not say."""

    usage: float | None = None
    values: Sequence[str] = ()


_NO_ASK = _Ask()


class Checks:
    """Answers the requests that read. ``fallbacks`` answer for features that the catalog does not know."""

    def __init__(
        self,
        catalog: Catalog,
        store: State,
        subscriptions: Subscriptions,
        wallets: Wallets,
        now: Callable[[], datetime],
        fallbacks: Mapping[str, Fallback],
    ) -> None:
        self._features = catalog.features
        self._store = store
        self._subscriptions = subscriptions
        self._wallets = wallets
        self._now = now
        self._fallbacks = fallbacks
        # Building a state is most of the work of its call. It is a function of nothing but its arguments, which are
        # read anew for each call: neither usage, nor a plan, nor the end of a period is seen late.
        self._state = lru_cache(STATES_KEPT)(_state)

    def entitlement(self, method: str, request: Any) -> Message:
        """``GetEntitlement``, ``GetEntitlementV2`` and the four that ask for one kind."""
        kind = _wanted_kind(method, request)
        require_ids(request, "customer_id", "currency_id" if kind == "credit" else "feature_id")
        ask = _ask(request, kind)
        try:
            subscriber, offer = self._wanted(request, kind)
        except Denied as denied:
            if denied.reason == pb.ACCESS_DENIED_REASON_FEATURE_NOT_FOUND:
                fallback = requested_fallback(request) or self._fallbacks.get(request.feature_id)
                if fallback:
                    return fallback_answer(method, request, fallback)
            answer = self._missing(request, kind, denied.reason)
        else:
            answer = _entitlement(offer, subscriber.account.revoked, self._usage(subscriber, offer, self._now()), ask)
        return entitlement_response(method, request, answer)

    def entitlements_state(self, request: pb.GetEntitlementsStateV2Request) -> Message:
        """``GetEntitlementsStateV2``: all that the plan gives, credits and revoked features too, each decided."""
        require_ids(request, "customer_id")
        try:
            subscriber, offers = self._subscriptions.active(request.customer_id, request.resource_id)
        except Denied as denied:
            return pb.GetEntitlementsStateV2Response(access_denied_reason=denied.reason)
        now = self._now()
        usages = tuple([self._usage(subscriber, offer, now) for offer in offers.every])
        response = pb.GetEntitlementsStateV2Response()
        response.CopyFrom(self._state(offers, subscriber.account.revoked, usages))
        return response

    def entitlements(self, request: pb.GetEntitlementsRequest) -> Message:
        """``GetEntitlements``: the features that the plan gives, without those revoked, which it has no way to mark."""
        require_ids(request, "customer_id")
        try:
            subscriber, offers = self._subscriptions.active(request.customer_id, request.resource_id)
        except Denied as denied:
            return pb.GetEntitlementsResponse(access_denied_reason=denied.reason)
        response = pb.GetEntitlementsResponse()
        now = self._now()
        for offer in offers.features.values():
            if offer.id not in subscriber.account.revoked:
                entitlement = getattr(response.entitlements.add(), offer.kind)
                _fill(entitlement, offer, self._usage(subscriber, offer, now))
        return response

    def reload(self, request: pb.ReloadEntitlementsRequest) -> Message:
        """``ReloadEntitlements``: there is no cache to drop; whether the customer, or the resource, exists."""
        require_ids(request, "customer_id")
        try:
            self._subscriptions.subscriber(request.customer_id, request.resource_id)
        except Denied:
            return pb.ReloadEntitlementsResponse(entitled_entity_exists=False)
        return pb.ReloadEntitlementsResponse(entitled_entity_exists=True)

    def _wanted(self, request: Any, kind: str | None) -> tuple[Subscriber, Offer]:
        subscriber, offers = self._subscriptions.active(request.customer_id, request.resource_id)
        if kind == "credit":
            offer = offers.credits.get(request.currency_id)
            if offer is None:
                raise Denied(pb.ACCESS_DENIED_REASON_ENTITLEMENT_NOT_FOUND)
            return subscriber, offer
        feature = self._features.get(request.feature_id)
        if feature is None:
            raise Denied(pb.ACCESS_DENIED_REASON_FEATURE_NOT_FOUND)
        if kind not in (None, feature.kind):
            raise Denied(pb.ACCESS_DENIED_REASON_FEATURE_TYPE_MISMATCH)
        offer = offers.features.get(feature.id)
        if offer is None:
            raise Denied(pb.ACCESS_DENIED_REASON_NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION)
        return subscriber, offer

    def _missing(self, request: Any, kind: str | None, reason: pb.AccessDeniedReason) -> pb.EntitlementV2:
        """The answer for an entitlement that is not there: an empty one, of the kind asked for, else of the feature."""
        if kind is None:
            feature = self._features.get(request.feature_id)
            kind = feature.kind if feature else "boolean"
        answer = pb.EntitlementV2(access_denied_reason=reason)
        getattr(answer, kind).SetInParent()
        if kind == "metered":
            answer.metered.reset_period = pb.ENTITLEMENT_RESET_PERIOD_UNSPECIFIED
        return answer

    def _usage(self, subscriber: Subscriber, offer: Offer, now: datetime) -> _Usage | None:
        if offer.kind not in _EXCEEDED:
            return None
        key, window = self._subscriptions.usage_key(subscriber, offer, now)
        used = self._store.usage(key)
        if offer.kind == "credit":
            used = amounts.units(amounts.quanta(used) + self._wallets.consumed(subscriber, offer.id, now))
        return used, window, self._wallets.left(subscriber, offer.rate.currency, now) if offer.rate else None


def _state(
    offers: Offers, revoked: frozenset[str], usages: tuple[_Usage | None, ...]
) -> pb.GetEntitlementsStateV2Response:
    every = zip(offers.every, usages, strict=True)
    response = pb.GetEntitlementsStateV2Response(
        entitlements=[_entitlement(offer, revoked, usage, _NO_ASK) for offer, usage in every]
    )
    set_rates(response, {offer.id: (offer.rate.currency, offer.rate.amount) for offer in offers.every if offer.rate})
    return response


def _entitlement(offer: Offer, revoked: frozenset[str], usage: _Usage | None, ask: _Ask) -> pb.EntitlementV2:
    answer = pb.EntitlementV2()
    _fill(getattr(answer, offer.kind), offer, usage)
    reason = pb.ACCESS_DENIED_REASON_REVOKED if offer.id in revoked else _excess(offer, usage, ask)
    if reason is None:
        answer.has_access = True
    else:
        answer.access_denied_reason = reason
    return answer


def _fill(entitlement: Any, offer: Offer, usage: _Usage | None) -> None:
    entitlement.CopyFrom(offer.message)
    if usage is None:
        return
    used, window, _ = usage
    entitlement.current_usage = used
    if offer.kind == "credit":
        entitlement.remaining = amounts.left(used, entitlement.usage_limit)
    if window:
        entitlement.MergeFrom(getattr(window, offer.kind))


def _excess(offer: Offer, usage: _Usage | None, ask: _Ask) -> pb.AccessDeniedReason | None:
    """Why the offer does not cover what is asked for, if it does not."""
    if usage is not None:
        used, _, left = usage
        if offer.rate is not None:
            return None if _is_paid(offer.rate, used, ask.usage, left) else _EXCEEDED["credit"]
        return None if _within_limit(offer.grant, used, ask.usage) else _EXCEEDED[offer.kind]
    if offer.kind == "enum" and not set(offer.grant.values).issuperset(ask.values):
        return pb.ACCESS_DENIED_REASON_REQUESTED_VALUES_MISMATCH
    return None


def _wanted_kind(method: str, request: Any) -> str | None:
    """The kind that the request insists on, if it does."""
    if method != "GetEntitlementV2":
        return TYPED_METHODS.get(method)
    if request.HasField("feature_id") == request.HasField("currency_id"):
        raise InvalidRequest("feature_id", "ask for exactly one of feature_id and currency_id")
    return "credit" if request.HasField("currency_id") else None


def _ask(request: Any, kind: str | None) -> _Ask:
    if not request.HasField("options"):
        return _NO_ASK
    options = request.options
    values = options.requested_values if kind in (None, "enum") else ()
    if kind not in (None, "metered", "credit") or not options.HasField("requested_usage"):
        return _Ask(None, values)
    usage = options.requested_usage
    require_finite("options.requested_usage", usage)
    if usage < 0:
        raise InvalidRequest("options.requested_usage", f"must not be negative, and is {usage:g}")
    return _Ask(usage, values)


def _within_limit(grant: Grant, used: float, requested: float | None) -> bool:
    if grant.limit is None or grant.soft:
        return True
    return used < grant.limit if requested is None else amounts.fits(used, requested, grant.limit)


def _is_paid(rate: CreditRate, used: float, requested: float | None, left: int | None) -> bool:
    """Whether what is left of the credits, None for enough of them, pays for what is asked for."""
    if left is None:
        return True
    return left > 0 if requested is None else rate.cost(used + requested) - rate.cost(used) <= left

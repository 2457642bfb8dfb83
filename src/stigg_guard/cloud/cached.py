"""The 12 requests from a cache in front of Stigg's API: what a sidecar of ours serves with ``--upstream cloud``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from google.protobuf.message import Message

from stigg_guard.amounts import is_figure
from stigg_guard.cache.snapshots import Listed, Snapshot
from stigg_guard.cache.ttl_cache import cache_key
from stigg_guard.checks.client_factory import cloud_answers
from stigg_guard.checks.lookup import DENIAL_SECONDS, Lookup
from stigg_guard.client import Stigg
from stigg_guard.clock import Clock
from stigg_guard.cloud.answers import asked_for, enveloped, exists, of_kind, older_list
from stigg_guard.cloud.fields import REASONS, decided, missing
from stigg_guard.config import Config
from stigg_guard.decoding import entitlement_from_wire
from stigg_guard.entitlements import Customer
from stigg_guard.errors import ConfigError, SidecarError
from stigg_guard.fallbacks import fallback_answer, requested_fallback
from stigg_guard.ledger import SqliteLedger
from stigg_guard.wire import sidecar_pb2 as pb


class CachedAnswers:
    """Answers from what is known of customers, which Stigg's API is asked for; reports go there at once.

    Snapshots, single flight, stale if error and the cache in Redis are those of a guard with this configuration. They
    show the usage that was reported here. A denial is given from none that is older than a second. That of a customer
    who has nothing is a boolean entitlement where the question does not say what kind it is about.
    """

    honours_keys = True
    """Stigg's API counts reports of one key once."""

    def __init__(self, config: Config, clock: Clock | None = None) -> None:
        clock = clock or Clock()
        self._fallbacks = config.fallbacks
        self._source = cloud_answers(config, clock)
        stigg = Stigg(answers=self._source, timeout=config.timeout)
        self._lookup = Lookup(config, clock, SqliteLedger(None, clock), stigg)

    def answer(
        self, method: str, request: Message, *, timeout: float | None = None, idempotency_key: str | None = None
    ) -> Message:
        """The answer within ``timeout`` seconds, if it has to be waited for.

        Raises:
            InvalidRequest: the request is wrong; nothing of it was counted.
            SidecarError: there is no answer, fresh or stale, and no fallback.
        """
        if method.startswith("Report"):
            answer = self._source.answer(method, request, timeout=timeout, idempotency_key=idempotency_key)
            self._see_counted(request, answer)
            return answer
        if method in _OF_CUSTOMERS:
            return getattr(self, _OF_CUSTOMERS[method])(_customer(request))  # type: ignore[no-any-return] # by name
        try:
            return self._entitlement(method, request, timeout)
        except SidecarError:
            fallback = requested_fallback(request) or self._fallbacks.get(getattr(request, "feature_id", ""))
            if fallback is None:
                raise
            return fallback_answer(method, request, fallback)

    def close(self) -> None:
        """Closes the connections of this process."""
        self._lookup.close()
        self._source.close()

    def _state(self, customer: Customer) -> pb.GetEntitlementsStateV2Response:
        snapshot, _ = self._lookup.cache.get(customer)
        return _state_of(snapshot)

    def _list(self, customer: Customer) -> pb.GetEntitlementsResponse:
        return older_list(self._state(customer))

    def _reload(self, customer: Customer) -> pb.ReloadEntitlementsResponse:
        state = _state_of(self._lookup.cache.refresh(customer))
        return pb.ReloadEntitlementsResponse(entitled_entity_exists=exists(state))

    def _entitlement(self, method: str, request: Any, timeout: float | None) -> Message:
        kind, usage, values = asked_for(method, request)
        wanted, customer = request.currency_id if kind == "credit" else request.feature_id, _customer(request)
        snapshot, _ = self._lookup.cache.get(customer)
        answer = _decided(snapshot, wanted, kind, usage, values)
        if answer is not None and not answer.has_access:
            snapshot, _ = self._lookup.cache.get(customer, DENIAL_SECONDS)
            answer = _decided(snapshot, wanted, kind, usage, values)
        if answer is not None:
            return enveloped(method, request, answer, self._fallbacks)
        ask = partial(self._source.answer, method, request, timeout=timeout)
        return self._lookup.cache.once((customer, method, request.SerializeToString()), ask)

    def _see_counted(self, request: Message, answer: Message) -> None:
        """Lets later checks see what was counted: figures that are some, of what was reported."""
        reported = set(map(_ids, _usages(request)))
        for usage in _usages(answer):
            if _ids(usage) in reported and usage.HasField("current_usage") and is_figure(usage.current_usage):
                self._counted(_customer(usage), usage)

    def _counted(self, customer: Customer, usage: pb.ReportUsageResponse) -> None:
        cache = self._lookup.cache
        snapshot = cache.snapshots.get(cache_key(customer))
        known = snapshot.find(usage.feature_id) if snapshot is not None else None
        if known is not None and known.needs_fresh_check:
            cache.forget(customer)  # it was paid from a wallet, whose new balance the answer does not tell
        else:
            cache.correct(customer, usage.feature_id, usage.current_usage)


_OF_CUSTOMERS = {"GetEntitlementsStateV2": "_state", "GetEntitlements": "_list", "ReloadEntitlements": "_reload"}


def upstream_config(environ: Mapping[str, str]) -> Config:
    """The configuration of a sidecar in front of the API: the key is ``SERVER_API_KEY``, and ``API_URL`` and
    ``ENTITLEMENTS_FALLBACK`` are as for Stigg's own sidecar; the rest is that of a guard.

    Raises:
        ConfigError: there is no key, or a value is malformed.
    """
    if not environ.get("SERVER_API_KEY"):
        raise ConfigError("SERVER_API_KEY: set the server key of Stigg's app, which --upstream cloud asks with")
    own = {"SIDECAR": "cloud", "API_KEY": environ["SERVER_API_KEY"], "LEDGER": "memory://"}
    for setting, variable in {"API_URL": "API_URL", "FALLBACKS": "ENTITLEMENTS_FALLBACK"}.items():
        if environ.get(variable):
            own[setting] = environ[variable]
    return Config.from_env({**environ, **{f"STIGG_GUARD_{name}": value for name, value in own.items()}})


def _usages(message: Any) -> Any:
    """The usages in a report, or in its answer."""
    fields = message.DESCRIPTOR.fields_by_name
    return message.usages if "usages" in fields else [message] if "feature_id" in fields else ()


def _ids(usage: Any) -> tuple[str, str, str]:
    return usage.customer_id, usage.resource_id, usage.feature_id


def _customer(request: Any) -> Customer:
    return Customer(request.customer_id, request.resource_id if request.HasField("resource_id") else None)


def _state_of(snapshot: Snapshot) -> pb.GetEntitlementsStateV2Response:
    """What was fetched, with the usage that was reported since."""
    assert isinstance(snapshot.messages, Listed)  # the API lists
    state = pb.GetEntitlementsStateV2Response.FromString(snapshot.messages.payload)
    for each in state.entitlements:
        _correct(each, snapshot)
    return state


def _decided(
    snapshot: Snapshot, wanted: str, kind: str | None, usage: float | None, values: tuple[str, ...]
) -> pb.EntitlementV2 | None:
    """The answer that the snapshot has; None where only the API can tell."""
    if snapshot.denial is not None:
        return missing(kind or "boolean", REASONS[str(snapshot.denial)])
    known = snapshot.messages.get(wanted)
    if known is None or (known.WhichOneof("entitlement") == "credit") != (kind == "credit"):  # it is of another's id
        return None
    message = pb.EntitlementV2()
    message.CopyFrom(known)
    if usage is not None and entitlement_from_wire(message).needs_fresh_check:
        return None
    _correct(message, snapshot)
    return of_kind(decided(message, usage, values), kind)


def _correct(message: pb.EntitlementV2, snapshot: Snapshot) -> None:
    answer = snapshot.answers.get(message.metered.feature.id)
    if answer is None or answer.current_usage == message.metered.current_usage:
        return
    message.metered.current_usage = answer.current_usage
    message.has_access = answer.has_access
    message.ClearField("access_denied_reason")
    if answer.reason is not None:
        message.access_denied_reason = REASONS[str(answer.reason)]

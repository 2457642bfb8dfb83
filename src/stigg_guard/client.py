"""``Stigg``: the blocking SDK. One method per RPC, request message in, response message out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from google.protobuf.message import Message

from stigg_guard.channel import MAX_TIMEOUT, Channel, checked_port
from stigg_guard.errors import ClientClosed, ConfigError, InvalidRequest, NotSupported, SidecarError
from stigg_guard.fallbacks import Fallback, fallback_answer, parse_fallbacks, requested_fallback
from stigg_guard.offline import OfflineConfig, OfflineReports
from stigg_guard.runtime.log import logger
from stigg_guard.settings.urls import is_api_key, is_http_url
from stigg_guard.wire import METHODS, Answerer
from stigg_guard.wire import sidecar_pb2 as wire
from stigg_guard.wire.documented import by_kind

if TYPE_CHECKING:
    from stigg_guard.api import Api
    from stigg_guard.api.caller import OnChange

Response = TypeVar("Response", bound=Message)

DEFAULT_HOST = "localhost"
LOCAL_PORT = 8433
NO_KEY = "none"
"""For the local sidecar, which asks for none."""
_WITHOUT_EFFECT = ("ws_enabled", "ws_url", "cache_max_size_bytes")
OFFLINE_REFUSES = "{}: nothing is reported offline; OFFLINE_REPORTS = keep counts in this process, ignore drops it"
TIMEOUT_EXPECTED = "expected a number of seconds above 0 and up to a year"


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """Access to Stigg's own API: a server key, and where the API is. The key never shows in a repr."""

    api_key: str = field(repr=False)
    api_url: str | None = None
    edge_enabled: bool | None = None
    edge_api_url: str | None = None


@dataclass(frozen=True, slots=True)
class RedisOptions:
    """Where the local sidecar keeps usage, plans, credits and idempotency keys: it survives restarts, and sidecars with
    the same Redis and ``environment_prefix`` share it. ``ttl`` has no effect: nothing of it is a cache."""

    environment_prefix: str
    host: str | None = None
    port: int | None = None
    db: int | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ttl: int | None = None
    tls: bool | None = None


@dataclass(frozen=True, slots=True)
class LocalSidecarConfig:
    """Asks for a sidecar that lives with this process.

    ``entitlements_fallback`` maps feature ids to ``EntitlementFallback`` messages, ``Fallback`` values or the
    documented JSON objects. With ``redis`` what is counted is in Redis. The other settings steer the connection of
    Stigg's own sidecar to its cloud; the local sidecar has none, and a warning names those that are given.
    """

    ws_enabled: bool | None = None
    ws_url: str | None = None
    redis: RedisOptions | None = None
    entitlements_fallback: Mapping[str, Any] = field(default_factory=dict)
    cache_max_size_bytes: int | None = None


class Stigg:
    """A blocking, thread-safe client of a Stigg sidecar.

    ``Stigg(ApiConfig(api_key=…), remote_sidecar_host="sidecar", remote_sidecar_port=80)`` asks a sidecar that runs
    elsewhere, without a host that of ``localhost``; the host may be a socket, as in ``unix:/run/sidecar.sock``.
    ``local_sidecar_config=LocalSidecarConfig()`` starts one as a child process on localhost:8433, from
    ``local_sidecar_catalog`` or the demonstration catalog; what it counts is in memory, in the file
    ``local_sidecar_state``, or in Redis. If a remote one is named as well, it is asked;
    ``Stigg(OfflineConfig(…))``, or an ``offline_file``, answers in this process and asks nobody; ``offline_reports``
    says how reports are treated then. ``answers`` is anything else that answers requests, and is closed with the
    client. Threads may share it. Connections are made by the first call of each process.

    ``tls_ca_file`` is the PEM file of the authority behind a remote sidecar's certificate; without it, plaintext.
    ``tls_cert_file`` and ``tls_key_file`` are our own certificate, for a sidecar that asks for one; ``sidecar_api_key``
    goes with each call, to a local sidecar that requires a key.
    ``timeout`` is the deadline of a check and ``report_timeout`` that of a report, in seconds; each method takes
    another one for a single call. ``fallbacks`` answer checks that the sidecar does not answer, whatever the reason.

    Raises:
        ConfigError: arguments exclude each other, or one of them is malformed; it is named.
        SidecarStartError: the local sidecar did not start.
    """

    def __init__(
        self,
        api_config: ApiConfig | OfflineConfig | None = None,
        *,
        remote_sidecar_host: str | None = None,
        remote_sidecar_port: int | str = 80,
        local_sidecar_config: LocalSidecarConfig | None = None,
        local_sidecar_port: int | str = LOCAL_PORT,
        local_sidecar_catalog: str | os.PathLike[str] | None = None,
        local_sidecar_state: str | os.PathLike[str] | None = None,
        offline_file: str | os.PathLike[str] | None = None,
        offline_reports: OfflineReports | str = OfflineReports.REFUSE,
        answers: Answerer | None = None,
        tls_ca_file: str | os.PathLike[str] | None = None,
        tls_cert_file: str | os.PathLike[str] | None = None,
        tls_key_file: str | os.PathLike[str] | None = None,
        sidecar_api_key: str | None = None,
        timeout: float = 1.0,
        report_timeout: float = 5.0,
        fallbacks: Mapping[str, Any] | None = None,
    ) -> None:
        asks_sidecar = remote_sidecar_host is not None or local_sidecar_config is not None
        given = api_config if isinstance(api_config, OfflineConfig) else None
        if sum((asks_sidecar, given is not None, offline_file is not None, answers is not None)) > 1:
            raise ConfigError(
                "Stigg: give a sidecar (remote or local), OfflineConfig, offline_file or answers, and no two of them"
            )
        self.api_config = None if isinstance(api_config, OfflineConfig) else _checked_api(api_config)
        offline = given or offline_file
        self.offline_reports = None if offline is None else _checked_reports(offline_reports)
        for name, seconds in {"timeout": timeout, "report_timeout": report_timeout}.items():
            if not _is_timeout(seconds):
                raise ConfigError(f"{name}: {TIMEOUT_EXPECTED}, not {seconds!r}")
        self._timeout = timeout
        self._report_timeout = report_timeout
        self._closed = False
        self._api: Api | None = None
        self._fallbacks = _fallbacks(fallbacks, local_sidecar_config)
        self._answers: Answerer
        if answers is not None:
            self._answers = answers
        elif offline is not None:
            is_counting = self.offline_reports is OfflineReports.KEEP
            self._answers = _offline_answers(offline, self._fallbacks, is_counting)
        elif local_sidecar_config is not None and remote_sidecar_host is None:
            port = checked_port("local_sidecar_port", local_sidecar_port, lowest=0)
            _warn_of_what_has_no_effect(local_sidecar_config, self.api_config)
            state = _state_variables(local_sidecar_config.redis, local_sidecar_state)
            self._answers = _LocalAnswers(port, local_sidecar_catalog, self._fallbacks, state)
        else:
            host = DEFAULT_HOST if remote_sidecar_host is None else remote_sidecar_host
            self._answers = Channel(
                host,
                remote_sidecar_port,
                tls_ca_file=tls_ca_file,
                tls_cert_file=tls_cert_file,
                tls_key_file=tls_key_file,
                api_key=sidecar_api_key,
            )
            if local_sidecar_config is not None:
                where = self._answers.address
                logger.warning("the sidecar at %s is asked, and no local one started: both were given", where)

    def get_entitlement(
        self, request: wire.GetEntitlementRequest, *, timeout: float | None = None
    ) -> wire.GetEntitlementResponse:
        """Returns the customer's entitlement to one feature of any type.

        Of ``boolean``, ``numeric``, ``metered`` and ``enum`` the one that the answer has is true, and the others are
        false.
        """
        return by_kind(self._check("GetEntitlement", request, timeout, wire.GetEntitlementResponse))

    def get_boolean_entitlement(
        self, request: wire.GetBooleanEntitlementRequest, *, timeout: float | None = None
    ) -> wire.GetBooleanEntitlementResponse:
        """Returns the customer's entitlement to a boolean feature."""
        return self._check("GetBooleanEntitlement", request, timeout, wire.GetBooleanEntitlementResponse)

    def get_numeric_entitlement(
        self, request: wire.GetNumericEntitlementRequest, *, timeout: float | None = None
    ) -> wire.GetNumericEntitlementResponse:
        """Returns the customer's value of a numeric configuration feature."""
        return self._check("GetNumericEntitlement", request, timeout, wire.GetNumericEntitlementResponse)

    def get_metered_entitlement(
        self, request: wire.GetMeteredEntitlementRequest, *, timeout: float | None = None
    ) -> wire.GetMeteredEntitlementResponse:
        """Returns the customer's limit and usage of a metered feature, and whether the requested usage fits."""
        return self._check("GetMeteredEntitlement", request, timeout, wire.GetMeteredEntitlementResponse)

    def get_enum_entitlement(
        self, request: wire.GetEnumEntitlementRequest, *, timeout: float | None = None
    ) -> wire.GetEnumEntitlementResponse:
        """Returns the customer's values of an enum configuration feature."""
        return self._check("GetEnumEntitlement", request, timeout, wire.GetEnumEntitlementResponse)

    def get_entitlements(
        self, request: wire.GetEntitlementsRequest, *, timeout: float | None = None
    ) -> wire.GetEntitlementsResponse:
        """Returns all entitlements of a customer; credits are only in ``get_entitlements_state_v2``."""
        return self._check("GetEntitlements", request, timeout, wire.GetEntitlementsResponse)

    def get_entitlement_v2(
        self, request: wire.GetEntitlementV2Request, *, timeout: float | None = None
    ) -> wire.GetEntitlementV2Response:
        """Returns the customer's entitlement to one feature, or to one credit currency."""
        return self._check("GetEntitlementV2", request, timeout, wire.GetEntitlementV2Response)

    def get_entitlements_state_v2(
        self, request: wire.GetEntitlementsStateV2Request, *, timeout: float | None = None
    ) -> wire.GetEntitlementsStateV2Response:
        """Returns all entitlements of a customer with their access, reasons and credits."""
        return self._check("GetEntitlementsStateV2", request, timeout, wire.GetEntitlementsStateV2Response)

    def reload_entitlements(
        self, request: wire.ReloadEntitlementsRequest, *, timeout: float | None = None
    ) -> wire.ReloadEntitlementsResponse:
        """Makes the sidecar read the customer from the source again, and tells whether it exists."""
        return self._ask("ReloadEntitlements", request, _or(timeout, self._timeout), wire.ReloadEntitlementsResponse)

    def report_usage(
        self, request: wire.ReportUsageRequest, *, timeout: float | None = None, idempotency_key: str | None = None
    ) -> wire.ReportUsageResponse:
        """Reports usage of one feature: a delta unless SET is asked.

        The local sidecar counts reports of one ``idempotency_key`` once. Stigg's own knows no such key: there, a report
        repeated after ``outcome_unknown`` may count twice.
        """
        return self._report("ReportUsage", request, timeout, wire.ReportUsageResponse, idempotency_key)

    def report_usage_bulk(
        self, request: wire.ReportUsageBulkRequest, *, timeout: float | None = None, idempotency_key: str | None = None
    ) -> wire.ReportUsageBulkResponse:
        """Reports 1 to 100 usages at once; ``idempotency_key`` as in :meth:`report_usage`."""
        return self._report("ReportUsageBulk", request, timeout, wire.ReportUsageBulkResponse, idempotency_key)

    def report_events(self, request: wire.ReportEventsRequest, *, timeout: float | None = None) -> Message:
        """Reports 1 to 1000 raw events; repeated ones count once, by timestamp and key. The answer is empty."""
        return self._report("ReportEvents", request, timeout, Message, None)

    @property
    def api(self) -> Api:
        """Stigg's GraphQL API, with the key and address of ``api_config``; without an address that of the local sidecar
        if this client started one, which needs no key.

        What is changed through it shows when the sidecar learns of it; ``Guard.api`` sees to that.

        Raises:
            ConfigError: there is no key.
        """
        if self._api is None:
            self._api = self.new_api(self.api_config)
        return self._api

    def new_api(self, api_config: ApiConfig | None, on_change: OnChange | None = None) -> Api:
        """Makes another :attr:`api` for the caller to close, with a key and an address of its own."""
        from stigg_guard.api import Api

        config = api_config or self.api_config
        local = self._answers.api_url if isinstance(self._answers, _LocalAnswers) else None
        if config is None:
            if local is None:
                raise ConfigError("there is no key for Stigg's API: set API_KEY, or give Stigg an ApiConfig")
            config = ApiConfig(NO_KEY)
        return Api(config.api_key, config.api_url or local, on_change=on_change)

    def watch(self, heard: Callable[[str | None], None]) -> None:
        """Has ``heard``, a bound method that is held weakly, called with the id of each customer whose entitlements
        have changed, None for anybody, where the sidecar tells it: the local one does."""
        if isinstance(self._answers, Channel):
            self._answers.watch(heard)

    @property
    def offline(self) -> bool:
        """Whether answers come from an ``OfflineConfig`` or a file."""
        return self.offline_reports is not None

    @property
    def honours_keys(self) -> bool | None:
        """Whether reports under one idempotency key count once: yes, no, or None before the sidecar has told."""
        return self._answers.honours_keys

    def close(self) -> None:
        """Ends the connections, and the local sidecar if this client started one. Closing twice is harmless."""
        self._closed = True
        if self._api is not None:
            self._api.close()
        self._answers.close()

    def __enter__(self) -> Stigg:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self, method: str, request: Message, timeout: float | None, answer: type[Response]) -> Response:
        try:
            return self._ask(method, request, _or(timeout, self._timeout), answer)
        except SidecarError:
            fallback = requested_fallback(request) or self._fallbacks.get(getattr(request, "feature_id", ""))
            if fallback is None:
                raise
            return cast(Response, fallback_answer(method, request, fallback))

    def _report(
        self, method: str, request: Message, timeout: float | None, answer: type[Response], key: str | None
    ) -> Response:
        if self.offline_reports is OfflineReports.REFUSE:
            raise NotSupported(OFFLINE_REFUSES.format(method))
        return self._ask(method, request, _or(timeout, self._report_timeout), answer, key)

    def _ask(
        self, method: str, request: Message, timeout: float, answer: type[Response], key: str | None = None
    ) -> Response:
        expected = METHODS[method].request
        if not isinstance(request, expected):
            raise InvalidRequest("", f"{method} takes a {expected.__name__}, not a {type(request).__name__}")
        if not _is_timeout(timeout):
            raise InvalidRequest("timeout", f"{TIMEOUT_EXPECTED}, not {timeout!r}")
        if self._closed:
            raise ClientClosed("this Stigg client is closed; make a new one")
        return cast(Response, self._answers.answer(method, request, timeout=timeout, idempotency_key=key))


class _LocalAnswers(Channel):
    """A channel to a child process that ends with it."""

    def __init__(
        self,
        port: int,
        catalog: str | os.PathLike[str] | None,
        fallbacks: Mapping[str, Fallback],
        variables: Mapping[str, str],
    ) -> None:
        from stigg_guard.sidecar.child import ChildSidecar

        self._child = ChildSidecar(port=port, catalog=catalog, fallbacks=fallbacks, variables=variables)
        super().__init__("127.0.0.1", self._child.port)

    @property
    def api_url(self) -> str:
        """Where the child answers Stigg's GraphQL API."""
        return f"http://127.0.0.1:{self._child.http_port}"

    def answer(
        self, method: str, request: Message, *, timeout: float | None = None, idempotency_key: str | None = None
    ) -> Message:
        self._child.revive()
        return super().answer(method, request, timeout=timeout, idempotency_key=idempotency_key)

    def close(self) -> None:
        super().close()
        self._child.stop()


def _checked_api(config: ApiConfig | None) -> ApiConfig | None:
    if config is None:
        return None
    if not is_api_key(config.api_key):
        raise ConfigError("api_key: expected the key of Stigg's app, a text without spaces; copy it again")
    for name in ("api_url", "edge_api_url"):
        url = getattr(config, name)
        if url is not None and not is_http_url(url):
            raise ConfigError(f"{name}: expected a URL, as https://api.stigg.io, without user and password")
    return config


def _state_variables(redis: RedisOptions | None, file: str | os.PathLike[str] | None) -> Mapping[str, str]:
    """The variables that tell a local sidecar where it keeps what it counts."""
    if redis is None:
        return {} if file is None else {"STIGG_SIDECAR_STATE": os.fspath(file)}
    if file is not None:
        raise ConfigError("Stigg: give redis or local_sidecar_state; what is counted has one home")
    if not redis.environment_prefix:
        raise ConfigError("RedisOptions: environment_prefix must not be empty; it is what all keys begin with")
    told = {
        "ENVIRONMENT_PREFIX": redis.environment_prefix,
        "HOST": redis.host,
        "PORT": redis.port,
        "DB": redis.db,
        "USERNAME": redis.username,
        "PASSWORD": redis.password,
        "TLS": None if redis.tls is None else int(redis.tls),
    }
    return {f"REDIS_{name}": str(value) for name, value in told.items() if value is not None}


def _warn_of_what_has_no_effect(config: LocalSidecarConfig, api: ApiConfig | None) -> None:
    given = [name for name in _WITHOUT_EFFECT if getattr(config, name) is not None]
    given += [name for name in ("edge_enabled", "edge_api_url") if getattr(api, name, None) is not None]
    given += ["ttl"] if config.redis is not None and config.redis.ttl is not None else []
    if given:
        logger.warning("without effect on the local sidecar, which has no cloud behind it: %s", ", ".join(given))


def _is_timeout(seconds: object) -> bool:
    return isinstance(seconds, (int, float)) and not isinstance(seconds, bool) and 0 < seconds <= MAX_TIMEOUT


def _or(given: float | None, default: float) -> float:
    return default if given is None else given


def _checked_reports(given: OfflineReports | str) -> OfflineReports:
    try:
        return OfflineReports(given)
    except ValueError:
        names = ", ".join(repr(choice.value) for choice in OfflineReports)
        raise ConfigError(f"offline_reports: expected one of {names}, not {given!r}") from None


def _offline_answers(
    offline: OfflineConfig | str | os.PathLike[str], fallbacks: Mapping[str, Fallback], is_counting: bool
) -> Answerer:
    from stigg_guard.sidecar.catalog import load_catalog, offline_catalog
    from stigg_guard.sidecar.engine import Engine
    from stigg_guard.sidecar.store import Store

    if isinstance(offline, OfflineConfig):
        sold = offline_catalog(offline.document, source="OfflineConfig")
    else:
        sold = load_catalog(os.fspath(offline))
    return Engine(sold, Store(None), fallbacks=fallbacks, reporting=is_counting)


def _fallbacks(given: Mapping[str, Any] | None, local: LocalSidecarConfig | None) -> Mapping[str, Fallback]:
    merged = {**(local.entitlements_fallback if local else {}), **(given or {})}
    messages = {key: Fallback.from_message(value) for key, value in merged.items() if isinstance(value, Message)}
    return {**parse_fallbacks({key: value for key, value in merged.items() if key not in messages}), **messages}

"""The way to the sidecar: one gRPC channel per process, a deadline on every call, one table from status to error."""

from __future__ import annotations

import logging
import os
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message

from stigg_guard.clock import Clock
from stigg_guard.errors import (
    ClientClosed,
    ConfigError,
    InvalidRequest,
    NotSupported,
    SidecarError,
    SidecarRefused,
    SidecarTimeout,
    SidecarUnavailable,
)
from stigg_guard.wire import KEYS_HONOURED, METHODS, TELLS_OF_KEYS

logger = logging.getLogger("stigg_guard")

MAX_MESSAGE_BYTES = 64 * 1024 * 1024

# gRPC waits up to two minutes between attempts to connect: right for a network, wrong for a sidecar on this host.
_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # which is how long gRPC lets one attempt last: a busy host is slow
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)

_ERRORS: dict[grpc.StatusCode, type[SidecarError]] = {
    grpc.StatusCode.UNAVAILABLE: SidecarUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: SidecarTimeout,
    grpc.StatusCode.UNAUTHENTICATED: SidecarRefused,
    grpc.StatusCode.PERMISSION_DENIED: SidecarRefused,
    grpc.StatusCode.UNIMPLEMENTED: NotSupported,
}

_REMEDIES = {
    SidecarUnavailable: "start it, or correct the address",
    SidecarTimeout: "look whether it hangs, or allow it more time",
    SidecarRefused: "look at the sidecar's API key",
    NotSupported: "update the sidecar",
}

# What is wrong with the request would be wrong again.
_REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
}

# After these a report may have been counted, unless the connection was never made.
_OUTCOME_UNKNOWN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}
_NEVER_SENT = ("failed to connect to all addresses", "connections to all backends failing")

_FORK_WARNING = (
    "this process called the sidecar and then forked. The children make connections of their own, but gRPC is only "
    "safe when no call is under way during a fork: make the first call after it (gunicorn: in post_fork or later, "
    "celery: worker_process_init)."
)


class Channel:
    """Answers requests by asking the sidecar at ``host:port``. Safe to share between threads, and across forks.

    Nothing is opened before the first call of each process.
    """

    def __init__(self, host: str, port: int, *, tls_ca_file: str | None = None, clock: Clock | None = None) -> None:
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._authority = None if tls_ca_file is None else _read_pem(tls_ca_file)
        self._clock = clock or Clock()
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._inherited: list[_Connection] = []
        self._closed = False
        self.honours_keys: bool | None = None
        """Whether the sidecar counts reports of one idempotency key once; None until it has told."""

    def answer(
        self, method: str, request: Message, *, timeout: float | None = None, idempotency_key: str | None = None
    ) -> Message:
        """The sidecar's answer within ``timeout`` seconds.

        Raises:
            InvalidRequest: the sidecar refused the request; the field is named.
            SidecarError: it gave no answer; the subclass says why.
            ClientClosed: this channel was closed.
        """
        connection = self._own_connection()
        connection.hung.refuse_while_hung(self.address)
        metadata = (("idempotency-key", idempotency_key),) if idempotency_key else None
        try:
            with connection.forks:
                answer: Message
                answer, call = connection.calls[method].with_call(request, timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            raise self._translated(error, method, connection) from error
        except ValueError as error:
            if self._closed:
                raise ClientClosed("the client was closed during this call") from error
            raise InvalidRequest("", f"the request cannot be sent: {error}") from error
        connection.hung.answered()
        if method in TELLS_OF_KEYS:
            self.honours_keys = KEYS_HONOURED in call.trailing_metadata()
        return answer

    def close(self) -> None:
        """Ends calls in flight and refuses new ones. Closing twice is harmless."""
        with self._lock:
            self._closed = True
            connection, self._connection = self._connection, None
        if connection is not None and connection.pid == os.getpid():
            connection.channel.close()

    def _own_connection(self) -> _Connection:
        connection = self._connection
        if connection is not None and connection.pid == os.getpid():
            return connection
        with self._lock:
            if self._closed:
                raise ClientClosed("the client is closed; make a new one")
            if self._connection is None or self._connection.pid != os.getpid():
                if self._connection is not None:
                    self._inherited.append(self._connection)  # closing it here would disturb the parent's
                self._connection = _Connection(self._make_channel(), self._clock)
                _watch_forks(self)
            return self._connection

    def _make_channel(self) -> grpc.Channel:
        _adapt_to_gevent()
        if self._authority is None:
            return grpc.insecure_channel(self.address, options=_OPTIONS)
        credentials = grpc.ssl_channel_credentials(root_certificates=self._authority)
        return grpc.secure_channel(self.address, credentials, options=_OPTIONS)

    def _translated(self, error: grpc.RpcError, method: str, connection: _Connection) -> Exception:
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            connection.hung.timed_out()
        else:
            connection.hung.answered()
        if code in _REFUSALS:
            field, separator, problem = details.partition(": ")
            return InvalidRequest(field, problem) if separator and " " not in field else InvalidRequest("", details)
        if code is grpc.StatusCode.CANCELLED and self._closed:
            return ClientClosed("the client was closed during this call")
        kind = _ERRORS.get(code, SidecarError)
        remedy = f"; {_REMEDIES[kind]}" if kind in _REMEDIES else ""
        unknown = code in _OUTCOME_UNKNOWN and not details.startswith(_NEVER_SENT)
        message = f"{method} at the sidecar {self.address} failed with {code.name} ({details}){remedy}"
        return kind(message, code=code.name, outcome_unknown=unknown)

    def _before_fork(self) -> None:
        connection = self._connection
        if connection is not None:
            connection.forks.hold_back()

    def _after_fork_in_parent(self) -> None:
        connection = self._connection
        if connection is not None:
            connection.forks.let_go()
            if not connection.warned:
                connection.warned = True
                logger.warning(_FORK_WARNING)

    def _after_fork_in_child(self) -> None:
        self._lock = threading.Lock()


class _Connection:
    """What belongs to one process: the channel, its calls, and what is known of the sidecar's state."""

    def __init__(self, channel: grpc.Channel, clock: Clock) -> None:
        self.pid = os.getpid()
        self.channel = channel
        self.calls: dict[str, Any] = {
            name: channel.unary_unary(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
            for name, method in METHODS.items()
        }
        self.hung = _HangDetector(channel, clock)
        self.forks = _ForkGate()
        self.warned = False


class _HangDetector:
    """Keeps a hung sidecar from costing every request its whole deadline.

    A dead one refuses at once; a stopped one only lets deadlines pass. After ``TRIPS`` of them in a row calls are
    refused without waiting, and a probe that nobody waits for finds out when the sidecar answers again.
    """

    TRIPS = 3
    RECENT = 1.0

    def __init__(self, channel: grpc.Channel, clock: Clock) -> None:
        self._probe = channel.unary_unary("/grpc.health.v1.Health/Check", bytes, bytes)
        self._monotonic = clock.monotonic
        self._lock = threading.Lock()
        self._timeouts = 0
        self._last_sign = 0.0
        self._probing = False

    def answered(self) -> None:
        self._timeouts = 0

    def timed_out(self) -> None:
        with self._lock:
            self._timeouts += 1
            self._last_sign = self._monotonic()

    def refuse_while_hung(self, address: str) -> None:
        if self._timeouts < self.TRIPS:
            return
        with self._lock:
            now = self._monotonic()
            if now - self._last_sign > self.RECENT and not self._probing:
                self._last_sign = now  # nothing was heard for a while: this caller finds out
                return
            start = not self._probing
            self._probing = True
        if start:
            self._probe.future(b"", timeout=self.RECENT).add_done_callback(self._probed)
        raise SidecarUnavailable(
            f"the sidecar {address} let {self.TRIPS} deadlines pass in a row and is not asked until it answers again; "
            "look whether it hangs"
        )

    def _probed(self, future: Any) -> None:
        hung = future.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        with self._lock:
            self._probing = False
            self._last_sign = self._monotonic()
            self._timeouts = self.TRIPS if hung else 0


class _ForkGate:
    """Lets calls in flight end before the process forks, and holds new ones back meanwhile, both within a bound."""

    PATIENCE = 2.0

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._in_flight = 0
        self._forking = False

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._forking, self.PATIENCE)
            self._in_flight += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._in_flight -= 1
            self._changed.notify_all()

    def hold_back(self) -> None:
        with self._changed:
            self._forking = True
            self._changed.wait_for(lambda: self._in_flight == 0, self.PATIENCE)

    def let_go(self) -> None:
        with self._changed:
            self._forking = False
            self._changed.notify_all()


_watched: weakref.WeakSet[Channel] = weakref.WeakSet()
_hooked = False


def _watch_forks(channel: Channel) -> None:
    global _hooked
    _watched.add(channel)
    if not _hooked:
        _hooked = True
        os.register_at_fork(
            before=lambda: _each(Channel._before_fork),
            after_in_parent=lambda: _each(Channel._after_fork_in_parent),
            after_in_child=lambda: _each(Channel._after_fork_in_child),
        )


def _each(step: Any) -> None:
    for channel in list(_watched):
        step(channel)


def _read_pem(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"TLS_CA_FILE: {path} cannot be read: {error.strerror}") from error


def _adapt_to_gevent() -> None:
    """Under gevent's monkey patches a blocking gRPC call would stop every greenlet."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        import grpc.experimental.gevent

        grpc.experimental.gevent.init_gevent()

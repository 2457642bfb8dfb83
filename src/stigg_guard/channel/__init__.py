"""Calls the sidecar over gRPC: connections of each process, a deadline for every call, an error for each status."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from functools import partial

import grpc
from google.protobuf.message import DecodeError, Message

from stigg_guard.channel.callers import Callers
from stigg_guard.channel.news import Listener
from stigg_guard.channel.route import Call, Route
from stigg_guard.channel.statuses import error_of
from stigg_guard.channel.target import Target, checked_port
from stigg_guard.clock import Clock
from stigg_guard.errors import ClientClosed, InvalidRequest, SidecarError, StiggGuardError
from stigg_guard.runtime.forks import follow_forks
from stigg_guard.runtime.log import logger
from stigg_guard.wire import KEYS_HONOURED, METHODS, TELLS_OF_KEYS

__all__ = ["MAX_TIMEOUT", "Channel", "checked_port"]


MAX_TIMEOUT = 365 * 86_400.0
"""The longest deadline in seconds: gRPC's own clocks end somewhere."""

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
LOOK_SECONDS = 0.5  # for finding out why nothing can be reached

_FORK_WARNING = (
    "this process called the sidecar and then forked. The children make connections of their own, but gRPC is only "
    "safe when no call is under way during a fork: make the first call after it (gunicorn: in post_fork or later, "
    "celery: worker_process_init)."
)


class Channel:
    """Answers requests by asking the sidecar at ``host:port``. It is thread-safe and fork-safe.

    Nothing is opened before the first call of each process.

    Raises:
        ConfigError: the host, the port or the key is none, or a file cannot be read or holds no certificate.
    """

    def __init__(
        self,
        host: str,
        port: int | str,
        *,
        tls_ca_file: str | os.PathLike[str] | None = None,
        tls_cert_file: str | os.PathLike[str] | None = None,
        tls_key_file: str | os.PathLike[str] | None = None,
        api_key: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._target = Target.of(host, port, tls_ca_file, tls_cert_file, tls_key_file, api_key)
        self._clock = clock or Clock()
        self._lock = threading.Lock()
        self._process: _Process | None = None
        self._inherited: list[_Process] = []
        self._closed = self._has_watched = False
        self.address = self._target.address
        _channels.add(self)
        self.honours_keys: bool | None = None
        """Whether the sidecar counts reports of one idempotency key once; None until it has told."""

    def answer(
        self, method: str, request: Message, *, timeout: float | None = None, idempotency_key: str | None = None
    ) -> Message:
        """The sidecar's answer within ``timeout`` seconds.

        Raises:
            InvalidRequest: the request is too large, or is a report that the sidecar rejected; the field is named.
            SidecarError: it gave no answer; the subclass says why.
            ClientClosed: this channel was closed.
        """
        body = request.SerializeToString()
        if len(body) > MAX_MESSAGE_BYTES:
            raise InvalidRequest("", f"the request has {len(body)} bytes; send at most {MAX_MESSAGE_BYTES}")
        deadline = self._clock.monotonic() + (MAX_TIMEOUT if timeout is None else timeout)
        call = Call(method, body, deadline, idempotency_key)
        process = self._own_process()
        return process.callers.run(partial(self._answered, process.route, call))

    def watch(self, heard: Callable[[str | None], None]) -> None:
        """Has ``heard``, a bound method, called with each customer whose entitlements have changed, None for anybody,
        where the sidecar tells it. A second time in the same process does nothing. This cannot fail."""
        process = self._process
        if process is not None and process.pid == os.getpid() and process.listener is None:
            with self._lock:
                if process.listener is None and not self._closed:
                    process.listener = Listener(self._target, heard, self._has_watched)
                    self._has_watched = True

    def close(self) -> None:
        """Ends calls in flight; new ones fail. Closing twice is harmless."""
        with self._lock:
            self._closed = True
            process, self._process = self._process, None
        if process is not None and process.pid == os.getpid():
            process.callers.run(process.route.close)
            process.end()

    def _own_process(self) -> _Process:
        process = self._process
        if process is not None and process.pid == os.getpid():
            return process
        with self._lock:
            if self._closed:
                raise ClientClosed("the client is closed; make a new one")
            if self._process is None or self._process.pid != os.getpid():
                if self._process is not None:
                    self._inherited.append(self._process)  # closing it here would disturb the parent's
                self._process = _Process(self, self._target, self._clock)
            return self._process

    def _answered(self, route: Route, call: Call) -> Message:
        try:
            body, trailing_metadata = route.exchange(call)
        except grpc.RpcError as error:
            raise self._error_of(error, route, call) from error
        except ValueError as error:
            if self._closed:
                raise ClientClosed("the client was closed during this call") from error
            raise InvalidRequest("", f"the request cannot be sent: {error}") from error
        if call.method in TELLS_OF_KEYS:
            self.honours_keys = KEYS_HONOURED in trailing_metadata
        try:
            if len(body) > MAX_MESSAGE_BYTES:
                raise DecodeError(f"more than {MAX_MESSAGE_BYTES} bytes")
            return METHODS[call.method].response.FromString(body)
        except DecodeError as error:
            problem = f"{call.method} at the sidecar {self.address} got no answer that can be read ({error})"
            message = f"{problem}; look what listens there"
            raise SidecarError(message, code="OK", outcome_unknown=call.is_report) from error

    def _error_of(self, status: grpc.RpcError, route: Route, call: Call) -> StiggGuardError:
        code = status.code()
        if code is grpc.StatusCode.CANCELLED and self._closed:
            return ClientClosed("the client was closed during this call")
        fault = ""
        if code is grpc.StatusCode.UNAVAILABLE and (self._target.authority or not route.was_answered):
            fault = self._target.tls_fault(LOOK_SECONDS)
        what = f"{call.method} at the sidecar {self.address}"
        proxy = self._target.proxy
        return error_of(status, what, is_report=call.is_report, sent=call.sent, proxy=proxy, fault=fault)

    def _before_fork(self) -> None:
        process = self._process
        if process is not None:
            process.callers.hold_back()
            if process.listener is not None and process.pid == os.getpid():
                process.listener.stop()
                process.listener = None  # it is opened again by the next fetch

    def _after_fork_in_parent(self) -> None:
        if self._process is not None:
            self._process.callers.let_go()
            if not self._process.warned:
                self._process.warned = True
                logger.warning(_FORK_WARNING)

    def _after_fork_in_child(self) -> None:
        self._lock = threading.Lock()


class _Process:
    """What belongs to one process, until its channel is closed or forgotten."""

    def __init__(self, channel: Channel, target: Target, clock: Clock) -> None:
        self.pid = os.getpid()
        self.callers = Callers(clock)
        self.route = Route(target, clock, self.callers.post)
        self.listener: Listener | None = None
        self.warned = False
        weakref.finalize(channel, self.end).atexit = False

    def end(self) -> None:
        """Ends its threads and connections. A child that inherited it leaves its parent's alone."""
        if self.pid == os.getpid():
            if self.listener is not None:
                self.listener.stop()
            self.callers.end(self.route.close)


_channels: weakref.WeakSet[Channel] = weakref.WeakSet()


def _each(step: Callable[[Channel], None]) -> None:
    for channel in list(_channels):
        step(channel)


follow_forks(
    before=lambda: _each(Channel._before_fork),
    after_in_parent=lambda: _each(Channel._after_fork_in_parent),
    after_in_child=lambda: _each(Channel._after_fork_in_child),
)

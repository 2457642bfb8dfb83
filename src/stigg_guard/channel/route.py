"""The connection of one process, its replacement when it falls silent, and a circuit breaker for a hung sidecar."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpc

from stigg_guard.channel.target import Target
from stigg_guard.clock import Clock
from stigg_guard.errors import ClientClosed, SidecarTimeout, SidecarUnavailable
from stigg_guard.wire import METHODS

HEALTH = "/grpc.health.v1.Health/Check"

# Every other status is an answer.
NO_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


@dataclass
class Call:
    """One request as bytes. ``deadline`` is on the monotonic clock; ``sent`` is true once gRPC has the request."""

    method: str
    request: bytes
    deadline: float
    idempotency_key: str | None = None
    sent: bool = False

    @property
    def is_report(self) -> bool:
        """Whether it counts something."""
        return self.method.startswith("Report")


class Route:
    """Makes calls to the sidecar behind a circuit breaker. ``post`` does work beside the calls.

    A connection can die without a sign: a proxy goes on accepting, and forwards nothing. A hung sidecar looks the same.
    So when a deadline passes, a question that nobody waits for is asked on a new connection, which takes the place of
    the silent one if there is an answer. After ``TRIPS`` deadlines in a row the circuit opens:
    calls fail without waiting, until such a question is answered.

    A report is sent only on a connection that has just answered a question. What is not sent was certainly not counted;
    what is sent and not answered may have been, whatever gRPC says of the connection.
    """

    TRIPS = 3
    RECENT = 1.0

    def __init__(self, target: Target, clock: Clock, post: Callable[[Callable[[], None]], None]) -> None:
        self._target = target
        self._monotonic = clock.monotonic
        self._post = post
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._connections: set[_Connection] = set()
        self._closed = False
        self._silent = 0  # deadlines that passed in a row
        self._last_sign = 0.0
        self._looking = False
        self.was_answered = False

    def exchange(self, call: Call) -> tuple[bytes, Any]:
        """The answer to a call, and the metadata that ended it.

        Raises:
            SidecarUnavailable: the sidecar hangs and was not asked, or there is no time left to ask it.
            ClientClosed: the route was closed.
            grpc.RpcError: the call failed.
        """
        if self._silent >= self.TRIPS:
            self._find_out(call)
        try:
            if call.is_report:
                self._make_sure(call)
            with self._held(self._present()) as connection:
                timeout = self._left(call)
                call.sent = True
                answer, ended = connection.ask(call, timeout)
        except grpc.RpcError as error:
            self._heard(error.code())
            raise
        self._heard(grpc.StatusCode.OK)
        return answer, ended.trailing_metadata()

    def close(self) -> None:
        """Ends all connections, with the calls on them. Closing twice is harmless."""
        with self._lock:
            self._closed = True
            connections, self._connections = self._connections, set()
        for connection in connections:
            connection.channel.close()

    def _heard(self, code: grpc.StatusCode) -> None:
        if code is not grpc.StatusCode.DEADLINE_EXCEEDED:
            self._silent = 0
            self.was_answered |= code not in NO_ANSWER
            return
        with self._lock:
            self._silent += 1
            self._last_sign = self._monotonic()
            looks = self._silent < self.TRIPS and not self._looking
            self._looking |= looks
        if looks:
            self._post(self._look)

    def _find_out(self, call: Call) -> None:
        """Fails a call while the circuit is open. The first call after a while of silence is the probe."""
        left = self._left(call)
        with self._lock:
            looks, self._looking = not self._looking, True
            waits = looks and self._monotonic() - self._last_sign > self.RECENT
        if waits:
            self._look(left)
            if self._silent < self.TRIPS:
                return
        elif looks:
            self._post(self._look)
        raise SidecarUnavailable(
            f"the sidecar {self._target.address} let {self.TRIPS} deadlines pass in a row and is not asked until it "
            "answers again; look whether it hangs"
        )

    def _look(self, timeout: float = RECENT) -> None:
        with suppress(grpc.RpcError, ClientClosed, ValueError):  # gRPC's ValueError: it was closed meanwhile
            self._renew(min(timeout, self.RECENT))
        with self._lock:
            self._looking = False
            self._last_sign = self._monotonic()

    def _make_sure(self, call: Call) -> None:
        """Returns when the connection in use has answered a question, or a new one instead of one that had stood."""
        with self._held(self._present()) as connection:
            if not connection.stands:
                connection.greet(self._left(call))
                return
            with suppress(grpc.RpcError):
                connection.greet(min(self.RECENT, self._left(call) / 2))
                return
        self._renew(self._left(call))

    def _renew(self, timeout: float) -> None:
        """Puts a new connection in the place of the one in use if it is answered.

        One that is refused takes the place of one that hangs, too: it tells the reason.

        Raises:
            grpc.RpcError: there is no answer.
        """
        with self._held(self._new()) as fresh:
            try:
                fresh.greet(timeout)
            except grpc.RpcError as error:
                if self._silent < self.TRIPS or error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise
            with self._lock:
                old, self._connection = self._connection, fresh
                if self._silent >= self.TRIPS:
                    self._silent = 0
            if old is not None:
                self._close_unused(old)

    def _left(self, call: Call) -> float:
        """The seconds until the call's deadline. Raises ``SidecarTimeout`` when there are none."""
        left = call.deadline - self._monotonic()
        if left <= 0:
            raise SidecarTimeout(f"no time was left to send {call.method} to {self._target.address}; allow it more")
        return left

    def _new(self) -> _Connection:
        with self._lock:
            return self._opened()

    def _present(self) -> _Connection:
        with self._lock:
            if self._connection is None:
                self._connection = self._opened()
                return self._connection
            self._connection.users += 1
            return self._connection

    def _opened(self) -> _Connection:
        if self._closed:
            raise ClientClosed("the client was closed during this call")
        connection = _Connection(self._target)
        self._connections.add(connection)
        return connection

    @contextmanager
    def _held(self, connection: _Connection) -> Iterator[_Connection]:
        """For the time of a call; a connection that nobody needs any more is closed after it."""
        try:
            yield connection
        finally:
            with self._lock:
                connection.users -= 1
            self._close_unused(connection)

    def _close_unused(self, connection: _Connection) -> None:
        with self._lock:
            if connection.users or connection is self._connection or connection not in self._connections:
                return
            self._connections.remove(connection)
        connection.channel.close()


class _Connection:
    """A gRPC channel, which shares no connection with another one.

    ``users`` are the calls under way on it; ``stands`` says whether the last one that ended was answered.
    """

    def __init__(self, target: Target) -> None:
        self.channel = target.open()
        self._metadata = target.metadata
        self._calls: dict[str, Any] = {
            name: self.channel.unary_unary(method.path, None, None) for name, method in METHODS.items()
        }
        self._health = self.channel.unary_unary(HEALTH, None, None)
        self.users = 1
        self.stands = False

    def ask(self, call: Call, timeout: float) -> tuple[bytes, Any]:
        """The answer and the call that it ended. Raises ``grpc.RpcError`` for any status but OK."""
        key = call.idempotency_key
        metadata = (*self._metadata, ("idempotency-key", key)) if key else self._metadata
        with self._noticing():
            answer: tuple[bytes, Any] = self._calls[call.method].with_call(
                call.request, timeout=timeout, metadata=metadata
            )
        return answer

    def greet(self, timeout: float) -> None:
        """Asks a question that counts nothing. Raises ``grpc.RpcError`` unless it is answered, with whatever status."""
        with self._noticing():
            try:
                self._health(b"", timeout=timeout)
            except grpc.RpcError as error:
                if error.code() in NO_ANSWER:
                    raise

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                self.stands = error.code() not in NO_ANSWER
            raise
        self.stands = True

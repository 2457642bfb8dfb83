"""Tells connected guards whose entitlements have changed: a stream of a service of our own, beside Stigg's."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Lock, Thread
from typing import TypeAlias

import grpc
from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import StringValue

PAUSE_SECONDS = 0.02
"""How long changes are gathered, so that many of one customer are told once."""
MOST_NAMED = 100
"""Of more customers than this in one go, everybody is told to have changed."""

_Send: TypeAlias = "Callable[[StringValue | None], None]"
_EVERYBODY = frozenset({""})


class Watchers:
    """The watchers of one server. They take none of its threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._watchers: set[_Watcher] = set()
        self._is_over = False

    def tell(self, customers: frozenset[str] | None) -> None:
        """These customers have changed; None is everybody. Returns at once."""
        with self._lock:
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.tell(_EVERYBODY if customers is None else customers)

    def handler(self, accepts: Callable[[grpc.ServicerContext], bool]) -> grpc.RpcMethodHandler[Message, Message]:
        """What serves a watcher whose call ``accepts`` lets in."""

        def watch(_: bytes, context: grpc.ServicerContext, send: _Send) -> None:
            if not accepts(context):
                context.set_code(grpc.StatusCode.UNAUTHENTICATED)
                send(None)
                return
            watcher = _Watcher(send)
            if not (self._add(watcher) and context.add_callback(lambda: self._remove(watcher))):
                self._remove(watcher)
                return
            context.send_initial_metadata(())  # from now on no change is missed

        # So gRPC leaves the call to us when this returns, rather than keeping a thread in an iterator.
        watch.experimental_non_blocking = True  # type: ignore[attr-defined] # a function has any
        return grpc.unary_stream_rpc_method_handler(
            watch,
            request_deserializer=None,  # whatever it says, it asks for the news
            response_serializer=StringValue.SerializeToString,
        )

    def end(self) -> None:
        """End all streams."""
        with self._lock:
            self._is_over = True
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.end()

    def _add(self, watcher: _Watcher) -> bool:
        with self._lock:
            if not self._is_over:
                self._watchers.add(watcher)
                watcher.start()
            return not self._is_over

    def _remove(self, watcher: _Watcher) -> None:
        with self._lock:
            self._watchers.discard(watcher)
        watcher.end()


class _Watcher:
    """One stream and the thread that sends into it: gRPC keeps who sends until there is room, however long the other
    side reads nothing, and nobody else is to wait for that."""

    def __init__(self, send: _Send) -> None:
        self._send = send
        self._changed: frozenset[str] = frozenset()
        self._something = Event()
        self._lock = Lock()
        self._is_over = False

    def start(self) -> None:
        """Send, from now on, what is told."""
        Thread(target=self._run, name="stigg-sidecar-news", daemon=True).start()

    def tell(self, customers: frozenset[str]) -> None:
        """These customers have changed; the empty id is everybody."""
        with self._lock:
            changed = self._changed | customers
            self._changed = _EVERYBODY if "" in changed or len(changed) > MOST_NAMED else changed
            self._something.set()

    def end(self) -> None:
        """End the stream."""
        self._is_over = True
        self._something.set()
        self._send(None)

    def _run(self) -> None:
        pause = Event()
        while not self._is_over:
            self._something.wait()
            pause.wait(PAUSE_SECONDS)
            with self._lock:
                self._something.clear()
                changed, self._changed = self._changed, frozenset()
            for customer in changed:
                self._send(StringValue(value=customer))  # which does nothing once the stream has ended

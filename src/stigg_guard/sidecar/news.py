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


class News:
    """The watchers of one server. They take none of its threads: one of ours tells all of them, while there are any."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._watchers: set[_Send] = set()
        self._changed: set[str] = set()
        self._something = Event()
        self._is_over = False
        self._teller: Thread | None = None

    def tell(self, customers: frozenset[str] | None) -> None:
        """These customers have changed; None is everybody. Returns at once."""
        with self._lock:
            if self._watchers:
                self._changed |= _EVERYBODY if customers is None else customers
                self._something.set()

    def handler(self, accepts: Callable[[grpc.ServicerContext], bool]) -> grpc.RpcMethodHandler[Message, Message]:
        """What serves a watcher whose call ``accepts`` lets in."""

        def watch(_: bytes, context: grpc.ServicerContext, send: _Send) -> None:
            if not accepts(context):
                context.set_code(grpc.StatusCode.UNAUTHENTICATED)
                send(None)
                return
            if not (self._add(send) and context.add_callback(lambda: self._remove(send))):
                self._remove(send)
                return
            context.send_initial_metadata(())  # from now on no change is missed

        # So gRPC leaves the call to us when this returns, rather than keeping a thread in an iterator.
        watch.experimental_non_blocking = True  # type: ignore[attr-defined]
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
            self._something.set()
        for send in watchers:
            send(None)

    def _add(self, send: _Send) -> bool:
        with self._lock:
            if self._is_over:
                return False
            self._watchers.add(send)
            if self._teller is None:
                self._teller = Thread(target=self._run, name="stigg-sidecar-news", daemon=True)
                self._teller.start()
            return True

    def _remove(self, send: _Send) -> None:
        with self._lock:
            self._watchers.discard(send)
        send(None)

    def _run(self) -> None:
        pause = Event()
        while True:
            self._something.wait()
            pause.wait(PAUSE_SECONDS)
            with self._lock:
                if self._is_over:
                    return
                self._something.clear()
                changed, self._changed = self._changed, set()
                watchers = list(self._watchers)
            if "" in changed or len(changed) > MOST_NAMED:
                changed = set(_EVERYBODY)
            for send in watchers:
                for customer in changed:
                    send(StringValue(value=customer))

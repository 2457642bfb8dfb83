"""Hears from a local sidecar whose entitlements have changed, by a stream that costs nothing but freshness."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from stigg_guard.channel.target import Target
from stigg_guard.runtime.threads import start
from stigg_guard.wire import WATCH

PAUSES = (0.2, 10.0)
STOP_SECONDS = 2.0


class Listener:
    """Hears changes in a thread of this process, until it is stopped, or ``heard`` is gone.

    ``heard``, a bound method that is held weakly, is called with the id of the customer who has changed, None for
    anybody: also when the stream was broken for a while, or ``is_again`` one. A sidecar that does not know the stream
    is not asked again.
    """

    def __init__(self, target: Target, heard: Callable[[str | None], None], is_again: bool) -> None:
        self._target = target
        self._is_again = is_again
        self._heard = weakref.WeakMethod(heard)
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._call: Any = None
        self._thread = threading.Thread(target=self._run, name="stigg-guard-news", daemon=True)
        if not _is_under_gevent():  # where a stream would keep its hub
            start(self._thread)

    def stop(self) -> None:
        """Ends the stream and waits for the thread to leave gRPC."""
        with self._lock:
            self._over.set()
            call = self._call
        if call is not None:
            call.cancel()
        if self._thread is not threading.current_thread() and self._thread.ident is not None:
            self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        pause, longest = PAUSES
        while not self._over.is_set() and self._heard() is not None:
            with self._target.open() as channel:
                try:
                    for change in self._opened(channel):
                        self._is_again, pause = True, PAUSES[0]
                        if change is not None:
                            self._tell(change)
                except grpc.RpcError as error:
                    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                        return
            self._over.wait(pause)
            pause = min(2 * pause, longest)

    def _opened(self, channel: grpc.Channel) -> Iterator[str | None]:
        """None when the stream is open, then each change."""
        watch = channel.unary_stream(WATCH, None, StringValue.FromString)
        with self._lock:
            if self._over.is_set():
                return
            self._call = call = watch(b"", metadata=self._target.metadata)
        call.initial_metadata()
        yield "" if self._is_again else None
        for change in call:
            yield change.value

    def _tell(self, customer: str) -> None:
        heard = self._heard()
        if heard is None:
            self._over.set()
        else:
            heard(customer or None)


def _is_under_gevent() -> bool:
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))

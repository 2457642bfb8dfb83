"""The status page: what a local sidecar knows, live, and changes to it by whoever has the token."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from hmac import compare_digest
from importlib.resources import files
from threading import BoundedSemaphore, Event, Lock
from time import monotonic
from typing import Any

from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.journal import Journal
from stigg_guard.sidecar.metrics import Metrics
from stigg_guard.sidecar.page.changes import Changes
from stigg_guard.sidecar.page.status import Status

EVENTS = "/events"
CHANGES = "/changes/"
TOKEN_HEADER = "X-Sidecar-Token"  # noqa: S105 - the name of it
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
LOOK_SECONDS = 0.2
HEARTBEAT_SECONDS = 15.0
MOST_STREAMS = 20
SHARED_SECONDS = 2.0
"""What is shown tells the time, too: a stream that begins later is shown it anew."""

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}


class Page:
    """The page of one engine. ``token`` is what changes must carry."""

    def __init__(self, engine: Engine, journal: Journal, metrics: Metrics, token: str) -> None:
        self._engine = engine
        self._status = Status(engine, journal, metrics)
        self._changes = Changes(engine)
        self._token = token
        self._over = Event()
        self._streams = BoundedSemaphore(MOST_STREAMS)
        self._making = Lock()
        self._made_of: object = None
        self._made: dict[str, bytes] = {}

    def file(self, path: str) -> tuple[bytes, str] | None:
        """What a path shows, and its media type; None for a path that is not of the page."""
        return _read(*_FILES[path]) if path in _FILES else None

    def may_change(self, token: str | None) -> bool:
        """Whether it is the token."""
        return compare_digest((token or "").encode(), self._token.encode())

    def change(self, name: str, given: Mapping[str, Any]) -> None:
        """As :meth:`Changes.make`."""
        self._changes.make(name, given)

    @contextmanager
    def stream(self, search: str) -> Iterator[Iterator[bytes] | None]:
        """Server-sent events, each with all that is shown, whenever something is new; None when too many are read."""
        if not self._streams.acquire(blocking=False):
            yield None
            return
        try:
            yield self._told(search)
        finally:
            self._streams.release()

    def end(self) -> None:
        """End all streams."""
        self._over.set()

    def _told(self, search: str) -> Iterator[bytes]:
        version: object = None
        quiet = 0.0
        while not self._over.is_set():
            self._engine.refresh()
            if self._status.version != version:
                version, quiet = self._status.version, 0.0
                yield self._event(version, search)
            elif quiet >= HEARTBEAT_SECONDS:
                quiet = 0.0
                yield b": still there\n\n"  # who has gone is found by it
            self._over.wait(LOOK_SECONDS)
            quiet += LOOK_SECONDS

    def _event(self, version: object, search: str) -> bytes:
        """What is shown, made once for all streams that show the same at the same time."""
        with self._making:
            of = (version, monotonic() // SHARED_SECONDS)
            if of != self._made_of or len(self._made) == MOST_STREAMS:
                self._made_of, self._made = of, {}
            if search not in self._made:
                self._made[search] = b"data: " + json.dumps(self._status.shown(search)).encode() + b"\n\n"
            return self._made[search]


@cache
def _read(name: str, media_type: str) -> tuple[bytes, str]:
    return files("stigg_guard.sidecar.page").joinpath(name).read_bytes(), media_type

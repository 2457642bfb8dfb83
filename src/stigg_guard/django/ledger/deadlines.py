"""Deadlines of steps on connections. A server may keep a client waiting that asks it nothing, as a pooler does when it
has no connection left: no time-out of a statement ends that. So the client hangs up.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic, sleep

from stigg_guard.runtime.forks import follow_forks
from stigg_guard.runtime.threads import start

_steps: dict[object, tuple[float, socket.socket]] = {}  # changed and read by single operations only
_lock = threading.Lock()
_is_watched = False


@contextmanager
def cut_at(deadline: float, connection: socket.socket) -> Iterator[None]:
    """Shuts the connection down at the deadline, in ``time.monotonic()``, if the block has not ended by then."""
    step = object()
    _steps[step] = deadline, connection
    try:
        _ensure_watch()
        yield
    finally:
        _steps.pop(step, None)


def cut(connection: socket.socket) -> None:
    """Shuts the connection down, for all who have it, and whoever waits for it."""
    with suppress(OSError):  # it is down already
        connection.shutdown(socket.SHUT_RDWR)


def _ensure_watch() -> None:
    global _is_watched
    with _lock, suppress(RuntimeError):  # there are no new threads when the interpreter ends
        if not _is_watched:
            start(threading.Thread(target=_run, name="stigg-guard-deadlines", daemon=True))
            _is_watched = True


def _run() -> None:
    while waiting := _waiting():
        first = min(deadline for _, (deadline, _) in waiting)
        sleep(max(0.0, first - monotonic()))
        for step, (deadline, connection) in waiting:
            if deadline <= monotonic() and _steps.pop(step, None) is not None:
                cut(connection)


def _waiting() -> list[tuple[object, tuple[float, socket.socket]]]:
    """The steps under way; without any the thread ends."""
    global _is_watched
    with _lock:
        waiting = list(_steps.items())
        _is_watched = bool(waiting)
    return waiting


def _forget_parent() -> None:
    global _lock, _is_watched
    _steps.clear()
    _lock, _is_watched = threading.Lock(), False


follow_forks(after_in_child=_forget_parent)

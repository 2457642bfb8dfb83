"""Starts threads where an exception from outside may strike."""

from __future__ import annotations

import _thread
import threading
from queue import SimpleQueue


def start(thread: threading.Thread) -> None:
    """Starts a thread. An exception from outside that strikes meanwhile is raised as it is, and the thread starts.

    ``threading`` keeps books of what starts, and locks to wait for it. Torn there, it would raise an error of its own,
    and let the new thread die. So this is done in a thread that nothing strikes, and who asks waits in C code.

    Raises:
        RuntimeError: no thread can be started, as when the interpreter ends.
    """
    outcome: SimpleQueue[BaseException | None] = SimpleQueue()

    def begin() -> None:
        try:
            thread.start()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            outcome.put(error)
        else:
            outcome.put(None)

    _thread.start_new_thread(begin, ())
    error = outcome.get()
    if error is not None:
        try:
            raise error
        finally:
            del error  # it holds this frame by its traceback

"""Starts threads where an exception from outside may strike."""

from __future__ import annotations

import threading


def start(thread: threading.Thread) -> None:
    """Starts a thread. What is raised from outside meanwhile is raised as it is.

    ``threading`` takes a thread that was torn so out of its books, where the thread itself has been before: it would
    raise a ``KeyError`` in place of that exception.
    """
    try:
        thread.start()
    except KeyError as error:
        if error.__context__ is None:
            raise
        raise error.__context__ from None

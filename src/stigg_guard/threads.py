"""Starts threads where an exception from outside may strike."""

from __future__ import annotations

import sys
import threading


def start(thread: threading.Thread) -> None:
    """Starts a thread. What is raised from outside meanwhile is raised as it is.

    ``threading`` takes a thread that was torn so out of its books, where the thread itself has been before: it would
    raise a ``KeyError`` in place of that exception.
    """
    handled = sys.exc_info()[1]
    try:
        thread.start()
    except KeyError as error:
        struck_by = error.__context__
        if struck_by is None or struck_by is handled:
            raise
        raise struck_by from None

"""The logger of this library. Whatever is logged, a line of the log begins with words of our own."""

from __future__ import annotations

import logging
from numbers import Number

from stigg_guard.errors import ConfigError
from stigg_guard.foreign import printable

_FORMATTER = logging.Formatter()

logger = logging.getLogger("stigg_guard")


class _OwnLines(logging.Filter):
    """Keeps what comes from a request, a customer or a server on the line that it is a part of.

    What a record tells is put on one line, but for a ``ConfigError``, whose lines are ours. Tracebacks, which end with
    the words of whoever raised, are indented.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(map(_shown, record.args))
        if record.exc_info and not record.exc_text:
            lines = _FORMATTER.formatException(record.exc_info).split("\n")
            record.exc_text = "\n".join(f"  {printable(line)}" for line in lines)
        return True


def _shown(told: object) -> object:
    return told if isinstance(told, (Number, ConfigError)) else printable(str(told))


logger.addFilter(_OwnLines())

"""The local sidecar's log on standard error: lines of text, or of JSON for who collects them."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonLines(logging.Formatter):
    """A record as one JSON object on one line: ``time``, ``level``, ``logger``, ``message`` and, after an error that
    was not expected, ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            told["exception"] = record.exc_text or self.formatException(record.exc_info)
        return json.dumps(told)


def log_to_stderr(level: str, format_: str) -> None:
    """Log what is of this level or above: ``json`` or ``text``. For a process that has no log of its own yet."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if format_ == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=level, handlers=[handler])

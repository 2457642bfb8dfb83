"""The ledger: holds on units that are being used, and usage that the sidecar has not acknowledged yet."""

from __future__ import annotations

import os
import re
from urllib.parse import quote, unquote

from stigg_guard.clock import Clock
from stigg_guard.errors import ConfigError
from stigg_guard.ledger.accounting import News, Period, Row
from stigg_guard.ledger.entries import (
    Acknowledged,
    Batch,
    Claim,
    Entry,
    Event,
    Hold,
    Ledger,
    Refused,
    State,
    Ticket,
    UsageKey,
    Use,
)
from stigg_guard.ledger.sqlite import SqliteLedger

__all__ = [
    "Acknowledged",
    "Batch",
    "Claim",
    "Entry",
    "Event",
    "Hold",
    "Ledger",
    "News",
    "Period",
    "Refused",
    "Row",
    "State",
    "Ticket",
    "UsageKey",
    "Use",
    "default_ledger",
    "ledger_from_url",
    "user_state_folder",
]


def default_ledger(folder: str | os.PathLike[str], sidecar: str) -> str:
    """The URL of the ledger in a folder, which is made if need be; one for each sidecar, since usage belongs to it.

    What ``local`` and ``offline`` count is gone with the process, and so is their ledger: it is in memory.

    Raises:
        ConfigError: the folder cannot be made, or not be written.
    """
    if sidecar in ("local", "offline"):
        return "memory://"
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"LEDGER: the folder {folder} cannot be made ({error.strerror}); name another") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"LEDGER: the folder {folder} cannot be written; name another place for the ledger")
    name = re.sub(r"[^\w.-]+", "_", sidecar)
    return f"sqlite:///{quote(os.path.join(os.path.abspath(folder), f'stigg-guard-{name}.sqlite3'))}"


def user_state_folder() -> str:
    """Where the state of a user's programs is kept, by the XDG convention."""
    return os.path.join(
        os.environ.get("XDG_STATE_HOME") or os.path.expanduser(os.path.join("~", ".local", "state")), "stigg-guard"
    )


def ledger_from_url(url: str, clock: Clock, *, settle_grace: float = 0.0) -> Ledger:
    """The ledger at a URL: ``memory://``, ``sqlite:///path`` for all processes of a host, ``redis://…`` for many hosts.

    A path is relative to the working directory, or absolute with a fourth slash; what a URL cannot carry in it is
    percent-encoded. ``settle_grace`` is in seconds. Nothing is opened or connected before the first use.

    Raises:
        ConfigError: the URL names no ledger. A file that cannot be used is told of on first use.
        MissingExtra: it is a Redis URL, and the extra ``redis`` is not installed.
    """
    scheme, _, rest = url.partition("://")
    if url == "memory://":
        return SqliteLedger(None, clock, settle_grace=settle_grace)
    if scheme == "sqlite" and len(rest) > 1 and rest.startswith("/") and not set(rest) & set("?#"):
        return SqliteLedger(unquote(rest[1:]), clock, settle_grace=settle_grace)
    if scheme in ("redis", "rediss"):
        from stigg_guard.ledger.redis import RedisLedger  # it needs an extra that most installations do without

        return RedisLedger(url, clock, settle_grace=settle_grace)
    if scheme == "django":
        raise ConfigError("LEDGER: django://alias is a ledger of Django sites only: set it in settings.STIGG_GUARD")
    raise ConfigError(
        "LEDGER: this URL, which may hold a password, names no ledger: write memory://, sqlite:///path or redis://host"
    )

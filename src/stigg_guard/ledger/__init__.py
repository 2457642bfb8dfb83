"""The ledger, an outbox: holds (reservations) on units, and usage that the sidecar has not acknowledged yet."""

from __future__ import annotations

from stigg_guard.clock import Clock
from stigg_guard.errors import ConfigError
from stigg_guard.ledger.accounting import News, Period, Row
from stigg_guard.ledger.entries import (
    Acknowledged,
    Batch,
    Claim,
    CreditRate,
    Entry,
    Event,
    Hold,
    Ledger,
    LimitExceeded,
    Once,
    State,
    Ticket,
    UsageKey,
    Use,
)
from stigg_guard.ledger.sqlite import SqliteLedger
from stigg_guard.runtime.log import logger
from stigg_guard.settings.urls import REDIS, SQLITE, ledger_file, redis_url, require_parts

__all__ = [
    "Acknowledged",
    "Batch",
    "Claim",
    "CreditRate",
    "Entry",
    "Event",
    "Hold",
    "Ledger",
    "LimitExceeded",
    "News",
    "Once",
    "Period",
    "Row",
    "SqliteLedger",
    "State",
    "Ticket",
    "UsageKey",
    "Use",
    "ledger_from_url",
]


def ledger_from_url(url: str, clock: Clock, *, settle_grace: float = 0.0) -> Ledger:
    """The ledger at a URL: ``memory://``, ``sqlite:///path`` for all processes of a host, ``redis://…`` for many hosts,
    with a Redis or with those that sentinels (``redis+sentinel://…``) or a cluster (``redis+cluster://…``) know.

    A path is relative to the working directory, or absolute with a fourth slash; what a URL cannot carry in it is
    percent-encoded. ``?mode=0660&group=web`` shares the file. ``settle_grace`` is in seconds. Nothing is opened or
    connected before the first use.

    Raises:
        ConfigError: the URL names no ledger. A file that cannot be used is told on first use.
        MissingExtra: it is a Redis URL, and the extra ``redis`` is not installed.
    """
    try:
        require_parts(url)
    except ValueError as error:
        raise ConfigError(f"LEDGER: {error}") from error
    if url == "memory://":
        logger.info("the ledger is in memory: usage that was not reported yet is lost when this process ends")
        return SqliteLedger(None, clock, settle_grace=settle_grace)
    if url.startswith(SQLITE):
        return SqliteLedger(ledger_file(url), clock, settle_grace=settle_grace)
    if url.startswith(REDIS):
        return _in_redis(url, clock, settle_grace)
    if url.startswith("django://"):
        raise ConfigError("LEDGER: django://alias is a ledger of Django sites only: set it in settings.STIGG_GUARD")
    raise ConfigError(
        "LEDGER: this URL, which may hold a password, names no ledger: write memory://, sqlite:///path or redis://host"
    )


def _in_redis(url: str, clock: Clock, settle_grace: float) -> Ledger:
    """What it needs is an extra that most installations do without."""
    if redis_url(url, of_ledger=True).kind == "cluster":
        from stigg_guard.ledger.redis_cluster import RedisClusterLedger

        return RedisClusterLedger(url, clock, settle_grace=settle_grace)
    from stigg_guard.ledger.redis import RedisLedger

    return RedisLedger(url, clock, settle_grace=settle_grace)

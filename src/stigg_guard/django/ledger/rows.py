"""Rows of the ledger as what it tells, and what it is told as rows."""

from __future__ import annotations

import json
from urllib.parse import quote, unquote

from stigg_guard.django.ledger.models import Entry, HeldUnits
from stigg_guard.ledger import Entry as Report
from stigg_guard.ledger import Event, State, UsageKey, Use


def text_of(key: UsageKey) -> str:
    """The key as one column."""
    ids = (key.customer_id, key.resource_id, key.feature_id)
    return "/".join(quote(part, safe="", errors="surrogatepass") for part in ids)


def _key_of(text: str) -> UsageKey:
    return UsageKey(*(unquote(part, errors="surrogatepass") for part in text.split("/")))


def entry_of(use: Use, now: float) -> Entry:
    """The row of a use that is unsent."""
    return Entry(
        key=text_of(use.key),
        state=State.UNSENT.value,
        amount=use.amount,
        is_set=use.is_set,
        used_at=now,
        period_start=use.period_start,
        event=_event_text(use.event),
    )


def report_of(entry: Entry) -> Report:
    """What the ledger tells of an entry."""
    return Report(
        id=str(entry.pk),
        state=State(entry.state),
        key=_key_of(entry.key),
        amount=entry.amount,
        is_set=entry.is_set,
        used_at=entry.used_at,
        event=Event(**json.loads(entry.event)) if entry.event else None,
        reason=entry.reason,
        attempts=entry.attempts,
    )


def held_report_of(units: HeldUnits) -> Report:
    """What the ledger tells of a hold on a key."""
    return Report(units.hold, State.HELD, _key_of(units.key), units.amount, False, units.taken_at)


def _event_text(event: Event | None) -> str | None:
    if event is None:
        return None
    fields = {"name": event.name, "idempotency_key": event.idempotency_key, "dimensions": dict(event.dimensions)}
    return json.dumps(fields)

"""How the Redis ledger names its keys, and how its values are written as words of commands and read from answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote

from stigg_guard.amounts import quanta, units
from stigg_guard.errors import InvalidRequest
from stigg_guard.ledger.accounting import Row
from stigg_guard.ledger.entries import (
    Claim,
    Entry,
    Hold,
    Once,
    State,
    UsageKey,
    Use,
    event_text,
    period_of,
    period_text,
    stored_entry,
)

PREFIX = "stigg-guard:2:"
OLD_PREFIX = "stigg-guard:"

_QUEUE = f"{PREFIX}{{queue}}:"
CUSTOMERS, LATE = f"{_QUEUE}customers", f"{_QUEUE}late"
QUEUES = {kind: f"{_QUEUE}{kind}" for kind in ("unsent", "event", "uncertain")}
QUEUE_KEYS = (CUSTOMERS, *QUEUES.values(), *(f"{_QUEUE}{name}" for name in ("later", "leases", "batches", "clock")))

_OLD_QUEUE = f"{OLD_PREFIX}{{queue}}:"
OLD_LEASES, OLD_LEASES_KEPT = f"{_OLD_QUEUE}leases", f"{_QUEUE}old-leases"
OLD_LATE = f"{_OLD_QUEUE}late"
OLD_QUEUE_KEYS = tuple(f"{_OLD_QUEUE}{name}" for name in ("customers", "unsent", "event", "uncertain"))
_OLD_CUSTOMER_KEYS = (
    *("usage", "entries", "live", "counters", "tallies"),
    *("held", "unsent", "event", "sending", "uncertain", "dead"),
)

FieldRow = Sequence[Any]


def quoted(part: str) -> str:
    """An id as a piece of a key: no two ids alike, and none with a brace, a slash or a blank."""
    return quote(part, safe="", errors="surrogatepass")


def unquoted(part: str) -> str:
    return unquote(part, errors="surrogatepass")


@lru_cache(maxsize=1024)
def customer_keys(customer: str) -> tuple[str, ...]:
    """The keys of a customer, whose id is quoted."""
    prefix = f"{PREFIX}{{customer/{customer}}}:"
    return f"{prefix}book", f"{prefix}index"


def ended_key(customer: str, hold_id: str) -> str:
    """What is there for some time once the hold was committed."""
    return f"{PREFIX}{{customer/{customer}}}:ended:{hold_id}"


def once_keys(once: Once | None) -> tuple[str, ...]:
    """Where a caller's key is kept, if there is one."""
    return () if once is None else (f"{PREFIX}{{customer/{quoted(once.customer_id)}}}:once:{once.digest}",)


def old_customer_keys(customer: str) -> tuple[str, ...]:
    """Where the version before kept what a customer has."""
    return tuple(f"{OLD_PREFIX}{{customer/{customer}}}:{name}" for name in _OLD_CUSTOMER_KEYS)


def batch_key(batch: str) -> str:
    return f"{_QUEUE}batch:{batch}"


def old_batch_key(batch: str) -> str:
    return f"{_OLD_QUEUE}batch:{batch}"


def microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)


def name_of(key: UsageKey) -> str:
    """A key within its customer."""
    return f"{quoted(key.resource_id)}/{quoted(key.feature_id)}"


def one_customer(keys: Iterable[UsageKey], once: Once | None = None) -> str:
    """The customer of all these keys, quoted.

    Raises:
        InvalidRequest: they are of different customers, or there are none.
    """
    customers = {key.customer_id for key in keys}.union(() if once is None else [once.customer_id])
    if len(customers) != 1:
        raise InvalidRequest("customer_id", "a Redis ledger holds and commits for one customer at a time")
    return quoted(customers.pop())


def holder(hold: Hold) -> str:
    return one_customer((claim.key for claim in hold.claims), hold.once)


def held_parts(hold: Hold) -> list[str]:
    """The ids of a hold's parts, one of each key."""
    return list(dict.fromkeys(f"{name_of(claim.key)}/{hold.id}" for claim in hold.claims))


def claim_words(claim: Claim) -> Sequence[Any]:
    news = claim.news
    limit = "" if news.limit is None else news.limit
    figures = period_text(news.period), news.used, limit, news.ticket, news.asked_at
    prices = [word for key, rate in claim.pays_for for word in (name_of(key), repr(float(rate)))]
    return name_of(claim.key), quanta(claim.amount), *figures, len(claim.pays_for), *prices


def use_words(use: Use) -> Sequence[Any]:
    how = int(use.is_set), event_text(use.event), use.details
    return name_of(use.key), quanta(use.amount), *how


def split_id(entry_id: str) -> tuple[str, str]:
    """The customer of an entry, quoted, and the entry's id there."""
    customer, _, entry = entry_id.partition("/")
    return customer, entry


def pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def row_of(fields: FieldRow) -> Row:
    period, used, limit, seen, settled, settled_at, moved_at, added = fields
    limit, settled_at, moved_at = (None if one == "" else one for one in (limit, settled_at, moved_at))
    return Row(period_of(period), used, limit, seen, settled, settled_at, moved_at, added)


def entry_of(customer: str, fields: FieldRow) -> Entry:
    """An entry of a customer, or a part of a hold, which has fewer fields."""
    if fields[1] == State.HELD.value:
        return _held(customer, fields)
    entry_id, state, *stored = fields
    _, resource, feature = entry_id.split("/")
    key = UsageKey(unquoted(customer), unquoted(resource), unquoted(feature))
    return stored_entry(f"{customer}/{entry_id}", state, key, stored)


def number_of(entry: Entry) -> tuple[str, str]:
    """What orders entries: their number, and the customer where two have the same."""
    customer, rest = split_id(entry.id)
    return rest[:16], customer


def _held(customer: str, fields: FieldRow) -> Entry:
    part, _, amount, taken_at, period = fields
    resource, feature, hold_id = part.split("/")
    return Entry(
        id=hold_id,
        state=State.HELD,
        key=UsageKey(unquoted(customer), unquoted(resource), unquoted(feature)),
        amount=units(amount),
        is_set=False,
        used_at=taken_at * 1000,
        period=period_of(period),
        first_at=taken_at,
    )

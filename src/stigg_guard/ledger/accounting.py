"""The rules of quotas and of reconciliation: pure functions over frozen values, without storage and without a clock.

Amounts are whole numbers of quanta (see ``stigg_guard.amounts``). Periods and the times of uses are whole nanoseconds
since the epoch, as the wire has them. Instants of the ledger's own clock, by which holds, leases and the grace are
timed, are whole microseconds. *Tickets* are numbers that only grow: the sequence numbers of snapshots and reports.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

BATCH_EVENTS_PER_USAGE = 10
"""The contract takes 1000 events or 100 usages at once."""
EXPIRED_HOLDS_KEPT = 86_400 * 1_000_000
"""For how many microseconds an expired hold can still be committed as what it is, a late one."""
KEYS_KEPT = 86_400 * 1_000_000
"""For how many microseconds all uses with one key count once, unless it says otherwise."""
ADDED_UP_WITHIN = 60 * 1_000_000_000
"""How many nanoseconds two uses may lie apart to be one report: a clock that was wrong spoils no more than that."""


class Period(NamedTuple):
    """A usage period as the sidecar told it; two are the same if both ends are equal. None where it told nothing."""

    start: int | None = None
    end: int | None = None

    def ended_before(self, other: Period) -> bool:
        """Whether the sidecar's own figures say that this period was over when the other one began."""
        return self.end is not None and other.start is not None and self.end <= other.start

    def holds(self, instant: int) -> bool:
        """Whether the instant lies within, as far as the ends are known."""
        return (self.start is None or self.start <= instant) and (self.end is None or instant < self.end)

    def surely_holds(self, instant: int) -> bool:
        """Whether it lies within a period of which both ends were told, or that has none at all."""
        return self.holds(instant) and (self.start is None) == (self.end is None)


UNTOLD = Period()
"""The period of a feature whose usage never begins anew, or of which nothing was told."""


class News(NamedTuple):
    """What a snapshot says of a key. Its ticket was drawn, and ``asked_at`` read, before it was asked for.

    ``limit`` is None when nothing limits the usage. A ticket of 0 stands for none: the figures may be of any age.
    """

    period: Period
    used: int
    limit: int | None
    ticket: int = 0
    asked_at: int = 0


class Row(NamedTuple):
    """What the ledger believes of a key.

    ``seen`` is the ticket of the newest snapshot heeded, ``settled`` that of the last report taken or acknowledged, and
    ``settled_at`` when the latter was. ``moved_at`` is when it came into this period from another one, or to a lower
    limit. ``added`` is what ``used`` has beyond the sidecar's own word.
    """

    period: Period
    used: int
    limit: int | None = None
    seen: int = 0
    settled: int = 0
    settled_at: int | None = None
    moved_at: int | None = None
    added: int = 0


class Pending(NamedTuple):
    """Usage on its way to the sidecar. ``period`` is that of the row when its units were held; ``ticket`` that of its
    first sending, 0 before that; ``dimensions`` are any text that is the same for the same ones."""

    amount: int
    period: Period
    used_at: int
    is_set: bool = False
    ticket: int = 0
    dimensions: str = ""


class Before(NamedTuple):
    """What the row said when a report was first sent, by which reading the usage back can decide about it."""

    period: Period
    used: int
    moved_at: int | None


class Mark(NamedTuple):
    """What is noted of a caller's key until it ``ends``: the hold that its use is in, or none once that was counted,
    and what the key is bound to."""

    hold: str
    ends: int
    binding: str = ""


class KeyState(str, Enum):
    """What a caller's key says of a use that comes with it: nothing, that it is held or counted, or that it is another
    one than that which the key is bound to."""

    FREE = "free"
    HELD = "held"
    COUNTED = "counted"
    BOUND = "bound"


def stamped(period: Period, read: int) -> int:
    """The time to report for a use: what a clock says, but not before the period in which the units were held."""
    return read if period.start is None else max(read, period.start)


def sent_at(period: Period, used_at: int, read: int) -> int:
    """The time to send with a report: one that lies ahead of the clock is the mistake of a clock that was wrong."""
    return stamped(period, min(used_at, read))


def believed(row: Row | None, news: News, now: int, grace: int) -> tuple[Row, int | None]:
    """The row after a claim's news, and the limit to decide that claim by."""
    if row is None:
        return Row(news.period, news.used, news.limit, news.ticket), news.limit
    if news.ticket <= row.seen:  # older than what was heeded
        return row, _lower(row.limit, news.limit)
    row = _not_ahead(row, now)
    asked_at = news.asked_at if news.asked_at <= now else 0
    may_lower = news.ticket > row.settled and (row.settled_at is None or asked_at >= row.settled_at + grace)
    told = news.used if may_lower else news.used + row.added
    has_just_moved = row.moved_at is not None and asked_at < row.moved_at + grace
    lower = _lower(row.limit, news.limit)
    if news.period == row.period:
        used = news.used if may_lower else max(row.used, news.used if row.seen else told)
        limit = lower if has_just_moved else news.limit
        moved_at = row.moved_at if lower == row.limit else now
        added = used - news.used
        if 0 < asked_at < (row.settled_at or 0) >= (row.moved_at or 0):  # the row has the word of a newer report
            added = min(added, row.added)
        row = row._replace(used=used, limit=limit, seen=news.ticket, added=added, moved_at=moved_at)
    elif has_just_moved:  # a replica that lags, or one more change
        used = max(row.used, told)
        added = row.added + used - row.used
        row = row._replace(used=used, limit=lower, seen=news.ticket, added=added, settled_at=now)
    else:
        added = told - news.used
        row = row._replace(period=news.period, used=told, limit=news.limit, seen=news.ticket, added=added, moved_at=now)
    return row, row.limit


def counts(pending: Pending, period: Period) -> bool:
    """Whether usage on its way counts in a period: unless its own is known to have ended before, by both its period as
    told and the time that it carries."""
    was_before = period.start is not None and pending.used_at < period.start
    return not (was_before and pending.period.ended_before(period))


def counted(row: Row, held: int, on_its_way: Iterable[Pending]) -> int:
    """What is used, held and on its way in the row's period. Units given back count once they are acknowledged."""
    used, more = row.used, held
    for pending in on_its_way:
        if counts(pending, row.period):
            if pending.is_set:
                used = max(used, pending.amount)
            else:
                more += max(pending.amount, 0)
    return used + more


def outstanding(held: int, on_its_way: Iterable[Pending]) -> int:
    """What is held and on its way, whatever its period."""
    return counted(Row(UNTOLD, 0), held, on_its_way)


def cost(amount: int, rate: float) -> int:
    """What an amount costs a wallet, in quanta of its currency, rounded up: ``rate`` units of that a unit."""
    return math.ceil(amount * rate - 1e-6)


def affordable(left: int, rate: float, step: int) -> int:
    """The largest multiple of ``step``, in quanta, that costs no more than what is left in a wallet."""
    amount = (int(left / rate) // step + 1) * step
    while amount > 0 and cost(amount, rate) > left:
        amount -= step
    return max(amount, 0)


def priced(report: Pending, rate: float) -> Pending:
    """A report under way as its wallet sees it."""
    return report._replace(amount=cost(max(report.amount, 0), rate), is_set=False)


def is_free(counted_so_far: int, amount: int, limit: int | None) -> bool:
    """Whether the amount fits. A limit of -1 allows nothing, not even 0 units."""
    return limit is None or counted_so_far + amount <= limit


def is_perhaps_free(row: Row, counted_so_far: int, amount: int, limit: int | None, sending: Iterable[Pending]) -> bool:
    """Whether an amount that is not free may be so: a snapshot that was asked for since a report was sent may have its
    usage already, which then counts twice until the report is acknowledged. ``sending`` are the reports under way."""
    twice = [one for one in sending if one.ticket < row.seen and not one.is_set and counts(one, row.period)]
    return bool(twice) and is_free(counted_so_far - sum(max(one.amount, 0) for one in twice), amount, limit)


def taken(row: Row, ticket: int, is_alone: bool) -> tuple[Row, Before | None]:
    """The row after a report was taken to be sent for the first time, and what to note with the report: nothing where
    the row's figure is not the sidecar's own word of all that was sent, as others of the key are under way."""
    before = None if row.added or not is_alone else Before(row.period, row.used, row.moved_at)
    return row._replace(settled=ticket), before


def learned(row: Row | None, pending: Pending, told: int | None, period: Period, ticket: int, now: int) -> Row:
    """The row after an acknowledgement. Its figure is taken, or else the amount is added: it never vanishes.

    ``told`` and ``period`` are what the answer said; None and no ends where it said nothing. Only the newest figure
    lowers the row: one to a report since whose first sending nothing else was heeded, taken or acknowledged.
    """
    if row is None:
        row = Row(period, 0)
    is_newest = max(row.seen, row.settled) <= pending.ticket
    with_it = row.used
    if told is None or counts(pending, row.period):
        with_it = pending.amount if pending.is_set else max(0, row.used + pending.amount)
        is_here = period == row.period or (period == Period() and row.period.surely_holds(pending.used_at))
        if not (is_newest and is_here):  # what was given back may be in the row already, or in another period
            with_it = max(row.used, with_it)
    if told is None or period != row.period:  # only snapshots move the row: they bring the limit along
        added = row.added + max(with_it - row.used, 0)
        return row._replace(used=with_it, added=added, settled=ticket, settled_at=now)
    if row.added or not period.surely_holds(pending.used_at):  # some may count in a period that is not shown yet
        used = max(told, with_it)
    else:
        used = told if is_newest else max(told, row.used)
    return row._replace(used=used, added=used - told, settled=ticket, settled_at=now)


def was_counted(row: Row | None, before: Before | None, pending: Pending, told: int, period: Period) -> bool | None:
    """Whether the usage that was read back shows that a report was counted; None where it cannot show it.

    It can if all is surely one period: that of the first sending, which the row has not left since, with a start that
    was told, or none at all, and with the time of the use in it. Nothing else of the key was taken or acknowledged
    since, and what is given back was there.
    """
    if row is None or before is None or row.moved_at != before.moved_at or row.settled != pending.ticket:
        return None
    if before.period != period or (period.start is None and period.end is not None):
        return None
    if not period.holds(pending.used_at):
        return None
    with_it = before.used + pending.amount
    if pending.is_set or with_it < 0 or told not in (before.used, with_it):
        return None
    return told == with_it


def may_add_up(first: Pending, second: Pending, present: Period) -> bool:
    """Whether two uses may be one report, with the later time: never sent, of one period, sign and dimensions, on one
    side of the period's end, and close together. In the ledger's present period both count, or neither."""
    if first.ticket or second.ticket or first.dimensions != second.dimensions:
        return False
    if counts(first, present) != counts(second, present):
        return False
    is_plain = not first.is_set and not second.is_set and (first.amount > 0) == (second.amount > 0)
    same_side = first.period.holds(first.used_at) == second.period.holds(second.used_at)
    is_close = abs(second.used_at - first.used_at) <= ADDED_UP_WITHIN
    return is_plain and same_side and is_close and first.period == second.period


def key_state(mark: Mark | None, binding: str, now: int) -> KeyState:
    """What the key with this mark says of a use. A hold that expired leaves its key free."""
    if mark is None or mark.ends <= now:
        return KeyState.FREE
    if mark.binding != binding:
        return KeyState.BOUND
    return KeyState.HELD if mark.hold else KeyState.COUNTED


def is_counted(mark: Mark | None, now: int) -> bool:
    """Whether a use with the key was counted: then one whose hold had expired counts no more."""
    return mark is not None and not mark.hold and now < mark.ends


def until(told: int, lasts: int, now: int) -> int:
    """When a hold or a lease ends that was given ``lasts`` microseconds: one that ends later than that from now was
    given before the clock was set back, and begins anew."""
    return min(told, now + lasts)


def _not_ahead(row: Row, now: int) -> Row:
    """The row with no instant ahead of now: those were written before the clock was set back."""
    settled_at, moved_at = row.settled_at, row.moved_at
    if (settled_at or 0) <= now and (moved_at or 0) <= now:
        return row
    return row._replace(settled_at=settled_at and min(settled_at, now), moved_at=moved_at and min(moved_at, now))


def _lower(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else min(one, other)

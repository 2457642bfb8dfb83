"""Steps with holds (reservations): units taken off limits until they are used or given back.

Nobody but the user's transaction that ends a hold waits for its rows, and nobody waits for that transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from stigg_guard.amounts import quanta, units
from stigg_guard.django.ledger import keys as callers_keys
from stigg_guard.django.ledger.rows import text_of
from stigg_guard.django.ledger.step import Step
from stigg_guard.django.ledger.usages import Locked, Standing, note, sending, standings
from stigg_guard.ledger import Claim, Hold, LimitExceeded, Period, Row, UsageKey
from stigg_guard.ledger.accounting import (
    EXPIRED_HOLDS_KEPT,
    KeyState,
    Pending,
    believed,
    cost,
    counted,
    is_free,
    is_perhaps_free,
    priced,
)
from stigg_guard.ledger.entries import period_of, period_text, require_free

_EXPIRE = """
UPDATE stigg_guard_ledger_holds SET counts = false WHERE id IN (
    SELECT id FROM stigg_guard_ledger_holds
    WHERE key IN (%(keys)s) AND counts AND until <= %(now)s FOR UPDATE SKIP LOCKED
) RETURNING key, amount
"""
_BRING_BACK = """
UPDATE stigg_guard_ledger_holds SET until = %(now)s + lasts WHERE id IN (
    SELECT id FROM stigg_guard_ledger_holds
    WHERE key IN (%(keys)s) AND until - lasts > %(now)s FOR UPDATE SKIP LOCKED
)
"""
_TAKE = """
INSERT INTO stigg_guard_ledger_holds (hold, key, amount, period, taken_at, until, lasts, counts) VALUES %(rows)s
"""
_RENEW = """
UPDATE stigg_guard_ledger_holds SET until = %(now)s + %(lasts)s, lasts = %(lasts)s, counts = true WHERE id IN (
    SELECT id FROM stigg_guard_ledger_holds WHERE hold IN (%(holds)s) FOR UPDATE SKIP LOCKED
)
"""
_RELEASE = """
DELETE FROM stigg_guard_ledger_holds WHERE id IN (
    SELECT id FROM stigg_guard_ledger_holds WHERE hold = %(hold)s FOR UPDATE SKIP LOCKED
)
"""
_CLEAR = """
DELETE FROM stigg_guard_ledger_holds WHERE id IN (
    SELECT id FROM stigg_guard_ledger_holds WHERE until < %(now)s - %(kept)s FOR UPDATE SKIP LOCKED
)
"""
_END = "DELETE FROM stigg_guard_ledger_holds WHERE hold = %(hold)s RETURNING key, period, until"


class Part(NamedTuple):
    """What a hold was of one key: the period that its units belong to, and when it ends."""

    period: Period
    until: int


def take(
    step: Step, locked: Locked, hold: Hold, claims: Sequence[Claim], lasts: int, grace: int
) -> Hold | LimitExceeded:
    """Takes all the claims, or none. What their news tell is noted either way."""
    now, rows = locked
    if hold.once is not None:
        require_free(callers_keys.state(step, hold.once, now))
    rows, changed = dict(rows), {}
    wishes: list[tuple[Claim, Row, int | None]] = []
    for claim in claims:
        key = text_of(claim.key)
        row, limit = believed(rows[key], claim.news, now, grace)
        if row != rows[key]:
            rows[key] = changed[key] = row
        wishes.append((claim, row, limit))
    note(step, changed)
    paid_for = {text_of(key) for claim in claims for key, _ in claim.pays_for}
    found = held(step, {*rows, *paid_for}, now)
    taken: dict[str, int] = {}
    for claim, row, limit in wishes:
        key, amount = text_of(claim.key), quanta(claim.amount)
        spent = sum(cost(found[text_of(one)].outstanding(), rate) for one, rate in claim.pays_for)
        total = counted(row, found[key].held + taken.get(key, 0), found[key].pending) + spent
        if not is_free(total, amount, limit):
            perhaps = is_perhaps_free(row, total, amount, limit, _sending(step, claim))
            return LimitExceeded(claim, units(total), units(max(limit or 0, 0)), perhaps)
        taken[key] = taken.get(key, 0) + amount
    periods = {text_of(claim.key): period_text(row.period) for claim, row, _ in wishes}
    parts = [
        (hold.id, key, taken[key], periods[key], now, now + lasts, lasts, True)
        for key in {text_of(claim.key): None for claim in hold.claims}
    ]
    if hold.once is not None and not callers_keys.take(step, hold.once, hold, now + lasts, now):
        require_free(KeyState.HELD)
    if parts:
        step.run(_TAKE, rows=parts)
    return hold


def _sending(step: Step, claim: Claim) -> list[Pending]:
    """The reports under way of the claim's key, and of those that it pays for."""
    paid_for = [priced(one, rate) for key, rate in claim.pays_for for one in sending(step, text_of(key))]
    return [*paid_for, *sending(step, text_of(claim.key))]


def held(step: Step, keys: Collection[str], now: int) -> dict[str, Standing]:
    """What counts of each key. A hold that expired goes on counting only while a transaction is about to commit it;
    those from before the clock was set back begin anew."""
    _, found = standings(step, keys, now=now)
    expired = [key for key, standing in found.items() if standing.ends is not None and standing.ends <= now]
    if expired:
        for key, amount in step.run(_EXPIRE, keys=expired, now=now):
            found[key].held -= amount
    early = [key for key, standing in found.items() if standing.ahead is not None and standing.ahead > now]
    if early:
        step.run(_BRING_BACK, keys=early, now=now)
    return found


def outstanding(step: Step, key: UsageKey) -> float:
    text = text_of(key)
    standing = held(step, [text], step.now())[text]
    return units(standing.outstanding())


def renew(step: Step, holds: Sequence[Hold], lasts: int) -> None:
    step.run(_RENEW, holds=[hold.id for hold in holds], lasts=lasts)
    callers_keys.renew(step, holds, lasts)


def release(step: Step, hold: Hold) -> None:
    step.run(_RELEASE, hold=hold.id)
    if hold.once is not None:
        callers_keys.free(step, hold.once, hold)


def clear(step: Step, now: int) -> None:
    """Deletes the holds that are long expired, whose work will not end them, and marks of keys that are as old."""
    step.run(_CLEAR, now=now, kept=EXPIRED_HOLDS_KEPT)
    callers_keys.clear(step, now)


def end(step: Step, hold: Hold) -> dict[str, Part]:
    """Ends a hold; its parts, by key, as far as they are seen."""
    ended = step.run(_END, hold=hold.id)
    return {key: Part(period_of(period), until) for key, period, until in ended}

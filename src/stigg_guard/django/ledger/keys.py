"""Steps with callers' keys, by which a use counts once. Nobody waits for a user's transaction that is to count one."""

from __future__ import annotations

from collections.abc import Sequence

from stigg_guard.django.ledger.step import Step
from stigg_guard.ledger import Hold, Once
from stigg_guard.ledger.accounting import EXPIRED_HOLDS_KEPT, KeyState, Mark, key_state

FORGOTTEN_AT_ONCE = 10_000
_MARK = "SELECT hold, until, binding FROM stigg_guard_ledger_keys WHERE digest = %(digest)s"
_MARK_UNLESS_LOCKED = f"{_MARK} FOR UPDATE SKIP LOCKED"
_MARK_LOCKED = f"{_MARK} FOR UPDATE"
_NOTE = """
INSERT INTO stigg_guard_ledger_keys AS mark (digest, hold, until, binding) VALUES %(rows)s
ON CONFLICT (digest) DO UPDATE SET hold = excluded.hold, until = excluded.until, binding = excluded.binding
"""
_TAKE = f"{_NOTE} WHERE mark.until <= %(now)s RETURNING digest"
_COUNT = f"{_NOTE} WHERE mark.hold <> '' OR mark.until <= %(now)s RETURNING digest"
_RENEW = """
UPDATE stigg_guard_ledger_keys SET until = %(now)s + %(lasts)s WHERE digest IN (
    SELECT digest FROM stigg_guard_ledger_keys
    WHERE digest IN (%(digests)s) AND hold IN (%(holds)s) FOR UPDATE SKIP LOCKED
)
"""
_FREE = """
DELETE FROM stigg_guard_ledger_keys WHERE digest IN (
    SELECT digest FROM stigg_guard_ledger_keys
    WHERE digest = %(digest)s AND hold = %(hold)s FOR UPDATE SKIP LOCKED
)
"""
_CLEAR = """
DELETE FROM stigg_guard_ledger_keys WHERE digest IN (
    SELECT digest FROM stigg_guard_ledger_keys
    WHERE until < %(now)s - %(kept)s ORDER BY until LIMIT %(most)s FOR UPDATE SKIP LOCKED
)
"""


def state(step: Step, once: Once, now: int) -> KeyState:
    """What the key says of a use. One that a transaction is about to count is held, though its time may be over."""
    found = step.run(_MARK_UNLESS_LOCKED, digest=once.digest)
    if found:
        return key_state(Mark(*found[0]), once.binding, now)
    return KeyState.HELD if step.run(_MARK, digest=once.digest) else KeyState.FREE


def take(step: Step, once: Once, hold: Hold, ends: int, now: int) -> bool:
    """Notes that the hold has the key; False if another step was faster."""
    return bool(step.run(_TAKE, rows=[(once.digest, hold.id, ends, once.binding)], now=now))


def renew(step: Step, holds: Sequence[Hold], lasts: int) -> None:
    keyed = [(hold.once.digest, hold.id) for hold in holds if hold.once is not None]
    if keyed:
        digests, ids = (list(some) for some in zip(*keyed, strict=True))
        step.run(_RENEW, digests=digests, holds=ids, lasts=lasts)


def free(step: Step, once: Once, hold: Hold) -> None:
    """Leaves the key free, if the hold has it."""
    step.run(_FREE, digest=once.digest, hold=hold.id)


def mark_of(step: Step, once: Once) -> Mark | None:
    """What is noted of the key. It is locked from now on: two transactions that count a use with it wait for each
    other."""
    found = step.run(_MARK_LOCKED, digest=once.digest)
    return Mark(*found[0]) if found else None


def count(step: Step, once: Once, now: int) -> bool:
    """Notes that a use with the key is counted; False if one was, be it in a transaction that this one waited for."""
    return bool(step.run(_COUNT, rows=[(once.digest, "", now + once.kept, once.binding)], now=now))


def clear(step: Step, now: int) -> None:
    """Deletes what is long over, some at a time."""
    step.run(_CLEAR, now=now, kept=EXPIRED_HOLDS_KEPT, most=FORGOTTEN_AT_ONCE)

"""Takes units within a quota: all that is wanted, or as many as are left where fewer are enough."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic, sleep
from typing import NamedTuple

from stigg_guard.amounts import quanta, quanta_used, units
from stigg_guard.entitlements import Entitlement, changed
from stigg_guard.ledger import Claim, Hold, Ledger, LimitExceeded, Once
from stigg_guard.ledger.accounting import affordable
from stigg_guard.usage.credits import repriced

_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.05  # in seconds, between two tries to hold what is perhaps free


class Terms(NamedTuple):
    """For how many seconds units are held, how many are enough of the one feature that is wanted (all without), and by
    what the use counts once. ``is_shared``: it may run while another use has the key, and one of them is counted."""

    ttl: float
    at_least: float | None = None
    once: Once | None = None
    is_shared: bool = False


def take_units(ledger: Ledger, claims: Sequence[Claim], terms: Terms, patience: float) -> Hold | LimitExceeded:
    """Takes the claims from the ledger: asks again for ``patience`` seconds while a report under way hides whether they
    fit, and then for what is left, if that is enough."""
    deadline, pause = monotonic() + patience, _FIRST_PAUSE
    while True:
        held = ledger.hold(claims, terms.ttl, terms.once)
        if isinstance(held, Hold):
            return held
        if held.is_perhaps_free and monotonic() < deadline:
            sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            continue
        fewer = None if terms.at_least is None else _fewer(claims, held, terms.at_least)
        if fewer is None:
            return held
        claims = fewer


def exceeded(asked: Entitlement, held: LimitExceeded, enough: float | None) -> Entitlement:
    """The denial of an amount, or of what would have been enough of it, with the figures that the ledger counted."""
    counted = changed(asked, usage_limit=held.limit).with_usage(held.counted)
    return counted.allows(enough or held.claim.amount)


def _fewer(claims: Sequence[Claim], held: LimitExceeded, at_least: float) -> Sequence[Claim] | None:
    """Claims on what is left of the one feature, if that is enough: whole units where such are wanted."""
    wanted, *payments = claims
    rate = dict(held.claim.pays_for).get(wanted.key, 1.0)
    step = quanta(1) if wanted.amount.is_integer() and at_least.is_integer() else 1
    fewer = units(affordable(quanta(held.limit) - quanta_used(held.counted), rate, step))
    if fewer < at_least or fewer >= wanted.amount:
        return None
    return [wanted._replace(amount=fewer), *(repriced(payment, wanted, fewer) for payment in payments)]


def partly(answers: dict[str, Entitlement], hold: Hold) -> dict[str, Entitlement]:
    """The answers, of as many units as are held."""
    held = {claim.key.feature_id: claim.amount for claim in hold.claims}
    return {
        feature: changed(answer, has_access=True, reason=None, requested_usage=held[feature])
        for feature, answer in answers.items()
    }

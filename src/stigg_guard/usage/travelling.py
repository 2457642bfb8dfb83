"""Holds (reservations) that travel: taken by one process and ended by another, which a signed token leads to it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from itsdangerous import BadSignature, URLSafeSerializer

from stigg_guard.entitlements import Customer, Entitlement
from stigg_guard.errors import InvalidRequest
from stigg_guard.ledger import Claim, CreditRate, Hold, News, UsageKey
from stigg_guard.ledger.accounting import EXPIRED_HOLDS_KEPT, UNTOLD
from stigg_guard.usage.consumption import Consumption
from stigg_guard.usage.holds import Holds

_NO_NEWS = News(UNTOLD, used=0, limit=None)
_KEPT_SECONDS = EXPIRED_HOLDS_KEPT / 1e6


@dataclass(frozen=True, slots=True)
class TravellingHold:
    """Units that are held until ``token`` is resumed and ended, here or elsewhere, or until their time is over.

    The token is text of the URL's alphabet. Whoever has it can end the hold: send it only to your own workers.
    """

    token: str = field(repr=False)
    amount: float
    entitlement: Entitlement


class Tokens:
    """Makes the tokens of holds, and reads them: signed, so that none can be forged, and not encrypted."""

    def __init__(self, secret: str | bytes) -> None:
        signer = {"key_derivation": "hmac", "digest_method": hashlib.sha256}
        self._serializer = URLSafeSerializer(secret, salt="stigg_guard.hold", signer_kwargs=signer)

    def token(self, hold: Hold, until: float) -> str:
        """The token of a hold that ends at ``until``, in seconds since the epoch."""
        told = [hold.id, until, [[*claim.key, claim.amount, *(claim.rate or ())] for claim in hold.claims]]
        return str(self._serializer.dumps(told))

    def hold(self, token: str, now: float) -> Hold:
        """The hold that a token leads to.

        Raises:
            InvalidRequest: nobody with this secret has made it, or the hold's end is more than a day ago.
        """
        try:
            number, until, parts = self._serializer.loads(token)
        except (BadSignature, TypeError):
            raise InvalidRequest(
                "token", "this is no token of a hold that was signed with this TOKEN_SECRET; take another hold"
            ) from None
        if now > until + _KEPT_SECONDS:
            raise InvalidRequest("token", "this hold ended more than a day ago and is forgotten; take another one")
        return Hold(number, tuple(_claim(*part) for part in parts))


def _claim(customer: str, resource: str, feature: str, amount: float, *rate: Any) -> Claim:
    key = UsageKey(customer, resource, feature)
    return Claim(key, amount, _NO_NEWS, rate=CreditRate(*rate) if rate else None)


def unheld(amounts: Mapping[str, float], customer: Customer) -> Hold:
    """Stands for the hold where nothing is counted."""
    keys = (UsageKey(customer.id, customer.resource or "", feature) for feature in amounts)
    return Hold("", tuple(Claim(key, amounts[key.feature_id], _NO_NEWS) for key in keys))


class ResumedConsumption(Consumption):
    """A use whose units were held elsewhere: its methods and ``with`` are those of any use.

    It is ended once, whoever resumes it. What ends after the hold's time is reported all the same, and counted as late.
    ``entitlements`` is empty: the answer that allowed the hold did not travel.
    """

    __slots__ = ()

    def __init__(self, holds: Holds, hold: Hold) -> None:
        key = hold.claims[0].key
        amounts = {claim.key.feature_id: claim.amount for claim in hold.claims}
        super().__init__(holds, amounts, Customer(key.customer_id, key.resource_id or None), None, {})
        self.entitlements: Mapping[str, Entitlement] = MappingProxyType({})
        self._hold = hold if hold.id else None  # where nothing is counted, nothing was held

    def begin(self) -> ResumedConsumption:
        """Begins the work. Once.

        Raises:
            InvalidRequest: it was begun before.
        """
        self._pid = self._begun()
        self._confirm = self._holds.begin()
        return self

    def _commit(self, hold: Hold) -> None:
        self._holds.commit(hold, self._amounts, self._event, self._dimensions, travelled=True)

    def extend(self, seconds: float) -> None:
        """Lets the hold last this many seconds from now.

        Raises:
            InvalidRequest: they are not above 0.
            LedgerUnavailable: the ledger cannot take it.
        """
        if not seconds > 0:
            raise InvalidRequest("seconds", f"a hold lasts for more than 0 seconds, not {seconds!r}")
        if self._hold is not None:
            self._holds.extend(self._hold, seconds)

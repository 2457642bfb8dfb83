"""Finds which credit rates and wallets apply to what is wanted, and makes the claims on features and wallets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from stigg_guard.amounts import quanta, quanta_used
from stigg_guard.cache.snapshots import NO_TICKET, Snapshot
from stigg_guard.entitlements import Customer, Entitlement, Kind, Reason, changed
from stigg_guard.ledger import Claim, News, Period, UsageKey
from stigg_guard.runtime.log import logger
from stigg_guard.usage.credits import Rates, price, wallet_claim

Wallets: TypeAlias = "Mapping[str, tuple[Entitlement, Snapshot]]"
"""Wallets of credits by their currency, with the snapshot that each came from."""
Found: TypeAlias = Mapping[str, tuple[Entitlement, "Snapshot | None"]]
"""The answer to each feature that is wanted, and the snapshot that it came from."""


class Pricing:
    """Finds what features cost, by ``CREDIT_RATES`` and by what the sidecar tells, and the wallets that pay."""

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self._unpriced: set[str] = set()

    def wallets(self, found: Found) -> Wallets | None:
        """The wallets that pay for what is wanted; None where only the sidecar can say whether they can."""
        wallets: dict[str, tuple[Entitlement, Snapshot]] = {}
        for feature, (asked, snapshot) in found.items():
            if not asked.needs_fresh_check:
                continue
            rate = self.rates(snapshot).get(feature)
            wallet = snapshot.find(rate.currency) if rate is not None and snapshot is not None else None
            if rate is None or wallet is None or snapshot is None or wallet.kind is not Kind.CREDIT:
                if asked or asked.reason is Reason.INSUFFICIENT_CREDITS:  # what is denied otherwise, no wallet pays for
                    self._warn_of_rate(feature)
                return None
            wallets[rate.currency] = wallet, snapshot
        return wallets

    def rates(self, snapshot: Snapshot | None) -> Rates:
        """What features cost: the setting goes before what the source of the snapshot tells. Those that the plan itself
        pays for cost nothing."""
        if snapshot is None:
            return self._rates
        rates = {**snapshot.rates, **self._rates}
        answers = {feature: snapshot.find(feature) for feature in rates}
        return {
            feature: rate
            for feature, rate in rates.items()
            if (answer := answers[feature]) is None or answer.needs_fresh_check
        }

    def claim(self, asked: Entitlement, snapshot: Snapshot | None, customer: Customer) -> Claim:
        """The claim on what is asked for, with its rate if a wallet pays for it."""
        claim = claim_on(asked, snapshot, customer)
        return claim._replace(rate=self.rates(snapshot).get(asked.feature_id)) if asked.needs_fresh_check else claim

    def payments(self, wallets: Wallets, claims: Sequence[Claim], customer: Customer) -> list[Claim]:
        """The claims on the wallets, for those of the claims that they pay for."""
        return [
            wallet_claim(self.rates(snapshot), claims, claim_on(wallet, snapshot, customer))
            for wallet, snapshot in wallets.values()
        ]

    def _warn_of_rate(self, feature: str) -> None:
        if feature not in self._unpriced:
            self._unpriced.add(feature)
            logger.warning(
                "%r is paid from credits, and nobody tells a rate, so the sidecar is asked at each use, one by one: "
                "set CREDIT_RATES to its currency, which the customer's plan must have, and to what a unit costs",
                feature,
            )


def unpaid(wallet: Entitlement, claims: Sequence[Claim], at_least: float | None) -> tuple[Entitlement, float | None]:
    """What a wallet lacks the credits for: its figures in the name of the feature that it was to pay for, and how many
    of its credits would have been enough."""
    wanted, rate = next((one.key, one.rate) for one in claims if one.rate and one.rate.currency == wallet.feature_id)
    return changed(wallet, feature_id=wanted.feature_id), at_least and price(rate, at_least)


def claim_on(asked: Entitlement, snapshot: Snapshot | None, customer: Customer) -> Claim:
    """The claim on what is asked for, with the figures of its snapshot for the ledger."""
    fetched = snapshot.fetched.get(asked.feature_id, asked) if snapshot is not None else asked
    ticket = snapshot.ticket if snapshot is not None else NO_TICKET
    limit = asked.hard_limit
    news = News(
        Period(*fetched.usage_period_ns),
        quanta_used(fetched.current_usage),
        None if limit is None else quanta(limit),
        ticket.number,
        ticket.at,
    )
    return Claim(UsageKey(customer.id, customer.resource or "", asked.feature_id), asked.requested_usage or 0.0, news)

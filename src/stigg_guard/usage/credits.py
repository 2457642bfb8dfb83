"""Credit rates: reads them, and reckons what an amount of a feature costs and what is claimed of a wallet for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from stigg_guard.amounts import MAX_AMOUNT, quanta, units
from stigg_guard.entitlements import require_id
from stigg_guard.foreign import json_value, quoted
from stigg_guard.ledger import Claim, CreditRate, Entry, UsageKey
from stigg_guard.ledger.accounting import cost

Rates = Mapping[str, CreditRate]
"""By the ids of the features."""
NO_RATES: Rates = {}


def parse_rates(value: Any) -> Rates:
    """The setting ``CREDIT_RATES``: ``{"feature-ai": {"currency": "credits", "rate": 2}}``, or the same as JSON.

    Raises:
        ValueError: it is no such mapping.
    """
    table = json_value(value) if isinstance(value, (str, bytes)) else value
    if not isinstance(table, Mapping):
        raise ValueError("expected a mapping of feature ids to a currency and a rate")
    return {str(feature): _parsed(feature, told) for feature, told in table.items()}


@lru_cache(maxsize=128)
def told_rates(told: bytes) -> Rates:
    """What a source tells, in the form of the setting, as far as it is a rate: none is that of a formula. It tells the
    same of many customers, and each time that one is fetched."""
    if not told:
        return NO_RATES
    rates: dict[str, CreditRate] = {}
    with suppress(TypeError, ValueError):
        for feature, rate in dict(json_value(told)).items():
            with suppress(ValueError):
                rates[feature] = _parsed(feature, rate)
    return MappingProxyType(rates)


def _parsed(feature: Any, told: Any) -> CreditRate:
    if isinstance(told, CreditRate):
        return told
    if not isinstance(told, Mapping) or set(told) != {"currency", "rate"}:
        raise ValueError(f"{feature}: expected a currency and a rate, not {quoted(told)}")
    rate = told["rate"]
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= MAX_AMOUNT:
        raise ValueError(f"{feature}: expected a rate above 0, not {quoted(rate)}")
    require_id(told["currency"], "currency")
    return CreditRate(told["currency"], float(rate))


def price(rate: CreditRate, amount: float) -> float:
    """What an amount of a feature costs, in units of its currency; nothing for what is given back."""
    return units(cost(quanta(max(amount, 0.0)), rate.rate))


def wallet_claim(rates: Rates, claims: Iterable[Claim], wallet: Claim) -> Claim:
    """The claim on a customer's wallet for those of the claims that it pays for."""
    currency = wallet.key.feature_id
    pays_for = tuple(
        (wallet.key._replace(feature_id=feature), rate.rate)
        for feature, rate in rates.items()
        if rate.currency == currency
    )
    prices = dict(pays_for)
    wanted = sum(cost(quanta(claim.amount), prices[claim.key]) for claim in claims if claim.key in prices)
    return wallet._replace(amount=units(wanted), pays_for=pays_for)


def repriced(payment: Claim, wanted: Claim, amount: float) -> Claim:
    """The payment, where another amount is wanted of the one feature."""
    rate = dict(payment.pays_for)[wanted.key]
    return payment._replace(amount=units(cost(quanta(amount), rate)))


def paid(report: Entry) -> tuple[UsageKey, float] | None:
    """The wallet that has paid for a report that was counted, and how much; None where no wallet is known to pay."""
    if report.rate is None:
        return None
    return report.key._replace(feature_id=report.rate.currency), price(report.rate, report.amount)

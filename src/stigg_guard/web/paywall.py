"""The plans on sale, with their prices and what they include, as pages show them to anybody."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from stigg_guard.errors import ApiError, ConfigError
from stigg_guard.guard import Guard
from stigg_guard.runtime.log import logger
from stigg_guard.wording import Text, Wording

if TYPE_CHECKING:
    from stigg_guard.api import Plan

TEMPLATE = "stigg_guard/paywall.html"
"""What shows a paywall; gets ``paywall``."""
KEPT = 60.0
"""How many seconds plans are shown without being asked for again."""
PAUSE = 10.0
"""How many seconds nobody asks after it failed."""
PATIENCE = 3.0
"""How many seconds a page waits for the API."""

_HEADINGS = (Text.PLAN_HEADING, Text.PRICE, Text.INCLUDED_HEADING)
_PERIODS = {
    "HOUR": Text.PER_HOUR,
    "DAY": Text.PER_DAY,
    "WEEK": Text.PER_WEEK,
    "MONTH": Text.PER_MONTH,
    "MONTHLY": Text.PER_MONTH,
    "YEAR": Text.PER_YEAR,
    "ANNUALLY": Text.PER_YEAR,
}
_INCLUDED = """{
  __typename
  ... on PackageFeatureEntitlement {
    behavior isGranted hiddenFromWidgets displayNameOverride usageLimit hasUnlimitedUsage enumValues resetPeriod
    feature { refId displayName featureUnits featureUnitsPlural }
  }
  ... on PackageCreditEntitlement {
    behavior isGranted hiddenFromWidgets displayNameOverride amount cadence
    customCurrency { currencyId displayName units { singular plural } }
  }
}"""
_FIELDS = f"""plans {{
  refId displayName description pricingType
  prices {{
    billingModel billingPeriod billingCadence billingCountryCode blockSize
    price {{ amount currency }} tiers {{ upTo }} feature {{ displayName featureUnits featureUnitsPlural }}
  }}
  inheritedPackageEntitlements {_INCLUDED}
  packageEntitlements {_INCLUDED}
}}"""


@dataclass(frozen=True, slots=True)
class OfferedPlan:
    """A plan in the reader's language: its prices, and the names of what it includes with how much of it."""

    plan_id: str
    name: str
    description: str
    prices: tuple[str, ...]
    included: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Paywall:
    """The plans on sale, and the words around them; all of it is text, which templates escape."""

    caption: str
    headings: tuple[str, ...]
    plans: tuple[OfferedPlan, ...]


class _Kept(NamedTuple):
    until: float
    plans: tuple[Plan, ...]


class Paywalls:
    """What a guard's ``api`` answers about the plans on sale, kept for a minute. Threads may share it.

    Without a key, and while the API does not answer, there are no plans: a page does not fail because of it.
    """

    def __init__(self, guard: Guard, monotonic: Callable[[], float] = monotonic) -> None:
        self._guard = guard
        self._monotonic = monotonic
        self._kept: Mapping[str, _Kept] = {}
        self._has_failed = False

    def shown(self, product: str, wording: Wording) -> Paywall:
        """The plans in the reader's language: of a product, or of that which Stigg takes when none is named."""
        try:
            plans = tuple(_plan(plan, wording) for plan in self._plans(product))
        except Exception:  # what came is not what the schema says
            logger.exception("a page shows no plans, because they cannot be read")
            plans = ()
        return Paywall(wording.say(Text.PLANS), tuple(wording.say(heading) for heading in _HEADINGS), plans)

    def _plans(self, product: str) -> tuple[Plan, ...]:
        kept = self._kept.get(product)
        if kept is not None:
            if self._monotonic() < kept.until:
                return kept.plans
            self._keep(product, kept.plans, PATIENCE)  # for the others, while this thread asks
        try:
            plans = self._asked(product)
        except (ApiError, ConfigError) as error:
            self._tell(error)
            return self._keep(product, (), PAUSE)
        self._has_failed = False
        return self._keep(product, plans, KEPT)

    def _asked(self, product: str) -> tuple[Plan, ...]:
        if not self._guard.config.enabled:
            return ()
        from stigg_guard.api import GetPaywallInput  # not before a page needs it

        given = GetPaywallInput(context="PAYWALL")
        asked = GetPaywallInput(context="PAYWALL", product_id=product) if product else given
        return tuple(self._guard.api.get_paywall(asked, fields=_FIELDS, timeout=PATIENCE).paywall.plans)

    def _keep(self, product: str, plans: tuple[Plan, ...], seconds: float) -> tuple[Plan, ...]:
        self._kept = {**self._kept, product: _Kept(self._monotonic() + seconds, plans)}
        return plans

    def _tell(self, error: Exception) -> None:
        if not self._has_failed:
            logger.warning("pages show no plans: %s", error)
        self._has_failed = True


def _plan(plan: Plan, wording: Wording) -> OfferedPlan:
    return OfferedPlan(
        plan_id=plan.ref_id,
        name=plan.display_name,
        description=plan.description or "",
        prices=tuple(_prices(plan, wording)),
        included=tuple(_included(plan, wording)),
    )


def _prices(plan: Plan, wording: Wording) -> Iterator[str]:
    if str(plan.pricing_type) == "FREE":
        yield wording.say(Text.FREE)
    elif str(plan.pricing_type) == "CUSTOM":
        yield wording.say(Text.ON_REQUEST)
    else:
        for price in plan.prices:
            if not price.billing_country_code:  # the others are for some readers only
                yield from _price(price, wording)


def _price(price: Any, wording: Wording) -> Iterator[str]:
    """The price in words; none for a way of billing that is not known here, which would be told wrongly."""
    model, feature = str(price.billing_model), price.feature
    if price.tiers:
        by_quantity = wording.say(Text.BY_QUANTITY)
        yield f"{feature.display_name}: {by_quantity}" if feature is not None else by_quantity
        return
    if price.price is None or model not in ("FLAT_FEE", "PER_UNIT", "USAGE_BASED", "MINIMUM_SPEND"):
        return
    amount = Decimal(price.price.amount)
    what = wording.say(Text.NUMBER_OF_UNITS, number=wording.money(amount), units=str(price.price.currency))
    if model == "MINIMUM_SPEND":
        what = wording.say(Text.AT_LEAST, what=what)
    if feature is not None:
        what = wording.say(Text.PER_UNIT, what=what, unit=_block(price.block_size or 1, feature, wording))
    is_repeated = model != "USAGE_BASED" and str(price.billing_cadence) != "ONE_OFF"
    yield _every(what, price.billing_period, wording) if is_repeated else what


def _block(size: float, feature: Any, wording: Wording) -> str:
    name: str = feature.display_name
    unit, units = feature.feature_units or name, feature.feature_units_plural or name
    return unit if size == 1 else _counted(size, unit, units, wording)


def _included(plan: Plan, wording: Wording) -> list[tuple[str, str]]:
    """What the plan includes, in place of what it inherits of the same, unless it adds to that."""
    told: dict[str, list[tuple[str, str]]] = {}
    for entitlement in [*plan.inherited_package_entitlements, *plan.package_entitlements]:
        if isinstance(entitlement, dict) or "PAYWALL" in map(str, entitlement.hidden_from_widgets):
            continue
        id_, name, text = _entitlement(entitlement, wording)
        before = told.get(id_, []) if str(entitlement.behavior) == "Increment" else []
        line = (name, wording.say(Text.MORE, what=text) if before and text else text)
        told[id_] = [*before, line] if entitlement.is_granted else before
    return [line for lines in told.values() for line in lines]


def _entitlement(entitlement: Any, wording: Wording) -> tuple[str, str, str]:
    """Its id, what it is called, and how much of it there is, where there is a figure."""
    if hasattr(entitlement, "custom_currency"):
        currency = entitlement.custom_currency
        units = currency.units
        text = _counted(entitlement.amount or 0.0, units and units.singular, units and units.plural, wording)
        text = _every(text, entitlement.cadence, wording)
        return currency.currency_id, entitlement.display_name_override or currency.display_name, text
    feature = entitlement.feature
    text = ", ".join(entitlement.enum_values or ())
    if entitlement.has_unlimited_usage:
        text = wording.say(Text.UNLIMITED)
    elif entitlement.usage_limit is not None:
        text = _counted(entitlement.usage_limit, feature.feature_units, feature.feature_units_plural, wording)
        text = _every(text, entitlement.reset_period, wording)
    return feature.ref_id, entitlement.display_name_override or feature.display_name, text


def _counted(number: float, unit: str | None, units: str | None, wording: Wording) -> str:
    named = unit if number == 1 else units
    return wording.say(Text.NUMBER_OF_UNITS, number=number, units=named) if named else wording.number(number)


def _every(what: str, period: object, wording: Wording) -> str:
    text = _PERIODS.get(str(period))
    return what if text is None else wording.say(text, what=what)

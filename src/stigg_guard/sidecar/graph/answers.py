"""The engine's data as fields of the API's types. What is unknown is left out, never made up."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from stigg_guard.sidecar.accounts import Subscription
from stigg_guard.sidecar.catalog import Coupon, CreditRate, Currency, Feature, Grant, Plan
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.graph.inputs import DETAILS, Json
from stigg_guard.sidecar.periods import DEFAULT_ANCHOR
from stigg_guard.wire import sidecar_pb2 as pb

PRODUCT = {"refId": "catalog", "displayName": "Catalog", "productSettings": {}}
"""What all plans of a catalog are of."""

_FEATURE_TYPES = {"boolean": "BOOLEAN", "enum": "ENUM", "numeric": "NUMBER", "metered": "NUMBER"}


class Answers:
    """Describes what an engine has. Values may be callables, which are called when they are selected."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def customer(self, customer: str) -> dict[str, Any]:
        details = self._engine.accounts.details(customer)
        known = self._engine.catalog.customers.get(customer)
        made = (known.account.anchor if known else None) or DEFAULT_ANCHOR
        subscriptions = list(self._engine.accounts.subscriptions(customer))
        return {
            **{key: details.get(key) for key in DETAILS},
            "id": customer,
            "customerId": customer,
            "refId": customer,
            "createdAt": details.get("createdAt", made.isoformat()),
            "updatedAt": details.get("updatedAt", made.isoformat()),
            "coupon": self._coupon(details.get("couponRefId")),
            "hasPaymentMethod": False,
            "hasActiveSubscription": bool(subscriptions),
            "trialedPlans": [],
            "eligibleForTrial": [],
            "promotionalEntitlements": lambda: [
                self.promotional(customer, *entry) for entry in self._engine.accounts.promotions(customer).items()
            ],
            "subscriptions": lambda: [self.subscription(one) for one in subscriptions],
            "statistics": {"activeSubscriptionsByPricingType": _counted(_pricing(one.plan) for one in subscriptions)},
        }

    def subscription(self, one: Subscription) -> dict[str, Any]:
        period = self._engine.accounts.billing_period(one)
        ends = one.ends and one.ends.isoformat()
        wanted = one.billing_period or "MONTHLY"
        prices = [price for price in prices_of(one.plan) if price["billingPeriod"] == wanted]
        return {
            "id": one.id,
            "subscriptionId": one.id,
            "refId": one.id,
            "status": "ACTIVE",
            "startDate": one.starts.isoformat(),
            "cancellationDate": ends,
            "effectiveEndDate": ends,
            "currentBillingPeriodStart": period.start.isoformat(),
            "currentBillingPeriodEnd": period.end.isoformat(),
            "billingPeriod": one.billing_period,
            "additionalMetaData": one.metadata,
            "pricingType": _pricing(one.plan),
            "paymentCollection": "NOT_REQUIRED",
            "customer": lambda: self.customer(one.subscriber.customer),
            "resource": {"resourceId": one.subscriber.resource} if one.subscriber.resource else None,
            "plan": lambda: self.plan(one.plan),
            "prices": [{"price": price, "billingModel": price["billingModel"]} for price in prices],
            "totalPrice": self._total(one.plan, prices, one.coupon),
            "addons": [],
            "scheduledUpdates": [],
            "futureUpdates": [],
        }

    def _coupon(self, coupon: str | None) -> Json | None:
        found = self._engine.catalog.coupons.get(coupon or "")
        return None if found is None else coupon_of(found)

    def _total(self, plan: Plan, prices: list[dict[str, Any]], coupon: str | None) -> Json | None:
        """What a subscription costs in each period; None where the plan has no price for it."""
        if not prices and plan.prices:
            return None
        full = Decimal(str(sum(price["price"]["amount"] for price in prices)))
        found = self._engine.catalog.coupons.get(coupon or "")
        total = full if found is None else _discounted(full, plan.currency, found)
        amounts = {"subTotal": full, "total": total, "addonsTotal": Decimal()}
        return {key: {"amount": float(amount), "currency": plan.currency} for key, amount in amounts.items()}

    def plan(self, plan: Plan) -> Json:
        features = [(self._engine.catalog.features[id_], grant) for id_, grant in plan.entitlements.items()]
        entitlements = [
            {
                "featureId": feature.id,
                "feature": _feature(feature),
                "isGranted": True,
                "isCustom": False,
                "hiddenFromWidgets": [],
                **_granted(grant),
            }
            for feature, grant in features
        ]
        return {
            "id": plan.id,
            "refId": plan.id,
            "displayName": plan.display_name or plan.id,
            "versionNumber": 1,
            "hiddenFromWidgets": [],
            "product": PRODUCT,
            "pricingType": _pricing(plan),
            "prices": prices_of(plan),
            "overagePrices": [],
            "entitlements": entitlements,
            "packageEntitlements": [
                {"__typename": "PackageFeatureEntitlement", "id": one["featureId"], "behavior": "Override", **one}
                for one in entitlements
            ]
            + [self._package_credit(id_, grant) for id_, grant in plan.credits.items()],
            "inheritedEntitlements": [],
            "inheritedPackageEntitlements": [],
            "compatibleAddons": [],
            "compatiblePackageGroups": [],
        }

    def _package_credit(self, currency_id: str, grant: Grant) -> Json:
        cadence = {"cadence": grant.reset.upper()} if grant.reset in ("month", "year") else {}
        return {
            "__typename": "PackageCreditEntitlement",
            "id": currency_id,
            "amount": grant.limit,
            "behavior": "Override",
            "customCurrencyId": currency_id,
            "customCurrency": self._currency(currency_id),
            "hasSoftLimit": grant.soft,
            "hiddenFromWidgets": [],
            "isCustom": False,
            "isGranted": True,
            **cadence,
        }

    def promotional(self, customer: str, feature_id: str, content: Json) -> Json:
        ends = content["endDate"]
        has_ended = ends is not None and datetime.fromisoformat(ends) <= self._engine.now()
        return {
            "id": f"promotion-{customer}-{feature_id}",
            "status": "Expired" if has_ended else "Active",
            "featureId": feature_id,
            "feature": _feature(self._engine.catalog.features[feature_id]),
            "endDate": ends,
            "isVisible": content["isVisible"],
            **_granted(Grant(**content["grant"])),
        }

    def both_lists(self, customer: str, resource: str | None, state: Any) -> dict[str, Any]:
        """The features in the older list, and credits beside them in the newer one."""
        every = [self.entitlement(one, "") for one in state.entitlements]
        none: list[str] = []
        asked = {"customerId": customer, "resourceId": resource, "requestedValues": none, "hiddenFromWidgets": none}
        features = [{**one, **asked} for one in every if one["__typename"] == "FeatureEntitlement"]
        return {"entitlements": features, "entitlementsV2": every}

    def entitlement(self, answer: pb.EntitlementV2, asked: str) -> dict[str, Any]:
        kind = answer.WhichOneof("entitlement") or "boolean"
        said: Any = getattr(answer, kind)
        decision = {
            "isGranted": answer.has_access,
            "accessDeniedReason": reason_of(answer) if answer.HasField("access_denied_reason") else None,
            "hasSoftLimit": getattr(said, "has_soft_limit", False),
            "currentUsage": getattr(said, "current_usage", None),
            "usagePeriodEnd": _time(said, "usage_period_end"),
        }
        if kind == "credit":
            currency = self._engine.catalog.currencies.get(said.currency.currency_id or asked) or Currency(asked, asked)
            described = {
                "currencyId": currency.id,
                "displayName": currency.display_name,
                "description": currency.description,
                "unitSingular": currency.units,
                "unitPlural": currency.units_plural,
            }
            limit = said.usage_limit
            return {"__typename": "CreditEntitlement", "currency": described, "usageLimit": limit, **decision}
        feature = self._engine.catalog.features.get(said.feature.id or asked)
        return {
            "__typename": "FeatureEntitlement",
            "feature": feature and _feature(feature),
            "usageLimit": _limit(said, kind),
            "hasUnlimitedUsage": getattr(said, "is_unlimited", False),
            "enumValues": list(getattr(said, "enum_values", ())),
            "usagePeriodAnchor": _time(said, "usage_period_anchor"),
            "usagePeriodStart": _time(said, "usage_period_start"),
            "resetPeriod": _reset(said),
            "creditRate": feature and feature.credit_rate and _rate(feature.credit_rate),
            **decision,
        }

    def balances(self, customer: str, resource: str | None, state: Any) -> list[dict[str, Any]]:
        credits_ = [one.credit for one in state.entitlements if one.WhichOneof("entitlement") == "credit"]
        return [
            {
                "customerId": customer,
                "resourceId": resource,
                "currencyId": one.currency.currency_id,
                "currency": self._currency(one.currency.currency_id),
                "currentBalance": one.remaining,
                "totalConsumed": one.current_usage,
                "totalGranted": one.usage_limit,
            }
            for one in credits_
        ]

    def _currency(self, currency_id: str) -> Json:
        currency = self._engine.catalog.currencies[currency_id]
        units = {"singular": currency.units, "plural": currency.units_plural}
        return {"currencyId": currency_id, "displayName": currency.display_name, "units": units}

    def measured(self, answer: Any) -> Json:
        return {
            "id": answer.measurement_id,
            "customerId": answer.customer_id,
            "resourceId": answer.resource_id or None,
            "featureId": answer.feature_id,
            "currentUsage": answer.current_usage,
            "usagePeriodStart": _time(answer, "usage_period_start"),
            "usagePeriodEnd": _time(answer, "usage_period_end"),
            "nextResetDate": _time(answer, "usage_period_end"),
            "timestamp": self._engine.now().isoformat(),
        }


def _granted(grant: Grant) -> Json:
    return {
        "usageLimit": grant.limit if grant.value is None else grant.value,
        "hasUnlimitedUsage": grant.unlimited,
        "hasSoftLimit": grant.soft,
        "resetPeriod": grant.reset and grant.reset.upper(),
        "enumValues": list(grant.values),
    }


def _feature(feature: Feature) -> Json:
    return {
        "refId": feature.id,
        "displayName": feature.display_name or feature.id,
        "featureType": _FEATURE_TYPES[feature.kind],
        "meterType": feature.meter.capitalize() if feature.meter else "None",
        "featureUnits": feature.units,
        "featureUnitsPlural": feature.units_plural,
    }


def _rate(rate: CreditRate) -> Json:
    return {"amount": rate.amount, "currencyId": rate.currency, "customCurrencyId": rate.currency}


def _pricing(plan: Plan) -> str:
    return "PAID" if any(plan.prices.values()) else "FREE"


def prices_of(plan: Plan) -> list[dict[str, Any]]:
    return [
        {
            "billingModel": "FLAT_FEE",
            "billingCadence": "RECURRING",
            "billingPeriod": period.upper(),
            "price": {"amount": amount, "currency": plan.currency},
            "tiers": [],
        }
        for period, amount in plan.prices.items()
    ]


def coupon_of(coupon: Coupon) -> Json:
    made = DEFAULT_ANCHOR.isoformat()
    off = [{"amount": coupon.amount_off, "currency": coupon.currency}] if coupon.amount_off is not None else []
    return {
        "id": coupon.id,
        "refId": coupon.id,
        "name": coupon.display_name,
        "type": "FIXED" if off else "PERCENTAGE",
        "percentOff": coupon.percent_off,
        "amountsOff": off,
        "discountValue": coupon.amount_off if off else coupon.percent_off,
        "status": "ACTIVE",
        "createdAt": made,
        "updatedAt": made,
        "syncStates": [],
    }


def _discounted(full: Decimal, currency: str, coupon: Coupon) -> Decimal:
    """The price with the coupon, to the hundredth; a coupon of another currency takes nothing off."""
    off = Decimal()
    if coupon.percent_off is not None:
        off = full * Decimal(str(coupon.percent_off)) / 100
    elif coupon.currency == currency:
        off = Decimal(str(coupon.amount_off))
    return max(Decimal(), full - off).quantize(Decimal("0.01"), ROUND_HALF_UP)


def _counted(pricing: Iterable[str]) -> list[Json]:
    each = list(pricing)
    return [{"pricingType": one, "totalCount": each.count(one)} for one in sorted(set(each))]


def reason_of(answer: Any) -> str:
    """Why access is denied, in the API's spelling."""
    name = pb.AccessDeniedReason.Name(answer.access_denied_reason).removeprefix("ACCESS_DENIED_REASON_")
    return "".join(word.capitalize() for word in name.split("_"))


def _limit(said: Any, kind: str) -> float | None:
    field = {"numeric": "value", "metered": "usage_limit"}.get(kind)
    return getattr(said, field) if field and said.HasField(field) else None


def _reset(said: Any) -> str | None:
    number = getattr(said, "reset_period", 0)
    return pb.EntitlementResetPeriod.Name(number).removeprefix("ENTITLEMENT_RESET_PERIOD_") if number else None


def _time(said: Any, field: str) -> str | None:
    if field not in said.DESCRIPTOR.fields_by_name or not said.HasField(field):
        return None
    instant: datetime = getattr(said, field).ToDatetime(timezone.utc)
    return instant.isoformat()

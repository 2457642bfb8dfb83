"""What the engine answers to each root field of Stigg's GraphQL API that it models."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from typing import Any, TypeAlias

from stigg_guard.sidecar.accounts import Subscription
from stigg_guard.sidecar.catalog import Feature, Grant, Plan
from stigg_guard.sidecar.document import nearest
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.periods import DEFAULT_ANCHOR, months_after
from stigg_guard.sidecar.subscriptions import Denied
from stigg_guard.wire import sidecar_pb2 as pb

Json: TypeAlias = Mapping[str, Any]

PRODUCT = {"refId": "catalog", "displayName": "Catalog", "productSettings": {}}
"""What all plans of a catalog are of."""

_DETAILS = (
    "name", "email", "additionalMetaData", "billingId", "salesforceId", "crmId", "awsMarketplaceCustomerId"
)  # fmt: skip
_SUBSCRIBING = (
    "customerId", "planId", "resourceId", "subscriptionId", "refId", "billingPeriod", "additionalMetaData",
    "entitlements",
)  # fmt: skip
# They are of payments, of other environments and of trials, of which there are none here.
_WITHOUT_EFFECT = {
    "awaitPaymentConfirmation",
    "billingCountryCode",
    "billingInformation",
    "checkoutOptions",
    "environmentId",
    "excludeFromExperiment",
    "paymentCollectionMethod",
    "shouldSyncFree",
    "shouldTrack",
    "shouldWaitSync",
    "skipTrial",
}
_FEATURE_TYPES = {"boolean": "BOOLEAN", "enum": "ENUM", "numeric": "NUMBER", "metered": "NUMBER"}
_MONTHS = {"ONE_MONTH": 1, "SIX_MONTH": 6, "ONE_YEAR": 12}


class Refused(Exception):
    """What is asked for is wrong, or not to be had here; ``code`` says which."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Resolvers:
    """Answers root fields from an engine. What is not known is left out of an answer, never made up."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def resolve(self, field: str, arguments: Json) -> Any:
        """The answer to a root field, as what its type's fields are: values, or what makes them.

        Raises:
            Refused: it is not modelled, or the request is wrong.
            InvalidRequest: the engine refuses it.
        """
        if field in CHANGES:
            with self._engine.changing:
                return CHANGES[field](self, next(iter(arguments.values())))
        if field in QUESTIONS:
            return QUESTIONS[field](self, next(iter(arguments.values()), {}))
        raise Refused("NOT_MODELLED", f"the local sidecar does not model {field}; docs/sidecar.md lists what it does")

    # Questions

    def customer(self, given: Json) -> Json | None:
        return self._customer(given["customerId"]) if self._is_customer(given["customerId"]) else None

    def active_subscriptions(self, given: Json) -> list[Json]:
        _take(given, "customerId", "resourceId", "resourceIds")
        self._require_customer(given["customerId"])
        wanted = {*(given.get("resourceIds") or ()), *filter(None, [given.get("resourceId")])}
        found = self._engine.accounts.subscriptions(given["customerId"])
        return [self._subscription(one) for one in found if not wanted or one.subscriber.resource in wanted]

    def subscription(self, given: Json) -> Json:
        return self._subscription(self._subscription_of(given["subscriptionId"]))

    def entitlements_state(self, given: Json) -> Json:
        state = self._state(given["customerId"], given.get("resourceId"))
        reason = _reason(state) if state.HasField("access_denied_reason") else None
        if reason == "CustomerResourceNotFound":
            raise Refused("RESOURCE_NOT_FOUND", f"there is no resource {given['resourceId']!r}")
        return {**self._both_lists(given["customerId"], given.get("resourceId"), state), "accessDeniedReason": reason}

    def entitlements(self, given: Json) -> Any:
        customer, resource = given["customerId"], given.get("resourceId")
        return self._both_lists(customer, resource, self._state(customer, resource))["entitlements"]

    def entitlement(self, given: Json) -> Json:
        options = given.get("options") or {}
        asked = {
            "customerId": given["customerId"],
            "resourceId": given.get("resourceId"),
            "requestedUsage": options.get("requestedUsage"),
            "requestedValues": options.get("requestedValues") or [],
            "hiddenFromWidgets": [],
        }
        return {**self._single(given), **asked}

    def entitlement_v2(self, given: Json) -> Json:
        return self._single(given)

    def products(self, _given: Json) -> Json:
        return {"edges": [{"node": PRODUCT}]}

    def paywall(self, given: Json) -> Json:
        _take(given, "customerId", "resourceId", "productId", "context", "includeHiddenPlans")
        customer = given.get("customerId")
        plans = self._engine.catalog.plans.values()
        currency = next((plan.currency for plan in plans if plan.prices), "USD")
        return {
            "plans": [self._plan(plan) for plan in plans],
            "currency": {"code": currency, "symbol": currency},
            "customer": self._customer(customer) if customer else None,
            "activeSubscriptions": self.active_subscriptions({"customerId": customer}) if customer else [],
            "paywallCalculatedPricePoints": [
                {"planId": plan.id, "additionalChargesMayApply": False, **price["price"], **price}
                for plan in plans
                for price in _prices(plan)
            ],
        }

    # Changes

    def provision_customer(self, given: Json) -> Json:
        _take(given, "customerId", "refId", "subscriptionParams", *_DETAILS)
        customer = given.get("customerId") or given.get("refId") or f"customer-{uuid.uuid4()}"
        wanted = given.get("subscriptionParams")
        if wanted is not None:
            self._checked_plan(wanted, customer)
        self._engine.accounts.put_customer(customer, _details(given))
        if wanted is not None:
            self._subscribe({**wanted, "customerId": customer})
        resource = (wanted or {}).get("resourceId")
        return {
            "customer": self._customer(customer),
            "subscriptionDecisionStrategy": "SKIPPED_SUBSCRIPTION_CREATION" if wanted is None else "REQUESTED_PLAN",
            "subscription": self._subscribed(customer, resource),
            **self._both_lists(customer, resource, self._state(customer, resource)),
        }

    def import_customer(self, given: Json) -> Json:
        _take(given, "customerId", "refId", *_DETAILS)
        customer = given.get("customerId") or given.get("refId")
        if not customer:
            raise Refused("VALIDATION_ERROR", "customerId: is missing")
        self._engine.accounts.put_customer(customer, _details(given))
        return self._customer(customer)

    def update_customer(self, given: Json) -> Json:
        _take(given, "customerId", "refId", *_DETAILS)
        customer = self._require_customer(given.get("customerId") or given.get("refId") or "")
        self._engine.accounts.put_customer(customer, _details(given))
        return self._customer(customer)

    def archive_customer(self, given: Json) -> Json:
        self._engine.accounts.put_customer(self._require_customer(given["customerId"]), {"archived": True})
        return self._customer(given["customerId"])

    def unarchive_customer(self, given: Json) -> Json:
        self._engine.accounts.put_customer(self._require_customer(given["customerId"]), {"archived": False})
        return self._customer(given["customerId"])

    def provision_subscription(self, given: Json) -> Json:
        return {"status": "SUCCESS", **self.apply_subscription(given)}

    def apply_subscription(self, given: Json) -> Json:
        subscription = self.create_subscription(given)
        resource = given.get("resourceId")
        state = self._state(given["customerId"], resource)
        return {"subscription": subscription, **self._both_lists(given["customerId"], resource, state)}

    def create_subscription(self, given: Json) -> Json:
        self._checked_plan(given, self._require_customer(given["customerId"]))
        return self._subscription(self._subscribe(given))

    def update_subscription(self, given: Json) -> Json:
        _take(given, "subscriptionId", "refId", "billingPeriod", "additionalMetaData", "entitlements")
        subscription = self._subscription_of(given.get("subscriptionId") or given.get("refId") or "")
        self._engine.accounts.change(subscription, self._terms(given))
        return self._subscription(self._subscription_of(subscription.id))

    def cancel_subscription(self, given: Json) -> Json:
        _take(given, "subscriptionRefId", "subscriptionCancellationTime", "endDate")
        subscription = self._subscription_of(given["subscriptionRefId"])
        when = given.get("subscriptionCancellationTime")
        ends = self._engine.now()
        if when == "END_OF_BILLING_PERIOD":
            ends = self._engine.accounts.billing_period(subscription).end
        elif when == "SPECIFIC_DATE":
            ends = _instant("endDate", given.get("endDate"))
        self._engine.accounts.cancel(subscription, ends)
        return {
            **self._subscription(subscription),
            "status": "CANCELED" if ends <= self._engine.now() else "ACTIVE",
            "cancellationDate": ends.isoformat(),
            "effectiveEndDate": ends.isoformat(),
        }

    def grant_promotional_entitlements(self, given: Json) -> list[Json]:
        customer = self._require_customer(given["customerId"])
        granted = [self._promotion(one) for one in given.get("promotionalEntitlements") or []]
        for feature, content in granted:
            self._engine.accounts.promote(customer, feature, content)
        return [self._promotional(customer, feature, content) for feature, content in granted]

    def revoke_promotional_entitlement(self, given: Json) -> Json:
        customer, feature = self._require_customer(given["customerId"]), given["featureId"]
        content = self._engine.accounts.promotions(customer).get(feature)
        if content is None:
            raise Refused("VALIDATION_ERROR", f"{customer} has no promotional entitlement to {feature!r}")
        self._engine.accounts.revoke(customer, feature)
        return self._promotional(customer, feature, content)

    def report_usage(self, given: Json) -> Json:
        request = pb.ReportUsageRequest(**_usage(given))
        return self._measured(self._engine.answer("ReportUsage", request, idempotency_key=given.get("idempotencyKey")))

    def report_usage_bulk(self, given: Json) -> list[Json]:
        usages = given.get("usages") or []
        keys = [usage.get("idempotencyKey") for usage in usages]
        key = "\n".join(keys) if all(keys) else None
        request = pb.ReportUsageBulkRequest(usages=[pb.ReportUsageRequest(**_usage(usage)) for usage in usages])
        answer: Any = self._engine.answer("ReportUsageBulk", request, idempotency_key=key)
        return [self._measured(usage) for usage in answer.usages]

    def report_event(self, given: Json) -> None:
        events = [pb.Event(**_event(event)) for event in given.get("usageEvents") or []]
        self._engine.answer("ReportEvents", pb.ReportEventsRequest(events=events))

    # What they have in common

    def _is_customer(self, customer: str) -> bool:
        try:
            self._engine.accounts.details(customer)
        except Denied:
            return False
        return True

    def _require_customer(self, customer: str) -> str:
        if not self._is_customer(customer):
            raise Refused("CUSTOMER_NOT_FOUND", f"there is no customer {customer!r}")
        return customer

    def _subscription_of(self, subscription_id: str) -> Subscription:
        for subscription in self._engine.accounts.subscriptions():
            if subscription.id == subscription_id:
                return subscription
        raise Refused("SUBSCRIPTION_NOT_FOUND", f"there is no active subscription {subscription_id!r}")

    def _checked_plan(self, given: Json, customer: str) -> None:
        """Refuse a subscription that cannot be, before anything is changed."""
        _take(given, *_SUBSCRIBING)
        plan, plans = given["planId"], self._engine.catalog.plans
        if plan not in plans:
            raise Refused("VALIDATION_ERROR", f"planId: there is no {plan!r}; {nearest(plan, plans)}")
        if self._engine.accounts.is_archived(customer):
            raise Refused("VALIDATION_ERROR", f"the customer {customer!r} is archived")
        self._terms(given)

    def _subscribe(self, given: Json) -> Subscription:
        own_id = given.get("subscriptionId") or given.get("refId")
        customer, resource, plan = given["customerId"], given.get("resourceId") or "", given["planId"]
        return self._engine.accounts.subscribe(customer, resource, plan, self._terms(given), own_id)

    def _terms(self, given: Json) -> dict[str, Any]:
        """What of a subscription is given beside its plan, as it is kept."""
        terms = {key: given[key] for key in ("billingPeriod", "additionalMetaData") if key in given}
        if given.get("entitlements") is not None:
            terms["entitlements"] = dict(self._own_entitlement(entry) for entry in given["entitlements"])
        return terms

    def _own_entitlement(self, entry: Json) -> tuple[str, Json]:
        feature, credit = entry.get("feature"), entry.get("credit")
        if (feature is None) == (credit is None):
            raise Refused("VALIDATION_ERROR", "entitlements: give either feature or credit")
        if feature is not None:
            return feature["featureId"], self._grant(feature)
        currencies = self._engine.catalog.currencies
        currency = credit["customCurrencyId"]  # type: ignore[index] # one of the two is there
        if currency not in currencies:
            raise Refused("VALIDATION_ERROR", f"there is no currency {currency!r}; {nearest(currency, currencies)}")
        assert credit is not None
        reset = credit["cadence"].lower()
        return currency, _kept(Grant(limit=credit["amount"], soft=bool(credit.get("hasSoftLimit")), reset=reset))

    def _grant(self, given: Json) -> Json:
        """What is given of a feature, as it is kept."""
        taken = ("featureId", "usageLimit", "hasUnlimitedUsage", "hasSoftLimit", "resetPeriod", "enumValues")
        _take(given, *taken, "period", "customEndDate", "isVisible")
        feature = self._feature(given["featureId"])
        limit, unlimited = given.get("usageLimit"), bool(given.get("hasUnlimitedUsage"))
        if feature.kind in ("numeric", "metered") and (limit is None) != unlimited:
            raise Refused("VALIDATION_ERROR", f"{feature.id}: give either usageLimit or hasUnlimitedUsage")
        if feature.kind == "numeric":
            return _kept(Grant(value=None if limit is None else int(limit), unlimited=unlimited))
        if feature.kind == "enum":
            return _kept(Grant(values=tuple(given.get("enumValues") or ())))
        if feature.kind == "boolean":
            return {}
        reset = given["resetPeriod"].lower() if given.get("resetPeriod") else None
        soft = bool(given.get("hasSoftLimit"))
        return _kept(Grant(limit=limit, unlimited=unlimited, soft=soft, reset=reset))

    def _feature(self, feature_id: str) -> Feature:
        features = self._engine.catalog.features
        if feature_id not in features:
            raise Refused("FEATURE_NOT_FOUND", f"there is no {feature_id!r}; {nearest(feature_id, features)}")
        return features[feature_id]

    def _promotion(self, given: Json) -> tuple[str, Json]:
        now, period = self._engine.now(), given["period"]
        ends: datetime | None = None  # for life
        if period == "CUSTOM":
            ends = _instant("customEndDate", given.get("customEndDate"))
        elif period == "ONE_WEEK":
            ends = now + timedelta(weeks=1)
        elif period in _MONTHS:
            ends = months_after(now, _MONTHS[period])
        is_visible = bool(given.get("isVisible"))
        content = {"grant": self._grant(given), "endDate": ends and ends.isoformat(), "isVisible": is_visible}
        return given["featureId"], content

    def _promotional(self, customer: str, feature_id: str, content: Json) -> Json:
        ends = content["endDate"]
        has_ended = ends is not None and datetime.fromisoformat(ends) <= self._engine.now()
        return {
            "id": f"promotion-{customer}-{feature_id}",
            "status": "Expired" if has_ended else "Active",
            "featureId": feature_id,
            "feature": _feature(self._feature(feature_id)),
            "endDate": ends,
            "isVisible": content["isVisible"],
            **_granted(Grant(**content["grant"])),
        }

    def _customer(self, customer: str) -> dict[str, Any]:
        details = self._engine.accounts.details(customer)
        known = self._engine.catalog.customers.get(customer)
        made = (known.account.anchor if known else None) or DEFAULT_ANCHOR
        subscriptions = list(self._engine.accounts.subscriptions(customer))
        return {
            **{key: details.get(key) for key in _DETAILS},
            "id": customer,
            "customerId": customer,
            "refId": customer,
            "createdAt": details.get("createdAt", made.isoformat()),
            "updatedAt": details.get("updatedAt", made.isoformat()),
            "hasPaymentMethod": False,
            "hasActiveSubscription": bool(subscriptions),
            "trialedPlans": [],
            "eligibleForTrial": [],
            "promotionalEntitlements": lambda: [
                self._promotional(customer, *entry) for entry in self._engine.accounts.promotions(customer).items()
            ],
            "subscriptions": lambda: [self._subscription(one) for one in subscriptions],
            "statistics": {"activeSubscriptionsByPricingType": _counted(_pricing(one.plan) for one in subscriptions)},
        }

    def _subscribed(self, customer: str, resource: str | None) -> Json | None:
        found = self._engine.accounts.subscription(customer, resource or "")
        return None if found is None else self._subscription(found)

    def _subscription(self, one: Subscription) -> dict[str, Any]:
        period = self._engine.accounts.billing_period(one)
        ends = one.ends and one.ends.isoformat()
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
            "customer": lambda: self._customer(one.subscriber.customer),
            "resource": {"resourceId": one.subscriber.resource} if one.subscriber.resource else None,
            "plan": lambda: self._plan(one.plan),
            "prices": [
                {"price": price, "billingModel": price["billingModel"]}
                for price in _prices(one.plan)
                if price["billingPeriod"] == (one.billing_period or "MONTHLY")
            ],
            "addons": [],
            "scheduledUpdates": [],
            "futureUpdates": [],
        }

    def _plan(self, plan: Plan) -> Json:
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
            "prices": _prices(plan),
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
        currency = self._engine.catalog.currencies[currency_id]
        units = {"singular": currency.units, "plural": currency.units_plural}
        cadence = {"cadence": grant.reset.upper()} if grant.reset in ("month", "year") else {}
        return {
            "__typename": "PackageCreditEntitlement",
            "id": currency_id,
            "amount": grant.limit,
            "behavior": "Override",
            "customCurrencyId": currency_id,
            "customCurrency": {"currencyId": currency_id, "displayName": currency.display_name, "units": units},
            "hasSoftLimit": grant.soft,
            "hiddenFromWidgets": [],
            "isCustom": False,
            "isGranted": True,
            **cadence,
        }

    def _state(self, customer: str, resource: str | None) -> Any:
        request = pb.GetEntitlementsStateV2Request(customer_id=customer, resource_id=resource)
        return self._engine.answer("GetEntitlementsStateV2", request)

    def _both_lists(self, customer: str, resource: str | None, state: Any) -> dict[str, Any]:
        """The features in the older list, and credits beside them in the newer one."""
        every = [self._entitlement(one, "") for one in state.entitlements]
        none: list[str] = []
        asked = {"customerId": customer, "resourceId": resource, "requestedValues": none, "hiddenFromWidgets": none}
        features = [{**one, **asked} for one in every if one["__typename"] == "FeatureEntitlement"]
        return {"entitlements": features, "entitlementsV2": every}

    def _single(self, given: Json) -> Json:
        _take(given, "customerId", "resourceId", "featureId", "currencyId", "options")
        options = given.get("options") or {}
        _take(options, "requestedUsage", "requestedValues")
        asked = pb.GetEntitlementOptions(
            requested_usage=options.get("requestedUsage"), requested_values=options.get("requestedValues") or []
        )
        request = pb.GetEntitlementV2Request(
            customer_id=given["customerId"],
            resource_id=given.get("resourceId"),
            feature_id=given.get("featureId"),
            currency_id=given.get("currencyId"),
            options=asked,
        )
        answer: Any = self._engine.answer("GetEntitlementV2", request)
        return self._entitlement(answer.entitlement, given.get("featureId") or given.get("currencyId") or "")

    def _entitlement(self, answer: pb.EntitlementV2, asked: str) -> dict[str, Any]:
        kind = answer.WhichOneof("entitlement") or "boolean"
        said: Any = getattr(answer, kind)
        decision = {
            "isGranted": answer.has_access,
            "accessDeniedReason": _reason(answer) if answer.HasField("access_denied_reason") else None,
            "hasSoftLimit": getattr(said, "has_soft_limit", False),
            "currentUsage": getattr(said, "current_usage", None),
            "usagePeriodEnd": _time(said, "usage_period_end"),
        }
        if kind == "credit":
            currency = self._engine.catalog.currencies.get(said.currency.currency_id or asked)
            described = currency and {
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
            **decision,
        }

    def _measured(self, answer: Any) -> Json:
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


QUESTIONS: Mapping[str, Callable[[Resolvers, Any], Any]] = {
    "getCustomerByRefId": Resolvers.customer,
    "getActiveSubscriptions": Resolvers.active_subscriptions,
    "getSubscription": Resolvers.subscription,
    "entitlementsState": Resolvers.entitlements_state,
    "cachedEntitlements": Resolvers.entitlements,
    "entitlement": Resolvers.entitlement,
    "entitlementV2": Resolvers.entitlement_v2,
    "paywall": Resolvers.paywall,
    "products": Resolvers.products,
    "reportUsage": Resolvers.report_usage,
    "reportUsageBulk": Resolvers.report_usage_bulk,
    "reportEvent": Resolvers.report_event,
}
"""The root fields that are modelled and leave customers and subscriptions as they are."""

CHANGES: Mapping[str, Callable[[Resolvers, Any], Any]] = {
    "provisionCustomer": Resolvers.provision_customer,
    "importOneCustomer": Resolvers.import_customer,
    "updateOneCustomer": Resolvers.update_customer,
    "archiveCustomer": Resolvers.archive_customer,
    "unarchiveCustomer": Resolvers.unarchive_customer,
    "provisionSubscriptionV2": Resolvers.provision_subscription,
    "applySubscription": Resolvers.apply_subscription,
    "createSubscription": Resolvers.create_subscription,
    "updateOneSubscription": Resolvers.update_subscription,
    "cancelSubscription": Resolvers.cancel_subscription,
    "grantPromotionalEntitlements": Resolvers.grant_promotional_entitlements,
    "revokePromotionalEntitlement": Resolvers.revoke_promotional_entitlement,
}
"""Those that change them."""


def _take(given: Json, *taken: str) -> None:
    """Refuse what is given and would have no effect, unless it has none here by its nature."""
    for key, value in given.items():
        if value and key not in taken and key not in _WITHOUT_EFFECT:
            raise Refused("NOT_MODELLED", f"the local sidecar does not model {key}")


def _details(given: Json) -> dict[str, Any]:
    return {key: given[key] for key in _DETAILS if key in given}


def _kept(grant: Grant) -> Json:
    """The grant as JSON, without what is as in every grant."""
    default = asdict(Grant())
    return {key: value for key, value in asdict(grant).items() if value != default[key]}


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


def _pricing(plan: Plan) -> str:
    return "PAID" if any(plan.prices.values()) else "FREE"


def _prices(plan: Plan) -> list[dict[str, Any]]:
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


def _counted(pricing: Iterable[str]) -> list[Json]:
    each = list(pricing)
    return [{"pricingType": one, "totalCount": each.count(one)} for one in sorted(set(each))]


def _usage(given: Json) -> dict[str, Any]:
    """One usage as the fields of its message."""
    behavior = f"USAGE_UPDATE_BEHAVIOR_{given.get('updateBehavior') or 'DELTA'}"
    return {
        "customer_id": given["customerId"],
        "resource_id": given.get("resourceId"),
        "feature_id": given["featureId"],
        "value": given["value"],
        "update_behavior": pb.UsageUpdateBehavior.Value(behavior),
        "timestamp": _optional_instant("createdAt", given.get("createdAt")),
        "dimensions": _dimensions(given.get("dimensions")),
    }


def _event(given: Json) -> dict[str, Any]:
    return {
        "customer_id": given["customerId"],
        "resource_id": given.get("resourceId"),
        "event_name": given["eventName"],
        "idempotency_key": given["idempotencyKey"],
        "timestamp": _optional_instant("timestamp", given.get("timestamp")),
        "dimensions": _dimensions(given.get("dimensions")),
    }


def _dimensions(given: Any) -> dict[str, pb.EventDimensionValue]:
    if not isinstance(given or {}, dict):
        raise Refused("VALIDATION_ERROR", "dimensions: expected an object")
    return {str(name): _dimension(str(name), value) for name, value in (given or {}).items()}


def _dimension(name: str, value: Any) -> pb.EventDimensionValue:
    if isinstance(value, bool):
        return pb.EventDimensionValue(boolean_value=value)
    if isinstance(value, (int, float)):
        return pb.EventDimensionValue(number_value=value)
    if isinstance(value, str):
        return pb.EventDimensionValue(string_value=value)
    raise Refused("VALIDATION_ERROR", f"dimensions.{name}: expected a text, a number or a boolean")


def _optional_instant(field: str, given: str | None) -> datetime | None:
    return None if given is None else _instant(field, given)


def _instant(field: str, given: str | None) -> datetime:
    try:
        instant = datetime.fromisoformat((given or "").replace("Z", "+00:00"))
    except ValueError:
        raise Refused("VALIDATION_ERROR", f"{field}: expected an instant in ISO 8601, not {given!r}") from None
    return instant.astimezone(timezone.utc) if instant.tzinfo else instant.replace(tzinfo=timezone.utc)


def _reason(answer: Any) -> str:
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

"""Resolvers: the engine's answers to each root field of Stigg's GraphQL API that it models."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

from stigg_guard.sidecar.accounts import Subscription
from stigg_guard.sidecar.document import nearest
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.graph.answers import PRODUCT, Answers, coupon_of, prices_of, reason_of
from stigg_guard.sidecar.graph.credits import Credits
from stigg_guard.sidecar.graph.inputs import (
    DETAILS,
    TERMS,
    GraphError,
    Inputs,
    Json,
    event_of,
    instant_of,
    take,
    usage_of,
)
from stigg_guard.sidecar.subscriptions import Denied
from stigg_guard.wire import sidecar_pb2 as pb


class Resolvers:
    """Answers root fields from an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._inputs = Inputs(engine)
        self._answers = Answers(engine)
        self.credits = Credits(engine)

    def resolve(self, field: str, arguments: Json) -> Any:
        """The answer to a root field, as what its type's fields are: values, or what makes them.

        Raises:
            GraphError: it is not modelled, or the request is wrong.
            InvalidRequest: the engine refuses it.
        """
        if field in CHANGES:
            with self._engine.changing:
                return CHANGES[field](self, next(iter(arguments.values())))
        if field in QUESTIONS:
            return QUESTIONS[field](self, next(iter(arguments.values()), {}))
        raise GraphError(
            "NOT_MODELLED", f"the local sidecar does not model {field}; docs/sidecar.md lists what it does"
        )

    def customer(self, given: Json) -> Json | None:
        return self._answers.customer(given["customerId"]) if self._is_customer(given["customerId"]) else None

    def active_subscriptions(self, given: Json) -> list[Json]:
        take(given, "customerId", "resourceId", "resourceIds")
        self._require_customer(given["customerId"])
        wanted = {*(given.get("resourceIds") or ()), *filter(None, [given.get("resourceId")])}
        found = self._engine.accounts.subscriptions(given["customerId"])
        return [self._answers.subscription(one) for one in found if not wanted or one.subscriber.resource in wanted]

    def subscription(self, given: Json) -> Json:
        return self._answers.subscription(self._subscription_of(given["subscriptionId"]))

    def entitlements_state(self, given: Json) -> Json:
        state = self._state(given["customerId"], given.get("resourceId"))
        denied = reason_of(state) if state.HasField("access_denied_reason") else None
        if denied == "CustomerResourceNotFound":
            raise GraphError("RESOURCE_NOT_FOUND", f"there is no resource {given['resourceId']!r}")
        return {
            **self._answers.both_lists(given["customerId"], given.get("resourceId"), state),
            "accessDeniedReason": denied,
        }

    def entitlements(self, given: Json) -> Any:
        customer, resource = given["customerId"], given.get("resourceId")
        return self._answers.both_lists(customer, resource, self._state(customer, resource))["entitlements"]

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

    def credit_balance(self, given: Json) -> Json:
        take(given, "customerId", "resourceId", "currencyId")
        customer, resource = self._require_customer(given["customerId"]), given.get("resourceId")
        wanted = given.get("currencyId")
        every = self._answers.balances(customer, resource, self._state(customer, resource))
        return {"customerId": customer, "balances": [one for one in every if wanted in (None, one["currencyId"])]}

    def coupons(self, _given: Json) -> Json:
        return {"edges": [{"node": coupon_of(one)} for one in self._engine.catalog.coupons.values()]}

    def products(self, _given: Json) -> Json:
        return {"edges": [{"node": PRODUCT}]}

    def paywall(self, given: Json) -> Json:
        take(given, "customerId", "resourceId", "productId", "context", "includeHiddenPlans")
        product = given.get("productId")
        if product not in (None, PRODUCT["refId"]):
            raise GraphError(
                "VALIDATION_ERROR", f"there is no product {product!r}; all plans are of {PRODUCT['refId']!r}"
            )
        customer = given.get("customerId")
        plans = self._engine.catalog.plans.values()
        currency = next((plan.currency for plan in plans if plan.prices), "USD")
        return {
            "plans": [self._answers.plan(plan) for plan in plans],
            "currency": {"code": currency, "symbol": currency},
            "customer": self._answers.customer(customer) if customer else None,
            "activeSubscriptions": self.active_subscriptions({"customerId": customer}) if customer else [],
            "paywallCalculatedPricePoints": [
                {"planId": plan.id, "additionalChargesMayApply": False, **price["price"], **price}
                for plan in plans
                for price in prices_of(plan)
            ],
        }

    def provision_customer(self, given: Json) -> Json:
        take(given, "customerId", "refId", "subscriptionParams", *DETAILS)
        customer = given.get("customerId") or given.get("refId") or f"customer-{uuid.uuid4()}"
        wanted = given.get("subscriptionParams")
        if wanted is not None:
            self._checked_plan(wanted, customer)
        self._engine.accounts.put_customer(customer, self._inputs.details(given))
        if wanted is not None:
            self._subscribe({**wanted, "customerId": customer})
        resource = (wanted or {}).get("resourceId")
        return {
            "customer": self._answers.customer(customer),
            "subscriptionDecisionStrategy": "SKIPPED_SUBSCRIPTION_CREATION" if wanted is None else "REQUESTED_PLAN",
            "subscription": self._subscribed(customer, resource),
            **self._answers.both_lists(customer, resource, self._state(customer, resource)),
        }

    def import_customer(self, given: Json) -> Json:
        take(given, "customerId", "refId", *DETAILS)
        customer = given.get("customerId") or given.get("refId")
        if not customer:
            raise GraphError("VALIDATION_ERROR", "customerId: is missing")
        self._engine.accounts.put_customer(customer, self._inputs.details(given))
        return self._answers.customer(customer)

    def update_customer(self, given: Json) -> Json:
        take(given, "customerId", "refId", *DETAILS)
        customer = self._require_customer(given.get("customerId") or given.get("refId") or "")
        self._engine.accounts.put_customer(customer, self._inputs.details(given))
        return self._answers.customer(customer)

    def archive_customer(self, given: Json) -> Json:
        self._engine.accounts.put_customer(self._require_customer(given["customerId"]), {"archived": True})
        return self._answers.customer(given["customerId"])

    def unarchive_customer(self, given: Json) -> Json:
        self._engine.accounts.put_customer(self._require_customer(given["customerId"]), {"archived": False})
        return self._answers.customer(given["customerId"])

    def provision_subscription(self, given: Json) -> Json:
        return {"status": "SUCCESS", **self.apply_subscription(given)}

    def apply_subscription(self, given: Json) -> Json:
        subscription = self.create_subscription(given)
        resource = given.get("resourceId")
        state = self._state(given["customerId"], resource)
        return {"subscription": subscription, **self._answers.both_lists(given["customerId"], resource, state)}

    def create_subscription(self, given: Json) -> Json:
        self._checked_plan(given, self._require_customer(given["customerId"]))
        return self._answers.subscription(self._subscribe(given))

    def update_subscription(self, given: Json) -> Json:
        take(given, "subscriptionId", "refId", *TERMS)
        subscription = self._subscription_of(given.get("subscriptionId") or given.get("refId") or "")
        self._engine.accounts.change(subscription, self._inputs.terms(given))
        return self._answers.subscription(self._subscription_of(subscription.id))

    def cancel_subscription(self, given: Json) -> Json:
        take(given, "subscriptionRefId", "subscriptionCancellationTime", "endDate")
        subscription = self._subscription_of(given["subscriptionRefId"])
        when = given.get("subscriptionCancellationTime")
        ends = self._engine.now()
        if when == "END_OF_BILLING_PERIOD":
            ends = self._engine.accounts.billing_period(subscription).end
        elif when == "SPECIFIC_DATE":
            ends = instant_of("endDate", given.get("endDate"))
        self._engine.accounts.cancel(subscription, ends)
        return {
            **self._answers.subscription(subscription),
            "status": "CANCELED" if ends <= self._engine.now() else "ACTIVE",
            "cancellationDate": ends.isoformat(),
            "effectiveEndDate": ends.isoformat(),
        }

    def grant_promotional_entitlements(self, given: Json) -> list[Json]:
        customer = self._require_customer(given["customerId"])
        granted = [self._inputs.promotion(one) for one in given.get("promotionalEntitlements") or []]
        for feature, content in granted:
            self._engine.accounts.promote(customer, feature, content)
        return [self._answers.promotional(customer, feature, content) for feature, content in granted]

    def revoke_promotional_entitlement(self, given: Json) -> Json:
        customer, feature = self._require_customer(given["customerId"]), given["featureId"]
        content = self._engine.accounts.promotions(customer).get(feature)
        if content is None:
            raise GraphError("VALIDATION_ERROR", f"{customer} has no promotional entitlement to {feature!r}")
        self._engine.accounts.revoke(customer, feature)
        return self._answers.promotional(customer, feature, content)

    def report_usage(self, given: Json) -> Json:
        request = usage_of(given)
        return self._answers.measured(
            self._engine.answer("ReportUsage", request, idempotency_key=given.get("idempotencyKey"))
        )

    def report_usage_bulk(self, given: Json) -> list[Json]:
        usages = given.get("usages") or []
        keys = [usage.get("idempotencyKey") for usage in usages]
        key = "\n".join(keys) if all(keys) else None
        request = pb.ReportUsageBulkRequest(usages=[usage_of(usage) for usage in usages])
        answer: Any = self._engine.answer("ReportUsageBulk", request, idempotency_key=key)
        return [self._answers.measured(usage) for usage in answer.usages]

    def report_event(self, given: Json) -> None:
        events = [event_of(event) for event in given.get("usageEvents") or []]
        self._engine.answer("ReportEvents", pb.ReportEventsRequest(events=events))

    def _is_customer(self, customer: str) -> bool:
        try:
            self._engine.accounts.details(customer)
        except Denied:
            return False
        return True

    def _require_customer(self, customer: str) -> str:
        if not self._is_customer(customer):
            raise GraphError("CUSTOMER_NOT_FOUND", f"there is no customer {customer!r}")
        return customer

    def _subscription_of(self, subscription_id: str) -> Subscription:
        for subscription in self._engine.accounts.subscriptions():
            if subscription.id == subscription_id:
                return subscription
        raise GraphError("SUBSCRIPTION_NOT_FOUND", f"there is no active subscription {subscription_id!r}")

    def _checked_plan(self, given: Json, customer: str) -> None:
        """Refuse a subscription that cannot be, before anything is changed."""
        take(given, "customerId", "planId", "resourceId", "subscriptionId", "refId", *TERMS)
        plan, plans = given["planId"], self._engine.catalog.plans
        if plan not in plans:
            raise GraphError("VALIDATION_ERROR", f"planId: there is no {plan!r}; {nearest(plan, plans)}")
        if self._engine.accounts.is_archived(customer):
            raise GraphError("VALIDATION_ERROR", f"the customer {customer!r} is archived")
        self._inputs.terms(given)

    def _subscribe(self, given: Json) -> Subscription:
        own_id = given.get("subscriptionId") or given.get("refId")
        customer, resource, plan = given["customerId"], given.get("resourceId") or "", given["planId"]
        return self._engine.accounts.subscribe(customer, resource, plan, self._inputs.terms(given), own_id)

    def _subscribed(self, customer: str, resource: str | None) -> Json | None:
        found = self._engine.accounts.subscription(customer, resource or "")
        return None if found is None else self._answers.subscription(found)

    def _state(self, customer: str, resource: str | None) -> Any:
        request = pb.GetEntitlementsStateV2Request(customer_id=customer, resource_id=resource)
        return self._engine.answer("GetEntitlementsStateV2", request)

    def _single(self, given: Json) -> Json:
        take(given, "customerId", "resourceId", "featureId", "currencyId", "options")
        options = given.get("options") or {}
        take(options, "requestedUsage", "requestedValues")
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
        return self._answers.entitlement(answer.entitlement, given.get("featureId") or given.get("currencyId") or "")


QUESTIONS: Mapping[str, Callable[[Resolvers, Any], Any]] = {
    "getCustomerByRefId": Resolvers.customer,
    "getActiveSubscriptions": Resolvers.active_subscriptions,
    "getSubscription": Resolvers.subscription,
    "entitlementsState": Resolvers.entitlements_state,
    "cachedEntitlements": Resolvers.entitlements,
    "entitlement": Resolvers.entitlement,
    "entitlementV2": Resolvers.entitlement_v2,
    "creditBalanceSummary": Resolvers.credit_balance,
    "creditGrants": lambda self, given: self.credits.grants(given),
    "creditsLedger": lambda self, given: self.credits.ledger(given),
    "creditUsage": lambda self, given: self.credits.usage(given),
    "paywall": Resolvers.paywall,
    "products": Resolvers.products,
    "coupons": Resolvers.coupons,
    "reportUsage": Resolvers.report_usage,
    "reportUsageBulk": Resolvers.report_usage_bulk,
    "reportEvent": Resolvers.report_event,
    "consumeCredits": lambda self, given: self.credits.consume(given),
    "consumeCreditsAsync": lambda self, given: self.credits.consume_async(given),
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
    "createCreditGrant": lambda self, given: self.credits.grant(given),
    "voidCreditGrant": lambda self, given: self.credits.void(given),
}
"""Those that change them."""

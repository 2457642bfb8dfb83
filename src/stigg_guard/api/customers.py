"""Finds the customers whose entitlements a mutation may change: in its variables or in its answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Paths of ids; a path goes through every item of a list. Those of the answer begin with its key. A mutation with
# several paths changes all whom it names. Where nothing is found, it may have been anybody.
_INPUT = ("input.customerId",)

CHANGED: Mapping[str, tuple[str, ...] | None] = {
    "ProvisionCustomer": ("input.customerId", "input.refId", "provisionCustomer.customer.customerId"),
    "ImportCustomer": ("input.customerId", "input.refId", "importCustomer.customerId"),
    "ImportCustomerBulk": ("input.customers.customerId", "input.customers.refId"),
    "UpdateCustomer": ("input.customerId", "input.refId", "updateCustomer.customerId"),
    "ArchiveCustomer": _INPUT,
    "UnarchiveCustomer": _INPUT,
    "GrantPromotionalEntitlements": _INPUT,
    "RevokePromotionalEntitlement": _INPUT,
    "GrantPromotionalEntitlementsGroup": _INPUT,
    "RevokePromotionalEntitlementsGroup": _INPUT,
    "UnlinkPromotionalEntitlementsGroup": _INPUT,
    "ProvisionSubscription": _INPUT,
    "ApplySubscription": _INPUT,
    "CreateSubscription": _INPUT,
    "ImportSubscriptionsBulk": ("input.subscriptions.customerId",),
    "UpdateSubscription": ("updateSubscription.customer.refId",),
    "CancelSubscription": ("cancelSubscription.customer.refId",),
    "TransferSubscription": _INPUT,
    "TransferSubscriptionToResource": ("transferSubscriptionToResource.customer.refId",),
    "ReportUsage": _INPUT,
    "ReportUsageBulk": ("input.usages.customerId",),
    "ReportEvent": ("input.usageEvents.customerId",),
    "ConsumeCredits": _INPUT,
    "ConsumeCreditsAsync": ("input.consumptions.customerId",),
    "GrantCredits": _INPUT,
    "VoidCreditGrant": ("voidCreditGrant.customerId",),
    "SaveAutomaticRechargeConfiguration": _INPUT,
    # The answer does not name the customer, or not the one who had it before.
    "MigrateSubscriptionToLatest": None,
    "DelegateSubscriptionToCustomer": None,
    "CancelSubscriptionUpdates": None,
}
"""Where each mutation names its customers; None where it does not. Those that are not here change no entitlements."""


def changed_customers(mutation: str, variables: Mapping[str, Any], answer: Mapping[str, Any]) -> frozenset[str] | None:
    """The ids of the customers whose entitlements may have changed: none, or None when it may be anybody's."""
    if mutation not in CHANGED:
        return frozenset()
    paths = CHANGED[mutation] or ()
    found = {value for path in paths for value in _values({**variables, **answer}, path.split("."))}
    return frozenset(found) or None


def _values(node: Any, path: list[str]) -> list[str]:
    if isinstance(node, list):
        return [value for item in node for value in _values(item, path)]
    if not path:
        return [node] if isinstance(node, str) and node else []
    return _values(node.get(path[0]), path[1:]) if isinstance(node, dict) else []

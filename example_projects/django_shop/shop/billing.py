"""Who becomes a customer and buys what, at Stigg; here the local sidecar stands in for it."""

from __future__ import annotations

import uuid

from stigg_guard.django import get_guard

FIRST_PLAN = "free"
LARGER_PLAN = "growth"


def sign_up(name: str) -> str:
    """Makes a customer on the first plan; its id.

    Raises:
        ApiError: it could not be done.
    """
    customer_id = f"studio-{uuid.uuid4()}"
    get_guard().api.provision_customer(
        {"customer_id": customer_id, "name": name, "subscription_params": {"plan_id": FIRST_PLAN}}
    )
    return customer_id


def upgrade(customer_id: str) -> None:
    """Puts the customer on the larger plan; the next check knows of it.

    Raises:
        ApiError: it could not be done.
    """
    get_guard().api.provision_subscription({"customer_id": customer_id, "plan_id": LARGER_PLAN})

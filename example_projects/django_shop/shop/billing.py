"""Who becomes a customer and buys what, at Stigg; here the local sidecar stands in for it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import suppress

from django.http import HttpRequest, HttpResponse

from shop.customers import customer_of
from stigg_guard import SidecarError
from stigg_guard.django import get_guard

FIRST_PLAN = "free"
LARGER_PLAN = "growth"
TOP_UP = 10_000
"""Credits."""
READ_THROUGH_UNTIL = "read_through_until"


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


def top_up(customer_id: str) -> None:
    """Gives the customer more credits; the next check knows of them.

    Raises:
        ApiError: it could not be done.
    """
    get_guard().api.grant_credits(
        {
            "customer_id": customer_id,
            "currency_id": "api-credits",
            "amount": TOP_UP,
            "grant_type": "PAID",
            "display_name": "Top-up",
        }
    )


def note_change(request: HttpRequest) -> None:
    """The visitor's next requests may be answered by another worker, which may know plan and usage from before."""
    request.session[READ_THROUGH_UNTIL] = time.time() + get_guard().config.cache_ttl


def read_through(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware: who bought or used something a moment ago is read again; for all others what is cached will do."""

    def middleware(request: HttpRequest) -> HttpResponse:
        is_news = time.time() < request.session.get(READ_THROUGH_UNTIL, 0)
        customer = customer_of(request) if is_news else None
        if customer is not None:
            with suppress(SidecarError):  # in an outage, what is cached will do
                get_guard().reload(customer)
        return get_response(request)

    return middleware

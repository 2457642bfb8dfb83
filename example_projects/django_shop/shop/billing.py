"""Where the shop would ask its billing to change a plan; here the local sidecar's catalog is changed instead."""

from __future__ import annotations

from urllib.parse import quote

import requests
from django.conf import settings


def change_plan(customer_id: str, plan: str) -> None:
    """Puts the customer on the plan.

    Raises:
        requests.RequestException: it could not be done.
    """
    url = f"{settings.BILLING_URL}/customers/{quote(customer_id, safe='')}"
    requests.put(url, json={"plan": plan}, timeout=5).raise_for_status()

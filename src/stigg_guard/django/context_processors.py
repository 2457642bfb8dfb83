"""The context processor ``stigg``: the customer's plan in every template."""

from __future__ import annotations

from collections.abc import Mapping

from django.http import HttpRequest

from stigg_guard.django.pages import page_plan


def stigg(request: HttpRequest) -> Mapping[str, object]:
    """Returns ``stigg``: the plan of the request's customer, as ``request.stigg``. It is looked up on first use."""
    return {"stigg": page_plan(request, {})}

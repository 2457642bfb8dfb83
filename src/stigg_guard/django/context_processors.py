"""What templates get without asking for it."""

from __future__ import annotations

from collections.abc import Mapping

from django.http import HttpRequest

from stigg_guard.django.pages import page_plan


def stigg(request: HttpRequest) -> Mapping[str, object]:
    """``stigg``: the plan of the request's customer, as ``request.stigg`` has it. Nobody is asked before it is used."""
    return {"stigg": page_plan(request, {})}

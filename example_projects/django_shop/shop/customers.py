"""Which customer a request belongs to."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest

from shop.models import Studio


def studio_of(request: HttpRequest) -> Studio | None:
    """The studio of the user who is signed in; nobody's for the shop's staff."""
    return getattr(request.user, "studio", None)


def customer_of(request: HttpRequest) -> str | None:
    """The customer of a request, for the guard: by who is signed in, never by what the request says."""
    studio = studio_of(request)
    return studio.customer_id if studio is not None else None


def signed_in(request: HttpRequest) -> dict[str, Any]:
    """Puts the studio into the context of every page."""
    return {"studio": studio_of(request)}

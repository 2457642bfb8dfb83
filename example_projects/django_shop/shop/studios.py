"""The studios that are customers of the shop, and which of them is signed in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest


@dataclass(frozen=True)
class Studio:
    """A customer. ``customer_id`` is its id at Stigg; ``plan`` what it has when the demonstration starts."""

    customer_id: str
    name: str
    trade: str
    plan: str


STUDIOS = {
    studio.customer_id: studio
    for studio in (
        Studio("customer-demo-01", "Ada's studio", "Posters and print", "Essentials plan"),
        Studio("customer-demo-02", "Grace & Co.", "Annual reports", "Growth plan"),
        Studio("customer-demo-03", "Linus, freelancer", "Menus for small cafés", "Free plan"),
        Studio("customer-demo-04", "Edsger, just looking", "Nothing made yet", "No plan yet"),
    )
}


def studio_of(request: HttpRequest) -> Studio | None:
    """The studio that is signed in. The session is signed, and only a studio that we know is believed."""
    return STUDIOS.get(request.session.get("customer", ""))


def customer_of(request: HttpRequest) -> str | None:
    """The customer of a request, for the guard."""
    studio = studio_of(request)
    return studio.customer_id if studio is not None else None


def signed_in(request: HttpRequest) -> dict[str, Any]:
    """Puts the studio into the context of every page."""
    return {"studio": studio_of(request)}

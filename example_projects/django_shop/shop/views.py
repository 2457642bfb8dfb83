"""The shop's pages. What a plan decides is said in the decorators, and nowhere else."""

from __future__ import annotations

import csv
import logging
from contextlib import suppress
from typing import Any

import requests
from django.contrib import messages
from django.db.models import Count, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from shop import billing
from shop.forms import TemplateForm
from shop.models import Template
from shop.studios import STUDIOS, customer_of
from stigg_guard import SidecarError
from stigg_guard.django import consumes_usage, get_guard, requires_feature

logger = logging.getLogger(__name__)

FEATURES = {
    "feature-templates": "Templates",
    "feature-seats": "Seats",
    "feature-storage": "Storage",
    "feature-regions": "Regions",
    "feature-exports": "Exports",
    "feature-custom-domain": "Custom domain",
    "feature-analytics": "Analytics",
}


@require_GET
def home(request: HttpRequest) -> HttpResponse:
    """The studio's templates beside what its plan has; for everybody else, the sign-in."""
    customer = customer_of(request)
    if customer is None:
        return render(request, "shop/sign_in.html", {"studios": STUDIOS.values()})
    # Another worker may have sold something or changed the plan a moment ago; with an outage, what is cached will do.
    with suppress(SidecarError):
        get_guard().reload(customer)
    return _home(request, TemplateForm())


@require_POST
def sign_in(request: HttpRequest) -> HttpResponse:
    """Stands for a real sign-in: no password is asked."""
    customer = request.POST.get("customer", "")
    if customer not in STUDIOS:
        messages.error(request, "This studio is not known here.")
        return redirect("home")
    request.session.cycle_key()
    request.session["customer"] = customer
    return redirect("home")


@require_POST
def sign_out(request: HttpRequest) -> HttpResponse:
    """Ends the session."""
    request.session.flush()
    return redirect("home")


@require_POST
@requires_feature("feature-templates")
@consumes_usage(1)
def create_template(request: HttpRequest) -> HttpResponse:
    """Makes a template. A form with mistakes comes back as 422, so that it is not counted."""
    form = TemplateForm(request.POST)
    if not form.is_valid():
        return _home(request, form, status=422)
    form.instance.customer_id = customer_of(request)
    template = form.save()
    messages.success(request, f"{template} is ready.")
    return redirect("home")


@require_POST
def delete_template(request: HttpRequest, pk: int) -> HttpResponse:
    """Deletes a template and gives its place back."""
    customer = customer_of(request)
    deleted, _ = Template.objects.filter(pk=pk, customer_id=customer).delete()
    if customer is None or not deleted:
        raise Http404
    get_guard().report("feature-templates", -1, customer=customer)
    messages.success(request, "The template is deleted, and its place is free again.")
    return redirect("home")


@require_GET
@requires_feature("feature-exports")
def export(request: HttpRequest) -> HttpResponse:
    """The studio's templates for a spreadsheet."""
    response = HttpResponse(content_type="text/csv")
    response["Content-Disposition"] = 'attachment; filename="templates.csv"'
    rows = csv.writer(response)
    rows.writerow(["name", "kind", "created"])
    rows.writerows(_templates(request).values_list("name", "kind", "created_at"))
    return response


@require_GET
@requires_feature("feature-analytics")
def analytics(request: HttpRequest) -> HttpResponse:
    """How many templates of each kind the studio has: only some plans include it."""
    counts = _templates(request).values_list("kind").annotate(count=Count("pk")).order_by("-count")
    bars = [(Template.Kind(kind).label, count) for kind, count in counts]
    return render(request, "shop/analytics.html", {"bars": bars, "most": max((count for _, count in bars), default=1)})


@require_http_methods(["GET", "POST"])
def upgrade(request: HttpRequest) -> HttpResponse:
    """Offers the larger plan, and changes to it."""
    customer = customer_of(request)
    if customer is None:
        return redirect("home")
    if request.method == "GET":
        wanted = FEATURES.get(request.GET.get("feature", ""))
        return render(request, "shop/upgrade.html", {"wanted": wanted, "features": FEATURES.items()})
    try:
        billing.change_plan(customer, "growth")
    except requests.RequestException as error:
        logger.warning("the plan of %s was not changed: %s", customer, error)
        messages.error(request, "Your plan could not be changed just now. Please try again in a moment.")
        return redirect("upgrade")
    get_guard().reload(customer)
    messages.success(request, "Welcome to Growth. Everything it has is yours from now on.")
    return redirect("home")


def _home(request: HttpRequest, form: TemplateForm, status: int = 200) -> HttpResponse:
    context: dict[str, Any] = {"templates": _templates(request), "form": form, "features": FEATURES.items()}
    return render(request, "shop/home.html", context, status=status)


def _templates(request: HttpRequest) -> QuerySet[Template]:
    return Template.objects.filter(customer_id=customer_of(request))

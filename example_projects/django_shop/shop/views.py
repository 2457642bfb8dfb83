"""The shop's pages. What a plan decides is said in the decorators, and around the call of the language model."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Iterator
from typing import Any

from django.contrib import messages
from django.contrib.auth import get_user_model, login, logout
from django.db import transaction
from django.db.models import Count, QuerySet
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST
from django.views.generic import TemplateView

from shop import billing, writer
from shop.customers import customer_of, studio_of
from shop.forms import StudioForm, TemplateForm
from shop.models import Studio, Template
from stigg_guard import ApiError
from stigg_guard.django import RequiresFeatureMixin, consumes_usage, get_guard, releases_usage, requires_feature

logger = logging.getLogger(__name__)

FEATURES = {
    "feature-templates": "Templates",
    "feature-api-calls": "API calls",
    "api-credits": "Credits",
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
        return render(request, "shop/sign_in.html", {"studios": Studio.objects.select_related("owner")})
    return _home(request, TemplateForm())


@require_POST
def sign_in(request: HttpRequest) -> HttpResponse:
    """Stands for a real sign-in: no password is asked."""
    user = get_user_model().objects.filter(username=request.POST.get("user")).first()
    if user is None:
        messages.error(request, "This name is not known here.")
        return redirect("home")
    login(request, user)
    return redirect("admin:index" if user.is_staff else "home")


@require_POST
@transaction.non_atomic_requests
def sign_up(request: HttpRequest) -> HttpResponse:
    """Makes a studio that is a customer on the free plan. Stigg is asked before the database is held for writing."""
    form = StudioForm(request.POST)
    if not form.is_valid():
        messages.error(request, "A studio has a name of up to 60 letters.")
        return redirect("home")
    try:
        form.instance.customer_id = billing.sign_up(form.instance.name)
    except ApiError as error:
        logger.warning("nobody could sign up: %s", error)
        messages.error(request, "You could not be signed up just now. Please try again in a moment.")
        return redirect("home")
    form.instance.trade, form.instance.joined_with = "Signed up here", "Free plan"
    with transaction.atomic():
        form.instance.owner = get_user_model().objects.create_user(form.instance.customer_id)
        form.save()
    login(request, form.instance.owner)
    billing.note_change(request)
    messages.success(request, "Welcome. Your free plan has room for two templates.")
    return redirect("home")


@require_POST
def sign_out(request: HttpRequest) -> HttpResponse:
    """Ends the session."""
    logout(request)
    return redirect("home")


@require_POST
@requires_feature("feature-templates")
@consumes_usage(1)
def create_template(request: HttpRequest) -> HttpResponse:
    """Makes a template. A form with mistakes comes back as 422, so that it is not counted."""
    form = TemplateForm(request.POST)
    if not form.is_valid():
        return _home(request, form, status=422)
    form.instance.studio = studio_of(request)
    template = form.save()
    billing.note_change(request)
    messages.success(request, f"{template} is ready.")
    return redirect("home")


@require_POST
@releases_usage(1, "feature-templates")
def delete_template(request: HttpRequest, pk: int) -> HttpResponse:
    """Deletes a template, which gives its place back."""
    get_object_or_404(_templates(request), pk=pk).delete()
    billing.note_change(request)
    messages.success(request, "The template is deleted, and its place is free again.")
    return redirect("home")


@require_POST
@transaction.non_atomic_requests
def write_words(request: HttpRequest, pk: int) -> HttpResponse:
    """Has the language model write a template's words. Credits for all that it may use are held meanwhile, and those
    for what it has used are counted. No transaction is open while it writes."""
    template = get_object_or_404(_templates(request), pk=pk)
    with get_guard().consume("feature-ai", writer.MAX_TOKENS, customer=template.studio.customer_id) as usage:
        completion = writer.complete(template.kind, template.name, writer.MAX_TOKENS)
        usage.amount = completion.tokens
        template.words = completion.text
        template.save(update_fields=["words"])
    billing.note_change(request)
    messages.success(request, f"{template} has its words: {completion.tokens} tokens.")
    return redirect("home")


@require_GET
@requires_feature("feature-exports")
def export(request: HttpRequest) -> StreamingHttpResponse:
    """The studio's templates for a spreadsheet, streamed: however many there are, few are in memory."""
    rows = _templates(request).values_list("name", "kind", "created_at").iterator()
    headers = {"Content-Disposition": 'attachment; filename="templates.csv"'}
    return StreamingHttpResponse(_csv(("name", "kind", "created"), rows), content_type="text/csv", headers=headers)


@transaction.non_atomic_requests
@consumes_usage(1, "feature-api-calls")
async def suggest_name(request: HttpRequest) -> JsonResponse:
    """A name that the studio has not used yet: each is an API call. It waits for the database without a thread."""
    kind = request.GET.get("kind", Template.Kind.POSTER)
    # The guard has asked who is signed in, so that is known here, and needs no database.
    taken = {name async for name in _templates(request).values_list("name", flat=True)}
    billing.note_change(request)
    names = (f"{word} {kind}" for word in ("Summer", "Autumn", "Winter", "Spring", "Grand", "Last"))
    return JsonResponse({"name": next((name for name in names if name not in taken), f"Another {kind}")})


class Analytics(RequiresFeatureMixin, TemplateView):
    """How many templates of each kind the studio has: only some plans include it."""

    feature = "feature-analytics"
    template_name = "shop/analytics.html"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        counts = _templates(self.request).values_list("kind").annotate(count=Count("pk")).order_by("-count")
        bars = [(Template.Kind(kind).label, count) for kind, count in counts]
        return super().get_context_data(bars=bars, most=max((count for _, count in bars), default=1), **kwargs)


@require_http_methods(["GET", "POST"])
def upgrade(request: HttpRequest) -> HttpResponse:
    """Offers the larger plan, and changes to it."""
    customer = customer_of(request)
    if customer is None:
        return redirect("home")
    if request.method == "GET":
        wanted = {**FEATURES, "feature-ai": "Credits"}.get(request.GET.get("feature", ""))
        context = {"wanted": wanted, "features": FEATURES.items(), "credits": f"{billing.TOP_UP:,}"}
        return render(request, "shop/upgrade.html", context)
    try:
        billing.upgrade(customer)
    except ApiError as error:
        logger.warning("the plan of %s was not changed: %s", customer, error)
        messages.error(request, "Your plan could not be changed just now. Please try again in a moment.")
        return redirect("upgrade")
    billing.note_change(request)
    messages.success(request, "Welcome to Growth. Everything it has is yours from now on.")
    return redirect("home")


@require_POST
@transaction.non_atomic_requests
def top_up(request: HttpRequest) -> HttpResponse:
    """Sells more credits."""
    customer = customer_of(request)
    if customer is None:
        return redirect("home")
    try:
        billing.top_up(customer)
    except ApiError as error:
        logger.warning("%s got no credits: %s", customer, error)
        messages.error(request, "Your credits could not be added just now. Please try again in a moment.")
        return redirect("upgrade")
    billing.note_change(request)
    messages.success(request, f"{billing.TOP_UP:,} credits are yours.")
    return redirect("home")


def _home(request: HttpRequest, form: TemplateForm, status: int = 200) -> HttpResponse:
    context = {"templates": _templates(request), "form": form, "features": FEATURES.items()}
    return render(request, "shop/home.html", context, status=status)


def _templates(request: HttpRequest) -> QuerySet[Template]:
    return Template.objects.filter(studio=studio_of(request))


class _Lines:
    """A file for ``csv.writer`` that gives each line back instead of keeping it."""

    def write(self, line: str) -> str:
        return line


def _csv(heading: Iterable[str], rows: Iterable[Iterable[object]]) -> Iterator[str]:
    writer = csv.writer(_Lines())
    yield writer.writerow(heading)
    yield from map(writer.writerow, rows)

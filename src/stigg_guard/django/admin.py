"""The admin's pages: the usage ledger, whose doubtful entries a person decides, and what a customer is entitled to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import BadRequest, PermissionDenied
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils.functional import Promise
from django.utils.text import capfirst
from django.utils.translation import npgettext, pgettext, pgettext_lazy

from stigg_guard.cli.operators import DECIDABLE, amount_text, entitlements_of
from stigg_guard.django.conf import DEFAULT, configurations, get_guard
from stigg_guard.django.models import LedgerEntry
from stigg_guard.django.wording import WORDING
from stigg_guard.entitlements import Customer
from stigg_guard.errors import InvalidRequest, LedgerUnavailable, SidecarError
from stigg_guard.ledger import Entry, Ledger, State
from stigg_guard.web.display import line

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[LedgerEntry]
else:
    _ModelAdmin = admin.ModelAdmin

MAX_ENTRIES = 1_000
"""How many entries the ledger's page reads, and how many one decision is about."""
PER_PAGE = 50
RETRY, DISCARD = "retry", "discard"

_STATES = {
    State.HELD: pgettext_lazy("stigg_guard", "held"),
    State.UNSENT: pgettext_lazy("stigg_guard", "unsent"),
    State.SENDING: pgettext_lazy("stigg_guard", "being sent"),
    State.UNCERTAIN: pgettext_lazy("stigg_guard", "uncertain"),
    State.DEAD: pgettext_lazy("stigg_guard", "rejected"),
}


@admin.register(LedgerEntry)
class LedgerEntryAdmin(_ModelAdmin):
    """The usage ledger, and what a customer is entitled to, for those who may view ledger entries.

    What is rejected or uncertain can be sent again by those who may change entries, and be forgotten by those who may
    delete them; the admin's log tells who did.
    """

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def get_urls(self) -> list[URLPattern]:
        pages = {"": ("changelist", self.changelist_view), "entitlements/": ("entitlements", self.entitlements_view)}
        return [
            path(route, self.admin_site.admin_view(view), name=f"stigg_guard_ledgerentry_{name}")
            for route, (name, view) in pages.items()
        ]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """The entries, oldest first. By POST a decision about some of them: once to be asked whether, once to do it."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        try:
            ledger = get_guard(_using(request)).ledger
            if request.method == "POST":
                return self._decide(request, ledger)
            context = _listed(request, ledger)
        except LedgerUnavailable as error:
            context = {"unavailable": str(error)}
        return self._page(request, "change_list", {**context, **(extra_context or {})})

    def entitlements_view(self, request: HttpRequest) -> HttpResponse:
        """What the customer that the form names is entitled to."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        form = _CustomerForm(request.GET if "customer" in request.GET else None)
        found = None
        if form.is_valid():
            try:
                customer = Customer(form.cleaned_data["customer"], form.cleaned_data["resource"] or None)
                answers = entitlements_of(get_guard(_using(request)), customer)
                found = [(answer, line(answer, WORDING)) for answer in answers]
            except (InvalidRequest, SidecarError) as error:
                form.add_error(None, str(error))
        title = pgettext("stigg_guard", "Entitlements of a customer")
        return self._page(request, "entitlements", {"title": title, "form": form, "found": found})

    def _decide(self, request: HttpRequest, ledger: Ledger) -> HttpResponse:
        action = request.POST.get("action")
        if action not in (RETRY, DISCARD):
            raise BadRequest(f"a decision is {RETRY} or {DISCARD}")
        if not (self.has_change_permission(request) if action == RETRY else self.has_delete_permission(request)):
            raise PermissionDenied
        chosen = _chosen(request, ledger)
        if chosen and "confirmed" not in request.POST:
            return self._page(request, "confirmation", _confirmation(action, chosen))
        if chosen:
            _carry_out(request, action, chosen, ledger)
        else:
            messages.warning(
                request, pgettext("stigg_guard", "No rejected or uncertain entry was chosen, so nothing was changed.")
            )
        return HttpResponseRedirect(request.get_full_path())

    def _page(self, request: HttpRequest, name: str, context: Mapping[str, Any]) -> HttpResponse:
        shared = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": capfirst(self.opts.verbose_name_plural),
            "using": _using(request),
            "configurations": list(configurations()),
            "may_retry": self.has_change_permission(request),
            "may_discard": self.has_delete_permission(request),
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, f"admin/stigg_guard/ledgerentry/{name}.html", {**shared, **context})


class _CustomerForm(forms.Form):
    customer = forms.CharField(label=pgettext_lazy("stigg_guard", "Customer id"), max_length=255)
    resource = forms.CharField(label=pgettext_lazy("stigg_guard", "Resource id"), max_length=255, required=False)


def _using(request: HttpRequest) -> str:
    """The name of the configuration that is looked at."""
    name = request.GET.get("using", DEFAULT)
    return name if name in configurations() else DEFAULT


class _Row(NamedTuple):
    """An entry as the page shows it."""

    entry: Entry
    state: Promise
    amount: str
    used_at: datetime
    waits: bool


def _row(entry: Entry) -> _Row:
    used_at = datetime.fromtimestamp(entry.used_at / 1e9, timezone.utc)
    return _Row(entry, _STATES[entry.state], amount_text(entry), used_at, entry.state in DECIDABLE)


def _listed(request: HttpRequest, ledger: Ledger) -> Mapping[str, Any]:
    """The page of entries that was asked for, of one state or of all."""
    wanted = [state for state in State if state.value == request.GET.get("state")]
    found = ledger.entries(wanted or list(State), MAX_ENTRIES + 1)
    page = Paginator(found[:MAX_ENTRIES], PER_PAGE).get_page(request.GET.get("p"))
    counts = ledger.counts()
    return {
        "page": page,
        "pages": page.paginator.get_elided_page_range(page.number),
        "rows": [_row(entry) for entry in page],
        "state": wanted[0].value if wanted else "",
        "states": [(state.value, label, counts[state]) for state, label in _STATES.items()],
        "entries": sum(counts[state] for state in State),
        "waiting": sum(counts[state] for state in DECIDABLE),
        "max_entries": MAX_ENTRIES if len(found) > MAX_ENTRIES else None,
    }


def _chosen(request: HttpRequest, ledger: Ledger) -> Sequence[Entry]:
    """Those of the chosen entries that still wait for a decision, or the oldest of all that do."""
    if "all" in request.POST:
        return ledger.entries(DECIDABLE, MAX_ENTRIES)
    ids = set(" ".join(request.POST.getlist("entry")).split())
    # What a page shows is among the oldest of its state.
    return [entry for state in DECIDABLE for entry in ledger.entries((state,), MAX_ENTRIES) if entry.id in ids]


def _confirmation(action: str, chosen: Sequence[Entry]) -> Mapping[str, Any]:
    return {
        "title": pgettext("stigg_guard", "Send again?") if action == RETRY else pgettext("stigg_guard", "Discard?"),
        "action": action,
        "rows": [_row(entry) for entry in chosen],
        "ids": " ".join(entry.id for entry in chosen),  # in one field, since Django limits the number of fields
        "doubtful": sum(entry.state is State.UNCERTAIN for entry in chosen),
    }


def _carry_out(request: HttpRequest, action: str, chosen: Sequence[Entry], ledger: Ledger) -> None:
    ids = [entry.id for entry in chosen]
    if action == RETRY:
        done = ledger.retry(ids)
        told = npgettext(
            "stigg_guard", "%(count)d entry will be sent again.", "%(count)d entries will be sent again.", done
        )
        _log(request, chosen, CHANGE, pgettext("stigg_guard", "Sent again."))
    else:
        done = ledger.discard(ids)
        told = npgettext("stigg_guard", "%(count)d entry was discarded.", "%(count)d entries were discarded.", done)
        _log(request, chosen, DELETION, pgettext("stigg_guard", "Discarded."))
    messages.success(request, told % {"count": done})


def _log(request: HttpRequest, chosen: Sequence[Entry], flag: int, message: str) -> None:
    content_type = ContentType.objects.get_for_model(LedgerEntry)
    LogEntry.objects.bulk_create(
        LogEntry(
            user_id=request.user.pk,  # type: ignore[misc] # the admin lets in nobody anonymous
            content_type=content_type,
            object_id=entry.id,
            object_repr=f"{amount_text(entry)} {entry.key}"[:200],
            action_flag=flag,
            change_message=message,
        )
        for entry in chosen
    )

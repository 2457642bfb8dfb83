"""A panel for Django Debug Toolbar: what a request asked its guards, and what that took."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any
from weakref import WeakSet

from django.http import HttpRequest, HttpResponse

from stigg_guard.django.conf import configurations
from stigg_guard.entitlements import Customer, Entitlement
from stigg_guard.errors import FeatureDenied, MissingExtra, StiggGuardError
from stigg_guard.guard import Guard
from stigg_guard.ledger import Use
from stigg_guard.observer import Observer, Step

try:
    from debug_toolbar.panels import Panel
except ModuleNotFoundError as error:
    raise MissingExtra("debug-toolbar", "stigg_guard.django.panels") from error

_notes: ContextVar[dict[str, list[dict[str, Any]]] | None] = ContextVar("stigg_guard_notes", default=None)
_followed: WeakSet[Guard] = WeakSet()


class GuardPanel(Panel):
    """Lists a request's checks with their sources, questions to the sidecar, holds, usage and reports, with times.

    Add ``"stigg_guard.django.panels.GuardPanel"`` to ``DEBUG_TOOLBAR_PANELS``. What background threads report is of no
    request, and is left out.
    """

    title = "Entitlements"
    template = "stigg_guard/panel.html"
    is_async = True

    @property
    def nav_subtitle(self) -> str:
        """How many checks there were, and how long the sidecar was waited for."""
        stats = self.get_stats()
        return f"checks: {len(stats['checks'])}, {stats['waited']:.1f} ms" if stats else ""

    def enable_instrumentation(self) -> None:
        """Begins to note what happens in this request."""
        for configured in configurations().values():
            if configured.guard not in _followed:
                _followed.add(configured.guard)
                configured.guard.observe(_Notes())
        self._noted: dict[str, list[dict[str, Any]]] = {
            kind: [] for kind in ("checks", "fetches", "holds", "uses", "reports")
        }
        _notes.set(self._noted)

    def disable_instrumentation(self) -> None:
        """Ends it."""
        _notes.set(None)

    def generate_stats(self, request: HttpRequest, response: HttpResponse) -> None:
        """Keeps what was noted, for the page."""
        noted = self._noted
        waited = sum(step["ms"] for kind in ("fetches", "reports") for step in noted[kind])
        self.record_stats({**noted, "waited": waited})

    def generate_server_timing(self, request: HttpRequest, response: HttpResponse) -> None:
        """Tells the browser how long the sidecar was waited for."""
        self.record_server_timing("sidecar", "Stigg's sidecar", self.get_stats()["waited"])


class _Notes(Observer):
    """Notes what happens in the request that is under way in this context, if its panel is on."""

    def checked(self, answer: Entitlement, customer: Customer) -> None:
        why = answer.explanation
        self._note(
            "checks", customer, [answer.feature_id], outcome=why, granted=answer.has_access, source=answer.source.value
        )

    def unanswered(self, feature: str, customer: Customer, error: StiggGuardError) -> None:
        self._note("checks", customer, [feature], outcome=str(error), granted=False, source="none")

    def fetched(self, step: Step) -> None:
        self._note_step("fetches", step)

    def held(self, step: Step) -> None:
        self._note_step("holds", step)

    def used(self, use: Use) -> None:
        whose = Customer(use.key.customer_id, use.key.resource_id or None)
        self._note("uses", whose, [use.key.feature_id], amount=f"{'=' if use.is_set else '+'}{use.amount:g}")

    def sent(self, step: Step) -> None:
        self._note_step("reports", step)

    def _note_step(self, kind: str, step: Step) -> None:
        error = step.error
        outcome = error.entitlement.explanation if isinstance(error, FeatureDenied) else str(error) if error else ""
        self._note(kind, step.customer, step.features, ms=step.seconds * 1000, outcome=outcome)

    def _note(self, kind: str, customer: Customer | None, features: Any, **told: Any) -> None:
        noted: Mapping[str, list[dict[str, Any]]] | None = _notes.get()
        if noted is not None:
            whose = "" if customer is None else str(customer)
            noted[kind].append({"customer": whose, "features": list(features), **told})

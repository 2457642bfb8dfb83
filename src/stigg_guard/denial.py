"""What a denied request is answered with: one status table, one text, one page, for every framework."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import TypeAlias
from urllib.parse import quote

from stigg_guard.config import STATUS_CODES, Config
from stigg_guard.entitlements import Entitlement, Reason
from stigg_guard.errors import FeatureDenied, InvalidRequest, LedgerUnavailable, SidecarError, SignInRequired

PROBLEM_TYPE = "application/problem+json"
TEMPLATE = "stigg_guard/denied.html"

Refusal: TypeAlias = FeatureDenied | SidecarError | LedgerUnavailable | SignInRequired | InvalidRequest

_UNCACHED: Mapping[str, str] = {"Cache-Control": "no-store"}
_TITLES: Mapping[Reason, str] = {
    Reason.CUSTOMER_IS_ARCHIVED: "This account is archived",
    Reason.CUSTOMER_NOT_FOUND: "This account is not known",
    Reason.CUSTOMER_RESOURCE_NOT_FOUND: "This resource is not known",
    Reason.FEATURE_NOT_FOUND: "This feature does not exist",
    Reason.NO_ACTIVE_SUBSCRIPTION: "There is no active subscription",
    Reason.NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION: "Your plan does not include this feature",
    Reason.ENTITLEMENT_NOT_FOUND: "Your plan does not include this feature",
    Reason.REQUESTED_USAGE_EXCEEDING_LIMIT: "Your plan's limit is reached",
    Reason.BUDGET_EXCEEDED: "The budget is used up",
    Reason.REQUESTED_VALUES_MISMATCH: "Your plan does not include this choice",
    Reason.FEATURE_TYPE_MISMATCH: "This feature cannot be used this way",
    Reason.INSUFFICIENT_CREDITS: "There are not enough credits left",
    Reason.REVOKED: "Access to this feature was taken away",
    Reason.UNKNOWN: "Access to this feature is not possible at the moment",
}


@dataclass(frozen=True, slots=True)
class Denial:
    """A refused request, ready to be answered: HTTP ``status``, extra ``headers``, and the words.

    ``entitlement`` has the figures; it is None when nothing was decided.
    """

    status: int
    title: str
    detail: str
    headers: Mapping[str, str]
    entitlement: Entitlement | None
    upgrade_url: str | None

    @classmethod
    def of(cls, error: Refusal, config: Config) -> Denial:
        """The denial that an error of a guarded view comes to."""
        if isinstance(error, (SidecarError, LedgerUnavailable)):
            after = getattr(error, "retry_after", 1.0)
            headers = {"Retry-After": str(max(1, round(after))), **_UNCACHED}
            detail = "What your plan includes cannot be looked up right now. Please try again in a moment."
            return cls(503, "Please try again", detail, headers, None, None)
        if isinstance(error, SignInRequired):
            return cls(401, "Please sign in", "This page is for customers who are signed in.", _UNCACHED, None, None)
        if isinstance(error, InvalidRequest):
            return cls(400, "This amount cannot be used", f"{error}.", _UNCACHED, None, None)
        answer = error.entitlement
        reason = answer.reason or Reason.UNKNOWN
        status = config.status_codes.get(reason, STATUS_CODES[reason])
        url = upgrade_url(config, answer.feature_id) if STATUS_CODES[reason] == 402 else None
        return cls(status, _TITLES[reason], _detail(answer), _UNCACHED, answer, url)

    def problem(self) -> str:
        """The body by RFC 9457, as JSON text."""
        body: dict[str, object] = {"title": self.title, "status": self.status, "detail": self.detail}
        if self.entitlement is not None:
            answer = self.entitlement
            body |= {"feature": answer.feature_id, "reason": str(answer.reason or Reason.UNKNOWN)}
            figures = {"limit": answer.usage_limit, "usage": answer.current_usage, "requested": answer.requested_usage}
            body |= figures if answer.usage_limit is not None else {}
            body |= {"upgrade_url": self.upgrade_url} if self.upgrade_url else {}
        return json.dumps(body)


def upgrade_url(config: Config, feature: str = "") -> str | None:
    """The configured address of the upgrade page for a feature; None without one."""
    return config.upgrade_url.replace("{feature}", quote(feature, safe="")) if config.upgrade_url else None


def page_source() -> str:
    """The template of the denial page, in the syntax that Django's templates and Jinja share; gets ``denial``."""
    return files("stigg_guard").joinpath("denied.html").read_text(encoding="utf-8")


def prefers_html(accept: str) -> bool:
    """Whether a client that sends this ``Accept`` header would rather have a page than JSON: browsers would."""
    weights = dict(_weighed(entry) for entry in accept.lower().split(","))
    html = weights.get("text/html", weights.get("text/*", 0.0))
    problem = max(weights.get(kind, 0.0) for kind in (PROBLEM_TYPE, "application/json", "application/*"))
    return html > problem


def _weighed(entry: str) -> tuple[str, float]:
    kind, *parameters = (part.strip() for part in entry.split(";"))
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return kind, float(parameter[2:])
            except ValueError:
                return kind, 0.0
    return kind, 1.0


def _detail(answer: Entitlement) -> str:
    if answer.reason in (Reason.REQUESTED_USAGE_EXCEEDING_LIMIT, Reason.INSUFFICIENT_CREDITS):
        units = answer.units_plural or "units"
        asked = f", and {answer.requested_usage:.15g} more would be needed" if answer.requested_usage else ""
        return f"{answer.current_usage:.15g} of {answer.usage_limit or 0:.15g} {units} are used{asked}."
    return f"It concerns the feature {answer.feature_id}."

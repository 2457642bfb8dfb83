"""The response to a denied request, in any framework: one status table, one content negotiation, one page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http.client import responses
from importlib.resources import files
from math import ceil
from typing import Any, Protocol, TypeAlias, TypeGuard
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

from stigg_guard.config import STATUS_CODES, Anonymous, Config
from stigg_guard.entitlements import Entitlement, Reason
from stigg_guard.errors import (
    ApiError,
    FeatureDenied,
    InvalidRequest,
    KeyReused,
    KeyTaken,
    LedgerUnavailable,
    SidecarError,
    SignInRequired,
    UsageInProgress,
    UsageRepeated,
)
from stigg_guard.web.names import feature_name
from stigg_guard.web.rate_limit import has_policy
from stigg_guard.wording import ENGLISH, Text, Wording

HTML_TYPE = "text/html; charset=utf-8"
PROBLEM_TYPE = "application/problem+json"
QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"
"""The registered type of the problem that a quota is used up."""
TEMPLATE = "stigg_guard/denied.html"
FRAGMENT_TEMPLATE = "stigg_guard/denied_fragment.html"

Unanswered: TypeAlias = SidecarError | LedgerUnavailable | ApiError
UNANSWERED = (SidecarError, LedgerUnavailable, ApiError)
"""What is answered 503: somebody else did not do what the request needs."""

DeniedError: TypeAlias = FeatureDenied | Unanswered | SignInRequired | InvalidRequest | KeyTaken
DENIED_ERRORS = (FeatureDenied, *UNANSWERED, SignInRequired, InvalidRequest, KeyTaken)

_HEADERS: Mapping[str, str] = {"Cache-Control": "no-store", "Vary": "Accept, HX-Request"}
_TITLES: Mapping[Reason, Text] = {
    Reason.CUSTOMER_IS_ARCHIVED: Text.CUSTOMER_IS_ARCHIVED,
    Reason.CUSTOMER_NOT_FOUND: Text.CUSTOMER_NOT_FOUND,
    Reason.CUSTOMER_RESOURCE_NOT_FOUND: Text.RESOURCE_NOT_FOUND,
    Reason.FEATURE_NOT_FOUND: Text.FEATURE_NOT_FOUND,
    Reason.NO_ACTIVE_SUBSCRIPTION: Text.NO_SUBSCRIPTION,
    Reason.NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION: Text.NOT_IN_PLAN,
    Reason.ENTITLEMENT_NOT_FOUND: Text.NOT_IN_PLAN,
    Reason.REQUESTED_USAGE_EXCEEDING_LIMIT: Text.LIMIT_REACHED,
    Reason.BUDGET_EXCEEDED: Text.BUDGET_EXCEEDED,
    Reason.REQUESTED_VALUES_MISMATCH: Text.CHOICE_NOT_IN_PLAN,
    Reason.FEATURE_TYPE_MISMATCH: Text.FEATURE_MISUSED,
    Reason.INSUFFICIENT_CREDITS: Text.NOT_ENOUGH_CREDITS,
    Reason.REVOKED: Text.REVOKED,
    Reason.UNKNOWN: Text.NOT_POSSIBLE,
}
_QUOTA_EXCEEDED = (Reason.REQUESTED_USAGE_EXCEEDING_LIMIT, Reason.INSUFFICIENT_CREDITS, Reason.BUDGET_EXCEEDED)
_OF_KEYS: Mapping[type[KeyTaken], tuple[int, Text, Text]] = {
    UsageInProgress: (409, Text.IN_PROGRESS, Text.GOES_ON),
    UsageRepeated: (409, Text.DONE_BEFORE, Text.NOT_DONE_AGAIN),
    KeyReused: (422, Text.BAD_REQUEST, Text.KEY_OF_ANOTHER),
}
_OF_REQUEST = ("value", "resource_id", "dimensions", "key")  # the fields of what views compute from their requests
# What may stand in an HTTP header as it is: an address needs no more, and a line break must not be there.
_URL_SAFE = "%/:?#[]@!$&'()*+,;=~"


class Headers(Protocol):
    """The headers of a request, whose names are found in any case."""

    def get(self, key: str, default: str, /) -> str | None:
        """The header's value."""
        ...


@dataclass(frozen=True, slots=True)
class DenialResponse:
    """The HTTP response to a denied request.

    With ``template`` the framework renders that template with ``{"denial": denial}``; else ``body`` is sent as it is.
    """

    status: int
    headers: Mapping[str, str]
    template: str | None = None
    body: str = ""
    content_type: str = HTML_TYPE


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """A denied request: its HTTP ``status``, and the words, in the reader's language.

    ``entitlement`` has the figures; it is None when nothing was decided. ``facts`` are the same figures as labels and
    texts. ``upgrade_url`` is where more can be bought, with ``upgrade_label`` to click on; ``login_url`` is where a
    page sends those who are to sign in first. ``retry_after`` is in seconds. ``cause`` is what is wrong with a bad
    request, in English, for those who write its client. All of it is for templates.
    """

    status: int
    title: str
    detail: str
    entitlement: Entitlement | None = None
    facts: tuple[tuple[str, str], ...] = ()
    upgrade_url: str | None = None
    upgrade_label: str = ""
    login_url: str | None = None
    retry_after: int | None = None
    cause: str = ""
    language: str = "en"

    @classmethod
    def of(
        cls,
        error: DeniedError,
        config: Config,
        wording: Wording = ENGLISH,
        *,
        login_page: Callable[[], str | None] = lambda: None,
    ) -> Denial:
        """Makes the denial for an error of a guarded view.

        ``login_page`` finds the address of the login page, where the framework has it elsewhere than in ``LOGIN_URL``.
        It is called only if the denial sends people there.
        """
        if isinstance(error, FeatureDenied):
            return cls._of_entitlement(error.entitlement, config, wording)
        if isinstance(error, SignInRequired):
            login = (login_page() or config.login_url) if config.anonymous is Anonymous.LOGIN else None
            return cls._said(401, wording, Text.SIGN_IN, wording.say(Text.FOR_CUSTOMERS), login_url=login)
        if isinstance(error, InvalidRequest):
            detail = wording.say(Text.CANNOT_BE_COUNTED)
            return cls._said(400, wording, Text.BAD_REQUEST, detail, cause=str(error))
        if isinstance(error, KeyTaken):
            status, title, said = next(_OF_KEYS[kind] for kind in _OF_KEYS if isinstance(error, kind))
            after = _seconds(error) if isinstance(error, UsageInProgress) else None
            return cls._said(status, wording, title, wording.say(said), retry_after=after)
        detail = Text.CANNOT_BE_DONE if isinstance(error, ApiError) else Text.CANNOT_BE_LOOKED_UP
        return cls._said(503, wording, Text.TRY_AGAIN, wording.say(detail), retry_after=_seconds(error))

    @classmethod
    def _of_entitlement(cls, answer: Entitlement, config: Config, wording: Wording) -> Denial:
        reason = answer.reason or Reason.UNKNOWN
        for_sale, name = STATUS_CODES[reason] == 402, feature_name(answer, config)
        return cls._said(
            config.status_codes.get(reason, STATUS_CODES[reason]),
            wording,
            _TITLES[reason],
            _detail(answer, wording, name),
            entitlement=answer,
            facts=tuple(_facts(answer, wording, name)),
            upgrade_url=upgrade_url(config, answer.feature_id) if for_sale else None,
            upgrade_label=wording.say(Text.SEE_PLANS),
        )

    @classmethod
    def _said(cls, status: int, wording: Wording, title: Text, detail: str, **more: Any) -> Denial:
        return cls(status=status, title=wording.say(title), detail=detail, language=wording.language(), **more)

    @property
    def headers(self) -> Mapping[str, str]:
        """What every answer to the request carries."""
        return _HEADERS if self.retry_after is None else {**_HEADERS, "Retry-After": str(self.retry_after)}

    @property
    def used_fraction(self) -> str:
        """The used part of the limit, from 0 to 1, for a bar of HTML in any language; empty without a limit."""
        fraction = self.entitlement.used_fraction if self.entitlement is not None else None
        return "" if fraction is None else f"{fraction:.4g}"

    def answer(self, headers: Headers, address: str) -> DenialResponse:
        """Returns the response for a client that sends these headers: content negotiation.

        htmx gets ``HX-Redirect``, which it follows at any status, or a fragment, which it shows if its own
        ``responseHandling`` has it swap error responses; a browser gets a page, or is sent to sign in; everybody else
        gets problem+json. ``address`` is what was asked for; signing in leads back there, or to htmx's current page.
        """
        by_htmx = headers.get("HX-Request", "") == "true"
        if by_htmx and not _wants_whole_page(headers):
            return self._fragment(headers.get("HX-Current-URL", "") or address)
        if by_htmx or prefers_html(headers.get("Accept", "") or ""):
            return self._page(address)
        return DenialResponse(self.status, self.headers, body=json.dumps(self.problem()), content_type=PROBLEM_TYPE)

    def problem(self) -> dict[str, Any]:
        """The members of the body by RFC 9457."""
        body = self._typed()
        body |= {"cause": self.cause} if self.cause else {}
        if self.entitlement is not None:
            body |= _members(self.entitlement)
            body |= {"upgrade_url": self.upgrade_url} if self.upgrade_url else {}
        return body

    def _typed(self) -> dict[str, Any]:
        """Those that every problem has. One whose type says no more than its status has the title of that."""
        if self.entitlement is not None and self.entitlement.reason in _QUOTA_EXCEEDED:
            title, policies = self.title, [self.entitlement.feature_id] if has_policy(self.entitlement) else []
            return {
                "type": QUOTA_EXCEEDED,
                "title": title,
                "status": self.status,
                "detail": self.detail,
                "violated-policies": policies,
            }
        phrase = responses.get(self.status, "Denied")  # STATUS_CODES may have one of its own
        detail = f"{self.title}. {self.detail}"
        return {"type": "about:blank", "title": phrase, "status": self.status, "detail": detail}

    def _page(self, address: str) -> DenialResponse:
        if self.login_url is not None:
            return DenialResponse(302, {**self.headers, "Location": _with_next(self.login_url, address)})
        return DenialResponse(self.status, self.headers, template=TEMPLATE)

    def _fragment(self, address: str) -> DenialResponse:
        if self.login_url is not None:
            return DenialResponse(self.status, {**self.headers, "HX-Redirect": _with_next(self.login_url, address)})
        if self.upgrade_url is not None:
            return DenialResponse(self.status, {**self.headers, "HX-Redirect": quote(self.upgrade_url, safe=_URL_SAFE)})
        return DenialResponse(self.status, self.headers, template=FRAGMENT_TEMPLATE)


def is_answered(error: BaseException) -> TypeGuard[DeniedError]:
    """Whether the client gets a denial for the error. A value that is computed from a request may be bad because of the
    client; every other bad value is the application's, and stays an error 500."""
    if isinstance(error, InvalidRequest):
        return error.field.partition("[")[0] in _OF_REQUEST
    return isinstance(error, DENIED_ERRORS)


def upgrade_url(config: Config, feature: str = "") -> str | None:
    """The configured address of the upgrade page for a feature; None without one."""
    return config.upgrade_url.replace("{feature}", quote(feature, safe="")) if config.upgrade_url else None


def page_source(template: str = TEMPLATE) -> str:
    """The built-in template of that name, in the syntax that Django's templates and Jinja share; gets ``denial``.

    The page needs nothing else. Its one ``<style>`` is always the same, so that a Content-Security-Policy can allow it
    by its hash; where none does, the page is plain and complete.
    """
    return files("stigg_guard.web").joinpath(template.rpartition("/")[2]).read_text(encoding="utf-8")


def prefers_html(accept: str) -> bool:
    """Whether a client that sends this ``Accept`` header would rather have a page than JSON: browsers would."""
    weights = dict(_weighed(entry) for entry in accept.lower().split(","))

    def weight(kind: str) -> float:
        group = f"{kind.partition('/')[0]}/*"
        return weights.get(kind, weights.get(group, weights.get("*/*", 0.0)))

    return weight("text/html") > max(weight(PROBLEM_TYPE), weight("application/json"))


def _weighed(entry: str) -> tuple[str, float]:
    kind, *parameters = (part.strip() for part in entry.split(";"))
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return kind, float(parameter[2:])
            except ValueError:
                return kind, 0.0
    return kind, 1.0


def _wants_whole_page(headers: Headers) -> bool:
    """Whether htmx asks for a boosted link, or restores its history."""
    return "true" in (headers.get("HX-Boosted", ""), headers.get("HX-History-Restore-Request", ""))


def _with_next(login_url: str, address: str) -> str:
    """The address of the login page, which leads back to a path of this site and to nowhere else."""
    try:
        asked = urlsplit(address)
    except ValueError:  # no address at all
        asked = urlsplit("/")
    path = "/" + asked.path.lstrip("/\\")
    login = urlsplit(login_url)
    back = urlencode({"next": urlunsplit(("", "", path, asked.query, ""))})
    there = login._replace(query="&".join(filter(None, [login.query, back])))
    return quote(urlunsplit(there), safe=_URL_SAFE)


def _seconds(error: DeniedError) -> int:
    """After how many whole seconds it is worth trying again."""
    return max(1, ceil(getattr(error, "retry_after", 1.0)))


def _detail(answer: Entitlement, wording: Wording, name: str) -> str:
    if answer.reason not in (Reason.REQUESTED_USAGE_EXCEEDING_LIMIT, Reason.INSUFFICIENT_CREDITS):
        return wording.say(Text.CONCERNS, feature=name)
    limit = wording.say(
        Text.NUMBER_OF_UNITS, number=answer.usage_limit or 0.0, units=answer.units_plural or wording.say(Text.UNITS)
    )
    if not answer.requested_usage:
        return wording.say(Text.ARE_USED, used=answer.current_usage, limit=limit)
    return wording.say(
        Text.ARE_USED_AND_MORE_NEEDED, used=answer.current_usage, limit=limit, requested=answer.requested_usage
    )


def _facts(answer: Entitlement, wording: Wording, name: str) -> Iterable[tuple[str, str]]:
    yield wording.say(Text.FEATURE), name
    if answer.usage_limit is None:
        return
    yield wording.say(Text.LIMIT), wording.counted(answer.usage_limit, answer)
    yield wording.say(Text.USED), wording.counted(answer.current_usage, answer)
    if answer.requested_usage:
        yield wording.say(Text.REQUESTED), wording.counted(answer.requested_usage, answer)
    if answer.usage_period_end is not None:
        yield wording.say(Text.RESETS), wording.date(answer.usage_period_end)


def _members(answer: Entitlement) -> Mapping[str, object]:
    members: dict[str, object] = {"feature": answer.feature_id, "reason": str(answer.reason or Reason.UNKNOWN)}
    if answer.usage_limit is not None:
        members |= {"limit": answer.usage_limit, "usage": answer.current_usage, "remaining": answer.remaining}
        members |= {"requested": answer.requested_usage}
    if answer.usage_period_end is not None:
        members["resets_at"] = answer.usage_period_end.isoformat()
    return members

"""Answers what guarded views raise, guards by path as ``RULES`` says, and gives each request its ``stigg``."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timezone
from functools import cache, partial
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.shortcuts import resolve_url
from django.template import Context, Engine, TemplateDoesNotExist, loader

from stigg_guard.config import Anonymous
from stigg_guard.decorators import Begin, Ending, feature_check, settled_call, usage_hold
from stigg_guard.denial import REFUSALS, Denial, Refusal, is_answered, page_source, rate_limit_headers
from stigg_guard.django import asynchronous
from stigg_guard.django.calls import DjangoCalls, settle
from stigg_guard.django.conf import configurations, faults, get_guard
from stigg_guard.django.requests import asked_configuration, displayed_plan, note_use, noted_use
from stigg_guard.django.wording import WORDING
from stigg_guard.errors import FeatureDenied, LedgerUnavailable, SidecarError
from stigg_guard.rules import Rule, rule_of
from stigg_guard.views import EXEMPT

logger = logging.getLogger("stigg_guard")

_RULED = "_stigg_guard_ruled"


class StiggGuardMiddleware:
    """Answers denials, bad amounts, requests of nobody, and a sidecar or a ledger that is away. From it on every
    request has ``request.stigg``. It stands below the middleware that tells who is signed in.

    Raises:
        ImproperlyConfigured: when the server starts, if a setting is wrong.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        if faults():
            raise ImproperlyConfigured("; ".join(faults().values()))
        self._get_response = get_response
        self._is_awaited = iscoroutinefunction(get_response)
        if self._is_awaited:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        request.stigg = displayed_plan(request)  # type: ignore[attr-defined] # it is new to Django's requests
        ruled = vars(request)[_RULED] = _Ruled(_beginnings(request))
        call = partial(self._get_response, request)
        if self._is_awaited:
            return _awaited(request, ruled, call)
        return _with_headers(request, settled_call(call, settle, ruled.end) if ruled.beginnings else call())

    @property
    def process_view(self) -> Callable[..., Any]:
        """Begins what the rules want before the view; where requests are awaited, a coroutine function."""
        return self._begin_awaited if self._is_awaited else self._begin

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """The response to an error of the guard; None for every other error."""
        return _answer(request, exception) if is_answered(exception) else None

    def _begin(self, request: HttpRequest, view: Callable[..., Any], *_: Any) -> HttpResponse | None:
        ruled: _Ruled = vars(request)[_RULED]
        try:
            for begin in ruled.guarding(view):
                ruled.note(begin(request))
        except REFUSALS as error:
            if is_answered(error):
                return _answer(request, error)
            raise
        return None

    async def _begin_awaited(self, request: HttpRequest, view: Callable[..., Any], *_: Any) -> HttpResponse | None:
        ruled: _Ruled = vars(request)[_RULED]
        try:
            for begin in ruled.guarding(view):
                ruled.note(await asynchronous.begun(partial(begin, request)))
        except REFUSALS as error:
            if is_answered(error):
                return await sync_to_async(_answer)(request, error)
            raise
        return None


class _Ruled:
    """What is to be begun for the rules that a request meets, and what was."""

    def __init__(self, beginnings: Sequence[Begin]) -> None:
        self.beginnings = beginnings
        self._endings: list[Ending] = []

    def guarding(self, view: Callable[..., Any]) -> Sequence[Begin]:
        return () if getattr(view, EXEMPT, False) else self.beginnings

    def note(self, ending: Ending | None) -> None:
        if ending is not None:
            self._endings.append(ending)

    def end(self, succeeded: bool, response: Any) -> None:
        for ending in self._endings:
            ending(succeeded, response)


def _beginnings(request: HttpRequest) -> Sequence[Begin]:
    path, method = request.path_info, request.method or ""
    rules = ((using, rule_of(made.guard.config.rules, path, method)) for using, made in configurations().items())
    return [_beginning(using, rule) for using, rule in rules if rule is not None]


@cache
def _beginning(using: str, rule: Rule) -> Begin:
    calls = DjangoCalls(using, methods=rule.methods)
    feature = rule.feature or ""  # a rule without one exempts, and is not met
    return (
        feature_check(feature, calls=calls)
        if rule.consume is None
        else usage_hold(rule.consume, lambda: feature, calls=calls)
    )


async def _awaited(request: HttpRequest, ruled: _Ruled, call: Callable[[], Awaitable[Any]]) -> HttpResponseBase:
    response = await (asynchronous.settled_call(call, settle, ruled.end) if ruled.beginnings else call())
    return _with_headers(request, response)


def _with_headers(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    for name, value in rate_limit_headers(noted_use(request), datetime.now(timezone.utc)).items():
        response[name] = value
    return response


def denial_of(request: HttpRequest, error: Refusal) -> Denial:
    """What the error comes to for this request. The log and the ``RateLimit`` headers are told of it."""
    using = asked_configuration(request)
    config = get_guard(using).config
    if isinstance(error, (SidecarError, LedgerUnavailable)):
        logger.warning("%s cannot be guarded: %s", request.path, error)
    if isinstance(error, FeatureDenied):
        note_use(request, [error.entitlement], using)
    login_url = resolve_url(settings.LOGIN_URL) if config.anonymous is Anonymous.LOGIN else None
    return Denial.of(error, config, WORDING, login_url=login_url)


def _answer(request: HttpRequest, error: Refusal) -> HttpResponse:
    denial = denial_of(request, error)
    answer = denial.answer(request.headers, request.get_full_path())
    if answer.status == 302:
        return HttpResponseRedirect(answer.headers["Location"], headers=dict(answer.headers))
    body = answer.body if answer.template is None else _rendered(request, answer.template, denial)
    return HttpResponse(body, answer.content_type, answer.status, headers=dict(answer.headers))


def _rendered(request: HttpRequest, name: str, denial: Denial) -> str:
    """The project's own template, or else the built-in one, whose numbers are not localised for its markup's sake."""
    try:
        template = loader.get_template(name)
    except TemplateDoesNotExist:
        return Engine().from_string(page_source(name)).render(Context({"denial": denial}, use_l10n=False))
    return template.render({"denial": denial}, request)

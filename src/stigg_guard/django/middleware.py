"""Answers what guarded views raise, puts the rules of ``RULES`` in force, and gives each request its ``stigg``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timezone
from functools import partial
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.shortcuts import resolve_url

from stigg_guard.config import Config
from stigg_guard.django.conf import configurations, faults, get_guard
from stigg_guard.django.pages import rendered
from stigg_guard.django.requests import asked_configuration, displayed_plan, is_of_customer, note_use, noted_use
from stigg_guard.django.urls import GuardedUrls, met_rules, ruled
from stigg_guard.django.wording import WORDING
from stigg_guard.errors import ApiError, FeatureDenied
from stigg_guard.runtime.log import logger
from stigg_guard.web.denial import UNANSWERED, Denial, DeniedError, is_answered
from stigg_guard.web.rate_limit import rate_limit_headers
from stigg_guard.web.views import EXEMPT, private_unless_said


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
        if _has_rules():
            original = getattr(request, "urlconf", None) or settings.ROOT_URLCONF
            request.urlconf = ruled(original)  # type: ignore[assignment] # the stubs know paths of modules only
        if self._is_awaited:
            return self._awaited(request)
        return _with_headers(request, self._get_response(request))

    @property
    def process_view(self) -> Callable[..., Any]:
        """Raises for a view that rules are for and do not guard; where requests are awaited, a coroutine function."""
        return _refuse_unruled_awaited if self._is_awaited else _refuse_unruled

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """The response to an error of the guard; None for every other error."""
        return _answer(request, exception) if is_answered(exception) else None

    async def _awaited(self, request: HttpRequest) -> HttpResponseBase:
        return _with_headers(request, await self._get_response(request))


def _has_rules() -> bool:
    return any(made.guard.config.rules for made in configurations().values())


def _refuse_unruled(request: HttpRequest, view: Callable[..., Any], *_: Any) -> None:
    if not _has_rules():
        return
    is_ruled = isinstance(getattr(request, "urlconf", None), GuardedUrls)
    if not is_ruled and met_rules(request) and not getattr(view, EXEMPT, False):
        raise ImproperlyConfigured(
            f"the rules for {request.path_info} are not in force, because a middleware has set request.urlconf after "
            "StiggGuardMiddleware: put StiggGuardMiddleware below it in settings.MIDDLEWARE"
        )


async def _refuse_unruled_awaited(request: HttpRequest, view: Callable[..., Any], *_: Any) -> None:
    _refuse_unruled(request, view)


def _with_headers(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    if is_of_customer(request):
        private_unless_said(response.headers)
    used = noted_use(request)
    if used:
        for name, value in rate_limit_headers(used, datetime.now(timezone.utc)).items():
            response[name] = value
    return response


def denial_of(request: HttpRequest, error: DeniedError) -> Denial:
    """Returns the denial of this request for an error. Notes it for the log and the ``RateLimit`` headers."""
    using = asked_configuration(request)
    config = get_guard(using).config
    if isinstance(error, ApiError):
        logger.warning("the request for %s cannot be served: %s", request.path, error)
    elif isinstance(error, UNANSWERED):
        logger.warning("the request for %s cannot be guarded: %s", request.path, error)
    if isinstance(error, FeatureDenied):
        note_use(request, error, using)
    return Denial.of(error, config, WORDING, login_page=partial(login_page, config))


def login_page(config: Config) -> str:
    """The address of the page where customers sign in.

    Raises:
        NoReverseMatch: it is named, and no URL has this name.
    """
    return resolve_url(config.login_url or settings.LOGIN_URL)


def _answer(request: HttpRequest, error: DeniedError) -> HttpResponse:
    denial = denial_of(request, error)
    answer = denial.answer(request.headers, request.get_full_path())
    if answer.status == 302:
        return HttpResponseRedirect(answer.headers["Location"], headers=dict(answer.headers))
    body = answer.body if answer.template is None else rendered(answer.template, {"denial": denial}, request)
    return HttpResponse(body, answer.content_type, answer.status, headers=dict(answer.headers))

"""Turns what a guarded view raises into the response that the client can read: a page, or problem+json."""

from __future__ import annotations

import logging
from collections.abc import Callable

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.template import Context, Engine, TemplateDoesNotExist, loader
from django.utils.cache import patch_vary_headers

from stigg_guard.denial import PROBLEM_TYPE, TEMPLATE, Denial, page_source, prefers_html
from stigg_guard.django.conf import get_guard
from stigg_guard.errors import FeatureDenied, InvalidRequest, LedgerUnavailable, SidecarError, SignInRequired

logger = logging.getLogger("stigg_guard")

_ANSWERED = (FeatureDenied, SidecarError, LedgerUnavailable, SignInRequired, InvalidRequest)


class StiggGuardMiddleware:
    """Answers what a view raised: a denial, a bad amount, nobody signed in, a sidecar or a ledger that is away."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self._get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """The response to an error of the guard; None for every other error."""
        if not isinstance(exception, _ANSWERED) or _is_fault_of_the_site(exception):
            return None
        if isinstance(exception, (SidecarError, LedgerUnavailable)):
            logger.warning("%s cannot be guarded: %s", request.path, exception)
        return _response(request, Denial.of(exception, get_guard().config))


def _is_fault_of_the_site(error: Exception) -> bool:
    """A bad amount may come from the client; a bad id does not, and stays an error 500."""
    return isinstance(error, InvalidRequest) and error.field != "value"


def _response(request: HttpRequest, denial: Denial) -> HttpResponse:
    if prefers_html(request.headers.get("Accept", "")):
        response = HttpResponse(_page(request, denial), status=denial.status, headers=dict(denial.headers))
    else:
        response = HttpResponse(denial.problem(), PROBLEM_TYPE, denial.status, headers=dict(denial.headers))
    patch_vary_headers(response, ["Accept"])
    return response


def _page(request: HttpRequest, denial: Denial) -> str:
    """The project's own template, or else the built-in page, whose numbers are not localised for its markup's sake."""
    try:
        template = loader.get_template(TEMPLATE)
    except TemplateDoesNotExist:
        return Engine().from_string(page_source()).render(Context({"denial": denial}, use_l10n=False))
    return template.render({"denial": denial}, request)

"""The URL that takes Stigg's webhooks: ``path("stigg/", include("stigg_guard.django.webhooks"))``."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from stigg_guard.django.conf import DEFAULT, get_guard
from stigg_guard.web.views import exempt
from stigg_guard.webhooks import SECRET_HEADER, receive


@exempt
@csrf_exempt
@require_POST
def webhooks(request: HttpRequest, using: str = DEFAULT) -> HttpResponse:
    """Invalidates the cache of a webhook's customer; the setting ``WEBHOOK_SECRET`` says whose webhooks count.

    The configuration is another one with ``include("stigg_guard.django.webhooks"), {"using": "name"}``.
    """
    return HttpResponse(status=receive(get_guard(using), request.headers.get(SECRET_HEADER), request.read))


webhooks.login_required = False  # type: ignore[attr-defined] # for LoginRequiredMiddleware: Stigg has no login

urlpatterns = [path("webhooks/", webhooks, name="stigg_webhooks")]

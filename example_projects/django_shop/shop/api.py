"""The shop for programs. ``shop.urls`` has every request counted as an API call."""

from __future__ import annotations

from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.http import require_GET

from shop.customers import studio_of
from shop.models import Template


@require_GET
def list_templates(request: HttpRequest) -> JsonResponse:
    """The studio's templates."""
    templates = Template.objects.filter(studio=studio_of(request)).values("id", "name", "kind")
    return JsonResponse({"templates": list(templates)})


urlpatterns = [path("templates/", list_templates, name="api-templates")]

"""The recipes of the manual of Django, each run as it is written there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.backends import BaseBackend
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template import engines
from django.test import Client
from django.urls import path
from rest_framework import serializers
from rest_framework.viewsets import ModelViewSet

from stigg_guard import Guard
from stigg_guard.django import get_guard
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.testing import StandIn, override_entitlements

PAGES = Path(__file__).parents[2] / "docs" / "django"
MANUAL = (PAGES / "recipes.md").read_text(encoding="utf-8")
GUARDS = (PAGES / "guards.md").read_text(encoding="utf-8")
made: list[Any] = []


def recipe(title: str, manual: str = MANUAL, **names: Any) -> SimpleNamespace:
    """What the Python blocks below the heading define, with these names known."""
    section = re.split(r"\n##+ ", manual.partition(f"## {title}\n")[2])[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    namespace: dict[str, Any] = {"__name__": __name__, **names}
    for block in blocks:
        exec(block, namespace)
    return SimpleNamespace(**namespace)


@pytest.fixture
def stigg() -> Iterator[StandIn]:
    with override_entitlements({"feature-templates": {"limit": 3}}) as stand_in:
        yield stand_in


def rendered(request: HttpRequest, _name: str, context: dict[str, Any], status: int = 200) -> Any:
    page = engines["django"].from_string("{{ form.pages.errors }}").render(context, request)
    return HttpResponse(page, status=status)


def test_an_amount_of_a_form_is_held_when_the_form_is_valid_and_a_denial_is_one_of_its_mistakes(
    settings: Any, stigg: StandIn
) -> None:
    settings.STIGG_GUARD = {"CUSTOMER": lambda _: "ann", "LEDGER": "memory://"}
    made.clear()
    view = recipe("An amount that a form says", render=rendered, make_pages=made.append)
    settings.ROOT_URLCONF = (path("new/", view.new_pages), path("pages/", view.new_pages, name="pages"))
    client = Client()
    told = [client.post("/new/", {"pages": pages}).status_code for pages in ("", "2")]
    assert (told, made, stigg.usage("feature-templates")) == ([422, 302], [2], 2)
    denied = client.post("/new/", {"pages": "2"})
    assert (denied.status_code, made) == (422, [2])
    assert "1 left" in denied.content.decode()
    assert client.get("/new/").status_code == 200


class Accounts(BaseBackend):
    """Users with the password "secret", who have an account."""

    def authenticate(self, request: Any, username: str = "", password: str = "") -> Any:
        if password != "secret":
            return None
        user, _ = User.objects.get_or_create(username=username)
        user.account = SimpleNamespace(stigg_id="customer-demo-01")  # type: ignore[attr-defined]
        return user

    def get_user(self, user_id: int) -> Any:
        return User.objects.get(pk=user_id)


@pytest.mark.django_db(transaction=True)
def test_who_signs_in_uses_what_the_view_consumes(settings: Any, sidecar: Sidecar, guard: Guard) -> None:
    settings.STIGG_GUARD = {
        "SIDECAR": sidecar.address,
        "TIMEOUT": 20,
        "REPORT": "inline",
        "CUSTOMER": lambda request: "customer-demo-01" if request.user.is_authenticated else None,
    }
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.Accounts"]
    view = recipe("At sign-in", GUARDS, render=rendered_form, get_guard=get_guard, redirect=redirect)
    settings.ROOT_URLCONF = (path("in/", view.log_in),)
    client = Client()
    told = [client.post("/in/", {"username": "ann", "password": given}).status_code for given in ("wrong", "secret")]
    assert (told, "_auth_user_id" in client.session) == ([422, 302], True)
    guard.reload("customer-demo-01")
    assert guard.check("feature-active-users", customer="customer-demo-01").current_usage == 1


def rendered_form(_request: HttpRequest, _name: str, status: int) -> HttpResponse:
    return HttpResponse(status=status)


class Pages(serializers.Serializer[Any]):
    pages = serializers.IntegerField(min_value=1)

    def create(self, validated_data: dict[str, Any]) -> Any:
        if validated_data["pages"] == 1:
            raise serializers.ValidationError("one page is none")
        return SimpleNamespace(**validated_data)


def test_an_amount_of_a_serializer_is_held_when_that_is_valid(settings: Any, stigg: StandIn) -> None:
    settings.STIGG_GUARD = {"CUSTOMER": lambda _: "ann", "LEDGER": "memory://"}
    names = {"ModelViewSet": type("Set", (ModelViewSet,), {"serializer_class": Pages, "permission_classes": ()})}
    api = recipe("An amount that a serializer says", **names).PagesViewSet
    settings.ROOT_URLCONF = (path("pages/", api.as_view({"post": "create"})),)
    told = [Client().post("/pages/", {"pages": pages}).status_code for pages in (0, 1, 2, 2)]
    assert (told, stigg.usage("feature-templates")) == ([400, 400, 201, 402], 2)

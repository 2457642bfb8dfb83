"""Flask apps for tests: made with settings, guarded over a sidecar, asked by a customer who is signed in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Flask, Request
from flask.testing import FlaskClient

from stigg_guard import Guard

ESSENTIALS = "customer-demo-01"  # 3 of 6 templates used, exports but no analytics
GROWTH = "customer-demo-02"  # analytics
TEMPLATES = "feature-templates"
NOBODY_LISTENS = "127.0.0.1:1"
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def signed_in(request: Request) -> str | None:
    """The customer that the test says is signed in."""
    return request.headers.get("X-Signed-In") or None


def client_of(app: Flask, customer: str = ESSENTIALS) -> FlaskClient:
    client = app.test_client()
    client.environ_base["HTTP_X_SIGNED_IN"] = customer
    return client


def guard_of(app: Flask) -> Guard:
    guard: Guard = app.extensions["stigg_guard"].guard
    return guard


def add_view(app: Flask, *guards: Callable[..., Any], answer: Any = "made") -> list[str]:
    """A view at ``/`` under the decorators, outermost first; each of its runs leaves a mark in the list."""
    runs: list[str] = []

    def view() -> Any:
        runs.append("run")
        return answer() if callable(answer) else answer

    for decorate in reversed(guards):
        view = decorate(view)
    app.add_url_rule("/", "view", view, methods=["GET", "POST"])
    return runs

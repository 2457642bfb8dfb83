"""The recipes for language models, run as the manual has them over a server that speaks as a model's API does."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flask
import httpx
import pytest
import requests
from django.test import AsyncRequestFactory, Client
from django.urls import path

from stigg_guard import Guard
from stigg_guard.django import get_guard
from stigg_guard.flask import StiggGuard
from stigg_guard.sidecar.server import Sidecar

pytestmark = pytest.mark.django_db(transaction=True)  # each response looks after the connections of its thread

PAGE = (Path(__file__).parents[1] / "docs" / "llm.md").read_text(encoding="utf-8")
CUSTOMER = "customer-demo-01"
WALLET = 12_500
WORDS = ("Un ", "café", ", ", "please")
TOKENS = 7  # which the API tells: not one for each part


class Model(ThreadingHTTPServer):
    """Streams the words, and then the usage. Of ``"break"`` it sends two and breaks off, of ``"slow"`` two until it
    ``goes_on``; ``"busy"`` it refuses."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.prompts: list[str] = []
        self.goes_on = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Model

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = asked["messages"][0]["content"]
        assert asked["max_tokens"] == 500
        self.server.prompts.append(prompt)
        self.close_connection = True
        if prompt == "busy":
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for word in WORDS[: None if prompt == "hello" else 2]:
            self._send({"choices": [{"delta": {"content": word}}], "usage": None})
        if prompt == "slow":
            self.server.goes_on.wait(30)
        if prompt == "hello":
            self._send({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": TOKENS}})
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")

    def _send(self, part: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(part).encode() + b"\n\n")

    def _chunk(self, body: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def model() -> Iterator[Model]:
    server = Model()
    yield server
    server.goes_on.set()
    server.shutdown()
    server.server_close()


Visit = Callable[..., "list[str]"]
"""Asks for a completion, and returns the parts that came: all, or so many ``parts``, and then the client leaves."""


def of_flask(recipes: SimpleNamespace) -> tuple[Visit, Guard]:
    def visit(prompt: str, parts: int = 99) -> list[str]:
        answer = recipes.app.test_client().post("/chat", data={"prompt": prompt})
        assert answer.status_code == 200, answer.status
        try:
            return [part.decode() for _, part in zip(range(parts), answer.response, strict=False)]
        finally:
            answer.close()

    return visit, recipes.guard.guard


def of_django(_recipes: SimpleNamespace) -> tuple[Visit, Guard]:
    def visit(prompt: str, parts: int = 99) -> list[str]:
        answer: Any = Client().post("/chat/", {"prompt": prompt})
        assert answer.status_code == 200, answer.status_code
        try:
            return [part.decode() for _, part in zip(range(parts), answer.streaming_content, strict=False)]
        finally:
            answer.close()

    return visit, get_guard()


def of_async_django(recipes: SimpleNamespace) -> tuple[Visit, Guard]:
    async def visit(prompt: str, parts: int = 99) -> list[str]:
        read: list[str] = []
        answer = await recipes.chat_awaited(AsyncRequestFactory().post("/", {"prompt": prompt}))
        all_read = asyncio.Event()

        async def send() -> None:
            async with aclosing(aiter(answer)) as stream:
                async for part in stream:
                    read.append(part.decode())
                    if len(read) == parts:
                        all_read.set()

        sending = asyncio.ensure_future(send())
        leaving = asyncio.ensure_future(all_read.wait())
        await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not sending.done():
            sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending
        return read

    return lambda prompt, parts=99: asyncio.run(visit(prompt, parts)), get_guard()


@pytest.fixture(params=[of_flask, of_django, of_async_django])
def site(
    request: pytest.FixtureRequest, model: Model, sidecar: Sidecar, settings: Any
) -> Iterator[tuple[Visit, Guard]]:
    """What the page defines, in an app and in a project whose wallet pays at the page's rate."""
    app, guard = flask.Flask("llm"), StiggGuard()
    user = SimpleNamespace(is_authenticated=True, account=SimpleNamespace(stigg_id=CUSTOMER))
    names: dict[str, Any] = {
        "__name__": "reader",
        "app": app,
        "guard": guard,
        "request": flask.request,
        "current_user": user,
    }
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    names["MODEL"] = f"http://127.0.0.1:{model.server_port}/"
    told = {"SIDECAR": sidecar.address, "LEDGER": "memory://", "REPORT": "inline", "TIMEOUT": 20}
    told |= {"CREDIT_RATES": names["CREDIT_RATES"], "SETTLE_GRACE": 0}
    app.config.update({f"STIGG_GUARD_{name}": value for name, value in told.items()})
    guard.init_app(app)
    settings.STIGG_GUARD = {**told, "CUSTOMER": lambda _: CUSTOMER}
    settings.ROOT_URLCONF = (path("chat/", names["chat_view"]),)
    with app.app_context():
        yield request.param(SimpleNamespace(**names))
        guard.guard.close()


def spent(guard: Guard) -> float:
    """Credits that the sidecar has taken; nothing is held any more."""
    assert (guard.flush(), guard.stats()["held"]) == (0, 0)
    guard.reload(CUSTOMER)
    return guard.entitlements(CUSTOMER)["api-credits"].current_usage - WALLET


def test_counts_the_usage_that_the_model_tells(site: tuple[Visit, Guard]) -> None:
    visit, guard = site
    assert "".join(visit("hello")) == "Un café, please"
    assert spent(guard) == 2 * TOKENS


def test_counts_what_was_written_when_the_client_leaves(site: tuple[Visit, Guard]) -> None:
    visit, guard = site
    assert visit("slow", parts=2) == ["Un ", "café"]
    assert spent(guard) == 2 * 2


def test_counts_what_was_written_when_the_model_breaks_off(site: tuple[Visit, Guard]) -> None:
    visit, guard = site
    with pytest.raises((requests.RequestException, httpx.HTTPError)):
        visit("break")
    assert spent(guard) == 2 * 2


def test_counts_nothing_where_the_model_refuses(site: tuple[Visit, Guard]) -> None:
    visit, guard = site
    with pytest.raises((requests.RequestException, httpx.HTTPError)):
        visit("busy")
    assert spent(guard) == 0


def test_denies_before_the_model_is_asked(site: tuple[Visit, Guard], model: Model) -> None:
    visit, guard = site
    with guard.occupy("feature-ai", 18_700, customer=CUSTOMER), pytest.raises(Exception, match=r"402|feature-ai"):
        visit("hello")
    assert (model.prompts, spent(guard)) == ([], 0)

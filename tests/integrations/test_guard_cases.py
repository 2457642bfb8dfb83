"""The table of guarded views over Flask, with synchronous and asynchronous views."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flask
import pytest
from flask.typing import ResponseReturnValue
from werkzeug.datastructures import Headers
from werkzeug.test import EnvironBuilder

from integrations.guard_cases import CASES, ESSENTIALS, Answer, Case, Site, Skin
from stigg_guard import Config, Guard
from stigg_guard import flask as in_flask
from stigg_guard.sidecar.server import Sidecar

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

Serve = Callable[..., "tuple[Site, list[str]]"]


class FlaskSkin:
    """How views are written in Flask."""

    requires_feature = staticmethod(in_flask.requires_feature)
    consumes_usage = staticmethod(in_flask.consumes_usage)
    releases_usage = staticmethod(in_flask.releases_usage)
    exempt = staticmethod(in_flask.exempt)

    def text(self, body: str = "made", status: int = 200) -> ResponseReturnValue:
        return body, status

    def redirect(self) -> ResponseReturnValue:
        return flask.redirect("/elsewhere")

    def stream(self, parts: Iterator[str], status: int = 200) -> ResponseReturnValue:
        return flask.Response(flask.stream_with_context(parts), status)

    def abort(self, status: int) -> ResponseReturnValue:
        flask.abort(status)

    def query(self, request: flask.Request) -> Mapping[str, str]:
        return request.args

    def json(self, request: flask.Request) -> Any:
        return request.get_json()

    def size(self, response: flask.Response) -> int:
        return len(response.get_data())


class FlaskSite:
    """A Flask app, and what a server and its client do with it: the body is read part by part, and closed."""

    def __init__(self, app: flask.Flask) -> None:
        self._app = app
        self.guard: Guard = app.extensions["stigg_guard"].guard

    def ask(self, case: Case) -> Answer:
        started: list[Any] = []
        body = self._app(_environ(case), lambda status, headers, _error=None: started.extend((status, headers)))
        held = self.guard.stats()["held"]
        read: list[bytes] = []
        with closing(body), suppress(OSError):  # a server logs what a stream fails of
            read.extend(islice(body, case.reads))
        status, headers = started
        return Answer(int(status.split()[0]), Headers(headers), b"".join(read).decode(), held)


def _environ(case: Case) -> WSGIEnvironment:
    signed_in = {"X-Signed-In": case.customer} if case.customer else {}
    headers = {**signed_in, **case.headers}
    return EnvironBuilder(case.address, method=case.method, headers=headers, json=case.json).get_environ()


def signed_in(request: flask.Request) -> str | None:
    return request.headers.get("X-Signed-In")


async def signed_in_later(request: flask.Request) -> str | None:
    return signed_in(request)


@pytest.fixture
def serve_flask(sidecar: Sidecar, tmp_path: Path) -> Iterator[Serve]:
    sites: list[FlaskSite] = []

    def serve(case: Case, *, asynchronous: bool) -> tuple[Site, list[str]]:
        app = flask.Flask("shop", instance_path=str(tmp_path))
        settings = {
            "SIDECAR": sidecar.address,
            "CUSTOMER": signed_in_later if asynchronous else signed_in,
            **case.settings,
        }
        app.config.update({f"STIGG_GUARD_{name}": value for name, value in settings.items()})
        in_flask.StiggGuard(app)
        blueprint = flask.Blueprint("shop", __name__)
        runs: list[str] = []
        view = _view(FlaskSkin(), case, runs, asynchronous)
        methods = ["GET", "POST", "OPTIONS"]
        blueprint.add_url_rule("/shop/<site>/<int:size>", "view", view, methods=methods)
        if case.group is not None:
            in_flask.protect(blueprint, case.group.feature, case.group.n, **case.group.options)
        app.register_blueprint(blueprint)
        sites.append(FlaskSite(app))
        return sites[-1], runs

    yield serve
    for site in sites:
        site.guard.close()


def _view(skin: Skin, case: Case, runs: list[str], asynchronous: bool) -> Any:
    """The case's view under its guards; each of its runs leaves a mark in the list."""

    def view(*_request: object, site: str, size: int) -> Any:
        runs.append(f"{site} {size}")
        return case.answers(skin)

    async def view_later(*request: object, site: str, size: int) -> Any:
        return view(*request, site=site, size=size)

    guarded: Any = view_later if asynchronous else view
    for decorate in reversed(case.guards(skin)):
        guarded = decorate(guarded)
    return guarded


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_flask_does_what_the_table_says(case: Case, asynchronous: bool, serve_flask: Serve, sidecar: Sidecar) -> None:
    check(case, *serve_flask(case, asynchronous=asynchronous), sidecar)


def check(case: Case, site: Site, runs: list[str], sidecar: Sidecar) -> None:
    """Asks what the case asks, and compares what comes of it."""
    before = counted(sidecar)
    answer = site.ask(case)
    assert answer.status == case.status
    assert {name: answer.headers.get(name) for name in case.told} == case.told
    assert case.body in (None, answer.body)
    assert (len(runs), answer.held) == (case.runs, case.held)
    site.guard.flush()
    assert site.guard.stats()["held"] == 0
    after = counted(sidecar)
    assert {name: after[name] - usage for name, usage in before.items() if after[name] != usage} == case.used


def counted(sidecar: Sidecar) -> Mapping[str, float]:
    """What the sidecar has counted for the customer of the table."""
    with Guard(Config(sidecar=sidecar.address, ledger="memory://")) as guard:
        return {name: answer.current_usage for name, answer in guard.entitlements(ESSENTIALS).items()}

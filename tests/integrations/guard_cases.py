"""What guarded views do with a request, in one table for every framework: a difference between the skins fails a test.

A case says which guards a view has, what the view answers and what is asked, and then what comes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, BinaryIO, Protocol

from stigg_guard import PER_DOWNLOAD, Guard

ESSENTIALS = "customer-demo-01"  # 3 of 6 templates used, exports but no analytics
GROWTH = "customer-demo-02"  # analytics
TEMPLATES = "feature-templates"
API_CALLS = "feature-api-calls"
ACTIVE = "feature-active-users"  # counted by events
EXPORTS = "feature-exports"
ANALYTICS = "feature-analytics"
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
HTMX = {"HX-Request": "true"}
PROBLEM = {"Content-Type": "application/problem+json"}
PAGE = {"Content-Type": "text/html; charset=utf-8"}
OUTAGE = {"SIDECAR": "127.0.0.1:1"}
ADDRESS = "/shop/site-01/2"


@dataclass(frozen=True)
class Group:
    """What ``protect`` is given for the group that the view is in."""

    feature: str
    n: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a client got. ``body`` is what it read."""

    status: int
    headers: Mapping[str, str]
    body: str
    held: int
    """How many holds were open when it got the headers."""


class Site(Protocol):
    """A view at ``/shop/<site>/<int:size>`` of a site that is guarded, and a client of it."""

    guard: Guard

    def ask(self, case: Case) -> Answer:
        """What the case's client is answered."""


class Skin(Protocol):
    """A framework: the words of the guard in it, and how views are written in it."""

    requires_feature: Callable[..., Any]
    consumes_usage: Callable[..., Any]
    releases_usage: Callable[..., Any]
    occupies: Callable[..., Any]
    exempt: Callable[..., Any]

    def text(self, body: str = "made", status: int = 200) -> Any:
        """A response."""

    def part(self, etag: str, parts: Iterator[str] | None = None) -> Any:
        """A response with a part of a file, which may be made while it is sent."""

    def file(self, etag: str, file: BinaryIO) -> Any:
        """A response with a part of an open file."""

    def redirect(self, to: str = "/elsewhere") -> Any:
        """A response that leads there."""

    def stream(self, parts: Iterator[str], status: int = 200) -> Any:
        """A response that is made while it is sent."""

    def abort(self, status: int) -> Any:
        """Ends the view with an exception of the framework that is answered with the status."""

    def query(self, request: Any) -> Mapping[str, str]:
        """The arguments of the query."""

    def json(self, request: Any) -> Any:
        """The body, which is JSON."""

    def size(self, answer: Any) -> int:
        """How long the body is of what a view returned."""


def letters() -> Iterator[str]:
    yield "one "
    yield "two"


def failing_letters() -> Iterator[str]:
    yield "one "
    raise OSError("out of paper")


def fail(_skin: Skin) -> Any:
    raise RuntimeError("out of paper")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row. ``guards`` are the decorators of the view, the outermost first."""

    guards: Callable[[Skin], list[Any]] = lambda _: []
    answers: Callable[[Skin], Any] = lambda skin: skin.text()
    group: Group | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    before: Sequence[tuple[Mapping[str, Any], int]] = ()
    """What the client has asked for before: how it differed, and the status that it was answered with."""
    method: str = "POST"
    address: str = ADDRESS
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    customer: str | None = ESSENTIALS
    reads: int | None = None
    """How many parts of a stream the client reads before it leaves; None reads all."""

    status: int = 200
    body: str | None = None
    told: Mapping[str, str | None] = field(default_factory=dict)
    """Headers of the answer, among others; None for those that it lacks."""
    runs: int = 1
    """How often the view ran."""
    used: Mapping[str, float] = field(default_factory=dict)
    """What the sidecar has counted in the end."""
    held: int = 0
    """How many holds are open while the answer is under way."""


def consuming(n: Any = 1, feature: str | None = TEMPLATES, **options: Any) -> Callable[[Skin], list[Any]]:
    return lambda skin: [skin.consumes_usage(n, feature, **options)]


def requiring(feature: str, **options: Any) -> Callable[[Skin], list[Any]]:
    return lambda skin: [skin.requires_feature(feature, **options)]


def by_query(skin: Skin) -> list[Any]:
    return [skin.consumes_usage(lambda request: int(skin.query(request)["n"]), TEMPLATES)]


def by_body(skin: Skin) -> list[Any]:
    return [skin.consumes_usage(lambda request: len(skin.json(request)["names"]), TEMPLATES)]


def answering(status: int) -> Callable[[Skin], Any]:
    return lambda skin: skin.text(status=status)


def aborting(status: int) -> Callable[[Skin], Any]:
    return lambda skin: skin.abort(status)


def streaming(parts: Callable[[], Iterator[str]] = letters, status: int = 200) -> Callable[[Skin], Any]:
    return lambda skin: skin.stream(parts(), status)


def occupying(n: Any = 1, **options: Any) -> Callable[[Skin], list[Any]]:
    return lambda skin: [skin.occupies(TEMPLATES, n, **options)]


ONE_USED = {TEMPLATES: 1.0}
TWO_USED = {TEMPLATES: 2.0}
IN_GROUP = Group(TEMPLATES, 1)
BY_RULE = {"RULES": [{"path": "/shop/", "feature": TEMPLATES, "consume": 1}]}

OCCUPYING = {
    "units occupied by a view": Case(guards=occupying(3), body="made"),
    "units occupied by a view that fails": Case(guards=occupying(3), answers=fail, status=500),
    "more units occupied than are left": Case(guards=occupying(4), status=402, told=PROBLEM, runs=0),
    "units occupied as the request says": Case(guards=occupying(lambda _, size: size * 2), status=402, runs=0),
    "units occupied by methods that are not named": Case(guards=occupying(4, methods=["PUT"])),
    "units occupied by a stream": Case(guards=occupying(3), answers=streaming(), body="one two", held=1),
    "units occupied by a stream that is left": Case(guards=occupying(3), answers=streaming(), reads=1, held=1),
    "units occupied twice at once": Case(
        guards=lambda skin: [skin.occupies(TEMPLATES, 2), skin.occupies(TEMPLATES, 2)], status=402, runs=0
    ),
    "units occupied beside units consumed": Case(
        guards=lambda skin: [skin.occupies(TEMPLATES, 2), skin.consumes_usage(1, TEMPLATES)], used=ONE_USED
    ),
}

REQUIRING = {
    "a feature of the plan": Case(guards=requiring(EXPORTS), body="made"),
    "a feature outside the plan": Case(guards=requiring(ANALYTICS), status=402, told=PROBLEM, runs=0),
    "a feature that was taken away": Case(
        guards=requiring("feature-custom-domain"), customer="customer-demo-06", status=403, runs=0
    ),
    "a denial for a browser": Case(guards=requiring(ANALYTICS), headers=BROWSER, status=402, told=PAGE, runs=0),
    "a denial for htmx with an upgrade page": Case(
        guards=requiring(ANALYTICS),
        settings={"UPGRADE_URL": "/plans?for={feature}"},
        headers=HTMX,
        status=402,
        told={"HX-Redirect": "/plans?for=feature-analytics"},
        runs=0,
    ),
    "a status of the settings": Case(
        guards=requiring(ANALYTICS),
        settings={"STATUS_CODES": {"NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION": 404}},
        status=404,
        runs=0,
    ),
    "methods that are named": Case(guards=requiring(ANALYTICS, methods=["put", "POST"]), status=402, runs=0),
    "methods that are not named": Case(guards=requiring(ANALYTICS, methods=["PUT"])),
    "OPTIONS": Case(guards=requiring(ANALYTICS), method="OPTIONS", status=402, runs=0),
    "OPTIONS that is not named": Case(guards=requiring(ANALYTICS, methods=["GET", "POST"]), method="OPTIONS"),
    "a resource of the customer": Case(guards=requiring(EXPORTS, resource="site")),
    "a resource that is not the customer's": Case(
        guards=requiring(EXPORTS, resource="site"), address="/shop/site-99/2", status=403, runs=0
    ),
    "a computed resource": Case(guards=requiring(EXPORTS, resource=lambda _, size: f"site-{size}"), status=403, runs=0),
    "a computed resource that is no id": Case(
        guards=requiring(EXPORTS, resource=lambda _: ""), status=400, told=PROBLEM, runs=0
    ),
}

NOBODY = {
    "nobody signed in": Case(guards=requiring(EXPORTS), customer=None, status=401, told=PROBLEM, runs=0),
    "nobody signed in who consumes": Case(guards=consuming(), customer=None, status=401, runs=0),
    "a browser without anybody signed in": Case(
        guards=requiring(EXPORTS), customer=None, headers=BROWSER, status=401, told=PAGE, runs=0
    ),
    "a browser that is sent to the login page": Case(
        guards=requiring(EXPORTS),
        settings={"ANONYMOUS": "login", "LOGIN_URL": "/login"},
        customer=None,
        headers=BROWSER,
        status=302,
        told={"Location": "/login?next=%2Fshop%2Fsite-01%2F2"},
        runs=0,
    ),
    "a program that is not sent to the login page": Case(
        guards=requiring(EXPORTS),
        settings={"ANONYMOUS": "login", "LOGIN_URL": "/login"},
        customer=None,
        status=401,
        told=PROBLEM,
        runs=0,
    ),
    "the customer that nobody signed in stands for": Case(
        guards=requiring(ANALYTICS), settings={"ANONYMOUS": f"customer:{GROWTH}"}, customer=None
    ),
}

CONSUMING = {
    "success": Case(guards=consuming(2), used={TEMPLATES: 2}),
    "created": Case(guards=consuming(), answers=answering(201), status=201, used=ONE_USED),
    "a redirect": Case(guards=consuming(), answers=lambda skin: skin.redirect(), status=302, used=ONE_USED),
    **{
        f"status {status}": Case(guards=consuming(), answers=answering(status), status=status, used=ONE_USED)
        for status in (202, 206, 226, 300, 303, 308)
    },
    **{
        f"status {status}": Case(guards=consuming(), answers=answering(status), status=status)
        for status in (410, 416, 429, 507)
    },
    "a redirect to the login page": Case(
        guards=consuming(),
        settings={"LOGIN_URL": "/login"},
        answers=lambda skin: skin.redirect("/login?next=%2Fshop%2Fsite-01%2F2"),
        status=302,
    ),
    "a guarded response": Case(guards=consuming(), told={"Cache-Control": "private"}, used=ONE_USED),
    "a checked response": Case(guards=requiring(EXPORTS), told={"Cache-Control": "private"}),
    "a response of a rule": Case(settings=BY_RULE, told={"Cache-Control": "private"}, used=ONE_USED),
    "a guarded failure": Case(
        guards=consuming(), answers=answering(404), status=404, told={"Cache-Control": "private"}
    ),
    "not modified": Case(guards=consuming(), answers=answering(304), status=304),
    "a conflict": Case(guards=consuming(), answers=answering(409), status=409),
    "an abort": Case(guards=consuming(), answers=aborting(404), status=404),
    "an error page": Case(guards=consuming(), answers=answering(503), status=503),
    "an exception": Case(guards=consuming(), answers=fail, status=500),
    "HEAD that is consumed": Case(guards=consuming(), method="HEAD", body="", used=ONE_USED),
    "OPTIONS that is consumed": Case(guards=consuming(), method="OPTIONS", used=ONE_USED),
    "methods that consume": Case(guards=consuming(methods=["POST"]), used=ONE_USED),
    "methods that do not consume": Case(guards=consuming(methods=["POST"]), method="GET"),
    "nothing consumed": Case(guards=consuming(0)),
    "too much": Case(guards=consuming(4), status=402, told=PROBLEM, runs=0),
    "n of the query": Case(guards=by_query, address=f"{ADDRESS}?n=3", used={TEMPLATES: 3}),
    "n of the URL": Case(guards=consuming(lambda _, size: size), used={TEMPLATES: 2}),
    "n of the body": Case(guards=by_body, json={"names": ["Ada", "Grace"]}, used={TEMPLATES: 2}),
    "no n in the query": Case(guards=by_query, status=400, told=PROBLEM, runs=0),
    "n that is no number": Case(guards=by_query, address=f"{ADDRESS}?n=two", status=400, runs=0),
    "n below zero": Case(guards=by_query, address=f"{ADDRESS}?n=-1", status=400, told=PROBLEM, runs=0),
    "n that is not finite": Case(guards=consuming(lambda _: float("inf")), status=400, runs=0),
    "no n in the body": Case(guards=by_body, json={"name": "Ada"}, status=400, runs=0),
    "no dimension in the query": Case(
        guards=consuming(event="made", dimensions=lambda _: {"model": None}), status=400, told=PROBLEM, runs=0
    ),
    "a body that is no object": Case(guards=by_body, json=[], status=400, runs=0),
    "the feature that is required above": Case(
        guards=lambda skin: [skin.requires_feature(TEMPLATES), skin.consumes_usage(1)], used=ONE_USED
    ),
    "two features": Case(
        guards=lambda skin: [skin.consumes_usage(1, TEMPLATES), skin.consumes_usage(2, API_CALLS)],
        used={TEMPLATES: 1, API_CALLS: 2},
    ),
    "two features, of which the second is denied": Case(
        guards=lambda skin: [skin.consumes_usage(1, API_CALLS), skin.consumes_usage(9, TEMPLATES)], status=402, runs=0
    ),
    "what was really used": Case(
        guards=lambda skin: [skin.consumes_usage(3, TEMPLATES, actual=lambda answer: skin.size(answer) / 4)],
        used=ONE_USED,
    ),
    "what was really used by a failure": Case(
        guards=consuming(3, actual=lambda _: 1), answers=answering(400), status=400
    ),
    "an event with dimensions": Case(
        guards=lambda skin: [
            skin.consumes_usage(
                1,
                ACTIVE,
                event="user_login",
                dimensions=lambda request: {"user_id": skin.query(request)["user"]},
            )
        ],
        address=f"{ADDRESS}?user=ann",
        used={ACTIVE: 1},
    ),
    "units given back": Case(guards=lambda skin: [skin.releases_usage(2, TEMPLATES)], used={TEMPLATES: -2}),
    "units given back by the URL": Case(
        guards=lambda skin: [skin.releases_usage(lambda _, size: size - 1, TEMPLATES)], used={TEMPLATES: -1}
    ),
    "units not given back by a failure": Case(
        guards=lambda skin: [skin.releases_usage(2, TEMPLATES)], answers=answering(409), status=409
    ),
}

TELLING = {"RATE_LIMIT_HEADERS": True}  # 3 templates are left


def left(templates: int) -> dict[str, str]:
    return {"RateLimit": f'"{TEMPLATES}";r={templates}'}


def delivering(*etags: str) -> Callable[[Skin], Any]:
    """A view of a file, which has these validators in turn."""
    turns = cycle(etags)
    return lambda skin: skin.part(next(turns))


RANGE = {"headers": {"Range": "bytes=0-1"}, "method": "GET", "status": 206}
OTHER_FILE = {"address": "/shop/site-02/2"}
PER_FILE = consuming(key=PER_DOWNLOAD)

DOWNLOADS = {
    "a download in ranges": Case(
        guards=PER_FILE, answers=delivering('"1"'), before=[({}, 206)] * 9, runs=10, used=ONE_USED, **RANGE
    ),
    "downloads of two files": Case(
        guards=PER_FILE,
        answers=delivering('"1"'),
        before=[({}, 206), (OTHER_FILE, 206), ({}, 206), (OTHER_FILE, 206)],
        runs=5,
        used=TWO_USED,
        **RANGE,
    ),
    "a download of a file that has changed": Case(
        guards=PER_FILE, answers=delivering('"1"', '"2"'), before=[({}, 206)] * 3, runs=4, used=TWO_USED, **RANGE
    ),
    "downloads of what nobody knows again": Case(
        guards=PER_FILE, answers=answering(206), before=[({}, 206)], runs=2, used=TWO_USED, **RANGE
    ),
    "a range though nothing is left": Case(
        guards=consuming(3, key=PER_DOWNLOAD),
        answers=delivering('"1"'),
        before=[({}, 206), (OTHER_FILE, 402)],
        runs=3,
        used={TEMPLATES: 3},
        **RANGE,
    ),
    "a download beyond what is left": Case(
        guards=consuming(4, key=PER_DOWNLOAD), answers=delivering('"1"'), method="GET", status=402, told=PROBLEM
    ),
    "a range that is not there": Case(
        guards=consuming(4, key=PER_DOWNLOAD), answers=answering(416), method="GET", status=416
    ),
    "a download that is not modified": Case(
        guards=consuming(4, key=PER_DOWNLOAD), answers=answering(304), method="GET", status=304
    ),
    "a download that fails": Case(guards=PER_FILE, answers=fail, method="GET", status=500),
    "a download that is streamed": Case(
        guards=PER_FILE,
        answers=lambda skin: skin.part('"1"', letters()),
        body="one two",
        held=1,
        used=ONE_USED,
        **RANGE,
    ),
    "a download that is left": Case(
        guards=PER_FILE, answers=lambda skin: skin.part('"1"', letters()), reads=1, held=1, **RANGE
    ),
    "a download of methods that are not named": Case(
        guards=consuming(4, key=PER_DOWNLOAD, methods=["POST"]), answers=delivering('"1"'), **RANGE
    ),
    "a download of nobody": Case(
        guards=PER_FILE, answers=delivering('"1"'), customer=None, method="GET", status=401, told=PROBLEM
    ),
}

KEY = {"Idempotency-Key": "order-42"}


def keyed(n: Any = 1, **options: Any) -> Callable[[Skin], list[Any]]:
    return consuming(n, key=lambda request: request.headers.get("Idempotency-Key"), **options)


KEYS = {
    "a request with a key": Case(guards=keyed(), headers=KEY, used=ONE_USED),
    "a request that is repeated": Case(
        guards=keyed(),
        headers=KEY,
        before=[({}, 200)],
        status=409,
        told={**PROBLEM, "Retry-After": None},
        used=ONE_USED,
    ),
    "a request that is repeated though nothing is left": Case(
        guards=keyed(3), headers=KEY, before=[({}, 200), ({"headers": {}}, 402)], status=409, used={TEMPLATES: 3}
    ),
    "a request that is repeated and runs": Case(
        guards=keyed(on_repeat="run"), headers=KEY, before=[({}, 200), ({}, 200)], runs=3, used=ONE_USED
    ),
    "requests with keys of their own": Case(
        guards=keyed(), headers=KEY, before=[({"headers": {"Idempotency-Key": "order-41"}}, 200)], runs=2, used=TWO_USED
    ),
    "requests without a key": Case(guards=keyed(), before=[({}, 200)], runs=2, used=TWO_USED),
    "a key of another path": Case(
        guards=keyed(on_repeat="run"),
        headers=KEY,
        before=[({"address": "/shop/site-02/2"}, 200)],
        status=422,
        told={**PROBLEM, "Retry-After": None},
        used=ONE_USED,
    ),
    "a key of another method": Case(
        guards=keyed(), headers=KEY, before=[({"method": "GET"}, 200)], status=422, used=ONE_USED
    ),
    "a key of another amount": Case(
        guards=keyed(lambda request: len(request.headers["X-Names"])),
        headers={**KEY, "X-Names": "AB"},
        before=[({"headers": {**KEY, "X-Names": "A"}}, 200)],
        status=422,
        used=ONE_USED,
    ),
    "a key of another feature": Case(
        guards=lambda skin: [*keyed()(skin), skin.consumes_usage(2, API_CALLS, key=lambda _: "order-42")],
        headers=KEY,
        used={**ONE_USED, API_CALLS: 2},
    ),
    "a request that failed and is repeated": Case(
        guards=keyed(),
        headers=KEY,
        answers=answering(503),
        before=[({}, 503), ({}, 503)],
        status=503,
        runs=3,
    ),
    "an empty key": Case(guards=keyed(), headers={"Idempotency-Key": ""}, status=400, told=PROBLEM, runs=0),
    "a key that is too long": Case(guards=keyed(), headers={"Idempotency-Key": "x" * 256}, status=400, runs=0),
    "a key in an outage": Case(guards=keyed(), headers=KEY, settings=OUTAGE, status=503, runs=0),
    "a key at a disabled guard": Case(
        guards=keyed(1_000), headers=KEY, settings={**OUTAGE, "ENABLED": False}, before=[({}, 200)], runs=2
    ),
}

RATE_LIMITS = {
    "what is left after success": Case(guards=consuming(2), settings=TELLING, told=left(1), used={TEMPLATES: 2}),
    "what is left after a failure": Case(
        guards=consuming(), settings=TELLING, answers=answering(422), status=422, told=left(3)
    ),
    "what is left after an exception": Case(
        guards=consuming(), settings=TELLING, answers=fail, status=500, told=left(3)
    ),
    "what is left of a denial": Case(guards=consuming(4), settings=TELLING, status=402, told=left(3), runs=0),
    "what is left of what was really used": Case(
        guards=consuming(3, actual=lambda _: 1), settings=TELLING, told=left(2), used=ONE_USED
    ),
    "what is left of a feature that is used twice": Case(
        guards=lambda skin: [skin.consumes_usage(2, TEMPLATES), skin.consumes_usage(1, TEMPLATES)],
        settings=TELLING,
        told=left(0),
        used={TEMPLATES: 3},
    ),
    "what is left while a stream is under way": Case(
        guards=consuming(), settings=TELLING, answers=streaming(), told=left(2), held=1, used=ONE_USED
    ),
    "what is left by a rule": Case(settings={**BY_RULE, **TELLING}, answers=answering(409), status=409, told=left(3)),
}

STREAMING = {
    "a stream": Case(guards=consuming(), answers=streaming(), body="one two", held=1, used=ONE_USED),
    "a stream that the client leaves": Case(guards=consuming(), answers=streaming(), reads=1, body="one ", held=1),
    "a stream that nobody reads": Case(guards=consuming(), answers=streaming(), reads=0, held=1),
    "a stream that fails": Case(guards=consuming(), answers=streaming(failing_letters), body="one ", held=1),
    "a stream of failure": Case(guards=consuming(), answers=streaming(status=500), status=500),
    "a stream that gives units back": Case(
        guards=lambda skin: [skin.releases_usage(2, TEMPLATES)], answers=streaming(), used={TEMPLATES: -2}
    ),
    "a left stream that gives no units back": Case(
        guards=lambda skin: [skin.releases_usage(2, TEMPLATES)], answers=streaming(), reads=1
    ),
}

GROUPS = {
    "a group that the plan lacks": Case(group=Group(ANALYTICS), status=402, told=PROBLEM, runs=0),
    "a group that the plan has": Case(group=Group(EXPORTS)),
    "a group that consumes": Case(group=IN_GROUP, used=ONE_USED),
    "a group that consumes by the URL": Case(group=Group(TEMPLATES, lambda _, size: size), used={TEMPLATES: 2}),
    "a group that consumes too much": Case(group=Group(TEMPLATES, 4), status=402, runs=0),
    "a group that redirects": Case(group=IN_GROUP, answers=lambda skin: skin.redirect(), status=302, used=ONE_USED),
    "a group that fails": Case(group=IN_GROUP, answers=fail, status=500),
    "a group that aborts": Case(group=IN_GROUP, answers=aborting(404), status=404),
    "a group that answers with an error": Case(group=IN_GROUP, answers=answering(400), status=400),
    "a group that streams": Case(group=IN_GROUP, answers=streaming(), body="one two", held=1, used=ONE_USED),
    "a group that streams to nobody": Case(group=IN_GROUP, answers=streaming(), reads=1, held=1),
    "methods of a group": Case(group=Group(TEMPLATES, 1, {"methods": ["POST"]}), used=ONE_USED),
    "methods that are not a group's": Case(group=Group(ANALYTICS, options={"methods": ["POST"]}), method="GET"),
    "OPTIONS of a group": Case(group=Group(ANALYTICS), method="OPTIONS", status=402, runs=0),
    "OPTIONS that is not a group's": Case(group=Group(ANALYTICS, options={"methods": ["POST"]}), method="OPTIONS"),
    "an exempt view of a group": Case(group=Group(ANALYTICS, 1), guards=lambda skin: [skin.exempt]),
    "an exempt view's own guards": Case(
        group=Group(ANALYTICS), guards=lambda skin: [skin.exempt, skin.consumes_usage(1, TEMPLATES)], used=ONE_USED
    ),
    "a guarded view of a group": Case(
        group=Group(API_CALLS, 1), guards=consuming(2), used={API_CALLS: 1, TEMPLATES: 2}
    ),
    "nobody signed in to a group": Case(group=IN_GROUP, customer=None, status=401, runs=0),
}

RULES = {
    "a rule that the plan lacks": Case(
        settings={"RULES": [{"path": "/shop/", "feature": ANALYTICS}]}, status=402, told=PROBLEM, runs=0
    ),
    "a rule of another path": Case(settings={"RULES": [{"path": "/api/", "feature": ANALYTICS}]}),
    "a rule of other methods": Case(settings={"RULES": [{"path": "/", "feature": ANALYTICS, "methods": ["GET"]}]}),
    "a rule that consumes": Case(settings=BY_RULE, used=ONE_USED),
    "a rule of a view": Case(
        settings={"RULES": [{"view": "shop.view", "feature": TEMPLATES, "consume": 1}]}, used=ONE_USED
    ),
    "a rule of another view": Case(settings={"RULES": [{"view": "shop.other", "feature": ANALYTICS}]}),
    "a rule before a rule": Case(
        settings={"RULES": [{"path": "/shop/"}, {"path": "/", "feature": ANALYTICS}]},
    ),
    "a rule and a redirect": Case(settings=BY_RULE, answers=lambda skin: skin.redirect(), status=302, used=ONE_USED),
    "a rule and a failure": Case(settings=BY_RULE, answers=fail, status=500),
    "a rule and an abort": Case(settings=BY_RULE, answers=aborting(404), status=404),
    "a rule and a stream": Case(settings=BY_RULE, answers=streaming(), body="one two", held=1, used=ONE_USED),
    "a rule and a stream that fails": Case(settings=BY_RULE, answers=streaming(failing_letters), held=1),
    "a rule and an exempt view": Case(settings=BY_RULE, guards=lambda skin: [skin.exempt]),
    "a rule for an address that is not there": Case(settings=BY_RULE, address="/shop/nowhere", status=404, runs=0),
    "a rule and OPTIONS": Case(settings=BY_RULE, method="OPTIONS", used=ONE_USED),
    "a rule and OPTIONS of nobody": Case(settings=BY_RULE, method="OPTIONS", customer=None, status=401, runs=0),
    "a rule, a group and a decorator": Case(settings=BY_RULE, group=IN_GROUP, guards=consuming(), used={TEMPLATES: 3}),
}

NO_ANSWER = {
    "an outage": Case(
        guards=requiring(EXPORTS), settings=OUTAGE, status=503, told={**PROBLEM, "Retry-After": "1"}, runs=0
    ),
    "an outage for a browser": Case(
        guards=consuming(), settings=OUTAGE, headers=BROWSER, status=503, told={**PAGE, "Retry-After": "1"}, runs=0
    ),
    "an outage that allows": Case(guards=requiring(EXPORTS), settings={**OUTAGE, "ON_OUTAGE": "allow"}),
    "an outage that denies": Case(
        guards=requiring(EXPORTS), settings={**OUTAGE, "ON_OUTAGE": "deny"}, status=403, runs=0
    ),
    "an outage with a fallback": Case(
        guards=requiring(EXPORTS), settings={**OUTAGE, "FALLBACKS": {EXPORTS: {"hasAccess": True}}}
    ),
    "a disabled guard": Case(
        guards=lambda skin: [skin.requires_feature(ANALYTICS), skin.consumes_usage(1_000)],
        group=Group(ANALYTICS),
        settings={**OUTAGE, "ENABLED": False},
        customer=None,
    ),
}

CASES: Mapping[str, Case] = {
    **REQUIRING,
    **NOBODY,
    **CONSUMING,
    **DOWNLOADS,
    **KEYS,
    **OCCUPYING,
    **RATE_LIMITS,
    **STREAMING,
    **GROUPS,
    **RULES,
    **NO_ANSWER,
}

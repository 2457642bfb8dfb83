"""The local sidecar's HTTP side: probes, metrics, and the plan changes that billing would make."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address, IPv6Address, ip_address
from socketserver import TCPServer
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from stigg_guard.errors import InvalidRequest, StiggGuardError
from stigg_guard.foreign import json_value
from stigg_guard.runtime.log import logger
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.metrics import CONTENT_TYPE, Metrics
from stigg_guard.sidecar.offline import FallbackAnswers
from stigg_guard.sidecar.page import CHANGES, EVENTS, HEADERS, TOKEN_HEADER, Page
from stigg_guard.sidecar.state import StateUnavailable
from stigg_guard.wire import Answerer

if TYPE_CHECKING:
    from stigg_guard.sidecar.graph import Graph

MAX_BODY_BYTES = 1024 * 1024
GRAPHQL = "/graphql"
CUSTOMERS = "/customers/"
OFFLINE = "this sidecar is offline: it knows no customers"
ELSEWHERE = "customers and the GraphQL API are at Stigg, which this sidecar asks"


class HealthServer(ThreadingHTTPServer):
    """``/livez``, ``/readyz``, ``/metrics``; over an engine ``PUT /customers/{id}``, ``POST /graphql`` and the status
    page, too.

    Listens as soon as it is made, or raises ``OSError``; ``serve_forever`` answers.
    """

    daemon_threads = True
    # HTTPServer's own asks the DNS for this host's name, which can take seconds and serves only CGI.
    server_bind = TCPServer.server_bind

    def __init__(
        self, host: str, port: int, metrics: Metrics, answers: Answerer, api_key: str | None, page: Page | None
    ) -> None:
        self.address_family, address = resolve(host, port)
        self.host = host
        self.metrics = metrics
        self._answers = answers
        self.api_key = api_key
        self.page = page
        super().__init__(address, _Handler)

    def learn(self) -> Engine:
        """What knows customers; it has learnt what others have changed.

        Raises:
            _Problem: there is none.
        """
        if not isinstance(self._answers, Engine):
            raise self.without_customers()
        self._answers.refresh()
        return self._answers

    def without_customers(self) -> _Problem:
        """Why there are no customers here."""
        if isinstance(self._answers, FallbackAnswers):
            return _Problem(HTTPStatus.CONFLICT, OFFLINE)
        return _Problem(HTTPStatus.NOT_FOUND, ELSEWHERE)

    @cached_property
    def graph(self) -> Graph:
        """The GraphQL API, made on first use: reading its schema takes a moment."""
        from stigg_guard.sidecar.graph import Graph

        return Graph(self.learn(), self.api_key)

    @property
    def port(self) -> int:
        """The port that it listens on, also when it was made with port 0."""
        return int(self.server_address[1])

    def handle_error(self, request: object, client_address: object) -> None:
        logger.warning("the HTTP request from %s failed", client_address, exc_info=True)


class _Problem(Exception):
    """An HTTP answer other than success."""

    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


class _Handler(BaseHTTPRequestHandler):
    server: HealthServer
    timeout = 10

    def do_GET(self) -> None:
        path, _, _ = self.path.partition("?")
        if path in ("/livez", "/readyz"):
            self._reply(HTTPStatus.OK, b'{"status":"UP"}')
        elif path == "/metrics":
            self._reply(HTTPStatus.OK, self.server.metrics.text(), CONTENT_TYPE)
        else:
            self._show(path)

    def _show(self, path: str) -> None:
        """The page's files and its stream of events, for who is on this machine."""
        page = self.server.page
        try:
            found = page.file(path) if page is not None else None
            if page is None or (found is None and path != EVENTS):
                own = "" if page is None else "/, "
                raise _Problem(HTTPStatus.NOT_FOUND, f"here are {own}/livez, /readyz and /metrics")
            self._require_loopback()
            if found is not None:
                self._reply(HTTPStatus.OK, *found, HEADERS)
                return
            (search,) = parse_qs(urlsplit(self.path).query).get("search", [""])[:1]
            with page.stream(search) as events:
                if events is None:
                    raise _Problem(HTTPStatus.SERVICE_UNAVAILABLE, "too many windows show this page; close some")
                self._stream(events)
        except _Problem as problem:
            self._reply_problem(problem)

    def _stream(self, events: Iterator[bytes]) -> None:
        with suppress(OSError):  # who read it has gone
            self._reply(HTTPStatus.OK, b"", "text/event-stream", HEADERS)
            for event in events:
                self.wfile.write(event)

    def do_PUT(self) -> None:
        try:
            self._change_plan()
        except _Problem as problem:
            self._reply_problem(problem)
        else:
            self._reply(HTTPStatus.NO_CONTENT)

    def do_POST(self) -> None:
        path, _, _ = self.path.partition("?")
        try:
            body = self._body()
            if path.startswith(CHANGES):
                self._change(path.removeprefix(CHANGES), body)
                self._reply(HTTPStatus.NO_CONTENT)
            elif path == GRAPHQL:
                status, answer = self._graphql(body)
                self._reply(status, json.dumps(answer).encode())
            else:
                raise _Problem(HTTPStatus.NOT_FOUND, f"POST is for {GRAPHQL} and {CHANGES}{{name}}")
        except _Problem as problem:
            self._reply_problem(problem)

    def _change(self, name: str, body: bytes) -> None:
        """A change by whoever has the page's token, in a header that no other page can send."""
        self._require_loopback()
        self._deny_foreign_pages()
        page = self.server.page
        if page is None:
            raise self.server.without_customers()
        if not page.may_change(self.headers.get(TOKEN_HEADER)):
            raise _Problem(
                HTTPStatus.UNAUTHORIZED, f"send {TOKEN_HEADER}: it is in the address that the sidecar printed"
            )
        given = _object(body)
        try:
            with self._changing():
                page.change(name, given)
        except InvalidRequest as error:
            raise _Problem(HTTPStatus.BAD_REQUEST, str(error)) from None

    def _graphql(self, body: bytes) -> tuple[HTTPStatus, Mapping[str, Any]]:
        self._deny_foreign_pages()
        request = _object(body)
        self.server.learn()
        try:
            status, answer = self.server.graph.answer(self.headers.get("X-API-KEY"), request)
        except StiggGuardError as error:  # the extra is not installed
            raise _Problem(HTTPStatus.NOT_IMPLEMENTED, str(error)) from None
        except Exception:
            logger.exception("a GraphQL request failed")
            raise _Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "the sidecar's log says why") from None
        if status is HTTPStatus.UNAUTHORIZED:
            self.server.metrics.invalid_api_key_errors.inc()
        return status, answer

    def _change_plan(self) -> None:
        # Read first, whatever the answer: closing a socket with unread input would cut the answer off.
        body = self._body()
        path, _, _ = self.path.partition("?")
        if not path.startswith(CUSTOMERS):
            raise _Problem(HTTPStatus.NOT_FOUND, f"PUT is for {CUSTOMERS}{{id}}")
        self._deny_foreign_pages()
        plan, resource = _plan_change(body)
        engine = self.server.learn()
        try:
            with self._changing():
                engine.assign_plan(unquote(path.removeprefix(CUSTOMERS)), plan, resource)
        except InvalidRequest as error:
            status = HTTPStatus.NOT_FOUND if error.field == "customer_id" else HTTPStatus.BAD_REQUEST
            raise _Problem(status, str(error)) from None

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Whatever goes wrong is answered; what is wrong with the request is the caller's to say."""
        try:
            yield
        except InvalidRequest:
            raise
        except StateUnavailable as error:
            raise _Problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from None
        except Exception:
            logger.exception("a change failed: %s", self.requestline)
            raise _Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "the sidecar's log says why") from None

    def _require_loopback(self) -> None:
        """The page is for who is on this machine; a web page whose name was made to point here is not."""
        host = _hostname(self.headers.get("Host", ""))
        if not (is_loopback(str(self.client_address[0])) and is_loopback(host)):
            raise _Problem(HTTPStatus.FORBIDDEN, "the page is for this machine alone; ask for it as localhost")

    def _deny_foreign_pages(self) -> None:
        """A web page in the user's browser must not change plans.

        The media type forces a preflight that is never granted; the Host check defeats a page whose domain name was
        made to point here.
        """
        host = _hostname(self.headers.get("Host", ""))
        if not is_loopback(host) and host != self.server.host:
            raise _Problem(HTTPStatus.FORBIDDEN, f"ask this server as localhost or {self.server.host}, not as {host!r}")
        if self.headers.get_content_type() != "application/json":
            raise _Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send Content-Type: application/json")

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise _Problem(HTTPStatus.LENGTH_REQUIRED, "send the body with a Content-Length")
        if len(length) > len(str(MAX_BODY_BYTES)) or int(length) > MAX_BODY_BYTES:
            raise _Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body may have {MAX_BODY_BYTES} bytes")
        return self.rfile.read(int(length))

    def _reply_problem(self, problem: _Problem) -> None:
        body = {"title": problem.status.phrase, "status": problem.status, "detail": problem.detail}
        self._reply(problem.status, json.dumps(body).encode(), "application/problem+json")

    def _reply(
        self,
        status: HTTPStatus,
        body: bytes = b"",
        content_type: str = "application/json",
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.send_response(status)
        if body:
            self.send_header("Content-Length", str(len(body)))
        if body or headers:
            self.send_header("Content-Type", content_type)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the standard library
        logger.debug("HTTP: %s", format % args)


def _object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body."""
    try:
        value = json_value(body)
    except ValueError as error:
        raise _Problem(HTTPStatus.BAD_REQUEST, f"the body: {error}") from None
    if not isinstance(value, dict):
        raise _Problem(HTTPStatus.BAD_REQUEST, "the body: send a JSON object")
    return value


def _plan_change(body: bytes) -> tuple[str | None, str | None]:
    """The plan, None to cancel, and the resource of ``{"plan": "growth", "resource": "site-01"}``."""
    change = _object(body)
    if "plan" not in change or not change.keys() <= {"plan", "resource"}:
        raise _Problem(HTTPStatus.BAD_REQUEST, 'send {"plan": "name", "resource": "id"}; resource may be left out')
    for key, value in change.items():
        if not isinstance(value, str | None):
            raise _Problem(HTTPStatus.BAD_REQUEST, f"{key}: must be a string or null, not {json.dumps(value)}")
    return change["plan"], change.get("resource")


def resolve(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """The address family of the host, and its first address; raises ``OSError`` for an unknown host."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return family, (str(address[0]), int(address[1]))


def is_loopback(host: str) -> bool:
    """Whether the host, a name or an address, is this machine alone."""
    try:
        return host == "localhost" or _address(host).is_loopback
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    """Whether the host is every address of this machine."""
    try:
        return _address(host).is_unspecified
    except ValueError:
        return False


def _address(host: str) -> IPv4Address | IPv6Address:
    """The address; that of IPv4 where a socket of IPv6 wraps one."""
    address = ip_address(host)
    return getattr(address, "ipv4_mapped", None) or address


def _hostname(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""

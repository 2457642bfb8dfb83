"""The local sidecar's HTTP side: probes, metrics, and the plan changes that billing would make."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from stigg_guard.errors import InvalidRequest, MissingExtra, StiggGuardError
from stigg_guard.foreign import json_value
from stigg_guard.log import logger
from stigg_guard.sidecar.engine import Engine
from stigg_guard.wire import Answerer

if TYPE_CHECKING:
    from stigg_guard.sidecar.graph import Graph

try:
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest
except ModuleNotFoundError as error:
    raise MissingExtra("sidecar", "The local sidecar") from error

MAX_BODY_BYTES = 64 * 1024
MAX_GRAPHQL_BYTES = 1024 * 1024  # of a batch of usages or events
GRAPHQL = "/graphql"
CUSTOMERS = "/customers/"


class Metrics:
    """The counters of one sidecar, in a registry of their own.

    The error counters carry the names of Stigg's sidecar, so that its dashboards work here. With a catalog they stay 0,
    since it needs no API key and no network; what asks another server counts its failures.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("sidecar_requests", "Answered requests.", ["method", "code"], registry=self.registry)
        self._failures = {
            cause: Counter(f"sidecar_{cause}_errors", "Failures of this cause.", registry=self.registry)
            for cause in ("initialization", "invalid_api_key", "network_request", "redis_client")
        }

    def count_failure(self, *, is_key: bool) -> None:
        """The server behind this one gave no answer, for the key if ``is_key``."""
        self._failures["invalid_api_key" if is_key else "network_request"].inc()

    def text(self) -> bytes:
        """The counters in Prometheus' text format."""
        return generate_latest(self.registry)


class HealthServer(ThreadingHTTPServer):
    """``/livez``, ``/readyz``, ``/metrics``; over an engine ``PUT /customers/{id}`` and ``POST /graphql``, too.

    Listens as soon as it is made, or raises ``OSError``; ``serve_forever`` answers.
    """

    daemon_threads = True
    # HTTPServer's own asks the DNS for this host's name, which can take seconds and serves only CGI.
    server_bind = TCPServer.server_bind

    def __init__(self, host: str, port: int, metrics: Metrics, answers: Answerer, api_key: str | None) -> None:
        self.address_family, address = resolve(host, port)
        self.host = host
        self.metrics = metrics
        self._answers = answers
        self.api_key = api_key
        super().__init__(address, _Handler)

    @property
    def engine(self) -> Engine:
        """The engine that has customers to change."""
        if not isinstance(self._answers, Engine):
            raise _Problem(HTTPStatus.NOT_FOUND, "customers and the GraphQL API are at Stigg, which this sidecar asks")
        return self._answers

    @cached_property
    def graph(self) -> Graph:
        """The GraphQL API, made on first use: reading its schema takes a moment."""
        from stigg_guard.sidecar.graph import Graph

        return Graph(self.engine, self.api_key)

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
            self._reply(HTTPStatus.OK, self.server.metrics.text(), CONTENT_TYPE_LATEST)
        else:
            self._reply_problem(_Problem(HTTPStatus.NOT_FOUND, "here are /livez, /readyz and /metrics"))

    def do_PUT(self) -> None:
        try:
            self._change_plan()
        except _Problem as problem:
            self._reply_problem(problem)
        else:
            self._reply(HTTPStatus.NO_CONTENT)

    def do_POST(self) -> None:
        try:
            status, answer = self._graphql()
        except _Problem as problem:
            self._reply_problem(problem)
        else:
            self._reply(status, json.dumps(answer).encode())

    def _graphql(self) -> tuple[HTTPStatus, Mapping[str, Any]]:
        body = self._body(MAX_GRAPHQL_BYTES)
        path, _, _ = self.path.partition("?")
        if path != GRAPHQL:
            raise _Problem(HTTPStatus.NOT_FOUND, f"POST is for {GRAPHQL}")
        self._refuse_foreign_pages()
        request = _object(body)
        try:
            return self.server.graph.answer(self.headers.get("X-API-KEY"), request)
        except _Problem:
            raise
        except StiggGuardError as error:  # the extra is not installed
            raise _Problem(HTTPStatus.NOT_IMPLEMENTED, str(error)) from None
        except Exception:
            logger.exception("a GraphQL request failed")
            raise _Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "the sidecar's log says why") from None

    def _change_plan(self) -> None:
        # Read first, whatever the answer: closing a socket with unread input would cut the answer off.
        body = self._body(MAX_BODY_BYTES)
        path, _, _ = self.path.partition("?")
        if not path.startswith(CUSTOMERS):
            raise _Problem(HTTPStatus.NOT_FOUND, f"PUT is for {CUSTOMERS}{{id}}")
        self._refuse_foreign_pages()
        plan, resource = _plan_change(body)
        engine = self.server.engine
        try:
            engine.assign_plan(unquote(path.removeprefix(CUSTOMERS)), plan, resource)
        except InvalidRequest as error:
            status = HTTPStatus.NOT_FOUND if error.field == "customer_id" else HTTPStatus.BAD_REQUEST
            raise _Problem(status, str(error)) from None
        except Exception:
            logger.exception("a plan change failed: %s", self.requestline)
            raise _Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "the sidecar's log says why") from None

    def _refuse_foreign_pages(self) -> None:
        """A web page in the user's browser must not change plans.

        The media type forces a preflight that is never granted; the Host check defeats a page whose domain name was
        made to point here.
        """
        host = _hostname(self.headers.get("Host", ""))
        if not is_loopback(host) and host != self.server.host:
            raise _Problem(HTTPStatus.FORBIDDEN, f"ask this server as localhost or {self.server.host}, not as {host!r}")
        if self.headers.get_content_type() != "application/json":
            raise _Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send Content-Type: application/json")

    def _body(self, most: int) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise _Problem(HTTPStatus.LENGTH_REQUIRED, "send the body with a Content-Length")
        if len(length) > len(str(most)) or int(length) > most:
            raise _Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body may have {most} bytes")
        return self.rfile.read(int(length))

    def _reply_problem(self, problem: _Problem) -> None:
        body = {"title": problem.status.phrase, "status": problem.status, "detail": problem.detail}
        self._reply(problem.status, json.dumps(body).encode(), "application/problem+json")

    def _reply(self, status: HTTPStatus, body: bytes = b"", content_type: str = "application/json") -> None:
        self.send_response(status)
        if body:
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
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
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _hostname(header: str) -> str:
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""

"""Requests to Stigg's GraphQL API: one deadline, a bound on what is read, and what may be sent again."""

from __future__ import annotations

import json
import os
import queue
import random
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar
from urllib.parse import urlsplit

import requests
import urllib3
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError, ReadTimeoutError

from stigg_guard.clock import utc_now
from stigg_guard.errors import (
    ApiError,
    ApiRateLimited,
    ApiRejected,
    ApiTimeout,
    ApiUnauthenticated,
    ApiUnavailable,
    ApiUnreadable,
    ConfigError,
)
from stigg_guard.foreign import quoted
from stigg_guard.runtime.threads import start
from stigg_guard.settings.urls import is_api_key, is_http_url

MAX_BYTES = 16 * 1024 * 1024
"""How long an answer may be, decoded."""
PAUSES = (0.1, 0.4, 1.6)
"""Seconds before each repetition, and up to half as long again."""
MAX_OVERDUE = 50
"""How many requests may be under way beyond their deadlines before no other is sent."""
MAX_RETRY_AFTER = 86_400.0
"""Seconds; a server that says more is asked again after a day all the same."""
PIECE = 64 * 1024
MAX_MESSAGE = 500

# What is answered with one of these codes was not carried out.
_UNAUTHENTICATED = {"UNAUTHENTICATED", "FORBIDDEN"}
_NOT_DONE = _UNAUTHENTICATED | {
    "BAD_USER_INPUT",
    "CUSTOMER_NOT_FOUND",
    "ENTITLEMENT_LIMIT_EXCEEDED",
    "FEATURE_NOT_FOUND",
    "GRAPHQL_PARSE_FAILED",
    "GRAPHQL_VALIDATION_FAILED",
    "NOT_MODELLED",
    "RESOURCE_NOT_FOUND",
    "SUBSCRIPTION_NOT_FOUND",
    "VALIDATION_ERROR",
}
_CONNECTION_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)


@dataclass(frozen=True, slots=True)
class Request:
    """One operation to send. ``changes`` says that it may change something, ``repeatable`` that it does so once however
    often it is sent. With a ``query`` it is no GraphQL but a GET, whose answer is the data itself."""

    operation: str
    body: bytes = b""
    changes: bool = False
    repeatable: bool = True
    query: Mapping[str, str] | None = None


class Gate(Protocol):
    """Admits requests within rate limits."""

    def admit(self, operation: str) -> float:
        """0 if a request of this operation may go out now, which counts it; else for how many seconds none may."""
        ...

    def rate_limited(self, operation: str, seconds: float | None) -> None:
        """The server took none any more; ``seconds`` is what it said of when it will."""
        ...


class _Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


_Outcome: TypeAlias = _Reply | Exception | None
_AnyApiError = TypeVar("_AnyApiError", bound=ApiError)


class _Unreadable(Exception):
    """The body of an answer is not to be had, for the reason given."""


class _Secret(str):
    """A text that the variables of a traceback, as pages for debugging show them, do not give away."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'…'"


class _Session(requests.Session):
    """Follows no redirect, and does not read where one leads either, which may be no address at all."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: a redirect is an answer like others."""


class Transport:
    """Sends operations to one address with one key. Threads may share it; a forked process has connections of its own.

    Proxies and authorities are those of the environment (``HTTPS_PROXY``, ``NO_PROXY``, ``REQUESTS_CA_BUNDLE``). What
    the ``gate`` does not admit is not sent: a question fails at once, a change may wait as after a 429. Errors name the
    address by its ``setting``. ``pauses`` are the seconds before each repetition, in the place of ``PAUSES``.

    Raises:
        ConfigError: the key or the address is malformed.
    """

    def __init__(
        self,
        api_key: str,
        api_url: str,
        gate: Gate | None = None,
        setting: str = "API_URL",
        pauses: Sequence[float] | None = None,
    ) -> None:
        self._key = _checked_key(api_key)
        self._gate = gate
        self._setting = setting
        self._pauses = pauses
        self._told_time = ""
        self.url = endpoint(api_url, setting)
        self._host = urlsplit(self.url).netloc
        self._sessions: dict[int, requests.Session] = {}  # by process
        self._overdue: set[threading.Thread] = set()  # changed by single operations only: threads share it

    def send(self, request: Request, timeout: float) -> Mapping[str, Any]:
        """The ``data`` of the answer, within ``timeout`` seconds in all.

        Raises:
            ApiError: it failed, and so did its repetitions, where it may be repeated.
        """
        deadline = time.monotonic() + timeout
        pauses = iter(PAUSES if self._pauses is None else self._pauses)
        unknown = False
        while True:
            answer = self._held_back(request) or self._answer(request, deadline)
            # Raised out here, where no exception of a library is its context: their variables know the key.
            if not isinstance(answer, ApiError):
                return answer
            unknown = answer.outcome_unknown = unknown or answer.outcome_unknown  # of any that was sent
            wait = None if _is_held(answer, request) else _wait(answer, next(pauses, None), request.repeatable)
            if wait is None or time.monotonic() + wait > deadline:
                raise answer
            time.sleep(wait)

    @property
    def server_time(self) -> datetime | None:
        """The time of the server's last answer by its own clock, if it told one."""
        return _http_date(self._told_time)

    def close(self) -> None:
        """Closes the connections of this process; a later request opens others."""
        session = self._sessions.get(os.getpid())
        if session is not None:
            session.close()

    def _held_back(self, request: Request) -> ApiRateLimited | None:
        """The error of a request that is not sent, since it would exceed the rate limit."""
        seconds = self._gate.admit(request.operation) if self._gate is not None else 0.0
        if seconds <= 0:
            return None
        error = self._error(ApiRateLimited, request, "is not asked: its rate limit, or our share of it, is used up")
        error.retry_after = seconds
        return error

    def _answer(self, request: Request, deadline: float) -> Mapping[str, Any] | ApiError:
        self._overdue -= {thread for thread in list(self._overdue) if not thread.is_alive()}
        if len(self._overdue) >= MAX_OVERDUE:
            return self._error(ApiTimeout, request, f"is not asked: {MAX_OVERDUE} requests before have found no end")
        outcome = _in_thread(lambda: self._exchange(request, deadline), deadline, self._overdue)
        answer = self._read(outcome, request) if isinstance(outcome, _Reply) else self._lost(outcome, request)
        if self._gate is not None and isinstance(answer, ApiRateLimited):
            self._gate.rate_limited(request.operation, vars(answer).get("retry_after"))
        return answer

    def _exchange(self, request: Request, deadline: float) -> _Reply:
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "gzip",
            "Cache-Control": "no-cache",
            "User-Agent": "stigg-guard",
        }
        if request.query is None:
            headers |= {"Content-Type": "application/json", "X-Graphql-Operation-Name": request.operation}
        pid = os.getpid()
        session = self._sessions.get(pid) or self._sessions.setdefault(pid, _Session())
        with session.request(
            "POST" if request.query is None else "GET",
            self.url,
            params=request.query,
            data=request.body,
            headers=headers,
            auth=self._sign,
            timeout=max(deadline - time.monotonic(), 0.001),
            allow_redirects=False,  # the key would go along, to whatever host
            stream=True,
        ) as response:
            self._told_time = response.headers.get("Date", "")
            return _Reply(response.status_code, response.headers, b"".join(_pieces(response, deadline)))

    def _sign(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["X-API-KEY"] = self._key
        return request

    def _lost(self, fault: Exception | None, request: Request) -> ApiError:
        """The error of a request that got no answer; without a fault the deadline passed."""
        if fault is None or (isinstance(fault, (requests.Timeout, ReadTimeoutError)) and not _was_never_sent(fault)):
            return self._error(ApiTimeout, request, "did not answer within the deadline", unknown=True)
        if isinstance(fault, _Unreadable):
            return self._error(ApiUnreadable, request, f"sent an answer that {fault}", unknown=True)
        if not isinstance(fault, _CONNECTION_ERRORS):
            raise fault
        reason = getattr(fault.args[0] if fault.args else None, "reason", None) or fault
        never_sent = _was_never_sent(fault)
        what = "cannot be connected to" if never_sent else "closed the connection before it had answered"
        return self._error(ApiUnavailable, request, f"{what}: {reason}", unknown=not never_sent)

    def _read(self, reply: _Reply, request: Request) -> Mapping[str, Any] | ApiError:
        """The data of an answer, or the error that it tells of."""
        status = reply.status
        if 300 <= status < 400:
            problem = f"redirects elsewhere, where nothing was sent; set {self._setting} to the API's own address"
            return self._error(ApiUnreadable, request, problem, status=status)
        answer = _json_object(reply.body)
        errors = [error for error in _list(answer.get("errors")) if isinstance(error, dict)]
        code = _code(errors)
        if status == 429 or status >= 500:
            return self._failing(reply, request, errors, code)
        if status in (401, 403) or code in _UNAUTHENTICATED:
            problem = "does not accept the key; set API_KEY to a server key of this environment"
            return self._error(ApiUnauthenticated, request, problem, status=status, code=code)
        may_be_done = status < 400 or status == HTTPStatus.REQUEST_TIMEOUT  # a gateway's, that waited for the API
        if errors:
            turned_away = not may_be_done or code in _NOT_DONE
            said = f"answered: {_said(errors)}"
            rejected = self._error(ApiRejected, request, said, status=status, code=code, unknown=not turned_away)
            rejected.turned_away = turned_away
            rejected.errors, rejected.data = errors, answer.get("data")
            rejected.said = self._without_key(str(errors[0].get("message")))
            return rejected
        data = answer.get("data") if request.query is None else answer
        if status >= 400 or not isinstance(data, dict):
            expected = "GraphQL" if request.query is None else "data"
            problem = f"answered with status {status} and no {expected}; is {self._setting} the address of Stigg's API?"
            return self._error(ApiUnreadable, request, problem, status=status, unknown=may_be_done)
        return data

    def _failing(
        self, reply: _Reply, request: Request, errors: Sequence[Mapping[str, Any]], code: str
    ) -> ApiUnavailable:
        limited = reply.status == 429
        kind = ApiRateLimited if limited else ApiUnavailable
        problem = "takes no more requests for now" if limited else f"fails with status {reply.status}"
        problem += f": {_said(errors)}" if errors else ""
        error = self._error(kind, request, problem, status=reply.status, code=code, unknown=not limited)
        seconds = _seconds_until_retry(reply.headers)
        if seconds is not None:
            error.retry_after = seconds
        return error

    def _error(
        self,
        kind: Callable[..., _AnyApiError],
        request: Request,
        problem: str,
        *,
        status: int | None = None,
        code: str = "",
        unknown: bool = False,
    ) -> _AnyApiError:
        return kind(
            self._without_key(f"{self._host} {problem}"),
            operation=request.operation,
            status=status,
            code=code,
            outcome_unknown=unknown and request.changes,
        )

    def _without_key(self, said: str) -> str:
        """A text of bounded length that does not give the key away, whoever wrote it."""
        message = said.replace(self._key, "…")
        return message if len(message) <= MAX_MESSAGE else message[:MAX_MESSAGE] + "…"


def endpoint(api_url: str, setting: str = "API_URL") -> str:
    """Where requests are sent: the address itself, or its ``/graphql`` when it has no path.

    Raises:
        ConfigError: it is no address of a server.
    """
    if not is_http_url(api_url):
        raise ConfigError(f"{setting}: expected an address such as https://api.stigg.io, without user and password")
    return api_url if urlsplit(api_url).path.strip("/") else f"{api_url.rstrip('/')}/graphql"


def _checked_key(api_key: str) -> _Secret:
    if not is_api_key(api_key):
        raise ConfigError("API_KEY: expected the text of a server key, in ASCII and without spaces")
    return _Secret(api_key)


def _in_thread(work: Callable[[], _Reply], deadline: float, overdue: set[threading.Thread]) -> _Outcome:
    """What ``work`` returns or raises; None when the deadline passes first, whatever it is that takes so long. A thread
    that nobody waits for any more is ``overdue``."""
    done: queue.SimpleQueue[_Outcome] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put(work())
        except Exception as error:  # noqa: BLE001 - whoever waits looks at it
            done.put(error)

    thread = threading.Thread(target=run, name="stigg-guard-api", daemon=True)
    start(thread)
    try:
        return done.get(timeout=max(deadline - time.monotonic(), 0.0))
    except queue.Empty:
        overdue.add(thread)
        return None
    except BaseException:  # from outside
        overdue.add(thread)
        raise


def _pieces(response: requests.Response, deadline: float) -> Iterator[bytes]:
    """The decoded body as it comes: no piece is waited for until it is full, and none is unpacked beyond the bound."""
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("identity", "gzip"):
        raise _Unreadable(f"is encoded as {quoted(encoding)}, which was not asked for")
    unpack = zlib.decompressobj(wbits=31) if encoding == "gzip" else None
    left = MAX_BYTES
    while piece := response.raw.read1(PIECE, decode_content=False):
        if time.monotonic() > deadline:
            raise requests.Timeout
        try:
            piece = unpack.decompress(piece, left + 1) if unpack is not None else piece
        except zlib.error:
            raise _Unreadable("is damaged") from None
        left -= len(piece)
        if left < 0:
            raise _Unreadable(f"is longer than {MAX_BYTES // 1024**2} MB")
        yield piece
    if unpack is not None and not unpack.eof:
        raise requests.ConnectionError("the answer was cut off")


def _was_never_sent(error: Exception) -> bool:
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(reason, (NewConnectionError, ConnectTimeoutError))


def _is_held(error: ApiError, request: Request) -> bool:
    """Whether it is a question that was not sent: what is known already answers sooner."""
    return isinstance(error, ApiRateLimited) and error.status is None and not request.changes


def _wait(error: ApiError, pause: float | None, repeatable: bool) -> float | None:
    """How many seconds to wait before the same is sent again; None when it is not to be."""
    if pause is None or not isinstance(error, ApiUnavailable) or isinstance(error, ApiTimeout):
        return None
    if error.outcome_unknown and not repeatable:
        return None
    told: float = vars(error).get("retry_after", 0.0)  # its own only when the server said so
    return max(told, pause * (1 + random.random() / 2))  # noqa: S311 - it only spreads repetitions


def _seconds_until_retry(headers: Mapping[str, str]) -> float | None:
    """What ``Retry-After`` says, at most ``MAX_RETRY_AFTER``: a number of seconds, or a date, which the server's own
    clock is compared with. None if it says neither."""
    told = headers.get("Retry-After", "").strip()
    if told.isascii() and told.isdigit() and len(told) < 10:
        return min(float(told), MAX_RETRY_AFTER)
    date = _http_date(told)
    if date is None:
        return None
    now = _http_date(headers.get("Date", "")) or utc_now()
    return min(max(0.0, (date - now).total_seconds()), MAX_RETRY_AFTER)


def _http_date(text: str) -> datetime | None:
    try:
        told = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return told if told.tzinfo is not None else told.replace(tzinfo=timezone.utc)


def _json_object(body: bytes) -> dict[str, Any]:
    """The JSON object in the body; empty when it is something else. Its length is bounded already."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _code(errors: Sequence[Mapping[str, Any]]) -> str:
    extensions = errors[0].get("extensions") if errors else None
    code = extensions.get("code") if isinstance(extensions, dict) else None
    return code if isinstance(code, str) else ""


def _said(errors: Sequence[Mapping[str, Any]]) -> str:
    """The messages of errors, with the place in the answer that each is about."""
    told = []
    for error in errors[:3]:
        path = ".".join(str(part) for part in _list(error.get("path")))
        told.append(f"{error.get('message')}" + (f" (at {path})" if path else ""))
    return "; ".join(told)

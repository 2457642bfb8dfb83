"""Calls Flask's views, and tells success by what they return. That passes through as it is."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial, wraps
from inspect import isgenerator, unwrap
from typing import Any, ParamSpec, TypeAlias, TypeVar

from flask import Request, current_app, request
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

from stigg_guard.amounts import Amount
from stigg_guard.calls import Begin, Ending, HoldOpen, is_asynchronous, settled_call
from stigg_guard.entitlements import Customer
from stigg_guard.errors import ConfigError
from stigg_guard.flask.addresses import login_pages
from stigg_guard.flask.current import app_guard, of_request, this_app, this_request
from stigg_guard.flask.errors import denying
from stigg_guard.guard import Guard
from stigg_guard.rules import guards_method
from stigg_guard.usage.consumption import Consumption
from stigg_guard.usage.keys import FileKey, file_key
from stigg_guard.usage.streams import settling_generator
from stigg_guard.web.views import ViewCalls, begin_or_drop, leads_to, succeeded

P = ParamSpec("P")
R = TypeVar("R")

AmountOfRequest: TypeAlias = "Amount | Callable[..., Amount]"
Resource: TypeAlias = "str | Callable[..., str | None]"


class FlaskCalls(ViewCalls):
    """How the views of the current app are called. The arguments are those of ``ViewCalls``."""

    def __init__(self, methods: Iterable[str] = (), resource: Resource | None = None) -> None:
        super().__init__(_guard, _customer, methods=methods, resource=resource)

    def request(self, *_args: object, **_kwargs: object) -> Request:
        return this_request()

    def applies(self, *_args: object, **_kwargs: object) -> bool:
        this = this_request()
        return guards_method(self._methods, this.method, is_answered=_is_answered(this))

    def view_arguments(self, *_args: object, **_kwargs: object) -> Mapping[str, Any]:
        return this_request().view_args or {}

    def held(self, usage: Consumption, *_args: object, **_kwargs: object) -> None:
        of_request().noted.append(usage)

    def check_first(self, function: Callable[P, R], check: Callable[..., None]) -> Callable[P, R]:
        return super().check_first(synchronous(function), denying(check))

    def settle_after(self, function: Callable[P, R], begin: Begin) -> Callable[P, R]:
        run, begin = synchronous(function), denying(begin)

        @wraps(function)
        def settled(*args: P.args, **kwargs: P.kwargs) -> R:
            _forbid_before_request(settled)
            ending = begin(*args, **kwargs)
            if ending is None:
                return run(*args, **kwargs)
            return settled_view(partial(run, *args, **kwargs), ending)

        return settled

    def settle_files(self, function: Callable[P, R], begin: Callable[[FileKey | None], Begin]) -> Callable[P, R]:
        run = synchronous(function)

        @wraps(function)
        def settled(*args: P.args, **kwargs: P.kwargs) -> R:
            _forbid_before_request(settled)
            answer: Any
            try:
                answer = run(*args, **kwargs)
                passed = partial(_returned, answer)
            except HTTPException as error:
                answer, passed = error, partial(_raised, error)
            begin_file = begin_or_drop(begin(_file(answer)), partial(_drop, answer))
            settling: Callable[[], R] = self.settle_after(passed, begin_file)
            return settling() if _is_success(answer) else passed()

        return settled


def _is_answered(this: Request) -> bool:
    """Whether Flask answers OPTIONS for the URL itself, without its view."""
    return bool(getattr(this.url_rule, "provide_automatic_options", False))


def _returned(answer: Any) -> Any:
    return answer


def _raised(error: HTTPException) -> Any:
    raise error


def settled_view(call: Callable[[], R], ending: Ending) -> R:
    """Returns what the view returns; ``ending`` is told how it went. To answer by an ``HTTPException`` is no failure in
    itself, as by ``abort(redirect(…))``."""
    try:
        returned = call()
    except HTTPException as error:
        answer = error
        settled_call(lambda: answer, settle, ending)
        raise
    except BaseException:
        ending(False, None)
        raise
    passed: R = settled_call(lambda: returned, settle, ending)
    return passed


def settle(returned: Any, hold_open: HoldOpen) -> tuple[Any, bool]:
    """What a view returned, and whether it is a success. Only a stream is replaced, by one of the same kind."""
    if not _is_success(returned):
        return returned, False
    answer, *more = returned if _has_parts(returned) else (returned,)
    response = answer.response if isinstance(answer, HTTPException) else answer
    if not (response.is_streamed if isinstance(response, Response) else isinstance(answer, Iterator)):
        return returned, True
    if request.method == "HEAD":
        return returned, False  # nobody will ask for the body, or close it
    if isinstance(response, Response):
        response.response = hold_open(response.response)
        return returned, True
    stream = settling_generator(answer, hold_open(())) if isgenerator(answer) else hold_open(answer)
    return (stream, *more) if more else stream, True


def synchronous(function: Callable[P, R]) -> Callable[P, R]:
    """The function as Flask itself calls it: an ``async def`` is run to its end."""
    if not is_asynchronous(function):
        return function

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        answer: R = current_app.ensure_sync(function)(*args, **kwargs)
        return answer

    return run


def _is_success(returned: Any) -> bool:
    status = _status(returned)
    if not succeeded(status):
        return False
    location = _header(returned, "Location") if status >= 300 else ""
    return not (location and any(leads_to(location, page) for page in login_pages()))


def _has_parts(returned: Any) -> bool:
    """Whether it is a body with a status, with headers or with both, as Flask reads it, and extensions do."""
    return isinstance(returned, tuple) and len(returned) in (2, 3)


def _status(returned: Any) -> int:
    """The HTTP status that it will be answered with; 200 where it names none."""
    if _has_parts(returned):
        return _number(returned[1]) or _status(returned[0])
    if isinstance(returned, HTTPException):
        return _status(returned.response) if returned.response is not None else returned.code or 500
    return returned.status_code if isinstance(returned, Response) else 200


def _number(status: Any) -> int:
    """The number of a status such as 404 or "404 NOT FOUND"; 0 for what is none."""
    if isinstance(status, int):
        return int(status)
    number = status.partition(" ")[0] if isinstance(status, str) else ""
    return int(number) if number.isdecimal() else 0


def _header(returned: Any, name: str) -> str:
    """A header of the response; empty without it."""
    if _has_parts(returned):
        named = returned[-1] if isinstance(returned[-1], (Headers, dict, list, tuple)) else ()
        return Headers(named).get(name) or _header(returned[0], name)
    response = returned.response if isinstance(returned, HTTPException) else returned
    return response.headers.get(name, "") if isinstance(response, Response) else ""


def _file(returned: Any) -> FileKey | None:
    """The key of the file that it delivers a part of."""
    return file_key(request.full_path, _header(returned, "ETag"), _header(returned, "Last-Modified"))


def _drop(returned: Any) -> None:
    """Closes what was to be delivered."""
    answer = returned[0] if _has_parts(returned) else returned
    response = answer.response if isinstance(answer, HTTPException) else answer
    if isinstance(response, (Response, Generator)):
        with suppress(Exception):
            response.close()


def _forbid_before_request(guarded: Callable[..., Any]) -> None:
    functions = this_app().before_request_funcs
    for name in (None, *this_request().blueprints):
        for function in functions.get(name, ()):
            if function is guarded or _leads_to(function, guarded):
                raise ConfigError(
                    f"{guarded.__name__} is a before_request function, which cannot know whether the view will "
                    "succeed: decorate the view, or protect the blueprint"
                )


def _leads_to(function: Callable[..., Any], guarded: Callable[..., Any]) -> bool:
    return hasattr(function, "__wrapped__") and unwrap(function, stop=lambda one: one is guarded) is guarded


def _guard() -> Guard:
    return app_guard().guard


def _customer(*_args: object, **_kwargs: object) -> str | Customer:
    return app_guard().customer()

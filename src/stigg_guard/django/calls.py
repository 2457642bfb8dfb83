"""Calls Django's views: reads their requests, and decides by their responses what was used."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial, wraps
from inspect import isasyncgenfunction, isawaitable, isgenerator
from typing import Any, ParamSpec, TypeVar, cast

from asgiref.sync import iscoroutinefunction
from django.db import connections
from django.http import HttpRequest
from django.http.response import HttpResponseBase, StreamingHttpResponse
from django.template.response import SimpleTemplateResponse
from django.views import View

from stigg_guard.calls import Begin, Ending, HoldOpen, is_asynchronous, settled_call
from stigg_guard.django.asynchronous import ASYNC_CALLS
from stigg_guard.django.conf import DEFAULT, get_guard
from stigg_guard.django.handlers import answers_options, bound_method, is_the_view
from stigg_guard.django.requests import ViewOf, customer_of, forbid_caching, login_pages, note_use
from stigg_guard.entitlements import Customer
from stigg_guard.errors import ConfigError
from stigg_guard.rules import guards_method
from stigg_guard.usage.asynchronous import AsyncSettlingStream
from stigg_guard.usage.consumption import Consumption
from stigg_guard.usage.keys import FileKey, file_key
from stigg_guard.usage.streams import SettlingStream, settling_generator
from stigg_guard.web.views import ViewCalls, begin_or_drop, leads_back, leads_to, private_unless_said, succeeded

P = ParamSpec("P")
R = TypeVar("R")


class DjangoCalls(ViewCalls):
    """How views are called that the configuration ``using`` guards.

    ``customer`` finds the customer of a call in place of the configured resolver. The other arguments are those of
    ``ViewCalls``.
    """

    def __init__(
        self,
        using: str = DEFAULT,
        *,
        customer: Callable[..., str | Customer] | None = None,
        methods: Iterable[str] = (),
        resource: str | Callable[..., str | None] | None = None,
    ) -> None:
        def configured(*args: Any, **kwargs: Any) -> str | Customer:
            return customer_of(self.request(*args, **kwargs), using)

        super().__init__(lambda: get_guard(using), customer or configured, methods=methods, resource=resource)
        self._using = using

    def request(self, request: HttpRequest | View, *_args: Any, **_kwargs: Any) -> HttpRequest:
        """The first argument; of a method of a class-based view, which is called with the view, that of the view."""
        if isinstance(request, View):
            request = getattr(request, "request", request)
        if not hasattr(request, "method"):
            raise ConfigError(
                f"a guard was called with {type(request).__name__} where the request is due: on a method of a class "
                "that is no View, decorate by method_decorator; a View may have RequiresFeatureMixin or "
                "ConsumesUsageMixin"
            )
        return cast(HttpRequest, request)

    def guards(self, view: Any, *args: Any, **kwargs: Any) -> bool:
        """Whether this call of the view is guarded."""
        method = self.request(*args, **kwargs).method or ""
        return guards_method(self._methods, method, is_answered=method == "OPTIONS" and answers_options(view))

    def held(self, usage: Consumption, *args: Any, **kwargs: Any) -> None:
        note_use(self.request(*args, **kwargs), usage, self._using)

    def check_first(self, function: Callable[P, R], check: Callable[..., None]) -> Callable[P, R]:
        return self._under(function, check)

    def settle_after(self, function: Callable[P, R], begin: Begin) -> Callable[P, R]:
        return self._under(function, begin)

    def settle_files(self, function: Callable[P, R], begin: Callable[[FileKey | None], Begin]) -> Callable[P, R]:
        def settle(response: Any, passed: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if not self.guards(function, *args, **kwargs) or not succeeded(_status(response)):
                return passed()
            begin_file = begin(_file(self.request(*args, **kwargs), response))
            return self.settle_after(passed, begin_or_drop(begin_file, partial(_drop, response)))(*args, **kwargs)

        def blocking(*args: Any, **kwargs: Any) -> Any:
            response = function(*args, **kwargs)
            return settle(response, lambda *_, **__: response, *args, **kwargs)

        async def awaiting(*args: Any, **kwargs: Any) -> Any:
            response = await cast("Awaitable[Any]", function(*args, **kwargs))

            async def passed(*_args: Any, **_kwargs: Any) -> Any:
                return response

            return await settle(response, passed, *args, **kwargs)

        return wraps(function)(awaiting if is_awaited(function) else blocking)

    def _under(self, function: Callable[P, R], begin: Begin) -> Callable[P, R]:
        """The view, with what is begun before each call ended after it."""
        if isasyncgenfunction(function):
            raise ConfigError(f"{function!r} is an async generator, which no guard can be on: guard what makes it")
        call = self._awaiting(function, begin) if is_awaited(function) else self._blocking(function, begin)
        return wraps(function)(call)

    def _awaiting(self, function: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
        async def awaiting(*args: Any, **kwargs: Any) -> Any:
            if not self.guards(function, *args, **kwargs):
                return await function(*args, **kwargs)
            ending = await ASYNC_CALLS.begun(partial(begin, *args, **kwargs))
            if ending is None:
                return _private(await function(*args, **kwargs), self.request(*args, **kwargs))
            call = partial(function, *args, **kwargs)
            return await self._settled_later(function, call, ending, self.request(*args, **kwargs))

        return awaiting

    def _blocking(self, function: Callable[..., R], begin: Begin) -> Callable[..., R]:
        def blocking(*args: Any, **kwargs: Any) -> R:
            if not self.guards(function, *args, **kwargs):
                return function(*args, **kwargs)
            _forbid_in_loop(function, *args)
            ending = begin(*args, **kwargs)
            if ending is None:
                return _private(function(*args, **kwargs), self.request(*args, **kwargs))
            request = self.request(*args, **kwargs)
            try:
                response: Any = function(*args, **kwargs)
            except BaseException:
                ending(False, None)
                raise
            if isawaitable(response):
                return cast(R, self._settled_later(function, lambda: response, ending, request))
            return cast(R, settled_call(lambda: response, partial(self._settle, function, request, False), ending))

        return blocking

    async def _settled_later(
        self, function: Any, call: Callable[[], Awaitable[Any]], ending: Ending, request: HttpRequest
    ) -> Any:
        settle = partial(self._settle, function, request, True)
        return await ASYNC_CALLS.settled_call(call, settle, ending, ViewOf(request))

    def _settle(
        self, function: Any, request: HttpRequest, is_awaited: bool, response: Any, hold_open: HoldOpen
    ) -> tuple[Any, bool]:
        """The response, and whether it is a success. A stream is settled when it ends, a template when it is rendered,
        unless it is in a transaction, which ends before: usage is to go with that. So does a generator that was not
        awaited, since its end blocks."""
        _private(response, request)
        if not isinstance(response, HttpResponseBase):
            succeeds = succeeded(_status(response)) and not (response is None and is_the_view(function, request))
            is_stream = succeeds and isgenerator(response) and not is_awaited
            return settling_generator(response, hold_open(())) if is_stream else response, succeeds
        if not is_success(response, request, self._using):
            return response, False
        if isinstance(response, StreamingHttpResponse):
            _settle_streamed(response, hold_open, ViewOf(request))
        elif (
            isinstance(response, SimpleTemplateResponse) and not response.is_rendered and not self._is_in_transaction()
        ):
            _settle_rendered(response, hold_open(()))
        return response, True

    def _is_in_transaction(self) -> bool:
        return connections[get_guard(self._using).config.database].in_atomic_block


def _status(response: Any) -> int:
    """The status of a response, or of a value that a decorator above makes one of: a value may have one, or be a pair
    of it and a body."""
    is_pair = isinstance(response, tuple) and len(response) == 2
    status = response[0] if is_pair else getattr(response, "status_code", None)
    return status if isinstance(status, int) and 100 <= status < 600 else 200


def _file(request: HttpRequest, response: Any) -> FileKey | None:
    """The key of the file that a response delivers a part of."""
    headers = response.headers if isinstance(response, HttpResponseBase) else {}
    return file_key(request.get_full_path(), headers.get("ETag"), headers.get("Last-Modified"))


def _drop(response: Any) -> None:
    """Closes what a response was to deliver. Its own ``close`` would tell that the request has ended."""
    for close in vars(response)["_resource_closers"] if isinstance(response, HttpResponseBase) else ():
        with suppress(Exception):
            close()


def _private(response: R, request: HttpRequest) -> R:
    """The response of a guarded view, which caches are not to hand to others: nor the response that is made of a value,
    which cannot say so in time for ``cache_page``."""
    if isinstance(response, HttpResponseBase):
        private_unless_said(response.headers)
    elif not isawaitable(response):
        forbid_caching(request)
    return response


def _forbid_in_loop(function: Callable[..., Any], view: Any = None, *_args: Any) -> None:
    """``dispatch`` of an async view runs in the event loop, where what blocks is not to run."""
    if isinstance(view, View) and view.view_is_async and function.__name__ == View.dispatch.__name__:
        raise ConfigError(f"decorate dispatch of {type(view).__name__}, which is async, by method_decorator")


def is_success(response: HttpResponseBase, request: HttpRequest, using: str) -> bool:
    """Whether by the response the view did what is paid for."""
    return succeeded(response.status_code) and not _asks_to_sign_in(response, request, using)


def _asks_to_sign_in(response: HttpResponseBase, request: HttpRequest, using: str) -> bool:
    """Whether it is a redirect to a login page: one that settings name, or one that is told to lead back to where it
    came from, as those of Django's decorators and mixins are."""
    location = response.headers.get("Location", "") if response.status_code >= 300 else ""
    if not location:
        return False
    pages = login_pages(get_guard(using).config)
    return leads_back(location, request.get_full_path()) or any(leads_to(location, page) for page in pages)


def _settle_streamed(response: StreamingHttpResponse, hold_open: HoldOpen, view: ViewOf) -> None:
    parts: Any = response.streaming_content
    is_async = isinstance(parts, AsyncIterable)
    response.streaming_content = (
        AsyncSettlingStream(ASYNC_CALLS, parts, hold_open(()), response, view) if is_async else hold_open(parts)
    )


def _settle_rendered(response: SimpleTemplateResponse, settlement: SettlingStream[Any]) -> None:
    """Ends the settlement, an empty stream held open, as the rendering of the response ends."""
    render = response.render

    def rendering() -> Any:
        vars(response).pop("render", None)  # another guard, around this one, may have done so
        try:
            rendered = render()
        except BaseException:
            settlement.close()
            raise
        next(settlement, None)
        return rendered

    response.render = rendering  # type: ignore[method-assign] # Django calls nobody back when it fails


def is_awaited(function: Callable[..., Any]) -> bool:
    """Whether Django awaits the view. Some are only marked as coroutine functions, and ``dispatch`` not even that."""
    return iscoroutinefunction(function) or is_asynchronous(function) or _dispatches_awaited(function)


def _dispatches_awaited(function: Callable[..., Any]) -> bool:
    method = bound_method(function)
    return method is not None and method.__self__.view_is_async and method.__name__ == View.dispatch.__name__

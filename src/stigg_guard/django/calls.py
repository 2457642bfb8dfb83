"""How Django's views are called: what their requests say, and what their responses come to."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable
from functools import partial, wraps
from inspect import isawaitable, unwrap
from typing import Any, ParamSpec, TypeVar, cast

from asgiref.sync import iscoroutinefunction
from django.db import connections
from django.http import HttpRequest
from django.http.response import HttpResponseBase, StreamingHttpResponse
from django.template.response import SimpleTemplateResponse
from django.views import View

from stigg_guard.consumption import Consumption, SettlingStream
from stigg_guard.decorators import Begin, HoldOpen, is_asynchronous, settled_call
from stigg_guard.django import asynchronous
from stigg_guard.django.asynchronous import AsyncSettlingStream
from stigg_guard.django.conf import DEFAULT, get_guard
from stigg_guard.django.requests import customer_of, note_use
from stigg_guard.entitlements import Customer
from stigg_guard.views import ViewCalls, succeeded

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
        def configured(request: HttpRequest, *_args: Any, **_kwargs: Any) -> str | Customer:
            return customer_of(request, using)

        super().__init__(lambda: get_guard(using), customer or configured, methods=methods, resource=resource)
        self._using = using

    def request(self, request: HttpRequest, *_args: Any, **_kwargs: Any) -> HttpRequest:
        return request

    def held(self, usage: Consumption, request: HttpRequest, *_args: Any, **_kwargs: Any) -> None:
        note_use(request, usage, self._using)

    def settle(self, response: Any, hold_open: HoldOpen) -> tuple[Any, bool]:
        if isinstance(response, SimpleTemplateResponse) and self._is_in_transaction():
            # It ends before the response is rendered, and usage is to go with it.
            return response, succeeded(response.status_code)
        return settle(response, hold_open)

    def _is_in_transaction(self) -> bool:
        return connections[get_guard(self._using).config.database].in_atomic_block

    def check_first(self, function: Callable[P, R], check: Callable[..., None]) -> Callable[P, R]:
        return self._awaiting(function, check) if is_awaited(function) else super().check_first(function, check)

    def settle_after(self, function: Callable[P, R], begin: Begin) -> Callable[P, R]:
        return self._awaiting(function, begin) if is_awaited(function) else self._blocking(function, begin)

    def _awaiting(self, function: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
        @wraps(function)
        async def awaiting(*args: Any, **kwargs: Any) -> Any:
            ending = await asynchronous.begun(partial(begin, *args, **kwargs))
            if ending is None:
                return await function(*args, **kwargs)
            return await asynchronous.settled_call(partial(function, *args, **kwargs), self.settle, ending)

        return awaiting

    def _blocking(self, function: Callable[P, R], begin: Begin) -> Callable[P, R]:
        @wraps(function)
        def blocking(*args: P.args, **kwargs: P.kwargs) -> R:
            ending = begin(*args, **kwargs)
            if ending is None:
                return function(*args, **kwargs)
            try:
                response = function(*args, **kwargs)
            except BaseException:
                ending(False, None)
                raise
            if isawaitable(response):
                return cast(R, asynchronous.settled_call(lambda: response, self.settle, ending))
            return cast(R, settled_call(lambda: response, self.settle, ending))

        return blocking


def settle(response: Any, hold_open: HoldOpen) -> tuple[Any, bool]:
    """The response, and whether it is a success. A stream is settled when it ends, a template when it is rendered."""
    if not isinstance(response, HttpResponseBase) or not succeeded(response.status_code):
        return response, False
    if isinstance(response, StreamingHttpResponse):
        response.streaming_content = _settling(response.streaming_content, hold_open)
    elif isinstance(response, SimpleTemplateResponse) and not response.is_rendered:
        _settle_rendered(response, hold_open(()))
    return response, True


def _settling(parts: Iterable[bytes] | AsyncIterable[bytes], hold_open: HoldOpen) -> Any:
    return AsyncSettlingStream(parts, hold_open(())) if isinstance(parts, AsyncIterable) else hold_open(parts)


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
    bound = unwrap(function, stop=lambda one: isinstance(one, partial))  # method_decorator binds by a partial
    method = bound.func if isinstance(bound, partial) else bound
    view = getattr(method, "__self__", None)
    return isinstance(view, View) and view.view_is_async and method.__name__ == View.dispatch.__name__

"""Guarded views of any framework: their customer, their calls, what counts as success, and who may cache them."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import partial, update_wrapper
from typing import Any, ParamSpec, Protocol, TypeAlias, TypeVar
from urllib.parse import parse_qs, urlsplit, urlunsplit

from stigg_guard.calls import Begin, Calls, Ending, Guarding
from stigg_guard.config import Config
from stigg_guard.entitlements import Customer
from stigg_guard.errors import ConfigError, InvalidRequest
from stigg_guard.rules import guards_method, method_names
from stigg_guard.runtime.log import logger

P = ParamSpec("P")
R = TypeVar("R")

# What code that reads a request raises when that is not as it should be: another shape, or nested without end.
_NOT_SAID = (ValueError, LookupError, TypeError, AttributeError, RecursionError)

FoundCustomer: TypeAlias = "str | Customer | None"
_ANYBODY = Customer("anybody")

EXEMPT = "stigg_guard_exempt"
"""The attribute of views that no group's guard and no rule applies to."""


class ResponseHeaders(Protocol):
    """The headers of a response, whose names are found in any case."""

    def setdefault(self, name: str, value: str, /) -> Any:
        """Sets the header unless it is there."""


def begin_or_drop(begin: Begin, drop: Callable[[], None]) -> Begin:
    """Begins as ``begin`` does; if that fails, drops what the view has answered, as something else is sent."""

    def begun(*args: Any, **kwargs: Any) -> Ending | None:
        try:
            return begin(*args, **kwargs)
        except BaseException:
            drop()
            raise

    return begun


class ViewCalls(Calls, ABC):
    """How views are called. ``methods`` are the HTTP methods that are guarded: all when none are named, but for OPTIONS
    that the framework answers itself.

    ``resource`` is the name of the view's argument that has the resource id, or a callable of the request.

    Raises:
        ConfigError: ``methods`` are no names.
    """

    def __init__(
        self,
        guard: Callable[[], Guarding],
        customer: Callable[..., str | Customer],
        *,
        methods: Iterable[str] = (),
        resource: str | Callable[..., str | None] | None = None,
    ) -> None:
        super().__init__(guard, customer)
        try:
            self._methods = method_names(methods)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if resource is not None:
            self.customer = _of_resource(customer, self._resource_of(resource))

    @abstractmethod
    def request(self, *args: Any, **kwargs: Any) -> Any:
        """The request of a call; the framework has it somewhere."""

    def view_arguments(self, *_args: Any, **kwargs: Any) -> Mapping[str, Any]:
        """What the URL says to the view, by name."""
        return kwargs

    def binding(self, *args: Any, **kwargs: Any) -> str:
        request = self.request(*args, **kwargs)
        return f"{request.method} {request.path}"

    def applies(self, *args: Any, **kwargs: Any) -> bool:
        return guards_method(self._methods, self.request(*args, **kwargs).method)

    def computed(self, given: Any) -> Callable[..., Any]:
        """As it is, or computed from the request, and from those of the view's arguments that the callable names.

        Raises:
            ConfigError: the callable does not take the request, or takes what the view does not have.
            InvalidRequest: when called, if the callable cannot make anything of the request: it raises ``ValueError``,
                ``LookupError``, ``TypeError``, ``AttributeError`` or ``RecursionError``.
        """
        if not callable(given):
            return super().computed(given)
        wanted = _wanted(given)

        def compute(*args: Any, **kwargs: Any) -> Any:
            request, arguments = self.request(*args, **kwargs), wanted(self.view_arguments(*args, **kwargs))
            try:
                return given(request, **arguments)
            except InvalidRequest:
                raise
            except _NOT_SAID as error:
                logger.info("a request lacks what is computed from it", exc_info=True)
                raise InvalidRequest("value", "the request lacks what is to be computed from it") from error

        return compute

    def _resource_of(self, resource: str | Callable[..., str | None]) -> Callable[..., str | None]:
        if callable(resource):
            return self.computed(resource)

        def named(*args: Any, **kwargs: Any) -> str | None:
            arguments = self.view_arguments(*args, **kwargs)
            if resource not in arguments:
                raise ConfigError(f"resource: the view has no argument {resource!r}; it has {', '.join(arguments)}")
            return str(arguments[resource])

        return named


def customer_found(config: Config, find: Callable[[], FoundCustomer]) -> FoundCustomer:
    """The customer of a request: whom ``find`` finds, else the free one of ``ANONYMOUS``, or None.

    With ``ENABLED = False`` nobody is looked up, and anybody will do.
    """
    if not config.enabled:
        return _ANYBODY
    found = find()
    return config.anonymous if found is None and isinstance(config.anonymous, Customer) else found


def exempt(view: Callable[P, R]) -> Callable[P, R]:
    """The view, to which neither ``protect`` nor the setting ``RULES`` applies.

    The guards of its own stay in force, and so do those of groups and rules where the view itself is used.
    """
    exempted = update_wrapper(partial(view), view)
    setattr(exempted, EXEMPT, True)
    return exempted


def succeeded(status: int) -> bool:
    """Whether a response of this HTTP status means that the view did what is paid for.

    A redirect does, as after a form, unless it :func:`leads_to` the login page; so does each range of a file (206).
    "Not modified" (304) delivers nothing new, and does not.
    """
    return 200 <= status < 400 and status != 304


def leads_to(location: str, page: str) -> bool:
    """Whether the ``Location`` of a redirect is this page, such as the login page, whatever is in the query."""
    try:
        there, asked = urlsplit(location), urlsplit(page)
    except ValueError:  # no address at all
        return False
    same_site = there.netloc == asked.netloc or not (there.netloc and asked.netloc)
    return same_site and there.path == asked.path


def leads_back(location: str, address: str) -> bool:
    """Whether the ``Location`` of a redirect says by ``next`` to come back to the address that was asked for, as login
    pages are told."""
    try:
        back = urlsplit(parse_qs(urlsplit(location).query).get("next", [""])[0])
    except ValueError:  # no address at all
        return False
    return urlunsplit(("", "", back.path, back.query, "")) == address


def private_unless_said(headers: ResponseHeaders) -> None:
    """Keeps the response to a guarded request, which is of one customer, out of the caches that customers share, unless
    the view has said in ``Cache-Control`` who may keep it."""
    headers.setdefault("Cache-Control", "private")


def _of_resource(
    customer: Callable[..., str | Customer], resource: Callable[..., str | None]
) -> Callable[..., Customer]:
    def find(*args: Any, **kwargs: Any) -> Customer:
        return Customer(Customer.of(customer(*args, **kwargs)).id, resource=resource(*args, **kwargs))

    return find


def _wanted(given: Callable[..., Any]) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """Those of the view's arguments that the callable takes beside the request.

    Raises:
        ConfigError: it does not take the request; or, when called, it takes what the view does not have.
    """
    name = getattr(given, "__qualname__", repr(given))
    try:
        parameters = list(inspect.signature(given).parameters.values())
    except (ValueError, TypeError):  # some callables written in C do not tell
        return lambda _: {}
    if not parameters:
        raise ConfigError(
            f"{name} takes no argument: it is called with the request. If it is a view, write @consumes_usage(1) above "
            "it, with parentheses"
        )
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return lambda arguments: arguments
    named = [parameter for parameter in parameters[1:] if parameter.kind is not parameter.VAR_POSITIONAL]
    names = {parameter.name for parameter in named}
    required = {parameter.name for parameter in named if parameter.default is parameter.empty}

    def wanted(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        missing = required - arguments.keys()
        if missing:
            raise ConfigError(f"{name} takes {', '.join(sorted(missing))}, which the view does not have as an argument")
        return {key: value for key, value in arguments.items() if key in names}

    return wanted

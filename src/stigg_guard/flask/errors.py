"""Denied requests as werkzeug's HTTP exceptions, so that an app's own error handlers find them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

from flask import current_app, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException, default_exceptions
from werkzeug.wrappers import Response

from stigg_guard import errors
from stigg_guard.flask.addresses import login_url, upgrade_url
from stigg_guard.flask.current import app_guard, of_request
from stigg_guard.flask.templating import rendered
from stigg_guard.web.denial import UNANSWERED, Denial, DeniedError, is_answered

P = ParamSpec("P")
R = TypeVar("R")


class PaymentRequired(HTTPException):
    """402, which werkzeug has no exception for."""

    code = 402
    description = "Your plan does not include this."


# Flask looks up here what errorhandler(402) is for, and raises otherwise.
default_exceptions.setdefault(402, PaymentRequired)


class RequestDenied(HTTPException, errors.StiggGuardError):
    """A request that the guard denied, as an HTTP exception for the error handlers of an app.

    ``code``, ``name`` and ``description`` are its status and words, :meth:`get_response` is the built-in answer.
    ``denial`` has the figures for templates, and ``error`` is what the guard raised, whose class it has too. Handlers
    of its status, of that class, of this one and of ``HTTPException`` are all asked, in Flask's own order.
    """

    response = None

    def __init__(self, error: DeniedError, denial: Denial) -> None:
        Exception.__init__(self, str(error))  # werkzeug's own constructor is not made for a second base
        vars(self).update(vars(error))
        self.error = error
        self.denial = denial
        self.code = denial.status
        self.description = denial.detail

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (self.error, self.denial), super().__reduce__()[2]  # its class is known to this process only

    @property
    def name(self) -> str:
        """What happened, in a few words of the reader's language."""
        return self.denial.title

    def get_headers(self, *_args: Any, **_kwargs: Any) -> list[tuple[str, str]]:
        """What any answer has to carry."""
        return [("Content-Type", "text/html; charset=utf-8"), *self.denial.headers.items()]

    def get_response(self, environ: Any = None, scope: Any = None) -> Response:
        """The page, the part of a page or the problem+json that this client understands."""
        answer = self.denial.answer(request.headers, request.url)
        body = answer.body if answer.template is None else rendered(answer.template, denial=self.denial)
        return current_app.response_class(body, answer.status, dict(answer.headers), content_type=answer.content_type)


class FeatureDenied(errors.FeatureDenied, RequestDenied):
    """A denial, as error handlers get it: ``entitlement`` says why, with the figures; ``customer`` says who.

    In a view, what is caught is :class:`stigg_guard.FeatureDenied`, which it is one of.
    """

    __init__ = RequestDenied.__init__


def answer(error: errors.StiggGuardError) -> ResponseReturnValue | HTTPException:
    """Answers a denied request, by the app's handlers or else by itself.

    It is registered for the root of the errors, so that an app's own handlers of single ones go first, whenever they
    were registered.
    """
    if isinstance(error, RequestDenied):  # no handler of the app wanted it
        return error
    if not is_answered(error):
        raise error  # not the client's doing
    return current_app.handle_http_exception(denied(error))


def denying(function: Callable[P, R]) -> Callable[P, R]:
    """Wraps the function: it raises :class:`RequestDenied` where the guard denies the request.

    An errorhandler of all exceptions, or an extension, tells what is to be answered by ``HTTPException``.
    """

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except errors.StiggGuardError as error:
            if isinstance(error, RequestDenied) or not is_answered(error):
                raise
            raise denied(error) from error

    return called


def denied(error: DeniedError) -> RequestDenied:
    """Returns the denial of the current request for an error. Notes it for the log and the ``RateLimit`` headers."""
    this = app_guard()
    denial = Denial.of(error, this.guard.config, this.wording, login_page=login_url)
    if denial.upgrade_url is not None and denial.entitlement is not None:
        denial = replace(denial, upgrade_url=upgrade_url(denial.entitlement.feature_id))
    if isinstance(error, UNANSWERED):
        current_app.logger.warning("a request for %s was answered 503: %s", request.endpoint, error)
    if isinstance(error, errors.FeatureDenied):
        of_request().noted.append(error)
    return _made(error, denial)


def _made(error: DeniedError, denial: Denial) -> RequestDenied:
    made = _class_of(type(error), denial.status)  # type: ignore[arg-type] # mypy: the hash of a class is no hash
    return made(error, denial)


@cache
def _class_of(error: type[errors.StiggGuardError], status: int) -> type[RequestDenied]:
    """One of the error's own class, and of werkzeug's of the status: by these Flask finds the app's handlers."""
    kind: type[RequestDenied] = FeatureDenied
    if not issubclass(error, errors.FeatureDenied):
        kind = type(RequestDenied.__name__, (error, RequestDenied), {"__init__": RequestDenied.__init__})
    return type(kind.__name__, (kind, default_exceptions.get(status, HTTPException)), {"code": status})

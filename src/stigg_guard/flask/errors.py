"""Refused requests as werkzeug's HTTP exceptions, so that an app's own error handlers find them."""

from __future__ import annotations

from functools import cache
from typing import Any

from flask import Blueprint, current_app, render_template, request
from flask.typing import ResponseReturnValue
from jinja2 import DictLoader
from werkzeug.exceptions import HTTPException, default_exceptions
from werkzeug.wrappers import Response

from stigg_guard import errors
from stigg_guard.denial import FRAGMENT_TEMPLATE, TEMPLATE, Denial, Refusal, is_answered, page_source
from stigg_guard.flask.current import EXTENSION, app_guard, of_request


class PaymentRequired(HTTPException):
    """402, which werkzeug has no exception for."""

    code = 402
    description = "Your plan does not include this."


# Flask looks up here what errorhandler(402) is for, and refuses it otherwise.
default_exceptions.setdefault(402, PaymentRequired)


class Refused(HTTPException):
    """A request that the guard refused, for the error handlers of an app.

    ``code``, ``name`` and ``description`` are its status and words, :meth:`get_response` is the built-in answer.
    ``denial`` has the figures for templates, and ``error`` is what the guard raised. Handlers of its status, of
    ``HTTPException`` and of this class are all asked, in Flask's own order.
    """

    response = None

    def __init__(self, error: Refusal, denial: Denial) -> None:
        Exception.__init__(self, str(error))  # werkzeug's own constructor is not made for a second base
        self.error = error
        self.denial = denial
        self.code = denial.status
        self.description = denial.detail

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
        body = answer.body if answer.template is None else render_template(answer.template, denial=self.denial)
        return current_app.response_class(body, answer.status, dict(answer.headers), content_type=answer.content_type)


class FeatureDenied(Refused, errors.FeatureDenied):
    """A denial, as error handlers get it: ``entitlement`` says why, with the figures; ``customer`` says who.

    In a view, what is caught is :class:`stigg_guard.FeatureDenied`, which it is one of.
    """

    def __init__(self, error: errors.FeatureDenied, denial: Denial) -> None:
        super().__init__(error, denial)
        self.entitlement = error.entitlement
        self.customer = error.customer


def answer(error: errors.StiggGuardError) -> ResponseReturnValue | HTTPException:
    """Answers what a request is refused for, by the app's handlers or else by itself.

    It is registered for the root of the errors, so that an app's own handlers of single ones go first, whenever they
    were registered.
    """
    if isinstance(error, Refused):  # it was raised below, and no handler of the app wanted it
        return error
    if not is_answered(error):
        raise error  # not the client's doing
    if isinstance(error, (errors.SidecarError, errors.LedgerUnavailable)):
        current_app.logger.warning("%s was answered 503: %s", request.endpoint, error)
    return current_app.handle_http_exception(_refused(error))


def templates() -> Blueprint:
    """Has the built-in pages for the app's loader to find, after the app's own templates."""
    blueprint = Blueprint(EXTENSION, __name__)
    blueprint.jinja_loader = DictLoader({name: page_source(name) for name in (TEMPLATE, FRAGMENT_TEMPLATE)})
    return blueprint


def _refused(error: Refusal) -> Refused:
    this = app_guard()
    denial = Denial.of(error, this.guard.config, this.wording)
    if not isinstance(error, errors.FeatureDenied):
        return _of_status(Refused, denial.status)(error, denial)
    of_request().decided.append(error.entitlement)
    return _of_status(FeatureDenied, denial.status)(error, denial)


@cache
def _of_status(kind: type[Refused], status: int) -> type[Refused]:
    """The kind as one of werkzeug's own class of the status, by which Flask finds the handler of a status."""
    return type(kind.__name__, (kind, default_exceptions.get(status, HTTPException)), {"code": status})

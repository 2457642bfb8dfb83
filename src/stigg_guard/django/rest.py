"""The guard in Django REST framework: a permission, a throttle, and denials that are rendered as the API renders.

The decorators of :mod:`stigg_guard.django` guard single handlers and actions, and functions below ``@api_view``::

    @method_decorator(consumes_usage(1, "feature-templates"), name="create")
    class TemplateViewSet(ModelViewSet):
        permission_classes = [IsAuthenticated, HasFeature("feature-templates")]
        throttle_classes = [ConsumesUsage(1, "feature-api-calls")]

The resolver ``CUSTOMER`` gets the framework's request, whose ``user`` is the one whom the framework authenticates.

``rest_framework.views`` resolves the settings of the API while it is imported. Those may name, by dotted path, what is
made of the classes below, so that nothing here imports it before a request comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from stigg_guard.errors import MissingExtra

try:
    from rest_framework.exceptions import APIException
except ModuleNotFoundError as error:
    raise MissingExtra("djangorestframework", "stigg_guard.django.rest") from error

from rest_framework.permissions import BasePermission, OperationHolderMixin
from rest_framework.throttling import BaseThrottle

from stigg_guard import decorators
from stigg_guard.amounts import Amount
from stigg_guard.calls import Dimensions, OneOrComputed
from stigg_guard.decorators import KeyOfCall, OnRepeat
from stigg_guard.django.calls import DjangoCalls
from stigg_guard.django.conf import DEFAULT
from stigg_guard.django.middleware import denial_of
from stigg_guard.web.denial import DENIED_ERRORS, PROBLEM_TYPE, DeniedError, is_answered
from stigg_guard.web.views import private_unless_said

if TYPE_CHECKING:
    from rest_framework.request import Request
    from rest_framework.response import Response
    from rest_framework.views import APIView


class Problem(APIException):
    """A denial as the framework's own exception, whose ``detail`` has all that RFC 9457 calls the problem."""

    def __init__(self, error: DeniedError, request: Request, view: APIView) -> None:
        denial = denial_of(request, error)
        self.status_code = denial.status
        # Not through the framework's constructor, which turns numbers into texts.
        self.detail = denial.problem()
        self.wait = denial.retry_after
        self.auth_header = view.get_authenticate_header(request) if denial.status == 401 else None
        self.headers = denial.headers


class HasFeature(OperationHolderMixin, BasePermission):
    """Permits a view, or an action, only to customers who may use the feature.

    ::

        permission_classes = [IsAuthenticated, HasFeature("feature-exports", methods=["POST"])]

    The other arguments are explained in :mod:`stigg_guard.django.decorators`. It raises its denial, to tell the reason:
    of permissions joined by ``|`` it must be the last one, and ``~`` does not turn it round.

    Raises:
        InvalidRequest: the feature's id is empty.
    """

    def __init__(
        self,
        feature: str,
        *,
        methods: Iterable[str] = (),
        resource: str | Callable[..., str | None] | None = None,
        using: str = DEFAULT,
    ) -> None:
        self.calls = DjangoCalls(using, methods=methods, resource=resource)
        self.using = using
        self._feature = feature
        self._check = decorators.feature_check(feature, calls=self.calls)

    def __call__(self) -> HasFeature:
        """The framework makes a permission of each class that it is given; this one is made already."""
        return self

    def has_permission(self, request: Request, view: APIView) -> bool:
        """True. Where the framework only asks what it might show, such as forms, whether it is permitted.

        Raises:
            Problem: the customer may not use the feature, is nobody, or cannot be looked up.
        """
        if _is_probe(request):
            return self._would_permit(request, view)
        if not self._guards(request, view):
            return True
        try:
            self._check(request, *view.args, **view.kwargs)
        except DENIED_ERRORS as error:
            if not is_answered(error):
                raise
            raise Problem(error, request, view) from error
        _keep_private(view)
        return True

    def _would_permit(self, request: Request, view: APIView) -> bool:
        """Returns what :meth:`has_permission` would, without an event for a denial."""
        if not self._guards(request, view):
            return True
        try:
            customer = self.calls.customer(request, *view.args, **view.kwargs)
            return bool(self.calls.guard().peek(self._feature, customer=customer))
        except DENIED_ERRORS:
            return False

    def _guards(self, request: Request, view: APIView) -> bool:
        return self.calls.guards(_handler(request, view), request)


class ConsumesUsage(BaseThrottle):
    """Lets each request of a view, or of an action, consume units of a feature, as a throttle counts requests.

    ::

        throttle_classes = [ConsumesUsage(1, "feature-api-calls")]

    The units are held when all permissions and throttles have let the request pass, and reported if it is answered with
    a status below 400. The arguments are those of :func:`stigg_guard.django.consumes_usage`; callables get the
    framework's request.

    Raises:
        InvalidRequest: ``n`` is a number, and negative or not finite, or the feature's id is empty.
    """

    def __init__(
        self,
        n: OneOrComputed[Amount],
        feature: str,
        *,
        event: str | None = None,
        dimensions: OneOrComputed[Dimensions] | None = None,
        actual: Callable[[Any], Amount] | None = None,
        key: KeyOfCall | None = None,
        on_repeat: OnRepeat = "refuse",
        methods: Iterable[str] = (),
        resource: str | Callable[..., str | None] | None = None,
        using: str = DEFAULT,
    ) -> None:
        self.calls = DjangoCalls(using, methods=methods, resource=resource)
        self.using = using
        self._consuming: Callable[[Callable[..., Any]], Callable[..., Any]] = decorators.consumes_usage(
            n,
            feature,
            calls=self.calls,
            event=event,
            dimensions=dimensions,
            actual=actual,
            key=key,
            on_repeat=on_repeat,
        )

    def __call__(self) -> ConsumesUsage:
        """As :meth:`HasFeature.__call__`."""
        return self

    def allow_request(self, request: Request, view: APIView) -> bool:
        """Returns True, and notes the price for the handler, which is called next."""
        handler = _handler(request, view)
        if handler is not None:
            name = str(request.method).lower()
            setattr(view, name, self._consuming(handler))  # the view serves this request only
        return True


def exception_handler(exc: Exception, context: Mapping[str, Any]) -> Response | None:
    """For ``REST_FRAMEWORK["EXCEPTION_HANDLER"]``: answers denials by the API's own renderers, as problems (RFC 9457).

    Without it those of :class:`HasFeature` are rendered, too, and all others are answered by the middleware.
    """
    from rest_framework import views

    request = context["request"]
    if is_answered(exc):
        exc = Problem(exc, request, context["view"])
    response = views.exception_handler(exc, dict(context))
    if isinstance(exc, Problem) and response is not None:
        for name, value in exc.headers.items():
            response[name] = value
        if request.accepted_renderer.format == "json":
            response.content_type = PROBLEM_TYPE
    return response


def _keep_private(view: APIView) -> None:
    """Has the response of the view, which serves this request only, kept out of shared caches."""
    finalize = view.finalize_response

    def finalize_private(*args: Any, **kwargs: Any) -> Response:
        response = finalize(*args, **kwargs)
        private_unless_said(response.headers)
        return response

    view.finalize_response = finalize_private  # type: ignore[method-assign] # of this instance


def _handler(request: Request, view: APIView) -> Any:
    """The method of the view that the framework will call; None if there is none."""
    name = (request.method or "").lower()
    # A client may send any word as the method, such as the name of another method of the view.
    return getattr(view, name, None) if name in view.http_method_names else None


def _is_probe(request: Request) -> bool:
    """Whether the framework asks about another request than the client's: its own clone with a method put in."""
    return "method" in vars(request)

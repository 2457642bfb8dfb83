"""Denials in the OpenAPI schema that drf-spectacular makes of an API."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from http.client import responses
from typing import Any

from stigg_guard.django.conf import get_guard
from stigg_guard.django.rest import ConsumesUsage, HasFeature
from stigg_guard.errors import MissingExtra
from stigg_guard.web.denial import PROBLEM_TYPE

try:
    from drf_spectacular import openapi
except ModuleNotFoundError as error:
    raise MissingExtra("openapi", "stigg_guard.django.openapi") from error

from drf_spectacular.plumbing import ComponentRegistry, ResolvedComponent

_NUMBER = {"type": "number", "format": "double"}
_PROBLEM = ResolvedComponent(  # type: ignore[no-untyped-call] # drf-spectacular leaves it untyped
    name="FeatureProblem",
    type=ResolvedComponent.SCHEMA,
    object="FeatureProblem",
    schema={
        "type": "object",
        "description": "Why a request was denied (RFC 9457).",
        "properties": {
            "type": {"type": "string", "format": "uri"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "feature": {"type": "string"},
            "reason": {"type": "string"},
            "limit": _NUMBER,
            "usage": _NUMBER,
            "remaining": _NUMBER,
            "requested": {**_NUMBER, "nullable": True},
            "resets_at": {"type": "string", "format": "date-time"},
            "upgrade_url": {"type": "string"},
            "violated-policies": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["type", "title", "status", "detail"],
    },
)


class AutoSchema(openapi.AutoSchema):
    """For ``REST_FRAMEWORK["DEFAULT_SCHEMA_CLASS"]``: operations that :class:`~stigg_guard.django.rest.HasFeature` or
    :class:`~stigg_guard.django.rest.ConsumesUsage` guards show the denials that they may answer with.

    What decorators guard can be described by drf-spectacular's own ``extend_schema``.
    """

    def get_operation(
        self, path: str, path_regex: str, path_prefix: str, method: str, registry: ComponentRegistry
    ) -> dict[str, Any] | None:
        """The operation, whose denials are added to its responses unless it describes them itself."""
        operation = super().get_operation(path, path_regex, path_prefix, method, registry)
        guards = [guard for guard in self._guards() if guard.calls.applies(self.view.request)]
        if operation is None or not guards:
            return operation
        registry.register_on_missing(_PROBLEM)
        statuses = {status for guard in guards for status in get_guard(guard.using).config.status_codes.values()}
        for status in sorted({*statuses, HTTPStatus.SERVICE_UNAVAILABLE}):
            response = {
                "description": responses.get(status, "Denied"),  # STATUS_CODES may have one of its own
                "content": {PROBLEM_TYPE: {"schema": _PROBLEM.ref}},
            }
            operation["responses"].setdefault(str(int(status)), response)
        return operation

    def _guards(self) -> Iterator[HasFeature | ConsumesUsage]:
        for one in (*self.view.get_permissions(), *self.view.get_throttles()):
            yield from _guards_in(one)


def _guards_in(part: Any) -> Iterator[HasFeature | ConsumesUsage]:
    """Those in a permission or throttle, which may be joined from others."""
    if isinstance(part, (HasFeature, ConsumesUsage)):
        yield part
    for joined in ("op1", "op2"):
        if hasattr(part, joined):
            yield from _guards_in(getattr(part, joined))

"""The responses of the six ``GetEntitlement…``, which carry one entitlement in envelopes of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.message import Message

from stigg_guard.wire import METHODS, sidecar_pb2

TYPED_METHODS: Mapping[str, str] = {
    "GetBooleanEntitlement": "boolean",
    "GetNumericEntitlement": "numeric",
    "GetMeteredEntitlement": "metered",
    "GetEnumEntitlement": "enum",
}
"""The methods that ask for one kind of entitlement, and that kind's name on the wire."""

FEATURE_TYPES: Mapping[str, sidecar_pb2.FeatureType] = {
    "boolean": sidecar_pb2.FEATURE_TYPE_BOOLEAN,
    "numeric": sidecar_pb2.FEATURE_TYPE_NUMBER,
    "metered": sidecar_pb2.FEATURE_TYPE_NUMBER,
    "enum": sidecar_pb2.FEATURE_TYPE_ENUM,
}
"""The wire's type of a feature that grants each kind of entitlement."""


def entitlement_response(method: str, request: Message, answer: sidecar_pb2.EntitlementV2) -> Message:
    """The response of ``method`` that carries ``answer``: the six ``GetEntitlement…`` differ in their envelope only."""
    if method == "GetEntitlementV2":
        return METHODS[method].response(entitlement=answer)
    kind = answer.WhichOneof("entitlement")
    fields: dict[str, Any] = {"has_access": answer.has_access, "is_fallback": answer.is_fallback}
    fields["entitlement" if method in TYPED_METHODS else kind] = getattr(answer, kind)
    if answer.HasField("access_denied_reason"):
        fields["access_denied_reason"] = answer.access_denied_reason
    asked: Any = request
    if method == "GetMeteredEntitlement":
        fields["requested_usage"] = asked.options.requested_usage
    elif method == "GetEnumEntitlement":
        fields["requested_values"] = asked.options.requested_values
    return METHODS[method].response(**fields)

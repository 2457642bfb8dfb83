"""Fallbacks: the answers without data, where they are read from, and the response that carries one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple, cast

from google.protobuf.message import Message

from stigg_guard.errors import ConfigError
from stigg_guard.foreign import json_value, quoted
from stigg_guard.wire import sidecar_pb2
from stigg_guard.wire.responses import FEATURE_TYPES, TYPED_METHODS, entitlement_response


@dataclass(frozen=True, slots=True)
class Fallback:
    """The fallback answer for a feature when there is no data.

    ``has_access`` decides; the rest only fills in the entitlement that the answer carries.
    """

    has_access: bool
    value: int | None = None
    is_unlimited: bool = False
    usage_limit: float | None = None
    enum_values: tuple[str, ...] = ()

    @classmethod
    def from_message(cls, message: Message) -> Fallback:
        """The fallback that a ``…Fallback`` message of the wire describes.

        Raises ``ConfigError`` when an ``EntitlementFallback`` has none of its kinds set.
        """
        if isinstance(message, sidecar_pb2.EntitlementFallback):
            kind = message.WhichOneof("fallback")
            if kind is None:
                raise ConfigError("EntitlementFallback is empty: set one of boolean, numeric, metered, enum")
            message = getattr(message, kind)
        given = {field.name: value for field, value in message.ListFields()}
        return cls(
            has_access=given.get("has_access", False),
            value=given.get("value"),
            is_unlimited=given.get("is_unlimited", False),
            usage_limit=given.get("usage_limit"),
            enum_values=tuple(given.get("enum_values", ())),
        )


def parse_fallbacks(source: str | Mapping[str, object]) -> dict[str, Fallback]:
    """The fallback of each feature id, from the documented JSON text or the same as a mapping.

    A feature's fallback is ``{"hasAccess": …}`` with any of ``value``, ``isUnlimited``, ``usageLimit``,
    ``enumValues``; a bare boolean stands for ``hasAccess`` alone, and a ``Fallback`` is taken as it is.
    Raises ``ConfigError`` that names the feature, the key and the remedy.
    """
    if isinstance(source, str):
        try:
            source = json_value(source)
        except ValueError as error:
            raise ConfigError(f"fallbacks: {error}") from None
    if not isinstance(source, Mapping):
        raise ConfigError('fallbacks: must map feature ids to fallbacks, as in {"feature-01": {"hasAccess": true}}')
    return {feature_id: _parse(feature_id, given) for feature_id, given in source.items()}


def requested_fallback(request: Message) -> Fallback | None:
    """The fallback that the request itself brings, if any."""
    options = getattr(request, "options", None)
    if options is None or not options.HasField("fallback"):
        return None
    return Fallback.from_message(options.fallback)


def fallback_answer(method: str, request: Message, fallback: Fallback) -> Message:
    """The response that the fallback gives to ``method``, which is one of the six ``GetEntitlement…``.

    A fallback that denies has the reason ``ACCESS_DENIED_REASON_UNKNOWN``: nobody knows the real one.
    """
    answer = sidecar_pb2.EntitlementV2(has_access=fallback.has_access, is_fallback=True)
    if not fallback.has_access:
        answer.access_denied_reason = sidecar_pb2.ACCESS_DENIED_REASON_UNKNOWN
    kind = _kind(method, request, fallback)
    getattr(answer, kind).CopyFrom(_entitlement(kind, request, fallback))
    return entitlement_response(method, request, answer)


def _kind(method: str, request: Any, fallback: Fallback) -> str:
    if method in TYPED_METHODS:
        return TYPED_METHODS[method]
    if method == "GetEntitlementV2" and request.HasField("currency_id"):
        return "credit"
    if fallback.value is not None:
        return "numeric"
    if fallback.usage_limit is not None or fallback.is_unlimited:
        return "metered"
    return "enum" if fallback.enum_values else "boolean"


def _entitlement(kind: str, request: Any, fallback: Fallback) -> Message:
    if kind == "credit":
        amount = fallback.usage_limit or 0
        currency = sidecar_pb2.EntitlementCurrency(currency_id=request.currency_id)
        return sidecar_pb2.CreditEntitlement(currency=currency, usage_limit=amount, remaining=amount)
    feature = sidecar_pb2.EntitlementFeature(
        id=request.feature_id, feature_type=FEATURE_TYPES[kind], is_metered=kind == "metered"
    )
    if kind == "numeric":
        return sidecar_pb2.NumericEntitlement(feature=feature, value=fallback.value, is_unlimited=fallback.is_unlimited)
    if kind == "metered":
        return sidecar_pb2.MeteredEntitlement(
            feature=feature, usage_limit=fallback.usage_limit, is_unlimited=fallback.is_unlimited
        )
    if kind == "enum":
        return sidecar_pb2.EnumEntitlement(feature=feature, enum_values=fallback.enum_values)
    return sidecar_pb2.BooleanEntitlement(feature=feature)


class _Shape(NamedTuple):
    """One key of the documented JSON: the field it fills, and the values it takes."""

    field: str
    takes: Callable[[Any], bool]
    expected: str


def _is_int32(value: object) -> bool:
    return type(value) is int and -(2**31) <= value < 2**31


def _is_limit(value: object) -> bool:
    return type(value) in (int, float) and 0 <= cast(float, value) <= sys.float_info.max


def _is_texts(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)


_SHAPES: Mapping[str, _Shape] = {
    "hasAccess": _Shape("has_access", lambda value: isinstance(value, bool), "true or false"),
    "value": _Shape("value", _is_int32, "a whole number of 32 bits"),
    "isUnlimited": _Shape("is_unlimited", lambda value: isinstance(value, bool), "true or false"),
    "usageLimit": _Shape("usage_limit", _is_limit, "a number, 0 or more"),
    "enumValues": _Shape("enum_values", _is_texts, "a list of texts"),
}


def _parse(feature_id: str, given: object) -> Fallback:
    if isinstance(given, Fallback):
        return given
    if isinstance(given, bool):
        return Fallback(given)
    if not isinstance(given, Mapping):
        raise ConfigError(f'fallback of {feature_id!r}: must be true, false or an object such as {{"hasAccess": true}}')
    fields = dict(_field(feature_id, key, value) for key, value in given.items())
    if "has_access" not in fields:
        raise ConfigError(f"fallback of {feature_id!r}: does not say whether there is access; add hasAccess")
    return Fallback(**fields)


def _field(feature_id: str, key: str, value: object) -> tuple[str, Any]:
    shape = _SHAPES.get(key)
    if shape is None:
        near = get_close_matches(key, _SHAPES, n=1, cutoff=0.5)
        remedy = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(_SHAPES)}"
        raise ConfigError(f"fallback of {feature_id!r}: unknown key {key!r}; {remedy}")
    if not shape.takes(value):
        raise ConfigError(f"fallback of {feature_id!r}: {key} must be {shape.expected}, not {quoted(value)}")
    return shape.field, tuple(cast("list[str]", value)) if key == "enumValues" else value

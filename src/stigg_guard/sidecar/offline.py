"""Answers from fallbacks alone: what Stigg's sidecar does with ``OFFLINE``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.message import Message

from stigg_guard.fallbacks import Fallback, fallback_answer, requested_fallback
from stigg_guard.runtime.log import logger
from stigg_guard.wire import METHODS
from stigg_guard.wire import sidecar_pb2 as pb

_NOBODY_KNOWS = Fallback(has_access=False)


class FallbackAnswers:
    """Answers for any customer from fallbacks by feature id. A feature without one is denied, as a fallback.

    Reports are answered and have no effect, which is logged once.
    """

    def __init__(self, fallbacks: Mapping[str, Fallback]) -> None:
        self._fallbacks = fallbacks
        self._has_told = False

    def answer(
        self, method: str, request: Any, *, timeout: float | None = None, idempotency_key: str | None = None
    ) -> Message:
        """The response to a request of one of the 12 methods."""
        if method == "GetEntitlementsStateV2":
            return pb.GetEntitlementsStateV2Response(entitlements=self._every())
        if method == "GetEntitlements":
            return self._granted()
        if method == "ReloadEntitlements":
            return pb.ReloadEntitlementsResponse(entitled_entity_exists=True)
        if method.startswith("Report"):
            self._tell_once()
            return METHODS[method].response()
        fallback = requested_fallback(request) or self._fallbacks.get(request.feature_id) or _NOBODY_KNOWS
        return fallback_answer(method, request, fallback)

    @property
    def honours_keys(self) -> bool:
        """Whether reports under one idempotency key count once: none counts at all."""
        return True

    def refresh(self) -> bool:
        """There is nothing to learn."""
        return True

    def close(self) -> None:
        """Nothing is open."""

    def _every(self) -> Iterator[Any]:
        for feature, fallback in self._fallbacks.items():
            request = pb.GetEntitlementV2Request(feature_id=feature)
            answer: Any = fallback_answer("GetEntitlementV2", request, fallback)
            yield answer.entitlement

    def _granted(self) -> Message:
        response = pb.GetEntitlementsResponse()
        for answer in self._every():
            if answer.has_access:
                kind = answer.WhichOneof("entitlement")
                getattr(response.entitlements.add(), kind).CopyFrom(getattr(answer, kind))
        return response

    def _tell_once(self) -> None:
        if not self._has_told:
            self._has_told = True
            logger.warning("OFFLINE is set: reports are answered and have no effect")

"""The outage policy: what answers without data from the sidecar, a file, a fallback or ``ON_OUTAGE``."""

from __future__ import annotations

from stigg_guard.client import Stigg
from stigg_guard.config import Config, OnOutage
from stigg_guard.decoding import entitlement_from_wire
from stigg_guard.entitlements import Customer, Entitlement, Reason, Source
from stigg_guard.errors import SidecarError
from stigg_guard.fallbacks import Fallback, fallback_answer
from stigg_guard.wire import sidecar_pb2 as wire

_NOT_SEEDED = (Reason.CUSTOMER_NOT_FOUND, Reason.FEATURE_NOT_FOUND, Reason.CUSTOMER_RESOURCE_NOT_FOUND)


class OutagePolicy:
    """Answers where there is no data: from ``OFFLINE_FILE``, by a fallback, by ``ON_OUTAGE``.

    ``has_answered`` says that the sidecar has answered once: from then on the file is not asked.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._seed: Stigg | None = None
        self.has_answered = False

    def answer(self, feature: str, customer: Customer, fallback: Fallback | None, error: SidecarError) -> Entitlement:
        """The answer in place of the sidecar's, which failed with this error.

        Raises:
            SidecarError: the error, if nothing can answer and ``ON_OUTAGE`` is ``error``.
        """
        seeded = self._seeded(feature, customer)
        if seeded is not None:
            return seeded
        if fallback is not None:
            return fallen_back(feature, fallback)
        if self._config.on_outage is OnOutage.ERROR:
            raise error
        return assumed(feature, has_access=self._config.on_outage is OnOutage.ALLOW)

    def _seeded(self, feature: str, customer: Customer) -> Entitlement | None:
        """What ``OFFLINE_FILE`` says while the sidecar has never answered; None if it knows nothing of the customer."""
        file = self._config.offline_file
        if self.has_answered or file is None or self._config.sidecar == "offline":
            return None
        if self._seed is None:
            self._seed = Stigg(offline_file=file)
        answer = entitlement_from_wire(
            self._seed.get_entitlement_v2(_about_one(feature, customer)).entitlement,
            feature_id=feature,
            source=Source.OFFLINE,
        )
        return None if answer.reason in _NOT_SEEDED else answer

    def close(self) -> None:
        """Closes what was opened to read the file."""
        if self._seed is not None:
            self._seed.close()


def _about_one(feature: str, customer: Customer) -> wire.GetEntitlementV2Request:
    return wire.GetEntitlementV2Request(customer_id=customer.id, resource_id=customer.resource, feature_id=feature)


def assumed(feature: str, *, has_access: bool) -> Entitlement:
    """The answer that nothing is known for."""
    reason = None if has_access else Reason.UNKNOWN
    return Entitlement(
        feature_id=feature, has_access=has_access, reason=reason, is_fallback=True, source=Source.FALLBACK
    )


def fallen_back(feature: str, fallback: Fallback) -> Entitlement:
    """The fallback as the answer for a feature."""
    answer = fallback_answer("GetEntitlement", wire.GetEntitlementRequest(feature_id=feature), fallback)
    return entitlement_from_wire(answer, feature_id=feature, source=Source.FALLBACK)

"""Sends reports with an idempotency key, and tells what can be known of one that was not answered."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from stigg_guard.amounts import is_figure
from stigg_guard.client import Stigg
from stigg_guard.clock import Clock, utc_now
from stigg_guard.config import OnUncertain
from stigg_guard.errors import InvalidRequest, SidecarError, SidecarUnavailable
from stigg_guard.ledger import Acknowledged, Batch, Entry, UsageKey
from stigg_guard.observer import Audience, Observer
from stigg_guard.usage.messages import acknowledged, event_of, ids_of, request_of, usage_of
from stigg_guard.wire import sidecar_pb2 as wire

T = TypeVar("T")

KEY_SECONDS = 86_400.0
"""For how long a key is relied on: the local sidecar remembers it for a day; how long Stigg's API does is not told."""

MAX_ASKED = 2
"""How many customers are asked about at once to learn whether keys are honoured."""


class Sender:
    """Reports through the client that ``stigg`` gives. It remembers nothing and touches no ledger. The ``audience`` is
    told of each batch."""

    def __init__(
        self,
        stigg: Callable[[], Stigg],
        on_uncertain: OnUncertain,
        now: Callable[[], datetime] = utc_now,
        audience: Audience | None = None,
    ) -> None:
        self._stigg = stigg
        self._audience = audience or Audience(Clock())
        self._on_uncertain = on_uncertain
        self._now = now

    def send(self, batch: Batch, timeout: float | None = None) -> list[Acknowledged]:
        """Sends the reports under the batch's id, which is their idempotency key; what the sidecar says to each.

        ``timeout`` is in seconds; None is the client's own for reports.

        Raises:
            InvalidRequest: one of the reports is rejected, or cannot be written as a message, and none was counted.
            SidecarError: there is no answer; ``outcome_unknown`` tells whether the reports may have been counted.
        """
        features = tuple(report.key.feature_id for report in batch.reports)
        with self._audience.timed(Observer.sent, None, features):
            return self._sent(batch, timeout)

    def may_repeat(self, reports: Sequence[Entry]) -> bool:
        """Whether reports in doubt may be sent again: none of them can count twice, or each is allowed to. Those whose
        use is longer ago than a key is remembered for certain may not, nor those that lie as far ahead: a clock was
        wrong, and nobody knows how old they are.

        Raises:
            SidecarError: the sidecar must tell whether it honours idempotency keys, and does not answer.
        """
        adding = [report for report in reports if not (report.event or report.is_set)]
        if not adding or self._on_uncertain is OnUncertain.RESEND:
            return True
        now = self._now().timestamp()
        if any(report.first_at and abs(now - report.first_at / 1e6) > KEY_SECONDS for report in adding):
            return False
        return self._honours_keys({(report.key.customer_id, report.key.resource_id): report.key for report in adding})

    def _honours_keys(self, by_owner: Mapping[tuple[str, str], UsageKey]) -> bool:
        """Asks about customers at random: one for whom it fails must not keep all others waiting."""
        stigg = self._stigg()
        fault: SidecarError | None = None
        for owner in random.sample(list(by_owner), min(MAX_ASKED, len(by_owner))):
            if stigg.honours_keys is not None:
                break
            try:
                stigg.reload_entitlements(request_of(wire.ReloadEntitlementsRequest, by_owner[owner]))
            except SidecarUnavailable as error:
                fault = error
            except (InvalidRequest, SidecarError):  # who cannot tell honours none
                return False
        if stigg.honours_keys is None and fault is not None:
            raise fault
        return bool(stigg.honours_keys)

    def read_back(self, key: UsageKey) -> wire.MeteredEntitlement | None:
        """Reads the usage of the key back from the sidecar; None if it tells none of this very feature.

        Raises:
            SidecarError: it does not answer, or only a fallback does.
        """
        stigg = self._stigg()
        stigg.reload_entitlements(request_of(wire.ReloadEntitlementsRequest, key))
        request = request_of(wire.GetMeteredEntitlementRequest, key, feature_id=key.feature_id)
        answer = stigg.get_metered_entitlement(request)
        if answer.is_fallback:
            raise SidecarUnavailable("the usage cannot be read back: a fallback answered")
        usage = answer.entitlement
        is_answer = answer.HasField("entitlement") and usage.feature.id == key.feature_id
        return usage if is_answer and is_figure(usage.current_usage) else None

    def _sent(self, batch: Batch, timeout: float | None) -> list[Acknowledged]:
        reports, stigg = batch.reports, self._stigg()
        if reports[0].event is not None:
            events = wire.ReportEventsRequest(events=_written(event_of, reports))
            stigg.report_events(events, timeout=timeout)
            return [Acknowledged(report, None) for report in reports]
        usages = _written(usage_of, reports)
        if len(usages) == 1:
            answers = [stigg.report_usage(usages[0], idempotency_key=batch.id, timeout=timeout)]
        else:
            bulk = wire.ReportUsageBulkRequest(usages=usages)
            answers = list(stigg.report_usage_bulk(bulk, idempotency_key=batch.id, timeout=timeout).usages)
        by_key: dict[tuple[str, str, str], Any] = {}
        for answer in answers:
            ids = answer.customer_id, answer.resource_id, answer.feature_id
            by_key[ids] = None if ids in by_key else answer  # of two answers neither is believed
        return [acknowledged(report, by_key.get(ids_of(report.key))) for report in reports]


def _written(write: Callable[[Entry], T], reports: Sequence[Entry]) -> list[T]:
    try:
        return [write(report) for report in reports]
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidRequest("", f"it cannot be written as a message: {error}") from error

"""Faults on purpose in tests: guards meet them as they would those of a sidecar, and nobody sleeps."""

from __future__ import annotations

from datetime import timedelta

import pytest

from stigg_guard import Config, ConfigError, Guard, SidecarTimeout, SidecarUnavailable
from stigg_guard.testing import override_entitlements
from stigg_guard.wire.sidecar_pb2 import GetBooleanEntitlementRequest, ReportUsageRequest

USAGE = ReportUsageRequest(customer_id="acme", feature_id="feature-seats", value=1)


@pytest.fixture
def guard():
    with Guard(Config(ledger="memory://")) as guard:
        yield guard


def test_checks_fail_until_the_fault_ends(guard):
    with override_entitlements({"feature-sso": True}) as stigg:
        stigg.fault("error=UNAVAILABLE")
        with pytest.raises(SidecarUnavailable, match="a fault on purpose"):
            guard.check("feature-sso", customer="acme")
        stigg.fault()
        stigg.travel(timedelta(seconds=1))  # within half a second nobody asks again
        assert guard.check("feature-sso", customer="acme")


def test_an_answer_later_than_its_deadline_is_a_timeout_at_once(guard):
    with override_entitlements({"feature-sso": True}) as stigg:
        stigg.fault("latency=3600")
        with pytest.raises(SidecarTimeout, match="later than the deadline"):
            guard.check("feature-sso", customer="acme")


def test_a_lost_answer_has_counted_and_its_outcome_is_unknown(guard):
    with override_entitlements({"feature-seats": {"limit": 5}}) as stigg:
        stigg.fault("ReportUsage:drop=1,latency=0.001")
        client = stigg._lookup.stigg
        with pytest.raises(SidecarUnavailable) as lost:
            client.report_usage(USAGE)
        assert lost.value.outcome_unknown
        stigg.fault()
        assert client.report_usage(USAGE).current_usage == 2


def test_faults_of_an_outer_override_go_on_in_an_inner_one_until_it_has_its_own(guard):
    with override_entitlements({"feature-sso": True}) as outer:
        outer.fault("error=INTERNAL")
        with override_entitlements({}) as inner:
            request = GetBooleanEntitlementRequest(customer_id="acme", feature_id="feature-sso")
            client = inner._lookup.stigg
            with pytest.raises(Exception, match="INTERNAL"):
                client.get_boolean_entitlement(request)
            inner.fault()
            assert client.get_boolean_entitlement(request).has_access


def test_what_is_no_fault_is_refused():
    with override_entitlements({}) as stigg, pytest.raises(ConfigError, match="there is no method"):
        stigg.fault("Report:drop=1")

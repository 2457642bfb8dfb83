"""What Stigg's GraphQL API costs in this process: its first import, and reading an answer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from statistics import median
from timeit import Timer

from benchmarks.measure import Comparison, ratio_at_most
from stigg_guard.api import FeatureEntitlement, GetEntitlementsStateResponse

ENTITLEMENTS = 400
RUNS = 5
FEATURE = {
    "__typename": "FeatureEntitlement",
    "isGranted": True,
    "accessDeniedReason": None,
    "usageLimit": 100,
    "hasUnlimitedUsage": False,
    "hasSoftLimit": False,
    "currentUsage": 42,
    "enumValues": [],
    "entitlementUpdatedAt": "2026-01-02T03:04:05.678Z",
    "usageUpdatedAt": "2026-01-02T03:04:05.678Z",
    "usagePeriodAnchor": "2026-01-01T00:00:00.000Z",
    "usagePeriodStart": "2026-01-01T00:00:00.000Z",
    "usagePeriodEnd": "2026-02-01T00:00:00.000Z",
    "resetPeriod": "MONTH",
    "resetPeriodConfiguration": {"__typename": "MonthlyResetPeriodConfig", "monthlyAccordingTo": "StartOfTheMonth"},
    "feature": {"featureType": "NUMBER", "meterType": "Incremental", "displayName": "Calls", "refId": "feature-calls"},
    "validUntil": "2026-02-01T00:00:00.000Z",
}


def answer() -> Iterator[Comparison]:
    """An answer with many entitlements of which a check reads what it decides by, and its JSON alone."""
    every = [FEATURE] * ENTITLEMENTS  # Stigg answers them in two lists
    state = {"entitlements": every, "entitlementsV2": every, "accessDeniedReason": None}
    text = json.dumps({"entitlementsState": state})

    def read() -> None:
        for one in GetEntitlementsStateResponse.from_wire(json.loads(text)).entitlements_state.entitlements_v2:
            assert isinstance(one, FeatureEntitlement)
            _ = one.is_granted, one.usage_limit, one.current_usage, one.has_soft_limit, one.usage_period_end

    print(f"the first use of .api: {_import_cost() * 1e3:.0f} ms of CPU more than requests alone (aim: at most 150)")
    yield Comparison(
        name=f"{ENTITLEMENTS} entitlements of .api / json.loads",
        ours=Timer(read),
        floor=Timer(lambda: json.loads(text)),
        aim=ratio_at_most(2.0),
    )


def _import_cost() -> float:
    """Seconds of CPU that an interpreter takes for it, when it has imported ``requests`` and the package."""
    code = """
import time, requests, stigg_guard
begun = time.process_time()
import stigg_guard.api
print(time.process_time() - begun)
"""
    runs = (subprocess.run([sys.executable, "-c", code], capture_output=True, check=True) for _ in range(RUNS))
    return median(float(run.stdout) for run in runs)

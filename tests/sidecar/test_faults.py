"""Faults on purpose: what they do to answers, and how they are written."""

from __future__ import annotations

import grpc
import pytest

from sidecar.contract import Client, report
from stigg_guard.errors import ConfigError
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.faults import Fault, Faults, Injected, parse_faults
from stigg_guard.sidecar.server import Sidecar


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("", {}),
        ("latency=0.2", {"*": Fault(latency=0.2)}),
        ("*:drop=1", {"*": Fault(drop=1)}),
        ("ReportUsage:error=UNAVAILABLE:0.1", {"ReportUsage": Fault(0, grpc.StatusCode.UNAVAILABLE, 0.1)}),
        ("error=INTERNAL", {"*": Fault(0, grpc.StatusCode.INTERNAL)}),
        (
            "drop=0.5  GetEntitlement:latency=1,error=NOT_FOUND:0,drop=1",
            {"*": Fault(drop=0.5), "GetEntitlement": Fault(1, grpc.StatusCode.NOT_FOUND, 0, 1)},
        ),
    ],
)
def test_faults_are_read(text, faults):
    assert parse_faults(text) == faults


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ReportUsages:drop=1", "there is no method 'ReportUsages'; did you mean 'ReportUsage'?"),
        ("error=UNAVAILABEL", "there is no status 'UNAVAILABEL'; did you mean 'UNAVAILABLE'?"),
        ("error=OK", "there is no status 'OK'"),
        ("drop=2", "with numbers from 0 to 1, not 'drop=2'"),
        ("latency=soon", "with numbers from 0 to 3600"),
        ("latency=nan", "with numbers from 0 to 3600"),
        ("delay=1", "expected METHOD:latency=SECONDS"),
        ("drop", "with numbers from 0 to 1"),
        ("error", "there is no status ''"),
        ("error=:0.5", "there is no status ''"),
        ("drop=0.5,drop=0.7", "each at most once, not 'drop=0.5,drop=0.7'"),
        ("ReportUsage:latency=1 ReportUsage:drop=1", "is a second fault of ReportUsage; write both as one"),
        ("latency=1 *:drop=1", "is a second fault of *"),
    ],
)
def test_what_is_no_fault_is_refused_with_the_remedy(text, said):
    with pytest.raises(ConfigError) as refused:
        parse_faults(text)
    assert said in str(refused.value)


def test_a_part_of_the_calls_fails_and_of_the_rest_a_part_is_lost():
    slept, chances = [], iter([0.05, 0.5, 0.1, 0.5, 0.9])
    fault = parse_faults("latency=3,error=UNAVAILABLE:0.1,drop=0.2")
    done = []
    answer = Faults(fault, slept.append, lambda: next(chances)).wrap("ReportUsage", done.append)
    with pytest.raises(Injected) as refused:
        answer(1)
    assert (refused.value.code(), done) == (grpc.StatusCode.UNAVAILABLE, [])
    with pytest.raises(Injected):
        answer(2)
    answer(3)
    assert (done, slept) == ([2, 3], [3, 3, 3])


def test_a_method_without_a_fault_is_left_as_it_is():
    answer = list.append
    assert Faults(parse_faults("ReportUsage:drop=1")).wrap("GetEntitlement", answer) is answer


def test_a_served_fault_is_a_status_and_a_lost_answer_has_counted(engine: Engine) -> None:
    faults = Faults(parse_faults("ReportUsage:drop=1 GetEntitlements:error=RESOURCE_EXHAUSTED"))
    with Sidecar(engine, faults=faults) as sidecar, grpc.insecure_channel(sidecar.address) as channel:
        client = Client(channel)
        with pytest.raises(grpc.RpcError) as lost:
            client("ReportUsage", **report(1))
        assert lost.value.code() is grpc.StatusCode.UNAVAILABLE
        assert client.templates_used() == 4
        with pytest.raises(grpc.RpcError) as refused:
            client("GetEntitlements", customer_id="customer-demo-01")
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.value.details() == "a fault on purpose; nothing was done"

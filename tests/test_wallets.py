"""Features that a wallet of credits pays for: only the sidecar knows whether an amount fits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from stigg_guard import Config, FeatureDenied, Guard, Reason, SidecarUnavailable
from stigg_guard.wire import METHODS, SERVICE
from stigg_guard.wire import sidecar_pb2 as wire

LIMIT = 10.0
INSUFFICIENT = wire.ACCESS_DENIED_REASON_INSUFFICIENT_CREDITS


class Wallet:
    """A gRPC server whose feature ``f`` costs a credit a unit, out of a wallet of 10. ``asked`` are the amounts that it
    was asked about."""

    def __init__(self, used: float) -> None:
        self.used = used
        self.asked: list[float] = []
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(16))
        answers = {
            "GetEntitlementsStateV2": self._list,
            "GetEntitlementV2": self._check,
            "ReportUsage": self._count,
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                answer,
                request_deserializer=METHODS[name].request.FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
            for name, answer in answers.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait()

    def _answer(self, wanted: float) -> wire.EntitlementV2:
        feature = wire.MeteredEntitlement(feature=wire.EntitlementFeature(id="f"), current_usage=self.used)
        fits = self.used + wanted <= LIMIT and self.used < LIMIT
        return wire.EntitlementV2(has_access=fits, access_denied_reason=None if fits else INSUFFICIENT, metered=feature)

    def _list(self, _request: Any, _context: Any) -> wire.GetEntitlementsStateV2Response:
        return wire.GetEntitlementsStateV2Response(entitlements=[self._answer(0)])

    def _check(self, request: Any, _context: Any) -> wire.GetEntitlementV2Response:
        self.asked.append(request.options.requested_usage)
        return wire.GetEntitlementV2Response(entitlement=self._answer(request.options.requested_usage))

    def _count(self, request: Any, _context: Any) -> wire.ReportUsageResponse:
        with self._lock:
            self.used += request.value
        return wire.ReportUsageResponse(customer_id="c", feature_id="f", current_usage=self.used)


@pytest.fixture
def wallet() -> Iterator[Wallet]:
    server = Wallet(used=4)
    yield server
    server.stop()


@pytest.fixture
def guard(wallet: Wallet) -> Iterator[Guard]:
    with Guard(Config(sidecar=wallet.address, ledger="memory://", timeout=5)) as made:
        yield made


def test_a_check_of_an_amount_asks_with_all_that_is_on_its_way(guard: Guard, wallet: Wallet) -> None:
    assert guard.check("f", customer="c")
    assert wallet.asked == []
    with guard.consume("f", 2, customer="c"):
        assert guard.check("f", customer="c", requested_usage=4)
        denied = guard.check("f", customer="c", requested_usage=5)
    assert (denied.has_access, denied.reason, denied.requested_usage) == (False, Reason.INSUFFICIENT_CREDITS, 5)
    assert wallet.asked == [2, 6, 7]


def test_what_was_held_and_denied_is_given_back(guard: Guard, wallet: Wallet) -> None:
    with pytest.raises(FeatureDenied) as denied:
        guard.consume("f", 7, customer="c").__enter__()
    assert denied.value.entitlement.reason is Reason.INSUFFICIENT_CREDITS
    assert guard.stats()["held"] == 0
    with guard.consume("f", 6, customer="c"):
        pass
    assert guard.flush() == 0
    assert wallet.used == LIMIT


def test_threads_sell_exactly_what_is_left_while_their_work_runs_side_by_side(guard: Guard, wallet: Wallet) -> None:
    together = threading.Barrier(6)  # as many as are sold: they are all at work at once

    def use(_: int) -> int:
        try:
            with guard.consume("f", customer="c"):
                together.wait(20)
            return 1
        except FeatureDenied:
            return 0

    with ThreadPoolExecutor(20) as threads:
        assert sum(threads.map(use, range(20))) == 6
    assert guard.flush() == 0
    assert wallet.used == LIMIT


def test_without_an_answer_the_outage_policy_decides(guard: Guard, wallet: Wallet) -> None:
    assert guard.check("f", customer="c")
    wallet.stop()
    assert guard.check("f", customer="c")
    with pytest.raises(SidecarUnavailable):
        guard.check("f", customer="c", requested_usage=1)
    with pytest.raises(SidecarUnavailable):
        guard.consume("f", customer="c").__enter__()
    assert guard.stats()["held"] == 0

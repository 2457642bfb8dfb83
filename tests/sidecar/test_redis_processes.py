"""Sidecars that share a Redis: many clients, one sidecar killed and restarted, and every unit counted once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import grpc
import pytest

from redis_server import RedisServer
from sidecar.processes import ONE_TEMPLATE, Start, templates_used
from stigg_guard import ApiConfig, LocalSidecarConfig, RedisOptions, Stigg
from stigg_guard.wire import METHODS
from stigg_guard.wire.sidecar_pb2 import ReportUsageRequest

CLIENTS, REPORTS = 64, 10


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path, password="secret") as server:
        yield server


def variables(redis: RedisServer) -> dict[str, str]:
    return {
        "REDIS_ENVIRONMENT_PREFIX": "dev",
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": str(redis.port),
        "REDIS_PASSWORD": "secret",
    }


def test_two_sidecars_count_exactly_while_one_is_killed_and_restarted(start: Start, redis: RedisServer) -> None:
    first, second = start(**variables(redis)), start(**variables(redis))
    method, under_way = METHODS["ReportUsage"], threading.Event()
    acknowledged = count()
    with (
        grpc.insecure_channel(first.address) as one,
        grpc.insecure_channel(second.address) as other,
        ThreadPoolExecutor(CLIENTS) as clients,
    ):
        ask = [
            channel.unary_unary(method.path, ReportUsageRequest.SerializeToString, method.response.FromString)
            for channel in (one, other)
        ]

        def report(client: int) -> None:
            for number in range(REPORTS):
                for attempt in count(client):
                    try:
                        metadata = (("idempotency-key", f"{client}/{number}"),)
                        ask[attempt % 2](ONE_TEMPLATE, timeout=20, metadata=metadata, wait_for_ready=False)
                        break
                    except grpc.RpcError as error:
                        if error.code() is not grpc.StatusCode.UNAVAILABLE:
                            raise
                if next(acknowledged) == CLIENTS:
                    under_way.set()

        reporting = [clients.submit(report, client) for client in range(CLIENTS)]
        assert under_way.wait(60)
        second.process.kill()
        again = start("--port", second.address.rpartition(":")[2], **variables(redis))
        for done in reporting:
            done.result()
    assert templates_used(first.address) == templates_used(again.address) == 3 + CLIENTS * REPORTS


def test_a_child_sidecar_keeps_usage_in_redis(redis: RedisServer) -> None:
    options = RedisOptions(environment_prefix="dev", host="127.0.0.1", port=redis.port, db=0, password="secret")
    for used in (4, 5):
        config = LocalSidecarConfig(redis=options)
        with Stigg(ApiConfig(api_key="key"), local_sidecar_config=config, local_sidecar_port=0) as stigg:
            assert stigg.report_usage(ONE_TEMPLATE).current_usage == used


def test_a_child_sidecar_keeps_usage_in_a_file(tmp_path: Path) -> None:
    for used in (4, 5):
        state = tmp_path / "state.sqlite"
        config = LocalSidecarConfig()
        with Stigg(local_sidecar_config=config, local_sidecar_port=0, local_sidecar_state=state) as stigg:
            assert stigg.report_usage(ONE_TEMPLATE).current_usage == used


def test_without_redis_the_sidecar_starts_answers_and_refuses_reports(start: Start, redis: RedisServer) -> None:
    redis.kill()
    sidecar = start(**variables(redis))
    assert templates_used(sidecar.address) == 3
    with grpc.insecure_channel(sidecar.address) as channel:
        method = METHODS["ReportUsage"]
        ask = channel.unary_unary(method.path, ReportUsageRequest.SerializeToString, method.response.FromString)
        with pytest.raises(grpc.RpcError) as refused:
            ask(ONE_TEMPLATE, timeout=20)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "Redis at 127.0.0.1" in refused.value.details()

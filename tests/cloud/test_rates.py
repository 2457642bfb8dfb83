"""The rate limits: what a stretch of time may have, who shares them, and what happens where they cannot be kept."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from api_server import ApiServer
from conftest import ManualClock, in_child
from redis_server import RedisServer
from stigg_guard import Config
from stigg_guard.api import Api
from stigg_guard.cloud import rates
from stigg_guard.cloud.rates import LIMITS, HostBuckets, Limit, Pace, RateGate, RedisBuckets, gate_of, pace_of, taken
from stigg_guard.errors import ApiRateLimited

SETTINGS = {"SIDECAR": "cloud", "API_KEY": "server-key"}
READ = "GetEntitlementsState"


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), durable=False) as server:
        yield server


@pytest.mark.parametrize("limit", [*LIMITS.values(), Limit(10, 60.0), Limit(1, 60.0)])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.01])
def test_no_stretch_has_more_than_its_share(limit: Limit, share: float) -> None:
    pace = pace_of(limit, share)
    now, full_at, sent = 0.0, 0.0, []
    while now < 3 * limit.seconds:  # asks again as soon as it may
        full_at, wait = taken(full_at, now, pace)
        if wait == 0:
            sent.append(now)
        now += wait
    most = max(
        sum(begin <= other < begin + limit.seconds for other in sent) for begin in sent[:: max(1, len(sent) // 50)]
    )
    assert most <= max(1, limit.requests * share)
    assert most >= 0.9 * limit.requests * share - 1


def test_a_clock_that_began_anew_blocks_nobody() -> None:
    pace = Pace(1.0, 0.0)
    assert taken(1_000_000.0, 5.0, pace) == (6.0, 0.0)
    assert taken(0.0, 5.0, pace) == (6.0, 0.0)


def test_operations_share_a_limit_and_others_have_none(clock: ManualClock) -> None:
    gate = RateGate(HostBuckets("rates.json", clock.monotonic), 1 / 6_000)
    assert gate.admit(READ) == 0
    assert gate.admit("GetEntitlementV2") > 0
    assert gate.admit("ReportUsage") == 0
    assert [gate.admit("GetPaywall") for _ in range(3)] == [0, 0, 0]


def test_after_a_refusal_nothing_is_sent_for_as_long_as_was_said(clock: ManualClock) -> None:
    gate = RateGate(HostBuckets("rates.json", clock.monotonic), 1.0)
    gate.rate_limited(READ, 30.0)
    gate.rate_limited("GetPaywall", 30.0)
    assert gate.admit(READ) == pytest.approx(30.0)
    clock.advance(31)
    assert gate.admit(READ) == 0
    gate.rate_limited(READ, None)
    assert gate.admit(READ) == pytest.approx(rates.RATE_LIMITED_SECONDS)


def shared_in_a_file(_redis: RedisServer, clock: ManualClock) -> RateGate:
    return gate_of(Config.from_mapping({**SETTINGS, "API_SHARE": 2 / 6_000}), clock.clock)


def shared_in_redis(redis: RedisServer, clock: ManualClock) -> RateGate:
    redis.client.flushall()
    return gate_of(Config.from_mapping({**SETTINGS, "API_SHARE": 2 / 6_000, "CACHE": redis.url}), clock.clock)


@pytest.mark.parametrize("make", [shared_in_a_file, shared_in_redis])
def test_processes_share_the_buckets(
    make: Callable[[RedisServer, ManualClock], RateGate], redis: RedisServer, clock: ManualClock
) -> None:
    gate = make(redis, clock)
    assert in_child(lambda: gate.admit(READ) == 0)
    assert gate.admit(READ) > 0
    assert in_child(lambda: gate.admit(READ) > 0)


def test_another_key_has_buckets_of_its_own(clock: ManualClock) -> None:
    def gate(key: str) -> RateGate:
        return gate_of(Config.from_mapping({**SETTINGS, "API_KEY": key, "API_SHARE": 1 / 6_000}), clock.clock)

    assert gate("one").admit(READ) == 0
    assert gate("one").admit(READ) > 0
    assert gate("two").admit(READ) == 0


def test_the_file_does_not_have_the_key(clock: ManualClock, state_folder: Path) -> None:
    gate_of(Config.from_mapping(SETTINGS), clock.clock).admit(READ)
    (file,) = state_folder.iterdir()
    assert "server-key" not in file.name + file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content", ["", "no JSON", "[]", "[" * 5_000, "\0" * 5_000, "x" * 300, '{"entitlements": "much", "other": 5.0}']
)
def test_a_damaged_file_begins_anew(content: str, clock: ManualClock, state_folder: Path) -> None:
    state_folder.mkdir()
    file = state_folder / "rates.json"
    file.write_text(content)
    buckets = HostBuckets("rates.json", clock.monotonic)
    assert buckets.take("entitlements", Pace(1.0, 0.0)) == 0
    assert json.loads(file.read_text()) == {"entitlements": clock.monotonic() + 1}
    assert buckets.take("entitlements", Pace(1.0, 0.0)) == 1.0


def test_what_another_start_of_the_host_left_closes_nothing(
    clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gate_after_start(number: int) -> RateGate:
        boot = tmp_path / f"boot-{number}"
        boot.write_text(f"{number:08}-0000")
        monkeypatch.setattr(rates, "BOOT_ID", str(boot))
        return gate_of(Config.from_mapping(SETTINGS), clock.clock)

    first = gate_after_start(1)
    first.rate_limited(READ, 600.0)
    assert gate_after_start(2).admit(READ) == 0
    assert gate_after_start(1).admit(READ) == pytest.approx(600.0)
    monkeypatch.setattr(rates, "BOOT_ID", str(tmp_path / "none"))
    assert gate_of(Config.from_mapping(SETTINGS), clock.clock).admit(READ) == 0


def test_a_pipe_in_the_place_of_the_file_stops_nobody(clock: ManualClock, state_folder: Path) -> None:
    state_folder.mkdir()
    os.mkfifo(state_folder / "rates.json")
    buckets = HostBuckets("rates.json", clock.monotonic)
    assert [buckets.take("entitlements", Pace(5.0, 0.0)) for _ in range(2)] == [0, 5.0]


def test_where_there_can_be_no_file_a_process_keeps_to_the_limit_alone(
    clock: ManualClock, state_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state_folder.write_text("in the way")
    buckets = HostBuckets("rates.json", clock.monotonic)
    with caplog.at_level(logging.WARNING):
        assert [buckets.take("entitlements", Pace(5.0, 0.0)) for _ in range(2)] == [0, 5.0]
    assert len(caplog.messages) == 1
    assert "each process alone" in caplog.messages[0]


def test_on_a_full_disk_a_process_keeps_to_the_limit_alone(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    buckets = HostBuckets("rates.json", clock.monotonic)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        assert [buckets.take("entitlements", Pace(5.0, 0.0)) for _ in range(2)] == [0, 5.0]
    assert buckets.take("entitlements", Pace(5.0, 0.0)) == 5.0


def test_who_holds_the_file_for_ever_blocks_nobody(clock: ManualClock, state_folder: Path) -> None:
    buckets = HostBuckets("rates.json", clock.monotonic)
    buckets.take("entitlements", Pace(5.0, 0.0))
    holder = os.open(state_folder / "rates.json", os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    assert buckets.take("entitlements", Pace(5.0, 0.0)) == 0  # of its own
    os.close(holder)
    assert buckets.take("entitlements", Pace(5.0, 0.0)) == 5.0


def test_a_refusal_is_known_to_all_in_redis(redis: RedisServer, clock: ManualClock) -> None:
    redis.client.flushall()
    config = Config.from_mapping({**SETTINGS, "CACHE": redis.url})
    gate_of(config, clock.clock).rate_limited(READ, 600.0)
    assert gate_of(config, clock.clock).admit(READ) == pytest.approx(600, abs=5)


@pytest.mark.parametrize("closed", [False, True])
def test_a_server_whose_clock_was_set_back_closes_nothing(closed: bool, redis: RedisServer, clock: ManualClock) -> None:
    redis.client.flushall()

    def host(name: str) -> RedisBuckets:
        return RedisBuckets(redis.url, "p", clock.monotonic, HostBuckets(name, clock.monotonic))

    pace = Pace(1.0, 5.0)
    host("first").take("entitlements", pace)
    if closed:
        host("first").close_for("entitlements", pace, 600.0)
        assert host("second").take("entitlements", pace) == pytest.approx(600, abs=5)
        redis.client.hincrby("p:entitlements", "closed_until", 1_800_000_000)
    redis.client.hincrby("p:entitlements", "full_at", 1_800_000_000)  # as if it had been half an hour ahead
    assert host("third").take("entitlements", pace) == 0


def test_a_redis_that_dies_or_forgets_gives_a_host_no_more_than_its_limit(
    tmp_path: Path, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    pace = Pace(5.0, 0.0)
    with RedisServer(tmp_path, durable=False) as server:
        buckets = RedisBuckets(server.url, "p", clock.monotonic, HostBuckets("rates.json", clock.monotonic))
        assert buckets.take("entitlements", pace) == 0
        server.client.flushall()
        assert buckets.take("entitlements", pace) == 5.0
        buckets.close_for("entitlements", pace, 7.0)
        server.kill()
        assert buckets.take("entitlements", pace) == 7.0
        clock.advance(7)
        with caplog.at_level(logging.WARNING):
            assert [buckets.take("entitlements", pace) for _ in range(2)] == [0, 5.0]
            buckets.close_for("entitlements", pace, 60.0)
        assert len(caplog.messages) == 1
        clock.advance(rates.REST_SECONDS + 1)
        assert buckets.take("entitlements", pace) == 58.0


def test_hosts_share_the_limit_in_redis(redis: RedisServer, clock: ManualClock) -> None:
    redis.client.flushall()
    pace = Pace(600.0, 0.0)
    one, other = (RedisBuckets(redis.url, "p", clock.monotonic, HostBuckets(name, clock.monotonic)) for name in "ab")
    assert one.take("entitlements", pace) == 0
    assert other.take("entitlements", pace) == pytest.approx(600, abs=5)


def test_an_exception_from_outside_leaves_no_answer_behind(
    redis: RedisServer, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis.client.flushall()
    buckets = RedisBuckets(redis.url, "p", clock.monotonic, HostBuckets("rates.json", clock.monotonic))
    assert buckets.take("entitlements", Pace(600.0, 0.0)) == 0
    (client,) = buckets._clients.values()
    with monkeypatch.context() as patched:

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        patched.setattr(client, "parse_response", interrupted)
        with pytest.raises(KeyboardInterrupt):
            buckets.take("report-usage", Pace(600.0, 0.0))
    assert buckets.take("entitlements", Pace(600.0, 0.0)) == pytest.approx(600, abs=5)


class Closed:
    """A gate that lets nothing through, and remembers what it is told."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.told: list[tuple[str, float | None]] = []

    def admit(self, _operation: str) -> float:
        return self.seconds

    def rate_limited(self, operation: str, seconds: float | None) -> None:
        self.told.append((operation, seconds))
        self.seconds = 600.0


@pytest.fixture
def server() -> Iterator[ApiServer]:
    server = ApiServer()
    yield server
    server.stop()


def test_a_question_that_is_held_back_fails_at_once(server: ApiServer) -> None:
    with Api("key", server.url, gate=Closed(0.001)) as api, pytest.raises(ApiRateLimited, match="our share") as held:
        api.get_entitlements_state({"customerId": "c"})
    assert held.value.retry_after == 0.001
    assert server.received == []


def test_a_change_that_is_held_back_waits_for_its_turn(server: ApiServer) -> None:
    gate = Closed(0.001)

    def opens(_operation: str) -> float:
        seconds, gate.seconds = gate.seconds, 0.0
        return seconds

    gate.admit = opens  # type: ignore[method-assign] # and notes it
    with Api("key", server.url, gate=gate) as api:
        api.report_usage({"customerId": "c", "featureId": "f", "value": 1})
    assert len(server.received) == 1


def test_a_change_that_never_has_its_turn_did_not_happen(server: ApiServer) -> None:
    with Api("key", server.url, gate=Closed(600.0)) as api, pytest.raises(ApiRateLimited) as held:
        api.report_usage({"customerId": "c", "featureId": "f", "value": 1})
    assert not held.value.outcome_unknown


def test_the_gate_hears_of_a_429(server: ApiServer) -> None:
    gate = Closed(0.0)
    server.faults.append(lambda handler: handler.send(429, b"{}", Retry_After="7"))
    with Api("key", server.url, gate=gate) as api, pytest.raises(ApiRateLimited):
        api.get_entitlements_state({"customerId": "c"}, timeout=20)
    assert gate.told == [(READ, 7.0)]
    assert len(server.received) == 1

"""A guard straight on the API: its cache, holds and reports, and what it does within the rate limits."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from api_server import ApiServer
from conftest import ManualClock, in_child
from redis_server import RedisServer
from stigg_guard import Config, ConfigError, Customer, FeatureDenied, Guard, SidecarUnavailable
from stigg_guard.entitlements import Source
from stigg_guard.errors import SidecarUnauthenticated
from stigg_guard.sidecar.server import Sidecar

FREE = "customer-demo-03"
TEMPLATES, CALLS = "feature-templates", "feature-api-calls"


@pytest.fixture
def make(sidecar: Sidecar, clock: ManualClock) -> Iterator[Callable[..., Guard]]:
    made: list[Guard] = []

    def make(**settings: object) -> Guard:
        on_cloud = {"SIDECAR": "cloud", "API_KEY": "any", "API_URL": f"http://{sidecar.http_address}", "TIMEOUT": 20}
        config = Config.from_mapping({**on_cloud, "LEDGER": "memory://", **settings})
        made.append(Guard(config, clock=clock.clock))
        return made[-1]

    yield make
    for guard in made:
        guard.close()


def test_a_missing_key_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="API_KEY: SIDECAR is 'cloud', so set the server key"):
        Config.from_mapping({"SIDECAR": "cloud"})


@pytest.mark.parametrize("share", [0, -1, 1.1, "much", True])
def test_a_share_is_a_part(share: object) -> None:
    with pytest.raises(ConfigError, match="API_SHARE"):
        Config.from_mapping({"API_SHARE": share})


def test_the_key_shows_nowhere() -> None:
    config = Config(sidecar="cloud", api_key="server-secret", api_url="http://127.0.0.1:9")
    with Guard(config) as guard, pytest.raises(SidecarUnavailable) as failed:
        guard.check("f", customer="c")
    assert "server-secret" not in repr(config) + repr(guard.stigg) + str(failed.value)


def test_checks_holds_and_reports_need_no_container(make: Callable[..., Guard], sidecar: Sidecar) -> None:
    guard = make()
    assert guard.check(TEMPLATES, customer=FREE).remaining == 1
    with guard.consume(TEMPLATES, 1, customer=FREE):
        pass
    with pytest.raises(FeatureDenied), guard.consume(TEMPLATES, 1, customer=FREE):
        pass
    assert guard.flush(20) == 0
    assert guard.reload(FREE)
    assert guard.check(TEMPLATES, customer=FREE).current_usage == 2
    assert not guard.reload("nobody")
    assert guard.check("feature-exports", customer=Customer("customer-demo-01", "site-01"))


def test_what_is_changed_through_api_shows_at_once(make: Callable[..., Guard]) -> None:
    guard = make()
    assert guard.check(TEMPLATES, customer=FREE).usage_limit == 2
    guard.api.provision_subscription({"customerId": FREE, "planId": "growth"})
    assert guard.check(TEMPLATES, customer=FREE).usage_limit == 50


def test_a_forked_process_asks_by_itself(make: Callable[..., Guard]) -> None:
    guard = make()
    assert guard.check(TEMPLATES, customer=FREE)
    assert in_child(lambda: guard.check(TEMPLATES, customer="customer-demo-02").usage_limit == 50)
    assert guard.check(TEMPLATES, customer="customer-demo-01")


GREENLETS = """
from gevent import monkey; monkey.patch_all()
import sys, gevent
from stigg_guard import Config, Guard
guard = Guard(Config(sidecar="cloud", api_key="any", api_url=sys.argv[1], ledger="memory://", timeout=20))
jobs = [gevent.spawn(guard.check, "feature-templates", customer=f"customer-demo-0{1 + n % 3}") for n in range(30)]
gevent.joinall(jobs, raise_error=True)
with guard.consume("feature-templates", 1, customer="customer-demo-03"):
    pass
assert guard.flush(20) == 0
print(sum(bool(job.value) for job in jobs))
"""


def test_greenlets_share_a_guard(sidecar: Sidecar) -> None:
    command = [sys.executable, "-c", GREENLETS, f"http://{sidecar.http_address}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "30\n"


def test_beyond_the_limit_what_is_known_answers(make: Callable[..., Guard], clock: ManualClock) -> None:
    guard = make(API_SHARE=1 / 6_000)
    assert guard.check(TEMPLATES, customer=FREE).source is Source.SIDECAR
    with pytest.raises(SidecarUnavailable, match="our share of it, is used up"):
        guard.check(TEMPLATES, customer="customer-demo-02")
    clock.advance(31)
    assert guard.check(TEMPLATES, customer=FREE).source is Source.STALE
    clock.advance(60)
    assert guard.check(TEMPLATES, customer=FREE).source is Source.SIDECAR


def test_snapshots_of_one_moment_are_not_all_fetched_again_in_one(make: Callable[..., Guard]) -> None:
    guard = make()
    for number in range(1, 7):
        guard.entitlements(f"customer-demo-0{number}")
    ends = [snapshot.fresh_until - snapshot.fetched_at for snapshot in guard._snapshots.values()]
    assert len(set(ends)) == 6
    assert all(27 <= end <= 30 for end in ends)


def test_who_fails_is_asked_once_more_at_once_and_the_rest_is_left_to_the_cache_and_the_ledger(
    clock: ManualClock,
) -> None:
    server = ApiServer()
    server.faults += [lambda handler: handler.send(500, b"{}")] * 8
    config = {"SIDECAR": "cloud", "API_KEY": "k", "API_URL": server.url, "LEDGER": "memory://", "REPORT": "inline"}
    with Guard(Config.from_mapping({**config, "TIMEOUT": 20}), clock=clock.clock) as guard:
        with pytest.raises(SidecarUnavailable, match="fails with status 500"):
            guard.check("f", customer="c")
        assert len(server.received) == 2
        guard.report("f", 1, customer="c")
        assert [each.payload["operationName"] for each in server.received[2:4]] == ["ReportUsage"] * 2
        server.faults.clear()
    server.stop()


def test_a_wrong_key_is_said_and_known_data_goes_on(clock: ManualClock) -> None:
    server = ApiServer()
    config = Config(sidecar="cloud", api_key="server-secret", api_url=server.url, ledger="memory://")
    server.faults.append(lambda handler: handler.send(401, b"{}"))
    with Guard(config, clock=clock.clock) as guard, pytest.raises(SidecarUnauthenticated, match="set API_KEY"):
        guard.check("f", customer="c")
    server.stop()


def test_processes_that_share_redis_read_once_and_keep_to_what_was_told(tmp_path: Path, clock: ManualClock) -> None:
    server = ApiServer()
    until = clock.now().timestamp() + 5
    feature = {"refId": "f", "featureType": "BOOLEAN"}
    told = {"__typename": "FeatureEntitlement", "isGranted": True, "accessDeniedReason": None, "feature": feature}
    state = {"accessDeniedReason": None, "entitlementsV2": [{**told, "validUntil": str(until)}]}
    server.resolvers["entitlementsState"] = lambda **_: state
    with RedisServer(tmp_path, durable=False) as redis:
        config = Config(
            sidecar="cloud", api_key="key", api_url=server.url, cache=redis.url, ledger=redis.url, timeout=20
        )
        with Guard(config, clock=clock.clock) as one, Guard(config, clock=clock.clock) as other:
            assert one.check("f", customer="c")
            assert other.check("f", customer="c")
            assert len(server.received) == 1
            clock.advance(6)
            assert other.check("f", customer="c")
            assert len(server.received) == 2
    server.stop()

"""Holds that are taken in one process and ended in another: once, and whoever is killed on the way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from itsdangerous import URLSafeSerializer

from conftest import ManualClock, full_disk, in_child
from stigg_guard import Config, ConfigError, FeatureDenied, Guard, InvalidRequest, LedgerUnavailable
from usage.outage import MakeGuard, Outage, WatchedEngine

SECRET = "a secret of the tests"


@pytest.fixture
def guard(make_guard: MakeGuard) -> Guard:
    return make_guard(TOKEN_SECRET=SECRET)


@pytest.fixture
def worker(make_guard: MakeGuard) -> Guard:
    """That of another process."""
    return make_guard(TOKEN_SECRET=SECRET)


def test_is_ended_by_another_process(guard: Guard, worker: Guard, engine: WatchedEngine) -> None:
    hold = guard.hold("seats", 9, customer="c", ttl=600)
    assert (hold.amount, hold.entitlement.feature_id) == (9, "seats")
    with pytest.raises(FeatureDenied), worker.consume("seats", 2, customer="c"):
        pytest.fail("oversold")
    with worker.resume(hold.token) as usage:
        assert usage.amount == 9
        usage.amount = 4
    assert worker.flush() == 0
    assert engine.used("seats") == 4
    assert guard.stats()["held"] == 0


def test_of_a_failure_comes_back(guard: Guard, worker: Guard, engine: WatchedEngine) -> None:
    hold = guard.hold({"seats": 10, "calls": 5}, customer="c", ttl=600)
    with pytest.raises(ZeroDivisionError), worker.resume(hold.token):
        _ = 1 / 0
    with guard.consume({"seats": 10, "calls": 5}, customer="c"):
        pass
    assert guard.flush() == 0
    assert (engine.used("seats"), engine.used("calls")) == (10, 5)


def test_counts_once_however_often_it_is_resumed(guard: Guard, worker: Guard, engine: WatchedEngine) -> None:
    token = guard.hold("seats", 3, customer="c", ttl=600).token
    first, second = worker.resume(token).begin(), guard.resume(token).begin()
    second.end(succeeded=True)
    first.end(succeeded=True)
    with worker.resume(token):
        pass
    worker.resume(token).begin().cancel()
    assert guard.flush() == worker.flush() == 0
    assert engine.used("seats") == 3


def test_is_entered_once(guard: Guard) -> None:
    usage = guard.resume(guard.hold("seats", customer="c", ttl=600).token)
    with usage, pytest.raises(InvalidRequest, match="entered once"):
        usage.begin()


def test_outlives_the_process_that_took_it(guard: Guard, worker: Guard, engine: WatchedEngine, tmp_path: Path) -> None:
    token = tmp_path / "token"

    def take() -> bool:
        token.write_text(guard.hold("seats", 10, customer="c", ttl=600).token)
        return True

    assert in_child(take)
    with pytest.raises(FeatureDenied), worker.consume("seats", customer="c"):
        pytest.fail("oversold")
    with worker.resume(token.read_text()):
        pass
    assert worker.flush() == 0
    assert engine.used("seats") == 10


def test_comes_back_after_its_time(guard: Guard, worker: Guard, clock: ManualClock) -> None:
    guard.hold("seats", 10, customer="c", ttl=600)
    clock.advance(599)
    with pytest.raises(FeatureDenied), worker.consume("seats", customer="c"):
        pytest.fail("oversold")
    clock.advance(2)
    with worker.consume("seats", 10, customer="c"):
        pass


def test_lasts_longer_when_it_is_extended(guard: Guard, worker: Guard, clock: ManualClock) -> None:
    usage = worker.resume(guard.hold("seats", 10, customer="c", ttl=600).token)
    with usage:
        usage.extend(3600)
        clock.advance(3599)
        with pytest.raises(FeatureDenied), guard.consume("seats", customer="c"):
            pytest.fail("oversold")
    usage.extend(1)  # it has ended, and nothing lasts
    assert guard.stats()["held"] == 0


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_lasts_for_more_than_no_time(guard: Guard, seconds: float) -> None:
    with pytest.raises(InvalidRequest, match="lasts for more than 0 seconds"):
        guard.hold("seats", customer="c", ttl=seconds)
    with pytest.raises(InvalidRequest, match="lasts for more than 0 seconds"):
        guard.resume(guard.hold("seats", customer="c", ttl=1).token).extend(seconds)


def test_that_ends_late_is_reported_and_counted_as_late(
    guard: Guard, worker: Guard, engine: WatchedEngine, clock: ManualClock
) -> None:
    token = guard.hold("seats", 6, customer="c", ttl=60).token
    clock.advance(61)
    with guard.consume("seats", 6, customer="c"):
        pass
    with worker.resume(token):
        pass
    assert guard.flush() == worker.flush() == 0
    assert engine.used("seats") == 12
    assert guard.stats()["late"] == 1


def test_that_ended_long_ago_is_refused_and_not_lost_in_silence(guard: Guard, clock: ManualClock) -> None:
    token = guard.hold("seats", customer="c", ttl=60).token
    clock.advance(60 + 24 * 3600 + 1)
    with pytest.raises(InvalidRequest, match="ended more than a day ago"):
        guard.resume(token)


@pytest.mark.parametrize(
    "token",
    ["", "x", "a.b.c", None, URLSafeSerializer("another secret", salt="stigg_guard.hold").dumps(["id", 9e9, []])],
)
def test_a_forged_or_foreign_token_is_refused(guard: Guard, token: str) -> None:
    with pytest.raises(InvalidRequest, match="TOKEN_SECRET"):
        guard.resume(token)


def test_a_token_with_another_amount_is_refused(guard: Guard) -> None:
    token = guard.hold("seats", 1, customer="c", ttl=60).token
    body, _, signature = token.rpartition(".")
    forged = "A" + body[1:] + "." + signature
    with pytest.raises(InvalidRequest, match="TOKEN_SECRET"):
        guard.resume(forged)


def test_needs_a_secret(make_guard: MakeGuard) -> None:
    guard = make_guard()
    with pytest.raises(ConfigError, match="TOKEN_SECRET"):
        guard.hold("seats", customer="c", ttl=60)
    with pytest.raises(ConfigError, match="TOKEN_SECRET"):
        guard.resume("x")


def test_says_neither_token_nor_secret(guard: Guard) -> None:
    hold = guard.hold("seats", customer="c", ttl=60)
    assert hold.token not in repr(hold)
    assert SECRET not in repr(guard.config)
    assert re.fullmatch(r"[\w.-]+", hold.token)


def test_is_denied_like_any_use(guard: Guard) -> None:
    with pytest.raises(FeatureDenied):
        guard.hold("seats", 11, customer="c", ttl=60)


def test_needs_the_ledger(make_guard: MakeGuard, ledger: Path) -> None:
    guard = make_guard(TOKEN_SECRET=SECRET, ON_OUTAGE="allow")
    with guard.consume("seats", customer="c"):
        pass
    assert guard.flush() == 0
    with full_disk(ledger), pytest.raises(LedgerUnavailable, match="travels"):
        guard.hold("seats", customer="c", ttl=60)


def test_where_nothing_is_counted_the_work_runs(make_guard: MakeGuard) -> None:
    guard = make_guard(TOKEN_SECRET=SECRET, ENABLED=False)
    with guard.resume(guard.hold("seats", 10**6, customer="c", ttl=60).token) as usage:
        assert usage.amount == 10**6


def test_what_cannot_be_ended_now_is_ended_once_the_ledger_is_back(
    guard: Guard, worker: Guard, engine: WatchedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = guard.hold("seats", 3, customer="c", ttl=600).token
    commit, failures = worker.ledger.commit, iter([True])

    def once(*args: object, **named: object) -> object:
        if next(failures, False):
            raise LedgerUnavailable("on purpose")
        return commit(*args, **named)  # type: ignore[arg-type] # as given

    monkeypatch.setattr(worker.ledger, "commit", once)
    with worker.resume(token):
        pass
    with guard.resume(token):
        pass
    assert worker.flush() == guard.flush() == 0
    assert engine.used("seats") == 3


@pytest.fixture
def redis_guards(outage: Outage, clock: ManualClock, tmp_path: Path) -> Iterator[list[Guard]]:
    from redis_server import RedisServer

    folder = tmp_path / "redis"
    folder.mkdir()
    with RedisServer(folder, durable=False) as server:
        given = {**outage.settings, "LEDGER": server.url, "TIMEOUT": 10, "TOKEN_SECRET": SECRET}
        made = [Guard(Config.from_mapping(given), clock=clock.clock) for _ in range(2)]
        yield made
        for guard in made:
            guard.close()


def test_counts_once_between_hosts(redis_guards: list[Guard], engine: WatchedEngine) -> None:
    web, worker = redis_guards
    token = web.hold("seats", 3, customer="c", ttl=600).token
    usages = [guard.resume(token).begin() for guard in (web, worker, worker)]
    for usage in usages:
        usage.end(succeeded=True)
    assert web.flush() == worker.flush() == 0
    assert engine.used("seats") == 3

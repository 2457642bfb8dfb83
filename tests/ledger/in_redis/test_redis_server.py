"""The server of a Redis ledger: it stops, comes back and forgets; and the connections to it."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from conftest import ManualClock
from redis_ledgers import (
    KEY,
    LEASE,
    OTHER,
    claim,
    drain,
    drain_until,
    drained,
    held,
    persisting,
    sums,
    taken,
)
from redis_server import RedisServer
from stigg_guard import Config, Guard
from stigg_guard.clock import Clock
from stigg_guard.errors import ConfigError, LedgerUnavailable
from stigg_guard.ledger import Entry, LimitExceeded, UsageKey, Use
from stigg_guard.ledger.redis import RedisLedger
from stigg_guard.sidecar.server import Sidecar

Make = Callable[[str], RedisLedger]


class TestServer:
    def test_that_crashed_comes_back_with_everything(self, make_ledger: Make, own_server: RedisServer) -> None:
        ledger = make_ledger(own_server.url)
        hold = held(ledger, claim(amount=2))
        ledger.commit(held(ledger, claim(amount=3)), [Use(KEY, 3)])
        own_server.restart()
        assert ledger.hold([claim(amount=6)], 60) == LimitExceeded(claim(amount=6), 5, 10)
        assert ledger.commit(hold, [Use(KEY, 2)]) == [5]

    def test_that_crashed_comes_back_with_the_batch_under_way(
        self, own_server: RedisServer, clock: ManualClock
    ) -> None:
        ledger = RedisLedger(own_server.url, clock.clock)
        ledger.record(Use(KEY, 1))
        ledger.record(Use(OTHER, 2))
        batch = taken(ledger)
        own_server.restart()
        assert ledger.take_batch(100, LEASE) is None
        clock.advance(LEASE)
        again = taken(ledger)
        ledger.close()
        assert again.id == batch.id
        assert [report.id for report in again.reports] == [report.id for report in batch.reports]

    def test_that_crashes_under_load_loses_and_doubles_nothing(
        self, own_server: RedisServer, clock: ManualClock
    ) -> None:
        ledger = RedisLedger(own_server.url, clock.clock)
        enough = threading.Event()
        arrived: dict[str, Entry] = {}

        def work(key: UsageKey) -> int:
            for done in count():
                if enough.is_set():
                    return done
                hold = persisting(lambda: held(ledger, claim(key, limit=None)))
                persisting(lambda hold=hold: ledger.commit(hold, [Use(key, 1)]))
            return 0

        with ThreadPoolExecutor(3) as pool:
            working = {key: pool.submit(work, key) for key in (KEY, OTHER)}
            pool.submit(drain_until, enough.is_set, ledger, arrived)
            for _ in range(3):
                own_server.restart()
            enough.set()
        clock.advance(LEASE)
        drain(ledger, arrived)
        ledger.close()
        assert sums(arrived) == {key: one.result() for key, one in working.items()}

    def test_that_is_away_is_told_of_and_used_again_when_it_is_back(
        self, make_ledger: Make, own_server: RedisServer
    ) -> None:
        ledger = make_ledger(own_server.url)
        ledger.record(Use(KEY, 1))
        own_server.kill()
        with pytest.raises(LedgerUnavailable, match=rf"Redis ledger at 127.0.0.1:{own_server.port} cannot be used"):
            ledger.record(Use(KEY, 1))
        own_server.start()
        assert ledger.record(Use(KEY, 2)) == 3

    def test_that_never_answers_is_told_of(self, make_ledger: Make) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            ledger = make_ledger(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
            with pytest.raises(LedgerUnavailable, match="Timeout"):
                ledger.hold([claim()], 60)

    def test_that_refuses_to_write_is_told_of(self, ledger: RedisLedger, server: RedisServer) -> None:
        ledger.counts()
        server.client.config_set("maxmemory", "1")
        try:
            with pytest.raises(LedgerUnavailable, match="maxmemory"):
                ledger.hold([claim()], 60)
        finally:
            server.client.config_set("maxmemory", "0")
        assert ledger.counts()["held"] == 0

    def test_that_is_a_read_only_replica_is_told_of(self, make_ledger: Make, own_server: RedisServer) -> None:
        ledger = make_ledger(own_server.url)
        own_server.client.replicaof("127.0.0.1", 1)
        with pytest.raises(LedgerUnavailable, match="read only replica"):
            ledger.record(Use(KEY, 1))

    def test_that_forgot_the_script_is_given_it_again(self, ledger: RedisLedger, server: RedisServer) -> None:
        hold = held(ledger)
        server.client.script_flush()
        assert ledger.commit(hold, [Use(KEY, 1)]) == [1]
        server.client.script_flush()
        assert drained(ledger) == {KEY: 1}

    def test_that_lost_a_hold_takes_its_commit_as_late(self, ledger: RedisLedger, server: RedisServer) -> None:
        hold = held(ledger)
        server.client.flushall()
        assert ledger.commit(hold, [Use(KEY, 1)]) == [1]
        assert ledger.counts()["late"] == 1

    @pytest.mark.parametrize(("saves", "warnings"), [("", 1), ("60 1", 0)])
    def test_that_keeps_nothing_is_warned_of_once(
        self, make_ledger: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, saves: str, warnings: int
    ) -> None:
        with RedisServer(tmp_path, durable=False) as server, caplog.at_level(logging.WARNING, "stigg_guard"):
            server.client.config_set("save", saves)
            ledger = make_ledger(server.url)
            ledger.ticket("ann")
            ledger.ticket("ann")
        assert [record.getMessage().count("writes nothing to disk") for record in caplog.records] == [1] * warnings

    def test_that_does_not_tell_what_it_keeps_is_not_warned_of(
        self, make_ledger: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        with RedisServer(tmp_path, durable=False) as server:
            server.client.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-config")
            make_ledger(server.url.replace(":@", "app:pw@")).ticket("ann")
        assert not caplog.records


class TestUrl:
    def test_that_names_no_redis_is_refused_without_its_password(self) -> None:
        with pytest.raises(ConfigError, match="LEDGER: expected redis://") as refused:
            RedisLedger("redis://:s3/cret@localhost:6379/0", Clock())
        assert "s3" not in str(refused.value)
        assert refused.value.__cause__ is None

    def test_password_shows_in_no_error(self, make_ledger: Make, tmp_path: Path) -> None:
        with RedisServer(tmp_path, password="s3cret") as server:
            make_ledger(server.url).ticket("ann")
            wrong = make_ledger(server.url.replace("s3cret", "s4cret"))
            with pytest.raises(LedgerUnavailable) as refused:
                wrong.ticket("ann")
        assert "s4cret" not in f"{refused.value!r} {refused.value.__cause__!r}"

    def test_number_of_the_database_keeps_ledgers_apart(self, make_ledger: Make, server: RedisServer) -> None:
        make_ledger(server.url).record(Use(KEY, 1))
        assert make_ledger(server.url[:-1] + "1").counts()["unsent"] == 0

    def test_is_not_connected_to_before_the_first_use(self, make_ledger: Make) -> None:
        make_ledger("rediss://nowhere.invalid:6379/0").close()

    def test_without_redis_py_says_what_to_install(self) -> None:
        program = "import sys; sys.modules['redis'] = None; import stigg_guard.ledger.redis"
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert "A Redis ledger needs an extra that is not installed: pip install 'stigg-guard[redis]'" in ended.stderr


class TestGuard:
    def test_counts_a_commit_once_of_which_nobody_knows_whether_it_was_made(
        self, sidecar: Sidecar, own_server: RedisServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        with Guard(Config(sidecar=sidecar.address, ledger=own_server.url)) as guard:
            with guard.consume("feature-templates", 2, customer="customer-demo-01"):
                own_server.pause()
            assert guard.check("feature-templates", customer="customer-demo-01")
            assert "is asked again until it does" in caplog.text
            own_server.resume()
            assert guard.flush(timeout=30) == 0
            assert guard.reload("customer-demo-01")
            assert guard.check("feature-templates", customer="customer-demo-01").current_usage == 5
            assert guard.stats()["stranded"] == 0

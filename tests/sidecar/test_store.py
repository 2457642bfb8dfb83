"""Where usage is kept: what a transaction promises, what a file remembers, which files are refused."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from stigg_guard.errors import ConfigError
from stigg_guard.sidecar.state import ANSWERS_KEPT, CounterKey, EventKey, StateUnavailable, StoredResponse
from stigg_guard.sidecar.store import Store

KEY = CounterKey("customer", "", "feature", "")
EVENT = EventKey("1.0", "customer", "", "login", "key")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.sqlite"


def test_usage_of_nothing_is_zero():
    store = Store(None)
    assert store.usage(KEY) == 0
    store.close()


def test_transaction_reads_what_it_wrote_before_others_do():
    store = Store(None)
    with store.transaction() as transaction:
        transaction.set_usage(KEY, 3)
        assert transaction.usage(KEY) == 3
        assert store.usage(KEY) == 0
    assert store.usage(KEY) == 3
    store.close()


def test_failed_transaction_leaves_nothing(path):
    store = Store(path)
    with pytest.raises(ZeroDivisionError), store.transaction() as transaction:  # noqa: PT012 - the failing block is what is tested
        transaction.set_usage(KEY, 3)
        transaction.is_new_event(EVENT)
        raise ZeroDivisionError
    assert store.usage(KEY) == 0
    with store.transaction() as transaction:
        assert transaction.is_new_event(EVENT)
    store.close()
    assert reopened_usage(path) == 0


def test_file_remembers_usage_plans_events_and_values(path):
    store = Store(path)
    with store.transaction() as transaction:
        transaction.set_usage(KEY, 3.5)
        assert transaction.is_new_event(EVENT)
        assert transaction.is_new_value(KEY, "'user-01'")
    with store.transaction() as transaction:
        transaction.assign_plan("customer", "", "growth")
        transaction.assign_plan("customer", "site", None)
    store.close()
    again = Store(path)
    assert again.usage(KEY) == 3.5
    assert again.plan("customer", "", "free") == "growth"
    assert again.plan("customer", "site", "free") is None
    assert again.plan("other", "", "free") == "free"
    with again.transaction() as transaction:
        assert not transaction.is_new_event(EVENT)
        assert not transaction.is_new_value(KEY, "'user-01'")
    again.close()


def test_seed_touches_only_what_was_never_written(path):
    other = KEY._replace(feature="other")
    later = KEY._replace(period="month 2")
    store = Store(path)
    store.seed({KEY: 3})
    with store.transaction() as transaction:
        transaction.set_usage(KEY, 5)
    store.close()
    again = Store(path)
    again.seed({KEY: 3, later: 3, other: 1})
    assert (again.usage(KEY), again.usage(later), again.usage(other)) == (5, 0, 1)
    again.close()


def test_answer_is_kept_for_a_day():
    store = Store(None)
    answer = StoredResponse(b"digest", b"response")
    with store.transaction() as transaction:
        transaction.remember("key", answer, now=1000.0)
        assert transaction.answer("key", now=1000.0 + ANSWERS_KEPT - 1) == answer
        assert transaction.answer("key", now=1000.0 + ANSWERS_KEPT) is None
        transaction.remember("key", answer, now=1000.0 + ANSWERS_KEPT)
    store.close()


def test_closing_twice_does_nothing():
    store = Store(None)
    store.close()
    store.close()


def test_store_that_is_dropped_closes_its_file(path):
    Store(path)
    assert reopened_usage(path) == 0


def test_committed_usage_survives_a_kill(path):
    program = (
        "import sys; from stigg_guard.sidecar.store import Store, CounterKey\n"
        "store = Store(sys.argv[1])\n"
        "with store.transaction() as transaction:\n"
        "    transaction.set_usage(CounterKey('customer', '', 'feature', ''), 7)\n"
        "print('committed', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "committed\n"
        os.kill(process.pid, signal.SIGKILL)
    assert reopened_usage(path) == 7


def test_file_that_cannot_be_written_refuses_the_step_and_takes_the_next(path):
    store = Store(path)
    store._connection.execute("PRAGMA query_only = 1")  # as a disk that is full
    with pytest.raises(StateUnavailable, match=r"state\.sqlite: .*readonly"), store.transaction() as transaction:
        transaction.set_usage(KEY, 3)
    assert store.usage(KEY) == 0
    store._connection.execute("PRAGMA query_only = 0")
    with store.transaction() as transaction:
        transaction.set_usage(KEY, 4)
    store.close()
    assert reopened_usage(path) == 4


def test_file_in_use_is_refused(path):
    store = Store(path)
    with pytest.raises(ConfigError, match=r"locked; end the other sidecar"):
        Store(path)
    store.close()


def test_file_of_a_newer_version_is_refused(path):
    Store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ConfigError, match=r"newer stigg-guard \(schema 99"):
        Store(path)


@pytest.mark.parametrize("version", [1, 2])
def test_file_of_an_older_version_gets_what_it_lacks(path, version):
    Store(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE credit_events")
        if version < 2:
            connection.execute("DROP TABLE records")
        connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    for _ in range(2):
        store = Store(path)
        assert (store.credit_events("c"), store.records("k")) == ([], {})
        store.close()


def test_database_of_another_program_is_refused(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(ConfigError, match="database of another program"):
        Store(path)


def test_file_that_is_no_database_is_refused(path):
    path.write_text("x" * 5000)
    with pytest.raises(ConfigError, match="not a database; name a file"):
        Store(path)


def test_folder_that_is_absent_is_refused(path):
    with pytest.raises(ConfigError, match="unable to open database file"):
        Store(path / "state.sqlite")


def reopened_usage(path) -> float:
    store = Store(path)
    usage = store.usage(KEY)
    store.close()
    return usage

"""Fixtures over real parts: a sidecar with the demonstration catalog, a guard that asks it, a clock set by hand."""

from __future__ import annotations

import os
import resource
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from django.core import mail
from pytest_django.plugin import DjangoDbBlocker

from django_databases import django_database, empty_ledger_tables, make_ledger_tables
from faulty_sidecar import FaultySidecar
from postgres_server import PostgresServer
from stigg_guard import Clock, Config, Guard
from stigg_guard.sidecar.catalog import demo_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.store import Store
from striker import Striker

collect_ignore = ["e2e"]  # they need a browser: make e2e


class ManualClock:
    """A clock that moves only when told to; ``clock`` is what code under test is given."""

    def __init__(self) -> None:
        self._seconds = 1_000.0
        self._origin = datetime.now(timezone.utc).replace(microsecond=0) - timedelta(seconds=self._seconds)
        self.clock = Clock(monotonic=self.monotonic, now=self.now)

    def monotonic(self) -> float:
        return self._seconds

    def now(self) -> datetime:
        return self._origin + timedelta(seconds=self._seconds)

    def advance(self, seconds: float) -> None:
        self._seconds += seconds

    def set_forward(self, seconds: float) -> None:
        """Somebody sets the wall clock anew, forward or back; no time passes."""
        self._origin += timedelta(seconds=seconds)


CHILD_SECONDS = 30.0


def in_child(work: Callable[[], bool], fork: Callable[[], int] = os.fork) -> bool:
    """What ``work`` says in a forked child; a child that hangs is ended and says no."""
    with warnings.catch_warnings():
        # Python warns who forks while threads run, as servers do: that it goes well is what is tested.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        pid = fork()
    if pid == 0:
        hung = threading.Timer(CHILD_SECONDS, os._exit, [2])
        hung.daemon = True
        hung.start()
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def exit_at_once(work: Callable[[], object]) -> None:
    """Does the work in a forked child that ends right after it, and tells nobody."""

    def exits() -> bool:
        work()
        os._exit(0)

    assert in_child(exits)


@contextmanager
def full_disk(ledger: Path) -> Iterator[None]:
    """While it lasts, no file of this process grows beyond what the ledger's log has grown to: not the tests' own
    output either, so it ends within the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (Path(f"{ledger}-wal").stat().st_size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(autouse=True)
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which ledgers are by default: each test has one of its own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "stigg-guard"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def sidecar() -> Iterator[Sidecar]:
    with Sidecar(Engine(demo_catalog(), Store(None)), host="127.0.0.1", port=0, http_port=0) as running:
        yield running


@pytest.fixture
def faulty(clock: ManualClock) -> Iterator[FaultySidecar]:
    server = FaultySidecar(clock.now)
    yield server
    server.stop()


def config_of(sidecar: Sidecar, **settings: object) -> Config:
    """The configuration of a guard that asks as :func:`settings_of` says; its settings by their names in code."""
    return Config.from_mapping({**settings_of(sidecar), **{name.upper(): value for name, value in settings.items()}})


def settings_of(sidecar: Sidecar) -> dict[str, object]:
    """Whom a guard is to ask: the sidecar, or with ``make test-cloud`` the GraphQL API beside it."""
    if os.environ.get("STIGG_TESTS_ON") != "cloud":
        return {"SIDECAR": sidecar.address, "TIMEOUT": 5}
    return {"SIDECAR": "cloud", "API_KEY": "any", "API_URL": f"http://{sidecar.http_address}", "TIMEOUT": 20}


@pytest.fixture
def make_guard(sidecar: Sidecar, clock: ManualClock) -> Iterator[Callable[..., Guard]]:
    """Makes guards over the sidecar with the settings given; their time is the manual clock's."""
    made: list[Guard] = []

    def make(**settings: object) -> Guard:
        config = Config.from_mapping({**settings_of(sidecar), **settings})
        made.append(Guard(config, clock=clock.clock))
        return made[-1]

    yield make
    for guard in made:
        guard.close()


@pytest.fixture
def guard(make_guard: Callable[..., Guard]) -> Guard:
    return make_guard()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_ledger(postgres: PostgresServer, django_db_blocker: DjangoDbBlocker) -> dict[str, Any]:
    """Django's settings for a database with the tables of the ledger."""
    return _with_ledger(postgres.database("ledger"), django_db_blocker)


@pytest.fixture(scope="session")
def preparing_postgres_ledger(postgres: PostgresServer, django_db_blocker: DjangoDbBlocker) -> dict[str, Any]:
    """The same for another database, whose statements are planned once for each connection."""
    options = {"server_side_binding": True, "prepare_threshold": 2}
    return _with_ledger({**postgres.database("preparing"), "OPTIONS": options}, django_db_blocker)


def _with_ledger(database: dict[str, Any], django_db_blocker: DjangoDbBlocker) -> dict[str, Any]:
    settings = {**database, "CONN_MAX_AGE": None}
    with django_db_blocker.unblock(), django_database("new", settings):
        make_ledger_tables("new")
    return settings


@pytest.fixture
def django_postgres(
    postgres_ledger: dict[str, Any], django_db_blocker: DjangoDbBlocker, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The alias of a database in PostgreSQL, with an empty ledger, used as it is outside of tests."""
    monkeypatch.delattr(mail, "outbox")
    with django_db_blocker.unblock(), django_database("postgres", postgres_ledger) as alias:
        empty_ledger_tables(alias)
        yield alias


@pytest.fixture
def preparing_postgres(
    preparing_postgres_ledger: dict[str, Any], django_postgres: str, django_db_blocker: DjangoDbBlocker
) -> Iterator[str]:
    """The alias of a database whose statements are planned once, with an empty ledger, beside the other one."""
    with django_db_blocker.unblock(), django_database("preparing", preparing_postgres_ledger) as alias:
        empty_ledger_tables(alias)
        yield alias


@pytest.fixture(scope="session")
def sqlite_ledger(tmp_path_factory: pytest.TempPathFactory, django_db_blocker: DjangoDbBlocker) -> Path:
    """A database in a file, with the tables of the ledger."""
    path = tmp_path_factory.mktemp("sqlite") / "ledger.sqlite3"
    settings = {"ENGINE": "django.db.backends.sqlite3", "NAME": path}
    with django_db_blocker.unblock(), django_database("new", settings):
        make_ledger_tables("new")
    return path


@pytest.fixture
def django_sqlite(sqlite_ledger: Path, tmp_path: Path, django_db_blocker: DjangoDbBlocker) -> Iterator[str]:
    """The alias of a database in a file, with an empty ledger."""
    path = shutil.copy(sqlite_ledger, tmp_path / "site.sqlite3")
    settings = {"ENGINE": "django.db.backends.sqlite3", "NAME": path, "OPTIONS": {"timeout": 60}}
    with django_db_blocker.unblock(), django_database("sqlite", settings) as alias:
        yield alias


@pytest.fixture
def striker() -> Iterator[Striker]:
    """Raises exceptions in steps of the main thread."""
    with Striker().at_work() as striker:
        yield striker

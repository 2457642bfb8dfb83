"""kill -9 of Django applications whose usage is in the transaction of the rows that it pays for.

Each thread of each round inserts rows and uses a unit with each in one transaction, and lets some of them fail. The
processes are killed at random moments: before a commit, between it and the report, and amid the report. At the end
another process reports what is left, and the sidecar must have counted as many units as there are rows, to the unit.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from threading import Thread
from typing import Any

import django
from django.conf import settings
from django.core.management import call_command
from django.db import connection, transaction
from tests.postgres_server import PostgresServer

from faults.promise import Promise, Scale
from faults.sidecars import LocalSidecar
from faults.workers import PATIENCE, WorkFailed, processes
from stigg_guard import Config, Guard, SidecarError
from stigg_guard.clock import Clock

PROCESSES = 2
THREADS = 4
FEATURE = "feature-rows"
HOLD_TTL = 5


def django_ledger(scale: Scale) -> Iterator[Promise]:
    """Rounds of kill -9 under load."""
    customers = [f"customer-{number}" for number in range(scale.rounds)]
    with (
        PostgresServer(durable=True) as server,
        LocalSidecar(scale.folder / "django", {FEATURE: None}, customers) as sidecar,
    ):
        database = {**server.database("site"), "CONN_MAX_AGE": None}
        set_up(database)
        call_command("migrate", verbosity=0)
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE sold (customer text)")
        caught = sum((_round(database, sidecar.address, customer) for customer in customers), Counter[str]())
        left = _drain(sidecar.address)
        counted = {customer: usage for (customer, _), usage in sidecar.usage(customers).items()}
        rows = _rows()
        connection.close()
    wrong = sum(counted[customer] != rows[customer] for customer in customers)
    what = f"django: {scale.rounds} rounds of kill -9"
    yield Promise(
        f"{what} leave as much usage as rows",
        f"{rows.total()} rows, {sum(counted.values()):g} counted, {wrong} customers differ; killed with "
        f"{caught['held']} held, {caught['unsent']} unsent, {caught['sending']} sending",
        not wrong and rows.total() > 0,
    )
    yield Promise(f"{what} leave nothing behind", f"{left}", not any(left.values()))


def set_up(default: Mapping[str, Any], **others: Mapping[str, Any]) -> None:
    """Makes this process a Django project on the databases."""
    settings.configure(DATABASES={"default": default, **others}, INSTALLED_APPS=["stigg_guard.django.ledger"])
    django.setup()


def make_django_guard(address: str, **given: Any) -> Guard:
    """A guard on the ledger in the default database; ``given`` are settings by their upper-case names."""
    from stigg_guard.django.ledger.ledger import django_ledger_from_url  # it has models: Django must be set up before

    config = Config.from_mapping({"SIDECAR": address, "HOLD_TTL": HOLD_TTL, "SETTLE_GRACE": 2, **given})
    ledger = django_ledger_from_url("django://default", Clock(), settle_grace=config.settle_grace)
    guard = Guard(config, ledger=ledger)
    ledger.committed = guard.send
    return guard


def _round(database: Mapping[str, Any], address: str, customer: str) -> Counter[str]:
    """What was in the ledger when the applications were dead."""
    before = _rows().total()
    with processes(PROCESSES, _work, database, address, customer):
        deadline = time.monotonic() + PATIENCE
        while _rows().total() == before and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(random.uniform(0.0, 1.0))
    with closing(make_django_guard(address)) as guard:
        return Counter(guard.ledger.counts())


def _rows() -> Counter[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT customer, count(*) FROM sold GROUP BY customer")
        return Counter(dict(cursor.fetchall()))


def _drain(address: str) -> Mapping[str, int]:
    """Reports what is left, as the next process would, and waits until the holds of the dead have expired."""
    deadline = time.monotonic() + PATIENCE
    with make_django_guard(address) as guard:
        while any((left := guard.ledger.counts()).values()) and time.monotonic() < deadline:
            guard.flush(1.0)
            time.sleep(0.2)
    return left


def _work(database: Mapping[str, Any], address: str, customer: str, _number: int) -> None:
    set_up(database)
    guard = make_django_guard(address)

    def sell() -> None:
        while True:
            with suppress(WorkFailed, SidecarError), transaction.atomic():
                with guard.consume(FEATURE, customer=customer), connection.cursor() as cursor:
                    cursor.execute("INSERT INTO sold VALUES (%s)", [customer])
                if random.random() < 0.2:
                    raise WorkFailed

    threads = [Thread(target=sell) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

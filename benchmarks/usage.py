"""What a use of units costs: in the ledger, in a request, and on its way to the sidecar."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from timeit import Timer
from typing import Any

import grpc

from benchmarks.measure import Comparison, ratio_at_least, ratio_at_most
from benchmarks.project import set_up_django
from benchmarks.servers import local_sidecar
from stigg_guard import Clock, Config, Guard
from stigg_guard.ledger import Acknowledged, Claim, Hold, Ledger, News, Period, UsageKey, Use, ledger_from_url
from stigg_guard.wire import METHODS
from stigg_guard.wire import sidecar_pb2 as wire

CUSTOMER = "customer-demo-02"
METER = "feature-api-calls"
KEY = UsageKey(CUSTOMER, "", METER)
CLAIM = Claim(KEY, 1.0, News(Period(), used=0, limit=None, ticket=1))
BACKLOG = 500
BULK = 100


class Prepared(Timer):
    """A timer of which each execution is prepared, and only the execution itself is timed."""

    def __init__(self, prepare: Callable[[], object], execute: Callable[[], object]) -> None:
        super().__init__(execute)
        self._prepare = prepare
        self._execute = execute

    def timeit(self, number: int = 1) -> float:
        taken = 0.0
        for _ in range(number):
            self._prepare()
            begun = perf_counter()
            self._execute()
            taken += perf_counter() - begun
        return taken


def in_sqlite() -> Iterator[Comparison]:
    """A hold and its commit in the ledger's file, and two bare inserts into a file of the same kind, each committed."""
    with ExitStack() as open_:
        folder = open_.enter_context(TemporaryDirectory())
        ledger = open_.enter_context(closing(ledger_from_url(f"sqlite:///{folder}/ledger", Clock())))
        bare = open_.enter_context(closing(sqlite3.connect(f"{folder}/bare", isolation_level=None)))
        for statement in ("journal_mode = WAL", "synchronous = NORMAL"):
            bare.execute(f"PRAGMA {statement}")
        bare.execute("CREATE TABLE entry (id INTEGER PRIMARY KEY, customer TEXT, feature TEXT, amount REAL)")
        insert = "INSERT INTO entry (customer, feature, amount) VALUES (?, ?, ?)"
        row = (CUSTOMER, METER, 1.0)
        yield Comparison(
            name="hold and commit, sqlite / 2 bare inserts",
            ours=Timer(lambda: hold_and_commit(ledger)),
            floor=Timer(lambda: (bare.execute(insert, row), bare.execute(insert, row))),
            aim=ratio_at_most(2.2),
        )


def in_redis() -> Iterator[Comparison]:
    """A hold and its commit in Redis, and two PINGs."""
    from tests.redis_server import RedisServer

    with ExitStack() as open_:
        folder = open_.enter_context(TemporaryDirectory())
        server = open_.enter_context(RedisServer(Path(folder)))
        ledger = open_.enter_context(closing(ledger_from_url(server.url, Clock())))
        yield Comparison(
            name="hold and commit, Redis / 2 bare PINGs",
            ours=Timer(lambda: hold_and_commit(ledger)),
            floor=Timer(lambda: (server.client.ping(), server.client.ping())),
            aim=ratio_at_most(2.5),
        )


def in_postgres() -> Iterator[Comparison]:
    """A hold and its commit in Django's database, and two transactions of one statement each, all on connections that
    are kept, without and with prepared statements. The server does not wait for the disk, which would hide both."""
    set_up_django()
    from tests.postgres_server import PostgresServer

    prepared = {"OPTIONS": {"server_side_binding": True, "prepare_threshold": 5}}
    with PostgresServer() as server:
        yield from _in_database(server.database("plain"), "PostgreSQL")
        yield from _in_database({**server.database("prepared"), **prepared}, "PostgreSQL, prepared statements")


def _in_database(settings: dict[str, Any], name: str) -> Iterator[Comparison]:
    from django.db import connections, transaction
    from tests.django_databases import django_database, make_ledger_tables, open_ledger

    with ExitStack() as open_:
        alias = open_.enter_context(django_database("postgres", {**settings, "CONN_MAX_AGE": None}))
        make_ledger_tables(alias)
        ledger = open_.enter_context(closing(open_ledger(f"django://{alias}", Clock())))
        with connections[alias].cursor() as cursor:
            cursor.execute("CREATE TABLE bare (customer text PRIMARY KEY, used float)")
            cursor.execute("INSERT INTO bare VALUES (%s, 0)", [CUSTOMER])

        def bare() -> None:
            for _ in range(2):
                with transaction.atomic(alias), connections[alias].cursor() as cursor:
                    cursor.execute("UPDATE bare SET used = used + 1 WHERE customer = %s", [CUSTOMER])

        yield Comparison(
            name=f"hold and commit, Django on {name} / 2 bare transactions",
            ours=Timer(lambda: hold_and_commit(ledger), lambda: send_all(ledger)),
            floor=Timer(bare),
            aim=ratio_at_most(2.5),
        )


def in_request() -> Iterator[Comparison]:
    """A use with its hold and its durable commit, and the two calls that the usual glue makes: check, then report."""
    with ExitStack() as open_:
        address = open_.enter_context(local_sidecar())
        folder = open_.enter_context(TemporaryDirectory())
        guard = open_.enter_context(Guard(Config(sidecar=address, ledger=f"sqlite:///{folder}/ledger")))
        check = _call(open_, address, "GetMeteredEntitlement")
        report = _call(open_, address, "ReportUsage")
        question = wire.GetMeteredEntitlementRequest(customer_id=CUSTOMER, feature_id=METER)
        usage = wire.ReportUsageRequest(customer_id=CUSTOMER, feature_id=METER, value=1)

        def glue() -> None:
            check(question)
            report(usage)

        yield Comparison(
            name="consume, sqlite ledger / check and report, two calls",
            ours=Timer(lambda: consume(guard)),
            floor=Timer(glue),
            aim=ratio_at_most(0.05),
        )


def drain() -> Iterator[Comparison]:
    """A backlog of many customers, drained into the sidecar; and the same reports sent in bulk by a loop."""
    customers = [f"customer-{number}" for number in range(BACKLOG)]
    catalog = '[features.f]\ntype = "metered"\nmeter = "incremental"\n'
    catalog += "[plans.p.entitlements]\nf = { unlimited = true }\n"
    catalog += "".join(f'[customers.{customer}]\nplan = "p"\n' for customer in customers)
    with ExitStack() as open_:
        folder = Path(open_.enter_context(TemporaryDirectory()))
        (folder / "catalog.toml").write_text(catalog)
        address = open_.enter_context(local_sidecar(folder / "catalog.toml"))
        guard = open_.enter_context(Guard(Config(sidecar=address, ledger=f"sqlite:///{folder}/ledger")))
        bulk = _call(open_, address, "ReportUsageBulk")
        usages = [wire.ReportUsageRequest(customer_id=customer, feature_id="f", value=1) for customer in customers]
        requests = [wire.ReportUsageBulkRequest(usages=usages[at : at + BULK]) for at in range(0, BACKLOG, BULK)]

        def fill() -> None:
            for customer in customers:
                guard.ledger.record(Use(UsageKey(customer, "", "f"), 1.0))

        yield Comparison(
            name=f"drain of {BACKLOG} reports, sqlite / bare bulk calls",
            ours=Prepared(fill, lambda: guard.flush(60)),
            floor=Timer(lambda: [bulk(request) for request in requests]),
            calls=BACKLOG,
            per_second=True,
            aim=ratio_at_least(0.7),
        )


def hold_and_commit(ledger: Ledger) -> None:
    """One use, without a report."""
    hold = ledger.hold([CLAIM], 60)
    assert isinstance(hold, Hold)
    ledger.commit(hold, [Use(KEY, 1.0)])


def send_all(ledger: Ledger) -> None:
    """What waits is acknowledged, so that what is timed next does not grow with it."""
    while batch := ledger.take_batch(BULK, 60):
        ledger.acknowledge([Acknowledged(report, None) for report in batch.reports])


def consume(guard: Guard) -> None:
    """One use, as a view makes it; the reporter works beside it."""
    with guard.consume(METER, 1, customer=CUSTOMER):
        pass


def _call(open_: ExitStack, address: str, name: str) -> Callable[..., object]:
    channel = open_.enter_context(grpc.insecure_channel(address))
    method = METHODS[name]
    return channel.unary_unary(method.path, method.request.SerializeToString, method.response.FromString)

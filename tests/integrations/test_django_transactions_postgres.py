"""A site on PostgreSQL whose requests are transactions, with the ledger in its database: usage follows its rows."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from django.db import ProgrammingError, connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path

from django_databases import django_database
from postgres_server import PostgresServer
from stigg_guard import Guard
from stigg_guard.django import consumes_usage, get_guard
from stigg_guard.sidecar.server import Sidecar

TEMPLATES = "feature-templates"
DEMO = "customer-demo-01"  # 3 of 6 templates used
USED = 3


@consumes_usage(1, TEMPLATES)
def create(request: HttpRequest) -> HttpResponse:
    insert("postgres")
    return HttpResponse(status=201)


@consumes_usage(1, TEMPLATES)
@consumes_usage(1, TEMPLATES)
def create_two(request: HttpRequest) -> HttpResponse:
    insert("postgres")
    insert("postgres")
    return HttpResponse(status=201)


def create_and_fail(request: HttpRequest) -> HttpResponse:
    create(request)
    raise RuntimeError("out of paper")


def create_and_undo(request: HttpRequest) -> HttpResponse:
    response = create(request)
    transaction.set_rollback(True, using="postgres")
    return response


def create_and_swallow(request: HttpRequest) -> HttpResponse:
    """Catches an error of SQL, so that PostgreSQL rolls back where Django commits."""
    response = create(request)
    with suppress(ProgrammingError), connections["postgres"].cursor() as cursor:
        cursor.execute("SELECT nothing")
    return response


def create_some(request: HttpRequest) -> HttpResponse:
    """Creates three, and thinks better of the second."""
    create(request)
    try:
        with transaction.atomic(using="postgres"):
            create(request)
            raise OSError("out of paper")
    except OSError:
        return create(request)


@consumes_usage(1, TEMPLATES)
def create_and_lose_connection(request: HttpRequest) -> HttpResponse:
    insert("postgres")
    with psycopg.connect(**connections["postgres"].get_connection_params()) as other:
        pid = connections["postgres"].connection.info.backend_pid
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    return HttpResponse(status=201)


@consumes_usage(1, TEMPLATES)
def create_in_other(request: HttpRequest) -> HttpResponse:
    insert("other")
    if "fail" in request.GET:
        raise RuntimeError("out of paper")
    return HttpResponse(status=201)


urlpatterns = [
    path("create", create),
    path("create-two", create_two),
    path("create-and-fail", create_and_fail),
    path("create-and-undo", create_and_undo),
    path("create-and-swallow", create_and_swallow),
    path("create-some", create_some),
    path("create-and-lose-connection", create_and_lose_connection),
    path("create-in-other", create_in_other),
]

pytestmark = pytest.mark.urls(__name__)


def make_shop(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS template")
        cursor.execute("CREATE TABLE template (id serial)")


def insert(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("INSERT INTO template DEFAULT VALUES")


def rows(alias: str) -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM template")
        return int(cursor.fetchone()[0])


@pytest.fixture
def site(sidecar: Sidecar, settings: Any, django_postgres: str) -> Iterator[Any]:
    make_shop(django_postgres)
    connections.settings[django_postgres]["ATOMIC_REQUESTS"] = True
    given = settings.STIGG_GUARD
    ours = {
        "SIDECAR": sidecar.address,
        "TIMEOUT": 20,
        "LEDGER": "django://postgres",
        "DATABASE": "postgres",
        "REPORT": "background",
    }
    settings.STIGG_GUARD = {**given, **ours}
    yield settings
    settings.STIGG_GUARD = given  # the guard is closed while its database is there


@pytest.fixture
def web(site: Any) -> Client:
    return Client(REMOTE_USER=DEMO, raise_request_exception=False)


def counted() -> float:
    """What the sidecar has counted once all is sent, with nothing left in the ledger."""
    guard: Guard = get_guard()
    assert guard.flush(10) == 0
    assert guard.ledger.counts()["held"] == 0
    guard.reload(DEMO)
    return guard.check(TEMPLATES, customer=DEMO).current_usage - USED


def test_a_request_that_succeeds_is_counted(web: Client) -> None:
    assert web.post("/create").status_code == 201
    assert counted() == rows("postgres") == 1


def test_a_request_that_consumes_twice_is_counted_twice(web: Client) -> None:
    assert web.post("/create-two").status_code == 201
    assert counted() == rows("postgres") == 2


def test_a_request_whose_transaction_is_lost_before_its_use_is_not_counted(web: Client) -> None:
    assert web.post("/create-and-lose-connection").status_code == 500
    connections["postgres"].close()
    assert counted() == rows("postgres") == 0


@pytest.mark.parametrize("url", ["/create-and-fail", "/create-and-undo"])
def test_a_request_that_is_rolled_back_after_its_use_is_not_counted(web: Client, url: str) -> None:
    web.post(url)
    assert counted() == rows("postgres") == 0


def test_a_commit_that_postgresql_turns_into_a_rollback_is_not_counted(web: Client) -> None:
    web.post("/create-and-swallow")
    get_guard().flush(10)
    get_guard().reload(DEMO)
    assert get_guard().check(TEMPLATES, customer=DEMO).current_usage - USED == rows("postgres") == 0


def test_a_savepoint_that_is_rolled_back_is_not_counted(web: Client) -> None:
    assert web.post("/create-some").status_code == 201
    assert counted() == rows("postgres") == 2


def test_requests_at_once_get_what_is_left_and_no_more(web: Client) -> None:
    def ask(number: int) -> int:
        status = web.post("/create-and-fail" if number % 2 else "/create").status_code
        connections["postgres"].close()
        return status

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(ask, range(24)))
    assert statuses.count(201) == counted() == rows("postgres") <= 3


def test_usage_follows_the_database_that_is_named_though_the_ledger_is_in_another(
    site: Any, web: Client, postgres: PostgresServer
) -> None:
    with django_database("other", {**postgres.database("other_site"), "ATOMIC_REQUESTS": True}):
        site.STIGG_GUARD = {**site.STIGG_GUARD, "DATABASE": "other"}
        make_shop("other")
        assert web.post("/create-in-other").status_code == 201
        assert web.post("/create-in-other?fail").status_code == 500
        assert counted() == rows("other") == 1

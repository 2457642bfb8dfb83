"""Usage follows the transaction of the work that it pays for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path
from pytest_django.plugin import DjangoDbBlocker

from conftest import in_child
from django_databases import django_database, make_ledger_tables
from stigg_guard import Guard
from stigg_guard.django import consumes_usage, get_guard
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.testing import override_entitlements

TEMPLATES = "feature-templates"
DEMO = "customer-demo-01"  # essentials: 3 of 6 templates used
SHOP = "shop"


def sell() -> None:
    """The work that is paid for."""
    with connections[SHOP].cursor() as cursor:
        cursor.execute("INSERT INTO sold VALUES (1)")


def sold() -> int:
    with connections[SHOP].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM sold")
        return int(cursor.fetchone()[0])


@consumes_usage(1, TEMPLATES)
def create(request: HttpRequest, status: int = 201) -> HttpResponse:
    sell()
    return HttpResponse(status=status)


@consumes_usage(1, TEMPLATES)
def create_and_fail(request: HttpRequest) -> HttpResponse:
    sell()
    raise RuntimeError("out of paper")


@consumes_usage(1, TEMPLATES)
def create_and_undo(request: HttpRequest) -> HttpResponse:
    sell()
    transaction.set_rollback(True, using=SHOP)
    return HttpResponse()


@transaction.non_atomic_requests(using=SHOP)
@consumes_usage(1, TEMPLATES)
def create_at_once(request: HttpRequest) -> HttpResponse:
    assert not connections[SHOP].in_atomic_block
    return HttpResponse()


def plain(request: HttpRequest) -> HttpResponse:
    sell()
    return HttpResponse()


urlpatterns = [
    path("create", create),
    path("create/<int:status>", create),
    path("create-and-fail", create_and_fail),
    path("create-and-undo", create_and_undo),
    path("create-at-once", create_at_once),
    path("ruled/plain", plain),
]

pytestmark = pytest.mark.urls(__name__)


@pytest.fixture(autouse=True)
def shop(django_db_blocker: DjangoDbBlocker, tmp_path: Path) -> Iterator[str]:
    """A database whose requests are atomic; its alias."""
    settings = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(tmp_path / "shop.sqlite3"),
        "ATOMIC_REQUESTS": True,
    }
    with django_db_blocker.unblock(), django_database(SHOP, settings):
        with connections[SHOP].cursor() as cursor:
            cursor.execute("CREATE TABLE sold (amount integer)")
        yield SHOP


@pytest.fixture(autouse=True)
def site(shop: str, sidecar: Sidecar, settings: Any) -> Any:
    """The settings of a site that asks the sidecar, has but one customer, and whose usage follows the shop."""
    settings.STIGG_GUARD = {
        "SIDECAR": sidecar.address,
        "TIMEOUT": 20,
        "CUSTOMER": lambda _: DEMO,
        "REPORT": "inline",
        "DATABASE": shop,
        "RULES": [{"path": "/ruled/", "feature": TEMPLATES, "consume": 1}],
    }
    return settings


@pytest.fixture
def web() -> Client:
    return Client(raise_request_exception=False)


@pytest.fixture
def counted(guard: Guard) -> Callable[[], tuple[float, int]]:
    """How many units the sidecar has counted, and how many holds there are."""

    def count() -> tuple[float, int]:
        guard.reload(DEMO)
        return guard.check(TEMPLATES, customer=DEMO).current_usage, get_guard().stats()["held"]

    return count


Counted = Callable[[], "tuple[float, int]"]


def test_an_atomic_request_that_is_committed_is_counted(web: Client, counted: Counted) -> None:
    assert web.post("/create").status_code == 201
    assert (sold(), counted()) == (1, (4, 0))


def test_an_atomic_request_that_fails_is_rolled_back_and_given_back(web: Client, counted: Counted) -> None:
    assert web.post("/create-and-fail").status_code == 500
    assert (sold(), counted()) == (0, (3, 0))


def test_a_response_of_failure_is_given_back_although_it_is_committed(web: Client, counted: Counted) -> None:
    assert web.post("/create/422").status_code == 422
    assert (sold(), counted()) == (1, (3, 0))


def test_a_success_that_is_rolled_back_is_given_back(web: Client, counted: Counted) -> None:
    assert web.post("/create-and-undo").status_code == 200
    assert (sold(), counted()) == (0, (3, 0))


def test_a_request_that_is_not_atomic_is_counted_at_once(web: Client, counted: Counted) -> None:
    assert web.post("/create-at-once").status_code == 200
    assert counted() == (4, 0)


def test_a_rule_counts_what_was_committed(web: Client, counted: Counted) -> None:
    assert web.post("/ruled/plain").status_code == 200
    assert (sold(), counted()) == (1, (4, 0))


def test_a_block_is_counted_when_it_is_committed_and_held_until_then(counted: Counted) -> None:
    with transaction.atomic(using=SHOP):
        with get_guard().consume(TEMPLATES, 2, customer=DEMO):
            sell()
        assert counted() == (3, 1)
    assert (sold(), counted()) == (1, (5, 0))


def test_a_block_that_is_rolled_back_is_given_back_at_once(counted: Counted) -> None:
    with transaction.atomic(using=SHOP):
        with get_guard().consume(TEMPLATES, 2, customer=DEMO):
            sell()
        transaction.set_rollback(True, using=SHOP)
    assert (sold(), counted()) == (0, (3, 0))


def test_a_savepoint_that_is_rolled_back_is_given_back_in_a_transaction_that_is_committed(counted: Counted) -> None:
    with transaction.atomic(using=SHOP):
        with get_guard().consume(TEMPLATES, 1, customer=DEMO):
            sell()
        with transaction.atomic(using=SHOP):
            with get_guard().consume(TEMPLATES, 2, customer=DEMO):
                sell()
            transaction.set_rollback(True, using=SHOP)
        assert counted() == (3, 1)
    assert (sold(), counted()) == (1, (4, 0))


def test_a_transaction_whose_connection_is_closed_is_given_back(counted: Counted) -> None:
    with transaction.atomic(using=SHOP):
        with get_guard().consume(TEMPLATES, 1, customer=DEMO):
            sell()
        connections[SHOP].close()
    assert (sold(), counted()) == (0, (3, 0))


def test_the_transactions_of_other_databases_do_not_matter(counted: Counted, tmp_path: Path) -> None:
    other = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "other.sqlite3")}
    with django_database("other", other), transaction.atomic(using="other"):
        with get_guard().consume(TEMPLATES, 1, customer=DEMO):
            sell()
        transaction.set_rollback(True, using="other")
    assert (sold(), counted()) == (1, (4, 0))


def test_a_callback_that_fails_before_does_not_lose_what_was_committed(counted: Counted) -> None:
    def fail() -> None:
        raise RuntimeError("out of stamps")

    with suppress(RuntimeError), transaction.atomic(using=SHOP):
        transaction.on_commit(fail, using=SHOP)
        with get_guard().consume(TEMPLATES, 1, customer=DEMO):
            sell()
    assert (sold(), counted()) == (1, (4, 0))


def test_a_failed_callback_that_is_remembered_does_not_lose_what_was_committed(counted: Counted) -> None:
    def fail() -> None:
        raise RuntimeError("out of stamps")

    remembered: list[Exception] = []
    try:
        with transaction.atomic(using=SHOP):
            transaction.on_commit(fail, using=SHOP)
            with get_guard().consume(TEMPLATES, 1, customer=DEMO):
                sell()
    except RuntimeError as error:
        remembered.append(error)
    with transaction.atomic(using=SHOP):
        remembered.clear()  # and with it Django's list of the callbacks
    assert (sold(), counted()) == (1, (4, 0))


def test_the_callbacks_of_a_block_find_its_usage_counted(counted: Counted) -> None:
    found: list[tuple[float, int]] = []
    with transaction.atomic(using=SHOP):
        transaction.on_commit(lambda: found.append(counted()), using=SHOP)
        with get_guard().consume(TEMPLATES, 1, customer=DEMO):
            sell()
    assert found == [(4, 0)]


def test_the_reports_of_a_block_are_taken_in_their_order(counted: Counted) -> None:
    with transaction.atomic(using=SHOP):
        get_guard().report(TEMPLATES, 1, customer=DEMO, set_total=True)
        get_guard().report(TEMPLATES, 1, customer=DEMO)
    assert counted() == (2, 0)


def test_a_block_without_autocommit_is_counted_at_once(counted: Counted) -> None:
    transaction.set_autocommit(False, using=SHOP)
    with transaction.atomic(using=SHOP), get_guard().consume(TEMPLATES, 1, customer=DEMO):
        sell()
    transaction.commit(using=SHOP)
    connections[SHOP].close()
    assert (sold(), counted()) == (1, (4, 0))


def test_a_forked_child_that_drops_its_copy_of_the_transaction_gives_nothing_back(counted: Counted) -> None:
    def drop() -> bool:
        connections[SHOP].run_on_commit.clear()  # as closing it does, which with SQLite ends the parent's, too
        return True

    with transaction.atomic(using=SHOP):
        with get_guard().consume(TEMPLATES, 1, customer=DEMO):
            sell()
        assert in_child(drop)
        assert counted() == (3, 1)
    assert (sold(), counted()) == (1, (4, 0))


def test_the_callbacks_after_it_run_although_the_guard_was_closed(caplog: pytest.LogCaptureFixture) -> None:
    ran: list[str] = []
    with transaction.atomic(using=SHOP):
        with get_guard().consume(TEMPLATES, 1, customer=DEMO):
            sell()
        transaction.on_commit(lambda: ran.append("after"), using=SHOP)
        get_guard().close()
    assert ran == ["after"]
    assert any("LOST" in message for message in caplog.messages)


def test_a_rollback_after_the_guard_was_closed_raises_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with transaction.atomic(using=SHOP):
        with get_guard().consume(TEMPLATES, 1, customer=DEMO):
            sell()
        get_guard().close()
        transaction.set_rollback(True, using=SHOP)
    assert any("left to expire" in message for message in caplog.messages)


@pytest.mark.parametrize(("undone", "usage"), [(False, 5), (True, 3)])
def test_a_report_follows_the_transaction(counted: Counted, undone: bool, usage: float) -> None:
    with transaction.atomic(using=SHOP):
        get_guard().report(TEMPLATES, 2, customer=DEMO)
        assert counted() == (3, 0)
        transaction.set_rollback(undone, using=SHOP)
    assert counted() == (usage, 0)


@pytest.mark.django_db
def test_a_test_case_counts_what_it_has_committed(
    site: Any, web: Client, counted: Counted, django_capture_on_commit_callbacks: Any
) -> None:
    site.STIGG_GUARD = {**site.STIGG_GUARD, "DATABASE": "default"}
    with django_capture_on_commit_callbacks(execute=True):
        assert web.post("/create").status_code == 201
        assert counted() == (3, 1)
    assert counted() == (4, 0)


@pytest.mark.django_db
def test_what_is_captured_twice_is_counted_once(
    site: Any, web: Client, counted: Counted, django_capture_on_commit_callbacks: Any
) -> None:
    site.STIGG_GUARD = {**site.STIGG_GUARD, "DATABASE": "default"}
    with django_capture_on_commit_callbacks(execute=True), django_capture_on_commit_callbacks(execute=True):
        web.post("/create")
    assert counted() == (4, 0)


@pytest.mark.django_db
def test_a_test_case_leaves_open_what_it_does_not_commit(site: Any, web: Client, counted: Counted) -> None:
    site.STIGG_GUARD = {**site.STIGG_GUARD, "DATABASE": "default"}
    assert web.post("/create").status_code == 201
    assert counted() == (3, 1)


@pytest.mark.django_db(transaction=True)
def test_a_test_with_real_transactions_counts_at_once(site: Any, web: Client, counted: Counted) -> None:
    site.STIGG_GUARD = {**site.STIGG_GUARD, "DATABASE": "default"}
    assert web.post("/create").status_code == 201
    assert counted() == (4, 0)


@pytest.fixture
def in_shop(site: Any) -> Any:
    """The ledger is in the shop's own database."""
    make_ledger_tables(SHOP)
    site.STIGG_GUARD = {**site.STIGG_GUARD, "LEDGER": f"django://{SHOP}"}
    return site


@pytest.mark.usefixtures("in_shop")
def test_a_ledger_in_the_database_has_the_usage_in_the_same_transaction(counted: Counted) -> None:
    with transaction.atomic(using=SHOP):
        with get_guard().consume(TEMPLATES, 1, customer=DEMO):
            sell()
        assert get_guard().stats()["unsent"] == 1
    assert (sold(), counted()) == (1, (4, 0))


@pytest.mark.usefixtures("in_shop")
@pytest.mark.parametrize(("undone", "rows", "usage"), [(False, 1, 4), (True, 0, 3)])
def test_a_hold_from_before_a_transaction_may_end_within(
    counted: Counted, undone: bool, rows: int, usage: float
) -> None:
    with get_guard().consume(TEMPLATES, 1, customer=DEMO) as use, transaction.atomic(using=SHOP):
        sell()
        use.end(succeeded=True)
        transaction.set_rollback(undone, using=SHOP)
    assert (sold(), counted()) == (rows, (usage, 0))


@pytest.mark.usefixtures("in_shop")
@pytest.mark.parametrize(("url", "rows", "usage"), [("/create", 1, 4), ("/create-and-undo", 0, 3)])
def test_a_ledger_in_the_database_follows_atomic_requests(
    web: Client, counted: Counted, url: str, rows: int, usage: float
) -> None:
    web.post(url)
    assert (sold(), counted()) == (rows, (usage, 0))


@pytest.mark.usefixtures("in_shop")
@pytest.mark.parametrize(("undone", "usage"), [(False, 1), (True, 0)])
def test_an_override_follows_the_transaction_whatever_the_ledger(undone: bool, usage: float) -> None:
    with override_entitlements({TEMPLATES: {"limit": 6}}) as stigg:
        with transaction.atomic(using=SHOP):
            with get_guard().consume(TEMPLATES, 1, customer=DEMO):
                sell()
            transaction.set_rollback(undone, using=SHOP)
        stigg.assert_usage_reported(TEMPLATES, usage)


def test_a_ledger_in_one_database_may_follow_another(in_shop: Any, counted: Counted, tmp_path: Path) -> None:
    other = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "other.sqlite3")}
    with django_database("other", other):
        in_shop.STIGG_GUARD = {**in_shop.STIGG_GUARD, "DATABASE": "other"}
        with transaction.atomic(using="other"):
            with get_guard().consume(TEMPLATES, 1, customer=DEMO):
                sell()
            assert counted() == (3, 1)
        assert counted() == (4, 0)
        in_shop.STIGG_GUARD = {**in_shop.STIGG_GUARD, "DATABASE": SHOP}

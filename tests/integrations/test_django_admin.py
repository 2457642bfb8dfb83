"""The admin's ledger page and entitlement lookup: what they show, who may decide, and what a decision does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.urls import path
from django.utils import translation
from django.utils.translation.template import templatize

from redis_server import RedisServer
from stigg_guard import django as django_skin
from stigg_guard.django import get_guard
from stigg_guard.django.admin import MAX_ENTRIES, PER_PAGE
from stigg_guard.ledger import Ledger, State, UsageKey, Use
from stigg_guard.sidecar.server import Sidecar

LEDGER = "/admin/stigg_guard/ledgerentry/"
ENTITLEMENTS = f"{LEDGER}entitlements/"
SAID = re.compile(r"""[^n]pgettext(?:_lazy)?\(u?["']stigg_guard["'], u?(["'])(.+?)\1""")
HOMES = ("memory://", "sqlite:///{folder}/ledger.db", "redis", "django://default")

urlpatterns = [path("admin/", admin.site.urls)]

pytestmark = [pytest.mark.urls(__name__), pytest.mark.django_db]


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), durable=False) as server:
        yield server


@pytest.fixture
def home() -> str:
    """Where the ledger is; a test of all homes has this as its parameter."""
    return HOMES[0]


@pytest.fixture
def ledger(home: str, request: pytest.FixtureRequest, sidecar: Sidecar, settings: Any, tmp_path: Path) -> Ledger:
    """The ledger of the site."""
    url = home.format(folder=tmp_path)
    if home == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        server.client.flushall()
        url = server.url
    settings.STIGG_GUARD = {**settings.STIGG_GUARD, "SIDECAR": sidecar.address, "TIMEOUT": 20, "LEDGER": url}
    return get_guard().ledger


@pytest.fixture
def entries(ledger: Ledger) -> dict[State, str]:
    """The ids of one entry that is rejected, one that is uncertain, and one that is unsent."""
    taken = []
    for customer in ("ann", "bob"):
        ledger.record(Use(UsageKey(customer, "", "feature-templates"), 2))
        batch = ledger.take_batch(1, 30)
        assert batch is not None
        taken += batch.reports
    ledger.bury(taken[0], "no such <feature>")
    ledger.doubt([taken[1]], None, "no answer")
    ledger.record(Use(UsageKey("cid", "site-01", "feature-seats"), 7, is_set=True))
    return {state: ledger.entries((state,), 1)[0].id for state in (State.DEAD, State.UNCERTAIN, State.UNSENT)}


def signed_in(*permissions: str, **user: bool) -> Client:
    """A client of somebody with these permissions over ledger entries, and a check of CSRF tokens."""
    account = User.objects.create_user("eve", is_staff=True, **user)
    account.user_permissions.set(
        Permission.objects.filter(codename__in=[f"{permission}_ledgerentry" for permission in permissions])
    )
    client = Client(headers={"accept-language": "en"})
    client.force_login(account)
    return client


@pytest.fixture
def boss() -> Client:
    return signed_in(is_superuser=True)


def text_of(response: Any) -> str:
    """What a reader sees, in one line."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", response.content.decode())).split())


def states(ledger: Ledger) -> dict[str, int]:
    counts = ledger.counts()
    return {state.value: counts[state] for state in State if counts[state]}


class TestLedgerPage:
    @pytest.mark.parametrize("home", HOMES)
    def test_lists_the_entries_of_any_ledger(self, boss: Client, entries: dict[State, str]) -> None:
        page = text_of(boss.get(LEDGER))
        assert "rejected ann feature-templates +2" in page
        assert "1 no such <feature>" in page
        assert "uncertain bob feature-templates +2" in page
        assert "unsent cid / site-01 feature-seats =7" in page
        assert "3 entries" in page

    def test_escapes_what_came_from_elsewhere(self, boss: Client, entries: dict[State, str]) -> None:
        assert "no such &lt;feature&gt;" in boss.get(LEDGER).content.decode()

    def test_is_in_the_index_of_the_admin(self, boss: Client, ledger: Ledger) -> None:
        assert LEDGER in boss.get("/admin/").content.decode()

    def test_shows_one_state_when_asked(self, boss: Client, entries: dict[State, str]) -> None:
        page = text_of(boss.get(LEDGER, {"state": "dead"}))
        assert "ann" in page
        assert "bob" not in page
        assert "all (3) held (0) unsent (1) being sent (0) uncertain (1) rejected (1)" in page

    def test_shows_all_when_the_state_is_none(self, boss: Client, entries: dict[State, str]) -> None:
        assert "3 entries" in text_of(boss.get(LEDGER, {"state": "lost"}))

    def test_of_an_empty_ledger_says_so_and_offers_nothing(self, boss: Client, ledger: Ledger) -> None:
        answer = boss.get(LEDGER)
        assert "There are no such entries." in text_of(answer)
        assert b'name="action"' not in answer.content

    def test_offers_to_decide_only_what_waits_for_it(self, boss: Client, entries: dict[State, str]) -> None:
        offered = set(re.findall(r'name="entry" value="([^"]+)"', boss.get(LEDGER).content.decode()))
        assert offered == {entries[State.DEAD], entries[State.UNCERTAIN]}

    def test_goes_on_over_pages_up_to_a_bound(self, boss: Client, ledger: Ledger) -> None:
        for number in range(MAX_ENTRIES + 1):
            ledger.record(Use(UsageKey(f"customer-{number:04}", "", "feature-templates"), 1))
        first, last = text_of(boss.get(LEDGER)), text_of(boss.get(LEDGER, {"p": MAX_ENTRIES // PER_PAGE}))
        assert first.count("customer-") == last.count("customer-") == PER_PAGE
        assert "customer-0000" in first
        assert f"customer-{MAX_ENTRIES - 1:04}" in last
        assert f"the oldest {MAX_ENTRIES} entries" in last

    def test_is_shown_in_the_reader_s_language(self, boss: Client, entries: dict[State, str]) -> None:
        with translation.override("de"):
            page = text_of(boss.get(LEDGER))
        assert "abgelehnt ann feature-templates +2" in page
        assert "3 Einträge" in page

    def test_is_of_the_configuration_that_is_asked_for(
        self, boss: Client, ledger: Ledger, entries: dict[State, str], settings: Any
    ) -> None:
        here = settings.STIGG_GUARD
        settings.STIGG_GUARD = {"default": here, "other": {**here, "LEDGER": "memory://"}}
        get_guard("other").ledger.record(Use(UsageKey("zoe", "", "feature-templates"), 1))
        assert "zoe" not in text_of(boss.get(LEDGER))
        assert "zoe" in text_of(boss.get(LEDGER, {"using": "other"}))

    def test_of_a_ledger_that_cannot_be_read_says_so(self, boss: Client, settings: Any, tmp_path: Path) -> None:
        with RedisServer(tmp_path, durable=False) as server:
            settings.STIGG_GUARD = {**settings.STIGG_GUARD, "LEDGER": server.url}
            server.client.ping()
        answer = boss.get(LEDGER)
        assert answer.status_code == 200
        assert "The ledger is not available at the moment: " in text_of(answer)

    def test_has_no_text_that_is_not_translated(self) -> None:
        package = Path(django_skin.__file__).parent
        pages = [templatize(page.read_text()) for page in (package / "templates" / "admin").rglob("*.html")]
        texts = SAID.findall("\n".join([(package / "admin.py").read_text(), *pages]))
        assert len(texts) > 30
        with translation.override("de"):
            assert [text for _, text in texts if translation.pgettext("stigg_guard", text) == text] == []


class TestDecision:
    @pytest.mark.parametrize("home", HOMES)
    @pytest.mark.parametrize(
        ("action", "asked", "told", "left", "flag"),
        [
            ("retry", "will be sent to the sidecar again", "2 entries will be sent again.", {"unsent": 3}, CHANGE),
            ("discard", "forgotten for good", "2 entries were discarded.", {"unsent": 1}, DELETION),
        ],
    )
    def test_is_asked_for_then_done_told_and_logged(
        self,
        boss: Client,
        ledger: Ledger,
        entries: dict[State, str],
        action: str,
        asked: str,
        told: str,
        left: dict[str, int],
        flag: int,
    ) -> None:
        before = states(ledger)
        confirmation = boss.post(LEDGER, {"action": action, "entry": list(entries.values())})
        assert asked in text_of(confirmation)
        assert "cid" not in text_of(confirmation)  # it waits for nobody
        assert states(ledger) == before
        (ids,) = re.findall(r'name="entry" value="([^"]+)"', confirmation.content.decode())
        done = boss.post(LEDGER, {"action": action, "entry": ids, "confirmed": "yes"}, follow=True)
        assert told in text_of(done)
        assert states(ledger) == left
        logged = LogEntry.objects.values_list("action_flag", "object_repr", "object_id")
        assert set(logged) == {
            (flag, "+2 ann feature-templates", entries[State.DEAD]),
            (flag, "+2 bob feature-templates", entries[State.UNCERTAIN]),
        }

    def test_to_send_an_uncertain_one_again_warns_that_it_may_count_twice(
        self, boss: Client, entries: dict[State, str]
    ) -> None:
        asked = text_of(boss.post(LEDGER, {"action": "retry", "all": "on"}))
        assert "One of them may have been counted already, and would count twice." in asked

    def test_about_all_takes_all_that_wait(self, boss: Client, ledger: Ledger, entries: dict[State, str]) -> None:
        boss.post(LEDGER, {"action": "discard", "all": "on", "confirmed": "yes"})
        assert states(ledger) == {"unsent": 1}

    def test_about_all_is_about_the_oldest_within_the_bound(self, boss: Client, ledger: Ledger) -> None:
        for number in range(MAX_ENTRIES + 1):
            ledger.record(Use(UsageKey(f"customer-{number:04}", "", "feature-templates"), 1))
        while (batch := ledger.take_batch(100, 30)) is not None:
            ledger.doubt(batch.reports, None, "no answer")
        boss.post(LEDGER, {"action": "discard", "all": "on", "confirmed": "yes"})
        (left,) = ledger.entries((State.UNCERTAIN,), 2)
        assert left.key.customer_id == f"customer-{MAX_ENTRIES:04}"

    def test_about_nothing_changes_nothing_and_says_so(
        self, boss: Client, ledger: Ledger, entries: dict[State, str]
    ) -> None:
        chosen = {"action": "discard", "entry": entries[State.UNSENT], "confirmed": "yes"}
        assert "nothing was changed" in text_of(boss.post(LEDGER, chosen, follow=True))
        assert states(ledger) == {"unsent": 1, "uncertain": 1, "dead": 1}

    def test_comes_back_to_the_state_that_was_looked_at(self, boss: Client, entries: dict[State, str]) -> None:
        answer = boss.post(f"{LEDGER}?state=dead", {"action": "retry", "all": "on", "confirmed": "yes"})
        assert answer.headers["Location"] == f"{LEDGER}?state=dead"

    def test_of_an_unknown_kind_is_refused(self, boss: Client, ledger: Ledger, entries: dict[State, str]) -> None:
        assert boss.post(LEDGER, {"action": "forget", "all": "on", "confirmed": "yes"}).status_code == 400
        assert states(ledger) == {"unsent": 1, "uncertain": 1, "dead": 1}

    def test_by_get_does_nothing(self, boss: Client, ledger: Ledger, entries: dict[State, str]) -> None:
        boss.get(LEDGER, {"action": "discard", "all": "on", "confirmed": "yes"})
        assert states(ledger) == {"unsent": 1, "uncertain": 1, "dead": 1}

    def test_without_a_csrf_token_is_refused(self, ledger: Ledger, entries: dict[State, str]) -> None:
        client = Client(enforce_csrf_checks=True)
        client.force_login(User.objects.create_superuser("eve"))
        answer = client.post(LEDGER, {"action": "discard", "all": "on", "confirmed": "yes"})
        assert answer.status_code == 403
        assert states(ledger) == {"unsent": 1, "uncertain": 1, "dead": 1}


class TestPermissions:
    def test_none_sees_no_page(self, ledger: Ledger) -> None:
        client = signed_in()
        assert client.get(LEDGER).status_code == 403
        assert client.get(ENTITLEMENTS).status_code == 403

    def test_nobody_signed_in_goes_to_the_login_page(self, ledger: Ledger) -> None:
        assert Client().get(LEDGER).headers["Location"].startswith("/admin/login/")

    @pytest.mark.parametrize(
        ("permissions", "offered"),
        [(["view"], set()), (["change"], {"retry"}), (["view", "delete"], {"discard"})],
    )
    def test_decide_what_is_offered_and_what_is_done(
        self, ledger: Ledger, entries: dict[State, str], permissions: list[str], offered: set[str]
    ) -> None:
        client = signed_in(*permissions)
        page = client.get(LEDGER).content.decode()
        assert set(re.findall(r'name="action" value="(\w+)"', page)) == offered
        for action in ("retry", "discard"):
            asked = client.post(LEDGER, {"action": action, "all": "on"})
            assert asked.status_code == (200 if action in offered else 403)

    def test_nobody_can_add_an_entry(self, boss: Client, ledger: Ledger) -> None:
        assert boss.get(f"{LEDGER}add/").status_code == 404


class TestEntitlements:
    def test_shows_what_the_customer_has(self, boss: Client, ledger: Ledger) -> None:
        page = text_of(boss.get(ENTITLEMENTS, {"customer": "customer-demo-01"}))
        assert "feature-templates 3 of 6 templates" in page
        assert "feature-custom-domain included" in page

    def test_of_a_resource_are_its_own(self, boss: Client, ledger: Ledger) -> None:
        asked = {"customer": "customer-demo-01", "resource": "site-01"}
        assert "0 of 6 templates" in text_of(boss.get(ENTITLEMENTS, asked))

    def test_without_a_subscription_says_so(self, boss: Client, ledger: Ledger) -> None:
        page = text_of(boss.get(ENTITLEMENTS, {"customer": "customer-demo-04"}))
        assert "This customer has no active subscription." in page

    @pytest.mark.parametrize(
        ("customer", "told"), [("nobody", "knows no customer 'nobody'"), (" ", "This field is required.")]
    )
    def test_of_nobody_says_so(self, boss: Client, ledger: Ledger, customer: str, told: str) -> None:
        assert told in text_of(boss.get(ENTITLEMENTS, {"customer": customer}))

    def test_without_a_question_is_an_empty_form(self, boss: Client, ledger: Ledger) -> None:
        page = text_of(boss.get(ENTITLEMENTS))
        assert "Customer id" in page
        assert "required" not in page

    def test_while_the_sidecar_is_away_says_so(self, boss: Client, settings: Any) -> None:
        settings.STIGG_GUARD = {**settings.STIGG_GUARD, "SIDECAR": "127.0.0.1:9", "LEDGER": "memory://"}
        answer = boss.get(ENTITLEMENTS, {"customer": "customer-demo-01"})
        assert answer.status_code == 200
        assert "127.0.0.1:9" in text_of(answer)


class TestModel:
    def test_needs_no_new_migration(self) -> None:
        call_command("makemigrations", "--check", "--dry-run", "stigg_guard", stdout=StringIO())

    def test_has_no_table(self) -> None:
        assert not [name for name in connection.introspection.table_names() if name.startswith("stigg_guard_ledgerent")]

    @pytest.mark.parametrize("use_base_manager", [False, True])
    def test_leaves_nothing_to_dump(self, use_base_manager: bool) -> None:
        dumped = StringIO()
        call_command("dumpdata", "stigg_guard", use_base_manager=use_base_manager, stdout=dumped)
        assert dumped.getvalue().strip() == "[]"

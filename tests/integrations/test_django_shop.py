"""The example shop as it is run: by gunicorn, preloaded, in two workers, before a real sidecar."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from stigg_guard.sidecar.server import Sidecar

SHOP = Path(__file__).parents[2] / "example_projects" / "django_shop"
GUNICORN = ["-m", "gunicorn", "--preload", "--workers=2", "--threads=2", "--bind=127.0.0.1:0", "--no-control-socket"]


class Visitor:
    """A browser: it keeps cookies, follows redirects and sends the forms of the page it is on."""

    def __init__(self, site: str) -> None:
        self._site = site
        self._session = requests.Session()
        # A connection that is kept would keep the server from ending.
        self._session.headers.update({"Accept": "text/html", "Connection": "close"})
        self.get("/")

    def get(self, path: str, **headers: str) -> requests.Response:
        return self._session.get(self._site + path, headers=headers, timeout=10)

    def post(self, path: str, **fields: Any) -> requests.Response:
        token = self._session.cookies["csrftoken"]
        return self._session.post(self._site + path, {"csrfmiddlewaretoken": token, **fields}, timeout=10)


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the database of a shop that nobody has visited yet."""
    folder = tmp_path_factory.mktemp("shop")
    subprocess.run([sys.executable, "manage.py", "migrate"], cwd=SHOP, env=_environ(folder), check=True)
    return folder


def _environ(folder: Path) -> dict[str, str]:
    return {**os.environ, "SHOP_DATA": str(folder), "DJANGO_SETTINGS_MODULE": "shop.settings"}


@pytest.fixture
def shop(sidecar: Sidecar, migrated: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a running shop."""
    shutil.copytree(migrated, tmp_path, dirs_exist_ok=True)
    environ = _environ(tmp_path) | {
        "STIGG_GUARD_SIDECAR": sidecar.address,
        "STIGG_SIDECAR_HTTP": str(sidecar.http_address),
    }
    command = [sys.executable, *GUNICORN, "shop.wsgi:application"]
    with subprocess.Popen(command, cwd=SHOP, env=environ, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        said = ""
        for line in server.stderr:
            said += line
            if listening := re.search(r"Listening at: (http://\S+)", line):
                yield listening[1]
                break
        else:
            pytest.fail(f"the shop did not start: {said}")
        server.terminate()
        server.communicate()


@pytest.fixture
def ada(shop: str) -> Visitor:
    """A visitor who signed in with the essentials plan: 3 of 6 templates, no analytics."""
    visitor = Visitor(shop)
    assert "Your templates" in visitor.post("/sign-in/", user="ada").text
    return visitor


def test_templates_are_created_until_the_plan_denies_and_deleting_makes_room(ada: Visitor) -> None:
    created = [ada.post("/templates/", name=f"Poster {n}", kind="poster") for n in range(4)]
    assert [response.status_code for response in created] == [200, 200, 200, 402]
    assert "6 of 6 templates" in created[2].text
    assert 'href="/upgrade/?feature=feature-templates"' in created[3].text
    newest = re.search(r"/templates/\d+/delete/", created[2].text)
    assert newest is not None
    assert "5 of 6 templates" in ada.post(newest[0]).text
    assert ada.post(newest[0]).status_code == 404


def test_a_form_with_mistakes_is_not_counted(ada: Visitor) -> None:
    response = ada.post("/templates/", name="", kind="poster")
    assert response.status_code == 422
    assert "3 of 6 templates" in ada.get("/").text


def test_an_upgrade_opens_what_the_plan_lacked(ada: Visitor) -> None:
    assert ada.get("/analytics/").status_code == 402
    assert "3 of 50 templates" in ada.post("/upgrade/").text


def test_each_api_request_is_counted_until_the_plan_denies(shop: str) -> None:
    linus = Visitor(shop)
    linus.post("/sign-in/", user="linus")
    answers = [linus.get("/api/templates/", Accept="application/json") for _ in range(4)]
    assert answers[0].json() == {"templates": [{"id": 16, "name": "Breakfast", "kind": "menu"}]}
    assert "feature-api-calls" in answers[0].headers["RateLimit"]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 402]
    assert answers[3].headers["Content-Type"] == "application/problem+json"
    assert answers[3].json()["limit"] == 100


def test_a_suggested_name_is_not_taken_and_counts_as_an_api_call(ada: Visitor) -> None:
    assert ada.get("/suggestion/?kind=menu").json() == {"name": "Summer menu"}
    ada.post("/templates/", name="Summer menu", kind="menu")
    assert ada.get("/suggestion/?kind=menu").json() == {"name": "Autumn menu"}
    assert "422 of 1,000 calls" in ada.get("/").text


def test_words_are_written_from_the_wallet_until_it_is_empty_and_again_after_a_top_up(shop: str) -> None:
    linus = Visitor(shop)
    assert "980 of 2,000 credits" in linus.post("/sign-in/", user="linus").text
    written = linus.post("/templates/16/words/").text
    assert "Breakfast. Bread from next door" in written
    used = re.search(r"([\d,]+) of 2,000 credits", written)
    assert used is not None
    assert 980 < int(used[1].replace(",", "")) < 1_100
    made = re.search(r"/templates/\d+/words/", linus.post("/templates/", name="Lunch", kind="menu").text)
    assert made is not None
    denied = linus.post(made[0])
    assert (denied.status_code, f"{used[1]} of 2,000 credits" in denied.text) == (402, True)
    assert 'href="/upgrade/?feature=feature-ai"' in denied.text
    assert f"{used[1]} of 12,000 credits" in linus.post("/top-up/").text
    assert "Lunch. Bread from next door" in linus.post(made[0]).text


def test_words_for_the_template_of_somebody_else_are_refused_and_take_nothing(ada: Visitor) -> None:
    assert ada.post("/templates/16/words/").status_code == 404
    assert "12,500 of 50,000 credits" in ada.get("/").text


def test_staff_sign_in_to_the_ledger(shop: str) -> None:
    staff = Visitor(shop)
    assert "Usage ledger" in staff.post("/sign-in/", user="staff").text


def test_a_visitor_must_sign_in(shop: str) -> None:
    response = Visitor(shop).get("/templates.csv")
    assert response.status_code == 401
    assert "Please sign in" in response.text


def test_only_known_users_sign_in(shop: str) -> None:
    assert "not known here" in Visitor(shop).post("/sign-in/", user="nobody").text


def test_templates_are_streamed_as_csv(ada: Visitor) -> None:
    lines = ada.get("/templates.csv").text.splitlines()
    assert lines[0] == "name,kind,created"
    assert [line.split(",")[0] for line in lines[1:]] == ["Gift voucher", "Jazz night", "Spring sale"]


def test_a_form_without_its_token_is_refused(ada: Visitor) -> None:
    assert ada.post("/templates/", name="Poster", kind="poster", csrfmiddlewaretoken="x").status_code == 403


def test_who_signs_up_is_on_the_free_plan_and_can_upgrade(shop: str) -> None:
    visitor = Visitor(shop)
    assert "0 of 2 templates" in visitor.post("/sign-up/", name="Studio North").text
    created = [visitor.post("/templates/", name=f"Poster {n}", kind="poster").status_code for n in range(3)]
    assert created == [200, 200, 402]
    assert "2 of 50 templates" in visitor.post("/upgrade/").text
    assert {visitor.get("/analytics/").status_code for _ in range(4)} == {200}  # whichever worker answers


def test_a_sign_up_without_a_name_makes_nothing(shop: str) -> None:
    assert "A studio has a name" in Visitor(shop).post("/sign-up/", name=" ").text

"""The Flask example project, walked through as its visitors and its API's clients would."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from stigg_guard.sidecar.server import Sidecar

SOURCE = Path(__file__).parents[2] / "example_projects" / "flask_api" / "app.py"
BROWSER = {"Accept": "text/html,*/*;q=0.8"}
ADA = {"Authorization": "Bearer demo-token-ada"}
LINUS = {"Authorization": "Bearer demo-token-linus"}


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("flask_api_example", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SOURCE.parent)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def make_app(example: ModuleType, sidecar: Sidecar, tmp_path: Path) -> Iterator[Callable[[], Flask]]:
    """Makes apps that share what the workers of one site share."""
    apps: list[Flask] = []

    def make(**settings: Any) -> Flask:
        settings = {
            "DATABASE": str(tmp_path / "shop.sqlite3"),
            "STIGG_GUARD_API_URL": f"http://{sidecar.http_address}",
            "STIGG_GUARD_SIDECAR": sidecar.address,
            "STIGG_GUARD_LEDGER": f"sqlite:///{tmp_path / 'ledger.sqlite3'}",
            **settings,
        }
        apps.append(example.create_app(settings))
        return apps[-1]

    yield make
    for app in apps:
        app.extensions["stigg_guard"].guard.close()


class Visitor:
    """Somebody with a browser, who sends the forms of the pages seen."""

    def __init__(self, client: FlaskClient) -> None:
        self.client = client
        self.page = self.get("/")

    def get(self, path: str) -> TestResponse:
        self.page = self.client.get(path, headers=BROWSER, follow_redirects=True)
        return self.page

    def post(self, path: str, **fields: str) -> TestResponse:
        token = re.search(r'name="csrf_token" value="([^"]+)"', self.page.text)
        assert token is not None
        data = {"csrf_token": token[1], **fields}
        self.page = self.client.post(path, data=data, headers=BROWSER, follow_redirects=True)
        return self.page


@pytest.fixture
def app(make_app: Callable[[], Flask]) -> Flask:
    return make_app()


@pytest.fixture
def ada(app: Flask) -> Visitor:
    visitor = Visitor(app.test_client())
    visitor.post("/sign-in", customer="customer-demo-01")
    return visitor


def save_template(visitor: Visitor) -> TestResponse:
    return visitor.post("/templates", title="Welcome", body="Dear {name}, welcome!")


def test_templates_are_saved_until_the_limit_and_again_after_the_upgrade(ada: Visitor) -> None:
    assert [save_template(ada).status_code for _ in range(4)] == [200, 200, 200, 402]
    denied = save_template(ada)
    assert "6 of 6 templates are used" in denied.text
    assert "/upgrade?feature=feature-templates" in denied.text
    assert "You are on Growth now" in ada.post("/upgrade").text
    assert "7 of 50 templates" in save_template(ada).text


def test_analytics_opens_with_the_upgrade(ada: Visitor) -> None:
    assert ada.get("/analytics/").status_code == 402
    ada.post("/upgrade")
    assert ada.get("/analytics/").status_code == 200


def test_other_workers_see_a_visitors_upgrade_at_once(make_app: Callable[[], Flask]) -> None:
    one, other = Visitor(make_app().test_client()), Visitor(make_app().test_client())
    for visitor in (one, other):
        visitor.post("/sign-in", customer="customer-demo-01")
        assert visitor.get("/analytics/").status_code == 402
    one.post("/upgrade")
    cookie = one.client.get_cookie("inkwell")
    assert cookie is not None
    other.client.set_cookie("inkwell", cookie.value)
    assert other.get("/analytics/").status_code == 200


def test_invalid_form_is_explained_and_counts_nothing(ada: Visitor) -> None:
    answer = ada.post("/templates", title="", body="")
    assert answer.status_code == 400
    assert "A template has a title" in answer.text
    assert "3 of 6 templates" in ada.get("/").text


def test_form_without_the_token_of_the_session_is_refused(ada: Visitor) -> None:
    answer = ada.client.post("/templates", data={"title": "Forged", "body": "x"}, headers=BROWSER)
    assert answer.status_code == 400
    assert "3 of 6 templates" in ada.get("/").text


def test_unknown_customer_cannot_sign_in(app: Flask) -> None:
    assert Visitor(app.test_client()).post("/sign-in", customer="customer-demo-99").status_code == 400


@pytest.mark.parametrize("path", ["/", "/upgrade"])
def test_signed_out_visitor_is_asked_to_sign_in(ada: Visitor, path: str) -> None:
    ada.post("/sign-out")
    assert "Letters that write themselves" in ada.get(path).text
    assert ada.get("/analytics/").status_code == 401


def test_customer_without_a_plan_is_led_to_the_plans(app: Flask) -> None:
    visitor = Visitor(app.test_client())
    assert "You have no plan yet" in visitor.post("/sign-in", customer="customer-demo-04").text
    assert "Upgrade to Growth" in visitor.get("/upgrade").text


def test_failed_upgrade_changes_nothing(make_app: Callable[..., Flask]) -> None:
    visitor = Visitor(make_app(STIGG_GUARD_API_URL="http://127.0.0.1:1").test_client())
    visitor.post("/sign-in", customer="customer-demo-01")
    assert visitor.post("/upgrade").status_code == 502
    assert visitor.get("/analytics/").status_code == 402


def test_outage_leaves_the_pages_standing(make_app: Callable[..., Flask]) -> None:
    visitor = Visitor(make_app(STIGG_GUARD_SIDECAR="127.0.0.1:1").test_client())
    assert "cannot be looked up" in visitor.post("/sign-in", customer="customer-demo-01").text
    assert save_template(visitor).status_code == 503


def test_api_writes_a_letter_for_each_name(app: Flask, ada: Visitor) -> None:
    save_template(ada)
    [template] = app.test_client().get("/api/templates", headers=ADA).get_json()
    request = {"template": template["id"], "names": ["Ada", "Grace", "Ada"]}
    answer = app.test_client().post("/api/letters", headers=ADA, json=request)
    assert answer.get_json() == {"letters": ["Dear Ada, welcome!", "Dear Grace, welcome!"]}
    assert "423 of 1,000 calls" in ada.get("/").text


def test_outage_after_a_save_leaves_the_pages_standing(ada: Visitor, sidecar: Sidecar) -> None:
    sidecar.stop()
    assert "is saved" in save_template(ada).text
    assert "of 6 templates" in ada.get("/").text


def test_streamed_letters_are_counted_when_the_last_one_was_sent(ada: Visitor) -> None:
    save_template(ada)
    ada.get("/")
    letters = ada.post("/letters", template="1", names="Ada\nGrace\n\n")
    assert [name in letters.text for name in ("Dear Ada", "Dear Grace")] == [True, True]
    assert "422 of 1,000 calls" in ada.get("/").text


@pytest.mark.parametrize(("template", "names", "status"), [("99", "Ada", 404), ("1", " \n", 400)])
def test_letters_that_cannot_be_written_are_not_counted(ada: Visitor, template: str, names: str, status: int) -> None:
    save_template(ada)
    ada.get("/")
    assert ada.post("/letters", template=template, names=names).status_code == status
    assert "420 of 1,000 calls" in ada.get("/").text


def test_command_line_tells_what_a_customer_may_use(app: Flask) -> None:
    result = app.test_cli_runner().invoke(args=["stigg", "check", "customer-demo-01", "feature-templates"])
    assert "3 of 6 templates" in result.output


def test_api_denies_what_exceeds_the_plan_with_the_figures(app: Flask) -> None:
    answer = app.test_client().post("/api/letters", headers=LINUS, json={"template": 1, "names": ["x"] * 4})
    assert answer.status_code == 402
    assert answer.get_json(force=True)["requested"] == 4
    assert "feature-api-calls" in answer.headers["RateLimit"]


def test_a_draft_takes_from_the_wallet_until_it_is_empty_and_again_after_a_top_up(app: Flask) -> None:
    linus = Visitor(app.test_client())
    assert "980 of 2,000 credits" in linus.post("/sign-in", customer="customer-demo-03").text
    drafted = linus.post("/draft", title="A thank-you")
    assert ("this is about: A thank-you" in drafted.text, "A draft is ready" in drafted.text) == (True, True)
    used = re.search(r"([\d,]+) of 2,000 credits", drafted.text)
    assert used is not None
    assert 980 < int(used[1].replace(",", "")) < 1_100
    denied = linus.post("/draft", title="One too many")
    assert (denied.status_code, f"{used[1]} of 2,000 credits" in denied.text) == (402, True)
    assert 'href="/upgrade?feature=feature-ai"' in denied.text
    linus.get("/upgrade?feature=feature-ai")
    assert f"{used[1]} of 12,000 credits" in linus.post("/top-up").text
    assert "A draft is ready" in linus.post("/draft", title="Now it fits").text


def test_a_draft_without_a_title_takes_nothing(ada: Visitor) -> None:
    assert ada.post("/draft", title=" ").status_code == 400
    assert "12,500 of 50,000 credits" in ada.get("/").text


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}])
def test_api_asks_for_a_known_token(app: Flask, headers: dict[str, str]) -> None:
    assert app.test_client().get("/api/templates", headers=headers).status_code == 401


@pytest.mark.parametrize(
    ("body", "status"),
    [({"template": 99, "names": ["x"]}, 404), ({"names": []}, 400), ({"names": [1]}, 400), (["x"], 400)],
)
def test_api_request_that_fails_is_not_counted(app: Flask, body: Any, status: int) -> None:
    client = app.test_client()
    answers = [client.post("/api/letters", headers=LINUS, json=body) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [status] * 5
    assert answers[0].content_type == "application/problem+json"
    assert [client.get("/api/templates", headers=LINUS).status_code for _ in range(4)] == [200, 200, 200, 402]


def test_who_signs_up_is_on_the_free_plan_and_can_upgrade(make_app: Callable[[], Flask]) -> None:
    app = make_app()
    visitor = Visitor(app.test_client())
    assert "room for two templates" in visitor.post("/sign-up", name="Barbara").text
    assert [save_template(visitor).status_code for _ in range(3)] == [200, 200, 402]
    token = re.search(r"Bearer (\S+?)[\"'<\s]", visitor.get("/").text)
    assert token is not None
    listed = app.test_client().get("/api/templates", headers={"Authorization": f"Bearer {token[1]}"})
    assert len(listed.get_json()) == 2
    visitor.post("/upgrade")
    assert "3 of 50 templates" in save_template(visitor).text


def test_a_sign_up_that_fails_makes_nothing(make_app: Callable[..., Flask]) -> None:
    visitor = Visitor(make_app(STIGG_GUARD_API_URL="http://127.0.0.1:1").test_client())
    assert visitor.post("/sign-up", name="").status_code == 400
    visitor.get("/")
    assert visitor.post("/sign-up", name="Barbara").status_code == 502
    assert "Choose whose account" in visitor.get("/").text


def test_options_are_flags_of_openfeature(app: Flask) -> None:
    client = app.test_client()
    assert client.get("/api/options", headers=ADA).json == {
        "custom_domain": True,
        "storage_gb": 100,
        "regions": ["eu", "us"],
    }
    assert client.get("/api/options", headers=LINUS).json == {
        "custom_domain": False,
        "storage_gb": 5,
        "regions": ["eu"],
    }


def test_metrics_count_what_was_asked(app: Flask) -> None:
    client = app.test_client()
    for _ in range(2):
        client.get("/api/options", headers=ADA)
    page = client.get("/metrics")
    assert page.mimetype == "text/plain"
    assert re.search(r'^stigg_guard_checks_total\{outcome="granted",source="cache"\} [1-9]', page.text, re.MULTILINE)
    assert client.get("/metrics", environ_base={"REMOTE_ADDR": "203.0.113.5"}).status_code == 404

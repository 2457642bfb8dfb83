"""Guarded Django views over a real sidecar: who gets in, what is counted, what the others are answered with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import requests
from django.core.exceptions import ImproperlyConfigured
from django.http import FileResponse, HttpRequest, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.test import Client, RequestFactory
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View

from conftest import full_disk
from stigg_guard import ConfigError, Customer, Guard, InvalidRequest
from stigg_guard.django import consumes_usage, customer_of, get_guard, releases_usage, requires_feature
from stigg_guard.sidecar.server import Sidecar

TEMPLATES = "feature-templates"
ACTIVE = "feature-active-users"  # counted by events
DEMO = "customer-demo-01"  # essentials: 3 of 6 templates used, no analytics
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@requires_feature("feature-custom-domain")
def domain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("your domain")


@requires_feature("feature-analytics")
def analytics(request: HttpRequest) -> HttpResponse:
    return HttpResponse("your figures")


@requires_feature(TEMPLATES)
@consumes_usage(1)
def create(request: HttpRequest, status: int = 201) -> HttpResponse:
    return HttpResponse("created", status=status)


@consumes_usage(lambda request: int(request.GET["n"]), TEMPLATES)
def create_many(request: HttpRequest) -> HttpResponse:
    return HttpResponse("created")


@consumes_usage(lambda request: request.GET["n"], TEMPLATES)
def create_unread(request: HttpRequest) -> HttpResponse:
    raise AssertionError("the view must not run")


@consumes_usage(1, TEMPLATES)
def create_and_go(request: HttpRequest) -> HttpResponse:
    return HttpResponseRedirect("/domain")


@consumes_usage(2, TEMPLATES)
def create_and_fail(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("out of paper")


@releases_usage(lambda request: int(request.GET["n"]), TEMPLATES)
def remove_many(request: HttpRequest, status: int = 200) -> HttpResponse:
    return HttpResponse(status=status)


@consumes_usage(1, ACTIVE, event="user_login", dimensions=lambda request: {"user_id": request.GET["user"]})
def log_in(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


@consumes_usage(1, ACTIVE, event="user_login", dimensions={"user_id": "robot"})
def log_robot_in(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


@consumes_usage(2, TEMPLATES)
def stream(request: HttpRequest, status: int = 200) -> StreamingHttpResponse:
    def parts() -> Iterator[bytes]:
        yield b"one "
        if "fail" in request.GET:
            raise OSError("out of paper")
        yield b"two"

    return StreamingHttpResponse(parts(), status=status)


@consumes_usage(2, TEMPLATES)
def download(request: HttpRequest) -> FileResponse:
    return FileResponse(BytesIO(b"a template"), filename="template.txt")


@consumes_usage(3, TEMPLATES, actual=lambda response: int(response["X-Made"]))
def create_some(request: HttpRequest) -> HttpResponse:
    return HttpResponse(headers={"X-Made": "1"})


@consumes_usage(lambda request, n: n, TEMPLATES, methods=["POST"])
def create_named(request: HttpRequest, n: int, name: str) -> HttpResponse:
    return HttpResponse(name)


@consumes_usage(1, TEMPLATES, resource="site")
def create_in(request: HttpRequest, site: str) -> HttpResponse:
    return HttpResponse("created")


@requires_feature("feature-custom-domain", resource=lambda request: request.GET["site"])
def domain_of(request: HttpRequest) -> HttpResponse:
    return HttpResponse("the site's domain")


@consumes_usage(1, TEMPLATES)
def page(request: HttpRequest) -> TemplateResponse:
    return TemplateResponse(request, engines["django"].from_string("{{ made }}"), {"made": lambda: made(request)})


def made(request: HttpRequest) -> str:
    if "fail" in request.GET:
        raise OSError("out of ink")
    return "made"


@consumes_usage(1, TEMPLATES)
def nothing(request: HttpRequest) -> None:
    """Forgets its response."""


def report_nothing(request: HttpRequest) -> HttpResponse:
    get_guard().report("", 1, customer=DEMO)
    raise AssertionError("an empty feature id is refused")


class CreateView(View):
    @method_decorator([requires_feature(TEMPLATES), consumes_usage(1)])
    def post(self, request: HttpRequest, name: str) -> HttpResponse:
        return HttpResponse(f"created {name}")


@method_decorator(requires_feature("feature-analytics"), name="dispatch")
class AnalyticsView(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        raise AssertionError("the view must not run")


urlpatterns = [
    path("domain", domain),
    path("analytics", analytics),
    path("create", create),
    path("create/<int:status>", create),
    path("create-many", create_many),
    path("create-unread", create_unread),
    path("create-and-go", create_and_go),
    path("create-and-fail", create_and_fail),
    path("remove-many", remove_many),
    path("remove-many/<int:status>", remove_many),
    path("log-in", log_in),
    path("log-robot-in", log_robot_in),
    path("stream", stream),
    path("stream/<int:status>", stream),
    path("download", download),
    path("report-nothing", report_nothing),
    path("create-some", create_some),
    path("create-named/<int:n>/<str:name>", create_named),
    path("sites/<str:site>/create", create_in),
    path("domain-of", domain_of),
    path("page", page),
    path("page-of-two", consumes_usage(2, TEMPLATES)(page)),
    path("nothing", nothing),
    path("class/create/<str:name>", CreateView.as_view()),
    path("class/analytics", AnalyticsView.as_view()),
]

pytestmark = pytest.mark.urls(__name__)


@pytest.fixture(autouse=True)
def site(sidecar: Sidecar, settings: Any) -> Any:
    """The settings of a site that asks the sidecar."""
    settings.STIGG_GUARD = {
        **settings.STIGG_GUARD,
        "SIDECAR": sidecar.address,
        "TIMEOUT": 20,
        "UPGRADE_URL": "/plans?for={feature}",
    }
    return settings


@pytest.fixture
def web() -> Client:
    """A client whose customer is signed in."""
    return Client(REMOTE_USER=DEMO, raise_request_exception=False)


def used(guard: Guard, feature: str = TEMPLATES) -> float:
    """What the sidecar has counted, asked by a guard of its own."""
    guard.reload(DEMO)
    return guard.check(feature, customer=DEMO).current_usage


def asked(sidecar: Sidecar, method: str) -> float:
    """How many calls of the method the sidecar has answered."""
    return sum(
        float(line.rpartition(" ")[2])
        for line in requests.get(f"http://{sidecar.http_address}/metrics", timeout=5).text.splitlines()
        if line.startswith("sidecar_requests_total") and f'method="{method}"' in line
    )


def test_a_view_runs_for_a_customer_whose_plan_has_the_feature(web: Client) -> None:
    response = web.get("/domain")
    assert (response.status_code, response.content) == (200, b"your domain")


def test_a_feature_outside_the_plan_is_answered_402_as_problem_json(web: Client) -> None:
    response = web.get("/analytics")
    assert response.status_code == 402
    assert response["Content-Type"] == "application/problem+json"
    assert response["Cache-Control"] == "no-store"
    problem = json.loads(response.content)
    assert problem["feature"] == "feature-analytics"
    assert problem["reason"] == "NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION"
    assert problem["upgrade_url"] == "/plans?for=feature-analytics"


def test_a_browser_gets_a_page_that_links_to_the_upgrade(web: Client) -> None:
    response = web.get("/analytics", headers=BROWSER)
    assert response.status_code == 402
    assert response["Content-Type"] == "text/html; charset=utf-8"
    assert 'href="/plans?for=feature-analytics"' in response.content.decode()


def test_the_page_does_not_localise_the_numbers_of_its_markup(web: Client, site: Any) -> None:
    site.LANGUAGE_CODE = "de"
    site.USE_THOUSAND_SEPARATOR = True
    page = web.get("/create-many?n=9", headers=BROWSER).content.decode()
    assert '<progress value="0.5"' in page


def test_a_template_of_the_project_replaces_the_page(web: Client, site: Any) -> None:
    own = {"stigg_guard/denied.html": "{{ denial.title }} {{ request.path }}"}
    loaders = [("django.template.loaders.locmem.Loader", own)]
    options = {"loaders": loaders, "context_processors": ["django.template.context_processors.request"]}
    site.TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "OPTIONS": options}]
    page = web.get("/analytics", headers=BROWSER)
    assert (page.status_code, page.content.decode()) == (402, "Your plan does not include this feature /analytics")


def test_the_status_of_a_denial_follows_the_settings(web: Client, site: Any) -> None:
    codes = {"NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION": 404}
    site.STIGG_GUARD = {**site.STIGG_GUARD, "STATUS_CODES": codes}
    assert web.get("/analytics").status_code == 404


def test_an_archived_customer_is_answered_403(client: Client) -> None:
    assert client.get("/domain", REMOTE_USER="customer-demo-05").status_code == 403


@pytest.mark.parametrize("url", ["/domain", "/create"])
def test_an_anonymous_visitor_is_answered_401_and_nothing_is_asked(client: Client, sidecar: Sidecar, url: str) -> None:
    response = client.get(url)
    assert response.status_code == 401
    assert json.loads(response.content)["detail"].startswith("Please sign in. ")
    assert asked(sidecar, "GetEntitlementsStateV2") == 0


def test_an_anonymous_browser_gets_a_page(client: Client) -> None:
    response = client.get("/domain", headers=BROWSER)
    assert response.status_code == 401
    assert "<h1>Please sign in</h1>" in response.content.decode()


def test_a_success_is_counted_once(web: Client, guard: Guard) -> None:
    assert web.post("/create").status_code == 201
    assert used(guard) == 4


def test_a_redirect_is_a_success(web: Client, guard: Guard) -> None:
    assert web.post("/create-and-go").status_code == 302
    assert used(guard) == 4


@pytest.mark.parametrize("status", [400, 404, 422, 500])
def test_a_response_of_failure_is_not_counted(web: Client, guard: Guard, status: int) -> None:
    assert web.post(f"/create/{status}").status_code == status
    assert used(guard) == 3
    assert web.get("/create-many?n=3").status_code == 200


def test_an_exception_is_not_counted_and_gives_the_units_back(web: Client, guard: Guard) -> None:
    assert web.post("/create-and-fail").status_code == 500
    assert used(guard) == 3
    assert web.get("/create-many?n=3").status_code == 200


def test_the_amount_may_come_from_the_request(web: Client, guard: Guard) -> None:
    assert web.get("/create-many?n=2").status_code == 200
    assert used(guard) == 5


def test_an_amount_over_the_limit_is_denied_with_the_figures(web: Client, guard: Guard) -> None:
    response = web.get("/create-many?n=4")
    assert response.status_code == 402
    problem = json.loads(response.content)
    assert (problem["limit"], problem["usage"], problem["requested"]) == (6, 3, 4)
    assert used(guard) == 3


@pytest.mark.parametrize("url", ["/create-many?n=-1", "/create-unread?n=1", "/create-unread?n=nan"])
def test_a_bad_amount_is_answered_400_and_holds_nothing(web: Client, guard: Guard, url: str) -> None:
    response = web.get(url)
    assert (response.status_code, response["Content-Type"]) == (400, "application/problem+json")
    assert used(guard) == 3
    assert web.get("/create-many?n=3").status_code == 200


def test_a_bad_id_is_a_fault_of_the_site(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="feature_id"):
        client.get("/report-nothing")


def test_what_was_really_used_is_reported_in_place_of_what_was_held(web: Client, guard: Guard) -> None:
    assert web.get("/create-some").status_code == 200
    assert used(guard) == 4


def test_the_amount_may_come_from_the_url(web: Client, guard: Guard) -> None:
    assert web.post("/create-named/2/poster").content == b"poster"
    assert used(guard) == 5


def test_only_the_named_methods_are_guarded(web: Client, guard: Guard) -> None:
    assert web.get("/create-named/9/poster").content == b"poster"
    assert used(guard) == 3


def test_the_url_may_name_a_resource_of_the_customer(web: Client, guard: Guard) -> None:
    assert web.get("/sites/site-01/create").status_code == 200
    assert guard.check(TEMPLATES, customer=Customer(DEMO, "site-01")).current_usage == 1
    assert web.get("/sites/nowhere/create").status_code == 403


def test_the_request_may_name_a_resource_of_the_customer(web: Client) -> None:
    assert web.get("/domain-of?site=site-01").content == b"the site's domain"
    assert web.get("/domain-of").status_code == 400


def test_a_page_is_counted_when_it_is_rendered(web: Client, guard: Guard) -> None:
    assert web.get("/page").content == b"made"
    assert used(guard) == 4


def test_a_page_that_cannot_be_rendered_is_given_back(web: Client, guard: Guard) -> None:
    assert web.get("/page?fail").status_code == 500
    assert (used(guard), get_guard().stats()["held"]) == (3, 0)


@pytest.mark.parametrize(("query", "status", "units"), [("", 200, 6), ("?fail", 500, 3)])
def test_a_page_under_two_guards_is_settled_by_both(
    web: Client, guard: Guard, query: str, status: int, units: float
) -> None:
    assert web.get(f"/page-of-two{query}").status_code == status
    assert (used(guard), get_guard().stats()["held"]) == (units, 0)


def test_a_view_that_returns_nothing_is_told_by_django_and_not_counted(client: Client, guard: Guard) -> None:
    with pytest.raises(ValueError, match="didn't return an HttpResponse"):
        client.get("/nothing", REMOTE_USER=DEMO)
    assert (used(guard), get_guard().stats()["held"]) == (3, 0)


def test_what_is_left_is_shared_exactly_between_threads(guard: Guard) -> None:
    def ask(_: int) -> int:
        return Client(REMOTE_USER=DEMO).post("/create").status_code

    with ThreadPoolExecutor(8) as threads:
        statuses = list(threads.map(ask, range(16)))
    assert sorted(statuses) == [201] * 3 + [402] * 13
    assert get_guard().flush(30) == 0
    assert used(guard) == 6


def test_a_method_of_a_class_based_view_is_guarded_and_counted(web: Client, guard: Guard) -> None:
    assert web.post("/class/create/poster").content == b"created poster"
    assert used(guard) == 4


def test_a_class_based_view_is_guarded_as_a_whole(web: Client) -> None:
    assert web.get("/class/analytics").status_code == 402


def test_usage_of_no_feature_is_an_error_with_the_remedy(rf: RequestFactory) -> None:
    view = consumes_usage(1)(lambda request: HttpResponse())
    with pytest.raises(ConfigError, match="name it"):
        view(rf.get("/", REMOTE_USER=DEMO))


def test_a_decorated_view_keeps_its_name() -> None:
    assert (create.__name__, create.__module__) == ("create", __name__)


def test_the_customer_is_looked_up_once_per_request(rf: RequestFactory, site: Any) -> None:
    lookups: list[str] = []

    def customer(request: HttpRequest) -> str:
        lookups.append(request.path)
        return DEMO

    site.STIGG_GUARD = {**site.STIGG_GUARD, "CUSTOMER": customer}
    assert create(rf.post("/create")).status_code == 201
    assert lookups == ["/create"]


@pytest.mark.parametrize("guard_by", [consumes_usage, releases_usage])
def test_an_amount_that_is_text_is_told_to_the_developer_as_what_it_is(
    site: Any, rf: RequestFactory, caplog: pytest.LogCaptureFixture, guard_by: Any
) -> None:
    view = guard_by(lambda request: request.GET["n"], TEMPLATES)(analytics)
    with pytest.raises(InvalidRequest):
        view(rf.get("/?n=3", REMOTE_USER=DEMO))
    (told,) = caplog.messages
    assert told == "n is computed as the text '3', where an amount is due: convert it, as by int()"


def test_as_many_units_are_given_back_as_the_response_says(site: Any, rf: RequestFactory, guard: Guard) -> None:
    def remove(request: HttpRequest) -> HttpResponse:
        return HttpResponse(headers={"X-Removed": "2"})

    removing = releases_usage(1, TEMPLATES, actual=lambda response: int(response["X-Removed"]))(remove)
    removing(rf.post("/", REMOTE_USER=DEMO))
    get_guard().flush()
    assert used(guard) == 1


def test_an_outage_is_answered_503_and_logged(web: Client, sidecar: Sidecar, caplog: pytest.LogCaptureFixture) -> None:
    sidecar.stop()
    response = web.get("/domain")
    assert response.status_code == 503
    assert int(response["Retry-After"]) >= 1
    assert json.loads(response.content)["detail"].startswith("Please try again. ")
    assert any("/domain cannot be guarded" in message for message in caplog.messages)


@pytest.mark.parametrize(("policy", "status"), [("allow", 200), ("deny", 403)])
def test_the_outage_policy_decides_with_a_cold_cache(
    web: Client, sidecar: Sidecar, site: Any, policy: str, status: int
) -> None:
    sidecar.stop()
    site.STIGG_GUARD = {**site.STIGG_GUARD, "ON_OUTAGE": policy}
    assert web.get("/domain").status_code == status


def test_what_is_cached_outlives_the_sidecar(web: Client, sidecar: Sidecar) -> None:
    web.get("/domain")
    sidecar.stop()
    assert web.get("/domain").status_code == 200


def test_a_disabled_guard_lets_everybody_pass_without_a_sidecar(client: Client, sidecar: Sidecar, site: Any) -> None:
    sidecar.stop()
    site.STIGG_GUARD = {"ENABLED": False}
    assert client.get("/analytics").status_code == 200
    assert client.post("/create").status_code == 201


def test_without_a_resolver_the_error_names_the_setting(rf: RequestFactory, sidecar: Sidecar, site: Any) -> None:
    site.STIGG_GUARD = {"SIDECAR": sidecar.address, "TIMEOUT": 20}
    with pytest.raises(ImproperlyConfigured, match="CUSTOMER"):
        customer_of(rf.get("/"))


def test_units_are_given_back_after_success(web: Client, guard: Guard) -> None:
    assert web.post("/remove-many?n=2").status_code == 200
    assert used(guard) == 1


def test_units_are_not_given_back_after_a_failure(web: Client, guard: Guard) -> None:
    assert web.post("/remove-many/409?n=2").status_code == 409
    assert used(guard) == 3


def test_usage_may_be_reported_as_events_with_dimensions(web: Client, guard: Guard) -> None:
    for url in ("/log-in?user=ann", "/log-in?user=bob", "/log-in?user=ann", "/log-robot-in"):
        assert web.post(url).status_code == 200
    assert used(guard, ACTIVE) == 3


@pytest.mark.parametrize(("url", "body"), [("/stream", b"one two"), ("/download", b"a template")])
def test_a_stream_is_counted_when_it_ends_and_held_until_then(web: Client, guard: Guard, url: str, body: bytes) -> None:
    response: Any = web.get(url)
    assert (used(guard), get_guard().stats()["held"]) == (3, 1)
    assert b"".join(response) == body
    assert (used(guard), get_guard().stats()["held"]) == (5, 0)


@pytest.mark.django_db  # a response that is closed ends its request, and Django looks after its connections
@pytest.mark.parametrize("url", ["/stream", "/download"])
def test_a_stream_that_the_client_leaves_is_given_back(web: Client, guard: Guard, url: str) -> None:
    response: Any = web.get(url)
    next(iter(response))
    response.close()
    assert (used(guard), get_guard().stats()["held"]) == (3, 0)


def test_a_stream_that_fails_is_given_back(web: Client, guard: Guard) -> None:
    response: Any = web.get("/stream?fail")
    with pytest.raises(OSError, match="out of paper"):
        list(response)
    assert (used(guard), get_guard().stats()["held"]) == (3, 0)


def test_a_stream_of_failure_is_given_back_at_once(web: Client, guard: Guard) -> None:
    assert web.get("/stream/500").status_code == 500
    assert get_guard().stats()["held"] == 0


def test_a_head_request_streams_nothing_and_is_given_back(web: Client, guard: Guard) -> None:
    response: Any = web.head("/stream")
    assert b"".join(response) == b""
    assert (used(guard), get_guard().stats()["held"]) == (3, 0)


def test_a_ledger_that_cannot_be_written_is_answered_503_and_logged(
    web: Client, site: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = tmp_path / "full.sqlite3"
    site.STIGG_GUARD = {**site.STIGG_GUARD, "LEDGER": f"sqlite:///{ledger}"}
    assert web.get("/domain").status_code == 200
    with full_disk(ledger):
        response = web.post("/create")
    assert (response.status_code, int(response["Retry-After"])) == (503, 1)
    assert any("/create cannot be guarded" in message for message in caplog.messages)

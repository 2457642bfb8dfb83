"""The middleware: rules by path, the plan of a request, anonymous requests, headers, several configurations."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Iterator
from html import unescape
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.conf.urls.i18n import i18n_patterns
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.template import engines
from django.template.response import TemplateResponse
from django.test import AsyncClient, Client, RequestFactory
from django.urls import include, path, reverse
from django.views.decorators.csrf import csrf_exempt

from conftest import in_child
from stigg_guard import Guard, InvalidRequest
from stigg_guard.django import consumes_usage, customer_of, exempt, get_guard, requires_feature
from stigg_guard.django.middleware import StiggGuardMiddleware
from stigg_guard.django.requests import displayed_plan
from stigg_guard.sidecar.server import Sidecar

TEMPLATES = "feature-templates"
DEMO = "customer-demo-01"  # essentials: 3 of 6 templates used, no analytics
GROWTH = "customer-demo-02"  # growth: with analytics
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def page(request: HttpRequest, status: int = 200) -> HttpResponse:
    return HttpResponse("page", status=status)


def stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(iter([b"one ", b"two"]))


def fail(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("out of paper")


def leave(request: HttpRequest) -> HttpResponse:
    raise SystemExit


@requires_feature("feature-analytics")
def analytics(request: HttpRequest) -> HttpResponse:
    return HttpResponse("your figures")


@requires_feature("feature-analytics", using="growth")
@consumes_usage(1, TEMPLATES)
def of_both(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"{customer_of(request)} {customer_of(request, 'growth')}")


@requires_feature("feature-nonsense", using="growth")
def of_growth(request: HttpRequest) -> HttpResponse:
    raise AssertionError("the view must not run")


@consumes_usage(1, TEMPLATES)
def create(request: HttpRequest) -> HttpResponse:
    return HttpResponse("created")


def plan(request: Any) -> HttpResponse:
    assert request.stigg is displayed_plan(request)
    return HttpResponse(f"{request.stigg.has(TEMPLATES)} {request.stigg.has('feature-analytics')}")


def sheet(request: HttpRequest) -> TemplateResponse:
    def made() -> str:
        if "fail" in request.GET:
            raise OSError("out of ink")
        return "made"

    return TemplateResponse(request, engines["django"].from_string("{{ made }}"), {"made": made})


@csrf_exempt
def hook(request: HttpRequest) -> HttpResponse:
    return HttpResponse("hooked")


def where(request: HttpRequest) -> HttpResponse:
    match = request.resolver_match
    assert match is not None
    addresses = [reverse("sign-in"), reverse("inner:page"), match.view_name, reverse("inner:where")]
    return HttpResponse(" ".join(addresses))


inner = [path("page", page, name="page"), path("where", where, name="where")]
urlpatterns = [
    path("ruled/sheet", sheet),
    path("ruled/create", create),
    path("ruled/hook", hook),
    path("inner/", include((inner, "inner"))),
    path("ruled/page", page),
    path("ruled/page/<int:status>", page),
    path("ruled/stream", stream),
    path("ruled/fail", fail),
    path("ruled/leave", leave),
    path("ruled/exempt", exempt(page)),
    path("ruled/open/page", page),
    path("figures/page", page),
    path("wrong/page", page),
    path("analytics", analytics),
    path("of-both", of_both),
    path("of-growth", of_growth),
    path("create", create),
    path("plan", plan),
    path("page", page),
    path("sign-in/", page, name="sign-in"),
]
RULES = [
    {"path": "/ruled/open/", "feature": None},
    {"path": "/ruled/", "feature": TEMPLATES, "consume": 2},
    {"path": "/figures/", "feature": "feature-analytics", "methods": ["POST"]},
]

pytestmark = pytest.mark.urls(__name__)


@pytest.fixture(autouse=True)
def site(sidecar: Sidecar, settings: Any) -> Any:
    """The settings of a site that asks the sidecar."""
    settings.STIGG_GUARD = {**settings.STIGG_GUARD, "SIDECAR": sidecar.address, "TIMEOUT": 20, "RULES": RULES}
    return settings


def change(site: Any, **more: Any) -> None:
    site.STIGG_GUARD = {**site.STIGG_GUARD, **more}


@pytest.fixture
def web() -> Client:
    """A client whose customer is signed in."""
    return Client(REMOTE_USER=DEMO, raise_request_exception=False)


def used(guard: Guard) -> float:
    """What the sidecar has counted, asked by a guard of its own."""
    guard.reload(DEMO)
    return guard.check(TEMPLATES, customer=DEMO).current_usage


def held() -> int:
    return get_guard().stats()["held"]


def test_a_rule_consumes_for_a_success(web: Client, guard: Guard) -> None:
    assert web.get("/ruled/page").content == b"page"
    assert (used(guard), held()) == (5, 0)


@pytest.mark.parametrize("url", ["/ruled/page/404", "/ruled/page/304", "/ruled/fail", "/ruled/nowhere"])
def test_a_rule_consumes_nothing_for_a_failure(web: Client, guard: Guard, url: str) -> None:
    web.get(url)
    assert (used(guard), held()) == (3, 0)


def test_a_rule_counts_a_stream_when_it_ends(web: Client, guard: Guard) -> None:
    response: Any = web.get("/ruled/stream")
    assert (used(guard), held()) == (3, 1)
    assert b"".join(response) == b"one two"
    assert (used(guard), held()) == (5, 0)


def test_a_worker_that_is_stopped_in_a_view_leaves_nothing_held(web: Client, guard: Guard) -> None:
    with pytest.raises(SystemExit):
        web.get("/ruled/leave")
    assert (used(guard), held()) == (3, 0)


def test_a_rule_denies_what_is_over_the_limit(web: Client, guard: Guard) -> None:
    assert web.get("/ruled/page").status_code == 200
    assert web.get("/ruled/page", headers=BROWSER).status_code == 402
    assert used(guard) == 5


def test_a_rule_guards_its_methods_only(web: Client) -> None:
    assert web.get("/figures/page").status_code == 200
    assert web.post("/figures/page").status_code == 402


def test_an_earlier_rule_may_exempt(web: Client, guard: Guard) -> None:
    assert web.get("/ruled/open/page").status_code == 200
    assert used(guard) == 3


def test_exempt_views_are_left_alone(client: Client) -> None:
    assert client.get("/ruled/exempt").status_code == 200


def test_other_middleware_goes_before_a_rule(site: Any, web: Client, guard: Guard) -> None:
    site.MIDDLEWARE = ["django.middleware.csrf.CsrfViewMiddleware", *site.MIDDLEWARE]
    assert Client(REMOTE_USER=DEMO, enforce_csrf_checks=True).post("/ruled/page").status_code == 403
    assert (used(guard), held()) == (3, 0)


class RedirectsViews:
    """Middleware that answers in place of a view."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_view(self, request: HttpRequest, *_: Any) -> HttpResponse:
        return HttpResponse(status=302, headers={"Location": "/elsewhere"})


def hide_failure(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware that answers in place of a view that has failed."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        return HttpResponse("sorry") if response.status_code >= 400 else response

    return middleware


@pytest.mark.parametrize(("middleware", "url"), [(RedirectsViews, "/ruled/page"), (hide_failure, "/ruled/page/500")])
def test_what_other_middleware_answers_is_not_counted(
    site: Any, web: Client, guard: Guard, middleware: Any, url: str
) -> None:
    site.MIDDLEWARE = [*site.MIDDLEWARE, f"{__name__}.{middleware.__name__}"]
    assert web.get(url).status_code < 400
    assert (used(guard), held()) == (3, 0)


def leave_when_answered(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware that ends the process once the view has answered and its transaction is committed."""

    def middleware(request: HttpRequest) -> HttpResponse:
        response = get_response(request)
        os._exit(0 if response.status_code == 200 else 1)

    return middleware


@pytest.fixture
def atomic_requests(site: Any, django_sqlite: str) -> Iterator[None]:
    """Requests are atomic in a database that has the ledger."""
    before = site.STIGG_GUARD
    connections.settings[django_sqlite]["ATOMIC_REQUESTS"] = True
    change(site, LEDGER=f"django://{django_sqlite}", DATABASE=django_sqlite)
    connections[django_sqlite].close()
    yield
    site.STIGG_GUARD = before


def test_a_process_that_is_killed_after_the_commit_loses_nothing_under_a_rule(
    site: Any, atomic_requests: None, web: Client, guard: Guard
) -> None:
    site.MIDDLEWARE = [*site.MIDDLEWARE, f"{__name__}.leave_when_answered"]
    assert in_child(lambda: bool(web.get("/ruled/page")))
    assert get_guard().flush(30) == 0
    assert (used(guard), held()) == (5, 0)


def other_urls(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Middleware that chooses the URLs of a request."""

    def middleware(request: HttpRequest) -> HttpResponse:
        if "other" in request.GET:
            request.urlconf = (path("ruled/other", page), path("ruled/exempt", exempt(page)), path("other", page))
        return get_response(request)

    return middleware


def test_rules_guard_the_urls_that_earlier_middleware_chose(site: Any, web: Client, guard: Guard) -> None:
    site.MIDDLEWARE = [f"{__name__}.other_urls", *site.MIDDLEWARE]
    assert web.get("/ruled/other?other").status_code == 200
    assert used(guard) == 5


def test_a_rule_counts_a_page_when_it_is_rendered(web: Client, guard: Guard) -> None:
    assert web.get("/ruled/sheet?fail").status_code == 500
    assert (used(guard), held()) == (3, 0)
    assert web.get("/ruled/sheet").content == b"made"
    assert used(guard) == 5


def test_a_rule_and_the_guard_of_a_view_are_both_in_force(web: Client, guard: Guard) -> None:
    assert web.get("/ruled/create").status_code == 200
    assert used(guard) == 6


def test_rules_leave_what_is_known_of_views_as_it_is(web: Client) -> None:
    assert Client(REMOTE_USER=DEMO, enforce_csrf_checks=True).post("/ruled/hook").content == b"hooked"
    assert web.get("/inner/where").content == b"/sign-in/ /inner/page inner:where /inner/where"


def test_a_site_under_rules_has_its_own_pages_for_errors(site: Any, web: Client) -> None:
    urls = ModuleType("shop_urls")
    vars(urls).update(urlpatterns=urlpatterns, handler404=lambda request, exception: HttpResponse("lost", status=404))
    site.ROOT_URLCONF = urls
    assert web.get("/nowhere").content == b"lost"


@pytest.mark.parametrize("urlconf", ["its path", "a module"])
def test_the_page_for_developers_names_the_urls_of_the_site(site: Any, web: Client, urlconf: str) -> None:
    site.DEBUG = True
    if urlconf == "a module":
        site.ROOT_URLCONF = import_module(__name__)
    told = web.get("/nowhere", headers=BROWSER).content.decode()
    assert f"Using the URLconf defined in <code>{__name__}</code>" in told
    assert re.search(r"sign-in/\s*\[name='sign-in'\]", unescape(told))


def test_pages_in_several_languages_are_found_under_rules(site: Any, web: Client) -> None:
    site.MIDDLEWARE = ["django.middleware.locale.LocaleMiddleware", *site.MIDDLEWARE]
    site.ROOT_URLCONF = tuple(i18n_patterns(path("page", page), prefix_default_language=True))
    change(site, RULES=[{"path": "/en/", "feature": "feature-analytics"}])
    assert web.get("/page")["Location"] == "/en/page"
    assert web.get("/de/page").status_code == 200
    assert web.get("/en/page").status_code == 402


def test_urls_that_cannot_be_loaded_are_told_under_rules(
    site: Any, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_urls.py").write_text("import os\nos.no_such_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    site.ROOT_URLCONF = "broken_urls"
    with pytest.raises(ImproperlyConfigured, match=r"the URLconf broken_urls cannot be loaded: .*no_such_name"):
        client.get("/page")


@pytest.mark.parametrize("ask", [Client.get, lambda client, url: asyncio.run(AsyncClient().get(url))])
def test_urls_that_later_middleware_chooses_are_refused_where_a_rule_is_met(site: Any, ask: Any) -> None:
    site.MIDDLEWARE = [*site.MIDDLEWARE, f"{__name__}.other_urls"]
    with pytest.raises(ImproperlyConfigured, match="put StiggGuardMiddleware below it"):
        ask(Client(), "/ruled/other?other")
    assert [ask(Client(), f"{url}?other").status_code for url in ["/other", "/ruled/exempt"]] == [200, 200]


def test_a_wrong_resource_of_the_site_is_no_answer_to_the_client(site: Any, client: Client) -> None:
    change(site, CUSTOMER=lambda _: "")
    with pytest.raises(InvalidRequest, match="customer_id"):
        client.get("/ruled/page")


def test_the_request_has_its_plan(web: Client) -> None:
    assert web.get("/plan").content == b"True False"


def test_nobody_has_nothing(client: Client) -> None:
    assert client.get("/plan").content == b"False False"


def test_nobody_is_looked_up_for_a_plan_that_is_not_asked_for(site: Any, client: Client) -> None:
    asked: list[HttpRequest] = []
    change(site, CUSTOMER=asked.append)
    assert client.get("/page").status_code == 200
    assert asked == []
    client.get("/plan")
    assert len(asked) == 1


@pytest.mark.parametrize("url", ["/analytics", "/ruled/page"])
def test_anonymous_browsers_are_sent_to_the_login_page_of_the_project(site: Any, client: Client, url: str) -> None:
    site.LOGIN_URL = "sign-in"
    change(site, ANONYMOUS="login")
    response = client.get(f"{url}?of=today", headers=BROWSER)
    assert (response.status_code, response.url) == (
        302,
        f"/sign-in/?next={url.replace('/', '%2F')}%3Fof%3Dtoday",
    )
    assert client.get(url).status_code == 401


@pytest.mark.parametrize(("given", "address"), [("/customers/", "/customers/"), ("sign-in", "/sign-in/")])
def test_the_login_page_may_be_named_for_the_guard_alone(site: Any, client: Client, given: str, address: str) -> None:
    change(site, ANONYMOUS="login", LOGIN_URL=given)
    assert client.get("/analytics", headers=BROWSER)["Location"].startswith(f"{address}?next=")


def test_a_login_page_without_an_address_spoils_no_other_denial(site: Any, web: Client) -> None:
    change(site, ANONYMOUS="login", LOGIN_URL="nowhere")
    assert web.get("/analytics").status_code == 402


def test_anonymous_requests_may_have_what_a_free_customer_has(site: Any, client: Client) -> None:
    change(site, ANONYMOUS=f"customer:{DEMO}")
    assert client.get("/create").status_code == 200
    assert client.get("/analytics").status_code == 402
    assert client.get("/plan").content == b"True False"


@pytest.mark.parametrize("url", ["/create", "/ruled/page"])
def test_headers_tell_what_is_left(site: Any, web: Client, url: str) -> None:
    change(site, RATE_LIMIT_HEADERS=True)
    response = web.get(url)
    assert response["RateLimit"] == f'"{TEMPLATES}";r={2 if url == "/create" else 1}'
    assert response["RateLimit-Policy"] == f'"{TEMPLATES}";q=6'


def test_headers_of_a_denial_tell_what_is_left(site: Any, web: Client) -> None:
    change(site, RATE_LIMIT_HEADERS=True)
    web.get("/ruled/page")
    assert web.get("/ruled/page")["RateLimit"] == f'"{TEMPLATES}";r=1'


def test_headers_are_not_told_unasked(web: Client) -> None:
    assert "RateLimit" not in web.get("/create")


def test_a_wrong_setting_ends_the_start_of_the_server(site: Any) -> None:
    change(site, ON_OUTAG="allow")
    with pytest.raises(ImproperlyConfigured, match="did you mean ON_OUTAGE"):
        StiggGuardMiddleware(lambda _: HttpResponse())


@pytest.fixture
def two(site: Any, sidecar: Sidecar) -> None:
    """A site with a second configuration, whose customer is another one."""
    growth = {
        "SIDECAR": sidecar.address,
        "TIMEOUT": 20,
        "CUSTOMER": lambda _: GROWTH,
        "UPGRADE_URL": "/growth",
        "STATUS_CODES": {"FEATURE_NOT_FOUND": 418},
        "RULES": [{"path": "/figures/", "feature": "feature-analytics", "methods": ["GET"]}],
    }
    site.STIGG_GUARD = {"default": site.STIGG_GUARD, "growth": growth}


@pytest.mark.usefixtures("two")
def test_a_view_may_be_guarded_by_two_configurations(web: Client, guard: Guard) -> None:
    assert web.get("/of-both").content == f"{DEMO} {GROWTH}".encode()
    assert used(guard) == 4


@pytest.mark.usefixtures("two")
def test_a_denial_is_answered_by_the_configuration_that_denies(web: Client) -> None:
    assert web.get("/of-growth").status_code == 418
    assert "upgrade_url" not in json.loads(web.get("/analytics").content)


@pytest.mark.usefixtures("two")
def test_the_rules_of_all_configurations_are_in_force(web: Client) -> None:
    assert web.get("/figures/page").status_code == 200
    assert web.post("/figures/page").status_code == 402


@pytest.mark.usefixtures("two")
def test_the_plans_of_two_configurations_differ(rf: RequestFactory) -> None:
    request = rf.get("/", REMOTE_USER=DEMO)
    assert not displayed_plan(request).has("feature-analytics")
    assert displayed_plan(request, "growth").has("feature-analytics")


@pytest.mark.usefixtures("two")
def test_a_configuration_that_is_not_there_is_an_error_that_names_the_others() -> None:
    with pytest.raises(ImproperlyConfigured, match="no configuration 'eu'; it has default, growth"):
        get_guard("eu")

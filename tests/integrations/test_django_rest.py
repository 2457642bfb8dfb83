"""The guard in Django REST framework: who is permitted, what requests consume, and how refusals are rendered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.db import connection, transaction
from django.http import HttpResponseBase, StreamingHttpResponse
from django.test import Client
from django.urls import include, path
from django.utils.decorators import method_decorator
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework import serializers
from rest_framework.authentication import BaseAuthentication
from rest_framework.decorators import action, api_view, authentication_classes, permission_classes, throttle_classes
from rest_framework.exceptions import ValidationError
from rest_framework.permissions import BasePermission, IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter
from rest_framework.throttling import BaseThrottle
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet

from stigg_guard import PER_DOWNLOAD, InvalidRequest
from stigg_guard.django import consumes_usage, feature_denied, get_guard, requires_feature
from stigg_guard.django.rest import ConsumesUsage, HasFeature
from stigg_guard.sidecar.server import Sidecar

TEMPLATES = "feature-templates"
DEMO = "customer-demo-01"  # essentials: 3 of 6 templates used, no analytics
GROWTH = "customer-demo-02"


class TokenAuthentication(BaseAuthentication):
    """Knows users by their token, which is their customer's id."""

    def authenticate(self, request: Request) -> tuple[Any, None] | None:
        token = request.headers.get("Authorization")
        return (SimpleNamespace(customer=token, is_authenticated=True), None) if token else None

    def authenticate_header(self, request: Request) -> str:
        return "Token"


def customer_of_user(request: Any) -> str | None:
    user = getattr(request, "user", None) or AnonymousUser()
    return str(user.customer) if user.is_authenticated else None


class IsBoss(BasePermission):
    def has_permission(self, request: Request, view: APIView) -> bool:
        return "boss" in request.query_params


class NobodyPasses(BaseThrottle):
    def allow_request(self, request: Request, view: APIView) -> bool:
        return "hurry" not in request.query_params

    def wait(self) -> float:
        return 7


class Item(serializers.Serializer[Any]):
    name = serializers.CharField()


class Api(APIView):
    authentication_classes = (TokenAuthentication,)


class Domains(Api):
    permission_classes = (HasFeature("feature-custom-domain"),)

    def get(self, request: Request) -> Response:
        return Response("your domain")


class Analytics(Api):
    permission_classes = (IsAuthenticated, HasFeature("feature-analytics", methods=["POST", "PUT"]))

    def get(self, request: Request) -> Response:
        return Response("what there would be")

    def post(self, request: Request) -> Response:
        return Response("your figures")

    put = post


class BossOrAnalytics(Api):
    permission_classes = (IsBoss | HasFeature("feature-analytics"),)

    def get(self, request: Request) -> Response:
        return Response("your figures")


class Site(Api):
    permission_classes = (IsAuthenticated & HasFeature(TEMPLATES, resource="site"),)

    def get(self, request: Request, site: str) -> Response:
        return Response("your site")


class Create(Api):
    throttle_classes = (ConsumesUsage(1, TEMPLATES), NobodyPasses)

    def get(self, request: Request) -> Response:
        return Response(status=int(request.query_params.get("status", 200)))

    def post(self, request: Request) -> Response:
        if "fail" in request.query_params:
            raise RuntimeError("out of paper")
        Item(data=request.data).is_valid(raise_exception=True)
        return Response("created", status=201)


class SignUp(Api):
    throttle_classes = (ConsumesUsage(1, TEMPLATES),)

    def post(self, request: Request) -> Response:
        User.objects.create_user(request.data["name"])
        if "taken" in request.query_params:
            raise ValidationError("this name is taken")
        transaction.set_rollback("undo" in request.query_params)
        return Response("created", status=201)


class CreateMany(Api):
    throttle_classes = (ConsumesUsage(lambda request: int(request.data["n"]), TEMPLATES, methods=["POST"]),)

    def get(self, request: Request) -> Response:
        return Response("how many?")

    def post(self, request: Request) -> Response:
        return Response("created")


class CreateOnce(Api):
    throttle_classes = (ConsumesUsage(1, TEMPLATES, key=lambda request: request.headers.get("Idempotency-Key")),)

    def post(self, request: Request) -> Response:
        return Response("created", status=201)


class Download(Api):
    throttle_classes = (ConsumesUsage(1, TEMPLATES, key=PER_DOWNLOAD),)

    def get(self, request: Request) -> Response:
        return Response("a part", status=206, headers={"ETag": '"1"'})


class Stream(Api):
    throttle_classes = (ConsumesUsage(2, TEMPLATES, actual=lambda response: 1),)

    def get(self, request: Request) -> HttpResponseBase:
        return StreamingHttpResponse(iter([b"a", b"b"]))


@method_decorator(consumes_usage(2, TEMPLATES), name="create")
class TemplateSet(GenericViewSet[Any]):
    authentication_classes = (TokenAuthentication,)
    serializer_class = Item

    def list(self, request: Request) -> Response:
        return Response([])

    def create(self, request: Request) -> Response:
        return Response("created", status=201)

    @action(detail=False, permission_classes=[HasFeature("feature-analytics")])
    def figures(self, request: Request) -> Response:
        return Response("your figures")

    @action(detail=False, methods=["post"], throttle_classes=[ConsumesUsage(1, TEMPLATES)])
    def clone(self, request: Request) -> Response:
        return Response("cloned")


@api_view(["GET", "POST"])
@authentication_classes([TokenAuthentication])
@requires_feature("feature-analytics", methods=["POST"])
@consumes_usage(lambda request: int(request.query_params["n"]), TEMPLATES)
def decorated(request: Request) -> Response:
    return Response("created")


@api_view(["GET"])
@authentication_classes([TokenAuthentication])
@permission_classes([HasFeature("feature-custom-domain")])
@throttle_classes([ConsumesUsage(1, TEMPLATES)])
def listed(request: Request) -> Response:
    return Response("created")


class Elsewhere(Api):
    permission_classes = (HasFeature("feature-analytics", using="other", methods=["GET"]),)
    throttle_classes = (ConsumesUsage(1_000, "feature-templates", using="other", methods=["POST"]),)

    def get(self, request: Request) -> Response:
        return Response("your figures")

    post = get


class Described(Api):
    permission_classes = (HasFeature("feature-exports"),)

    @extend_schema(responses={200: str, 402: OpenApiResponse(description="Upgrade!")})
    def get(self, request: Request) -> Response:
        return Response("your file")


router = SimpleRouter()
router.register("templates", TemplateSet, basename="templates")

documented = [
    path("domains", Domains.as_view()),
    path("analytics", Analytics.as_view()),
    path("boss", BossOrAnalytics.as_view()),
    path("create-many", CreateMany.as_view()),
    path("described", Described.as_view()),
]
urlpatterns = [
    *documented,
    path("sites/<site>", Site.as_view()),
    path("create", Create.as_view()),
    path("sign-up", SignUp.as_view()),
    path("elsewhere", Elsewhere.as_view()),
    path("create-once", CreateOnce.as_view()),
    path("download", Download.as_view()),
    path("stream", Stream.as_view()),
    path("decorated", decorated),
    path("listed", listed),
    path("", include(router.urls)),
]

pytestmark = pytest.mark.urls(__name__)


by_framework_and_by_middleware = pytest.mark.parametrize(
    "has_handler", [True, False], ids=["by the framework", "by the middleware"]
)


@pytest.fixture
def has_handler() -> bool:
    """Whether the framework answers refusals, rather than the middleware."""
    return True


@pytest.fixture(autouse=True)
def site(has_handler: bool, sidecar: Sidecar, settings: Any) -> None:
    if has_handler:
        handler = "stigg_guard.django.rest.exception_handler"
        settings.REST_FRAMEWORK = {**settings.REST_FRAMEWORK, "EXCEPTION_HANDLER": handler}
    settings.STIGG_GUARD = {
        "CUSTOMER": customer_of_user,
        "SIDECAR": sidecar.address,
        "TIMEOUT": 20,
        "LEDGER": "memory://",
        "REPORT": "inline",
        "UPGRADE_URL": "/plans",
    }


@pytest.fixture
def api() -> Client:
    return client_of(DEMO)


def client_of(customer: str) -> Client:
    return Client(raise_request_exception=False, headers={"authorization": customer})


def used() -> float:
    """How many templates the customer has used, as the sidecar knows it, and nothing is held."""
    guard = get_guard()
    assert guard.flush() == 0
    assert guard.stats()["held"] == 0
    guard.reload(DEMO)
    return guard.check(TEMPLATES, customer=DEMO).current_usage


@contextmanager
def told_of_denials() -> Iterator[list[str]]:
    """The features that receivers of the signal are told of meanwhile."""
    told: list[str] = []

    def receive(feature: str, **_: object) -> None:
        told.append(feature)

    feature_denied.connect(receive)
    try:
        yield told
    finally:
        feature_denied.disconnect(receive)


@by_framework_and_by_middleware
class TestHasFeature:
    def test_permits_whoever_has_it(self, api: Client) -> None:
        assert api.get("/domains").json() == "your domain"

    def test_refuses_the_others_with_the_reason(self, api: Client) -> None:
        answer = api.post("/analytics")
        assert answer.status_code == 402
        assert answer.json() == {
            "type": "about:blank",
            "title": "Payment Required",
            "status": 402,
            "detail": "Your plan does not include this feature. It concerns the feature feature-analytics.",
            "feature": "feature-analytics",
            "reason": "NO_FEATURE_ENTITLEMENT_IN_SUBSCRIPTION",
            "upgrade_url": "/plans",
        }

    def test_guards_the_named_methods_only(self, api: Client) -> None:
        assert api.get("/analytics").json() == "what there would be"

    def test_lets_cors_ask_first(self, api: Client) -> None:
        assert api.options("/domains").status_code == 200

    def test_asks_about_the_resource_that_the_url_names(self, api: Client) -> None:
        assert api.get("/sites/site-01").json() == "your site"
        assert api.get("/sites/site-99").json()["reason"] == "CUSTOMER_RESOURCE_NOT_FOUND"

    def test_is_the_last_of_alternatives(self, api: Client) -> None:
        assert api.get("/boss", {"boss": ""}).status_code == 200
        assert api.get("/boss").status_code == 402
        assert client_of(GROWTH).get("/boss").status_code == 200

    def test_guards_single_actions(self, api: Client) -> None:
        assert api.get("/templates/").status_code == 200
        assert api.get("/templates/figures/").status_code == 402

    def test_has_a_browsable_api_whose_forms_nobody_may_use(self, api: Client) -> None:
        page = api.get("/analytics", headers={"accept": "text/html"})
        assert page.status_code == 200
        assert b"<form" not in page.content.partition(b'class="request-info"')[2]

    @pytest.mark.parametrize("method", ["GET", "OPTIONS"])
    def test_tells_nobody_of_a_denial_where_the_framework_only_asks(
        self, api: Client, settings: Any, method: str
    ) -> None:
        settings.STIGG_GUARD = {**settings.STIGG_GUARD, "RATE_LIMIT_HEADERS": True}
        with told_of_denials() as told:
            answer = api.generic(method, "/analytics", headers={"accept": "text/html"})
            assert (answer.status_code, told) == (200, [])
            assert api.post("/analytics", headers={"accept": "text/html"}).status_code == 402
            assert told == ["feature-analytics"]

    def test_offers_forms_to_those_who_have_it(self) -> None:
        page = client_of(GROWTH).get("/analytics", headers={"accept": "text/html"})
        assert b"<form" in page.content.partition(b'class="request-info"')[2]

    def test_asks_nobody_to_sign_in_as_the_framework_does(self) -> None:
        answer = Client().get("/domains")
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Token"
        assert answer.json()["title"] == "Unauthorized"

    def test_without_data_asks_to_come_again(self, api: Client, settings: Any) -> None:
        settings.STIGG_GUARD = {**settings.STIGG_GUARD, "SIDECAR": "127.0.0.1:9"}
        answer = api.get("/domains")
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "1"

    def test_of_a_customer_with_a_bad_id_is_an_error(self, api: Client, settings: Any) -> None:
        settings.STIGG_GUARD = {**settings.STIGG_GUARD, "CUSTOMER": lambda request: ""}
        assert api.get("/domains").status_code == 500

    def test_of_an_empty_feature_is_refused_at_once(self) -> None:
        with pytest.raises(InvalidRequest):
            HasFeature("")


class TestConsumesUsage:
    def test_counts_what_succeeds(self, api: Client) -> None:
        assert api.post("/create", {"name": "a"}).status_code == 201
        assert used() == 4

    @by_framework_and_by_middleware
    def test_counts_requests_with_one_key_once(self, api: Client) -> None:
        answers = [api.post("/create-once", headers={"idempotency-key": "order-42"}) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [201, 409]
        assert answers[1].headers["Content-Type"] == "application/problem+json"
        assert used() == 4

    def test_counts_a_download_once(self, api: Client) -> None:
        assert [api.get("/download").status_code for _ in range(3)] == [206] * 3
        assert used() == 4

    @pytest.mark.parametrize(
        ("query", "body", "status"),
        [
            ("", {}, 400),
            ("?fail", {"name": "a"}, 500),
            ("?hurry", {"name": "a"}, 429),
        ],
    )
    def test_gives_back_what_does_not(self, api: Client, query: str, body: dict[str, str], status: int) -> None:
        assert api.post(f"/create{query}", body).status_code == status
        assert used() == 3

    @pytest.mark.parametrize(("status", "expected"), [(204, 4), (302, 4), (304, 3), (404, 3)])
    def test_judges_by_the_status(self, api: Client, status: int, expected: float) -> None:
        assert api.get("/create", {"status": status}).status_code == status
        assert used() == expected

    def test_counts_a_head_request_as_its_get(self, api: Client) -> None:
        assert api.head("/create").status_code == 200
        assert used() == 4

    def test_counts_nothing_for_a_method_that_is_not_there(self, api: Client) -> None:
        assert api.delete("/create").status_code == 405
        assert api.options("/create").status_code == 200
        assert used() == 3

    @pytest.mark.parametrize("method", ["HANDLE_EXCEPTION", "FINALIZE_RESPONSE", "DISPATCH"])
    def test_takes_no_word_of_the_client_for_a_method(self, api: Client, method: str) -> None:
        assert api.generic(method, "/create").status_code == 405
        assert used() == 3

    def test_stops_at_the_limit(self, api: Client) -> None:
        statuses = [api.post("/create", {"name": "a"}).status_code for _ in range(4)]
        assert statuses == [201, 201, 201, 402]
        assert used() == 6

    def test_takes_the_amount_from_the_parsed_body(self, api: Client) -> None:
        assert api.post("/create-many", {"n": 3}, content_type="application/json").status_code == 200
        assert used() == 6

    def test_tells_what_a_request_for_too_many_lacks(self, api: Client) -> None:
        answer = api.post("/create-many", {"n": 4})
        assert answer.status_code == 402
        told = answer.json()
        assert (told["limit"], told["usage"], told["requested"]) == (6, 3, 4)
        assert used() == 3

    @pytest.mark.parametrize("body", [{}, {"n": "many"}, {"n": -1}])
    def test_refuses_a_bad_amount(self, api: Client, body: dict[str, Any]) -> None:
        assert api.post("/create-many", body).status_code == 400
        assert used() == 3

    def test_leaves_other_methods_alone(self, api: Client) -> None:
        assert api.get("/create-many").status_code == 200
        assert used() == 3

    def test_counts_a_stream_when_it_ends(self, api: Client) -> None:
        answer: Any = api.get("/stream")
        assert get_guard().stats()["held"] == 1
        assert b"".join(answer.streaming_content) == b"ab"
        assert used() == 4

    def test_is_given_to_single_actions(self, api: Client) -> None:
        assert api.post("/templates/clone/").json() == "cloned"
        assert used() == 4

    def test_and_a_permission_guard_a_function(self, api: Client) -> None:
        assert api.get("/listed").json() == "created"
        assert used() == 4


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("query", "status", "users", "expected"), [("", 201, 1, 4), ("?undo", 201, 0, 3), ("?taken", 400, 0, 3)]
)
def test_usage_follows_the_transaction_of_the_request(
    api: Client, monkeypatch: pytest.MonkeyPatch, query: str, status: int, users: int, expected: float
) -> None:
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    assert api.post(f"/sign-up{query}", {"name": "ann"}).status_code == status
    assert User.objects.count() == users
    assert used() == expected


@by_framework_and_by_middleware
class TestDecorators:
    def test_guard_a_function_and_get_the_framework_s_request(self, api: Client) -> None:
        assert api.get("/decorated", {"n": 2}).json() == "created"
        assert used() == 5
        assert api.post("/decorated?n=2").status_code == 402

    def test_guard_an_action_of_a_view_set(self, api: Client) -> None:
        assert api.post("/templates/", {"name": "a"}).status_code == 201
        assert api.get("/templates/").status_code == 200
        assert used() == 5


@by_framework_and_by_middleware
class TestAnswer:
    def test_of_a_refusal_is_a_problem(self, api: Client) -> None:
        answer = api.post("/create-many", {"n": 4}, headers={"accept": "application/json"})
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.headers["Cache-Control"] == "no-store"

    def test_is_a_page_of_the_browsable_api_for_a_browser(self, api: Client, has_handler: bool) -> None:
        page = api.post("/create-many", {"n": 4}, headers={"accept": "text/html"})
        assert page.status_code == 402
        assert (b"api-" in page.content or b"Django REST framework" in page.content) is has_handler

    def test_of_others_is_the_framework_s(self, api: Client) -> None:
        answer = api.post("/create", {})
        assert answer.json() == {"name": ["This field is required."]}
        assert answer.headers["Content-Type"] == "application/json"


class TestCustomer:
    def test_is_found_by_the_user_whom_the_framework_authenticates(self, api: Client, settings: Any) -> None:
        settings.STIGG_GUARD = {**settings.STIGG_GUARD, "RATE_LIMIT_HEADERS": True}
        answer = api.post("/create", {"name": "a"})
        assert answer.headers["RateLimit"] == f'"{TEMPLATES}";r=2'

    def test_may_be_found_by_another_configuration(self, settings: Any) -> None:
        other = {**settings.STIGG_GUARD, "CUSTOMER": lambda request: GROWTH, "UPGRADE_URL": "/more"}
        settings.STIGG_GUARD = {"default": settings.STIGG_GUARD, "other": other}
        assert client_of(DEMO).get("/elsewhere").json() == "your figures"
        assert client_of(DEMO).post("/elsewhere").json()["upgrade_url"] == "/more"


class TestSchema:
    @pytest.fixture
    def schema(self) -> Any:
        """What drf-spectacular writes of this site."""
        return SchemaGenerator(patterns=documented).get_schema(public=True)

    @pytest.mark.parametrize(
        ("path", "method", "refusals"),
        [
            ("/domains", "get", {"402", "403", "503"}),
            ("/analytics", "get", set()),
            ("/analytics", "post", {"402", "403", "503"}),
            ("/boss", "get", {"402", "403", "503"}),
            ("/create-many", "get", set()),
            ("/create-many", "post", {"402", "403", "503"}),
            ("/described", "get", {"402", "403", "503"}),
        ],
    )
    def test_shows_what_guarded_operations_are_refused_with(
        self, schema: Any, path: str, method: str, refusals: set[str]
    ) -> None:
        assert set(schema["paths"][path][method]["responses"]) - {"200"} == refusals

    def test_shows_statuses_that_no_standard_names(self, settings: Any) -> None:
        settings.STIGG_GUARD = {**settings.STIGG_GUARD, "STATUS_CODES": {"REVOKED": 499}}
        schema = SchemaGenerator(patterns=documented).get_schema(public=True)
        assert schema["paths"]["/domains"]["get"]["responses"]["499"]["description"] == "Denied"

    def test_describes_the_problem(self, schema: Any) -> None:
        content = schema["paths"]["/domains"]["get"]["responses"]["402"]["content"]
        assert content == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/FeatureProblem"}}}
        assert "upgrade_url" in schema["components"]["schemas"]["FeatureProblem"]["properties"]

    def test_leaves_what_a_view_describes_itself(self, schema: Any) -> None:
        assert schema["paths"]["/described"]["get"]["responses"]["402"]["description"] == "Upgrade!"

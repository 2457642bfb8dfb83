"""What a type checker knows of the public interface. Checked by ``mypy --strict``, never run."""

from __future__ import annotations

from collections.abc import Mapping

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import include, path
from django.views import View
from flask import Blueprint, Flask, Request, Response
from flask_sqlalchemy import SQLAlchemy
from typing_extensions import assert_type

from stigg_guard import (
    PER_DOWNLOAD,
    BoundKey,
    Config,
    Customer,
    Entitlement,
    Fallback,
    FeatureDenied,
    GetEntitlementsStateV2Request,
    GetEntitlementsStateV2Response,
    GetMeteredEntitlementRequest,
    GetMeteredEntitlementResponse,
    Guard,
    Kind,
    MeteredEntitlementOptions,
    Reason,
    ReportUsageBulkRequest,
    ReportUsageBulkResponse,
    ReportUsageRequest,
    ReportUsageResponse,
    Source,
    Stigg,
    UsageUpdateBehavior,
)
from stigg_guard import django as in_django
from stigg_guard import flask as in_flask
from stigg_guard.api import Api, ProvisionCustomerInput, ProvisionCustomerResponse, SubscriptionDecisionStrategy
from stigg_guard.calls import Calls
from stigg_guard.decorators import consumes_usage, requires_feature
from stigg_guard.flask.sqlalchemy import follow


def decorators_keep_the_signature(guard: Guard) -> None:
    @requires_feature("feature-exports", calls=Calls(lambda: guard, lambda _number, **_: "customer-demo-01"))
    @consumes_usage(2, "feature-templates", calls=Calls(lambda: guard, lambda *_, **__: Customer("customer-demo-01")))
    def view(number: int, *, loud: bool = False) -> list[str]:
        return [str(number)]

    assert_type(view(1), list[str])
    assert_type(view(1, loud=True), list[str])
    view("1")  # type: ignore[arg-type] # wrong on purpose
    view(1, quiet=True)  # type: ignore[call-arg] # wrong on purpose


def keys_are_texts_or_bound_ones(guard: Guard) -> None:
    with guard.consume("f", customer="c", key="order-42") as usage:
        assert_type(usage.is_repeat, bool)
    guard.report("f", 1, customer="c", key=BoundKey("order-42", "POST /orders"))
    guard.report("f", 1, customer="c", key=42)  # type: ignore[arg-type] # wrong on purpose
    in_flask.consumes_usage(1, "f", key=PER_DOWNLOAD)
    in_django.consumes_usage(1, "f", key=lambda request: request.headers.get("Idempotency-Key"), on_repeat="run")
    in_django.consumes_usage(1, "f", key=PER_DOWNLOAD, on_repeat="ignore")  # type: ignore[arg-type] # wrong on purpose


def answers_are_values(guard: Guard) -> None:
    answer = guard.check("f", customer=Customer("c", resource="site-01"), requested_usage=2, fallback=Fallback(True))
    assert_type(answer, Entitlement)
    assert_type(answer.kind, Kind | None)
    assert_type(answer.reason, Reason | None)
    assert_type(answer.source, Source)
    assert_type(answer.remaining, float | None)
    assert_type(guard.require("f", customer="c", requested_values=["eu"]), Entitlement)
    assert_type(guard.entitlements("c"), Mapping[str, Entitlement])
    assert_type(guard.reload("c"), bool)
    assert_type(guard.flush(), int)
    guard.check("f")  # type: ignore[call-arg] # wrong on purpose
    answer.has_access = True  # type: ignore[misc] # wrong on purpose


def consumption_is_a_context_with_an_amount() -> None:
    with Guard(Config.from_mapping({"SIDECAR": "localhost:8433"})) as guard:
        assert_type(guard, Guard)
        with guard.consume("f", 2.5, customer="c") as usage:
            assert_type(usage.amount, float)
            assert_type(usage.entitlement, Entitlement)
            usage.amount = 1
            usage.cancel()
        guard.report("f", -1, customer="c", set_total=True)


def denial_carries_its_answer(error: FeatureDenied) -> None:
    assert_type(error.entitlement, Entitlement)
    assert_type(error.customer, Customer)


def client_answers_each_request_with_its_response() -> None:
    with Stigg(remote_sidecar_host="localhost") as stigg:
        metered = GetMeteredEntitlementRequest(
            customer_id="c", feature_id="f", options=MeteredEntitlementOptions(requested_usage=10)
        )
        assert_type(stigg.get_metered_entitlement(metered), GetMeteredEntitlementResponse)
        assert_type(stigg.get_metered_entitlement(metered).entitlement.current_usage, float)
        state = GetEntitlementsStateV2Request(customer_id="c")
        assert_type(stigg.get_entitlements_state_v2(state, timeout=0.5), GetEntitlementsStateV2Response)
        report = ReportUsageRequest(
            customer_id="c",
            feature_id="f",
            value=2,
            update_behavior=UsageUpdateBehavior.USAGE_UPDATE_BEHAVIOR_SET,
        )
        assert_type(stigg.report_usage(report), ReportUsageResponse)
        assert_type(stigg.report_usage_bulk(ReportUsageBulkRequest(usages=[report])), ReportUsageBulkResponse)
        stigg.report_usage(metered)  # type: ignore[arg-type] # wrong on purpose


def operations_take_inputs_or_dicts_and_answer_results(guard: Guard, stigg: Stigg) -> None:
    assert_type(stigg.api, Api)
    answer = guard.api.provision_customer(ProvisionCustomerInput(customer_id="c"), timeout=2)
    assert_type(answer, ProvisionCustomerResponse)
    assert_type(answer.provision_customer.subscription_decision_strategy, SubscriptionDecisionStrategy)
    guard.api.provision_customer({"customer_id": "c", "subscription_params": {"plan_id": "p"}})
    guard.api.provision_customer({"customer_id": "c", "subscription_params": {"plan": "p"}})  # type: ignore[arg-type] # wrong on purpose
    ProvisionCustomerInput(custmer_id="c")  # type: ignore[call-arg] # wrong on purpose
    print(answer.provision_custmer)  # type: ignore[attr-defined] # wrong on purpose


async def decorators_of_django_keep_the_signature(request: HttpRequest) -> None:
    @in_django.requires_feature("feature-exports", methods=["GET"], resource="site", using="eu")
    @in_django.consumes_usage(lambda request, number: number, actual=lambda response: 1)
    def view(request: HttpRequest, number: int) -> JsonResponse:
        return JsonResponse({})

    @in_django.exempt
    @in_django.releases_usage(1, "feature-templates")
    async def awaited(request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    @in_django.requires_feature("feature-exports")  # type: ignore[type-var] # wrong on purpose
    def no_view(request: HttpRequest) -> str:
        return ""

    assert_type(view(request, 1), JsonResponse)
    assert_type(await awaited(request), HttpResponse)
    view(request, "1")  # type: ignore[arg-type] # wrong on purpose
    assert_type(in_django.customer_of(request), str | Customer)
    assert_type(in_django.get_guard("eu"), Guard)


class CreateView(in_django.ConsumesUsageMixin, View):
    feature = "feature-templates"

    def get_usage_amount(self) -> int:
        return len(self.request.POST)

    def post(self, request: HttpRequest) -> HttpResponse:
        assert_type(self.usage.amount, float)
        return HttpResponse()


def decorators_of_flask_keep_the_signature(app: Flask) -> None:
    @app.post("/<int:number>")
    @in_flask.requires_feature("feature-exports", methods=["POST"], resource="site")
    @in_flask.consumes_usage(lambda request, number: number, actual=lambda response: len(response.data))
    def view(number: int) -> str:
        return str(number)

    @app.get("/")
    @in_flask.exempt
    @in_flask.releases_usage(1, "feature-templates")
    async def awaited() -> Response:
        return Response()

    assert_type(view(1), str)
    view("1")  # type: ignore[arg-type] # wrong on purpose


def extension_of_flask(app: Flask, database: SQLAlchemy) -> None:
    guard = in_flask.StiggGuard(confirm=follow(database.session))

    @guard.customer_loader
    async def load(request: Request) -> Customer | None:
        return Customer(request.headers["X-Customer"])

    @guard.customer_loader  # type: ignore[type-var] # wrong on purpose
    def no_customer(request: Request) -> int:
        return 1

    guard.protect(Blueprint("shop", __name__), "feature-templates", lambda request: 1, methods={"POST"})
    assert_type(guard.guard, Guard)

    @app.errorhandler(in_flask.FeatureDenied)
    def handle(error: in_flask.FeatureDenied) -> str:
        assert_type(error.entitlement, Entitlement)
        return error.denial.title


urlpatterns = [
    path("api/", in_django.protect("shop.api", "feature-api-calls", n=1, methods=["POST"])),
    path("shop/", in_django.protect(include("shop.urls"), "feature-exports")),
    path("create/", CreateView.as_view()),
]

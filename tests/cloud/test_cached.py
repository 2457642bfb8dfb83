"""A sidecar in front of Stigg's API: what it answers from its cache, and what it asks for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from api_server import ApiServer
from conftest import ManualClock
from stigg_guard import Config, ConfigError, Guard, InvalidRequest, SidecarUnavailable
from stigg_guard.cloud.cached import CachedAnswers, upstream_config
from stigg_guard.errors import StiggGuardError
from stigg_guard.sidecar.catalog import load_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.sidecar.store import Store
from stigg_guard.wire import sidecar_pb2 as pb

FREE, BIG = "customer-demo-03", "customer-demo-01"
TEMPLATES, CREDITS = "feature-templates", "api-credits"


@pytest.fixture
def make(sidecar: Sidecar, clock: ManualClock) -> Iterator[Callable[..., CachedAnswers]]:
    made: list[CachedAnswers] = []

    def make(**settings: object) -> CachedAnswers:
        on_cloud = {"SIDECAR": "cloud", "API_KEY": "any", "API_URL": f"http://{sidecar.http_address}", "TIMEOUT": 20}
        made.append(CachedAnswers(Config.from_mapping({**on_cloud, **settings}), clock.clock))
        return made[-1]

    yield make
    for answers in made:
        answers.close()


@pytest.fixture
def engine(sidecar: Sidecar) -> Engine:
    assert isinstance(sidecar._answers, Engine)
    return sidecar._answers


def metered(answers: Any, customer: str = FREE, feature: str = TEMPLATES, **options: Any) -> Any:
    request = pb.GetMeteredEntitlementRequest(customer_id=customer, feature_id=feature)
    if options:
        request.options.CopyFrom(pb.MeteredEntitlementOptions(**options))
    return answers.answer("GetMeteredEntitlement", request)


def test_what_is_known_answers_for_its_time(
    make: Callable[..., CachedAnswers], engine: Engine, clock: ManualClock
) -> None:
    answers = make()
    state = answers.answer("GetEntitlementsStateV2", pb.GetEntitlementsStateV2Request(customer_id=BIG))
    assert state == engine.answer("GetEntitlementsStateV2", pb.GetEntitlementsStateV2Request(customer_id=BIG))
    assert metered(answers).entitlement.current_usage == 1
    engine.answer("ReportUsage", pb.ReportUsageRequest(customer_id=FREE, feature_id="feature-seats", value=1))
    assert metered(answers, feature="feature-seats").entitlement.current_usage == 0
    clock.advance(31)
    assert not metered(answers, feature="feature-seats").has_access
    older = pb.GetEntitlementsRequest(customer_id=FREE)
    assert answers.answer("GetEntitlements", older) == engine.answer("GetEntitlements", older)


def test_a_denial_is_looked_up_again(make: Callable[..., CachedAnswers], engine: Engine, clock: ManualClock) -> None:
    answers = make()
    assert not metered(answers, requested_usage=2).has_access
    engine.assign_plan(FREE, "growth")
    assert not metered(answers, requested_usage=2).has_access
    clock.advance(2)
    assert metered(answers, requested_usage=2).has_access


def test_reports_go_at_once_and_show_at_once(make: Callable[..., CachedAnswers], engine: Engine) -> None:
    answers = make()
    assert metered(answers).has_access
    report = pb.ReportUsageRequest(customer_id=FREE, feature_id=TEMPLATES, value=1)
    for _ in range(2):
        answers.answer("ReportUsage", report, idempotency_key="once")
    assert metered(engine).entitlement.current_usage == 2
    assert metered(answers).access_denied_reason == pb.ACCESS_DENIED_REASON_REQUESTED_USAGE_EXCEEDING_LIMIT
    state: Any = answers.answer("GetEntitlementsStateV2", pb.GetEntitlementsStateV2Request(customer_id=FREE))
    shown = {each.metered.feature.id: each for each in state.entitlements}[TEMPLATES]
    assert (shown.metered.current_usage, shown.has_access) == (2, False)
    back = pb.ReportUsageRequest(customer_id=FREE, feature_id=TEMPLATES, value=-1)
    answers.answer("ReportUsageBulk", pb.ReportUsageBulkRequest(usages=[back]))
    assert metered(answers).has_access
    event = pb.Event(customer_id=FREE, event_name="user_login", idempotency_key="k")
    assert answers.answer("ReportEvents", pb.ReportEventsRequest(events=[event])).ByteSize() == 0
    with pytest.raises(InvalidRequest, match="customer_id"):
        answers.answer("ReportUsage", pb.ReportUsageRequest(customer_id="nobody", feature_id=TEMPLATES, value=1))


@pytest.mark.parametrize(
    "said", [{"customerId": None}, {"customerId": "other"}, {"featureId": "g"}, {"currentUsage": float("nan")}]
)
def test_an_answer_about_something_else_is_an_answer_and_corrects_nothing(
    said: Mapping[str, object], clock: ManualClock
) -> None:
    feature = {"refId": "f", "featureType": "NUMBER", "meterType": "Fluctuating"}
    entitlement = {"__typename": "FeatureEntitlement", "isGranted": True, "usageLimit": 9.0, "currentUsage": 1.0}
    entitlement |= {"feature": feature, "accessDeniedReason": None, "hasUnlimitedUsage": False, "validUntil": None}
    measured = {"id": "m", "customerId": "c", "resourceId": None, "featureId": "f", "currentUsage": 5, **said}
    server = ApiServer({"entitlementsState": lambda **_: {"accessDeniedReason": None, "entitlementsV2": [entitlement]}})
    answers = CachedAnswers(Config(sidecar="cloud", api_key="key", api_url=server.url, timeout=20), clock.clock)
    for customer in ("c", "other"):
        assert metered(answers, customer, "f").entitlement.current_usage == 1
    body = json.dumps({"data": {"reportUsage": {**measured, "usagePeriodStart": None, "usagePeriodEnd": None}}})
    server.faults.append(lambda handler: handler.send(200, body.encode()))
    told: Any = answers.answer("ReportUsage", pb.ReportUsageRequest(customer_id="c", feature_id="f", value=4))
    assert told.measurement_id == "m"
    assert [metered(answers, customer, "f").entitlement.current_usage for customer in ("c", "other")] == [1, 1]
    answers.close()
    server.stop()


def test_what_a_wallet_paid_for_shows_at_once(clock: ManualClock) -> None:
    catalog = load_catalog(str(Path(__file__).parents[1] / "data" / "requests.toml"))
    with Sidecar(Engine(catalog, Store(None), now=clock.now)) as server:
        config = Config(sidecar="cloud", api_key="key", api_url=f"http://{server.http_address}", timeout=20)
        answers = CachedAnswers(config, clock.clock)
        asked = pb.GetEntitlementV2Request(customer_id="big", currency_id="credits")
        before: Any = answers.answer("GetEntitlementV2", asked)
        report = pb.ReportUsageRequest(customer_id="big", feature_id="letters", value=5)
        answers.answer("ReportUsage", report)
        after: Any = answers.answer("GetEntitlementV2", asked)
        assert (before.entitlement.credit.remaining, after.entitlement.credit.remaining) == (90, 80)
        assert metered(answers, "big", "letters", requested_usage=40).has_access
        assert not metered(answers, "big", "letters", requested_usage=41).has_access
        answers.close()


def test_reload_reads_the_source(make: Callable[..., CachedAnswers], engine: Engine) -> None:
    answers = make()
    assert metered(answers).entitlement.usage_limit == 2
    engine.assign_plan(FREE, "growth")
    assert metered(answers).entitlement.usage_limit == 2
    reload = pb.ReloadEntitlementsRequest(customer_id=FREE)
    assert answers.answer("ReloadEntitlements", reload) == pb.ReloadEntitlementsResponse(entitled_entity_exists=True)
    assert metered(answers).entitlement.usage_limit == 50
    nobody = pb.ReloadEntitlementsRequest(customer_id="nobody")
    assert answers.answer("ReloadEntitlements", nobody) == pb.ReloadEntitlementsResponse(entitled_entity_exists=False)


@pytest.mark.parametrize(
    ("request_", "method"),
    [
        (pb.GetEntitlementV2Request(customer_id=FREE, feature_id="feature-analytics"), "GetEntitlementV2"),
        (pb.GetEntitlementV2Request(customer_id=BIG, currency_id="api-credits"), "GetEntitlementV2"),
        (pb.GetBooleanEntitlementRequest(customer_id="nobody", feature_id="f"), "GetBooleanEntitlement"),
        (pb.GetBooleanEntitlementRequest(customer_id=BIG, feature_id=TEMPLATES), "GetBooleanEntitlement"),
        (pb.GetEntitlementRequest(customer_id=BIG, feature_id="feature-regions"), "GetEntitlement"),
        (pb.GetEntitlementRequest(customer_id=BIG, feature_id=CREDITS), "GetEntitlement"),
        (pb.GetMeteredEntitlementRequest(customer_id=BIG, feature_id=CREDITS), "GetMeteredEntitlement"),
        (pb.GetEntitlementV2Request(customer_id=BIG, feature_id=CREDITS), "GetEntitlementV2"),
        (pb.GetEntitlementV2Request(customer_id=BIG, currency_id=CREDITS), "GetEntitlementV2"),
        (pb.GetEntitlementV2Request(customer_id=BIG, currency_id=TEMPLATES), "GetEntitlementV2"),
    ],
)
def test_what_the_list_lacks_and_what_it_has_are_answered_alike(
    request_: Any, method: str, make: Callable[..., CachedAnswers], engine: Engine
) -> None:
    assert make().answer(method, request_) == engine.answer(method, request_)


def test_known_data_then_fallbacks_answer_while_the_api_is_away(clock: ManualClock) -> None:
    server = ApiServer()
    settings = {"SIDECAR": "cloud", "API_KEY": "k", "API_URL": server.url, "FALLBACKS": {"planned": True}}
    answers = CachedAnswers(Config.from_mapping(settings), clock.clock)
    server.stop()
    request = pb.GetBooleanEntitlementRequest(customer_id="c", feature_id="planned")
    answer: Any = answers.answer("GetBooleanEntitlement", request)
    assert (answer.has_access, answer.is_fallback) == (True, True)
    with pytest.raises(SidecarUnavailable):
        metered(answers)
    answers.close()
    with pytest.raises(StiggGuardError):
        metered(answers)


def test_the_key_is_that_of_stiggs_sidecar() -> None:
    config = upstream_config({"SERVER_API_KEY": "k", "API_URL": "http://a", "ENTITLEMENTS_FALLBACK": '{"f": true}'})
    assert (config.sidecar, config.api_key, config.api_url, list(config.fallbacks)) == ("cloud", "k", "http://a", ["f"])
    assert upstream_config({"SERVER_API_KEY": "k", "STIGG_GUARD_CACHE_TTL": "5"}).cache_ttl == 5
    with pytest.raises(ConfigError, match="SERVER_API_KEY: set the server key"):
        upstream_config({})


def test_the_command_serves_the_api_to_other_languages(sidecar: Sidecar) -> None:
    environ = {**os.environ, "SERVER_API_KEY": "k", "API_URL": f"http://{sidecar.http_address}"}
    command = [sys.executable, "-m", "stigg_guard", "sidecar", "--upstream", "cloud", "--port", "0", "--http-port", "0"]
    process = subprocess.Popen(
        [*command, "--exit-with-stdin"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, text=True
    )
    assert process.stdout is not None
    address = process.stdout.readline().split()[1].removeprefix("grpc=")
    with Guard(Config(sidecar=address, ledger="memory://", timeout=20)) as guard:
        with guard.consume(TEMPLATES, 1, customer=FREE):
            pass
        assert guard.flush(20) == 0
        assert guard.stigg.honours_keys
        assert not guard.check(TEMPLATES, customer=FREE)
    process.communicate(timeout=20)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [([], "SERVER_API_KEY: set the server key"), (["--state", "f"], "leave out --catalog and --state")],
)
def test_the_command_says_what_is_wrong(options: list[str], said: str) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "SERVER_API_KEY"}
    command = [sys.executable, "-m", "stigg_guard", "sidecar", "--upstream", "cloud", *options]
    done = subprocess.run(command, capture_output=True, env=environ, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert said in done.stderr

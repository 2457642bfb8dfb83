"""What the public documentation of Stigg's SDKs shows, done here: its snippets, and the results that it prints."""

from __future__ import annotations

import copy
import json
import os
import pickle
import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, text_format
from google.protobuf.timestamp_pb2 import Timestamp

from stigg_guard import (
    ApiConfig,
    BooleanEntitlement,
    ConfigError,
    EntitlementV2,
    Event,
    EventDimensionValue,
    GetEntitlementRequest,
    GetEntitlementResponse,
    GetEntitlementsRequest,
    LocalSidecarConfig,
    NumericEntitlement,
    RedisOptions,
    ReportEventsRequest,
    ReportUsageBulkRequest,
    ReportUsageRequest,
    Stigg,
)
from stigg_guard.sidecar.catalog import demo_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.store import Store
from stigg_guard.wire import METHODS, sidecar_pb2
from stigg_guard.wire.documented import by_kind

DOCUMENTED = json.loads((Path(__file__).parent / "data" / "documented_results.json").read_text())
NOW = datetime(2023, 12, 1, tzinfo=timezone.utc)  # within the period that the results show
SITE = {"customer_id": "customer-demo-01", "resource_id": "site-01"}
WRITTEN_LATER = {"hasSoftLimit", "nextResetDate"}  # fields of the contract that no documented result has
LISTED = {"feature-example-9", "feature-example-8", "feature-example-4"}
WRONG_IN_THE_LIST = {
    "feature-example-7",  # is boolean where it is asked for alone
    "feature-example-5",  # is numeric where it is asked for alone
    "feature-example-6",  # has another anchor than the other features of its subscription
}


@pytest.fixture
def stigg() -> Iterator[Stigg]:
    with Stigg(answers=Engine(demo_catalog(), Store(None), now=lambda: NOW)) as client:
        yield client


def assert_same(answer: Any, documented: Any) -> None:
    """Whether the answer, printed whole, is what is documented. What is unset is null there, or left out."""
    if not isinstance(documented, Mapping):
        assert answer == documented
        return
    answer = answer or {}
    assert answer.keys() - WRITTEN_LATER <= documented.keys()
    for name, value in documented.items():
        if value is None:
            assert name not in answer
        else:
            assert_same(answer.get(name), value)


@pytest.mark.parametrize("case", DOCUMENTED["answers"], ids=lambda case: case["result"].get("entitlement") and "typed")
def test_an_answer_is_the_documented_one(stigg: Stigg, case: Mapping[str, Any]) -> None:
    method = METHODS[case["method"]]
    answer = stigg._answers.answer(case["method"], method.request(**case["request"]))
    assert_same(json_format.MessageToDict(answer, always_print_fields_with_no_presence=True), case["result"])


def test_all_entitlements_are_the_documented_ones(stigg: Stigg) -> None:
    answer = json_format.MessageToDict(stigg.get_entitlements(GetEntitlementsRequest(**SITE)))
    answered = {feature_of(one): one for one in answer["entitlements"]}
    documented = {feature_of(one): one for one in DOCUMENTED["entitlements"]}
    assert documented.keys() == LISTED | WRONG_IN_THE_LIST
    for feature in LISTED:
        assert_same(answered[feature], documented[feature])


def feature_of(entitlement: Mapping[str, Any]) -> str:
    (body,) = entitlement.values()
    return str(body["feature"]["id"])


class TestGenericCheck:
    @pytest.mark.parametrize(
        ("feature", "kind"),
        [
            ("feature-example-1", "boolean"),
            ("feature-example-2", "numeric"),
            ("feature-example-3", "metered"),
            ("feature-regions", "enum"),
            ("unheard-of", "boolean"),
        ],
    )
    def test_takes_the_branch_of_its_kind(self, stigg: Stigg, feature: str, kind: str) -> None:
        answer = stigg.get_entitlement(GetEntitlementRequest(customer_id="customer-demo-01", feature_id=feature))
        taken = [name for name in ("boolean", "numeric", "metered", "enum") if getattr(answer, name)]
        assert taken == [kind] == [answer.WhichOneof("entitlement")]

    def test_an_empty_part_that_is_there_is_true(self) -> None:
        answer = by_kind(GetEntitlementResponse(numeric=NumericEntitlement()))
        assert answer.numeric
        assert not answer.boolean

    def test_an_absent_part_reads_as_an_empty_one(self, answer: GetEntitlementResponse) -> None:
        assert answer.numeric.value == 0
        assert answer.numeric == NumericEntitlement()
        assert isinstance(answer.numeric, NumericEntitlement)
        assert json_format.MessageToDict(answer.numeric) == {}

    def test_an_absent_part_is_there_once_it_is_written(self, answer: GetEntitlementResponse) -> None:
        numeric = answer.numeric
        numeric.value = 3
        assert (bool(numeric), bool(answer.numeric), bool(answer.boolean)) == (True, True, False)
        assert answer == GetEntitlementResponse(has_access=True, numeric=NumericEntitlement(value=3))

    def test_is_a_message_to_all_that_ask(self, answer: GetEntitlementResponse) -> None:
        plain = GetEntitlementResponse(has_access=True, boolean=BooleanEntitlement())
        assert isinstance(answer, GetEntitlementResponse)
        assert answer == plain
        assert plain == answer
        assert answer == by_kind(plain)
        assert answer != GetEntitlementResponse()
        assert json_format.MessageToDict(answer) == {"hasAccess": True, "boolean": {}}
        assert (str(answer), repr(answer)) == (str(plain), repr(plain))
        assert text_format.MessageToString(answer) == text_format.MessageToString(plain)
        assert "has_access" in dir(answer)
        with pytest.raises(TypeError):
            hash(answer)

    @pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
    def test_copies_and_pickles(self, answer: GetEntitlementResponse, again: Any) -> None:
        other = again(answer)
        assert other == answer
        assert (bool(other.boolean), bool(other.numeric)) == (True, False)
        part = again(answer.numeric)
        assert (bool(part), part) == (False, NumericEntitlement())
        other.has_access = False
        assert answer.has_access

    @pytest.fixture
    def answer(self) -> GetEntitlementResponse:
        return by_kind(GetEntitlementResponse(has_access=True, boolean=BooleanEntitlement()))


class TestTimestamps:
    @pytest.fixture(autouse=True)
    def east_of_utc(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setenv("TZ", "UTC-5")
        time.tzset()
        yield
        monkeypatch.undo()
        time.tzset()

    @pytest.mark.parametrize("message", [Event, ReportUsageRequest])
    def test_without_a_zone_is_local_time(self, message: Any) -> None:
        made = message(customer_id="ann", timestamp=datetime(2026, 3, 1, 5))
        assert made.timestamp.ToDatetime() == datetime(2026, 3, 1)
        assert type(made)(timestamp=datetime(2026, 3, 1, 5)).timestamp.ToDatetime() == datetime(2026, 3, 1, 5)

    @pytest.mark.parametrize("message", [Event, ReportUsageRequest])
    @pytest.mark.parametrize(
        "given",
        [
            datetime(2026, 3, 1, 2, tzinfo=timezone(timedelta(hours=2))),
            Timestamp(seconds=1_772_323_200),
            {"seconds": 1_772_323_200},
        ],
    )
    def test_with_a_zone_is_as_it_says(self, message: Any, given: object) -> None:
        assert message(timestamp=given).timestamp.ToDatetime() == datetime(2026, 3, 1)
        assert not message(timestamp=None).HasField("timestamp")

    def test_the_documented_event_is_reported_with_the_present_time(self) -> None:
        event = Event(
            customer_id="customer-demo-01",
            resource_id="site-01",
            event_name="user_login",
            idempotency_key="227c1b73-883a-457b-b715-6ba5a2c69ce4",
            dimensions={
                "user_id": EventDimensionValue(string_value="user-01"),
                "user_email": EventDimensionValue(string_value="john@example.com"),
            },
            timestamp=datetime.now(),
        )
        with Stigg(answers=Engine(demo_catalog(), Store(None))) as stigg:
            stigg.report_events(ReportEventsRequest(events=[event]))
        assert abs(event.timestamp.ToSeconds() - time.time()) < 60

    def test_what_is_exported_passes_for_the_class(self) -> None:
        assert isinstance(Event(), Event)
        assert isinstance(sidecar_pb2.Event(), Event)
        assert not isinstance(EntitlementV2(), Event)
        assert Event.FromString(Event(customer_id="ann").SerializeToString()).customer_id == "ann"
        assert ReportUsageBulkRequest(usages=[ReportUsageRequest(value=2)]).usages[0].value == 2


class TestConstruction:
    def test_without_a_host_asks_that_of_localhost(self) -> None:
        with Stigg(ApiConfig(api_key="key")) as client:
            assert client._answers.address == "localhost:80"

    def test_a_remote_sidecar_wins_over_a_local_one_and_a_warning_says_so(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with Stigg(
            ApiConfig(api_key="key"),
            local_sidecar_config=LocalSidecarConfig(
                redis=RedisOptions(environment_prefix="development", host="localhost", port=6379, db=0)
            ),
            remote_sidecar_host="localhost",
            remote_sidecar_port=8443,
        ):
            assert [record.getMessage() for record in caplog.records] == [
                "the sidecar at localhost:8443 is asked, and no local one started: both were given"
            ]

    def test_options_of_a_local_sidecar_without_effect_are_named_in_one_warning(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        redis = RedisOptions("dev", port=1, ttl=-1)
        config = LocalSidecarConfig(ws_enabled=True, redis=redis, cache_max_size_bytes=1)
        with Stigg(ApiConfig("key", edge_enabled=False), local_sidecar_config=config, local_sidecar_port=0):
            told = [record.getMessage() for record in caplog.records if "without effect" in record.getMessage()]
        assert len(told) == 1
        assert told[0].endswith(": ws_enabled, cache_max_size_bytes, edge_enabled, ttl")

    def test_what_a_local_sidecar_counts_has_one_home(self) -> None:
        with pytest.raises(ConfigError, match="give redis or local_sidecar_state"):
            Stigg(local_sidecar_config=LocalSidecarConfig(redis=RedisOptions("dev")), local_sidecar_state="state.db")
        with pytest.raises(ConfigError, match="environment_prefix must not be empty"):
            Stigg(local_sidecar_config=LocalSidecarConfig(redis=RedisOptions("")))

    @pytest.mark.parametrize("key", ["", " ", "two words", "line\n", "schlüssel", None, 5])
    def test_a_key_that_is_none_is_refused_and_not_repeated(self, key: Any) -> None:
        with pytest.raises(ConfigError, match="api_key: expected the key") as caught:
            Stigg(ApiConfig(api_key=key))
        assert key is None or str(key).strip() == "" or str(key) not in str(caught.value)

    @pytest.mark.parametrize("name", ["api_url", "edge_api_url"])
    @pytest.mark.parametrize(
        "url", ["api.stigg.io", "ftp://api.stigg.io", "https://", "https://a:b@api", "http://[", 5]
    )
    def test_an_address_of_the_api_that_is_none_is_refused(self, name: str, url: Any) -> None:
        with pytest.raises(ConfigError, match=f"^{name}: expected a URL"):
            Stigg(ApiConfig(api_key="key", **{name: url}))

    def test_the_others_exclude_each_other(self) -> None:
        with pytest.raises(ConfigError, match="no two of them"):
            Stigg(remote_sidecar_host="h", offline_file="f")
        with pytest.raises(ConfigError, match="no two of them"):
            Stigg(local_sidecar_config=LocalSidecarConfig(), offline_file=os.devnull)

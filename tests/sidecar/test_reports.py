"""How usage is counted: reports, bulk, raw events, what is refused, and what is counted only once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stigg_guard.errors import InvalidRequest
from stigg_guard.sidecar.catalog import parse_catalog
from stigg_guard.sidecar.engine import Engine
from stigg_guard.sidecar.store import Store
from stigg_guard.wire import sidecar_pb2 as pb

CATALOG = """
[features.flag]
type = "boolean"
[features.seats]
type = "metered"
meter = "fluctuating"
[features.calls]
type = "metered"
meter = "incremental"
[features.logins]
type = "metered"
meter = "incremental"
[features.bytes]
type = "metered"
meter = "incremental"
[features.peak]
type = "metered"
meter = "incremental"
[features.users]
type = "metered"
meter = "incremental"
[plans.p.entitlements]
seats = { limit = 10 }
calls = { limit = 100, reset = "month" }
users = { limit = 10, reset = "month" }
[customers.c]
plan = "p"
anchor = 2024-01-31T00:00:00Z
[customers.c.resources.site]
plan = "p"
[customers.bare]
[meters.login]
feature = "logins"
aggregation = "count"
[meters.upload]
feature = "bytes"
aggregation = "sum"
dimension = "size"
[meters.load]
feature = "peak"
aggregation = "max"
dimension = "size"
[meters.visit]
feature = "users"
aggregation = "count_unique"
dimension = "user_id"
"""

SET = pb.USAGE_UPDATE_BEHAVIOR_SET
START = datetime(2024, 2, 29, 12, tzinfo=timezone.utc)


class Wall:
    """A wall clock that the test sets."""

    def __init__(self) -> None:
        self.instant = START

    def now(self) -> datetime:
        return self.instant


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def engine(wall: Wall) -> Iterator[Engine]:
    engine = Engine(parse_catalog(CATALOG), Store(None), now=wall.now)
    yield engine
    engine.close()


def usage(feature_id: str = "seats", value: float = 1, **fields: Any) -> pb.ReportUsageRequest:
    return pb.ReportUsageRequest(**{"customer_id": "c", "feature_id": feature_id, "value": value, **fields})


def event(name: str = "login", key: str = "key", **fields: Any) -> pb.Event:
    return pb.Event(**{"event_name": name, "customer_id": "c", "idempotency_key": key, **fields})


def report(engine: Engine, request: pb.ReportUsageRequest, **options: Any) -> Any:
    return engine.answer("ReportUsage", request, **options)


def bulk(engine: Engine, *usages: pb.ReportUsageRequest, **options: Any) -> Any:
    return engine.answer("ReportUsageBulk", pb.ReportUsageBulkRequest(usages=usages), **options)


def send(engine: Engine, *events: pb.Event, **options: Any) -> Any:
    return engine.answer("ReportEvents", pb.ReportEventsRequest(events=events), **options)


def used(engine: Engine, feature_id: str = "seats", customer_id: str = "c", resource_id: str | None = None) -> float:
    """The usage that a report of nothing learns."""
    request = usage(feature_id, 0, customer_id=customer_id, resource_id=resource_id)
    return float(report(engine, request).current_usage)


def refused(engine: Engine, method: str, request: Any, **options: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        engine.answer(method, request, **options)
    return caught.value


def test_delta_is_the_default_and_set_replaces(engine):
    assert report(engine, usage(value=3)).current_usage == 3
    delta = usage(value=2, update_behavior=pb.USAGE_UPDATE_BEHAVIOR_DELTA)
    assert report(engine, delta).current_usage == 5
    assert report(engine, usage(value=4, update_behavior=SET)).current_usage == 4


def test_answer_tells_whose_usage_it_is_under_a_new_measurement_id(engine):
    first, second = (report(engine, usage(resource_id="site")) for _ in range(2))
    assert (first.customer_id, first.resource_id, first.feature_id) == ("c", "site", "seats")
    assert first.measurement_id != second.measurement_id
    assert not report(engine, usage()).HasField("resource_id")


def test_answer_tells_the_period_if_there_is_one(engine):
    answer = report(engine, usage("calls"))
    assert answer.usage_period_start.ToDatetime() == datetime(2024, 2, 29)
    assert answer.usage_period_end.ToDatetime() == datetime(2024, 3, 31)
    assert not report(engine, usage("seats")).HasField("usage_period_end")


def test_check_after_report_sees_it(engine):
    report(engine, usage(value=7))
    check = engine.answer("GetMeteredEntitlement", pb.GetMeteredEntitlementRequest(customer_id="c", feature_id="seats"))
    assert check.entitlement.current_usage == 7


def test_resource_and_customer_count_apart(engine):
    report(engine, usage(value=3, resource_id="site"))
    assert used(engine, resource_id="site") == 3
    assert used(engine) == 0


def test_fluctuating_usage_stops_at_zero(engine):
    report(engine, usage(value=2))
    assert report(engine, usage(value=-5)).current_usage == 0
    assert report(engine, usage(value=1)).current_usage == 1


def test_usage_returns_to_zero_at_the_periods_end(engine, wall):
    report(engine, usage("calls", 5))
    wall.instant = datetime(2024, 3, 30, 23, 59, 59, tzinfo=timezone.utc)
    assert used(engine, "calls") == 5
    wall.instant = datetime(2024, 3, 31, tzinfo=timezone.utc)
    assert used(engine, "calls") == 0


def test_late_report_counts_in_its_own_period(engine, wall):
    report(engine, usage("calls", 5))
    late = wall.instant
    wall.instant = datetime(2024, 4, 1, tzinfo=timezone.utc)
    answer = report(engine, usage("calls", 2, timestamp=late))
    assert answer.current_usage == 0
    assert answer.usage_period_start.ToDatetime() == datetime(2024, 3, 31)
    wall.instant = late
    assert used(engine, "calls") == 7


def test_usage_without_a_plan_counts_and_never_returns_to_zero(engine, wall):
    report(engine, usage("calls", 2, customer_id="bare"))
    wall.instant += timedelta(days=400)
    assert report(engine, usage("calls", 2, customer_id="bare")).current_usage == 4


def test_bulk_answers_each_in_order(engine):
    answers = bulk(engine, usage(value=1), usage(value=2), usage("calls", 3)).usages
    assert [(answer.feature_id, answer.current_usage) for answer in answers] == [
        ("seats", 1),
        ("seats", 3),
        ("calls", 3),
    ]


def test_one_wrong_item_refuses_the_whole_bulk(engine):
    error = refused(
        engine, "ReportUsageBulk", pb.ReportUsageBulkRequest(usages=[usage(value=3), usage(customer_id="")])
    )
    assert str(error) == "usages[1].customer_id: must not be empty"
    assert used(engine) == 0


def test_bulk_that_overflows_at_its_second_item_counts_nothing(engine):
    request = pb.ReportUsageBulkRequest(usages=[usage(value=1e308), usage(value=1e308)])
    assert refused(engine, "ReportUsageBulk", request).field == "usages[1].value"
    assert used(engine) == 0


@pytest.mark.parametrize(
    ("fields", "field", "problem"),
    [
        ({"customer_id": ""}, "customer_id", "must not be empty"),
        ({"customer_id": "C"}, "customer_id", "there is no 'C'; expected one of bare, c"),
        ({"feature_id": ""}, "feature_id", "must not be empty"),
        ({"feature_id": "seat"}, "feature_id", "did you mean 'seats'?"),
        ({"feature_id": "flag"}, "feature_id", "'flag' is boolean; only metered features count"),
        ({"resource_id": ""}, "resource_id", "leave it out to mean the customer itself"),
        ({"resource_id": "sit"}, "resource_id", "did you mean 'site'?"),
        ({"resource_id": "site", "customer_id": "bare"}, "resource_id", "none is defined"),
        ({"value": float("nan")}, "value", "must be a finite number, and is nan"),
        ({"value": float("-inf")}, "value", "must be a finite number, and is -inf"),
        ({"feature_id": "calls", "value": -1}, "value", "the delta of an incremental meter must not be negative"),
        ({"value": -1, "update_behavior": SET}, "value", "usage must not be negative, and is -1"),
        ({"update_behavior": 7}, "update_behavior", "there is no number 7; use 1 or 2"),
        (
            {"dimensions": {"d": {"number_value": float("inf")}}},
            "dimensions[d].number_value",
            "must be a finite number",
        ),
        ({"timestamp": START + timedelta(minutes=6)}, "timestamp", "lies in the future"),
        ({"timestamp": {"seconds": 0}}, "timestamp", "lies before the year 2000"),
        ({"timestamp": {"seconds": 10**15}}, "timestamp", "is not an instant between the years 1 and 9999"),
        ({"timestamp": {"seconds": 10**9, "nanos": -1}}, "timestamp", "is not an instant"),
    ],
)
def test_wrong_usage_is_refused_by_its_field(engine, fields, field, problem):
    error = refused(engine, "ReportUsage", usage(**fields))
    assert error.field == field
    assert problem in str(error)


@pytest.mark.parametrize("count", [0, 101])
def test_bulk_of_the_wrong_size_is_refused(engine, count):
    error = refused(engine, "ReportUsageBulk", pb.ReportUsageBulkRequest(usages=[usage()] * count))
    assert str(error) == f"usages: must have 1 to 100 items, and has {count}"


@pytest.mark.parametrize("count", [0, 1001])
def test_events_in_the_wrong_number_are_refused(engine, count):
    error = refused(engine, "ReportEvents", pb.ReportEventsRequest(events=[event()] * count))
    assert str(error) == f"events: must have 1 to 1000 items, and has {count}"


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (event(name=""), "events[1].event_name"),
        (event(customer_id=""), "events[1].customer_id"),
        (event(key=""), "events[1].idempotency_key"),
        (event(resource_id=""), "events[1].resource_id"),
        (event(dimensions={"size": {"number_value": float("nan")}}), "events[1].dimensions[size].number_value"),
        (event(dimensions={"text": {"string_value": "x" * 1_000_000}}), "events[1]"),
        (event(timestamp=START + timedelta(hours=1)), "events[1].timestamp"),
    ],
)
def test_one_wrong_event_refuses_all(engine, wrong, field):
    assert refused(engine, "ReportEvents", pb.ReportEventsRequest(events=[event(), wrong])).field == field
    assert used(engine, "logins") == 0


def sized(size: Any, key: str, name: str) -> pb.Event:
    return event(name, key, dimensions={"size": size})


def test_count_counts_events(engine):
    send(engine, event(key="a"), event(key="b"))
    assert used(engine, "logins") == 2


def test_sum_adds_the_numbers_of_a_dimension(engine):
    send(engine, sized({"number_value": 3}, "a", "upload"), sized({"number_value": 4.5}, "b", "upload"))
    assert used(engine, "bytes") == 7.5


def test_max_keeps_the_greatest(engine):
    send(engine, *(sized({"number_value": size}, str(size), "load") for size in (3, 9, 4)))
    assert used(engine, "peak") == 9


def test_count_unique_counts_each_value_once_in_a_period(engine, wall):
    values = [{"string_value": "1"}, {"number_value": 1}, {"boolean_value": True}, {"string_value": "1"}]
    send(engine, *(event("visit", str(n), dimensions={"user_id": value}) for n, value in enumerate(values)))
    assert used(engine, "users") == 3
    wall.instant = datetime(2024, 4, 1, tzinfo=timezone.utc)
    send(engine, event("visit", "again", dimensions={"user_id": {"string_value": "1"}}))
    assert used(engine, "users") == 1


@pytest.mark.parametrize("name", ["upload", "load", "visit"])
def test_event_without_its_meters_dimension_adds_nothing(engine, name):
    send(engine, event(name))
    send(engine, event(name, "empty", dimensions={"size": {}, "user_id": {}}))
    send(engine, event(name, "text", dimensions={"size": {"string_value": "9"}}))
    assert [used(engine, feature) for feature in ("bytes", "peak", "users")] == [0, 0, 0]


def test_sum_that_would_overflow_stays(engine):
    send(engine, *(sized({"number_value": 1e308}, key, "upload") for key in "ab"))
    assert used(engine, "bytes") == 1e308


def test_unknown_events_and_customers_pass_without_effect(engine):
    send(engine, event("unheard"), event(customer_id="nobody"), event(resource_id="nowhere"))
    assert used(engine, "logins") == 0


def test_event_is_counted_once_however_often_it_is_sent(engine):
    stamped = event(timestamp=START)
    send(engine, stamped, stamped)
    send(engine, stamped)
    send(engine, event(), event())
    assert used(engine, "logins") == 2


@pytest.mark.parametrize(
    "other",
    [
        event("login", "other", timestamp=START),
        event(timestamp=START + timedelta(seconds=1)),
        event(timestamp=START, resource_id="site"),
        event(timestamp=START, customer_id="bare"),
    ],
)
def test_event_that_differs_in_its_identity_is_another(engine, other):
    send(engine, event(timestamp=START), other)
    counted = used(engine, "logins") + used(engine, "logins", "bare") + used(engine, "logins", resource_id="site")
    assert counted == 2


def test_late_event_counts_in_its_own_period(engine, wall):
    late = wall.instant
    wall.instant = datetime(2024, 4, 1, tzinfo=timezone.utc)
    send(engine, event("visit", timestamp=late, dimensions={"user_id": {"string_value": "u"}}))
    assert used(engine, "users") == 0


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("ReportUsage", usage(value=3)),
        ("ReportUsageBulk", pb.ReportUsageBulkRequest(usages=[usage(value=3)])),
        ("ReportEvents", pb.ReportEventsRequest(events=[event()])),
    ],
)
def test_repeated_key_gets_the_first_answer(engine, method, request_):
    first = engine.answer(method, request_, idempotency_key="k")
    assert engine.answer(method, request_, idempotency_key="k") == first
    assert used(engine) in (0, 3)


def test_key_is_forgotten_after_a_day(engine, wall):
    report(engine, usage(), idempotency_key="k")
    wall.instant += timedelta(hours=23, minutes=59)
    assert report(engine, usage(), idempotency_key="k").current_usage == 1
    wall.instant += timedelta(minutes=1)
    assert report(engine, usage(), idempotency_key="k").current_usage == 2


def test_key_of_another_report_is_refused(engine):
    report(engine, usage(value=1), idempotency_key="k")
    error = refused(engine, "ReportUsage", usage(value=2), idempotency_key="k")
    assert error.field == "idempotency-key"
    assert used(engine) == 1


def test_key_of_a_refused_report_is_not_used_up(engine):
    refused(engine, "ReportUsage", usage(value=float("nan")), idempotency_key="k")
    refused(engine, "ReportUsageBulk", pb.ReportUsageBulkRequest(usages=[usage(value=1e308)] * 2), idempotency_key="k")
    assert report(engine, usage(value=1), idempotency_key="k").current_usage == 1


def test_concurrent_repeats_of_one_key_count_once(engine):
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: report(engine, usage(), idempotency_key="k"), range(64)))
    assert len({answer.measurement_id for answer in answers}) == 1
    assert used(engine) == 1


def test_concurrent_reports_all_count(engine):
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: report(engine, usage()), range(200)))
    assert sorted(answer.current_usage for answer in answers) == list(range(1, 201))


def test_offline_engine_checks_reports_and_counts_nothing(wall):
    engine = Engine(parse_catalog(CATALOG), Store(None), now=wall.now, reporting=False)
    assert report(engine, usage(value=3)).current_usage == 0
    send(engine, event())
    assert used(engine, "logins") == 0
    assert refused(engine, "ReportUsage", usage(customer_id="")).field == "customer_id"
    engine.close()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["seats", "calls"]),
        st.booleans(),
        st.integers(-5, 5),
        st.integers(0, 20),
    ),
    max_size=20,
)


@given(STEPS)
@settings(derandomize=True, deadline=None, max_examples=60)
def test_usage_is_what_a_plain_model_says(steps):
    """Each step waits some days, then reports a delta or sets the usage; the model is a sum for each calendar month."""
    wall = Wall()
    catalog = parse_catalog(CATALOG.replace("anchor = 2024-01-31T00:00:00Z", ""))
    engine = Engine(catalog, Store(None), now=wall.now)
    model: dict[object, float] = {}
    for feature, is_set, value, days in steps:
        wall.instant += timedelta(days=days)
        key = feature if feature == "seats" else (feature, wall.instant.year, wall.instant.month)
        if value < 0 and (is_set or feature == "calls"):
            refused(engine, "ReportUsage", usage(feature, value, update_behavior=SET if is_set else None))
            continue
        model[key] = value if is_set else max(0, model.get(key, 0) + value)
        answer = report(engine, usage(feature, value, update_behavior=SET if is_set else None))
        assert answer.current_usage == model[key]
    engine.close()

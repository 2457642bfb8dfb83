"""What a customer may use: the decision, the amounts it takes, and the values made from the wire."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, replace
from datetime import datetime, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stigg_guard.amounts import quanta, quanta_used, usage_amount
from stigg_guard.decoding import entitlement_from_wire
from stigg_guard.entitlements import Customer, Entitlement, Kind, Reason, ResetPeriod, Source, changed
from stigg_guard.errors import InvalidRequest
from stigg_guard.wire import sidecar_pb2 as wire

START = datetime(2024, 2, 1, tzinfo=timezone.utc)
END = datetime(2024, 3, 1, tzinfo=timezone.utc)
FEATURE = wire.EntitlementFeature(id="f", units="template", units_plural="templates")
UNKNOWN_NUMBER = 9_999
ABOUT_THE_AMOUNT = {Reason.REQUESTED_USAGE_EXCEEDING_LIMIT, Reason.INSUFFICIENT_CREDITS}

untimed = settings(deadline=None)
amounts = st.floats(min_value=0, max_value=9e9)
figures = st.floats(min_value=-1e12, max_value=1e12)


def metered(used: float = 3, limit: float | None = 6, **changes: Any) -> Entitlement:
    open_ = limit is None or used < limit
    reason = None if open_ else Reason.REQUESTED_USAGE_EXCEEDING_LIMIT
    answer = Entitlement(
        feature_id="f", kind=Kind.METERED, has_access=open_, reason=reason, current_usage=used, usage_limit=limit
    )
    return replace(answer, **changes)


def of_kind(kind: Kind, **fields: Any) -> Entitlement:
    return Entitlement(feature_id="f", kind=kind, has_access=True, **fields)


@pytest.mark.parametrize(
    ("used", "asked", "allowed"),
    [
        (5, None, True),
        (6, None, False),
        (7, None, False),
        (5, 1, True),
        (5, 1.5, False),
        (3, 10, False),
        (6, 0, True),
        (7, 0, False),
        (6, 1, False),
        (-2, 8, False),  # a usage below 0 leaves no more than the limit
        (-2, 6, True),
        (0.1 + 0.2 - 0.1, 5.8, True),
        (float("nan"), 1, False),
        (float("inf"), 1, False),
        (float("-inf"), 1, False),
    ],
)
def test_amount_decides_below_the_limit(used: float, asked: float | None, allowed: bool) -> None:
    answer = metered(used).allows(asked)
    assert bool(answer) is answer.has_access is allowed
    assert answer.reason is (None if allowed else Reason.REQUESTED_USAGE_EXCEEDING_LIMIT)
    assert answer.requested_usage == asked


@untimed
@given(used=figures, limit=amounts, asked=amounts)
def test_given_amount_is_allowed_exactly_when_it_fits(used: float, limit: float, asked: float) -> None:
    assert metered(used, limit).allows(asked).has_access is (
        quanta_used(used) + quanta(usage_amount(asked)) <= quanta(limit)
    )


@untimed
@given(used=figures, asked=amounts)
def test_unlimited_allows_every_amount(used: float, asked: float) -> None:
    answer = of_kind(Kind.METERED, is_unlimited=True, current_usage=used)
    assert answer.allows(asked)
    assert answer.remaining is None


@pytest.mark.parametrize("has_access", [True, False])
@untimed
@given(used=figures, asked=amounts)
def test_sidecars_word_stands_behind_a_soft_limit(has_access: bool, used: float, asked: float) -> None:
    reason = None if has_access else Reason.REQUESTED_USAGE_EXCEEDING_LIMIT
    answer = metered(used, has_soft_limit=True, has_access=has_access, reason=reason)
    for decided in (answer.allows(asked), answer.with_usage(asked)):
        assert decided.has_access is has_access
        assert decided.reason is reason


def test_metered_feature_without_a_limit_in_the_answer_keeps_its_access() -> None:
    answer = metered(limit=None)
    assert answer.allows(10**9)
    assert answer.with_usage(10**9)
    assert answer.remaining is None


@pytest.mark.parametrize("reason", sorted(set(Reason) - ABOUT_THE_AMOUNT), ids=str)
def test_denial_for_another_reason_than_the_amount_stands(reason: Reason) -> None:
    answer = metered(0, has_access=False, reason=reason)
    assert answer.allows(0).reason is reason
    assert not answer.allows(0)
    assert answer.with_usage(0).reason is reason


def test_credits_that_run_out_have_their_own_reason() -> None:
    wallet = of_kind(Kind.CREDIT, usage_limit=10, current_usage=8, currency="credits")
    assert wallet.allows(2)
    assert wallet.allows(3).reason is Reason.INSUFFICIENT_CREDITS
    assert wallet.allows(3).allows(1)


@pytest.mark.parametrize(
    ("requested", "reason"),
    [
        (["eu"], None),
        (["us", "eu", "eu"], None),
        ([], None),
        (["asia"], Reason.REQUESTED_VALUES_MISMATCH),
        (["eu", "asia"], Reason.REQUESTED_VALUES_MISMATCH),
        (["EU"], Reason.REQUESTED_VALUES_MISMATCH),
        ([""], Reason.REQUESTED_VALUES_MISMATCH),
    ],
)
def test_every_requested_value_must_be_in_the_plan(requested: list[str], reason: Reason | None) -> None:
    answer = of_kind(Kind.ENUM, enum_values=("eu", "us")).allows(requested_values=requested)
    assert answer.reason is reason
    assert bool(answer) is (reason is None)


def test_one_text_in_place_of_a_list_of_values_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"requested_values.*\['eu'\]"):
        of_kind(Kind.ENUM, enum_values=("e", "u")).allows(requested_values="eu")


@pytest.mark.parametrize("kind", [Kind.BOOLEAN, Kind.NUMERIC, Kind.ENUM])
def test_amount_of_an_uncounted_feature_is_a_type_mismatch(kind: Kind) -> None:
    assert of_kind(kind).allows(1).reason is Reason.FEATURE_TYPE_MISMATCH


@pytest.mark.parametrize("kind", [Kind.BOOLEAN, Kind.NUMERIC, Kind.METERED, Kind.CREDIT])
def test_values_of_a_feature_that_is_no_enum_are_a_type_mismatch(kind: Kind) -> None:
    assert of_kind(kind).allows(requested_values=["eu"]).reason is Reason.FEATURE_TYPE_MISMATCH


def test_denial_is_not_overwritten_by_a_type_mismatch() -> None:
    denied = Entitlement(feature_id="f", has_access=False, reason=Reason.CUSTOMER_NOT_FOUND)
    assert denied.allows(1).reason is Reason.CUSTOMER_NOT_FOUND
    assert denied.allows(requested_values=["eu"]).reason is Reason.CUSTOMER_NOT_FOUND


def test_fallback_has_no_type_to_mismatch() -> None:
    fallback = Entitlement(feature_id="f", has_access=True, is_fallback=True, source=Source.FALLBACK)
    assert fallback.allows(1)
    assert fallback.allows(requested_values=["eu"])


@untimed
@given(used=amounts, limit=amounts)
def test_new_usage_is_judged_as_a_check_without_an_amount(used: float, limit: float) -> None:
    answer = metered(0, limit, has_access=True, reason=None).with_usage(used)
    assert answer.current_usage == used
    assert answer.has_access is (quanta(used) < quanta(limit))


def test_new_usage_of_an_uncounted_feature_does_not_change_its_access() -> None:
    assert of_kind(Kind.BOOLEAN).with_usage(5).has_access


@pytest.mark.parametrize(("used", "left"), [(0, 6), (6, 0), (8, 0), (2.5, 3.5)])
def test_remaining_is_what_is_left_and_never_negative(used: float, left: float) -> None:
    assert metered(used).remaining == left


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (metered(3), "access granted"),
        (metered(6), "REQUESTED_USAGE_EXCEEDING_LIMIT (6 of 6 units used)"),
        (
            metered(3, units_plural="templates").allows(10),
            "REQUESTED_USAGE_EXCEEDING_LIMIT (3 of 6 templates used, 10 requested)",
        ),
        (metered(1_234_567.5, 1_000_000), "REQUESTED_USAGE_EXCEEDING_LIMIT (1234567.5 of 1000000 units used)"),
        (Entitlement(feature_id="f", has_access=False, reason=Reason.REVOKED), "REVOKED"),
        (Entitlement(feature_id="f", has_access=False), "UNKNOWN"),
    ],
)
def test_explanation_has_the_reason_and_its_figures(answer: Entitlement, text: str) -> None:
    assert answer.explanation == text


def test_changed_answer_is_as_replaced() -> None:
    answer = Entitlement(feature_id="f", kind=Kind.METERED, has_access=True, usage_limit=3.0, units="seat")
    made = changed(answer, current_usage=3.0, has_access=False)
    assert made == replace(answer, current_usage=3.0, has_access=False)
    assert answer.has_access


def test_entitlement_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        metered().has_access = False
    with pytest.raises((AttributeError, TypeError)):
        metered().colour = "red"


def test_entitlement_is_a_value() -> None:
    answer = metered(usage_period_end=END, enum_values=("a",))
    assert answer == copy.deepcopy(answer) == pickle.loads(pickle.dumps(answer))
    assert hash(answer) == hash(replace(answer))


@pytest.mark.parametrize(
    "amount", [0, -0.0, 1, 2.5, Decimal("1.25"), Fraction(1, 2), 9_000_000_000, 0.000001, Decimal("9e9")]
)
def test_finite_number_is_an_amount(amount: Any) -> None:
    number = usage_amount(amount)
    assert type(number) is float
    assert number == float(amount)


@pytest.mark.parametrize(
    "amount",
    [
        None,
        True,
        False,
        "2",
        b"2",
        [2],
        2 + 0j,
        float("nan"),
        float("inf"),
        float("-inf"),
        -1,
        -0.000001,
        Decimal("NaN"),
        Decimal("sNaN"),
        Decimal("Infinity"),
        Decimal("1e400"),
        9_000_000_001,
        -9_000_000_001,
        10**400,
        -(10**400),
        Fraction(10**400),
    ],
)
def test_what_is_no_amount_is_refused_by_its_field(amount: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        usage_amount(amount, "usages[1].value")
    assert caught.value.field == "usages[1].value"
    assert str(caught.value).startswith("usages[1].value: usage is ")


def test_negative_amount_is_taken_where_it_is_allowed() -> None:
    assert usage_amount(-2, negative=True) == -2
    with pytest.raises(InvalidRequest):
        usage_amount(float("-inf"), negative=True)


def test_decision_refuses_a_bad_amount_by_name() -> None:
    with pytest.raises(InvalidRequest, match="requested_usage: usage is not negative, and this is -1"):
        metered().allows(-1)


@pytest.mark.parametrize(
    ("customer", "resource", "field"),
    [("", None, "customer_id"), (7, None, "customer_id"), ("c", "", "resource_id"), ("c", 7, "resource_id")],
)
def test_customer_has_ids(customer: Any, resource: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Customer(customer, resource)
    assert caught.value.field == field


def test_customer_is_named_by_its_ids() -> None:
    site = Customer("c", resource="site-01")
    assert (str(Customer("c")), str(site)) == ("c", "c/site-01")
    assert Customer.of(site) is site
    assert Customer.of("c") == Customer("c")


def test_boolean_answer_from_the_wire() -> None:
    message = wire.EntitlementV2(has_access=True, boolean=wire.BooleanEntitlement(feature=FEATURE))
    assert entitlement_from_wire(message) == Entitlement(
        feature_id="f", kind=Kind.BOOLEAN, has_access=True, units="template", units_plural="templates"
    )


@pytest.mark.parametrize("value", [None, 0, 7, -3])
def test_numeric_answer_from_the_wire_tells_zero_from_none(value: int | None) -> None:
    message = wire.EntitlementV2(has_access=True, numeric=wire.NumericEntitlement(feature=FEATURE, value=value))
    answer = entitlement_from_wire(message)
    assert (answer.kind, answer.value, answer.is_unlimited) == (Kind.NUMERIC, value, False)


def test_enum_answer_from_the_wire() -> None:
    message = wire.EntitlementV2(has_access=True, enum=wire.EnumEntitlement(feature=FEATURE, enum_values=["eu", "us"]))
    answer = entitlement_from_wire(message)
    assert (answer.kind, answer.enum_values) == (Kind.ENUM, ("eu", "us"))


def test_metered_answer_from_the_wire() -> None:
    message = wire.EntitlementV2(
        access_denied_reason=wire.ACCESS_DENIED_REASON_REQUESTED_USAGE_EXCEEDING_LIMIT,
        metered=wire.MeteredEntitlement(
            feature=FEATURE,
            usage_limit=6,
            current_usage=6.5,
            has_soft_limit=False,
            reset_period=wire.ENTITLEMENT_RESET_PERIOD_MONTH,
            usage_period_anchor=START,
            usage_period_start=START,
            usage_period_end=END,
        ),
    )
    assert entitlement_from_wire(message, source=Source.OFFLINE) == Entitlement(
        feature_id="f",
        kind=Kind.METERED,
        has_access=False,
        reason=Reason.REQUESTED_USAGE_EXCEEDING_LIMIT,
        source=Source.OFFLINE,
        usage_limit=6.0,
        current_usage=6.5,
        reset_period=ResetPeriod.MONTH,
        usage_period_anchor=START,
        usage_period_start=START,
        usage_period_end=END,
        units="template",
        units_plural="templates",
    )


def test_credit_answer_from_the_wire_is_named_by_its_currency() -> None:
    currency = wire.EntitlementCurrency(currency_id="credits", unit_singular="credit", unit_plural="credits")
    credit = wire.CreditEntitlement(currency=currency, usage_limit=10, current_usage=4, usage_period_end=END)
    answer = entitlement_from_wire(wire.EntitlementV2(has_access=True, credit=credit))
    assert (answer.kind, answer.feature_id, answer.currency) == (Kind.CREDIT, "credits", "credits")
    assert (answer.usage_limit, answer.current_usage, answer.remaining) == (10, 4, 6)
    assert (answer.units, answer.units_plural, answer.usage_period_end) == ("credit", "credits", END)


def test_credit_answer_without_unit_names_has_none() -> None:
    credit = wire.CreditEntitlement(currency=wire.EntitlementCurrency(currency_id="credits"))
    answer = entitlement_from_wire(wire.EntitlementV2(credit=credit))
    assert (answer.units, answer.units_plural, answer.usage_period_end) == (None, None, None)


def test_single_answer_of_older_calls_is_read_alike() -> None:
    body = wire.MeteredEntitlement(feature=FEATURE, usage_limit=6, current_usage=3)
    new = entitlement_from_wire(wire.EntitlementV2(has_access=True, is_fallback=True, metered=body))
    assert entitlement_from_wire(wire.GetEntitlementResponse(has_access=True, is_fallback=True, metered=body)) == new
    assert new.is_fallback


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({"current_usage": 5, "usage_limit": 6}, True),
        ({"current_usage": 6, "usage_limit": 6}, False),
        ({"current_usage": 0, "usage_limit": 0}, False),
        ({"current_usage": 9, "usage_limit": 6, "has_soft_limit": True}, True),
        ({"current_usage": 9, "usage_limit": 6, "is_unlimited": True}, True),
        ({"current_usage": 9}, True),
    ],
)
def test_listed_answer_of_older_calls_is_decided_by_its_figures(fields: dict[str, Any], allowed: bool) -> None:
    message = wire.Entitlement(metered=wire.MeteredEntitlement(feature=FEATURE, **fields))
    answer = entitlement_from_wire(message)
    assert answer.has_access is allowed
    assert answer.reason is (None if allowed else Reason.REQUESTED_USAGE_EXCEEDING_LIMIT)


@pytest.mark.parametrize("kind", ["boolean", "numeric", "metered", "enum", "credit"])
def test_denial_without_a_feature_is_named_by_what_was_asked(kind: str) -> None:
    message = wire.EntitlementV2(access_denied_reason=wire.ACCESS_DENIED_REASON_NO_ACTIVE_SUBSCRIPTION)
    getattr(message, kind).SetInParent()
    answer = entitlement_from_wire(message, feature_id="asked")
    assert (answer.feature_id, answer.kind, answer.has_access) == ("asked", Kind(kind), False)
    assert answer.reason is Reason.NO_ACTIVE_SUBSCRIPTION
    assert answer.current_usage == 0


def test_answer_of_no_known_kind_keeps_the_sidecars_word() -> None:
    assert entitlement_from_wire(wire.EntitlementV2(has_access=True), feature_id="f").allows()
    denied = entitlement_from_wire(wire.EntitlementV2(), feature_id="f")
    assert (denied.kind, denied.reason) == (None, Reason.UNKNOWN)


def test_reason_of_an_answer_that_grants_access_is_dropped() -> None:
    message = wire.EntitlementV2(has_access=True, access_denied_reason=wire.ACCESS_DENIED_REASON_REVOKED)
    assert entitlement_from_wire(message, feature_id="f").reason is None


def test_numbers_that_a_newer_sidecar_sends_are_read_as_unknown() -> None:
    # Field 3 is the reason, field 6 the metered entitlement, field 9 its reset period, each with an unknown number.
    unknown = b"\x8f\x4e"
    message = wire.EntitlementV2.FromString(b"\x18" + unknown + b"\x32\x03\x48" + unknown + b"\xfa\x07\x01x")
    assert message.access_denied_reason == message.metered.reset_period == UNKNOWN_NUMBER
    answer = entitlement_from_wire(message, feature_id="f")
    assert (answer.kind, answer.reason, answer.reset_period) == (Kind.METERED, Reason.UNKNOWN, None)


def test_every_reason_and_reset_period_of_the_contract_is_known() -> None:
    reasons = wire.DESCRIPTOR.enum_types_by_name["AccessDeniedReason"].values
    assert {f"ACCESS_DENIED_REASON_{Reason.from_wire(value.number)}" for value in reasons if value.number} == {
        value.name for value in reasons if value.number
    }
    for value in wire.DESCRIPTOR.enum_types_by_name["EntitlementResetPeriod"].values:
        body = wire.MeteredEntitlement(reset_period=value.number)
        period = entitlement_from_wire(wire.EntitlementV2(metered=body)).reset_period
        expected = value.name.removeprefix("ENTITLEMENT_RESET_PERIOD_")
        assert (period.name if period else "UNSPECIFIED") == expected

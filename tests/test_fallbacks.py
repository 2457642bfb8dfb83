"""What a fallback says, where it is read from, and the response that carries it."""

from __future__ import annotations

import pytest

from stigg_guard.errors import ConfigError
from stigg_guard.fallbacks import Fallback, fallback_answer, parse_fallbacks, requested_fallback
from stigg_guard.wire import METHODS
from stigg_guard.wire import sidecar_pb2 as pb


def test_documented_json_becomes_fallbacks():
    text = """{"feature-01": {"hasAccess": true, "usageLimit": 1000},
               "feature-02": {"hasAccess": true, "isUnlimited": true},
               "feature-03": {"hasAccess": false, "value": 5},
               "feature-04": {"hasAccess": true, "enumValues": ["eu", "us"]}}"""
    assert parse_fallbacks(text) == {
        "feature-01": Fallback(True, usage_limit=1000),
        "feature-02": Fallback(True, is_unlimited=True),
        "feature-03": Fallback(False, value=5),
        "feature-04": Fallback(True, enum_values=("eu", "us")),
    }


def test_mapping_takes_ready_fallbacks_and_bare_booleans():
    ready = Fallback(True, value=7)
    assert parse_fallbacks({"f1": ready, "f2": False}) == {"f1": ready, "f2": Fallback(False)}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('{"f": ', "not JSON: Expecting value: line 1"),
        ("[]", "must map feature ids"),
        ({"f": {"hasAcces": True}}, "unknown key 'hasAcces'; did you mean 'hasAccess'"),
        ({"f": {"has_access": True}}, "did you mean 'hasAccess'"),
        ({"f": {"zzz": True}}, "the keys are hasAccess, value"),
        ({"f": {"value": 3}}, "add hasAccess"),
        ({"f": 3}, "must be true, false or an object"),
        ({"f": {"hasAccess": 1}}, "hasAccess must be true or false, not 1"),
        ({"f": {"hasAccess": True, "value": True}}, "value must be a whole number of 32 bits, not True"),
        ({"f": {"hasAccess": True, "value": 2**31}}, "value must be a whole number of 32 bits"),
        ({"f": {"hasAccess": True, "usageLimit": float("nan")}}, "usageLimit must be a number, 0 or more"),
        ({"f": {"hasAccess": True, "usageLimit": -1}}, "usageLimit must be a number, 0 or more"),
        ({"f": {"hasAccess": True, "isUnlimited": "yes"}}, "isUnlimited must be true or false, not 'yes'"),
        ({"f": {"hasAccess": True, "enumValues": "eu"}}, "enumValues must be a list of texts"),
    ],
)
def test_wrong_fallback_is_refused_with_place_and_remedy(source, message):
    with pytest.raises(ConfigError) as caught:
        parse_fallbacks(source)
    assert message in str(caught.value)
    assert str(caught.value).startswith("fallback")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (pb.GetEntitlementFallback(has_access=True, value=0), Fallback(True, value=0)),
        (pb.BooleanEntitlementFallback(), Fallback(False)),
        (pb.NumericEntitlementFallback(has_access=True, is_unlimited=True), Fallback(True, is_unlimited=True)),
        (pb.MeteredEntitlementFallback(has_access=True, usage_limit=3.5), Fallback(True, usage_limit=3.5)),
        (pb.EnumEntitlementFallback(has_access=True, enum_values=["a"]), Fallback(True, enum_values=("a",))),
        (
            pb.EntitlementFallback(metered=pb.MeteredEntitlementFallback(has_access=True, usage_limit=0)),
            Fallback(True, usage_limit=0),
        ),
    ],
)
def test_every_fallback_message_becomes_a_fallback(message, expected):
    assert Fallback.from_message(message) == expected


def test_empty_oneof_is_refused():
    with pytest.raises(ConfigError, match="set one of boolean, numeric, metered, enum"):
        Fallback.from_message(pb.EntitlementFallback())


@pytest.mark.parametrize("method", ["GetEntitlement", "GetEntitlementV2"])
def test_generic_request_brings_its_own_fallback(method):
    request = METHODS[method].request(customer_id="c", options={"fallback": {"has_access": True, "value": 3}})
    assert requested_fallback(request) == Fallback(True, value=3)


def test_request_without_fallback_brings_none():
    assert requested_fallback(pb.GetEntitlementRequest(customer_id="c")) is None
    assert requested_fallback(pb.GetEntitlementRequest(options={"requested_usage": 1})) is None
    assert requested_fallback(pb.GetEntitlementsRequest(customer_id="c")) is None


@pytest.mark.parametrize(
    ("fallback", "kind"),
    [
        (Fallback(True), "boolean"),
        (Fallback(True, value=0), "numeric"),
        (Fallback(True, usage_limit=0), "metered"),
        (Fallback(True, is_unlimited=True), "metered"),
        (Fallback(True, enum_values=("eu",)), "enum"),
    ],
)
def test_generic_answer_takes_the_kind_of_the_given_fields(fallback, kind):
    old = fallback_answer("GetEntitlement", pb.GetEntitlementRequest(feature_id="f"), fallback)
    new = fallback_answer("GetEntitlementV2", pb.GetEntitlementV2Request(feature_id="f"), fallback).entitlement
    for answer in (old, new):
        assert answer.is_fallback
        assert answer.has_access
        assert answer.WhichOneof("entitlement") == kind
        assert getattr(answer, kind).feature.id == "f"


def test_currency_is_answered_as_credit():
    request = pb.GetEntitlementV2Request(currency_id="api-credits")
    answer = fallback_answer("GetEntitlementV2", request, Fallback(True, usage_limit=5)).entitlement
    assert answer.credit == pb.CreditEntitlement(
        currency=pb.EntitlementCurrency(currency_id="api-credits"), usage_limit=5, remaining=5
    )


def test_denying_fallback_has_the_unknown_reason():
    answer = fallback_answer("GetBooleanEntitlement", pb.GetBooleanEntitlementRequest(feature_id="f"), Fallback(False))
    assert not answer.has_access
    assert answer.is_fallback
    assert answer.access_denied_reason == pb.ACCESS_DENIED_REASON_UNKNOWN


def test_typed_answers_carry_their_kind_and_echo_what_was_asked():
    numeric = fallback_answer(
        "GetNumericEntitlement", pb.GetNumericEntitlementRequest(feature_id="f"), Fallback(True, value=9)
    )
    assert (numeric.entitlement.value, numeric.entitlement.feature.feature_type) == (9, pb.FEATURE_TYPE_NUMBER)
    metered = fallback_answer(
        "GetMeteredEntitlement",
        pb.GetMeteredEntitlementRequest(feature_id="f", options={"requested_usage": 4}),
        Fallback(True, usage_limit=10),
    )
    assert metered.requested_usage == 4
    assert metered.entitlement.usage_limit == 10
    assert metered.entitlement.feature.is_metered
    enum = fallback_answer(
        "GetEnumEntitlement",
        pb.GetEnumEntitlementRequest(feature_id="f", options={"requested_values": ["eu"]}),
        Fallback(True, enum_values=("eu", "us")),
    )
    assert list(enum.requested_values) == ["eu"]
    assert list(enum.entitlement.enum_values) == ["eu", "us"]

"""What is sold, read from files: what is understood, and how wrong files are refused."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest

from stigg_guard.errors import ConfigError
from stigg_guard.sidecar.catalog import (
    Feature,
    Grant,
    Meter,
    demo_catalog,
    load_catalog,
    parse_catalog,
    parse_offline,
)

DATA = Path(__file__).parents[1] / "data"

SHOP = """
[features.f-flag]
type = "boolean"
[features.f-number]
type = "numeric"
[features.f-enum]
type = "enum"
[features.f-meter]
type = "metered"
meter = "incremental"
units = "call"
units_plural = "calls"
display_name = "Calls"
[currencies.credits]
display_name = "Credits"
[plans.p]
display_name = "Plan"
[plans.p.entitlements]
f-flag = true
"""


def faults_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_catalog(text, source="shop.toml")
    first, *lines = str(caught.value).splitlines()
    assert first == f"shop.toml: {len(lines)} fault{'s' if len(lines) > 1 else ''}"
    return [line.strip() for line in lines]


def test_whole_catalog_is_read():
    catalog = parse_catalog(
        SHOP
        + """
f-number = { value = 100 }
f-enum = { values = ["eu", "us"] }
f-meter = { limit = 1000, reset = "month", soft = true }
[plans.p.credits]
credits = { amount = 50000, reset = "year" }
[customers.c]
plan = "p"
anchor = 2023-07-21T02:00:00+02:00
revoked = ["f-flag"]
[customers.c.usage]
f-meter = 3
[customers.c.credits_used]
credits = 7
[customers.c.resources.site-01]
plan = "p"
[customers.gone]
archived = true
[meters.login]
feature = "f-meter"
aggregation = "count_unique"
dimension = "user_id"
"""
    )
    assert catalog.features["f-meter"] == Feature("f-meter", "metered", "incremental", "Calls", "call", "calls")
    plan = catalog.plans["p"]
    assert plan.entitlements == {
        "f-flag": Grant(),
        "f-number": Grant(value=100),
        "f-enum": Grant(values=("eu", "us")),
        "f-meter": Grant(limit=1000, reset="month", soft=True),
    }
    assert plan.credits == {"credits": Grant(limit=50000, reset="year")}
    customer = catalog.customers["c"]
    assert customer.account.anchor == datetime(2023, 7, 21, tzinfo=timezone.utc)
    assert customer.account.revoked == {"f-flag"}
    assert (customer.account.usage, customer.account.credits_used) == ({"f-meter": 3}, {"credits": 7})
    assert customer.resources["site-01"].anchor == customer.account.anchor
    assert catalog.customers["gone"].archived
    assert catalog.customers["gone"].account.plan is None
    assert catalog.meters == {"login": Meter("login", "f-meter", "count_unique", "user_id")}


@pytest.mark.parametrize("anchor", ["2023-07-21", "2023-07-21T00:00:00", "2023-07-20T19:00:00-05:00"])
def test_anchor_is_utc_unless_it_says_otherwise(anchor):
    catalog = parse_catalog(f"[customers.c]\nanchor = {anchor}")
    assert catalog.customers["c"].account.anchor == datetime(2023, 7, 21, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("f-flag2 = true", "plans.p.entitlements.f-flag2: there is no 'f-flag2'; did you mean 'f-flag'?"),
        ("zzz = true", "there is no 'zzz'; expected one of f-enum, f-flag, f-meter, f-number"),
        ("f-number = 100", "f-number: must be a table such as { value = 100 }, not 100"),
        ("f-number = {}", "f-number: needs value, or unlimited"),
        ("f-number = { value = 1.5 }", "f-number.value: must be a whole number of 32 bits, not 1.5"),
        ("f-number = { value = 1, unlimited = true }", "f-number.value: contradicts unlimited; keep one of them"),
        ("f-number = { valeu = 1, unlimited = true }", "f-number.valeu: unknown key; did you mean 'value'?"),
        ("f-enum = { values = [] }", "f-enum.values: must be a list of at least 1 text, not []"),
        ("f-enum = {}", "f-enum: needs values, a list of texts"),
        ("f-enum = 3", "f-enum: must be a table such as"),
        ('f-enum = { values = "eu" }', "f-enum.values: must be a list of at least 1 text, not 'eu'"),
        ("f-meter = { soft = true }", "f-meter: needs limit, or unlimited"),
        ("f-meter = { unlimited = false }", "f-meter: needs limit, or unlimited"),
        ("f-meter = { limit = 3, unlimited = true }", "f-meter.limit: contradicts unlimited; keep one of them"),
        ("f-meter = { limit = -1 }", "f-meter.limit: must be a number, 0 or more, not -1"),
        ("f-meter = { limit = nan }", "f-meter.limit: must be a number, 0 or more, not nan"),
        ("f-meter = { limit = inf }", "f-meter.limit: must be a number, 0 or more, not inf"),
        ("f-meter = { limit = true }", "f-meter.limit: must be a number, 0 or more, not True"),
        ('f-meter = { limit = 1, reset = "mounth" }', "f-meter.reset: there is no 'mounth'; did you mean 'month'?"),
        ('f-meter = { limit = 1, soft = "yes" }', "f-meter.soft: must be true or false, not 'yes'"),
        ('"" = true', "an empty id; give it a name"),
    ],
)
def test_wrong_entitlement_is_refused_with_line_and_remedy(line, fault):
    (found,) = faults_of(SHOP + line)
    assert found.startswith("line 20, plans.p.entitlements")
    assert fault in found


def test_withheld_boolean_feature_is_left_out_of_the_plan():
    (found,) = faults_of(SHOP.replace("f-flag = true", "f-flag = false"))
    assert found == (
        "line 19, plans.p.entitlements.f-flag: must be true (a plan that lacks it leaves the line out), not False"
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('[features.x]\ntype = "bolean"', "line 22, features.x.type: there is no 'bolean'; did you mean 'boolean'?"),
        ("[features.x]", "line 21, features.x: needs type; expected one of boolean, enum, metered, numeric"),
        ('[features.x]\ntype = "metered"', "features.x: needs meter; expected one of fluctuating, incremental"),
        (
            '[features.x]\ntype = "enum"\nmeter = "incremental"',
            "line 23, features.x.meter: only a metered feature has a meter; this one is enum",
        ),
        ("[currencies.f-flag]", "currencies.f-flag: a feature has the same id; rename one of them"),
        ('[currencies.d]\ndisplay_name = ""', "currencies.d.display_name: must be a text, not ''"),
        ("[plans.q.credits]\ncredits = {}", "plans.q.credits.credits: needs amount = <number>"),
        ("[plans.q.credits]\ncredit = { amount = 1 }", "there is no 'credit'; did you mean 'credits'?"),
        ('[customers.c]\nplan = "pp"', "line 22, customers.c.plan: there is no 'pp'; did you mean 'p'?"),
        ('[customers.c]\nrevoked = ["f-flagg"]', "customers.c.revoked: there is no 'f-flagg'; did you mean 'f-flag'?"),
        ("[customers.c]\nrevoked = [1]", "customers.c.revoked: must be a list of texts, not [1]"),
        ("[customers.c]\nanchor = 12:00:00", "customers.c.anchor: must be a date between the years 1970 and 2200"),
        ("[customers.c]\nanchor = 0001-01-01", "customers.c.anchor: must be a date between the years 1970 and 2200"),
        ("[customers.c.usage]\nf-flag = 3", "line 22, customers.c.usage.f-flag: there is no 'f-flag'; expected one of"),
        ("[customers.c.resources.r]\narchived = true", "customers.c.resources.r.archived: unknown key"),
        ('[customers."a b"]\nplan = 3', "line 22, customers.a b.plan: must be a text, not 3"),
        ("[meters.e]\n", "meters.e: needs feature"),
        (
            '[meters.e]\nfeature = "f-meter"\naggregation = "count"\ndimension = "d"',
            "line 24, meters.e.dimension: count looks at no dimension",
        ),
        (
            '[meters.e]\nfeature = "f-meter"\naggregation = "sum"',
            "line 21, meters.e: needs dimension: the one whose sum is taken",
        ),
        ("[plan.q]", "line 21, plan: unknown key; did you mean 'plans'?"),
        ("[[customers]]", "line 21, customers: must be a table, not [{}]"),
    ],
)
def test_wrong_table_is_refused_with_line_and_remedy(text, fault):
    assert fault in "\n".join(faults_of(f"{SHOP}\n{text}"))


def test_every_fault_is_named_at_once_in_order_of_lines():
    found = faults_of(
        """
[features.f1]
type = "boolen"
[plans.p.entitlements]
f1 = { limit = 3 }
f2 = true
[customers.c]
plan = "q"
[customers.c.usage]
f1 = nan
"""
    )
    assert [line.split(":")[0] for line in found] == [
        "line 3, features.f1.type",
        "line 6, plans.p.entitlements.f2",
        "line 8, customers.c.plan",
        "line 10, customers.c.usage.f1",
    ]


def test_long_lists_of_names_are_cut():
    features = "".join(f'[features.f{number}]\ntype = "boolean"\n' for number in range(10))
    (found,) = faults_of(f"{features}[plans.p.entitlements]\nzzz = true")
    assert found.endswith("expected one of f0, f1, f2, f3, f4, f5, f6, f7, …")


def test_reference_into_an_empty_catalog_says_that_nothing_is_defined():
    (found,) = faults_of("[plans.p.entitlements]\nf = true")
    assert found == "line 2, plans.p.entitlements.f: there is no 'f'; none is defined"


def test_text_that_is_not_toml_is_refused_with_the_parsers_line():
    with pytest.raises(ConfigError, match=r"shop\.toml: not TOML: .*line 2"):
        parse_catalog("a = 1\nb = \n", source="shop.toml")


def test_files_are_read_by_their_suffix(tmp_path):
    toml = tmp_path / "shop.toml"
    toml.write_text(SHOP, encoding="utf-8")
    assert load_catalog(str(toml)) == parse_catalog(SHOP)
    assert load_catalog(DATA / "offline.json").customers.keys() == {"customer-demo-01", "customer-demo-02"}


def test_unreadable_file_is_refused_by_its_path(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read: No such file"):
        load_catalog(tmp_path / "nowhere.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary\.toml: is not UTF-8 text"):
        load_catalog(binary)


def test_offline_json_gives_each_customer_its_entitlements():
    catalog = load_catalog(DATA / "offline.json")
    assert catalog.plans["customer-demo-01"].entitlements == {
        "f1": Grant(),
        "f2": Grant(value=50),
        "f3": Grant(limit=100000),
        "f4": Grant(values=("eu", "us")),
    }
    assert catalog.plans["customer-demo-02"].entitlements == {"f3": Grant(unlimited=True)}
    assert catalog.features["f3"] == Feature("f3", "metered")


def test_faults_of_offline_json_are_named_at_once_with_lines():
    text = """{
  "customers": {
    "c1": {"entitlements": {
      "f1": {"type": "BOLEAN", "value": 3},
      "f2": {"type": "NUMERIC"},
      "f3": {"type": "METERED", "usageLimit": NaN}
    }},
    "c2": {"entitlements": {"f3": {"type": "BOOLEAN"}}, "plan": 3}
  }
}"""
    with pytest.raises(ConfigError) as caught:
        parse_offline(text, source="offline.json")
    assert str(caught.value).splitlines() == [
        "offline.json: 5 faults",
        "  line 4, customers.c1.entitlements.f1.type: there is no 'BOLEAN'; did you mean 'BOOLEAN'?",
        "  line 5, customers.c1.entitlements.f2: needs value, or isUnlimited",
        "  line 6, customers.c1.entitlements.f3.usageLimit: must be a number, 0 or more, not nan",
        "  line 8, customers.c2.entitlements.f3.type: is METERED for another customer; a feature has one type",
        "  line 8, customers.c2.plan: unknown key; expected one of entitlements, resources",
    ]


def test_key_that_the_json_text_spells_otherwise_is_placed_as_near_as_can_be():
    with pytest.raises(ConfigError, match=r"line 2, customers\.é: must be a table"):
        parse_offline('{\n"customers": {\n"\\u00e9": 3}}')


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON: .*line 1"), ("[]", "the document: must be a table")])
def test_json_of_the_wrong_shape_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_offline(text)


def test_demo_catalog_has_the_documented_customer():
    catalog = demo_catalog()
    documented = catalog.customers["customer-demo-01"].account
    assert documented.usage["feature-templates"] == 3
    assert catalog.plans[str(documented.plan)].entitlements["feature-templates"] == Grant(limit=6)
    assert catalog.features["feature-templates"].units_plural == "templates"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("", "needs percent_off or amount_off"),
        ("percent_off = 1\namount_off = 1", "not both"),
        ("percent_off = 101", "at most 100"),
        ("percent_off = 10\nmonths = 3", "unknown key"),
    ],
)
def test_a_wrong_coupon_is_refused(given: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_catalog(f"[coupons.c]\n{given}\n")

"""The JSON Schema of catalogs: it has the keys that are read, and refuses nothing that is a catalog."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator
from jsonschema.exceptions import best_match

from stigg_guard.__main__ import main
from stigg_guard.errors import ConfigError
from stigg_guard.foreign import toml_value
from stigg_guard.sidecar import catalog, document
from stigg_guard.sidecar.catalog import catalog_schema, parse_catalog
from stigg_guard.sidecar.periods import RESETS

SCHEMA = json.loads(catalog_schema())
DEFINITIONS = SCHEMA["definitions"]
DEMO = files("stigg_guard.sidecar").joinpath("demo.toml").read_text(encoding="utf-8")
WHOLE = """
[features.f]
type = "metered"
meter = "incremental"
units = "call"
credit_rate = { currency = "c", amount = 0.5 }
[features.n]
type = "numeric"
[features.e]
type = "enum"
[currencies.c]
description = "Credits"
[plans.p.entitlements]
f = { limit = 6, reset = "month", soft = true }
n = { value = 3 }
e = { values = ["eu"] }
[plans.p.credits]
c = { amount = 10, reset = "year", soft = true }
[plans.p.prices]
monthly = 29
annually = 290
currency = "EUR"
[customers.one]
plan = "p"
anchor = 2023-07-21
archived = true
revoked = ["f"]
credits_used = { c = 1 }
usage = { f = 1 }
[customers.one.resources.site]
plan = "p"
anchor = 2023-07-21T00:00:00Z
[coupons.half]
display_name = "Half"
percent_off = 50
currency = "EUR"
[meters.call]
feature = "f"
aggregation = "sum"
dimension = "calls"
"""
METERED = "[features.f]\ntype = 'metered'\nmeter = 'incremental'\n"
WRONG = [
    "[feature.f]\ntype = 'boolean'",
    "[features.f]",
    "[features.f]\ntype = 'bool'",
    "[features.f]\ntype = 'metered'",
    "[features.f]\ntype = 'metered'\nmeter = 'growing'",
    "[features.f]\ntype = 'boolean'\nmeter = 'fluctuating'",
    "[features.f]\ntype = 'boolean'\nunits = ''",
    METERED + "credit_rate = { currency = 'c', amount = 0 }\n[currencies.c]",
    "[features.f]\ntype = 'numeric'\n[plans.p.entitlements]\nf = { value = 3000000000 }",
    "[features.f]\ntype = 'enum'\n[plans.p.entitlements]\nf = { values = [] }",
    "[features.f]\ntype = 'boolean'\n[plans.p.entitlements]\nf = false",
    METERED + "[plans.p.entitlements]\nf = { limit = -1 }",
    METERED + "[plans.p.entitlements]\nf = { limit = 1, reset = 'weekly' }",
    "[currencies.c]\n[plans.p.credits]\nc = { soft = true }",
    "[plans.p.prices]\nweekly = 3",
    "[customers.c]\nanchor = 2023",
    "[customers.c]\narchived = 'yes'",
    "[customers.c.resources.r]\narchived = true",
    "[coupons.c]",
    "[coupons.c]\npercent_off = 5\namount_off = 5",
    "[coupons.c]\npercent_off = 101",
    METERED + "[meters.m]\nfeature = 'f'\naggregation = 'mean'\ndimension = 'd'",
    METERED + "[meters.m]\nfeature = 'f'\naggregation = 'count'\ndimension = 'd'",
    METERED + "[meters.m]\nfeature = 'f'\naggregation = 'sum'",
]


def refused(text: str) -> str:
    """What the schema finds wrong with a catalog, whose dates are texts to JSON; nothing if it is right."""
    data = json.loads(json.dumps(toml_value(text), default=lambda value: value.isoformat()))
    error = best_match(Draft7Validator(SCHEMA).iter_errors(data))
    return "" if error is None else error.message


def test_it_is_a_schema() -> None:
    Draft7Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("text", [DEMO, WHOLE, ""], ids=["demo", "whole", "empty"])
def test_it_takes_catalogs(text: str) -> None:
    parse_catalog(text)
    assert refused(text) == ""


@pytest.mark.parametrize("text", WRONG)
def test_it_refuses_what_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_catalog(text)
    assert refused(text) != ""


def test_it_has_the_keys_that_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each table that is read to its end is one of the schema, by the keys that reading it has made known."""
    read: dict[str, set[str]] = {}

    def end(table: Any) -> None:
        read.setdefault(kind_of(table._path), set()).update(table._known)

    monkeypatch.setattr(document.Table, "end", end)
    parse_catalog(WHOLE)
    grant = DEFINITIONS["grant"]["oneOf"][1]
    tables = {
        "catalog": SCHEMA,
        "grant": grant,
        "prices": DEFINITIONS["plan"]["properties"]["prices"],
        "credit_rate": DEFINITIONS["feature"]["properties"]["credit_rate"],
        "resource": DEFINITIONS["customer"]["properties"]["resources"]["additionalProperties"],
        **{
            name: DEFINITIONS[name]
            for name in ("feature", "currency", "plan", "credits", "customer", "meter", "coupon")
        },
    }
    assert read == {name: set(table["properties"]) for name, table in tables.items()}


def kind_of(path: tuple[str, ...]) -> str:
    """Which of the catalog's tables it is that lies at the path."""
    within = {"features": "feature", "currencies": "currency", "plans": "plan", "customers": "customer"}
    within |= {"meters": "meter", "coupons": "coupon", "entitlements": "grant", "resources": "resource"}
    if not path:
        return "catalog"
    return path[-1] if path[-1] in ("prices", "credit_rate") else within.get(path[-2], path[-2])


def test_choices_are_those_of_the_code() -> None:
    feature, meter = DEFINITIONS["feature"]["properties"], DEFINITIONS["meter"]["properties"]
    assert tuple(feature["type"]["enum"]) == catalog.KINDS
    assert tuple(feature["meter"]["enum"]) == catalog.METER_KINDS
    assert tuple(meter["aggregation"]["enum"]) == catalog.AGGREGATIONS
    assert set(DEFINITIONS["reset"]["enum"]) == set(RESETS)


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA


def test_an_editor_s_tool_checks_a_catalog_by_it(tmp_path: Path) -> None:
    taplo = shutil.which("taplo", path=str(Path(sys.executable).parent))
    if taplo is None:
        pytest.skip("taplo is not installed here")
    (tmp_path / "catalog.schema.json").write_text(catalog_schema())
    right, wrong = tmp_path / "right.toml", tmp_path / "wrong.toml"
    right.write_text(f"#:schema ./catalog.schema.json\n{DEMO}")
    wrong.write_text("#:schema ./catalog.schema.json\n[features.f]\ntype = 'bool'\n")

    def lint(file: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([taplo, "lint", str(file)], capture_output=True, text=True, check=False, cwd=tmp_path)

    assert lint(right).returncode == 0, lint(right).stderr
    assert lint(wrong).returncode == 1
    assert "boolean" in lint(wrong).stderr

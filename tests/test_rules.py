"""Rules that guard by path."""

from __future__ import annotations

from typing import Any

import pytest

from stigg_guard import Config, ConfigError
from stigg_guard.rules import Rule, guards_method, parse_rules, rule_of

API = {"path": "/api/", "feature": "feature-api-calls", "consume": 1, "methods": ["post", "PUT"]}
HEALTH = {"path": "/api/health"}
PAGES = {"path": "/", "feature": "feature-pages"}


def test_rule_is_read_with_its_methods_in_upper_case() -> None:
    assert parse_rules([API]) == (Rule("/api/", "feature-api-calls", 1.0, frozenset({"POST", "PUT"})),)


def test_rule_for_get_is_one_for_head() -> None:
    (rule,) = parse_rules([{**API, "methods": ["get"]}])
    assert rule.methods == {"GET", "HEAD"}


def test_rules_are_read_from_json_and_kept_as_they_are() -> None:
    (rule,) = parse_rules('[{"path": "/", "feature": "f"}]')
    assert parse_rules([rule]) == (rule,)


@pytest.mark.parametrize(
    ("path", "method", "feature"),
    [
        ("/api/items", "POST", "feature-api-calls"),
        ("/api/items", "GET", "feature-pages"),
        ("/api/health", "GET", None),
        ("/api", "POST", "feature-api-calls"),
        ("/about", "GET", "feature-pages"),
        ("/about", "OPTIONS", "feature-pages"),
        ("/api/health", "OPTIONS", None),
        ("", "GET", "feature-pages"),
    ],
)
def test_first_rule_that_a_request_meets_applies(path: str, method: str, feature: str | None) -> None:
    rule = rule_of(parse_rules([HEALTH, API, PAGES]), [path], method, "")
    assert (rule and rule.feature) == feature


def test_a_rule_of_a_view_is_met_by_its_name_whatever_the_path() -> None:
    rules = parse_rules([{"view": "shop:new", "feature": "f"}, PAGES])
    told = [rule_of(rules, ["/x"], "GET", name) for name in ("shop:new", "shop:newer")]
    assert [rule and rule.feature for rule in told] == ["f", "feature-pages"]


def test_a_rule_is_met_by_any_of_a_requests_paths() -> None:
    assert rule_of(parse_rules([API]), ["/de/api/x", "/api/x"], "POST", "") is not None


@pytest.mark.parametrize(
    ("methods", "method", "is_answered", "guarded"),
    [
        ([], "HEAD", True, True),
        ([], "OPTIONS", False, True),
        ([], "OPTIONS", True, False),
        (["OPTIONS"], "OPTIONS", True, True),
        (["POST"], "OPTIONS", False, False),
    ],
)
def test_every_method_is_guarded_but_options_that_the_framework_answers_unless_methods_are_named(
    methods: list[str], method: str, is_answered: bool, guarded: bool
) -> None:
    assert guards_method(frozenset(methods), method, is_answered=is_answered) is guarded


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        ("/api/", "rule 0: expected a mapping with path, view, feature, consume, methods"),
        ({"feature": "f"}, "rule 0: path, view: a rule has one of the two"),
        ({"path": "/", "view": "v"}, "rule 0: path, view: a rule has one of the two"),
        ({"view": "", "feature": "f"}, "rule 0: view: expected the name of a view"),
        ({"path": 1, "feature": "f"}, "rule 0: path: expected the beginning of a path"),
        (
            {"path": "/", "feature": "f", "methods": ["PSOT"]},
            "rule 0: methods: 'PSOT' is no HTTP method; did you mean POST?",
        ),
        ({"path": "/", "feature": "f", "methods": ["get", "delte"]}, "'DELTE' is no HTTP method; did you mean DELETE?"),
        ({"path": "api", "feature": "f"}, "rule 0: path: expected the beginning of a path"),
        ({"path": "/", "feature": ""}, "rule 0: feature"),
        ({"path": "/", "feature": "f", "consume": -1}, "rule 0: consume"),
        ({"path": "/", "consume": 1}, "rule 0: consume: name the feature"),
        ({"path": "/", "feature": "f", "methods": "POST"}, "rule 0: methods: expected a list"),
        ({"path": "/", "feature": "f", "methods": [1]}, "rule 0: methods: expected a list"),
        ({"path": "/", "feature": "f", "methods": 1}, "rule 0: "),
        ({"path": "/", "feature": "f", "features": 1}, "rule 0: features: unknown"),
    ],
)
def test_wrong_rule_is_told_with_its_number(rule: Any, fault: str) -> None:
    with pytest.raises(ConfigError, match="RULES: ") as told:
        Config.from_mapping({"RULES": [rule]})
    assert fault in str(told.value)


@pytest.mark.parametrize("rules", [{"path": "/"}, 7, '{"path": "/"}', "nonsense"])
def test_rules_are_a_list(rules: Any) -> None:
    with pytest.raises(ConfigError, match="RULES"):
        Config.from_mapping({"RULES": rules})

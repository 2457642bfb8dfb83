"""What features are called on pages: by the sidecar or the catalog, by the settings, or by their ids."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from django.utils import translation
from django.utils.translation import gettext_lazy

from stigg_guard import Config, Entitlement, Guard
from stigg_guard.web.display import DisplayedPlan
from stigg_guard.web.names import feature_name

NAMED = '[features.shown]\ntype = "boolean"\ndisplay_name = "Shown"\n[features.bare]\ntype = "boolean"\n'


def name(feature: str, **settings: object) -> str:
    return feature_name(Entitlement(feature_id=feature, has_access=True), Config.from_mapping(settings))


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    path = tmp_path / "catalog.toml"
    path.write_text(NAMED)
    return path


def test_the_catalog_goes_before_the_settings_and_these_before_the_id(catalog: Path) -> None:
    names = {"CATALOG": catalog, "FEATURE_NAMES": '{"shown": "Mine", "bare": "Bare"}'}
    assert [name(feature, **names) for feature in ("shown", "bare", "other")] == ["Shown", "Bare", "other"]


def test_a_changed_catalog_is_read_again(catalog: Path) -> None:
    assert name("shown", CATALOG=catalog) == "Shown"
    catalog.write_text(NAMED.replace("Shown", "Displayed"))
    os.utime(catalog, ns=(0, 0))
    assert name("shown", CATALOG=catalog) == "Displayed"


def test_a_broken_or_missing_catalog_names_nothing(catalog: Path) -> None:
    config = Config(catalog=str(catalog))
    catalog.write_text("[features")
    assert feature_name(Entitlement(feature_id="shown", has_access=True), config) == "shown"
    catalog.unlink()
    assert feature_name(Entitlement(feature_id="shown", has_access=True), config) == "shown"


def test_the_demonstration_and_an_offline_file_have_names(catalog: Path) -> None:
    assert name("feature-templates", SIDECAR="local") == "Templates"
    assert name("feature-templates", SIDECAR="localhost") == "feature-templates"
    assert name("shown", SIDECAR="offline", OFFLINE_FILE=catalog) == "Shown"


def test_a_lazy_translation_is_translated_when_it_is_shown() -> None:
    config = Config.from_mapping({"FEATURE_NAMES": {"f": gettext_lazy("Monday")}})
    answer = Entitlement(feature_id="f", has_access=True)
    with translation.override("de"):
        assert feature_name(answer, config) == "Montag"
    with translation.override("en"):
        assert feature_name(answer, config) == "Monday"


def test_a_page_calls_features_and_currencies_by_their_names(make_guard: Callable[..., Guard]) -> None:
    guard = make_guard(FEATURE_NAMES={"feature-templates": "<Vorlagen>"})
    plan = DisplayedPlan(guard, lambda: "customer-demo-02")
    assert '<th scope="row">&lt;Vorlagen&gt;</th>' in plan.plan_limits()
    assert "feature-templates" not in plan.plan_limits()
    assert "API credits" in [line.name for line in plan.lines()]
    assert {line.feature_id for line in plan.lines()} == set(plan.all)

"""The system checks: what each finds, and that it finds nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from pytest_django.plugin import DjangoDbBlocker

from conftest import in_child
from django_databases import django_database
from stigg_guard.django import get_guard
from stigg_guard.django.middleware import StiggGuardMiddleware

OURS = "stigg_guard.django.middleware.StiggGuardMiddleware"
SIGNS_IN = "django.contrib.auth.middleware.AuthenticationMiddleware"
DEPLOYABLE = {"CUSTOMER": lambda _: "customer-demo-01", "ON_OUTAGE": "allow"}

OFFLINE = Path(__file__).parents[1] / "data" / "offline.json"


class OwnMiddleware(StiggGuardMiddleware):
    """What a project may derive."""


def found(*, deploy: bool = False) -> list[str]:
    """What the checks find, as ``manage.py check`` would tell it."""
    checked = run_checks(tags=["stigg_guard"], include_deployment_checks=deploy)
    assert all(one.hint for one in checked)
    return sorted(f"{one.id} {one.obj}: {one.msg}" for one in checked if not one.is_silenced())


def ids(*, deploy: bool = False) -> list[str]:
    return [one.split()[0] for one in found(deploy=deploy)]


def test_a_complete_project_passes() -> None:
    assert found() == []


def test_a_complete_project_can_be_deployed(settings: Any) -> None:
    settings.STIGG_GUARD = DEPLOYABLE
    assert found(deploy=True) == []


@pytest.mark.parametrize("middleware", [[], ["django.middleware.common.CommonMiddleware", "nowhere.Middleware"]])
def test_a_missing_middleware_is_found(settings: Any, middleware: list[str]) -> None:
    settings.MIDDLEWARE = middleware
    assert ids() == ["stigg_guard.E001"]


def test_a_derived_middleware_will_do(settings: Any) -> None:
    settings.MIDDLEWARE = [f"{__name__}.OwnMiddleware"]
    assert ids() == []


def test_a_middleware_above_the_one_that_signs_in_is_found(settings: Any) -> None:
    settings.MIDDLEWARE = [OURS, SIGNS_IN]
    assert ids() == ["stigg_guard.W001"]
    settings.MIDDLEWARE = [SIGNS_IN, OURS]
    assert ids() == []


def test_a_site_wide_cache_above_the_middleware_is_found(settings: Any) -> None:
    caches = ["django.middleware.cache.UpdateCacheMiddleware", "django.middleware.cache.FetchFromCacheMiddleware"]
    settings.MIDDLEWARE = [*caches, OURS]
    (fault,) = found()
    assert fault.startswith(f"stigg_guard.W008 {caches[0]}: ")
    settings.MIDDLEWARE = [OURS, *caches]
    assert found() == []


@pytest.mark.parametrize(("given", "expected"), [({}, ["stigg_guard.E002"]), ({"ENABLED": False}, [])])
def test_a_missing_resolver_of_an_enabled_guard_is_found(
    settings: Any, given: Mapping[str, object], expected: list[str]
) -> None:
    settings.STIGG_GUARD = given
    assert ids() == expected


@pytest.mark.parametrize("given", [{}, {"LOGIN_URL": "nowhere"}])
def test_a_login_page_whose_name_no_url_has_is_found(settings: Any, given: Mapping[str, object]) -> None:
    settings.LOGIN_URL = "nowhere"
    settings.STIGG_GUARD = {**DEPLOYABLE, **given}
    assert ids() == []
    settings.STIGG_GUARD = {**DEPLOYABLE, **given, "ANONYMOUS": "login"}
    (fault,) = found()
    assert fault.startswith("stigg_guard.E003 settings.STIGG_GUARD of 'default': LOGIN_URL: Reverse for 'nowhere'")


def test_a_login_page_with_an_address_is_right(settings: Any) -> None:
    settings.STIGG_GUARD = {**DEPLOYABLE, "ANONYMOUS": "login", "LOGIN_URL": "/sign-in/"}
    assert ids() == []


def test_each_configuration_is_checked_and_named(settings: Any) -> None:
    settings.STIGG_GUARD = {"default": DEPLOYABLE, "eu": {}, "us": {"CUSTOMER": "nowhere.customer_of"}}
    missing, wrong = found()
    assert wrong.startswith("stigg_guard.E003 None: settings.STIGG_GUARD of 'us': CUSTOMER: cannot import")
    assert missing.startswith("stigg_guard.E002 settings.STIGG_GUARD of 'eu': ")


@pytest.mark.parametrize(
    "wrong", [{"CUSTOMR": "f"}, {"ON_OUTAGE": "panic"}, {"LEDGER": "sqlite:////nowhere/ledger.sqlite3"}, "SIDECAR"]
)
def test_a_wrong_setting_is_found(settings: Any, wrong: Any) -> None:
    settings.STIGG_GUARD = wrong
    assert ids(deploy=True) == ["stigg_guard.E003"]


def of_two(ledger: str, other_ledger: str, **other: object) -> dict[str, Any]:
    """Two configurations with a ledger each, of two sidecars unless the other one says more."""
    us = {**DEPLOYABLE, "SIDECAR": "sidecar-us:80", "LEDGER": ledger}
    return {"default": us, "eu": {**us, "SIDECAR": "sidecar-eu:80", "LEDGER": other_ledger, **other}}


@pytest.mark.parametrize(
    ("ledger", "same"),
    [
        ("sqlite:///shared.sqlite3", f"sqlite:///{os.getcwd()}/./sh%61red.sqlite3"),
        ("redis://redis.example", "redis://someone:secret@redis.example:6379/0"),
        ("redis://redis.example/2", "rediss://redis.example?db=2"),
        ("redis+cluster://a.example,b.example:6379", "rediss+cluster://b.example,a.example:6379"),
        ("redis+sentinel://a.example/shop", "redis+sentinel://:secret@a.example/shop?db=0"),
        ("django://default", "django://default"),
    ],
)
def test_a_ledger_of_two_sidecars_is_found_and_refused(settings: Any, ledger: str, same: str) -> None:
    settings.STIGG_GUARD = of_two(ledger, same)
    (fault,) = found()
    assert fault.startswith("stigg_guard.E003 None: settings.STIGG_GUARD of 'eu': LEDGER: it is that of 'default'")
    assert "secret" not in fault
    with pytest.raises(ImproperlyConfigured, match="give each sidecar a ledger of its own"):
        get_guard("eu")
    assert get_guard().config.sidecar == "sidecar-us:80"


def test_a_ledger_of_two_sidecars_in_one_database_of_two_aliases_is_found(
    settings: Any, django_db_blocker: DjangoDbBlocker, tmp_path: Path
) -> None:
    shop = {"ENGINE": "django.db.backends.sqlite3", "NAME": tmp_path / "shop.sqlite3"}
    with django_db_blocker.unblock(), django_database("shop", shop), django_database("again", shop):
        settings.STIGG_GUARD = of_two("django://shop", "django://again")
        assert ids() == ["stigg_guard.E003"]
        settings.STIGG_GUARD = DEPLOYABLE


def test_catalogs_of_local_sidecars_do_not_share_a_ledger(settings: Any, tmp_path: Path) -> None:
    ledger = f"sqlite:///{tmp_path}/ledger.sqlite3"
    catalog = tmp_path / "eu.toml"
    catalog.touch()
    local = {**DEPLOYABLE, "SIDECAR": "local", "LEDGER": ledger}
    settings.STIGG_GUARD = {"default": local, "eu": {**local, "CATALOG": str(catalog)}}
    assert ids() == ["stigg_guard.E003"]


@pytest.mark.parametrize(
    ("ledger", "other_ledger", "other"),
    [
        ("sqlite:///us.sqlite3", "sqlite:///eu.sqlite3", {}),
        ("redis://redis.example/1", "redis://redis.example/2", {}),
        ("redis+sentinel://a.example/shop", "redis+sentinel://a.example/other", {}),
        ("memory://", "memory://", {}),
        ("redis://redis.example", "redis://redis.example", {"SIDECAR": "sidecar-us"}),
        ("redis://redis.example", "redis://redis.example", {"ENABLED": False}),
        ("redis://redis.example", "redis://redis.example", {"SIDECAR": "offline", "OFFLINE_FILE": str(OFFLINE)}),
    ],
)
def test_ledgers_whose_usage_goes_where_it_belongs_pass(
    settings: Any, ledger: str, other_ledger: str, other: Mapping[str, object]
) -> None:
    settings.STIGG_GUARD = of_two(ledger, other_ledger, **other)
    assert ids() == []


@pytest.mark.parametrize("exists", [True, False])
def test_a_ledger_that_cannot_be_written_is_found(settings: Any, tmp_path: Path, exists: bool) -> None:
    ledger = tmp_path / "ledger.sqlite3"
    settings.STIGG_GUARD = {**DEPLOYABLE, "LEDGER": f"sqlite:///{ledger}"}
    if exists:
        ledger.touch(0o400)
    else:
        tmp_path.chmod(0o500)

    def as_somebody_else() -> bool:
        if os.geteuid() == 0:
            os.setuid(65534)
        return ids() == ["stigg_guard.E004"]

    assert ids() == [] or os.geteuid() != 0
    assert in_child(as_somebody_else)


def test_an_outage_policy_that_nobody_decided_is_found_before_deployment(settings: Any) -> None:
    settings.STIGG_GUARD = {"default": DEPLOYABLE, "eu": {"CUSTOMER": lambda _: None}}
    assert found() == []
    assert found(deploy=True) == ["stigg_guard.W002 settings.STIGG_GUARD of 'eu': What an outage means is not decided."]


@pytest.mark.parametrize("given", [{"LEDGER": "memory://"}, {"SIDECAR": "local"}])
def test_a_ledger_in_memory_is_found_before_deployment(settings: Any, tmp_path: Path, given: Mapping[str, str]) -> None:
    settings.BASE_DIR = tmp_path
    settings.STIGG_GUARD = {**DEPLOYABLE, **given}
    assert ids() == []
    assert ids(deploy=True) == ["stigg_guard.W003"]


def test_a_local_sidecar_is_found_before_deployment_whatever_the_ledger(settings: Any, tmp_path: Path) -> None:
    settings.STIGG_GUARD = {**DEPLOYABLE, "SIDECAR": "local", "LEDGER": f"sqlite:///{tmp_path}/ledger.sqlite3"}
    (warning,) = run_checks(tags=["stigg_guard"], include_deployment_checks=True)
    assert (warning.id, str(warning.hint).split(" is ")[0]) == ("stigg_guard.W003", "SIDECAR = 'local'")


def test_a_database_that_refuses_to_turn_to_writing_is_found(
    settings: Any, django_db_blocker: DjangoDbBlocker, tmp_path: Path
) -> None:
    shop = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "shop.sqlite3"), "ATOMIC_REQUESTS": True}
    with django_db_blocker.unblock(), django_database("shop", shop):
        settings.STIGG_GUARD = {**DEPLOYABLE, "LEDGER": "django://shop"}
        assert ids() == ["stigg_guard.W004"]
        connections["shop"].settings_dict["OPTIONS"]["transaction_mode"] = "IMMEDIATE"
        assert ids() == []
        settings.STIGG_GUARD = DEPLOYABLE


class KeepsAway:
    """A router that lets no tables into the database of the shop, or no models of the ledger's."""

    def allow_migrate(self, db: str, app_label: str, model_name: str | None = None, **_: object) -> bool | None:
        return False if (db, app_label) == ("shop", "stigg_guard_ledger") else None


class KeepsModelsAway:
    def allow_migrate(self, db: str, app_label: str, model_name: str | None = None, **_: object) -> bool | None:
        return False if db == "shop" and model_name is not None else None


def test_a_router_that_forbids_the_tables_of_the_ledger_is_found(
    settings: Any, django_db_blocker: DjangoDbBlocker, tmp_path: Path
) -> None:
    shop = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "shop.sqlite3")}
    with django_db_blocker.unblock(), django_database("shop", shop):
        settings.STIGG_GUARD = {**DEPLOYABLE, "LEDGER": "django://shop"}
        assert ids() == []
        for router in ("KeepsAway", "KeepsModelsAway"):
            settings.DATABASE_ROUTERS = [f"{__name__}.{router}"]
            assert ids() == ["stigg_guard.E006"]
        settings.STIGG_GUARD = DEPLOYABLE


def test_a_feature_that_the_catalog_does_not_have_is_found_before_deployment(settings: Any, tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.toml"
    catalog.write_text('[features.feature-templates]\ntype = "boolean"\n')
    templates = tmp_path / "templates"
    templates.mkdir()
    (templates / "page.html").write_text('{% feature "feature-templates" %}{% feature "feature-temples" %}')
    settings.TEMPLATES = [
        {"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": [templates, tmp_path / "nowhere"]}
    ]
    settings.STIGG_GUARD = {**DEPLOYABLE, "SIDECAR": "local", "CATALOG": catalog, "LEDGER": f"sqlite:///{tmp_path}/l"}
    assert ids() == []
    named = [one for one in found(deploy=True) if str(templates) in one]
    assert named == [f"stigg_guard.W005 {templates / 'page.html'}:1: The catalog has no feature 'feature-temples'."]


def test_a_broken_catalog_is_found_before_deployment(settings: Any, tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.toml"
    catalog.write_text("[features")
    settings.STIGG_GUARD = {**DEPLOYABLE, "CATALOG": catalog}
    assert ids(deploy=True) == ["stigg_guard.E003"]


def test_a_silenced_check_is_silent(settings: Any) -> None:
    settings.MIDDLEWARE = []
    settings.SILENCED_SYSTEM_CHECKS = ["stigg_guard.E001"]
    assert ids() == []

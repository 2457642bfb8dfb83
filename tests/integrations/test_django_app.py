"""The Django app: its settings, its system checks, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings as django_settings
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.test import RequestFactory

from stigg_guard import ClientClosed
from stigg_guard.django import customer_of, get_guard
from stigg_guard.django import customer_of
from stigg_guard.django.middleware import StiggGuardMiddleware

MIDDLEWARE = "stigg_guard.django.middleware.StiggGuardMiddleware"


class OwnMiddleware(StiggGuardMiddleware):
    """What a project may derive."""


def customer_of_request(request: HttpRequest) -> str:
    return str(request.META["REMOTE_USER"])


def python(source: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The source, run by a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=cwd, check=False)


def guard_checks() -> list[str]:
    return sorted(str(found.id) for found in run_checks() if str(found.id).startswith("stigg_guard."))


def test_the_app_has_a_label_of_its_own() -> None:
    assert apps.get_app_config("stigg_guard").name == "stigg_guard.django"


def test_all_callers_share_one_guard() -> None:
    assert get_guard() is get_guard()


def test_changed_settings_make_a_new_guard_and_close_the_old_one(settings: Any) -> None:
    before = get_guard()
    settings.STIGG_GUARD = {"SIDECAR": "localhost:9", "ENABLED": True}
    assert get_guard() is not before
    assert get_guard().config.sidecar == "localhost:9"
    with pytest.raises(ClientClosed):
        _ = before.stigg


def test_another_setting_leaves_the_guard_alone(settings: Any) -> None:
    before = get_guard()
    settings.LANGUAGE_CODE = "de"
    assert get_guard() is before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"CUSTOMR": "shop.customer_of"}, "did you mean CUSTOMER"),
        ({"TIMEOUT": "soon", "ON_OUTAGE": "panic"}, r"ON_OUTAGE: .*TIMEOUT: "),
        ({"CUSTOMER": "shop.nowhere"}, "CUSTOMER: cannot import 'shop.nowhere'"),
        ({"CUSTOMER": "django.conf.settings"}, "a function of the request is due"),
        ({"LEDGER": "mysql://db"}, "LEDGER: "),
        (["SIDECAR"], "expected a dict"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(wrong: Any, message: str) -> None:
    before = django_settings.STIGG_GUARD
    django_settings.STIGG_GUARD = wrong
    try:
        with pytest.raises(ImproperlyConfigured, match=rf"settings\.STIGG_GUARD.*{message}"):
            configure()
    finally:
        django_settings.STIGG_GUARD = before


def test_the_resolver_may_be_a_dotted_path(settings: Any, rf: RequestFactory) -> None:
    settings.STIGG_GUARD = {"CUSTOMER": f"{__name__}.customer_of_request"}
    assert customer_of(rf.get("/", REMOTE_USER="customer-demo-01")) == "customer-demo-01"


def test_a_wrong_setting_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "site_settings.py").write_text(
        'INSTALLED_APPS = ["stigg_guard.django"]\nSTIGG_GUARD = {"SIDECR": "localhost:80"}\n'
    )
    start = "import os, django; os.environ['DJANGO_SETTINGS_MODULE'] = 'site_settings'; django.setup()"
    ended = python(start, tmp_path)
    assert ended.returncode == 1
    assert "settings.STIGG_GUARD: SIDECR: unknown setting; did you mean SIDECAR?" in ended.stderr


def test_a_complete_project_passes_the_checks() -> None:
    assert guard_checks() == []


@pytest.mark.parametrize("middleware", [[], ["django.middleware.common.CommonMiddleware", "nowhere.Middleware"]])
def test_a_missing_middleware_fails_the_checks(settings: Any, middleware: list[str]) -> None:
    settings.MIDDLEWARE = middleware
    assert guard_checks() == ["stigg_guard.E001"]


def test_a_derived_middleware_passes_the_checks(settings: Any) -> None:
    settings.MIDDLEWARE = [f"{__name__}.OwnMiddleware"]
    assert guard_checks() == []


@pytest.mark.parametrize(("given", "found"), [({}, ["stigg_guard.E002"]), ({"ENABLED": False}, [])])
def test_a_missing_resolver_fails_the_checks_of_an_enabled_guard(
    settings: Any, given: Mapping[str, object], found: list[str]
) -> None:
    settings.STIGG_GUARD = given
    assert guard_checks() == found


def test_the_guard_before_the_start_is_an_error_with_the_remedy() -> None:
    ended = python("from stigg_guard.django import get_guard; get_guard()")
    assert "put 'stigg_guard.django' into INSTALLED_APPS" in ended.stderr


def test_importing_needs_no_settings_and_starts_no_thread() -> None:
    source = (
        "import threading, stigg_guard.django, stigg_guard.django.middleware\n"
        "from django.conf import settings\n"
        "print(settings.configured, threading.active_count())"
    )
    ended = python(source)
    assert (ended.stdout, ended.stderr) == ("False 1\n", "")


def test_starting_the_app_starts_no_thread_and_no_client() -> None:
    source = (
        "import threading, django\n"
        "from django.conf import settings\n"
        "settings.configure(INSTALLED_APPS=['stigg_guard.django'])\n"
        "django.setup()\n"
        "from stigg_guard.django import get_guard\n"
        "print(get_guard()._lookup._stigg, threading.active_count())"
    )
    assert python(source).stdout == "None 1\n"


def test_without_django_the_error_is_the_pip_line() -> None:
    ended = python("import sys; sys.modules['django'] = None; import stigg_guard.django")
    assert "MissingExtra: stigg_guard.django needs an extra" in ended.stderr
    assert "pip install 'stigg-guard[django]'" in ended.stderr

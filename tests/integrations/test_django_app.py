"""The Django app: its settings, its system checks, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest
from django.test import RequestFactory

from stigg_guard import ClientClosed
from stigg_guard.django import customer_of, get_guard


def customer_of_request(request: HttpRequest) -> str:
    return str(request.META["REMOTE_USER"])


def python(source: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The source, run by a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=cwd, check=False)


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
        ({"LEDGER": "django://nowhere"}, "LEDGER: there is no 'nowhere' in DATABASES"),
        ({"DATABASE": "nowhere"}, "DATABASE: there is no 'nowhere' in DATABASES, which has default"),
        (["SIDECAR"], "expected a dict"),
        ({"default": ["SIDECAR"]}, "expected a dict"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name_whenever_the_guard_is_asked_for(
    settings: Any, wrong: Any, message: str
) -> None:
    settings.STIGG_GUARD = wrong
    for _ in range(2):
        with pytest.raises(ImproperlyConfigured, match=rf"settings\.STIGG_GUARD of 'default': .*{message}"):
            get_guard()


def test_a_wrong_configuration_leaves_the_others_alone(settings: Any) -> None:
    settings.STIGG_GUARD = {"default": {"SIDECAR": "localhost:9"}, "eu": {"SIDECR": "localhost:8"}}
    assert get_guard().config.sidecar == "localhost:9"
    with pytest.raises(ImproperlyConfigured, match=r"of 'eu': SIDECR: unknown setting; did you mean SIDECAR\?"):
        get_guard("eu")


def test_configurations_have_guards_and_ledgers_of_their_own(settings: Any, tmp_path: Path) -> None:
    settings.BASE_DIR = tmp_path
    settings.STIGG_GUARD = {"default": {"SIDECAR": "localhost:9"}, "eu": {"SIDECAR": "localhost:8"}}
    assert get_guard("eu").config.sidecar == "localhost:8"
    assert get_guard().config.ledger != get_guard("eu").config.ledger


def test_the_resolver_may_be_a_dotted_path(settings: Any, rf: RequestFactory) -> None:
    settings.STIGG_GUARD = {"CUSTOMER": f"{__name__}.customer_of_request"}
    assert customer_of(rf.get("/", REMOTE_USER="customer-demo-01")) == "customer-demo-01"


def test_a_wrong_setting_ends_the_start_of_the_server_and_is_told_by_the_checks(tmp_path: Path) -> None:
    (tmp_path / "site_settings.py").write_text(
        'INSTALLED_APPS = ["stigg_guard.django"]\nSTIGG_GUARD = {"SIDECR": "localhost:80"}\n'
        'MIDDLEWARE = ["stigg_guard.django.middleware.StiggGuardMiddleware"]\n'
    )
    start = "import os; os.environ['DJANGO_SETTINGS_MODULE'] = 'site_settings'; from django.core import {0}; {0}.{1}"
    served = python(start.format("wsgi", "get_wsgi_application()"), tmp_path)
    checked = python(start.format("management", "execute_from_command_line(['manage.py', 'check'])"), tmp_path)
    for ended in (served, checked):
        assert ended.returncode == 1
        assert "SIDECR: unknown setting; did you mean SIDECAR?" in ended.stderr
    assert "stigg_guard.E003" in checked.stderr
    assert "Traceback" not in checked.stderr


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


def test_starting_the_app_starts_no_thread_and_opens_nothing() -> None:
    source = (
        "import sys, threading, django\n"
        "from django.conf import settings\n"
        "settings.configure(INSTALLED_APPS=['stigg_guard.django'])\n"
        "opened = []\n"
        "sys.addaudithook(lambda event, _: opened.append(event))\n"
        "django.setup()\n"
        "from stigg_guard.django import get_guard\n"
        "get_guard()\n"
        "print({'socket.connect', 'sqlite3.connect', 'subprocess.Popen'} & {*opened}, threading.active_count())"
    )
    assert python(source).stdout == "set() 1\n"


def test_without_django_the_error_is_the_pip_line() -> None:
    ended = python("import sys; sys.modules['django'] = None; import stigg_guard.django")
    assert "MissingExtra: stigg_guard.django needs an extra" in ended.stderr
    assert "pip install 'stigg-guard[django]'" in ended.stderr

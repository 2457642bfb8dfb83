"""What the manuals show is executed: each Python block, each command, and each quick start as a newcomer follows it."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
import unittest
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import celery
import django.conf.global_settings
import flask
import flask_sqlalchemy
import pytest
from django.contrib.auth.decorators import login_required, permission_required
from django.contrib.auth.mixins import LoginRequiredMixin
from django.db import transaction
from django.test import TestCase
from django.urls import include, path
from django.utils.decorators import method_decorator
from django.utils.translation import gettext_lazy
from django.views import View
from django.views.generic import CreateView, TemplateView
from flask.views import MethodView
from rest_framework.permissions import IsAuthenticated
from rest_framework.viewsets import ModelViewSet
from werkzeug.exceptions import HTTPException

import stigg_guard
from stigg_guard import Guard, Stigg
from stigg_guard import django as skin
from stigg_guard.__main__ import main
from stigg_guard.flask import StiggGuard
from stigg_guard.sidecar.server import Sidecar
from stigg_guard.testing import override_entitlements

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLLOWED = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/integrations/test_*_recipes.py"))
"""The tests of recipes, which name each by its heading."""
CUSTOMER = "customer-demo-01"


class Block(NamedTuple):
    """A block of a page, with the line that it begins at."""

    page: Path
    line: int
    language: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """All blocks of a page but those of recipes that have a test of their own."""
    source = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w+)\n(.*?)^```$", source, re.DOTALL | re.MULTILINE):
        heading = re.findall(r"^#+ (.+)$", source[: found.start()], re.MULTILINE)[-1]
        if page.stem == "recipes" and f'"{heading}"' in FOLLOWED:
            continue
        yield Block(page, source.count("\n", 0, found.start()) + 2, found[1], found[2])


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT).with_suffix(""))


def execute(block: Block, names: dict[str, Any]) -> None:
    """Executes the block, which sees these names and adds to them. An error names the page and its line."""
    exec(compile("\n" * (block.line - 1) + block.text, str(block.page), "exec"), names)


def with_ports_of_this_test(text: str, sidecar: Sidecar) -> str:
    """The block, asking the test's sidecar; one that it starts itself has a free port."""
    host, _, port = sidecar.address.partition(":")
    text = re.sub(r"localhost:(80|8433)\b", sidecar.address, text)
    text = text.replace('"localhost", remote_sidecar_port=80', f'"{host}", remote_sidecar_port={port}')
    return text.replace("=LocalSidecarConfig()", "=LocalSidecarConfig(), local_sidecar_port=0")


def django_project() -> dict[str, Any]:
    """What a reader of Django's manual has: a project's settings, Django's and its own names."""
    shop = ModuleType("shop")
    shop.__dict__["views"] = SimpleNamespace(home=len, create_template=len)
    api = ModuleType("shop.api")
    api.__dict__["urlpatterns"] = []
    sys.modules.update({"shop": shop, "shop.api": api})
    return {
        "INSTALLED_APPS": list(django.conf.global_settings.INSTALLED_APPS),
        "MIDDLEWARE": list(django.conf.global_settings.MIDDLEWARE),
        "DATABASES": {"default": {}},
        "STIGG_GUARD": {},
        "CreateView": CreateView,
        "IsAuthenticated": IsAuthenticated,
        "LoginRequiredMixin": LoginRequiredMixin,
        "ModelViewSet": ModelViewSet,
        "TemplateView": TemplateView,
        "View": View,
        "_": gettext_lazy,
        "include": include,
        "login_required": login_required,
        "method_decorator": method_decorator,
        "path": path,
        "permission_required": permission_required,
        "render": lambda report: None,
        "shared_task": celery.shared_task,
        "transaction": transaction,
        **{name: getattr(skin, name) for name in skin.__all__},
    }


def flask_app() -> dict[str, Any]:
    """What a reader of Flask's manual has: an app with the extension, and Flask's names."""
    app = flask.Flask("shop")
    app.config.update(STIGG_GUARD_SIDECAR="local", STIGG_GUARD_LEDGER="memory://")
    return {
        "Flask": flask.Flask,
        "HTTPException": HTTPException,
        "MethodView": MethodView,
        "SQLAlchemy": flask_sqlalchemy.SQLAlchemy,
        "StiggGuard": StiggGuard,
        "api": flask.Blueprint("api", "shop"),
        "app": app,
        "current_user": SimpleNamespace(is_authenticated=True, account=SimpleNamespace(stigg_id=CUSTOMER)),
        "guard": StiggGuard(app),
        "lazy_gettext": str,
        "render_template": flask.render_template,
        "request": flask.request,
    }


def readers_own(page: str, guard: Guard) -> dict[str, Any]:
    """What the reader of a page has: packages that it speaks of, and functions of his own."""
    own: dict[str, Any] = {name: getattr(stigg_guard, name) for name in ("Config", "Guard")}
    own |= {
        "TestCase": TestCase,
        "customer": CUSTOMER,
        "create_template": lambda: guard.report("feature-templates", 1, customer=CUSTOMER),
        "create_templates": lambda: ["a template"],
        "datetime": datetime,
        "guard": guard,
        "invite": lambda: None,
        "make_templates": lambda: ["a template"],
        "os": os,
        "override_entitlements": override_entitlements,
        "pytest": pytest,
        "timedelta": timedelta,
        "unittest": unittest,
    }
    if "flask" in page:
        return own | flask_app()
    if "django" in page or page == "README":
        return own | django_project()
    if page in ("docs/llm", "docs/webhooks"):
        return own | django_project() | flask_app()
    return own | ({"app": celery.Celery("jobs")} if page in ("docs/jobs", "docs/holds") else {})


@pytest.fixture
def own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves no trace of modules that the reader would have written, nor of what blocks set for a whole process."""
    for name in ("shop", "shop.api"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for secret in ("STIGG_WEBHOOK_SECRET", "STIGG_SERVER_API_KEY"):
        monkeypatch.setenv(secret, "a-secret")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_python_block_runs(
    page: Path,
    sidecar: Sidecar,
    make_guard: Callable[..., Guard],
    own_names: None,
    stopped: list[Guard | Stigg],
    settings: Any,
) -> None:
    settings.STIGG_GUARD = {"SIDECAR": sidecar.address, "LEDGER": "memory://"}
    names = {"__name__": "reader", **readers_own(name_of(page), make_guard(REPORT="inline"))}
    with _request_where_one_is(name_of(page), names):
        for block in blocks(page):
            if block.language == "python":
                execute(block._replace(text=with_ports_of_this_test(block.text, sidecar)), names)
    stopped.extend(value for value in names.values() if isinstance(value, (Guard, Stigg)))


@contextlib.contextmanager
def _request_where_one_is(page: str, names: dict[str, Any]) -> Iterator[None]:
    """Two pages of Flask's manual have blocks of a view's body, which run in a request."""
    if page not in ("docs/flask/guards", "docs/flask/recipes"):
        yield
        return
    with override_entitlements({"feature-templates": {"limit": 100}}), names["app"].test_request_context("/"):
        yield


@pytest.fixture
def stopped() -> Iterator[list[Guard | Stigg]]:
    """What blocks have opened is closed when the test is over."""
    opened: list[Guard | Stigg] = []
    yield opened
    for one in opened:
        one.close()


COMMANDS = [
    (page, command)
    for page in PAGES
    for command in [
        *(line for block in blocks(page) if block.language in ("sh", "console") for line in block.text.splitlines()),
        *(f"{inline} --help" for inline in re.findall(r"`(stigg-guard [^`]+)`", page.read_text(encoding="utf-8"))),
    ]
    if command.startswith("stigg-guard ")
]


def arguments(command: str) -> list[str]:
    """The arguments of a command that a page shows: without what is optional there, what follows, and a comment."""
    alone = re.split(r"\s*[|>#]\s*(?!\d)", re.sub(r"\[[^\]]*\]", "", command))[0]
    given = shlex.split(alone.replace("…", ""))[1:]
    return [*given, "--help"] if command.endswith(" --help") and "--help" not in given else given


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_command_is_one(
    page: Path,
    command: str,
    sidecar: Sidecar,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STIGG_GUARD_SIDECAR", sidecar.address)
    given = arguments(command)
    if given[0] in ("sidecar", "features"):  # the one stays until it is stopped, the other reads the reader's code
        given = [*given, "--help"]
    with contextlib.suppress(SystemExit):
        main(given)
    assert "usage:" not in capsys.readouterr().err, f"{name_of(page)}: {command}"


def files_of(page: Path) -> dict[str, str]:
    """The files that a page has one write, by the comment at their top."""
    found: dict[str, str] = {}
    for block in blocks(page):
        if named := re.match(r"(?:#|<!--) ([\w/]+\.(?:py|html))", block.text):
            found[named[1]] = block.text
    return found


def run(folder: Path, program: str, **environ: str) -> str:
    """What the program prints, run in the folder; it must succeed."""
    env = {**os.environ, "XDG_STATE_HOME": str(folder), **environ}
    env.pop("DJANGO_SETTINGS_MODULE", None)
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=100, env=env | environ
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_quick_start_of_django(tmp_path: Path) -> None:
    run(tmp_path, "from django.core.management import call_command; call_command('startproject', 'shop', '.')")
    for name, text in files_of(ROOT / "docs" / "django" / "index.md").items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        added = file.read_text() + text if name == "shop/settings.py" else text
        file.write_text(added + ("\nALLOWED_HOSTS = ['testserver']\n" if name == "shop/settings.py" else ""))
    visit = """
import sys; sys.path.insert(0, ".")
import django; django.setup()
from django.core.management import call_command
from django.test import Client
call_command("check", verbosity=0)
client = Client(headers={"accept": "text/html"})
print([client.post("/templates/").status_code for _ in range(4)])
print("6 of 6" in client.get("/").content.decode())
"""
    assert run(tmp_path, visit, DJANGO_SETTINGS_MODULE="shop.settings").splitlines()[-2:] == [
        "[302, 302, 302, 402]",
        "True",
    ]


def test_quick_start_of_flask(tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    for name, text in files_of(ROOT / "docs" / "flask" / "index.md").items():
        (tmp_path / name).write_text(text)
    visit = """
import sys; sys.path.insert(0, ".")
from app import app
client = app.test_client()
print([client.post("/templates", headers={"accept": "text/html"}).status_code for _ in range(4)])
print("6 of 6" in client.get("/").text)
"""
    assert run(tmp_path, visit).splitlines() == ["[302, 302, 302, 402]", "True"]


def test_quick_start_of_plain_python(tmp_path: Path) -> None:
    text = files_of(ROOT / "docs" / "python.md")["templates.py"]
    said = run(tmp_path, text).splitlines()
    assert said[:4] == ["3.0", *["a template is made"] * 3]
    assert said[4].startswith("REQUESTED_USAGE_EXCEEDING_LIMIT")

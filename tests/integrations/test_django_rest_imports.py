"""What is imported of Django REST framework, and when."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("missing", "module", "extra"),
    [("rest_framework", "rest", "djangorestframework"), ("drf_spectacular", "openapi", "openapi")],
)
def test_without_the_framework_the_pip_line_is_told(missing: str, module: str, extra: str) -> None:
    setup = "import sys, django; from django.conf import settings; settings.configure(); django.setup()"
    code = f"{setup}; sys.modules[{missing!r}] = None; import stigg_guard.django.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"pip install 'stigg-guard[{extra}]'" in done.stderr


DEFAULTS = """
import sys
import django
from django.conf import settings

settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF="shop_urls",
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "rest_framework", "stigg_guard.django"],
    MIDDLEWARE=["stigg_guard.django.middleware.StiggGuardMiddleware"],
    STIGG_GUARD={"CUSTOMER": lambda request: "ann", "SIDECAR": "127.0.0.1:1", "LEDGER": "memory://"},
    REST_FRAMEWORK={
        "DEFAULT_PERMISSION_CLASSES": ["shop_permissions.HasExports"],
        "DEFAULT_THROTTLE_CLASSES": ["shop_permissions.Counted"],
        "DEFAULT_SCHEMA_CLASS": "stigg_guard.django.openapi.AutoSchema",
        "EXCEPTION_HANDLER": "stigg_guard.django.rest.exception_handler",
    },
)
django.setup()
__import__(sys.argv[1])

from django.test import Client
from stigg_guard.testing import override_entitlements

with override_entitlements({"exports": True, "calls": {"limit": 1}}) as stigg:
    print([Client().get("/").status_code for _ in range(2)], stigg.usage("calls"))
with override_entitlements({"calls": {"limit": 1}}):
    print(Client().get("/")["Content-Type"])
"""
SHOP = {
    "shop_permissions": "from stigg_guard.django.rest import ConsumesUsage, HasFeature\n"
    "HasExports, Counted = HasFeature('exports'), ConsumesUsage(1, 'calls')",
    "shop_urls": "from django.urls import path\nfrom rest_framework.response import Response\n"
    "from rest_framework.views import APIView\n"
    "class Exports(APIView):\n    def get(self, request):\n        return Response()\n"
    "urlpatterns = [path('', Exports.as_view())]",
}


@pytest.mark.parametrize("first", ["shop_permissions", "stigg_guard.django.openapi"])
def test_guards_can_be_the_defaults_of_an_api_whatever_is_imported_first(tmp_path: Path, first: str) -> None:
    for name, source in SHOP.items():
        (tmp_path / f"{name}.py").write_text(source)
    run = [sys.executable, "-c", DEFAULTS, first]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["[200, 402] 1.0", "application/problem+json"], done.stderr

"""A small Django site that is run by real servers; the environment says where its sidecar and its ledger are."""

from __future__ import annotations

import os

SECRET_KEY = "tests-only"
ALLOWED_HOSTS = ["127.0.0.1"]
INSTALLED_APPS = ["stigg_guard.django"]
MIDDLEWARE = ["stigg_guard.django.middleware.StiggGuardMiddleware"]
ROOT_URLCONF = "views"
STIGG_GUARD = {
    "CUSTOMER": "views.customer",
    "SIDECAR": os.environ["SITE_SIDECAR"],
    "LEDGER": os.environ["SITE_LEDGER"],
    "TIMEOUT": 20,  # a busy machine is no outage
}

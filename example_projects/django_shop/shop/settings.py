"""The shop's settings. The environment says where the sidecar is and where the shop keeps its data."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from django import VERSION
from django.http import HttpRequest

DATA = Path(os.environ.get("SHOP_DATA") or Path(tempfile.gettempdir()) / "stigg-guard-django-shop")
DATA.mkdir(parents=True, exist_ok=True)

STIGG_GUARD = {
    "SIDECAR": os.environ.get("STIGG_GUARD_SIDECAR", "localhost:8433"),
    # The local sidecar answers Stigg's API too, so that the demonstration can sell plans. It takes any key.
    "API_URL": f"http://{os.environ.get('STIGG_SIDECAR_HTTP', 'localhost:8080')}",
    "API_KEY": os.environ.get("STIGG_API_KEY", "none-is-needed"),
    "CUSTOMER": "shop.customers.customer_of",
    "UPGRADE_URL": "/upgrade/?feature={feature}",
    "RATE_LIMIT_HEADERS": True,
    "ON_OUTAGE": "error",
    "TIMEOUT": 5,  # the machine of a demonstration may be busy with something else
    "CREDIT_RATES": {"feature-ai": {"currency": "api-credits", "rate": 2}},  # what a token costs
    # In the shop's own database: a template and its use are committed together, or not at all.
    "LEDGER": "django://default",
    # So that the page after a form shows its effect, whichever worker answers. A busy site keeps the defaults.
    "REPORT": "inline",
    "CACHE_TTL": 1,
}

SECRET_KEY = "for-this-demonstration-only-" + "x" * 32
DEBUG = False
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]"]
INSTALLED_APPS = [
    "shop",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "stigg_guard.django",
    "stigg_guard.django.ledger",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "shop.billing.read_through",
    "stigg_guard.django.middleware.StiggGuardMiddleware",
]
if os.environ.get("SHOP_DEBUG_TOOLBAR"):  # shows what each page asked of the guard; for a developer's machine only
    INSTALLED_APPS += ["debug_toolbar"]
    MIDDLEWARE.insert(0, "debug_toolbar.middleware.DebugToolbarMiddleware")
    DEBUG_TOOLBAR_PANELS = ["stigg_guard.django.panels.GuardPanel", "debug_toolbar.panels.sql.SQLPanel"]
    DEBUG_TOOLBAR_CONFIG = {"SHOW_TOOLBAR_CALLBACK": "shop.settings.is_developer"}
STATIC_URL = "static/"
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
MESSAGE_STORAGE = "django.contrib.messages.storage.cookie.CookieStorage"
ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "builtins": ["stigg_guard.django.templatetags.stigg_guard"],
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "shop.customers.signed_in",
            ],
        },
    }
]
# In SQLite a transaction that begins by reading is refused when it comes to write and another one was faster. Django
# can have transactions begin by writing since 5.1.
WRITES_FIRST = VERSION >= (5, 1)
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DATA / "shop.sqlite3",
        "ATOMIC_REQUESTS": WRITES_FIRST,
        "OPTIONS": {"timeout": 20, **({"transaction_mode": "IMMEDIATE"} if WRITES_FIRST else {})},
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TIME_ZONE = "UTC"
USE_TZ = True
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
}


def is_developer(request: HttpRequest) -> bool:
    """Whether the request comes from this machine."""
    return bool(request.META["REMOTE_ADDR"] == "127.0.0.1")

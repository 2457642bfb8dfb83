"""The Django project that the tests run in."""

from __future__ import annotations

from typing import Any


def signed_in_customer(request: Any) -> str | None:
    """The customer that the web server in front of the site has authenticated."""
    customer: str | None = request.META.get("REMOTE_USER")
    return customer


SECRET_KEY = "tests-only"
ALLOWED_HOSTS = ["testserver"]
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.messages",
    "django.contrib.sessions",
    "rest_framework",
    "stigg_guard.django",
    "stigg_guard.django.ledger",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "stigg_guard.django.middleware.StiggGuardMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
USE_TZ = True
STIGG_GUARD = {"CUSTOMER": signed_in_customer, "REPORT": "inline"}
REST_FRAMEWORK = {"DEFAULT_SCHEMA_CLASS": "stigg_guard.django.openapi.AutoSchema"}
ROOT_URLCONF = __name__
urlpatterns: list[Any] = []  # each test module that asks a site has its own

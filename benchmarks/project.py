"""The Django project that this process is, for the rows that need one."""

from __future__ import annotations

from importlib.util import find_spec

import django
from django.conf import settings

APPS = ["stigg_guard.django", "stigg_guard.django.ledger"]
WAFFLE = ["django.contrib.auth", "django.contrib.contenttypes", "waffle"]


def set_up_django() -> None:
    """Makes this process a Django project without middleware, unless it is one; its database is in memory."""
    if settings.configured:
        return
    settings.configure(
        INSTALLED_APPS=[*APPS, *(WAFFLE if find_spec("waffle") else [])],
        ALLOWED_HOSTS=["*"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    )
    django.setup()

"""The shop for a WSGI server: ``gunicorn shop.wsgi:application``."""

from __future__ import annotations

import fcntl
import os

from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.db import connections

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
application = get_wsgi_application()


def prepare_database() -> None:
    """Makes the demonstration's tables. Workers that start together take turns; none inherits a connection."""
    from django.conf import settings

    with open(settings.DATA / "migrating", "w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        call_command("migrate", verbosity=0)
    connections.close_all()


prepare_database()

"""Databases for Django beside those of the settings, for as long as a test lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from django.core.management import call_command
from django.db import connections
from django.db.utils import ConnectionHandler

from stigg_guard.clock import Clock
from stigg_guard.django.ledger.ledger import django_ledger_from_url
from stigg_guard.ledger import Ledger, ledger_from_url


@contextmanager
def django_database(alias: str, settings: dict[str, Any]) -> Iterator[str]:
    """Adds a database to those of the project; its alias."""
    connections.settings[alias] = ConnectionHandler({"default": deepcopy(settings)}).settings["default"]
    try:
        yield alias
    finally:
        connections[alias].close()
        del connections[alias], connections.settings[alias]


def make_ledger_tables(alias: str) -> None:
    """What ``manage.py migrate`` does for the ledger."""
    call_command("migrate", "stigg_guard_ledger", database=alias, verbosity=0)


def empty_ledger_tables(alias: str) -> None:
    """Leaves the ledger as it was when it was new."""
    with connections[alias].cursor() as cursor:
        for table in connections[alias].introspection.table_names(cursor):
            if table.startswith("stigg_guard_ledger_"):
                cursor.execute(f"DELETE FROM {table}")


def open_ledger(url: str, clock: Clock, *, settle_grace: float = 0.0) -> Ledger:
    """The ledger at a URL of any kind."""
    if url.startswith("django://"):
        return django_ledger_from_url(url, clock, settle_grace=settle_grace)
    return ledger_from_url(url, clock, settle_grace=settle_grace)

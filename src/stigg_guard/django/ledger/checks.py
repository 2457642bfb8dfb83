"""Django's system checks of a ledger in a database: which tables its connections lead to, how many there must be."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import closing, suppress

from django.apps import apps
from django.core.checks import CheckMessage, Error, Info, Warning  # noqa: A004 - as Django names it
from django.db import Error as DatabaseError
from django.db import connections, router

from stigg_guard.django.ledger.address import Address
from stigg_guard.django.ledger.apps import LedgerConfig
from stigg_guard.django.ledger.own import OwnConnections
from stigg_guard.django.ledger.place import own_place, require_one_place
from stigg_guard.errors import ConfigError, LedgerUnavailable

_HINT = (
    "Give it, and every pooler before it, as many connections as there are requests at the same time, that many again "
    "for the ledger, and one for the reporter of each process; past a pooler: LEDGER = 'django://{alias}?via=OTHER'."
)


def router_faults(alias: str, place: str) -> Iterator[CheckMessage]:
    """``migrate`` makes no table that a router forbids, however often it is run."""
    models = apps.get_app_config(LedgerConfig.label).get_models()
    allowed = router.allow_migrate(alias, LedgerConfig.label) and all(
        router.allow_migrate_model(alias, model) for model in models
    )
    if not allowed:
        text = f"DATABASE_ROUTERS forbid the ledger's tables in the database {alias!r}."
        hint = f"Let allow_migrate({alias!r}, {LedgerConfig.label!r}) be true, then run manage.py migrate."
        yield Error(text, hint=hint, obj=place, id="stigg_guard.E006")


def connection_notes(address: Address, place: str) -> Iterator[CheckMessage]:
    """Tells how many connections the ledger takes."""
    if connections[address.alias].vendor == "postgresql" and address.via is None:
        text = f"A request that uses units needs two connections to the database {address.alias!r}."
        yield Info(text, hint=_HINT.format(alias=address.alias), obj=place, id="stigg_guard.I001")


def database_faults(address: Address, place: str, databases: Collection[str]) -> Iterator[CheckMessage]:
    """What only the databases can tell. One that is away, or has no tables yet, tells of it itself."""
    alias, via = address
    if connections[alias].vendor != "postgresql" or not {alias, via}.intersection(databases):
        return
    with suppress(DatabaseError, LedgerUnavailable):
        if via is not None:
            yield from _way_faults(alias, via, place)
        elif _has_pooler(alias):
            text = f"The database {alias!r} is behind a pooler, where requests that use units may wait for each other."
            yield Warning(text, hint=_HINT.format(alias=alias), obj=place, id="stigg_guard.W009")


def _way_faults(alias: str, via: str, place: str) -> Iterator[CheckMessage]:
    with closing(OwnConnections(alias)) as users, closing(OwnConnections(via)) as own:
        other = own_place(own)
        try:
            require_one_place(alias, own_place(users, other.schema if other else ""), via, other)
        except ConfigError as error:
            yield Error(str(error), hint="Correct the alias.", obj=place, id="stigg_guard.E007")


def _has_pooler(alias: str) -> bool:
    """Whether the process that answers is another one than the connection was made to."""
    connection = connections[alias]
    with connection.temporary_connection() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (answering,) = cursor.fetchone()
        return bool(answering != connection.connection.info.backend_pid)

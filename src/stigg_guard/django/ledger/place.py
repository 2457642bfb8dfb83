"""Where the ledger's tables are, by which two ways to them are told to lead to one place."""

from __future__ import annotations

from typing import NamedTuple

from stigg_guard.django.ledger.own import OwnConnections
from stigg_guard.django.ledger.step import Step
from stigg_guard.errors import ConfigError

_PLACE = """
SELECT pg_postmaster_start_time()::text, current_database(), home.oid::bigint, quote_ident(space.nspname)
FROM pg_class AS home JOIN pg_namespace AS space ON space.oid = home.relnamespace
WHERE home.oid = to_regclass('stigg_guard_ledger_entries')
"""


class Place(NamedTuple):
    """A table of PostgreSQL: when its server was started, which is the same of no two, the database, number, schema."""

    server: str
    database: str
    number: int
    schema: str

    def __str__(self) -> str:
        return f"the schema {self.schema} of the database {self.database!r}"


def place_of(step: Step) -> Place | None:
    """Where the tables are that the statements of a step mean; None where there are none."""
    found = step.run(_PLACE)
    return Place(*found[0]) if found else None


def own_place(own: OwnConnections, schema: str = "") -> Place | None:
    """Where the tables are for these connections, or those in the schema."""
    return own.run(lambda cursor: place_of(Step(cursor, now=None, schema=schema)))


def require_one_place(alias: str, place: Place | None, via: str, other: Place | None) -> None:
    """Raises:
    ConfigError: the two aliases lead to different tables, so that what is used in users' transactions would be lost.
    """
    if place == other:
        return
    places = f"{alias!r} leads to {place or 'no tables'}, {via!r} to {other or 'no tables'}"
    elsewhere = " of another server" if str(place) == str(other) else ""
    raise ConfigError(f"LEDGER: {places}{elsewhere}; name an alias that leads past the pooler to the same database")

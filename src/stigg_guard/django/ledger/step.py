"""Statements of the ledger, which PostgreSQL and SQLite both understand."""

from __future__ import annotations

import re
from typing import Any

PREFIX = "stigg_guard_ledger_"
"""How the names of all its tables begin."""
_NOW = "%(now)s"
_SERVER_CLOCK = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
_LOCKING = re.compile(r" FOR UPDATE( OF \w+)?( SKIP LOCKED)?")


class Step:
    """What is done in one transaction.

    ``%(now)s`` in a statement is the present time in microseconds: ``now``, or with None the server's clock. SQLite,
    whose ``schema`` is None, has no locks of rows. Statements name the tables; they are those of the schema, whatever
    the search path, unless it is empty; its name is written as in SQL.
    """

    def __init__(self, cursor: Any, *, now: int | None, schema: str | None) -> None:
        self._cursor = cursor
        self._now = now
        self._schema = schema

    def run(self, statement: str, **given: Any) -> list[tuple[Any, ...]]:
        """Executes a statement; the rows that it answers. A list is written out: of numbers and texts for ``IN``, where
        an empty one has nothing in it, of tuples for ``VALUES``."""
        if self._schema is None:
            statement = _LOCKING.sub("", statement).replace("txid_current()", "0")
        elif self._schema:
            statement = statement.replace(PREFIX, f"{self._schema}.{PREFIX}")
        if self._now is None and "now" not in given:
            statement = statement.replace(_NOW, _SERVER_CLOCK)
        values: dict[str, Any] = {"now": self._now}
        for name, value in given.items():
            if isinstance(value, list):
                statement = statement.replace(f"%({name})s", _written_out(name, value, values))
            else:
                values[name] = value
        self._cursor.execute(statement, values)
        return self._cursor.fetchall() if self._cursor.description else []

    def now(self) -> int:
        """The present time of the ledger's clock."""
        return int(self.run(f"SELECT {_NOW}")[0][0])


def _written_out(name: str, items: list[Any], values: dict[str, Any]) -> str:
    """The marks of all items; puts their values among the others."""
    marks = []
    for number, item in enumerate(items):
        parts = item if isinstance(item, tuple) else (item,)
        names = [f"{name}_{number}_{place}" for place in range(len(parts))]
        values.update(zip(names, parts, strict=True))
        inner = ", ".join(f"%({one})s" for one in names)
        marks.append(f"({inner})" if isinstance(item, tuple) else inner)
    return ", ".join(marks) or "NULL"

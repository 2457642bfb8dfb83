# ruff: noqa: RUF012 - a migration is written as Django writes it
"""Amounts become quanta, times microseconds, and periods those that the sidecar tells.

What is on its way and what is held is brought over into new tables; the usage that was known is told anew by the next
snapshot. The tables of the version before are gone, so that its processes are refused until they are restarted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from django.core.management.color import no_style
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.exceptions import IrreversibleError

from stigg_guard.amounts import MAX_AMOUNT, quanta
from stigg_guard.ledger.accounting import UNTOLD
from stigg_guard.ledger.entries import instant_text, period_text

LEASE = 30_000_000
AT_ONCE = 1000
ANY_PERIOD = period_text(UNTOLD)  # what is brought over counts in any, until it is acknowledged


def bring_over(apps: Any, schema_editor: BaseDatabaseSchemaEditor) -> None:
    connection = schema_editor.connection
    if connection.vendor == "postgresql":  # what a transaction is about to write there comes along, or is refused
        schema_editor.execute("LOCK TABLE stigg_guard_ledger_entry, stigg_guard_ledger_heldunits")
    for old, new, made in (("OldEntry", "Entry", entry), ("HeldUnits", "Hold", hold)):
        olds, news = (apps.get_model("stigg_guard_ledger", name).objects.using(connection.alias) for name in (old, new))
        rows = made_rows(olds.order_by("pk").iterator(AT_ONCE), news.model, made)
        while several := list(islice(rows, AT_ONCE)):
            news.bulk_create(several)
        for statement in connection.ops.sequence_reset_sql(no_style(), [news.model]):
            schema_editor.execute(statement)


def made_rows(olds: Iterator[Any], model: Any, made: Callable[[Any], dict[str, Any]]) -> Iterator[Any]:
    return (model(pk=old.pk, **made(old)) for old in olds)


def entry(old: Any) -> dict[str, Any]:
    if abs(old.amount) > MAX_AMOUNT:  # which the version before took at once
        old.state, old.batch = "dead", None
        old.reason = f"{old.amount:.0f} units are too many at once: report them in parts, and discard this"
    first_at = microseconds(old.used_at)
    as_it_was = ("key", "state", "is_set", "batch", "reason", "attempts")
    return {
        **{name: getattr(old, name) for name in as_it_was},
        "amount": capped(old.amount),
        "used_at": instant_text(first_at * 1000),
        "first_at": first_at,
        "period": ANY_PERIOD,
        "event": old.event or "",
        "until": old.until and microseconds(old.until),
        "lasts": LEASE if old.until else 0,
        "fresh": old.state == "unsent" and not old.event,
    }


def hold(old: Any) -> dict[str, Any]:
    taken_at, until = microseconds(old.taken_at), microseconds(old.until)
    return {
        **{name: getattr(old, name) for name in ("hold", "key", "counts")},
        "amount": capped(old.amount),
        "period": ANY_PERIOD,
        "taken_at": taken_at,
        "until": until,
        "lasts": max(0, until - taken_at),
    }


def capped(units: float) -> int:
    return quanta(max(-MAX_AMOUNT, min(units, MAX_AMOUNT)))


def microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)


def refuse_unless_empty(apps: Any, schema_editor: BaseDatabaseSchemaEditor) -> None:
    entries = apps.get_model("stigg_guard_ledger", "Entry").objects.using(schema_editor.connection.alias)
    if entries.exists():
        raise IrreversibleError("the ledger has usage that was not reported: run manage.py stigg_ledger drain first")


class Migration(migrations.Migration):
    dependencies = [("stigg_guard_ledger", "0001_initial")]

    operations = [
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.AlterModelTable("Entry", "stigg_guard_ledger_entry"),
                migrations.RenameModel("Entry", "OldEntry"),
                migrations.AlterModelTable("Usage", "stigg_guard_ledger_usage"),
                migrations.RenameModel("Usage", "OldUsage"),
            ]
        ),
        migrations.CreateModel(
            name="Entry",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("key", models.TextField()),
                ("state", models.TextField()),
                ("amount", models.BigIntegerField()),
                ("is_set", models.BooleanField()),
                ("used_at", models.TextField()),
                ("first_at", models.BigIntegerField()),
                ("period", models.TextField()),
                ("event", models.TextField(default="")),
                ("dimensions", models.TextField(default="")),
                ("until", models.BigIntegerField(default=0, null=True)),
                ("lasts", models.BigIntegerField(default=0)),
                ("batch", models.TextField(null=True)),
                ("reason", models.TextField(default="")),
                ("attempts", models.IntegerField(default=0)),
                ("ticket", models.BigIntegerField(default=0)),
                ("before", models.TextField(default="")),
                ("fresh", models.BooleanField()),
                ("present", models.TextField(default="/")),
            ],
            options={
                "verbose_name_plural": "entries",
                "db_table": "stigg_guard_ledger_entries",
                "indexes": [
                    models.Index(fields=["key", "state"], name="stigg_guard_entries_by_key"),
                    models.Index(fields=["state", "id"], name="stigg_guard_entries_by_state"),
                    models.Index(
                        condition=models.Q(("batch", None), _negated=True),
                        fields=["batch"],
                        name="stigg_guard_entries_by_batch",
                    ),
                    models.Index(
                        condition=models.Q(("until__gt", 0)), fields=["until"], name="stigg_guard_entries_by_end"
                    ),
                    models.Index(condition=models.Q(("fresh", True)), fields=["id"], name="stigg_guard_entries_fresh"),
                ],
            },
        ),
        migrations.CreateModel(
            name="Hold",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("hold", models.TextField()),
                ("key", models.TextField()),
                ("amount", models.BigIntegerField()),
                ("period", models.TextField()),
                ("taken_at", models.BigIntegerField()),
                ("until", models.BigIntegerField()),
                ("lasts", models.BigIntegerField()),
                ("counts", models.BooleanField()),
            ],
            options={
                "db_table": "stigg_guard_ledger_holds",
                "indexes": [
                    models.Index(fields=["hold"], name="stigg_guard_holds_by_id"),
                    models.Index(fields=["key", "until"], name="stigg_guard_holds_by_key"),
                    models.Index(fields=["until"], name="stigg_guard_holds_by_end"),
                ],
            },
        ),
        migrations.CreateModel(
            name="Usage",
            fields=[
                ("key", models.TextField(primary_key=True, serialize=False)),
                ("period", models.TextField(null=True)),
                ("used", models.BigIntegerField(default=0)),
                ("allowed", models.BigIntegerField(null=True)),
                ("seen", models.BigIntegerField(default=0)),
                ("settled", models.BigIntegerField(default=0)),
                ("settled_at", models.BigIntegerField(null=True)),
                ("moved_at", models.BigIntegerField(null=True)),
                ("added", models.BigIntegerField(default=0)),
            ],
            options={"verbose_name_plural": "usage", "db_table": "stigg_guard_ledger_usages"},
        ),
        migrations.RunPython(bring_over, refuse_unless_empty),
        migrations.AlterModelTable("Ticket", "stigg_guard_ledger_tickets"),
        migrations.AlterModelTable("LateCommit", "stigg_guard_ledger_late"),
        migrations.DeleteModel("OldEntry"),
        migrations.DeleteModel("HeldUnits"),
        migrations.DeleteModel("OldUsage"),
    ]

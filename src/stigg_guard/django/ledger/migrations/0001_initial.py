# ruff: noqa: RUF012 - a migration is written as Django writes it
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="LateCommit",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
            ],
        ),
        migrations.CreateModel(
            name="Ticket",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
            ],
        ),
        migrations.CreateModel(
            name="Usage",
            fields=[
                ("key", models.TextField(primary_key=True, serialize=False)),
                ("used", models.FloatField(null=True)),
                ("period_start", models.FloatField(default=0.0)),
                ("ticket", models.BigIntegerField(default=0)),
                ("settled_at", models.FloatField(default=0.0)),
            ],
            options={
                "verbose_name_plural": "usage",
            },
        ),
        migrations.CreateModel(
            name="Entry",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("key", models.TextField()),
                ("state", models.TextField()),
                ("amount", models.FloatField()),
                ("is_set", models.BooleanField(default=False)),
                ("used_at", models.FloatField()),
                ("period_start", models.FloatField(default=0.0)),
                ("until", models.FloatField(default=0.0, null=True)),
                ("batch", models.TextField(null=True)),
                ("reason", models.TextField(default="")),
                ("event", models.TextField(null=True)),
                ("attempts", models.IntegerField(default=0)),
            ],
            options={
                "verbose_name_plural": "entries",
                "indexes": [
                    models.Index(fields=["key", "state"], name="stigg_guard_entry_by_key"),
                    models.Index(fields=["state", "id"], name="stigg_guard_entry_by_state"),
                    models.Index(
                        condition=models.Q(("batch", None), _negated=True),
                        fields=["batch"],
                        name="stigg_guard_entry_by_batch",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="HeldUnits",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("hold", models.TextField()),
                ("key", models.TextField()),
                ("amount", models.FloatField()),
                ("taken_at", models.FloatField()),
                ("until", models.FloatField()),
                ("counts", models.BooleanField(default=True)),
            ],
            options={
                "verbose_name_plural": "held units",
                "indexes": [
                    models.Index(fields=["hold"], name="stigg_guard_held_by_hold"),
                    models.Index(fields=["key", "until"], name="stigg_guard_held_by_key"),
                ],
            },
        ),
    ]

# ruff: noqa: RUF012 - a migration is written as Django writes it
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("stigg_guard_ledger", "0002_quanta")]

    operations = [
        migrations.CreateModel(
            name="CallersKey",
            fields=[
                ("digest", models.TextField(primary_key=True, serialize=False)),
                ("hold", models.TextField()),
                ("until", models.BigIntegerField()),
                ("binding", models.TextField()),
            ],
            options={
                "db_table": "stigg_guard_ledger_keys",
                "indexes": [models.Index(fields=["until"], name="stigg_guard_keys_by_end")],
            },
        ),
    ]

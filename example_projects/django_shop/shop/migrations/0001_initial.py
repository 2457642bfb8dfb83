"""The templates, with as many of each studio as the demonstration catalog counts."""

from __future__ import annotations

from typing import Any

from django.db import migrations, models

KINDS = [("poster", "Poster"), ("report", "Report"), ("menu", "Menu"), ("cover", "Cover")]
MADE = {
    "customer-demo-01": [("Spring sale", "poster"), ("Jazz night", "poster"), ("Gift voucher", "cover")],
    "customer-demo-02": [
        *((f"Quarter {quarter}, {year}", "report") for year in (2024, 2025) for quarter in (1, 2, 3, 4)),
        ("Annual report", "report"),
        ("Board dinner", "menu"),
        ("Open day", "poster"),
        ("Investor folder", "cover"),
    ],
    "customer-demo-03": [("Breakfast", "menu")],
}


def make_templates(apps: Any, _schema_editor: Any) -> None:
    template = apps.get_model("shop", "Template")
    template.objects.bulk_create(
        template(customer_id=customer, name=name, kind=kind) for customer, made in MADE.items() for name, kind in made
    )


class Migration(migrations.Migration):
    initial = True
    operations = [
        migrations.CreateModel(
            name="Template",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("customer_id", models.CharField(db_index=True, max_length=100)),
                ("name", models.CharField(max_length=60)),
                ("kind", models.CharField(choices=KINDS, default="poster", max_length=10)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
            ],
            options={"ordering": ("-pk",)},
        ),
        migrations.RunPython(make_templates, migrations.RunPython.noop),
    ]

"""The tables of the shop."""

from __future__ import annotations

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

KINDS = [("poster", "Poster"), ("report", "Report"), ("menu", "Menu"), ("cover", "Cover")]
ID = models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")
CASCADE = django.db.models.deletion.CASCADE


class Migration(migrations.Migration):
    initial = True
    dependencies = [migrations.swappable_dependency(settings.AUTH_USER_MODEL)]
    operations = [
        migrations.CreateModel(
            name="Studio",
            fields=[
                ("id", ID),
                ("customer_id", models.CharField(max_length=100, unique=True)),
                ("owner", models.OneToOneField(on_delete=CASCADE, to=settings.AUTH_USER_MODEL)),
                ("name", models.CharField(max_length=60)),
                ("trade", models.CharField(max_length=60)),
                (
                    "joined_with",
                    models.CharField(help_text="The plan that the demonstration starts with.", max_length=30),
                ),
            ],
            options={"ordering": ("pk",)},
        ),
        migrations.CreateModel(
            name="Template",
            fields=[
                ("id", ID),
                ("studio", models.ForeignKey(on_delete=CASCADE, related_name="templates", to="shop.studio")),
                ("name", models.CharField(max_length=60)),
                ("kind", models.CharField(choices=KINDS, default="poster", max_length=10)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
            ],
            options={"ordering": ("-pk",)},
        ),
    ]
